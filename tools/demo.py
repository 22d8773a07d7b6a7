"""Show what the hook does: changes in an overlay, and the archives that come of them.

With podman, a container makes the changes; its images and storage are made for the occasion. Two more
containers, of one and the same command, show that the second finds what the first one left. Without podman,
the changes are made here, on an overlay that is mounted for the occasion, in a user namespace if
need be. Where not even that is allowed, the hook gets an upperdir written by hand. Nothing is left.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ANNOTATION = "com.launchplatform.oci-hooks.archive-overlay"

LOWER = {
    "greeting.txt": "hello\n",
    "obsolete.txt": "nobody needs this\n",
    "settings/colour": "blue\n",
    "settings/size": "10\n",
}

# What the container runs in the overlay; the programs it takes, apart from the shell.
CHANGES = """\
echo 'hello, world' >greeting.txt
rm obsolete.txt
mkdir reports
echo 42 >reports/answer
ln -s reports/answer latest
rm -r settings
mkdir settings
echo green >settings/colour
"""
PROGRAMS = ("sh", "rm", "mkdir", "ln", "cat")

# What the container runs that goes on with what the last one left.
GOING_ON = "cat greeting.txt; echo 'hello again' >>greeting.txt"


class UnableError(Exception):
    """This way of showing it does not work on this machine."""


def main() -> None:
    """Choose the best way that works here, and clean up after it."""
    parser = argparse.ArgumentParser(description="Show what the hook does with a container's changes.")
    parser.add_argument("program", type=Path, help="the built program")
    # In a mount namespace of our own, whose mounts go away with it: where to mount.
    parser.add_argument("--inside", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    program = options.program.resolve()
    if options.inside:
        without_container(program, options.inside, mount_options=mount_overlay(options.inside))
        return

    with tempfile.TemporaryDirectory(prefix="overlay-demo-") as name:
        place = Path(name)
        try:
            with_podman(program, place / "engine")
        except UnableError as reason:
            print(f"(No container here: {reason}. The changes are made without one.)")
            in_namespace(program, place / "overlay")


def with_podman(program: Path, place: Path) -> None:
    """Let a container of podman make the changes, and podman run the hook.

    Raises:
        UnableError: podman is missing, or cannot run a container here.
    """
    if not shutil.which("podman"):
        raise UnableError("podman is not installed")
    skopeo = shutil.which("skopeo") or "/usr/bin/skopeo"
    for directory in ("home", "run", "hooks", "data"):
        (place / directory).mkdir(parents=True, mode=0o700)
    hook = {
        "version": "1.0.0",
        "hook": {
            "path": str(program),
            "args": ["archive_overlay", "--log-file", str(place / "log"), "--skopeo", skopeo],
        },
        "when": {"annotations": {f"^{re.escape(ANNOTATION)}\\.": ".*"}},
        "stages": ["poststop"],
    }
    (place / "hooks/archive_overlay.json").write_text(json.dumps(hook))
    write_tree(place / "data")
    copy_programs(place / "programs")
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
            raise UnableError(complaint[-1])
        return done.stdout

    try:
        for image in ("programs", "data"):
            with tarfile.open(place / f"{image}.tar", "w") as tar:
                tar.add(place / image, arcname=".", filter=_owned_by_root)
            run("import", "--quiet", str(place / f"{image}.tar"), f"localhost/{image}:demo")
        arguments = _options(requested("/data", place))
        run_container(run, arguments, CHANGES)
        if not (place / "log").exists():
            raise UnableError("podman did not run the hook")
        heading("A container with an image mounted at /data")
        show_lower()
        heading("What it ran there")
        show_command(arguments, "...")
        print(CHANGES, end="")
        heading("What the hook said")
        print((place / "log").read_text(), end="")
        show_archives(place)
        if Path(skopeo).exists():
            show_two_runs(run, program, place)
        else:
            print(
                "\n(skopeo is not installed: with it, the next container would go on with what this one left.)"
            )
        print("\nAll of it is deleted again now.")
    finally:
        _end_pause_process(place / "run")
        # In a rootless store, files belong to other ids of the user's own range.
        remove = ["rm", "-rf", str(place / "store")]
        if os.geteuid() != 0:
            remove = [*podman, "unshare", *remove]
        subprocess.run(remove, env=environment, stderr=subprocess.DEVNULL, check=False)
        _end_pause_process(place / "run")


def show_two_runs(podman: Callable[..., str], program: Path, place: Path) -> None:
    """Run one and the same command twice: the second container finds what the first one left."""
    layout = f"{place / 'history'}:main"
    arguments = _options(
        {
            f"{ANNOTATION}.data.mount-point": "/data",
            f"{ANNOTATION}.data.archive-to": layout,
            f"{ANNOTATION}.data.method": "oci",
            f"{ANNOTATION}.data.load-as": "localhost/data:demo",
        }
    )
    heading("A history: the same command, twice")
    show_command(arguments, f'"{GOING_ON}"')
    found = []
    for which in ("first", "second"):
        found.append(run_container(podman, arguments, GOING_ON))
        print(f"The {which} container finds in greeting.txt:\n{found[-1]}")
    if found[1] != f"{found[0]}hello again\n":
        sys.exit(f"that is not what the first one left:\n{(place / 'log').read_text()}")
    print(f"archive_overlay log {layout}\n", flush=True)
    subprocess.run([program, "log", layout], env={}, check=True)


def run_container(podman: Callable[..., str], options: list[str], script: str) -> str:
    """Run a container with the first OCI runtime that can run one here.

    Args:
        podman: runs it.
        options: of `podman run`.
        script: what it runs in the mounted image.

    Returns:
        What it wrote to standard output.

    Raises:
        UnableError: none can.
    """
    # crun refuses some arrangements of cgroups, and runc some of a user's own namespaces.
    for runtime, cgroups in (
        ([], []),
        (["--runtime=runc"], []),
        (["--runtime=crun"], ["--cgroups=disabled"]),
    ):
        try:
            return podman(
                *(*runtime, "run", "--rm", "--network=none", "--log-driver=none", *cgroups, *options),
                *("--workdir=/data", "localhost/programs:demo", "/bin/sh", "-ec", script),
            )
        except UnableError as reason:
            last = reason
    raise last


def in_namespace(program: Path, place: Path) -> None:
    """Run this script again in a mount namespace of its own, if there can be one."""
    place.mkdir()
    unshare = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    sys.stdout.flush()
    if shutil.which("mount") and shutil.which("unshare") and succeeds([*unshare, "true"]):
        again = [*unshare, sys.executable, __file__, str(program), "--inside", str(place)]
        status = subprocess.run(again, check=False).returncode
        if status != 0:
            sys.exit(status)
    else:
        without_container(program, place, mount_options="")


def without_container(program: Path, place: Path, *, mount_options: str) -> None:
    """Make the changes ourselves, and call the hook as an OCI runtime does.

    Args:
        program: the hook.
        place: a directory with an overlay mounted at `merged`, or an empty one.
        mount_options: those of the overlay; empty if there is none.
    """
    if mount_options:
        heading("An overlay mounted by hand, in place of a container")
        print(f"mount -t overlay -o {mount_options}\n")
        show_lower()
        heading("What is run in it")
        print(CHANGES, end="")
        subprocess.run(["sh", "-ec", CHANGES], cwd=place / "merged", check=True)
    else:
        mount_options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        write_tree(place / "lower")
        heading("An upperdir written by hand, for no overlay can be mounted here")
        print("What is below:\n")
        show_lower()
        print(f"\nAs if this had been run in it:\n\n{CHANGES}", end="")
        write_upper(place / "upper")
    heading("The change set: what the upperdir holds")
    show_directory(place / "upper")

    bundle = place / "bundle"
    bundle.mkdir()
    spec = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "mounts": [
            {
                "destination": "/data",
                "type": "overlay",
                "source": str(place / "merged"),
                "options": mount_options.split(","),
            }
        ],
        "annotations": requested("/data", place),
    }
    (bundle / "config.json").write_text(json.dumps(spec, indent=2))
    state = {"ociVersion": "1.0.2", "id": "demo", "status": "stopped", "bundle": str(bundle)}
    heading("What the hook says when an OCI runtime calls it")
    sys.stdout.flush()
    done = subprocess.run([program], input=json.dumps(state).encode(), stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        sys.exit(f"the hook ended with status {done.returncode}")
    show_archives(place)
    print("\nAll of it is deleted again now.")


def mount_overlay(place: Path) -> str:
    """Mount an overlay at `place`/merged.

    Returns:
        Its mount options, or nothing if none can be mounted here.
    """
    # A tmpfs first: the place itself may be on an overlay (in a container, say), which cannot hold
    # an upperdir. But on a tmpfs, an ordinary user's overlay takes Linux 6.6.
    for prepare in (["mount", "-t", "tmpfs", "tmpfs", str(place)], ["true"]):
        if not succeeds(prepare):
            continue
        for directory in ("lower", "upper", "work", "merged"):
            (place / directory).mkdir()
        write_tree(place / "lower")
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        if _in_user_namespace():
            options += ",userxattr"
        if succeeds(["mount", "-t", "overlay", "overlay", "-o", options, str(place / "merged")]):
            return options
        if prepare[0] == "mount":
            subprocess.run(["umount", str(place)], check=True)
    shutil.rmtree(place)
    place.mkdir()
    return ""


def write_upper(upper: Path) -> None:
    """Write by hand what the kernel would leave of the changes, as far as it may be written."""
    upper.mkdir(parents=True, exist_ok=True)
    (upper / "greeting.txt").write_text("hello, world\n")
    for directory, name, text in (("reports", "answer", "42\n"), ("settings", "colour", "green\n")):
        (upper / directory).mkdir()
        (upper / directory / name).write_text(text)
    (upper / "latest").symlink_to("reports/answer")
    try:
        os.mknod(upper / "obsolete.txt", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    except PermissionError:
        print("(No whiteout for obsolete.txt: device nodes cannot be made here.)")


def requested(mount_point: str, place: Path) -> dict[str, str]:
    """Ask for the same mount twice: as a directory, and as a tar.gz."""
    return {
        f"{ANNOTATION}.tree.mount-point": mount_point,
        f"{ANNOTATION}.tree.archive-to": str(place / "archives/changes"),
        f"{ANNOTATION}.tree.success": str(place / "archives/changes.ok"),
        f"{ANNOTATION}.tar.mount-point": mount_point,
        f"{ANNOTATION}.tar.archive-to": str(place / "archives/changes.tar.gz"),
        f"{ANNOTATION}.tar.method": "tar.gz",
    }


def write_tree(lower: Path) -> None:
    """Write what lies below the changes."""
    for name, text in LOWER.items():
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text(text)


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


def show_command(options: list[str], script: str) -> None:
    """Show how a container is run."""
    shown = ["podman", "run", "--rm", *options, "localhost/programs:demo", "sh", "-c", script]
    print(" \\\n    ".join(_in_lines(shown)) + "\n")


def show_lower() -> None:
    """Show what lies below the changes."""
    for name, text in LOWER.items():
        print(f"{name:24} {text.strip()}")


def show_archives(place: Path) -> None:
    """Show what the hook made."""
    archives = place / "archives"
    if not (archives / "changes.ok").exists():
        sys.exit("the hook did not make the archive")
    heading("Archive 1: a directory (method copy)")
    show_directory(archives / "changes")
    heading("Archive 2: a compressed tar (method tar.gz)")
    with tarfile.open(archives / "changes.tar.gz") as tar:
        for member in tar:
            note = ""
            if member.ischr() and member.devmajor == member.devminor == 0:
                note = "deleted"
            elif member.issym():
                note = f"-> {member.linkname}"
            elif any(key.endswith("overlay.opaque") for key in member.pax_headers):
                note = "hides what lies below"
            kind = stat.S_IFLNK if member.issym() else stat.S_IFCHR if member.ischr() else 0
            kind = kind or (stat.S_IFDIR if member.isdir() else stat.S_IFREG)
            show_entry(kind | member.mode, member.uid, member.gid, member.name, note)
    print(f"\nand the success marker, {archives / 'changes.ok'}.")


def show_directory(top: Path) -> None:
    """List a tree, with what overlayfs means by its entries."""
    for path in [top, *sorted(top.rglob("*"))]:
        info = path.lstat()
        name = "." if path == top else f"./{path.relative_to(top)}"
        note = ""
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            note = "deleted"
        elif stat.S_ISLNK(info.st_mode):
            note = f"-> {os.readlink(path)}"
        elif any(attribute.endswith("overlay.opaque") for attribute in os.listxattr(path)):
            note = "hides what lies below"
        show_entry(info.st_mode, info.st_uid, info.st_gid, name, note)


def show_entry(mode: int, uid: int, gid: int, name: str, note: str) -> None:
    """Show one entry of a change set."""
    print(f"{stat.filemode(mode)}  {f'{uid}:{gid}':10}  {name:20}  {note}".rstrip())


def succeeds(command: list[str]) -> bool:
    """Say whether a command succeeds; what it says about it is of no interest."""
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def heading(text: str) -> None:
    """Begin a new part of the story."""
    print(f"\n== {text}\n")


def _in_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _options(annotations: dict[str, str]) -> list[str]:
    """Give the options of a container that has the image mounted, and these annotations."""
    options = ["--mount", "type=image,source=localhost/data:demo,dst=/data,rw=true"]
    for key, value in annotations.items():
        options += ["--annotation", f"{key}={value}"]
    return options


def _in_lines(words: list[str]) -> list[str]:
    # One option and its value to a line.
    lines: list[str] = []
    for word in words:
        if lines and lines[-1].startswith("--") and " " not in lines[-1] and not word.startswith("--"):
            lines[-1] += f" {word}"
        elif word.startswith(("--mount", "--annotation", "localhost")) or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _end_pause_process(runtime_directory: Path) -> None:
    # Rootless podman leaves a process behind that keeps its namespaces. This one is ours alone.
    for pid_file in runtime_directory.rglob("pause.pid"):
        try:
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        except (OSError, ValueError):
            continue


if __name__ == "__main__":
    main()
