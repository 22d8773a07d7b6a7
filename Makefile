# make            build dist/archive_overlay.pyz
# make help       list everything else

PREFIX   ?= /usr
BINDIR   ?= $(PREFIX)/bin
MANDIR   ?= $(PREFIX)/share/man
DOCDIR   ?= $(PREFIX)/share/doc/archive_overlay
HOOKSDIR ?= $(PREFIX)/share/containers/oci/hooks.d
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/site-functions
SYSTEMDDIR ?= $(PREFIX)/lib/systemd
DESTDIR  ?=

# The interpreter that the program's first line names. Its own venv module makes the tools' venv.
PYTHON ?= /usr/bin/python3
INSTALL ?= install

# For build.sh: distributions build with --without-shiv, which makes the same bytes.
BUILDFLAGS ?=

export PYTHON

# Directories too, for a module that is deleted is a change.
SOURCES := $(shell find archive_overlay -name __pycache__ -prune -o '(' -name '*.py' -o -type d ')' -print)
PROGRAM = dist/archive_overlay.pyz
UNIT = archive_overlay-recover.service

# Nothing in a path is a command to sed.
BINDIR_FOR_SED = $(subst |,\|,$(subst &,\&,$(subst \,\\,$(BINDIR))))

.DELETE_ON_ERROR:
.PHONY: all install uninstall check test matrix roots soak lint lock mutants man completions bench demo deb rpm release-check clean help FORCE

all: $(PROGRAM)  ## build the program into one file

$(PROGRAM): build.sh tools/onefile.py $(SOURCES) .cache/build-settings
	./build.sh $(BUILDFLAGS) $@

# Changes when the settings do, and only then.
.cache/build-settings: FORCE
	@mkdir -p $(@D)
	@echo '$(PYTHON) $(SOURCE_DATE_EPOCH)' | cmp -s - $@ || echo '$(PYTHON) $(SOURCE_DATE_EPOCH)' >$@

install: $(PROGRAM)  ## install program, hook, units, man page and completions (DESTDIR, PREFIX, BINDIR, MANDIR, ...)
	$(INSTALL) -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(MANDIR)/man1' '$(DESTDIR)$(HOOKSDIR)' '$(DESTDIR)$(DOCDIR)/debug' \
	    '$(DESTDIR)$(BASHCOMPDIR)' '$(DESTDIR)$(ZSHCOMPDIR)' '$(DESTDIR)$(SYSTEMDDIR)/system' '$(DESTDIR)$(SYSTEMDDIR)/user'
	$(INSTALL) -m 0755 $(PROGRAM) '$(DESTDIR)$(BINDIR)/archive_overlay'
	$(INSTALL) -m 0644 man/archive_overlay.1 '$(DESTDIR)$(MANDIR)/man1/archive_overlay.1'
	$(INSTALL) -m 0644 completions/archive_overlay '$(DESTDIR)$(BASHCOMPDIR)/archive_overlay'
	$(INSTALL) -m 0644 completions/_archive_overlay '$(DESTDIR)$(ZSHCOMPDIR)/_archive_overlay'
	for hook in archive_overlay.json debug/archive_overlay.json; do \
	    sed 's|@BINDIR@|$(BINDIR_FOR_SED)|' "hooks.d/$$hook.in" >".cache/$${hook##*/}" || exit; \
	    case $$hook in debug/*) to='$(DESTDIR)$(DOCDIR)/debug' ;; *) to='$(DESTDIR)$(HOOKSDIR)' ;; esac; \
	    $(INSTALL) -m 0644 ".cache/$${hook##*/}" "$$to" || exit; \
	done
	for whose in system user; do \
	    sed 's|@BINDIR@|$(BINDIR_FOR_SED)|' systemd/$$whose/$(UNIT).in >.cache/$(UNIT) || exit; \
	    $(INSTALL) -m 0644 .cache/$(UNIT) '$(DESTDIR)$(SYSTEMDDIR)'/$$whose || exit; \
	done

uninstall:  ## remove what install put there
	rm -f '$(DESTDIR)$(BINDIR)/archive_overlay' '$(DESTDIR)$(MANDIR)/man1/archive_overlay.1' \
	    '$(DESTDIR)$(HOOKSDIR)/archive_overlay.json' '$(DESTDIR)$(DOCDIR)/debug/archive_overlay.json' \
	    '$(DESTDIR)$(BASHCOMPDIR)/archive_overlay' '$(DESTDIR)$(ZSHCOMPDIR)/_archive_overlay' \
	    '$(DESTDIR)$(SYSTEMDDIR)/system/$(UNIT)' '$(DESTDIR)$(SYSTEMDDIR)/user/$(UNIT)'
	-rmdir '$(DESTDIR)$(DOCDIR)/debug' '$(DESTDIR)$(DOCDIR)'

check:  ## check style, types and scripts, and run the unit tests: half a minute
	tools/check.sh lint unit

test:  ## check and test everything that this machine can run
	tools/check.sh lint test

# What tools/matrix.sh takes: names of roots, and after -- what pytest is to run there.
MATRIX ?= bullseye trixie sid

matrix:  ## run the end-to-end tests in Debian 11, 13 and sid, as root (MATRIX="trixie -- tests/e2e/test_podman.py")
	MATRIX='$(MATRIX)' tools/check.sh matrix

ROOTS ?= python3.9 trixie python3.14

roots:  ## get Pythons that this machine lacks, and Debian 13, for the tests, as root (ROOTS="sid")
	tools/roots.sh $(ROOTS)

soak:  ## try the oracle with random containers (SECONDS=600, or EXAMPLES of each mount)
	SOAK_SECONDS='$(SECONDS)' EXAMPLES='$(EXAMPLES)' tools/check.sh soak

lint:  ## check style, types and scripts
	tools/check.sh lint

# MUTANTS are modules of the table in tools/mutants.py; all of them take hours.
mutants:  ## put faults into modules, and say which ones no test notices (MUTANTS=archive_overlay/hook/policy.py)
	tools/check.sh
	$(PYTHON) -B tools/mutants.py $(MUTANTS)

lock:  ## renew the versions of all tools, by tools/requirements.in and tools/mutants.in
	tools/lock.sh

man:  ## write man/*.1 anew
	tools/check.sh man

completions:  ## write completions/ anew
	tools/check.sh completions

# BENCH takes what `python3 -m bench` does: works, --rounds N, --update-readme.
bench: $(PROGRAM)  ## measure the program beside cp, tar and others (BENCH="copy tar.gz --rounds 3")
	$(PYTHON) -B -m bench $(PROGRAM) $(BENCH)

demo: $(PROGRAM)  ## show what the program does with a container's changes
	$(PYTHON) tools/demo.py $(PROGRAM)

deb:  ## build dist/*.deb and its source package from the last commit
	tools/package.sh deb

rpm:  ## build dist/*.rpm and its source package from the last commit
	tools/package.sh rpm

release-check:  ## check that the last commit can be released, and write dist/SHA256SUMS
	tools/check.sh release-check

clean:  ## remove everything that was built or set up
	rm -rf dist build .cache .venv .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 16
