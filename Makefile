# make            build dist/archive_overlay.pyz
# make help       list everything else

PREFIX   ?= /usr
BINDIR   ?= $(PREFIX)/bin
MANDIR   ?= $(PREFIX)/share/man
DOCDIR   ?= $(PREFIX)/share/doc/archive_overlay
HOOKSDIR ?= $(PREFIX)/share/containers/oci/hooks.d
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/site-functions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
SYSTEMDDIR ?= $(PREFIX)/lib/systemd
DESTDIR  ?=

# The interpreter in the program's first line, which also builds it and makes the venv for the tools. Where there is no
# /usr/bin/python3, the first python3 on PATH.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) $(shell command -v python3) /usr/bin/python3)
INSTALL ?= install

# For build.sh: distributions build with --without-shiv, which makes the same bytes.
BUILDFLAGS ?=

export PYTHON

# Directories too, for a module that is deleted is a change.
SOURCES := $(shell find archive_overlay -name __pycache__ -prune -o '(' -name '*.py' -o -type d ')' -print)
PROGRAM = dist/archive_overlay.pyz

.DELETE_ON_ERROR:
.PHONY: all install uninstall check test matrix roots soak lint lock mutants man completions bench demo deb rpm release-check clean help FORCE

all: $(PROGRAM)  ## build the program into one file

$(PROGRAM): build.sh tools/onefile.py tools/start.py $(SOURCES) .cache/build-settings
	./build.sh $(BUILDFLAGS) $@

# Changes when the settings do, and only then.
.cache/build-settings: FORCE
	@mkdir -p $(@D)
	@echo '$(PYTHON) $(SOURCE_DATE_EPOCH)' | cmp -s - $@ || echo '$(PYTHON) $(SOURCE_DATE_EPOCH)' >$@

install uninstall: export PROGRAM := $(PROGRAM)
install uninstall: export DESTDIR := $(DESTDIR)
install uninstall: export BINDIR := $(BINDIR)
install uninstall: export MANDIR := $(MANDIR)
install uninstall: export DOCDIR := $(DOCDIR)
install uninstall: export HOOKSDIR := $(HOOKSDIR)
install uninstall: export BASHCOMPDIR := $(BASHCOMPDIR)
install uninstall: export ZSHCOMPDIR := $(ZSHCOMPDIR)
install uninstall: export FISHCOMPDIR := $(FISHCOMPDIR)
install uninstall: export SYSTEMDDIR := $(SYSTEMDDIR)
install uninstall: export INSTALL := $(INSTALL)

install: $(PROGRAM)  ## install program, hook, units, man pages, documents and completions
	tools/install.sh install

uninstall:  ## remove what install put there
	tools/install.sh uninstall

check:  ## check style, types and scripts, and run the unit tests: half a minute
	tools/check.sh lint unit

test:  ## check and test everything that this machine can run
	tools/check.sh lint test

# What tools/matrix.sh takes: names of roots, and after -- what pytest is to run there.
MATRIX ?= bullseye trixie sid

matrix:  ## run the end-to-end tests in Debian 11, 13 and sid, as root (MATRIX="trixie -- tests/e2e/test_podman.py")
	MATRIX='$(MATRIX)' tools/check.sh matrix

ROOTS ?= python3.9 trixie python3.14 fresh

roots:  ## get Pythons that this machine lacks, Debian 13 and a fresh Debian, for the tests, as root (ROOTS="sid")
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
	@$(PYTHON) tools/demo.py $(PROGRAM)

deb rpm: export MAINTAINER := $(MAINTAINER)
deb rpm: export HOMEPAGE := $(HOMEPAGE)

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
	@printf '%s\n' '' \
	    'Variables, as in `make install PREFIX=/usr/local`:' \
	    '' \
	    'PYTHON          the Python in the first line of the program ($(PYTHON)): an absolute path' \
	    'PREFIX          where to install: $(PREFIX). With another one, the hook is not where podman looks;' \
	    '                `make install` then says what to add to the configuration of podman' \
	    'DESTDIR         put in front of every directory, for packages' \
	    'MAINTAINER      NAME <ADDRESS> of whoever publishes the packages of `make deb` and `make rpm`; HOMEPAGE is a URL' \
	    'BINDIR, MANDIR, DOCDIR, HOOKSDIR, BASHCOMPDIR, ZSHCOMPDIR, FISHCOMPDIR, SYSTEMDDIR' \
	    '                single directories; the Makefile has their defaults'
