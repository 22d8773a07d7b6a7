"""The methods `tar`, `tar.gz` and `tar.zst`: the change set as a tar."""

from __future__ import annotations

import os

from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import fail
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


def require(compression: str) -> None:
    """Compression may need a program. See `methods.Writer`."""
    compress.require(compression)


def judge(overlay: OverlayMount, *, may_rename: bool) -> None:
    """Nothing is refused. See `methods.Writer`."""


def write(changes: Iterator[Change], target: Target, log: Log) -> None:
    """Write the changes as a tar. See `methods.Writer`."""
    write_beside(changes, lambda stream: _write(stream, target, log), jobs=target.jobs)


def _write(changes: Iterator[Change], target: Target, log: Log) -> None:
    change = None
    try:
        fd = os.open(
            ARCHIVE,
            CREATE,
            0o666,
            dir_fd=target.staging.directory,
        )
        try:
            output = compress.open_writer(
                compress.FileSink(fd), compression=target.compression, level=target.level, jobs=target.jobs
            )
            try:
                opaque_attribute = target.overlay.dialect.opaque_attribute
                writer = TarWriter(
                    output,
                    opaque_attribute=opaque_attribute if target.whiteouts == "overlay" else "",
                    owner=target.owner,
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
        path = change.path if change else ""
        fail(f"cannot write {path or '.'} into {target.staging.path}", error)
