"""The methods `tar`, `tar.gz` and `tar.zst`: the change set as a tar."""

from __future__ import annotations

import os

from archive_overlay.destination.publish import judge_destination
from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import fail
from archive_overlay.methods.writer_process import write_beside
from archive_overlay.tar import compress
from archive_overlay.tar.writer import TarWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.methods import Destination, Request, Target
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.overlay.store import Place
    from archive_overlay.settings import Settings
    from archive_overlay.system.patience import Patience


def require(compression: str) -> None:
    """Compression may need a program. See `methods.Writer`."""
    compress.require(compression)


def judge(overlay: OverlayMount, *, keep_in_place: str) -> None:
    """Nothing is refused. See `methods.Writer`."""


def destination(
    request: Request,
    *,
    overlay: OverlayMount,
    container: Place,
    settings: Settings,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> Destination:
    """A file. See `methods.Writer`."""
    return judge_destination(
        request.archive_to, makes="file", if_exists=request.if_exists, upper=overlay.upper, paths=paths
    )


def write(changes: Iterator[Change], target: Target, log: Log) -> None:
    """Write the changes as a tar. See `methods.Writer`."""
    opaque_attribute = target.overlay.dialect.opaque_attribute if target.whiteouts == "overlay" else ""
    write_beside(
        changes,
        lambda stream: write_tar(stream, target, log, opaque_attribute=opaque_attribute),
        jobs=target.jobs,
    )


def write_tar(changes: Iterator[Change], target: Target, log: Log, *, opaque_attribute: str) -> None:
    """Write changes as a tar into a staging directory.

    Args:
        changes: from `overlay.upper`.
        target: where to, and in which form.
        log: takes warnings of what is left out.
        opaque_attribute: see `TarWriter`.

    Raises:
        ArchiveError: something cannot be stored, or a system call failed.
    """
    change = None
    try:
        fd = target.staging.create_file(ARCHIVE)
        try:
            output = compress.open_writer(
                compress.FileSink(fd), compression=target.compression, level=target.level, jobs=target.jobs
            )
            try:
                writer = TarWriter(
                    output,
                    opaque_attribute=opaque_attribute,
                    owner=target.owner,
                    max_bytes=target.max_bytes,
                    log=log,
                )
                for change in changes:
                    writer.add(change)
                writer.finish()
            finally:
                output.close()
        finally:
            os.close(fd)
    except OSError as error:
        shown = change.shown if change else "."
        fail(f"cannot write {shown} into {target.staging.path}", error)
