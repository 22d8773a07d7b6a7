"""What was compressed in several parts is read to the end of the last one."""

from __future__ import annotations

import gzip
import importlib
import os
import random
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.tar import compress, decompress
from tests.support import tools

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

PIECE = 128 * 1024  # as much as is read from the file at once

# What zstd:chunked ends with, pzstd begins with, and a reader leaves out. Any of sixteen numbers begins it.
SKIPPABLE = struct.pack("<II", 0x184D2A50, 7) + b"table 1"
SKIPPABLE_TOO = struct.pack("<II", 0x184D2A5F, 7) + b"table 2"


def read(path: Path, compressed: bytes, *, at_once: int = 0) -> bytes:
    """Read a file to its end, all at once or by some of its bytes."""
    path.write_bytes(compressed)
    reader = decompress.Reader(os.open(path, os.O_RDONLY))
    try:
        if at_once:
            return reader.read(at_once)
        parts = []
        while part := reader.read_some(PIECE):
            parts.append(part)
        return b"".join(parts)
    finally:
        reader.close()


def member_of(size: int) -> bytes:
    """Give a gzip member of a certain size."""
    # Random bytes are stored as they are, with so much around them that never depends on how many.
    data = random.Random(size).randbytes(size - 64)
    member = gzip.compress(data, 0)
    name = b"n" * (size - len(member) - 1) + b"\0"
    return member[:3] + b"\x08" + member[4:10] + name + member[10:]


@pytest.mark.parametrize("at_once", [0, 1000])
@pytest.mark.parametrize(
    "data", [(b"", b"one"), (b"one", b""), (b"one", b"", b"two"), (b"one", b"", b"", b"", b"two", b"three")]
)
def test_empty_gzip_members_are_not_the_end(tmp_path: Path, data: tuple[bytes, ...], at_once: int) -> None:
    compressed = b"".join(map(gzip.compress, data))

    assert read(tmp_path / "file", compressed, at_once=at_once) == b"".join(data)


@pytest.mark.parametrize("before", [*range(-10, 20)])
def test_a_gzip_member_may_begin_anywhere(tmp_path: Path, before: int) -> None:
    first = member_of(PIECE - before)
    assert len(first) == PIECE - before

    assert read(tmp_path / "file", first + gzip.compress(b"last")).endswith(b"last")


def test_zeros_after_the_last_gzip_member_are_no_member(tmp_path: Path) -> None:
    assert read(tmp_path / "file", gzip.compress(b"data") + bytes(2 * PIECE)) == b"data"


def test_a_gzip_member_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    cut_off = gzip.compress(b"one") + gzip.compress(b"") + gzip.compress(b"two")[:-4]

    with pytest.raises(ArchiveError, match="ends too early"):
        read(tmp_path / "file", cut_off)


def own_zstd() -> Any:
    """Give what Python 3.14 has for zstd."""
    try:
        return importlib.import_module(
            "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        )
    except ImportError:
        tools.cannot_run("backports.zstd not installed")


@pytest.fixture(params=["the program", "its own"])
def zstd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the zstd program or Python's own decompress; give what compresses."""
    module = own_zstd()
    if request.param == "the program":
        tools.need(compress.ZSTD_PROGRAM)
    chosen = module if request.param == "its own" else None
    monkeypatch.setattr(compress, "standard_library_zstd", lambda: chosen)
    return module


def test_zstd_frames_without_data_are_not_the_end(tmp_path: Path, zstd: Any) -> None:
    one, none, two = map(zstd.compress, (b"one", b"", b"two"))
    for compressed in (
        one + SKIPPABLE + two,
        one + none + two,
        one + two + SKIPPABLE + SKIPPABLE_TOO,
        SKIPPABLE + one + SKIPPABLE_TOO + two,
        SKIPPABLE_TOO + none + SKIPPABLE + one + none + none + two,
    ):
        assert read(tmp_path / "file", compressed) == b"onetwo"
        assert read(tmp_path / "file", compressed, at_once=1000) == b"onetwo"


def test_a_zstd_frame_may_begin_anywhere(tmp_path: Path, zstd: Any) -> None:
    one, two = map(zstd.compress, (b"one", b"two"))
    for before in range(-4, 16):
        filling = struct.pack("<II", 0x184D2A50, PIECE - before - len(one) - 8)
        filling += bytes(PIECE - before - len(one) - 8)

        assert read(tmp_path / "file", one + filling + two) == b"onetwo"


@pytest.mark.parametrize("left", [1, 4, 8])
def test_a_zstd_frame_that_is_cut_off_is_refused(tmp_path: Path, zstd: Any, left: int) -> None:
    cut_off = zstd.compress(b"one") + zstd.compress(b"two")[:left]

    with pytest.raises(ArchiveError, match="not valid zstd"):
        read(tmp_path / "file", cut_off)
