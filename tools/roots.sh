#!/bin/sh
# Make root file systems of other Debian releases: tools/roots.sh NAME...
#
#     bullseye, trixie, sid      Debian 11, 13 and unstable, with engines: what tools/matrix.sh tests in
#     python3.9, python3.14      one Python, from Debian 11 and 14: what the tests of the built program run it with
#     fresh                      this machine's Debian with podman, for dpkg all of it installed: the package is tested there
#
# Each becomes .cache/roots/NAME, and stays until this file asks for something else; .cache/roots/NAME.python runs its
# Python. The packages come from the mirror that apt uses on this machine, and apt checks their signatures.
set -eu
cd "$(dirname -- "$0")/.."

# For each, in seconds: a mirror that hangs must not hang us.
limit=600

# What packages take for granted.
essential=base-files,base-passwd,bash,coreutils,dash,debianutils,findutils,grep,gzip,libc-bin,mount,sed,tar,util-linux
engines=$essential,podman,crun,runc,fuse-overlayfs,uidmap,busybox-static,make,python3,skopeo,umoci,buildah,zstd

say() { printf 'roots.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# Directories that are in /usr, as Debian's own installer has it from 10 on. Releases before 13 leave it to the installer.
# shellcheck disable=SC2016 # mmdebstrap's shell expands it
merge='for name in bin sbin lib lib64; do mkdir -p "$1/usr/$name" && ln -s "usr/$name" "$1/$name"; done'

# Set suite, packages and recommends to what a root is made of, and registering to what tells dpkg of it.
describe() {
    recommends=true registering=true
    case $1 in
        # With what pip needs there, for its Python may need another pytest.
        bullseye) suite=bullseye packages=$engines,python3-distutils ;;
        trixie | sid) suite=$1 packages=$engines,nftables ;; # buildah's networks need it
        python3.9) suite=bullseye packages=python3.9,zstd ;;
        # Not from unstable, which may have another Python tomorrow.
        python3.14) suite=forky packages=python3.14,zstd ;;
        fresh)
            suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
            packages='podman,crun,busybox-static,mount,python3,?essential'
            recommends=false registering=$register
            ;;
        *) die "there is no $1; the names are in the first lines of this file" ;;
    esac
}

# What dpkg would know if it had installed the packages: their descriptions, and which files are whose.
# shellcheck disable=SC2016 # mmdebstrap's shell expands it
register='
    cd "$1/var/lib/dpkg"
    mkdir -p info updates triggers
    : >available
    : >triggers/Unincorp
    echo 1 >info/format
    for deb in "$1"/var/cache/apt/archives/*.deb; do
        fields=$(dpkg-deb --field "$deb")
        printf "%s\nStatus: install ok installed\n\n" "$fields"
        file=${deb##*/}
        name=${file%%_*} architecture=${file##*_}
        case $fields in
            *"Multi-Arch: same"*) name=$name:${architecture%.deb} ;;
        esac
        dpkg-deb --fsys-tarfile "$deb" | tar -t | sed "s|^\.||; s|/\$||; s|^\$|/.|" >"info/$name.list"
    done >status
'

# Print the mirror of Debian itself that apt uses, not that of its security updates or of anybody else.
mirror() {
    apt-get indextargets --format "\$(ORIGIN)|\$(LABEL)|\$(COMPONENT)|\$(REPO_URI)" 'Created-By: Packages' |
        sed -n 's/^Debian|Debian|main|//p' | head -n 1
}

make_root() {
    describe "$1"
    root=.cache/roots/$1
    wanted="$suite $packages"
    if [ "$(cat "$root.stamp" 2>/dev/null)" = "$wanted" ]; then
        write_python "$root"
        return
    fi
    command -v mmdebstrap >/dev/null || die "mmdebstrap is not installed"
    [ "$(id -u)" = 0 ] || die "only root can make root file systems in which engines run"
    from=$(mirror)
    [ -n "$from" ] || die "apt knows no mirror of Debian (after apt-get update it does)"

    say "making $root"
    rm -rf --one-file-system "$root" "$root.stamp"
    # Extracted and not installed, which takes a third of the time: what their scripts would add is made below.
    # Suites that still change are signed for a week; a mirror that has stood still for longer does as well here.
    timeout "$limit" mmdebstrap --mode=root --variant=extract --setup-hook="$merge" --include="$packages" \
        --extract-hook="$registering" --aptopt="APT::Install-Recommends $recommends" \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
        --aptopt='Acquire::http::Timeout "60"' --aptopt='Acquire::https::Timeout "60"' \
        "$suite" "$root" "$from" >"$root.log" 2>&1 </dev/null &
    making=$!
    trap 'kill "$making"; exit 1' TERM
    wait "$making" ||
        { tail -n 20 "$root.log" >&2; die "cannot make $root of Debian's $suite; $root.log has all that was said"; }
    for directory in dev mnt proc root run sys tmp var/cache var/lib var/tmp; do
        mkdir -p "$root/$directory"
    done
    if [ -d "$root/usr/share/base-passwd" ]; then
        for file in passwd group; do
            cp "$root/usr/share/base-passwd/$file.master" "$root/etc/$file"
        done
    fi
    [ -e "$root/etc/hosts" ] || printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
    write_python "$root"
    printf '%s\n' "$wanted" >"$root.stamp"
}

# Write a program that is the Python of a root $1: with all that is in the machine's root but /usr, so that it and what
# it starts find each file where everybody else does.
write_python() {
    python=$(find "$1/usr/bin" -name 'python3.*' | sed -n 's|.*/\(python3\.[0-9]*\)$|\1|p')
    cat >"$1.python" <<END
#!/bin/sh
# Made by tools/roots.sh.
root=\$(realpath -- "\$0")
exec unshare --mount --propagation=private -- \\
    sh -c 'mount --bind "\$0/usr" /usr && exec /usr/bin/$python "\$@"' "\${root%.python}" "\$@"
END
    chmod 755 "$1.python"
}

[ $# -gt 0 ] || die "give names; they are in the first lines of this file"
mkdir -p .cache/roots
# Most of it is waiting for the network: all at once. What runs in the background ignores Ctrl-C, so we pass it on.
pids=
trap 'trap "" TERM; kill $pids; wait; exit 1' HUP INT TERM
for name; do
    (
        flock 9 # two of us must not make one and the same
        make_root "$name"
    ) 9>".cache/roots/$name.lock" &
    pids="$pids $!"
done
status=0
for pid in $pids; do
    wait "$pid" || status=1
done
exit $status
