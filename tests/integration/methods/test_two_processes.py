"""Change sets that are read by one process and written by another, which small ones are not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, overlays

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Saver

TWO = ("--jobs", "2")
FILES = 300
# Around what is sent with its contents, what is read at once, and what is gathered.
SIZES = (0, 1, 32 * 1024 - 1, 32 * 1024, 32 * 1024 + 1, 128 * 1024 - 1, 128 * 1024, 128 * 1024 + 1, 1_000_003)
NAME = os.fsdecode(b"not \xff in UTF-8")

every_method = pytest.mark.parametrize("method", ["copy", "tar", "tar.gz", "tar.zst"])


def below(root: Path) -> None:
    """Make what the container is going to delete."""
    for number in range(FILES):
        (root / f"gone {number}").touch()
    (root / "replaced").mkdir()
    (root / "replaced" / "below").touch()


def change(root: Path) -> None:
    """Make many entries of each kind."""
    for number in range(FILES):
        (root / f"gone {number}").unlink()
        directory = root / f"directory {number % 7}"
        directory.mkdir(exist_ok=True)
        file = directory / f"file {number}"
        file.write_text(f"{number}\n" * number)
        file.chmod(0o600 + number % 64)
        os.utime(file, ns=(number, 10**18 + number))
        if number % 5 == 0:
            os.link(file, root / f"link {number}")
        if number % 7 == 0:
            os.symlink(f"file {number}", directory / f"symlink {number}")
        if number % 11 == 0:
            os.setxattr(file, "user.number", b"%d" % number * 50)
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    for size in SIZES:
        (root / f"{size} bytes").write_bytes(random.Random(size).randbytes(size))
    with open(root / "holes", "wb") as sparse:
        sparse.truncate(1 << 20)
        sparse.seek(300_000)
        sparse.write(b"data")
    (root / NAME).write_text(NAME, errors="surrogateescape")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(root)
        server.bind("socket")


@every_method
def test_all_of_it_comes_back(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same(*TWO)


@pytest.mark.parametrize("method", ["tar", "tar.gz", "tar.zst"])
def test_the_bytes_are_those_that_one_process_writes(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)

    archives = []
    for jobs in ("1", "2", "5"):
        assert any_saver.run("--jobs", jobs).status == 0
        archives.append(any_saver.archive.read_bytes())

    assert archives[0] == archives[1]
    # zstd itself cuts its input in another way for one thread than for more.
    assert archives[1] == archives[2]


@every_method
def test_a_full_disk_is_one_clear_failure(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)
    disk = any_saver.directory / "disk"
    disk.mkdir()

    def run() -> tuple[str, list[str]]:
        overlays.mount_tmpfs(disk, "size=256k")
        try:
            result = any_saver.run_here(*TWO, archive_to=disk / "archive")
            return result.only_error(), os.listdir(disk)
        finally:
            overlays.unmount(disk)

    error, left = any_saver.overlay.inside(run)

    assert "No space left on device" in error
    assert "cannot write" in error
    assert left == []
    assert not any_saver.success.exists()


@every_method
def test_what_the_policy_refuses_is_noticed_in_the_middle(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)

    result = any_saver.run(*TWO, f"--max-entries={FILES + 200}")

    assert result.status == 1
    assert f"more than {FILES + 200} entries" in result.only_error()
    assert os.listdir(any_saver.out) == []


def test_what_the_writing_process_leaves_out_is_said(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)

    result = any_saver.run(*TWO, method="tar.gz")

    assert result.messages("warning") == ["socket is left out: it is a socket, which a tar cannot hold"]


def ignore_children() -> None:
    """Have the kernel not say how children end, which a program that is started takes over."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@every_method
def test_a_full_disk_is_a_failure_also_where_nobody_is_told_of_children(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: (root / "made").write_bytes(random.Random(1).randbytes(100_000)))
    disk = any_saver.directory / "disk"
    disk.mkdir()

    def run() -> hooks.Result:
        overlays.mount_tmpfs(disk, "size=64k")
        try:
            # zstd writes all that there is at its end, so nothing but its status says that it could not.
            return any_saver.run_here(
                before=ignore_children,
                archive_to=disk / "archive",
            )
        finally:
            overlays.unmount(disk)

    result = any_saver.overlay.inside(run)

    assert result.status == 1
    assert "No space left on device" in result.only_error()
    assert not any_saver.success.exists()
