"""Listings that are longer than an archive may be are not read to their end; long ones are read in parts."""

from __future__ import annotations

import os
import random
import stat
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from archive_overlay.overlay import parts
from archive_overlay.overlay.dialect import NATIVE
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.upper import read_changes

if TYPE_CHECKING:
    from pathlib import Path


def read(upper: Path, most: int | None) -> list[str]:
    overlay = OverlayMount(upper=str(upper), lowers=(), dialect=NATIVE)
    return [change.path for change in read_changes(overlay, Log("panic", []), max_entries=most)]


def test_a_listing_that_is_much_too_long_is_given_up(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}").touch()

    # At the 45th name, before a single file is opened.
    with pytest.raises(ArchiveError, match=r"has more than 44 names, for the 10 entries that are"):
        read(tmp_path, 10)
    assert len(read(tmp_path, 200)) == len(read(tmp_path, None)) == 201


def test_all_listings_that_are_held_are_counted_together(tmp_path: Path) -> None:
    here = tmp_path
    for _ in range(10):
        here = here / "a directory"
        here.mkdir()
        for number in range(10):
            (here / f"file {number}").touch()

    with pytest.raises(ArchiveError, match="more than 44 names"):
        read(tmp_path, 10)


def mixed(directory: Path, chance: random.Random, depth: int) -> None:
    """Fill a directory with files, links, devices that mark deletions, and directories like it."""
    directory.mkdir()
    for number in chance.sample(range(1000), chance.randrange(30)):
        path = directory / f"{number}"
        kind = chance.choice(("file", "link", "deletion", "directory" if depth else "file"))
        if kind == "directory":
            mixed(path, chance, depth - 1)
        elif kind == "deletion":
            os.mknod(path, stat.S_IFCHR, 0)
        elif kind == "link":
            path.symlink_to("target")
        else:
            path.touch()


@pytest.mark.parametrize("most", [None, 10_000])
@pytest.mark.parametrize("deletions_first", [False, True])
def test_names_that_are_read_in_parts_are_the_same_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions_first: bool, most: int | None
) -> None:
    mixed(tmp_path / "upper", random.Random(7), 3)
    overlay = OverlayMount(upper=str(tmp_path / "upper"), lowers=(), dialect=NATIVE)

    def read_all() -> list[tuple[str, object]]:
        changes = read_changes(overlay, Log("panic", []), deletions_first=deletions_first, max_entries=most)
        return [(change.path, change.kind) for change in changes]

    whole = read_all()
    for listed, held in ((2, 1), (8, 3), (16, 40)):
        monkeypatch.setattr(parts, "_MOST_LISTED", listed)
        monkeypatch.setattr(parts, "most_held", lambda most, held=held: held)
        assert read_all() == whole
    assert len(whole) > 500
