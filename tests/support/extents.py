"""Where the data of files are on disk, and file systems on which files can share them."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support import overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# ioctl_fiemap(2): struct fiemap is a header and extents, each with places in bytes.
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 1
_HEADER, _EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQ2QL3L")
_MOST = 256  # extents; files of tests have a few

# mkfs.xfs makes none below 300 MB. Most of it is a hole.
_SIZE = 320 << 20


@contextmanager
def xfs(directory: Path) -> Iterator[Path]:
    """Mount an xfs with reflinks in this mount namespace.

    Args:
        directory: where it and the file that it lies in are made.
    """
    tools.need_root()
    tools.need("mkfs.xfs", "mount")
    image, mounted = directory / "xfs.img", directory / "xfs"
    mounted.mkdir()
    with open(image, "xb") as file:
        file.truncate(_SIZE)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    done = subprocess.run(
        ["mount", "-o", "loop", image, mounted], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        tools.cannot_run(f"no xfs in a loop device: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        overlays.detach(mounted)
        image.unlink()


def shared(one: Path, other: Path) -> int:
    """Count the bytes of a file that are on disk where another file has them, at the same offset."""
    places = _places(other)
    return sum(
        max(min(end, other_end) - max(start, other_start), 0)
        for start, end, shift in _places(one)
        for other_start, other_end, other_shift in places
        if shift == other_shift
    )


def _places(path: Path) -> list[tuple[int, int, int]]:
    """Give the extents of a file: offset of the first byte, of the one after the last, and how far on disk from there."""
    fd = os.open(path, os.O_RDONLY)
    try:
        answer = bytearray(_HEADER.size + _MOST * _EXTENT.size)
        _HEADER.pack_into(answer, 0, 0, 2**63 - 1, _FIEMAP_FLAG_SYNC, 0, _MOST, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, answer)
    finally:
        os.close(fd)
    count = _HEADER.unpack_from(answer)[3]
    assert count < _MOST, f"{path} has too many extents for a test"
    extents = (_EXTENT.unpack_from(answer, _HEADER.size + number * _EXTENT.size) for number in range(count))
    return [(offset, offset + length, place - offset) for offset, place, length, *_ in extents]
