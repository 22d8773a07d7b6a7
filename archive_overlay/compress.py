"""Compressed output: gzip, on all processors.

The input is cut into blocks of one size, and each is compressed on a thread of its own (zlib lets go
of the interpreter lock). A block begins with the window that the one before it left, and ends at a byte
boundary, so that all of them together are one ordinary gzip member. Where the blocks end depends on the
input alone: the same input gives the same bytes, whatever the number of threads.

Source: RFC 1951 (deflate), RFC 1952 (gzip); zlib manual, Z_SYNC_FLUSH and deflateSetDictionary.
"""

from __future__ import annotations

import os
import queue
import threading
import zlib
from collections import deque

_BLOCK = 128 * 1024
_WINDOW = 32 * 1024
_RAW_DEFLATE = -15
_MEMORY_LEVEL = 8
# No name and no time, so that the same input gives the same bytes; made on Unix.
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"


class GzipWriter:
    """One gzip member, written to a file descriptor that stays open.

    Args:
        fd: where the compressed bytes go.
        level: 1 (fast) to 9 (small).
        jobs: how many threads compress; with 1 the caller's own does.
    """

    def __init__(self, fd: int, *, level: int, jobs: int) -> None:
        self._fd = fd
        self._level = level
        self._jobs = jobs
        self._gathered = bytearray()
        self._window = b""
        self._checksum = 0
        self._size = 0
        self._pending: deque[_Block] = deque()
        self._queue: queue.SimpleQueue[_Block | None] = queue.SimpleQueue()
        self._threads = 0
        self._output = [_HEADER]

    def write(self, data: bytes | bytearray) -> None:
        """Take some bytes.

        Raises:
            OSError: earlier ones cannot be written.
        """
        self._gathered += data
        # The last block must be known as such, so a full one waits for what comes after it.
        while len(self._gathered) > _BLOCK:
            block = bytes(self._gathered[:_BLOCK])
            del self._gathered[:_BLOCK]
            self._compress(block, last=False)

    def finish(self) -> None:
        """Write all that is still held back, and the end of the member.

        Raises:
            OSError: it cannot be written.
        """
        self._compress(bytes(self._gathered), last=True)
        while self._pending:
            self._write_first()
        self.close()
        self._output.append(self._checksum.to_bytes(4, "little"))
        self._output.append((self._size & 0xFFFFFFFF).to_bytes(4, "little"))
        self._write_output()

    def close(self) -> None:
        """End the threads; without `finish`, what was written is no gzip member."""
        for _ in range(self._threads):
            self._queue.put(None)
        self._threads = 0

    def _compress(self, data: bytes, *, last: bool) -> None:
        block = _Block(data, self._window, self._level, last=last)
        self._window = data[-_WINDOW:]
        self._size += len(data)
        self._pending.append(block)
        if self._jobs == 1 or (last and not self._threads):
            block.compress()
            self._write_first()
            return
        self._queue.put(block)
        if self._threads < self._jobs:
            self._threads += 1
            threading.Thread(target=_compress_all, args=(self._queue,), daemon=True).start()
        if len(self._pending) > 2 * self._jobs:
            self._write_first()

    def _write_first(self) -> None:
        block = self._pending.popleft()
        self._output.append(block.result())
        self._checksum = zlib.crc32(block.data, self._checksum)
        self._write_output()

    def _write_output(self) -> None:
        data = b"".join(self._output)
        self._output.clear()
        while data:
            data = data[os.write(self._fd, data) :]


class _Block:
    """A part of the input, and what becomes of it."""

    __slots__ = ("_compressed", "_done", "_failure", "_last", "_level", "_window", "data")

    def __init__(self, data: bytes, window: bytes, level: int, *, last: bool) -> None:
        self.data = data
        self._window = window
        self._level = level
        self._last = last
        self._compressed = b""
        self._failure: Exception | None = None
        self._done = threading.Event()

    def compress(self) -> None:
        try:
            compressor = zlib.compressobj(
                self._level, zlib.DEFLATED, _RAW_DEFLATE, _MEMORY_LEVEL, zlib.Z_DEFAULT_STRATEGY, self._window
            )
            body = compressor.compress(self.data)
            self._compressed = body + compressor.flush(zlib.Z_FINISH if self._last else zlib.Z_SYNC_FLUSH)
        except Exception as error:  # for the thread that waits for the block
            self._failure = error
        self._done.set()

    def result(self) -> bytes:
        """Wait for the compressed bytes."""
        self._done.wait()
        if self._failure:
            raise self._failure
        return self._compressed


def _compress_all(blocks: queue.SimpleQueue[_Block | None]) -> None:
    while block := blocks.get():
        block.compress()
