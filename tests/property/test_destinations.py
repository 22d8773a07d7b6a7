"""Destinations that cannot hold the archive, or would add to it: the request fails and says so, or nothing is added."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver
from tests.support import overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

copying = pytest.mark.parametrize("method", ["copy"])


def below(root: Path) -> None:
    (root / "directory").mkdir()
    (root / "directory" / "gone").write_text("below")


def delete(root: Path) -> None:
    (root / "directory" / "gone").unlink()


@contextmanager
def mounted(saver: Saver, mount: Callable[[], object]) -> Iterator[None]:
    """Have something else mounted where the archive goes."""
    saver.overlay.inside(mount)
    try:
        yield
    finally:
        saver.overlay.inside(lambda: overlays.detach(saver.out))


@contextmanager
def on_an_overlay(saver: Saver) -> Iterator[None]:
    layers = saver.directory / "of the destination"
    for name in ("lower", "upper", "work"):
        (layers / name).mkdir(parents=True)
    options = [f"lowerdir={layers / 'lower'}", f"upperdir={layers / 'upper'}", f"workdir={layers / 'work'}"]
    options += saver.overlay.flavour.options
    with mounted(saver, lambda: overlays.mount_overlay(saver.out, options)):
        yield


@contextmanager
def on_ramfs(saver: Saver) -> Iterator[None]:
    tools.need_root()
    with mounted(saver, lambda: overlays.mount_ramfs(saver.out)):
        yield


def expect_refused(saver: Saver, *said: str) -> None:
    def run() -> tuple[int, str, list[str]]:
        result = saver.run_here()
        return result.status, result.only_error(), os.listdir(saver.out)

    status, error, left = saver.overlay.inside(run)

    assert status == 1
    assert all(each in error for each in said), error
    assert left == []
    assert not saver.success.exists()


@copying
def test_an_overlay_holds_no_whiteouts(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(delete)

    with on_an_overlay(any_saver):
        expect_refused(any_saver, "directory/gone", "tar")


@pytest.mark.parametrize("method", ["tar", "tar.gz", "tar.zst"])
def test_a_tar_goes_anywhere(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(delete)

    with on_an_overlay(any_saver):
        assert any_saver.run().status == 0


@copying
def test_an_overlay_holds_what_has_no_deletions(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(lambda root: (root / "directory" / "new").write_text("above"))

    def saved() -> str:
        result = any_saver.run_here()
        assert result.status == 0, result.stderr
        return (any_saver.archive / "directory" / "new").read_text()

    with on_an_overlay(any_saver):
        assert any_saver.overlay.inside(saved) == "above"


CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


@copying
@pytest.mark.parametrize(
    ("name", "value"),
    [("user.colour", b"red"), ("trusted.colour", b"red"), ("security.capability", CAPABILITY)],
)
def test_an_attribute_that_the_file_system_does_not_take(any_saver: Saver, name: str, value: bytes) -> None:
    tools.need_root()

    def change(root: Path) -> None:
        (root / "file").touch()
        os.setxattr(root / "file", name, value)

    any_saver.overlay.change(change)

    with on_ramfs(any_saver):
        expect_refused(any_saver, "file", name)


@copying
def test_an_opaque_directory_where_there_are_no_attributes(any_saver: Saver) -> None:
    def replace(root: Path) -> None:
        delete(root)
        (root / "directory").rmdir()
        (root / "directory").mkdir()

    any_saver.overlay.layer(below)
    any_saver.overlay.change(replace)

    with on_ramfs(any_saver):
        expect_refused(any_saver, "directory", "overlay.opaque")


@copying
@pytest.mark.parametrize("if_exists", ["merge", "replace"])
def test_what_the_directory_around_the_archive_passes_on_is_no_part_of_it(
    any_saver: Saver, if_exists: str
) -> None:
    """New entries get the default ACL of the directory they are made in, and its group if it is set-group-ID."""

    def change(root: Path) -> None:
        (root / "directory" / "inner").mkdir(parents=True)
        (root / "directory" / "inner" / "file").write_text("above")
        os.symlink("file", root / "directory" / "symlink")
        os.mkfifo(root / "directory" / "fifo")

    entries = ((0x01, 7, -1), (0x02, 7, 1234), (0x04, 7, -1), (0x10, 7, -1), (0x20, 7, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    any_saver.overlay.change(change)
    any_saver.archive.mkdir()
    (any_saver.archive / "directory").mkdir()
    for directory in (any_saver.out, any_saver.archive, any_saver.archive / "directory"):
        os.setxattr(directory, "system.posix_acl_default", acl)
        if os.geteuid() == 0:
            os.chown(directory, 0, 1234)
        directory.chmod(0o2777)
    any_saver.success = any_saver.out.parent / "success"

    result = any_saver.run(if_exists=if_exists)

    assert result.status == 0, result.stderr
    left = any_saver.overlay.view()
    restacked = any_saver.overlay.restacked(any_saver.archive)
    assert left.entries == restacked.entries


@pytest.mark.parametrize("method", ["tar.gz"])
def test_a_tar_where_the_directory_passes_on_its_acl(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: (root / "file").touch())
    entries = ((0x01, 7, -1), (0x04, 7, -1), (0x20, 7, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(any_saver.out, "system.posix_acl_default", acl)

    any_saver.expect_the_same()
