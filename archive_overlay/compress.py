"""Compressed output: gzip."""

from __future__ import annotations

import os
import zlib

# 15 bits of window, and a gzip header and trailer: no name and no time in it, so that the same input
# gives the same bytes.
_GZIP = 16 + 15
_LEVEL = 6


class GzipWriter:
    """One gzip member, written to a file descriptor that stays open.

    Args:
        fd: where the compressed bytes go.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)

    def write(self, data: bytes) -> None:
        """Compress and write some bytes.

        Raises:
            OSError: they cannot be written.
        """
        _write_all(self._fd, self._compressor.compress(data))

    def finish(self) -> None:
        """Write what is still held back, and the end of the member.

        Raises:
            OSError: it cannot be written.
        """
        _write_all(self._fd, self._compressor.flush())


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
