"""Show what the program does: a container's changes, the archive of them, and a history.

With podman, containers make the changes; their images and storage are made for the occasion. Without podman, the same
changes are made here, on overlays that are mounted for the occasion, in a mount namespace if there can be one. Where no
overlay can be mounted either, we write what the kernel would have written. Nothing is left.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from pathlib import Path

ANNOTATION = "com.launchplatform.oci-hooks.archive-overlay"

# What the image at /data holds.
DATA = {
    "greeting.txt": "hello\n",
    "obsolete.txt": "nobody needs this\n",
    "settings/colour": "blue\n",
    "settings/size": "10\n",
}
DATA_MESSAGE = "the image at /data"

# What the two containers run in /data; the programs it takes, apart from the shell.
FIRST = """\
echo 'hello, world' >greeting.txt; rm obsolete.txt
rm -r settings; mkdir settings; echo green >settings/colour
"""
SECOND = "echo 'hello again' >>greeting.txt\n"
PROGRAMS = ("sh", "rm", "mkdir")

# Extended attributes of a directory that takes the place of another one: root's, and those that others may set.
OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


class UnableError(Exception):
    """This way of showing it does not work on this machine; the message says why."""


def main() -> None:
    """Choose the best way that works here, show what comes of it, and clean up."""
    parser = argparse.ArgumentParser(description="Show what the program does with a container's changes.")
    parser.add_argument("program", type=Path, help="the built program")
    # In a mount namespace of our own, whose mounts go away with it: where to mount.
    parser.add_argument("--inside", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--reason", help=argparse.SUPPRESS)
    options = parser.parse_args()
    program = options.program.resolve()
    if options.inside:
        without_container(program, options.inside, options.reason)
        return

    if not Path("/proc/self").exists():
        sys.exit("demo.py: there is no /proc; mount it first: mount -t proc proc /proc")
    # podman takes no long paths, and no capital letters in those of images.
    place = Path(tempfile.gettempdir(), f"overlay-demo-{os.getpid()}")
    place.mkdir(mode=0o700)
    try:
        try:
            with_podman(program, place)
        except UnableError as reason:
            shutil.rmtree(place)
            place.mkdir(mode=0o700)
            in_namespace(program, place, str(reason))
        print("\nThe demo has deleted all of this again.")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def with_podman(program: Path, place: Path) -> None:
    """Let containers of podman make the changes, and podman run the hook.

    Raises:
        UnableError: podman is missing, or cannot run a container here.
    """
    if not shutil.which("podman"):
        raise UnableError("podman is not installed")
    for directory in ("home", "run", "hooks"):
        (place / directory).mkdir(mode=0o700)
    hook = {
        "version": "1.0.0",
        "hook": {"path": str(program), "args": ["archive_overlay", "--log-file", str(place / "log")]},
        "when": {"annotations": {f"^{re.escape(ANNOTATION)}\\.": ".*"}},
        "stages": ["poststop"],
    }
    (place / "hooks/archive_overlay.json").write_text(json.dumps(hook))
    write_layout(place / "history")
    copy_programs(place / "shell")
    (place / "containers.conf").write_text(f"[containers]\ndefault_ulimits = {json.dumps(modest_limits())}\n")

    # Its storage, its runtime directory and its user's home are in `place`, so nothing of the user's
    # own podman is touched.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place / "home"),
        "XDG_RUNTIME_DIR": str(place / "run"),
        "CONTAINERS_CONF": str(place / "containers.conf"),
        "TMPDIR": str(place),
    }
    # (A runroot may have 50 characters, which is why nothing here has a long name.)
    podman = ["podman", "--root", str(place / "store"), "--runroot", str(place / "run")]
    podman += ["--tmpdir", str(place / "run/libpod"), "--cgroup-manager", "cgroupfs"]
    podman += ["--events-backend", "none", "--hooks-dir", str(place / "hooks")]
    if os.geteuid() == 0:
        # Root's podman leaves a mount on its storage behind, unless the namespace goes away. (Other
        # users' podman makes such a namespace itself.)
        podman = ["unshare", "--mount", *podman]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*podman, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            complaint = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise UnableError(f"podman cannot run a container here ({complaint[-1]})")
        return done.stdout

    def pull_data() -> None:
        run("tag", run("pull", "--quiet", f"oci:{place}/history:main").strip(), "localhost/data")

    def run_container(name: str, script: str) -> None:
        options = ["--mount", "type=image,source=localhost/data,destination=/data,rw=true"]
        for key, value in requested(place).items():
            options += ["--annotation", f"{key}={value}"]
        # crun refuses some arrangements of cgroups, and runc some of a user's own namespaces.
        for runtime, cgroups in (
            ([], []),
            (["--runtime=runc"], []),
            (["--runtime=crun"], ["--cgroups=disabled"]),
        ):
            try:
                run(
                    *(*runtime, "run", "--rm", "--network=none", "--log-driver=none", *cgroups, *options),
                    *(f"--name={name}", "--workdir=/data", "localhost/shell", "/bin/sh", "-ec", script),
                )
            except UnableError as reason:
                last = reason
            else:
                return
        raise last

    try:
        with tarfile.open(place / "shell.tar", "w") as tar:
            tar.add(place / "shell", arcname=".", filter=_owned_by_root)
        run("import", "--quiet", str(place / "shell.tar"), "localhost/shell")
        pull_data()
        run_container("first", FIRST)
        if not (place / "changes").exists():
            raise UnableError("podman did not run the hook")
        show_changes(program, place)
        # The next container begins with what this one left.
        pull_data()
        run_container("second", SECOND)
        show_history(program, place)
    finally:
        _end_pause_process(place / "run")
        # In a rootless store, files belong to other ids of the user's own range.
        remove = ["rm", "-rf", str(place / "store")]
        if os.geteuid() != 0:
            remove = [*podman, "unshare", *remove]
        subprocess.run(remove, env=environment, stderr=subprocess.DEVNULL, check=False)
        _end_pause_process(place / "run")


def in_namespace(program: Path, place: Path, reason: str) -> None:
    """Go on in a mount namespace of its own, if there can be one, and else here."""
    unshare = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    sys.stdout.flush()
    if shutil.which("mount") and shutil.which("unshare") and succeeds([*unshare, "true"]):
        again = [*unshare, sys.executable, __file__, str(program), "--inside", str(place), "--reason", reason]
        status = subprocess.run(again, check=False).returncode
        if status != 0:
            sys.exit(status)
        return
    # In a chroot there can be no such namespace, but root can mount.
    try:
        without_container(program, place, reason)
    finally:
        while os.path.ismount(place):
            subprocess.run(["umount", place], check=True)


def without_container(program: Path, place: Path, reason: str) -> None:
    """Make the changes ourselves, and call the hook as an OCI runtime does.

    Args:
        program: the hook.
        place: an empty directory.
        reason: why there is no container.
    """
    options = find_mount_options(place)
    note = f"({reason}. The demo makes the same changes without a container"
    if options is None:
        note += ", and writes what the kernel would write, for no overlay can be mounted here either"
        place = find_place_for_marks(place)
    print(textwrap.fill(f"{note}.)", 100, break_on_hyphens=False))
    write_layout(place / "history")
    write_data(place / "data")
    lower = str(place / "data")
    marked = [] if mark_opaque(place) == OPAQUE[0] else ["userxattr"]
    for name, script, by_hand in (("first", FIRST, write_first), ("second", SECOND, write_second)):
        upper, work, merged = (place / f"{name}.{what}" for what in ("upper", "work", "merged"))
        for directory in (upper, work, merged):
            directory.mkdir()
        used = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}", *(options or [])]
        if options is None:
            by_hand(upper)
            used += marked
        else:
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", ",".join(used), merged], check=True)
            try:
                subprocess.run(["sh", "-ec", script], cwd=merged, check=True)
            finally:
                subprocess.run(["umount", merged], check=True)
        call_hook(program, place, name, used)
        if name == "first":
            show_changes(program, place)
        lower = f"{upper}:{lower}"
    show_history(program, place)


def find_mount_options(place: Path) -> list[str] | None:
    """Find out whether an overlay can be mounted in a directory, and mount what it takes there.

    Returns:
        Its options, besides directories. None: no overlay can be mounted.
    """
    if not shutil.which("mount") or not shutil.which("umount"):
        return None
    options = ["userxattr"] if _in_user_namespace() else []
    # A tmpfs first: the place itself may be on an overlay (in a container, say), which cannot hold
    # an upperdir. But on a tmpfs, an ordinary user's overlay takes Linux 6.6.
    for prepare in (["mount", "-t", "tmpfs", "tmpfs", str(place)], ["true"]):
        if not succeeds(prepare):
            continue
        directories = [place / name for name in ("try.lower", "try.upper", "try.work", "try")]
        for directory in directories:
            directory.mkdir()
        lower, upper, work, merged = directories
        used = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}", *options]
        if succeeds(["mount", "-t", "overlay", "overlay", "-o", ",".join(used), str(merged)]):
            subprocess.run(["umount", merged], check=True)
            return options
        for directory in directories:
            directory.rmdir()
        if prepare[0] == "mount":
            subprocess.run(["umount", place], check=True)
    return None


def find_place_for_marks(place: Path) -> Path:
    """Give a directory on a file system that takes the marks of overlays, or the one that is given."""
    shared = Path("/dev/shm")
    for candidate in (place, shared):
        if not os.access(candidate, os.W_OK):
            continue
        with tempfile.TemporaryDirectory(dir=candidate) as name:
            complete = mark_deleted(Path(name, "deleted")) and mark_opaque(Path(name))
        if complete and candidate == shared:
            # A file system in memory has what that of the place has not: a link to it is deleted with the place.
            memory = Path(tempfile.mkdtemp(prefix="overlay-demo-", dir=shared))
            atexit.register(shutil.rmtree, memory)
            return memory
        if complete:
            break
    return place


def write_first(upper: Path) -> None:
    """Write what the kernel leaves of `FIRST`, as far as the file system can hold it."""
    (upper / "greeting.txt").write_text("hello, world\n")
    if not mark_deleted(upper / "obsolete.txt"):
        print("(No deletion can be marked here: the archive does not show that obsolete.txt is gone.)")
    (upper / "settings").mkdir()
    (upper / "settings/colour").write_text("green\n")
    if not mark_opaque(upper / "settings"):
        shutil.rmtree(upper / "settings")
        print("(No directory can be marked as replaced here: the archive is without settings/.)")


def write_second(upper: Path) -> None:
    """Write what the kernel leaves of `SECOND`."""
    (upper / "greeting.txt").write_text("hello, world\nhello again\n")


def mark_deleted(path: Path) -> bool:
    """Make what stands for a deleted name in an upperdir, and say whether that is possible."""
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    except OSError:
        return False
    return True


def mark_opaque(directory: Path) -> str:
    """Mark a directory as one that replaces another, and give the name of the attribute; "": none can be set."""
    for name in OPAQUE:
        try:
            os.setxattr(directory, name, b"y")
        except OSError:
            continue
        return name
    return ""


def call_hook(program: Path, place: Path, name: str, options: list[str]) -> None:
    """Call the hook as an OCI runtime does after a container.

    Args:
        program: the hook.
        place: where the archives go.
        name: of the container.
        options: of the overlay that it had at /data.
    """
    bundle = place / f"{name}.bundle"
    bundle.mkdir()
    mount = {
        "destination": "/data",
        "type": "overlay",
        "source": str(place / f"{name}.merged"),
        "options": options,
    }
    spec = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "mounts": [mount],
        "annotations": requested(place),
    }
    (bundle / "config.json").write_text(json.dumps(spec))
    state = {"ociVersion": "1.0.2", "id": name, "status": "stopped", "bundle": str(bundle)}
    done = subprocess.run(
        [program], input=json.dumps(state).encode(), stderr=subprocess.PIPE, env={}, check=False
    )
    if done.returncode != 0:
        sys.exit(f"the hook ended with status {done.returncode}:\n{done.stderr.decode()}")


def requested(place: Path) -> dict[str, str]:
    """Ask for /data twice: as a directory, and as the next revision of a history."""
    return {
        f"{ANNOTATION}.data.mount-point": "/data",
        f"{ANNOTATION}.data.archive-to": f"{place}/changes",
        f"{ANNOTATION}.history.mount-point": "/data",
        f"{ANNOTATION}.history.archive-to": f"{place}/history:main",
        f"{ANNOTATION}.history.method": "oci",
    }


def show_changes(program: Path, place: Path) -> None:
    """Show how a container is run, and the archive of its changes."""
    script = FIRST.rstrip().replace("\n", "\n        ")
    print(f"""\
A container's changes are gone when it is, unless you say where to save them:

    P={ANNOTATION}
    podman run --rm --annotation $P.data.mount-point=/data \\
        --annotation $P.data.archive-to={place}/changes \\
        --mount type=image,source=localhost/data,destination=/data,rw=true \\
        --workdir /data localhost/shell sh -c "
        {script}"

The archive has what changed (A), was deleted (D), or was replaced as a whole (O):
""")
    show(program, place, "diff", "changes")


def show_history(program: Path, place: Path) -> None:
    """Show two revisions."""
    print("""
With method=oci, archives make a history. Here a second container added a line:
""")
    show(program, place, "log", "history:main")
    show(program, place, "diff", "history:main@3")


def show(program: Path, place: Path, command: str, what: str) -> None:
    """Run a command of the program, and show it and what it says."""
    done = subprocess.run(
        [program, command, place / what], stdout=subprocess.PIPE, text=True, env={}, check=False
    )
    if done.returncode != 0:
        sys.exit(f"archive_overlay {command} ended with status {done.returncode}")
    for line in (f"$ archive_overlay {command} {place / what}", *done.stdout.splitlines()):
        print(f"    {line}".rstrip())
    sys.stdout.flush()


def write_data(top: Path) -> None:
    """Write what the image at /data holds."""
    for name, text in DATA.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


def write_layout(layout: Path) -> None:
    """Write an OCI image layout with the image at /data, as `podman push` does."""
    (layout / "blobs/sha256").mkdir(parents=True)

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for directory in ("./", *sorted({f"./{Path(name).parent}/" for name in DATA} - {"././"})):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, text in DATA.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    described = blob("layer.v1.tar", layer.getvalue())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [described["digest"]]},
        "history": [{"created_by": DATA_MESSAGE}],
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [described],
    }
    named = blob("manifest.v1+json", json.dumps(manifest).encode())
    named["annotations"] = {"org.opencontainers.image.ref.name": "main"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def copy_programs(root: Path) -> None:
    """Make a root file system with the few programs that the changes take, and their libraries."""
    (root / "bin").mkdir(parents=True)
    for name in PROGRAMS:
        program = shutil.which(name)
        if not program:
            raise UnableError(f"no {name} to put in a container")
        shutil.copy(program, root / "bin" / name)
        needs = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=False).stdout
        for library in (word for word in needs.split() if word.startswith("/")):
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])


def modest_limits() -> list[str]:
    """Give limits for the container that are none above this process's: raising takes a privilege."""
    limits = []
    for name, kind, enough in (
        ("nofile", resource.RLIMIT_NOFILE, 1024),
        ("nproc", resource.RLIMIT_NPROC, 1024),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        limits.append(f"{name}={limit}:{limit}")
    return limits


def succeeds(command: list[str]) -> bool:
    """Say whether a command succeeds; what it says about it is of no interest."""
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _in_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _end_pause_process(runtime_directory: Path) -> None:
    # Rootless podman leaves a process behind that keeps its namespaces. This one is ours alone.
    for pid_file in runtime_directory.rglob("pause.pid"):
        try:
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        except (OSError, ValueError):
            continue


if __name__ == "__main__":
    main()
