"""`archive_overlay cat`: a file of a revision on standard output."""

from __future__ import annotations

from archive_overlay.commands import write_bytes
from archive_overlay.errors import ArchiveError, brief
from archive_overlay.history.lookup import data_at, look_up
from archive_overlay.history.references import split_off_path
from archive_overlay.history.revisions import open_revision
from archive_overlay.history.states import States
from archive_overlay.overlay.change import DIRECTORY, FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from archive_overlay.log import Log

_ZEROS = bytes(64 * 1024)


def run(options: argparse.Namespace, log: Log) -> None:
    """Write the file.

    Args:
        options: `what`, LAYOUT:TAG:PATH or LAYOUT:TAG@N:PATH. Symbolic links are followed, within the image.
        log: takes nothing.

    Raises:
        ArchiveError: there is no such file, or it cannot be read or written.
        BrokenPipeError: nobody reads it any more.
    """
    text, path = split_off_path(options.what)
    if path is None:
        raise ArchiveError(f"{options.what} names a revision, but no file in it", hint=f"write {text}:PATH")
    states = States()
    image, revision = open_revision(text)
    with image:
        looked = look_up(image, revision, path, states, follow=True)
        if looked.fact.kind is DIRECTORY:
            raise ArchiveError(
                f"{brief(path)} is a directory", hint=f"archive_overlay show {text}:{path} lists it"
            )
        if looked.fact.kind is not FILE:
            raise ArchiveError(f"{brief(path)} is a {looked.fact.kind}, and has no contents")
        end = 0
        for offset, data in data_at(image, looked, states):
            _fill(offset - end)
            write_bytes(data)
            end = offset + len(data)
        _fill(looked.fact.size - end)


def _fill(count: int) -> None:
    """Write zeros for a hole."""
    while count > 0:
        write_bytes(_ZEROS[:count])
        count -= len(_ZEROS)
