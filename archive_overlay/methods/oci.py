"""The method `oci`: the change set as one more layer of an image in an OCI image layout.

Source: OCI image specification, layer.md.
"""

from __future__ import annotations

import hashlib
import os

from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import fail
from archive_overlay.layout.add_layer import LAYER_TYPES, Layer
from archive_overlay.methods.tar_entries import TarWriter
from archive_overlay.methods.writer_process import write_beside
from archive_overlay.system.open_flags import CREATE
from archive_overlay.tar import compress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.log import Log
    from archive_overlay.methods import Target
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.locate import OverlayMount
    from archive_overlay.tar.compress import Sink, Writer


def require(compression: str) -> None:
    """Compression may need a program. See `methods.Writer`."""
    compress.require(compression)


def judge(overlay: OverlayMount, *, may_rename: bool) -> None:
    """Nothing is refused. See `methods.Writer`."""


def write(changes: Iterator[Change], target: Target, log: Log) -> Layer:
    """Write the changes as a layer. See `methods.Writer`."""
    digest, size, diff_id, entries = write_beside(
        changes, lambda stream: _write(stream, target, log), jobs=target.jobs
    )
    return Layer(
        media_type=LAYER_TYPES[target.compression],
        digest=digest,
        size=size,
        diff_id=diff_id,
        empty=entries == 1,
    )


def _write(changes: Iterator[Change], target: Target, log: Log) -> tuple[str, int, str, int]:
    """Write the layer, and give its digest, its size in bytes, its diff ID and the number of changes."""
    change = None
    entries = 0
    try:
        fd = os.open(
            ARCHIVE,
            CREATE,
            0o644,
            dir_fd=target.staging.directory,
        )
        try:
            blob = _Digest(compress.FileSink(fd))
            compressor = compress.open_writer(
                blob, compression=target.compression, level=target.level, jobs=target.jobs
            )
            try:
                tar = _DigestOfTar(compressor)
                writer = TarWriter(tar, opaque_attribute="", owner=target.owner, log=log)
                for change in changes:
                    writer.add(change)
                    entries += 1
                writer.finish()
            finally:
                compressor.close()
        finally:
            os.close(fd)
    except OSError as error:
        path = change.path if change else ""
        fail(f"cannot write {path or '.'} into {target.staging.path}", error)
    return blob.name, blob.size, tar.name, entries


class _Digest:
    """Passes bytes on, and knows their digest and number."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray) -> None:
        self._hash.update(data)
        self.size += len(data)
        self._sink.write(data)

    @property
    def name(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _DigestOfTar(_Digest):
    """The same for what goes into a compressor."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        self._writer = writer

    def finish(self) -> None:
        self._writer.finish()

    def close(self) -> None:
        self._writer.close()
