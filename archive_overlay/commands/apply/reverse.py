"""What a staged change set is going to overwrite or delete, as a change set that takes it back.

Where the directory has something that is going to be replaced or deleted, it has that, whole; where the directory has
nothing, a whiteout; and of directories that stay what they have themselves. So it fits every state between the one before
and the one after, and an interrupted run that is finished later needs no other one.
"""

from __future__ import annotations

import os
import stat
from functools import partial

from archive_overlay.history.unpack import OVERLAY_ATTRIBUTES
from archive_overlay.log import Repeated
from archive_overlay.overlay.change import DIRECTORY, FILE, SOCKET, TOP, WHITEOUT, Change, TreePath
from archive_overlay.overlay.dialect import RAW
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.upper import UpperReader
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.tree import Descent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.destination.merge import Marks
    from archive_overlay.log import Log

# Of a whiteout nothing counts but its name.
_NOTHING = os.stat_result(
    (0, 0, 0, 1, 0, 0, 0, 0, 0, 0), {"st_atime_ns": 0, "st_mtime_ns": 0, "st_rdev": 0, "st_blocks": 0}
)


def read_reverse(staged: int, directory: str, marks: Marks, log: Log) -> Iterator[Change]:
    """Read what a merge of a staged change set with a directory is going to take away from it.

    Args:
        staged: file descriptor of the change set's top.
        directory: path of the directory.
        marks: by which the change set says what is deleted.
        log: takes warnings of what no change set can give back.

    Returns:
        Changes, as `overlay.upper.read_changes` gives them.

    Raises:
        ArchiveError: something in the directory cannot be read.
    """
    reader = UpperReader(OverlayMount(upper=directory, lowers=(), dialect=RAW), log)
    warnings = Repeated(log)
    try:
        yield from _Reverse(staged, reader, marks, warnings).changes()
        warnings.finish()
    finally:
        reader.close()


class _Reverse:
    """Walks the change set, and the directory beside it: both in the order of names."""

    def __init__(self, staged: int, reader: UpperReader, marks: Marks, warnings: Repeated) -> None:
        self._staged = staged
        self._reader = reader
        self._marks = marks
        self._warnings = warnings
        self._links = _Links()

    def changes(self) -> Iterator[Change]:
        descent = Descent(os.open(".", READ_DIRECTORY, dir_fd=self._staged))
        try:
            yield from self._changes(descent)
        finally:
            descent.close()
        self._links.warn(self._warnings)

    def _changes(self, descent: Descent) -> Iterator[Change]:
        reader = self._reader
        yield self._take(stays=True)
        pending = [sorted(os.listdir(descent.fd), reverse=True)]
        paths = [TOP]
        while pending:
            depth = len(pending) - 1
            place = reader.ahead()
            there = place[1] if place and place[0] == depth else None
            if not pending[-1]:
                if there is not None:
                    reader.skip()
                    continue
                pending.pop()
                paths.pop()
                if pending:
                    os.close(descent.leave())
                continue
            name = pending[-1][-1]
            if there is not None and there < name:
                reader.skip()
                continue
            pending[-1].pop()
            status = os.lstat(name, dir_fd=descent.fd)
            deletes = self._marks.is_whiteout(name, descent.fd, status)
            if there != name:
                if not deletes:
                    yield Change(WHITEOUT, paths[-1], name, _NOTHING, {})
                continue
            is_directory = stat.S_ISDIR(status.st_mode) and reader.is_directory()
            stays = is_directory and not self._marks.opaque(name, descent.fd)
            change = self._take(stays=stays)
            change.opaque = change.kind is DIRECTORY and not stays
            yield change
            if stays:
                descent.enter(name)
                pending.append(sorted(os.listdir(descent.fd), reverse=True))
                paths.append(TreePath(paths[-1], name))
                continue
            while (place := reader.ahead()) and place[0] > depth:
                yield self._take()

    def _take(self, *, stays: bool = False) -> Change:
        """Give the next entry of the directory, as far as a change set can have it; warn of the rest.

        Args:
            stays: it is a directory that stays, with what it has of overlays.
        """
        change = self._reader.take()
        assert change is not None  # nothing is hidden in a directory that is no overlay's
        self._links.count(change)
        if change.kind in (SOCKET, WHITEOUT):
            what = "a socket" if change.kind is SOCKET else "a device 0:0"
            self._warnings.warning(
                f"{what} not kept", f" is {what}, which cannot be taken back", path=lambda: change.shown
            )
            return Change(WHITEOUT, change.directory, change.name, _NOTHING, {})
        for name in [name for name in change.attributes if name.startswith(OVERLAY_ATTRIBUTES)]:
            if not stays:
                self._warnings.warning(
                    "attributes not kept",
                    f": the attribute {name} cannot be taken back, because overlays act on it",
                    path=lambda: change.shown,
                )
            del change.attributes[name]
        return change


class _Links:
    """Names of one file that are kept, and how many there are."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[int, int, TreePath]] = {}

    def count(self, change: Change) -> None:
        """Count one more name."""
        if not change.shared:
            return
        if change.link_to is None:
            if change.kind is FILE:
                names = os.fstat(change.fd).st_nlink
                self._found[change.shared] = 1, names, TreePath(change.directory, change.name)
        elif change.shared in self._found:
            kept, names, first = self._found[change.shared]
            self._found[change.shared] = kept + 1, names, first

    def warn(self, warnings: Repeated) -> None:
        """Warn of files with names that are not among those that are kept."""
        for kept, names, first in self._found.values():
            if kept < names:
                warnings.warning(
                    "files with other names",
                    " has other names (hard links) that do not change: taken back, it is a separate file",
                    path=partial(getattr, first, "shown"),
                )
