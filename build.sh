#!/bin/sh
# Build the program into one file.
#
#     ./build.sh [--without-shiv] [OUTPUT]         OUTPUT: dist/archive_overlay.pyz
#
#     PYTHON             the interpreter that the file names in its first line (/usr/bin/python3, or where there is
#                        none, the first python3 on PATH)
#     SOURCE_DATE_EPOCH  the date of everything in the file (1980-01-01)
#
# shiv packs the package, and tools/onefile.py writes what shiv made anew, so that it starts without
# extracting itself. A shiv on PATH is used; otherwise one is installed in .cache/shiv. Where that
# cannot be (no network, no venv), or with --without-shiv, the standard library makes the same bytes.
set -eu

say() { printf 'build.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

use_shiv=yes
if [ "${1-}" = --without-shiv ]; then
    use_shiv=no
    shift
fi
case ${1-} in
    -*) die "unknown option $1; the usage is in the first lines of this file" ;;
esac
[ $# -le 1 ] || die "one output at most"

top=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
output=${1:-$top/dist/archive_overlay.pyz}
case $output in
    /*) ;;
    *) output=$PWD/$output ;;
esac
epoch=${SOURCE_DATE_EPOCH:-0}
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
python=${PYTHON:-/usr/bin/python3}
if [ -z "${PYTHON-}" ] && ! [ -x "$python" ]; then
    python=$(command -v python3) || die "no python3 on PATH (on Debian: apt-get install python3)"
fi

case $python in
    *[[:space:]]*) die "PYTHON is \"$python\": the first line of a program has no room for spaces" ;;
    /*) ;;
    *) die "PYTHON is \"$python\": give an absolute path, for a hook runs without a PATH" ;;
esac
case $epoch in
    *[!0-9]*) die "SOURCE_DATE_EPOCH is \"$epoch\": give seconds since 1970" ;;
esac

builder=$python
if ! [ -x "$builder" ]; then
    builder=$(command -v python3) || die "there is no $python, and no python3 on PATH"
    say "$python does not exist on this host, so the program cannot run here; building it with $builder"
    say "(if $python is another version of Python where it runs, the program starts more slowly)"
fi

# Nothing of the caller's environment may change a byte. (Python 3.9 and 3.10 need the fixed hash seed
# for .pyc files that are the same each time.)
clean() {
    env -i PATH="$PATH" LC_ALL=C.UTF-8 TZ=UTC PYTHONHASHSEED=0 "$@"
}
clean_python() {
    clean "$builder" -sSB "$@"
}

clean_python -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    die "$builder is too old: Python 3.9 or later is needed"

# Print the path of a shiv that works, installing it first if need be.
find_shiv() {
    if clean shiv --version >/dev/null 2>&1; then
        command -v shiv
        return
    fi
    if ! "$builder" -I -c 'import venv, ensurepip' 2>/dev/null; then
        say "$builder has no venv module (on Debian: apt-get install python3-venv)"
        return 1
    fi
    venv=$top/.cache/shiv
    mkdir -p "$top/.cache"
    (
        # Two builds at once must not both make it. The stamp is written last: a venv that was
        # interrupted has none, and is made again, as is one with another shiv than is wanted now.
        flock 9
        wanted=$("$top/tools/lock.sh" --entries shiv click pip setuptools)
        [ -e "$venv/stamp" ] && [ "$wanted" = "$(cat "$venv/stamp")" ] && exit
        say "installing shiv in $venv"
        rm -rf "$venv"
        "$builder" -I -m venv "$venv" >&2 &&
            printf '%s\n' "$wanted" >"$venv/wanted" &&
            "$venv/bin/python" -I -m pip install -qq --retries 1 --require-hashes -r "$venv/wanted" >&2 &&
            mv "$venv/wanted" "$venv/stamp"
    ) 9>"$top/.cache/shiv.lock" || return
    printf '%s\n' "$venv/bin/shiv"
}

umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The package alone, without what running it may have left behind.
mkdir "$work/stage"
(cd "$top" && find archive_overlay -name '*.py' -exec cp --parents -t "$work/stage" {} +)

stage=$work/stage
if [ $use_shiv = yes ]; then
    if shiv=$(find_shiv); then
        clean "$shiv" --site-packages "$stage" --entry-point archive_overlay.cli:main \
            --reproducible --uncompressed --output-file "$work/shiv.pyz" >"$work/shiv.log" 2>&1 ||
            { cat "$work/shiv.log" >&2; die "$shiv failed"; }
        clean_python -m zipfile -e "$work/shiv.pyz" "$work/unpacked"
        stage=$work/unpacked/site-packages
    else
        say "no shiv here, and pip cannot install it (is there a network?):" \
            "making the same file with the standard library alone"
    fi
fi

# Compiled modules beside the sources halve the time to start. Unchecked: in a zip there is no source
# file to compare them with. Other Python versions ignore them and compile the sources.
clean_python -m compileall -q -b --invalidation-mode unchecked-hash \
    -s "$stage" -p archive_overlay.pyz/site-packages "$stage/archive_overlay"

mkdir -p "$(dirname -- "$output")"
clean_python "$top/tools/onefile.py" --interpreter "$python" --date "$epoch" "$stage" "$output"
