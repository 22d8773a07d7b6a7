"""What it costs to apply layers, counted in calls: hostile ones no more than honest ones of their size."""

from __future__ import annotations

import os
import sys
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.history.missing import Missing
from archive_overlay.history.unpack import Unpacker
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.tree import remove
from archive_overlay.tar import headers
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType
    from typing import Any

MIB = 2**20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Give a directory, which is removed in the end however deep it is: pytest cannot."""
    yield tmp_path
    fd = os.open(tmp_path.parent, READ_DIRECTORY)
    remove(tmp_path.name, fd)
    os.close(fd)


def entry(name: bytes, type_flag: bytes = headers.REGULAR, **more: Any) -> bytes:
    return headers.of_entry(
        name=name,
        type_flag=type_flag,
        mode=0o755,
        uid=os.geteuid(),
        gid=os.getegid(),
        mtime_ns=0,
        link=b"target" if type_flag == headers.SYMLINK else b"",
        **more,
    )


@contextmanager
def opened(*entries: bytes) -> Iterator[TarReader]:
    fd = os.memfd_create("tar")
    os.write(fd, b"".join(entries) + bytes(2 * headers.BLOCK))
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(fd)
    try:
        yield TarReader(reader)
    finally:
        reader.close()


def unpack(top: Path, *layers: list[bytes]) -> Missing:
    """Apply layers to a directory, which is made."""
    top.mkdir()
    fd = os.open(top, READ_DIRECTORY)
    unpacker = Unpacker(fd)
    try:
        for number, entries in enumerate(layers):
            if number:
                with opened(*entries) as tar:
                    unpacker.hide(tar)
            with opened(*entries) as tar:
                unpacker.apply(tar)
        unpacker.finish()
    finally:
        unpacker.close()
        os.close(fd)
    return unpacker.missing


def calls_of(top: Path, *layers: list[bytes]) -> int:
    """Count the functions that are called while layers are applied, the system's among them."""
    count = 0

    def see(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        unpack(top, *layers)
    finally:
        sys.setprofile(None)
    return count


def files(number: int) -> list[bytes]:
    return [entry(b"d/%d" % each) for each in range(number)]


def files_and_opaque_marks(number: int) -> tuple[list[bytes], ...]:
    """Make as many files as marks that hide what is below, by turns."""
    marked = [each for file in files(number) for each in (file, entry(b"d/.wh..wh..opq"))]
    return files(number), marked


def files_and_deletions(number: int) -> tuple[list[bytes], ...]:
    deleted = [entry(b"d/.wh.%d" % each) for each in range(number)]
    return files(number), [*files(number), *deleted]


def the_same_name(number: int) -> tuple[list[bytes], ...]:
    """Make a name a directory with a file in it and something else, by turns."""
    turns = [entry(b"d/"), entry(b"d/", headers.DIRECTORY), entry(b"d/f")]
    turns[0] = entry(b"d", headers.SYMLINK)
    return ([entry(b"below")], turns * number)


@pytest.mark.parametrize("make", [files_and_opaque_marks, files_and_deletions, the_same_name])
def test_calls_grow_with_entries_and_no_faster(place: Path, make: Any) -> None:
    few, many = (calls_of(place / str(number), *make(number)) for number in (100, 400))

    assert many < 4.5 * few


@pytest.mark.parametrize("layers", [1, 2])
def test_calls_grow_with_the_bytes_of_paths_and_no_faster(place: Path, layers: int) -> None:
    """Entries are by turns deep in the tree and at its top: each way down is as long as a path in the tar."""
    costs = []
    for depth in (100, 400):
        turns = [each for turn in range(8) for each in (entry(b"d/" * depth + b"%d" % turn), entry(b"top"))]
        costs.append(calls_of(place / str(depth), *[turns] * layers) / (8 * 2 * depth))

    assert costs[1] < 1.5 * costs[0]


def test_a_deep_tree_takes_the_memory_of_its_names(place: Path) -> None:
    deep = b"d/" * 2000
    lower, upper = [entry(deep + b"f")], [entry(deep + b"g"), entry(deep + b".wh.f")]
    tracemalloc.start()
    try:
        unpack(place / "out", lower, upper)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # As many paths in full would be 4 MB.
    assert peak < 2 * MIB


def test_attributes_of_the_directories_above_take_no_memory(place: Path) -> None:
    records = {b"SCHILY.xattr.trusted.overlay.%d" % number: bytes(65536) for number in range(32)}
    nested = [entry(b"d/" * depth, headers.DIRECTORY, records=records) for depth in range(1, 9)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with opened(*nested) as tar:
            tracemalloc.reset_peak()
            top = place / "out"
            top.mkdir()
            fd = os.open(top, READ_DIRECTORY)
            unpacker = Unpacker(fd)
            unpacker.apply(tar)
            unpacker.close()
            os.close(fd)
            peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

    # One entry has 2 MiB of them, which are there as a header, and as its values, and those of the entry before.
    assert peak < 9 * MIB


def test_acls_of_the_directories_above_have_a_limit(place: Path) -> None:
    records = {b"SCHILY.xattr.system.posix_acl_default": bytes(60_000)}
    nested = [entry(b"d/" * depth, headers.DIRECTORY, records=records) for depth in range(1, 300)]

    with pytest.raises(ArchiveError, match="bytes of ACLs"):
        unpack(place / "out", nested)


def test_what_is_missing_is_said_in_one_line_however_much_it_is(place: Path) -> None:
    marks = [
        entry(
            b"d" * 100 + b"/%d" % number,
            records={b"SCHILY.xattr.trusted.overlay.%d.%d" % (number, each): b"" for each in range(100)},
        )
        for number in range(40)
    ]
    missing = unpack(place / "out", marks)

    assert missing.marks
    assert "other attributes of " in str(missing)
    assert len(str(missing)) < 5000
    # 16 kinds by name, each of one file.
    assert f" and {40 * 100 - 16 - 1} more" in str(missing)
