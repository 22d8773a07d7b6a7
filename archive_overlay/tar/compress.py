"""Compressed output: gzip and zstd, on all processors.

For gzip, the input is cut into blocks of one size, and each is compressed on a thread of its own (zlib lets go
of the interpreter lock). A block begins with the window that the one before it left, and ends at a byte
boundary, so that all of them together are one ordinary gzip member. Where the blocks end depends on the
input alone: the same input gives the same bytes, whatever the number of threads.

zstd comes from Python's standard library where that has it (3.14), else from the zstd program.

Source: RFC 1951 (deflate), RFC 1952 (gzip); zlib manual, Z_SYNC_FLUSH and deflateSetDictionary.
"""

from __future__ import annotations

import os
import queue
import threading
import zlib
from collections import deque
from functools import cache

from archive_overlay.errors import ArchiveError
from archive_overlay.system import kernel
from archive_overlay.system.processors import processors

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any, Protocol

    class Sink(Protocol):
        """Where bytes go."""

        def write(self, data: bytes | bytearray) -> object:
            """Write all of some bytes; OSError: they cannot be written."""

    class Writer(Protocol):
        """Takes bytes, and passes them on compressed."""

        def write(self, data: bytes | bytearray) -> object:
            """Take some bytes; OSError: they, or earlier ones, cannot be written."""

        def finish(self) -> None:
            """Write all that is held back, and the end; OSError: it cannot be written."""

        def close(self) -> None:
            """Let go of what is needed for writing, finished or not."""


ZSTD_PROGRAM = "/usr/bin/zstd"  # a hook has no PATH, and would not trust it
# What zstd gives to one thread at a time. By itself it takes twice as much up to this level, and 60 MiB of
# memory rather than 35; higher levels look further back, and would lose by it.
_ZSTD_JOB = 4 * 1024 * 1024
_ZSTD_SMALL_JOBS = 3
MORE_THREADS = "allow more processes (ulimit -u, TasksMax= of the systemd unit, the pids limit of the control group) or more memory"
_OR_GZIP = f"{MORE_THREADS}, or use gzip"
_BLOCK = 128 * 1024
_WINDOW = 32 * 1024
_RAW_DEFLATE = -15
_MEMORY_LEVEL = 8
# No name and no time, so that the same input gives the same bytes; made on Unix.
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"


def require(compression: str) -> None:
    """Make sure that this machine can compress in a way, and import all that it takes.

    Args:
        compression: "none", "gzip" or "zstd".

    Raises:
        ArchiveError: it cannot.
    """
    if compression != "zstd" or standard_library_zstd():
        return
    import subprocess  # noqa: F401, so that it is there when it is needed

    if not os.access(ZSTD_PROGRAM, os.X_OK):
        raise ArchiveError(
            f"cannot compress with zstd: there is no {ZSTD_PROGRAM}, and this Python does not include zstd",
            hint="install zstd, or choose tar.gz",
        )


def lacks_threads(said: str) -> bool:
    """Say whether the zstd program failed because it could not start a thread, by what it said.

    When the limit of processes is reached, it says that it lacks memory, or that it cannot make a "thread pool".
    """
    return "thread" in said or "not enough memory" in said


class FileSink:
    """Bytes written to a file descriptor, which stays open.

    Args:
        fd: it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, data: bytes | bytearray) -> None:
        """Write bytes to the last one; OSError: they cannot be written."""
        write_all(self.fd, data)


def open_writer(sink: Sink, *, compression: str, level: int, jobs: int) -> Writer:
    """Make what compresses.

    Args:
        sink: where the compressed bytes go.
        compression: "none", "gzip" or "zstd".
        level: 1 to 9 for gzip, 1 to 19 for zstd.
        jobs: how many threads compress; 0: as many as there are processors for this process.
    """
    jobs = jobs or processors()
    if compression == "gzip":
        return GzipWriter(sink, level=level, jobs=jobs)
    if compression == "none":
        return PlainWriter(sink)
    module = standard_library_zstd()
    if module is not None:
        return ZstdWriter(sink, module, level=level, jobs=jobs)
    return ZstdProgram(sink, level=level, jobs=jobs)


class PlainWriter:
    """Bytes as they are.

    Args:
        sink: where they go.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes | bytearray) -> None:
        """See `Writer`."""
        self._sink.write(data)

    def finish(self) -> None:
        """See `Writer`."""

    def close(self) -> None:
        """See `Writer`."""


class ZstdWriter:
    """One zstd frame, by the standard library.

    Args:
        sink: where the compressed bytes go.
        module: compression.zstd.
        level: 1 to 19.
        jobs: how many threads compress.
    """

    def __init__(self, sink: Sink, module: Any, *, level: int, jobs: int) -> None:
        parameter = module.CompressionParameter
        options = {
            parameter.compression_level: level,
            parameter.nb_workers: jobs,
            parameter.checksum_flag: 1,
        }
        if level <= _ZSTD_SMALL_JOBS:
            options[parameter.job_size] = _ZSTD_JOB
        self._sink = sink
        self._compressor = module.ZstdCompressor(options=options)

    def write(self, data: bytes | bytearray) -> None:
        """See `Writer`."""
        self._sink.write(self._compressor.compress(data))

    def finish(self) -> None:
        """See `Writer`."""
        self._sink.write(self._compressor.flush())

    def close(self) -> None:
        """See `Writer`."""


class ZstdProgram:
    """One zstd frame, by the zstd program. It writes a file itself; to another sink a thread passes it on.

    Args:
        sink: where the compressed bytes go.
        level: 1 to 19.
        jobs: how many threads compress.
    """

    def __init__(self, sink: Sink, *, level: int, jobs: int) -> None:
        import subprocess

        self._sink = sink
        self._failure: OSError | None = None
        job_size = [f"-B{_ZSTD_JOB}"] if level <= _ZSTD_SMALL_JOBS else []
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [ZSTD_PROGRAM, "--quiet", "--stdout", f"-{level}", f"-T{jobs}", *job_size],
            stdin=subprocess.PIPE,
            stdout=sink.fd if isinstance(sink, FileSink) else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            bufsize=0,
            # What it has not compressed yet could keep it busy, and the file open, long after this process was
            # killed. Nothing else comes of it where that cannot be asked for.
            preexec_fn=kernel.end_with_parent if kernel.can_end_with_parent() else None,
            # A write beyond RLIMIT_FSIZE then fails there too, and is reported, instead of killing it (SIGXFSZ).
            restore_signals=False,
        )
        assert self._process.stdin is not None
        self._input = self._process.stdin
        self._passing_on = threading.Thread(target=self._pass_on, daemon=True)
        if self._process.stdout:
            try:
                self._passing_on.start()
            except RuntimeError:
                self._process.kill()
                self._process.wait()
                raise OSError(
                    None, f"cannot start a thread to write what {ZSTD_PROGRAM} makes; {_OR_GZIP}"
                ) from None

    def write(self, data: bytes | bytearray) -> None:
        """See `Writer`."""
        try:
            write_all(self._input.fileno(), data)
        except BrokenPipeError:
            self.finish()  # it says why it ended
            raise

    def finish(self) -> None:
        """See `Writer`."""
        self._input.close()
        self._wait_for_output()
        assert self._process.stderr is not None
        said = os.fsdecode(self._process.stderr.read()).strip()
        status = self._process.wait()
        if self._failure:
            raise self._failure
        if status:
            hint = f"; {_OR_GZIP}" if lacks_threads(said) else ""
            raise OSError(None, f"{ZSTD_PROGRAM} failed: {said or f'it ended with status {status}'}{hint}")

    def close(self) -> None:
        """See `Writer`."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        self._wait_for_output()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def _wait_for_output(self) -> None:
        if self._process.stdout:
            self._passing_on.join()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        try:
            while data := self._process.stdout.read(_BLOCK):
                self._sink.write(data)
        except OSError as error:  # for the thread that waits for the end
            self._failure = error
            self._process.kill()


class GzipWriter:
    """One gzip member, written to a file descriptor that stays open.

    Args:
        sink: where the compressed bytes go.
        level: 1 (fast) to 9 (small).
        jobs: how many threads compress; with 1 the caller's own does.
    """

    def __init__(self, sink: Sink, *, level: int, jobs: int) -> None:
        self._sink = sink
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
        if self._jobs > 1 and self._threads < self._jobs and not (last and not self._threads):
            self._start_thread()
        if not self._threads:
            block.compress()
            self._write_first()
            return
        self._queue.put(block)
        if len(self._pending) > 2 * self._jobs:
            self._write_first()

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=_compress_all, args=(self._queue,), daemon=True).start()
            self._threads += 1
        except RuntimeError:  # their number is limited (setrlimit(2), RLIMIT_NPROC; pids.max)
            self._jobs = max(self._threads, 1)

    def _write_first(self) -> None:
        block = self._pending.popleft()
        self._output.append(block.result())
        self._checksum = zlib.crc32(block.data, self._checksum)
        self._write_output()

    def _write_output(self) -> None:
        data = b"".join(self._output)
        self._output.clear()
        self._sink.write(data)


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


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write bytes to the last one.

    Raises:
        OSError: they cannot be written.
    """
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(fd, view[written:])


@cache  # `require` looks for it, and nobody again when an archive has begun
def standard_library_zstd() -> Any:
    """Return compression.zstd; None: this Python has none."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # novm
    except ImportError:  # before Python 3.14
        return None
    return zstd
