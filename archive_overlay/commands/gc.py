"""`archive_overlay gc`: blobs of a layout that nothing refers to are removed."""

from __future__ import annotations

import json
import os

from archive_overlay.commands import Output, human_size, shown, size_in_words
from archive_overlay.commands.terminal import find_screen
from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import Staging
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.references import expect_layout
from archive_overlay.layout.collect import unneeded_blobs
from archive_overlay.layout.edit import Edit, MovedError
from archive_overlay.layout.lock import lock
from archive_overlay.layout.reachable import UnknownError
from archive_overlay.layout.read import read_index
from archive_overlay.system.flush import Never, ToDisk
from archive_overlay.system.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from archive_overlay.layout.collect import Unneeded
    from archive_overlay.log import Log
    from archive_overlay.system.flush import Flush

_MOST_ATTEMPTS = 20


def run(options: argparse.Namespace, log: Log) -> None:
    """Remove them, and say on standard output how many they were.

    Args:
        options: `layout`; `older`: seconds; `dry_run`: nothing is removed; `json`; how it is shown; `fsync`.
        log: is told for whom it waits.

    Raises:
        ArchiveError: there is no layout, or it cannot be told what is needed: nothing is removed then.
    """
    paths = Paths()
    path = paths.resolve(os.path.abspath(expect_layout(options.layout)), "the layout")
    try:
        layout = paths.open(path)
        try:
            read_index(layout)  # is it a layout?
            if options.dry_run:
                found = unneeded_blobs(layout, read_index(layout), older=options.older)
            else:
                lock(layout, path, Patience(), log)
                flush: Flush = ToDisk(log.warning) if options.fsync else Never()
                with Staging(path, "", paths=paths, flush=flush, log=log) as staging:
                    found = _collect(layout, path, Edit(layout, staging), options.older)
        finally:
            os.close(layout)
    except OSError as error:
        fail(f"cannot collect garbage in the image layout {path}", error)
    except UnknownError as error:
        raise ArchiveError(f"nothing is removed from {path}: {error}") from error
    except ArchiveError as error:
        raise ArchiveError(f"nothing is removed from {path}: {error.message}", hint=error.hint) from error
    output = Output()
    if options.json:
        output.line(json.dumps(_object(found, dry_run=options.dry_run), indent=2))
    else:
        _write(path, found, output, options)
    output.flush()


def _collect(layout: int, path: str, edit: Edit, older: float) -> Unneeded:
    """Take histories that nothing needs out of the index, and then remove what nothing refers to."""
    for _ in range(_MOST_ATTEMPTS):
        found = unneeded_blobs(layout, edit.index, older=older)
        edit.discard([digest for digest, _ in found.blobs])
        edit.drop_histories(found.histories)
        try:
            edit.collect()
        except MovedError:
            edit.begin()
            continue
        return found
    raise ArchiveError(f"other programs keep changing {path}")


def _write(path: str, found: Unneeded, output: Output, options: argparse.Namespace) -> None:
    human = find_screen(options).human
    if options.dry_run:
        for digest, size in found.blobs:
            output.line(f"{digest} {human_size(size) if human else size}")
    count, total = len(found.blobs), size_in_words(found.bytes, human=human)
    verb = "would be removed" if options.dry_run else "removed"
    line = f"{shown(path)}: {count} {'blob' if count == 1 else 'blobs'} of {total} {verb}"
    if found.younger:
        line += f"; {found.younger} left, because they are too young (--older)"
    output.line(line)


def _object(found: Unneeded, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "removed": [{"digest": digest, "size": size} for digest, size in found.blobs],
        "bytes": found.bytes,
        "histories": list(found.histories),
        "younger": found.younger,
    }
