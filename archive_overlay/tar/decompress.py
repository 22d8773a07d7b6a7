"""Reading what is compressed: gzip, zstd or not at all, as its first bytes say.

zstd comes from Python's standard library where that has it (3.14), else from the zstd program.

Source: RFC 1952 (gzip), RFC 8878 (zstd), "Magic_Number" and "Skippable Frames".
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib

from archive_overlay.errors import ArchiveError
from archive_overlay.system.activity import NOW
from archive_overlay.tar import compress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from typing import Any

_PIECE = 128 * 1024
# A few bytes can become a thousand times as many: not at once.
_MOST_AT_ONCE = 1024 * 1024
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes((first,)) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
_GZIP_FORMAT = 31  # zlib's window bits for it
# What zstd may look back at it keeps in memory. RFC 8878 asks for 8 MiB, and no level below --ultra -22 needs more.
_ZSTD_WINDOW_LOG = 26


class Reader:
    """The bytes of an open file, decompressed. Close it at the end.

    Args:
        fd: the file, at its start. The reader owns it.
        digests: whether digests are computed.

    Attributes:
        size: bytes read from the file so far.

    Raises:
        ArchiveError: the program that decompresses is not on this machine.
    """

    def __init__(self, fd: int, *, digests: bool = False) -> None:
        self.size = 0
        self._fd = fd
        self._file_hash = hashlib.sha256() if digests else None
        self._data_hash = hashlib.sha256() if digests else None
        self._zstd: _ZstdProgram | None = None
        self._rest = b""
        self._position = 0
        # Headers, trailers and frames of other things than data are nothing; but nothing at all is the end.
        self._pieces = filter(None, self._decompressed())

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer only at the end.

        Raises:
            ArchiveError: they are not what was compressed.
            OSError: they cannot be read.
        """
        end = self._position + size
        if end <= len(self._rest):
            data = self._rest[self._position : end]
            self._position = end
            return data
        return self._read_across_pieces(size)

    def read_some(self, most: int) -> bytes:
        """Return some of the next bytes, as many as cost nothing to give; none only at the end."""
        if self._position == len(self._rest):
            self._rest = next(self._pieces, b"")
            self._position = 0
        data = self._rest[self._position : self._position + most]
        self._position += len(data)
        return data

    def skip(self, size: int) -> int:
        """Leave out the next bytes; give how many of them there were not."""
        end = self._position + size
        if end <= len(self._rest):
            self._position = end
            return 0
        while size:
            skipped = len(self.read_some(size))
            if not skipped:
                break
            size -= skipped
        return size

    def finish(self) -> None:
        """Read to the end, so that the digests are those of the whole."""
        while self.read_some(_MOST_AT_ONCE):
            pass

    def digest(self) -> str:
        """Return the digest of what was read from the file, "sha256:..."."""
        assert self._file_hash
        return f"sha256:{self._file_hash.hexdigest()}"

    def data_digest(self) -> str:
        """Return the digest of what it became."""
        assert self._data_hash
        return f"sha256:{self._data_hash.hexdigest()}"

    def close(self) -> None:
        """Let go of the file and of what decompresses it."""
        if self._zstd:
            self._zstd.close()
        os.close(self._fd)

    def _read_across_pieces(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.read_some(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _decompressed(self) -> Iterator[bytes]:
        pieces = self._file()
        first = next(pieces, b"")
        if first.startswith(_GZIP):
            decompressed = _gunzip(first, pieces)
        elif first.startswith((_ZSTD, *_SKIPPABLE)):
            decompressed = self._unzstd(first, pieces)
        else:
            decompressed = _chain(first, pieces)
        if self._data_hash is None:
            yield from decompressed
            return
        for piece in decompressed:
            self._data_hash.update(piece)
            yield piece

    def _file(self) -> Iterator[bytes]:
        while piece := os.read(self._fd, _PIECE):
            self.size += len(piece)
            if self._file_hash:
                self._file_hash.update(piece)
            NOW.read += len(piece)
            yield piece

    def _unzstd(self, first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
        module = compress.standard_library_zstd()
        if module is not None:
            return _unzstd(module, first, pieces)
        if not os.access(compress.ZSTD_PROGRAM, os.X_OK):
            raise ArchiveError(
                f"it is zstd, but there is no {compress.ZSTD_PROGRAM} to read it, and this Python does not include zstd",
                hint="install zstd",
            )
        self._zstd = _ZstdProgram(_chain(first, pieces))
        return self._zstd.pieces()


def _chain(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from pieces


def _gunzip(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    member = zlib.decompressobj(_GZIP_FORMAT)
    try:
        for piece in _chain(first, pieces):
            data = piece
            while data:
                if member.eof:
                    if not data.strip(b"\0"):
                        break  # what some tapes end with
                    member = zlib.decompressobj(_GZIP_FORMAT)
                yield member.decompress(data, _MOST_AT_ONCE)
                data = member.unused_data if member.eof else member.unconsumed_tail
        while not member.eof and (data := member.decompress(b"", _MOST_AT_ONCE)):
            yield data
    except zlib.error as error:
        raise ArchiveError(f"it is not valid gzip: {error}") from error
    if not member.eof:
        raise ArchiveError("it is not valid gzip: it ends too early")


def _unzstd(module: Any, first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    options = {module.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    frame = module.ZstdDecompressor(options=options)
    try:
        for piece in _chain(first, pieces):
            data = piece
            while data or not (frame.needs_input or frame.eof):
                if frame.eof:
                    frame = module.ZstdDecompressor(options=options)
                yield frame.decompress(data, _MOST_AT_ONCE)
                data = frame.unused_data if frame.eof else b""
    except module.ZstdError as error:
        raise ArchiveError(f"it is not valid zstd: {error}") from error
    if not frame.eof:
        raise ArchiveError("it is not valid zstd: it ends too early")


class _ZstdProgram:
    """What the zstd program makes of some pieces, which a thread passes on to it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        import subprocess

        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [
                *(compress.ZSTD_PROGRAM, "--quiet", "--decompress", "--stdout"),
                f"--memory={1 << _ZSTD_WINDOW_LOG}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            bufsize=0,
        )
        self._failure: OSError | None = None
        self._passing_on = threading.Thread(target=self._pass_on, args=(pieces,), daemon=True)
        try:
            self._passing_on.start()
        except RuntimeError:
            self._process.kill()
            self._process.wait()
            raise ArchiveError(
                f"cannot start a thread to read what {compress.ZSTD_PROGRAM} makes",
                hint=compress.MORE_THREADS,
            ) from None

    def pieces(self) -> Iterator[bytes]:
        """Yield what it makes."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        while piece := self._process.stdout.read(_PIECE):
            yield piece
        self._passing_on.join()
        said = os.fsdecode(self._process.stderr.read()).strip()
        if self._failure:
            raise self._failure
        if self._process.wait():
            if compress.lacks_threads(said):
                raise ArchiveError(f"{compress.ZSTD_PROGRAM} failed: {said}", hint=compress.MORE_THREADS)
            raise ArchiveError(f"it is not valid zstd: {said}")

    def close(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.wait()
        self._passing_on.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def _pass_on(self, pieces: Iterator[bytes]) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stream:
                for piece in pieces:
                    compress.write_all(stream.fileno(), piece)
        except BrokenPipeError:
            pass  # it says why it ended
        except OSError as error:  # for the thread that reads
            self._failure = error
            self._process.kill()
