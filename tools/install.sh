#!/bin/sh
# Install the built program and what belongs to it, or remove it again: tools/install.sh install|uninstall
#
# The Makefile sets the directories. What was made, directories too, is noted in .cache/installed, in a file for each
# choice of directories: so uninstalling removes just that, and leaves directories that were there before. Without the
# note (another checkout, `make clean`), only the files go, and the documentation's directories.
set -eu
cd "$(dirname -- "$0")/.."

hooks_that_podman_reads=/usr/share/containers/oci/hooks.d

# Nothing in a path is a command to sed.
bindir_for_sed=$(printf '%s\n' "$BINDIR" | sed 's/[\\&|]/\\&/g')

choice=$(printf '%s\n' "$DESTDIR" "$BINDIR" "$MANDIR" "$DOCDIR" "$HOOKSDIR" \
    "$BASHCOMPDIR" "$ZSHCOMPDIR" "$FISHCOMPDIR" "$SYSTEMDDIR" | cksum | tr -d ' ')
note=.cache/installed/$choice

# Call $1 with the mode, the source and the place of each file. Of a source whose name ends in .in, @BINDIR@ is replaced.
each_file() {
    "$1" 0755 "$PROGRAM" "$BINDIR/archive_overlay"
    "$1" 0644 hooks.d/archive_overlay.json.in "$HOOKSDIR/archive_overlay.json"
    "$1" 0644 hooks.d/debug/archive_overlay.json.in "$DOCDIR/debug/archive_overlay.json"
    for whose in system user; do
        for unit in "systemd/$whose"/*.in; do
            "$1" 0644 "$unit" "$SYSTEMDDIR/$whose/$(basename -- "$unit" .in)"
        done
    done
    for page in man/*.1; do
        "$1" 0644 "$page" "$MANDIR/man1/${page##*/}"
    done
    "$1" 0644 completions/archive_overlay "$BASHCOMPDIR/archive_overlay"
    "$1" 0644 completions/_archive_overlay "$ZSHCOMPDIR/_archive_overlay"
    "$1" 0644 completions/archive_overlay.fish "$FISHCOMPDIR/archive_overlay.fish"
    # As they are in the sources, for their links to one another.
    for document in README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE; do
        "$1" 0644 "$document" "$DOCDIR/$document"
    done
    find docs -type f >.cache/documents
    while IFS= read -r document; do
        "$1" 0644 "$document" "$DOCDIR/$document"
    done <.cache/documents
}

put() {
    to=$DESTDIR$3
    make_directory "$(dirname -- "$to")"
    [ -e "$to" ] || printf '%s\n' "$to" >>"$note"
    case $2 in
        *.in)
            sed "s|@BINDIR@|$bindir_for_sed|" "$2" >.cache/filled-in
            $INSTALL -m "$1" .cache/filled-in "$to"
            ;;
        *) $INSTALL -m "$1" "$2" "$to" ;;
    esac
}

# Make a directory and what is missing above it, and note what was made.
make_directory() {
    [ ! -d "$1" ] || return 0
    make_directory "$(dirname -- "$1")"
    $INSTALL -d "$1"
    printf '%s\n' "$1" >>"$note"
}

take() {
    rm -f "$DESTDIR$3"
}

remove_directories() {
    if [ -e "$note" ]; then
        # The last one first. (What is noted twice was gone in between.)
        sed '1!G;h;$!d' "$note" | while IFS= read -r made; do
            if [ -d "$made" ] && [ ! -L "$made" ]; then
                rmdir "$made" 2>/dev/null || :
            else
                rm -f "$made"
            fi
        done
        rm "$note"
    fi
    if [ -d "$DESTDIR$DOCDIR" ]; then
        find docs -depth -type d | while IFS= read -r directory; do
            rmdir "$DESTDIR$DOCDIR/$directory" 2>/dev/null || :
        done
        rmdir "$DESTDIR$DOCDIR/debug" "$DESTDIR$DOCDIR" 2>/dev/null || :
    fi
}

mkdir -p .cache/installed
case ${1-} in
    install)
        each_file put
        if [ "$HOOKSDIR" != "$hooks_that_podman_reads" ]; then
            cat <<END

podman by itself reads hook configurations only in $hooks_that_podman_reads.
For it to read the one that was just installed, put these two lines into
/etc/containers/containers.conf.d/50-archive_overlay.conf:

    [engine]
    hooks_dir = ["$hooks_that_podman_reads", "$HOOKSDIR"]

Then \`archive_overlay check\` says whether podman finds it.
END
        fi
        ;;
    uninstall)
        each_file take
        remove_directories
        ;;
    *) echo "install.sh: the usage is in the first lines of this file" >&2; exit 2 ;;
esac
