"""make demo, on machines that allow more and less."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.packaging.conftest import TOP
from tests.support import tools

# What the demonstration takes besides Python, where it makes do without podman.
PROGRAMS = ("sh", "rm", "mkdir", "ln", "true")
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


def demonstrate(executable: Path, place: Path, path: str, *, user: int = 0) -> str:
    """Run the demonstration, hold that it shows both archives and leaves nothing, and give its output."""
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
    assert "Archive 1: a directory" in done.stdout
    assert "Archive 2: a compressed tar" in done.stdout
    for line in ("./latest              -> reports/answer", "./obsolete.txt        deleted"):
        assert done.stdout.split("Archive 1:")[1].count(line) == 2, done.stdout
    temporary.rmdir()  # fails if anything is left there
    assert os.listdir(home) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    return done.stdout


def test_with_podman_a_container_makes_the_changes(executable: Path, open_directory: Path) -> None:
    tools.need_root()
    tools.need("podman", "skopeo")
    shown = demonstrate(executable, open_directory, os.environ["PATH"])
    assert "A container with an image mounted at /data" in shown, shown
    assert shown.count("./settings            hides what lies below") == 2
    assert "The first container finds in greeting.txt:\nhello\n" in shown
    assert "The second container finds in greeting.txt:\nhello\nhello again\n" in shown


def test_without_podman_it_mounts_an_overlay_itself(executable: Path, open_directory: Path) -> None:
    tools.need_root()
    path = programs(open_directory / "bin", *PROGRAMS, *MOUNTING)
    shown = demonstrate(executable, open_directory, path)
    assert "An overlay mounted by hand" in shown
    assert shown.count("./settings            hides what lies below") == 3


def test_an_ordinary_user_mounts_it_in_a_user_namespace(executable: Path, open_directory: Path) -> None:
    tools.need_root()
    tools.need("setpriv")
    path = programs(open_directory / "bin", *PROGRAMS, *MOUNTING)
    shown = demonstrate(executable, open_directory, path, user=61235)
    assert ",userxattr" in shown
    assert shown.count("./settings            hides what lies below") == 3


def test_without_mounts_it_shows_an_upperdir_written_by_hand(executable: Path, open_directory: Path) -> None:
    path = programs(open_directory / "bin", *PROGRAMS)
    shown = demonstrate(executable, open_directory, path)
    assert "An upperdir written by hand" in shown
