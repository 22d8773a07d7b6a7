"""Write a layer, and return what an image says of it.

Source: OCI image specification, descriptor.md; layer.md.
"""

from __future__ import annotations

import hashlib

from archive_overlay.errors import fail
from archive_overlay.overlay.change import FILE, WHITEOUT
from archive_overlay.system.record import Record
from archive_overlay.tar import compress
from archive_overlay.tar.writer import TarWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.tar.compress import Sink, Writer

MEDIA_TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


class Layer(Record):
    """A layer.

    Attributes:
        media_type: one of `MEDIA_TYPES`.
        digest: of the compressed tar, "sha256:...".
        size: of the compressed tar, in bytes.
        diff_id: digest of the tar itself.
        entries, deletions: how many are in it, the root directory not counted.
        bytes: total size of the contents of its files.
    """

    media_type: str
    digest: str
    size: int
    diff_id: str
    entries: int
    deletions: int
    bytes: int

    @property
    def empty(self) -> bool:
        """Whether it holds only the root directory."""
        return not self.entries and not self.deletions


def write_layer(
    changes: Iterable[Change],
    fd: int,
    *,
    where: str,
    compression: str,
    level: int,
    jobs: int,
    owner: tuple[int, int] | None = None,
    max_bytes: int | None = None,
    log: Log,
) -> Layer:
    """Write changes as a layer.

    Args:
        changes: depth first.
        fd: an empty file, open for writing. The caller keeps it.
        where: the directory that it is in, for messages.
        compression: a name in `MEDIA_TYPES`.
        level: of the compression.
        jobs: how many threads may compress; 0: as many as there are processors for this process.
        owner, max_bytes: see `TarWriter`.
        log: takes warnings of what is left out.

    Raises:
        ArchiveError: something cannot be stored, or a system call failed.
    """
    blob, tar = _Digest(), _Digest()
    counted = _Counted()
    try:
        output = compress.open_writer(
            _Watched(compress.FileSink(fd), blob), compression=compression, level=level, jobs=jobs
        )
        try:
            writer = TarWriter(
                _WatchedTar(output, tar), opaque_attribute="", owner=owner, max_bytes=max_bytes, log=log
            )
            for change in counted.changes(changes):
                writer.add(change)
            writer.finish()
        finally:
            output.close()
    except OSError as error:
        fail(f"cannot write {counted.shown} into {where}", error)
    return Layer(
        media_type=MEDIA_TYPES[compression],
        digest=blob.name,
        size=blob.size,
        diff_id=tar.name,
        entries=counted.entries,
        deletions=counted.deletions,
        bytes=counted.bytes,
    )


def write_tar(
    pieces: Iterable[bytes], fd: int, *, where: str, compression: str, level: int, jobs: int
) -> Layer:
    """Write a tar that is there already as a layer. What is in it is not counted.

    Args:
        pieces: of the tar.
        fd, where, compression, level, jobs: see `write_layer`.

    Raises:
        ArchiveError: a system call failed; or what the pieces raise.
    """
    blob, tar = _Digest(), _Digest()
    try:
        output = compress.open_writer(
            _Watched(compress.FileSink(fd), blob), compression=compression, level=level, jobs=jobs
        )
        try:
            watched = _WatchedTar(output, tar)
            for piece in pieces:
                watched.write(piece)
            watched.finish()
        finally:
            output.close()
    except OSError as error:
        fail(f"cannot write a layer into {where}", error)
    return Layer(
        media_type=MEDIA_TYPES[compression],
        digest=blob.name,
        size=blob.size,
        diff_id=tar.name,
        entries=0,
        deletions=0,
        bytes=0,
    )


class _Counted:
    """Counts the changes that pass through."""

    def __init__(self) -> None:
        self.entries = self.deletions = self.bytes = 0
        self._last: Change | None = None

    @property
    def shown(self) -> str:
        """The path of the last one."""
        return self._last.shown if self._last else "."

    def changes(self, changes: Iterable[Change]) -> Iterator[Change]:
        for change in changes:
            self._last = change
            if change.kind is WHITEOUT:
                self.deletions += 1
            elif change.name and (change.opaque or not change.implicit):
                self.entries += 1
                if change.kind is FILE and change.link_to is None:
                    self.bytes += change.size
            yield change


class _Digest:
    """The digest and the number of bytes that went by."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes | bytearray) -> None:
        self._hash.update(data)
        self.size += len(data)

    @property
    def name(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Watched:
    """Passes bytes on to a file."""

    def __init__(self, sink: Sink, digest: _Digest) -> None:
        self._sink = sink
        self._digest = digest

    def write(self, data: bytes | bytearray) -> None:
        self._digest.add(data)
        self._sink.write(data)


class _WatchedTar(_Watched):
    """Passes bytes on to a compressor."""

    def __init__(self, writer: Writer, digest: _Digest) -> None:
        super().__init__(writer, digest)
        self._writer = writer

    def finish(self) -> None:
        self._writer.finish()

    def close(self) -> None:
        self._writer.close()
