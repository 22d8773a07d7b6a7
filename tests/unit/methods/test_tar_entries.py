"""What a tar may be asked to hold, and how much of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from archive_overlay.methods import tar_entries
from archive_overlay.methods.tar_entries import TarWriter
from archive_overlay.overlay.change import FILE, TOP, Change

if TYPE_CHECKING:
    from pathlib import Path


class Counted:
    """Takes a tar, and keeps its length."""

    def __init__(self) -> None:
        self.length = 0

    def write(self, data: bytes | bytearray) -> None:
        self.length += len(data)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def add_hole(writer: TarWriter, directory: Path, name: str, size: int) -> None:
    """Add a file that is nothing but a hole."""
    path = directory / name
    path.touch()
    os.truncate(path, size)
    fd = os.open(path, os.O_RDONLY)
    try:
        writer.add(Change(FILE, TOP, name, os.fstat(fd), {}, fd=fd))
    finally:
        os.close(fd)


def test_the_zeros_of_all_files_of_a_layer_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_entries, "_MOST_ZEROS", 1 << 20)
    output = Counted()
    writer = TarWriter(output, opaque_attribute="", owner=None, log=Log("panic", []))
    for number in range(4):
        add_hole(writer, tmp_path, f"{number}", 1 << 18)

    with pytest.raises(
        ArchiveError, match=r"^one more cannot be stored: with it the archive has 1310720 bytes of holes"
    ):
        add_hole(writer, tmp_path, "one more", 1 << 18)

    assert output.length < (1 << 20) + (1 << 18)


def test_what_is_too_large_is_refused_before_its_first_byte_is_written(tmp_path: Path) -> None:
    output = Counted()
    writer = TarWriter(output, opaque_attribute="", owner=None, max_bytes=1 << 20, log=Log("panic", []))

    with pytest.raises(
        ArchiveError, match="the archive has more than 1048576 bytes, the most that is allowed"
    ):
        add_hole(writer, tmp_path, "hole", 1 << 20 | 1)

    assert output.length == 0
