#!/bin/sh
# Lock the tools: tools/lock.sh [--check | --entries PACKAGE...]
#
# Resolves tools/requirements.in anew, for every Python that the project supports, and writes the newest
# versions that fit, with hashes, to tools/requirements.txt, the lock. The options need no network:
# --check fails if requirements.in has changed since it was resolved, and --entries prints what the lock
# has of some packages, for pip to read.
set -eu
cd "$(dirname -- "$0")/.."
python=${PYTHON:-/usr/bin/python3}
[ -x "$python" ] || python=$(command -v python3)

uv=0.13.9
input=tools/requirements.in
lock=tools/requirements.txt

# Comments may change without a new resolution.
sum="# requirements.in without comments has SHA-256 $(sed '/^ *\(#\|$\)/d' $input | sha256sum | cut -d ' ' -f 1)"

case ${1-} in
    --check)
        grep -qxF "$sum" $lock && exit
        echo "lock.sh: $lock is not the lock of $input; run make lock and commit both" >&2
        exit 1
        ;;
    --entries)
        shift
        for package; do
            sed -n "/^$package==/,/[^\\\\]\$/p" $lock
        done
        exit
        ;;
    ?*) echo "lock.sh: unknown option $1; the usage is in the first lines of this file" >&2; exit 2 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
"$python" -I -m venv "$work/venv"
"$work/venv/bin/python" -I -m pip install --quiet --only-binary :all: "uv==$uv"

# One version of each for all Pythons: then a check says the same on every one of them.
"$work/venv/bin/uv" pip compile --quiet --no-config --no-cache --no-header --generate-hashes \
    --universal --python-version 3.9 --fork-strategy fewest --python "$python" \
    --output-file "$work/lock" $input
{
    echo "# Written by \`make lock\` from requirements.in. Do not edit."
    echo "$sum"
    cat "$work/lock"
} >$lock.new
mv $lock.new $lock
