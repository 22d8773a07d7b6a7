"""Listings that are longer than an archive may be are not read to their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
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
