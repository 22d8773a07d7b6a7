#!/bin/sh
# Build a distribution's package from the last commit: tools/package.sh deb|rpm [DIRECTORY]
#
# The binary package and the source package go to DIRECTORY (dist). What is not committed is not in them.
#
#     MAINTAINER   who publishes the package: NAME <ADDRESS>. Without it, the package has a placeholder
#     HOMEPAGE     the URL of the project's page
set -eu

say() { printf 'package.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
need() {
    command -v "$1" >/dev/null || die "$1 is missing (on Debian: apt-get install $2)"
}

kind=${1-}
cd "$(dirname -- "$0")/.."
output=$(realpath -m -- "${2:-dist}")
need git git
# A checkout may belong to somebody else than to root, who builds from it.
git() { command git -c safe.directory='*' "$@"; }
[ "$(git rev-parse --show-toplevel 2>/dev/null)" = "$(pwd -P)" ] ||
    die "this is no git checkout; packaging/README.md says how to package an unpacked release"
[ -z "$(git status --porcelain)" ] || say "what is not committed is not in the package"

version=$(git show HEAD:archive_overlay/__init__.py | sed -n 's/^__version__ = "\(.*\)"/\1/p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work/built" "$output"

# What takes the place of the placeholders that are in the packaging.
placeholder=$(sed -n 's/^Maintainer: //p' packaging/debian/control)
maintainer=${MAINTAINER:-$placeholder}
case $maintainer in
    *[!\ ]' <'*@*'>') ;;
    *) die "MAINTAINER is \"$maintainer\": give NAME <ADDRESS>" ;;
esac
case ${HOMEPAGE-} in
    '' | http://* | https://*) ;;
    *) die "HOMEPAGE is \"$HOMEPAGE\": give a URL" ;;
esac

# Put the maintainer and, as the field $1 after the line that matches $2, the homepage into the files $3...
publish() {
    field=$1 after=$2
    shift 2
    new=$(printf '%s\n' "$maintainer" | sed 's/[\\&|]/\\&/g')
    sed -i "s|$placeholder|$new|" "$@"
    if [ -n "${HOMEPAGE-}" ]; then
        sed -i "/$after/a $field: $HOMEPAGE" "$1"
    fi
}

archive() {
    git archive --prefix="archive_overlay-$version/" --output="$1" HEAD
}

build_deb() {
    need dpkg-buildpackage dpkg-dev
    need dh debhelper
    archive "$work/built/archive-overlay_$version.orig.tar.gz"
    cd "$work/built"
    tar -xf "archive-overlay_$version.orig.tar.gz"
    cp -R "archive_overlay-$version/packaging/debian" "archive_overlay-$version/debian"
    publish Homepage '^Rules-Requires-Root:' "archive_overlay-$version/debian/control" "archive_overlay-$version/debian/changelog"
    (cd "archive_overlay-$version" && dpkg-buildpackage --no-sign)
    rm -r "archive_overlay-$version"
}

build_rpm() {
    need rpmbuild rpm
    mkdir "$work/sources"
    archive "$work/sources/archive_overlay-$version.tar.gz"
    git show HEAD:packaging/archive_overlay.spec >"$work/archive_overlay.spec"
    publish URL '^License:' "$work/archive_overlay.spec"
    # Where the packages are another package manager's, rpm does not know what is installed.
    set --
    rpm -q rpm >/dev/null 2>&1 || set -- --nodeps
    rpmbuild -ba "$@" \
        --define "_topdir $work" --define "_tmppath $work" --define "_sourcedir $work/sources" \
        --define "_rpmdir $work/built" --define "_srcrpmdir $work/built" \
        --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
        "$work/archive_overlay.spec"
}

case $kind in
    deb) (build_deb) >&2 ;;
    rpm) (build_rpm) >&2 ;;
    *) die "the usage is in the first lines of this file" ;;
esac
for built in "$work"/built/*; do
    cp "$built" "$output"
    printf '%s\n' "$output/${built##*/}"
done
[ "$maintainer" != "$placeholder" ] ||
    say "the maintainer is a placeholder; to publish the package, give MAINTAINER='NAME <ADDRESS>' and HOMEPAGE=URL"
