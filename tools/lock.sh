#!/bin/sh
# Lock the tools: tools/lock.sh [--check | --entries PACKAGE...]
#
# Resolves tools/requirements.in anew, for every Python that the project supports, and writes the newest
# versions that fit, with hashes, to tools/requirements.txt, the lock. The same goes for mutants.in (what
# `make mutants` runs) and locker.in (what resolves all of them). The options need no network: --check fails if
# what is resolved has changed since, and --entries prints what requirements.txt has of some packages, for pip
# to read.
set -eu
cd "$(dirname -- "$0")/.."
python=${PYTHON:-/usr/bin/python3}
[ -x "$python" ] || python=$(command -v python3)

locks='requirements mutants locker'

# Give the line of a lock that says what it was made of. Comments may change without a new resolution.
sum() {
    echo "# $1.in without comments has SHA-256 $(sed '/^ *\(#\|$\)/d' "tools/$1.in" | sha256sum | cut -d ' ' -f 1)"
}

case ${1-} in
    --check)
        for lock in $locks; do
            grep -qxF "$(sum "$lock")" "tools/$lock.txt" && continue
            echo "lock.sh: tools/$lock.txt is not the lock of $lock.in; run make lock and commit both" >&2
            exit 1
        done
        exit
        ;;
    --entries)
        shift
        for package; do
            sed -n "/^$package==/,/[^\\\\]\$/p" tools/requirements.txt
        done
        exit
        ;;
    ?*) echo "lock.sh: unknown option $1; the usage is in the first lines of this file" >&2; exit 2 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
"$python" -I -m venv "$work/venv"
"$work/venv/bin/python" -I -m pip install --quiet --only-binary :all: --require-hashes -r tools/locker.txt

# One version of each for all Pythons: then a check says the same on every one of them.
for lock in $locks; do
    "$work/venv/bin/uv" pip compile --quiet --no-config --no-cache --no-header --generate-hashes \
        --universal --python-version 3.9 --fork-strategy fewest --python "$python" \
        --output-file "$work/lock" "tools/$lock.in"
    {
        echo "# Written by \`make lock\` from $lock.in. Do not edit."
        sum "$lock"
        cat "$work/lock"
    } >"$work/new"
    mv "$work/new" "tools/$lock.txt"
    rm "$work/lock"
done
