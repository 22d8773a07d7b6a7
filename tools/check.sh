#!/bin/sh
# Check and test the project: tools/check.sh [lint|unit|test|matrix|soak|man|completions|release-check]...
#
# The tools come from a virtual environment in .venv that this script makes. Where it cannot (no
# network), the tools on PATH have to do. What could not run is said at the end; with CI=true it is a
# failure.
set -eu
cd "$(dirname -- "$0")/.."
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
python=${PYTHON:-/usr/bin/python3}
[ -x "$python" ] || python=$(command -v python3)

failed=
missing=

# Make .venv with the tools of tools/requirements.txt. The stamp, a copy of that file, is written last.
set_up() {
    cmp -s tools/requirements.txt .venv/stamp && return
    if ! "$python" -I -c 'import venv, ensurepip' 2>/dev/null; then
        echo "check.sh: $python has no venv module (on Debian: apt-get install python3-venv)" >&2
        return 1
    fi
    echo "check.sh: installing the tools in .venv" >&2
    rm -rf .venv
    # argparse-manpage has no wheel. What builds one comes first, from the lock: pip would get the newest.
    "$python" -I -m venv .venv &&
        tools/lock.sh --entries setuptools packaging tomli >.venv/builders &&
        install_locked .venv/builders &&
        install_locked tools/requirements.txt &&
        cp tools/requirements.txt .venv/stamp && return
    echo "check.sh: pip cannot install the tools (is there a network, or a package index that pip is told of?)" >&2
    return 1
}

install_locked() {
    .venv/bin/python -I -m pip install -qq --retries 1 --require-hashes --no-build-isolation -r "$1"
}

# Run one check, if its program is there, and remember how it went.
check() {
    if ! command -v "$1" >/dev/null; then
        case " $missing " in
            *" $1 "*) ;;
            *) missing="$missing $1" ;;
        esac
        return
    fi
    printf '\n== %s\n' "$*"
    "$@" || failed="$failed $1"
}

lint() {
    check ruff check .
    check ruff format --check .
    check mypy
    check vermin --no-tips --violations -t=3.9- --eval-annotations archive_overlay tools bench tests
    check shellcheck build.sh tools/*.sh .ci/run
    check tools/lock.sh --check
}

unit() {
    check pytest -q tests/unit
}

# Run all tests: by one worker more than there are processors, for there is some waiting, but not by any number.
tests() {
    if ! command -v pytest >/dev/null; then
        check pytest
        return
    fi
    workers=$(($(getconf _NPROCESSORS_ONLN) + 1))
    [ "$workers" -le 9 ] || workers=9
    if pytest --help | grep -q -e --numprocesses; then
        check pytest --numprocesses="$workers" --dist=loadgroup --no-loadscope-reorder
    else
        check pytest
    fi
}

matrix() {
    # shellcheck disable=SC2086 # several words
    check tools/matrix.sh $MATRIX
}

# Try the oracle until the time is up, each round with other examples, or once with as many as asked for.
soak() {
    if [ -n "${EXAMPLES:-}" ]; then
        check pytest -q tests/property
        return
    fi
    export EXAMPLES=100
    end=$(($(date +%s) + ${SOAK_SECONDS:-600}))
    while [ -z "$failed$missing" ] && [ "$(date +%s)" -lt "$end" ]; do
        check pytest -q tests/property
    done
}

if set_up; then
    PATH=$PWD/.venv/bin:$PATH
else
    rm -rf .venv
    echo "check.sh: what is on PATH is used instead, in whatever version" >&2
fi
export PATH

for what; do
    case $what in
        lint) lint ;;
        unit) unit ;;
        test) tests ;;
        matrix) matrix ;;
        soak) soak ;;
        completions) check python3 tools/completions.py completions ;;
        release-check) check python3 -B tools/release_check.py ;;
        man) check python3 -B tools/manpage.py man ;;
        *) echo "check.sh: there is no $what" >&2; exit 2 ;;
    esac
done

status=0
if [ -n "$failed" ]; then
    printf '\n!! FAILED:%s\n' "$failed"
    status=1
fi
if [ -n "$missing" ]; then
    printf '\n!! NOT RUN, for these are not installed:%s\n' "$missing"
    case $missing in
        *shellcheck*) echo '(shellcheck is a package of its own: on Debian, apt-get install shellcheck.)' ;;
    esac
    [ "$missing" = ' shellcheck' ] || echo '(The others come with .venv: see above why it could not be made.)'
    [ "${CI:-}" != true ] || status=1
fi
exit $status
