"""The method `oci`: the change set as one more layer of an image in an OCI image layout.

Source: OCI image specification, layer.md.
"""

from __future__ import annotations

import hashlib

from archive_overlay.layout.add_layer import judge_destination
from archive_overlay.layout.layer import MEDIA_TYPES, Layer
from archive_overlay.layout.provenance import Provenance
from archive_overlay.methods.tar_entries import write_tar
from archive_overlay.methods.writer_process import write_beside
from archive_overlay.overlay.change import WHITEOUT
from archive_overlay.tar import compress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.methods import Destination, Request, Target
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.system.patience import Patience
    from archive_overlay.tar.compress import Sink, Writer


def require(compression: str) -> None:
    """Compression may need a program. See `methods.Writer`."""
    compress.require(compression)


def judge(overlay: OverlayMount, *, keep_in_place: str) -> None:
    """Nothing is refused. See `methods.Writer`."""


def destination(request: Request, *, upper: str, paths: Paths, patience: Patience, log: Log) -> Destination:
    """A tag of an image layout. See `methods.Writer`."""
    provenance = Provenance(
        container=request.container, archive=request.name, mount_point=request.mount_point
    )
    return judge_destination(
        request.archive_to,
        parent=request.parent,
        provenance=provenance,
        upper=upper,
        paths=paths,
        patience=patience,
        log=log,
    )


def write(changes: Iterator[Change], target: Target, log: Log) -> Layer:
    """Write the changes as a layer. See `methods.Writer`."""
    digest, size, diff_id, entries, deletions = write_beside(
        changes, lambda stream: _write(stream, target, log), jobs=target.jobs
    )
    return Layer(
        media_type=MEDIA_TYPES[target.compression],
        digest=digest,
        size=size,
        diff_id=diff_id,
        entries=entries,
        deletions=deletions,
    )


def _write(changes: Iterator[Change], target: Target, log: Log) -> tuple[str, int, str, int, int]:
    """Write the layer, and give what `Layer` says of it."""
    blob = _Digest()
    tar = _Digest()
    counted = _Counted(changes)
    write_tar(
        counted.changes(),
        target,
        log,
        opaque_attribute="",
        around_file=lambda file: _Watched(file, blob),
        around_tar=lambda compressor: _WatchedTar(compressor, tar),
    )
    return blob.name, blob.size, tar.name, counted.entries, counted.deletions


class _Counted:
    """Changes, and how many there were but for the root directory."""

    def __init__(self, changes: Iterator[Change]) -> None:
        self._changes = changes
        self.entries = self.deletions = 0

    def changes(self) -> Iterator[Change]:
        for change in self._changes:
            if change.kind is WHITEOUT:
                self.deletions += 1
            elif change.name:
                self.entries += 1
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
