"""Lower layers that were detached before the hook ran: what they had is missing, and never taken for empty or for older."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from archive_overlay.overlay.dialect import NATIVE
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.upper import read_changes
from tests.support import overlays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Callable

    Change = Callable[[Path], object]


def newer(root: Path) -> None:
    """Fill the upper one of two lower layers."""
    (root / "directory/inner/deep").mkdir(parents=True)
    (root / "directory/inner/newer").touch()
    (root / "directory/file").write_text("new")
    (root / "directory/other").write_text("newer")


def older(root: Path) -> None:
    """Fill the lower one."""
    (root / "directory/inner").mkdir(parents=True)
    (root / "directory/inner/older").touch()
    (root / "directory/file").write_text("old")
    (root / "directory/other").write_text("old")


def rename(root: Path) -> None:
    (root / "directory").rename(root / "renamed")


def rename_twice(root: Path) -> None:
    rename(root)
    (root / "renamed/inner").rename(root / "renamed/again")


def rename_elsewhere(root: Path) -> None:
    (root / "new").mkdir()
    (root / "directory/inner").rename(root / "new/inner")


def change_below_a_renamed_one(root: Path) -> None:
    rename(root)
    (root / "renamed/inner/made").touch()


def change_mode(root: Path) -> None:
    (root / "directory/file").chmod(0o600)


def change_mode_and_rename(root: Path) -> None:
    (root / "directory/file").chmod(0o600)
    (root / "directory/file").rename(root / "file")


def change_mode_of_another_size(root: Path) -> None:
    (root / "directory/other").chmod(0o600)


CHANGES = [
    rename,
    rename_twice,
    rename_elsewhere,
    change_below_a_renamed_one,
    change_mode,
    change_mode_and_rename,
    change_mode_of_another_size,
]


class Stack:
    """An overlay of two lower layers, each a mount of its own.

    Args:
        directory: an empty one.
        namespace: where it is mounted.
    """

    def __init__(self, directory: Path, namespace: overlays.Namespace) -> None:
        self.inside = namespace.inside
        self.upper, self.work, self.merged = (directory / name for name in ("upper", "work", "merged"))
        self.lowers = [directory / "newer", directory / "older"]
        for made in (self.upper, self.work, self.merged, *self.lowers):
            made.mkdir()

    def change(self, function: Change) -> None:
        """Change it as a container does, and unmount it."""

        def change() -> None:
            for lower, fill in zip(self.lowers, (newer, older)):
                overlays.mount_tmpfs(lower, "mode=755")
                fill(lower)
            lowerdirs = ":".join(map(str, self.lowers))
            options = [f"lowerdir={lowerdirs}", f"upperdir={self.upper}", f"workdir={self.work}"]
            overlays.mount_overlay(self.merged, [*options, "metacopy=on", "redirect_dir=on"])
            function(self.merged)
            overlays.unmount(self.merged)

        self.inside(change)

    def read(self, lowers: list[Path] | None = None, *, listed: bool = False) -> dict[str, bytes]:
        """Give the paths of what an archive has, with the contents of files."""
        overlay = self.overlay(lowers, listed=listed)

        def read() -> dict[str, bytes]:
            return {
                change.path: os.read(change.fd, 100) if change.fd >= 0 else b""
                for change in read_changes(overlay, Log("panic", []))
            }

        return self.inside(read)

    def overlay(self, lowers: list[Path] | None = None, *, listed: bool = False) -> OverlayMount:
        """Give it as it is found."""
        return OverlayMount(
            upper=str(self.upper),
            lowers=tuple(map(str, lowers or self.lowers)),
            dialect=NATIVE,
            lowers_are_listed=listed,
        )

    def refusal(self) -> str:
        """Give the reason why it is not read."""
        with pytest.raises((ArchiveError, AssertionError)) as raised:
            self.read()
        return str(raised.value)

    def detach(self, *lowers: Path) -> None:
        """Detach layers, as containers/storage does once an overlay has them."""
        for lower in lowers:
            self.inside(lambda lower=lower: overlays.detach(lower))  # type: ignore[misc]

    def close(self) -> None:
        self.detach(self.merged, *self.lowers)


@pytest.fixture
def stack(scratch: Path, namespace: Callable[[bool], overlays.Namespace]) -> Iterator[Stack]:
    """Give an overlay of two layers."""
    overlays.need(overlays.NATIVE)
    made = Stack(scratch, namespace(False))
    yield made
    made.close()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("lost", ["newer", "both"])
def test_what_a_detached_layer_had_is_not_taken_for_missing(stack: Stack, change: Change, lost: str) -> None:
    stack.change(change)
    assert stack.read()
    stack.detach(*stack.lowers if lost == "both" else stack.lowers[:1])

    refusal = stack.refusal()

    assert "ArchiveError: " in refusal
    assert any(name in refusal for name in ("renamed", "new/inner", "file", "other"))


@pytest.mark.parametrize("change", CHANGES)
def test_an_empty_layer_is_a_layer(stack: Stack, change: Change, scratch: Path) -> None:
    stack.change(change)
    (scratch / "empty").mkdir()
    whole = stack.read()

    assert stack.read([scratch / "empty", *stack.lowers]) == whole


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_of_all_layers_is_as_good(stack: Stack, change: Change, scratch: Path) -> None:
    # Their files have other handles then, as after a move to another disk.
    stack.change(change)
    whole = stack.read()
    copies = [scratch / f"copy of {lower.name}" for lower in stack.lowers]

    def copy() -> None:
        for lower, copied in zip(stack.lowers, copies):
            shutil.copytree(lower, copied)

    stack.inside(copy)

    assert stack.read(copies) == whole
    (scratch / "empty").mkdir()
    assert stack.read([scratch / "empty", *copies], listed=True) == whole


def test_a_layer_below_that_is_empty_is_said_once(stack: Stack) -> None:
    def rename_both(root: Path) -> None:
        (root / "directory/inner").rename(root / "directory/renamed")
        rename(root)

    stack.change(rename_both)
    stack.detach(stack.lowers[1])
    warnings: list[str] = []

    class Kept:
        def write(self, _: str, message: str) -> None:
            warnings.append(message)

    def read() -> None:
        for _ in read_changes(stack.overlay(), Log("warning", [Kept()])):
            pass

    stack.inside(read)

    (warning,) = warnings
    assert f"the lower layer {stack.lowers[1]} is empty" in warning
    assert str(stack.upper / "renamed") in warning


def test_data_of_another_size_are_another_file_s(stack: Stack) -> None:
    stack.change(change_mode_of_another_size)
    stack.inside(lambda: (stack.lowers[0] / "directory/other").write_text("longer than before"))

    assert "other has 5 bytes, and " in stack.refusal()
