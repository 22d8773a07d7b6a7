"""make demo, on machines that allow more and less."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.packaging.conftest import TOP
from tests.support import tools

# What the demonstration takes besides Python, where it makes do without podman.
PROGRAMS = ("sh", "rm", "mkdir", "true")
MOUNTING = ("mount", "umount", "unshare")


def programs(directory: Path, *names: str) -> str:
    """Give a PATH on which there are these programs and no others."""
    tools.need(*names)
    directory.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found
        (directory / name).symlink_to(found)
    return str(directory)


def expect_all_shown(shown: str) -> None:
    """Hold that what is shown is a change set with a deletion, and a history of two revisions, within a screen."""
    changes, _, history = shown.partition("With method=oci")
    assert re.findall(r"^    ([AMDO]) +(?:\d+|-) (\S+)$", changes, re.MULTILINE) == [
        ("A", "greeting.txt"),
        ("D", "obsolete.txt"),
        ("O", "settings/"),
        ("A", "settings/colour"),
    ], shown
    assert re.findall(r"^ +(\d)  .*  (second|first|-)  ", history, re.MULTILINE) == [
        ("3", "second"),
        ("2", "first"),
        ("1", "-"),
    ], shown
    assert re.findall(r"^    (M) +25 (\S+)$", history, re.MULTILINE) == [("M", "greeting.txt")], shown
    assert len(shown.splitlines()) <= 32, shown


def demonstrate(executable: Path, place: Path, path: str, *, user: int = 0) -> str:
    """Run the demonstration, hold that it shows everything and leaves nothing, and give its output."""
    # podman takes no long paths.
    temporary, home = Path(tempfile.mkdtemp(dir="/tmp")), place / "home"
    home.mkdir()
    script = shutil.copy(TOP / "tools/demo.py", place)
    if user:
        os.chown(temporary, user, user)
        os.chown(home, user, user)
    mounts = Path("/proc/self/mountinfo").read_text()
    # Found on this process's PATH, for the demonstration's has no setpriv.
    command = [shutil.which("env") or "env", "-i", f"PATH={path}", f"TMPDIR={temporary}", f"HOME={home}"]
    if user:
        command += [shutil.which("setpriv") or "setpriv", f"--reuid={user}", f"--regid={user}"]
        command += ["--clear-groups", "--"]
    done = subprocess.run(
        [*command, "/usr/bin/python3", "-B", script, executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expect_all_shown(done.stdout)
    temporary.rmdir()  # fails if anything is left there
    assert os.listdir(home) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    return done.stdout


def test_with_podman_containers_make_the_changes(executable: Path, open_directory: Path) -> None:
    tools.need_root()
    tools.need("podman")
    shown = demonstrate(executable, open_directory, os.environ["PATH"])
    assert "without a container" not in shown, shown


def test_without_podman_it_mounts_overlays_itself(executable: Path, open_directory: Path) -> None:
    tools.need_root()
    path = programs(open_directory / "bin", *PROGRAMS, *MOUNTING)
    shown = demonstrate(executable, open_directory, path)
    assert "without a container.)" in shown, shown


def test_an_ordinary_user_mounts_them_in_a_user_namespace(executable: Path, open_directory: Path) -> None:
    tools.need_root()
    tools.need("setpriv")
    path = programs(open_directory / "bin", *PROGRAMS, *MOUNTING)
    shown = demonstrate(executable, open_directory, path, user=61235)
    assert "without a container.)" in shown, shown


@pytest.mark.parametrize("user", [0, 61235])
def test_without_mounts_it_writes_what_the_kernel_would_write(
    executable: Path, open_directory: Path, user: int
) -> None:
    if user:
        tools.need_root()
        tools.need("setpriv")
    path = programs(open_directory / "bin", *PROGRAMS)
    shown = demonstrate(executable, open_directory, path, user=user)
    assert "no overlay can be mounted" in " ".join(shown.split()), shown


# A root that is not a mount: `unshare --mount` fails there. Its arguments: a directory, the program, the demonstration.
CHROOT = """
    mount -t tmpfs tmpfs "$1"
    cd "$1"
    mkdir -p root/usr root/proc root/tmp root/var/tmp root/dev
    cp "$2" root/archive_overlay.pyz
    cp "$3" root/demo.py
    cd root
    mount --rbind /usr usr
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$name"; done
    mount -t proc proc proc
    mknod dev/null c 1 3
    chmod 666 dev/null
    chmod 1777 tmp var/tmp
    shift 3
    "$@" chroot . /usr/bin/python3 -B demo.py archive_overlay.pyz
    find tmp -mindepth 1
    ! grep overlay-demo proc/self/mountinfo
"""


@pytest.mark.parametrize(
    ("drop", "mounts"), [([], True), (["capsh", "--drop=cap_sys_admin", "--shell=/usr/bin/env", "--"], False)]
)
def test_in_a_chroot_root_mounts_overlays_if_root_may_mount(
    executable: Path, tmp_path: Path, drop: list[str], mounts: bool
) -> None:
    tools.need_root()
    tools.need("unshare", "chroot", *drop[:1])
    script = TOP / "tools/demo.py"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", CHROOT, "sh", tmp_path, executable, script, *drop],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said, _, shown = done.stdout.partition("A container's changes")
    assert ("no overlay can be mounted" not in " ".join(said.split())) == mounts, said
    expect_all_shown(shown)
