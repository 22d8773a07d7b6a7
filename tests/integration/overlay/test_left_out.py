"""What an archive cannot hold is said, in as many lines as somebody reads."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver
from tests.support import overlays, tools

if TYPE_CHECKING:
    from pathlib import Path

MANY = 300

as_root = pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)


def protect(root: Path) -> None:
    """Make entries immutable, which a container with CAP_LINUX_IMMUTABLE can do."""
    for name in ("immutable", "append-only", "both"):
        (root / name).write_text(name)
    (root / "directory").mkdir()
    for flags, name in (
        ("+i", "immutable"),
        ("+a", "append-only"),
        ("+ia", "both"),
        ("+i", "directory"),
        ("+i", ""),
    ):
        done = subprocess.run(["chattr", flags, root / name], capture_output=True, text=True, check=False)
        if "not supported" in done.stderr or "Inappropriate ioctl" in done.stderr:
            tools.cannot_run("the file system of the upperdir has no flags")
        assert done.returncode == 0, done.stderr


@as_root
@pytest.mark.on_disk
@pytest.mark.parametrize("method", ["copy", "tar.gz", "oci"])
def test_that_an_entry_was_immutable_is_said(saver: Saver) -> None:
    saver.overlay.change(protect)

    result = saver.run()

    assert result.status == 0, result.stderr
    upper = saver.overlay.upper
    assert sorted(result.messages("warning")) == sorted(
        f"{path}: it was made {what} (chattr), which is left out: no archive can hold it"
        for path, what in (
            (upper, "immutable"),
            (upper / "immutable", "immutable"),
            (upper / "append-only", "append-only"),
            (upper / "both", "append-only and immutable"),
            (upper / "directory", "immutable"),
        )
    )


@as_root
@pytest.mark.on_disk
@pytest.mark.parametrize("method", ["move"])
def test_immutable_entries_are_moved_as_others_are(saver: Saver) -> None:
    saver.overlay.change(protect)

    result = saver.run()

    assert result.status == 0, result.stderr
    assert result.messages("warning") == []
    assert (saver.archive / "immutable").read_text() == "immutable"
    assert os.getxattr(saver.archive / "immutable", "trusted.overlay.protattr") == b"i"
    overlays.remove(saver.archive)
    assert not saver.archive.exists()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("method", ["tar", "oci"])
def test_many_sockets_take_few_lines(any_saver: Saver, jobs: int) -> None:
    def change(root: Path) -> None:
        for number in range(MANY):
            os.mknod(root / f"socket {number}", 0o140600)

    any_saver.overlay.change(change)

    result = any_saver.run("--jobs", str(jobs))

    assert result.status == 0, result.stderr
    warnings = result.messages("warning")
    assert warnings[0] == "socket 0 is left out: it is a socket, which a tar cannot hold"
    assert warnings[10:] == [f"sockets left out: {MANY - 10} more, not named here"]


@pytest.mark.parametrize("overlay", [overlays.FUSE], indirect=True)
@pytest.mark.parametrize("method", ["copy"])
def test_many_attributes_take_few_lines(saver: Saver) -> None:
    def change(root: Path) -> None:
        for number in range(MANY):
            (root / f"file {number}").touch()
            os.setxattr(root / f"file {number}", "user.overlay.opaque.x", b"y")

    saver.overlay.change(change)

    result = saver.run()

    assert result.status == 0, result.stderr
    warnings = result.messages("warning")
    assert "the attribute user.overlay.opaque.x is left out" in warnings[0]
    assert warnings[10:] == [f"attributes left out: {MANY - 10} more, not named here"]
