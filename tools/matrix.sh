#!/bin/sh
# Run tests in other Debian releases, with their engines and Pythons: tools/matrix.sh NAME... [-- PYTEST'S ARGUMENTS]
#
# NAME is one that tools/roots.sh makes a root file system of. In namespaces of its own that is the root, read-only, and
# this checkout is in it: the program is built, installed and tested there. Without arguments of pytest it is the
# end-to-end tests, of which Debian 11 runs what its engines can. Tests for which a release lacks a program are
# listed at the end, or, with CI=true, fail.
#
#     LIMIT    how long the tests of one root may take, in seconds (1200)
set -eu
cd "$(dirname -- "$0")/.."

limit=${LIMIT:-1200}

pytest_and_needed="pytest exceptiongroup iniconfig packaging pluggy pygments tomli typing-extensions"

say() { printf 'matrix.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 2; }

# What the first process in the namespaces does. Its arguments: the root, a scratch directory or "", this checkout,
# where pytest is, the limit, and pytest's own.
# shellcheck disable=SC2016 # another shell expands it
inside='
    root=$1 scratch=$2 checkout=$3 modules=$4 limit=$5
    shift 5
    mount --bind "$root" "$root"
    cd "$root"
    mount -t tmpfs -o mode=755 tmpfs mnt
    mkdir mnt/old mnt/checkout mnt/modules
    mount --rbind "$checkout" mnt/checkout
    mount -t tmpfs -o mode=755 tmpfs mnt/checkout/.cache
    mount -o remount,bind,ro mnt/checkout
    mount --bind "$modules" mnt/modules
    mount -o remount,bind,ro mnt/modules
    mount -t proc proc proc
    mount --rbind /sys sys
    mount --rbind /dev dev
    for directory in run tmp root var/cache; do
        mount -t tmpfs -o mode=755 tmpfs "$directory"
    done
    chmod 1777 tmp
    if [ -n "$scratch" ]; then
        mount --bind "$scratch" var/tmp
    else
        mount -t tmpfs -o mode=1777 tmpfs var/tmp
    fi
    mount -o remount,bind,ro .
    pivot_root . mnt/old
    umount -l /mnt/old
    cd /mnt/checkout
    for engine in podman crun runc fuse-overlayfs; do
        "$engine" --version 2>/dev/null | head -n 1
    done
    python3 --version
    # As a child: as the first process of a PID namespace, the timeout of coreutils 9.10 fails.
    timeout --kill-after=10 "$limit" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 CI="$CI" \
        PYTHONPATH=/mnt/modules PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
        python3 -m pytest -q -o cache_dir=/tmp/pytest "$@"
'

# Set modules to where the pytest is that a root's Python runs. What this machine's has installed serves newer ones too;
# an older one gets its own, by this machine's pip.
find_modules() {
    python=.cache/roots/$1.python
    minor='import sys; print(sys.version_info[1])'
    modules=$(.venv/bin/python -Ic 'import os, pip; print(os.path.dirname(os.path.dirname(pip.__file__)))') || return
    [ "$("$python" -Ic "$minor")" -lt "$(.venv/bin/python -Ic "$minor")" ] || return 0
    theirs=.cache/matrix/$1.modules
    if ! cmp -s tools/requirements.txt "$theirs.stamp"; then
        rm -rf "$theirs" "$theirs.stamp"
        # shellcheck disable=SC2086 # names
        tools/lock.sh --entries $pytest_and_needed >"$theirs.txt" &&
            PYTHONPATH=$modules "$python" -m pip install --quiet --root-user-action ignore \
                --disable-pip-version-check --require-hashes --no-deps --target "$theirs" -r "$theirs.txt" &&
            cp tools/requirements.txt "$theirs.stamp" || return
    fi
    modules=$PWD/$theirs
}

# What containers have written. (An interrupted run leaves it to the trap.)
scratch=
remove_scratch() {
    [ -z "$scratch" ] || rm -rf --one-file-system "$scratch"
    scratch=
}
trap remove_scratch EXIT
trap 'exit 1' HUP INT TERM

test_in() {
    name=$1
    shift
    if [ $# -gt 0 ]; then
        :
    elif [ "$name" = bullseye ]; then
        # docs/engines.md says why it is not all of them.
        set -- tests/e2e/test_podman.py tests/e2e/test_runtimes.py tests/e2e/test_crio.py \
            tests/e2e/test_many_layers.py -k 'rootful-native or crio or many_layers and not metacopy or runtimes and runc'
    else
        set -- tests/e2e
    fi
    mkdir -p .cache/matrix
    find_modules "$name" || return
    # Containers need a directory that is on no overlay. Where there is none, there is a tmpfs.
    scratch=
    if [ "$(stat -f -c %T .cache/matrix)" != overlayfs ]; then
        scratch=$(mktemp -d "$PWD/.cache/matrix/$name.XXXXXX") && chmod 1777 "$scratch" || return
    fi
    status=0
    CI=${CI:-} unshare --mount --pid --fork --uts --ipc --kill-child --propagation=private -- sh -ec "$inside" sh \
        "$(realpath ".cache/roots/$name")" "$scratch" "$PWD" "$modules" "$limit" "$@" || status=$?
    remove_scratch
    return $status
}

names=
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        -*) die "unknown option $1; the usage is in the first lines of this file" ;;
        *) names="$names $1"; shift ;;
    esac
done
[ -n "$names" ] || die "give names; the usage is in the first lines of this file"
[ "$(id -u)" = 0 ] || die "only root can do that"

[ -x .venv/bin/python ] || die "there is no .venv (make lint makes it)"

summary=
failed=
# Those that cannot be made fail below, each for itself.
# shellcheck disable=SC2086 # names
tools/roots.sh $names || :

for name in $names; do
    printf '\n== %s\n' "$name"
    begin=$(date +%s)
    if ! [ -e ".cache/roots/$name.stamp" ]; then
        how="FAILED (there is no root)"
        failed=yes
    elif test_in "$name" "$@"; then
        how=passed
    else
        how="FAILED (status $?)"
        failed=yes
    fi
    summary="$summary$(printf '%-12s%s after %s s' "$name" "$how" "$(($(date +%s) - begin))")
"
done
printf '\n== matrix\n%s' "$summary"
[ -z "$failed" ]
