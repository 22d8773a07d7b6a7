"""A change set as entries to unpack, in which private marks stand for deletions and opaque directories."""

from __future__ import annotations

import errno
import os
import stat
from typing import cast

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.unpack import SOCKET
from archive_overlay.marks import FUSE_SECURITY, FUSE_USER
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    WHITEOUT,
)
from archive_overlay.overlay.change import SOCKET as SOCKET_KIND
from archive_overlay.system import sparse
from archive_overlay.system.activity import NOW
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.tree import open_beneath
from archive_overlay.tar import headers
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.history.missing import Missing
    from archive_overlay.overlay.change import Change

_PIECE = 128 * 1024
_TYPES = {
    DIRECTORY: headers.DIRECTORY,
    FILE: headers.REGULAR,
    SYMLINK: headers.SYMLINK,
    FIFO: headers.FIFO,
    CHARACTER_DEVICE: headers.CHARACTER_DEVICE,
    BLOCK_DEVICE: headers.BLOCK_DEVICE,
    SOCKET_KIND: SOCKET,
}

# By these fuse-overlayfs says whose an entry is.
_TRUE_OWNERS = (f"{FUSE_USER}override_stat", f"{FUSE_SECURITY}override_stat")


class Counts:
    """How much a change set holds.

    Attributes:
        entries: what it has; the top does not count.
        deletions: what it deletes.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.deletions = 0


class Making:
    """What making entries depends on, besides the archive.

    Args:
        mark: see `marks.PrivateMarks`.
        staging: file descriptor of the directory that they are made in.
        target: file descriptor of the directory that the change set is for.

    Attributes:
        counts: of what was given so far.
        missing: what could not be given to entries; set by who makes them.
    """

    missing: Missing

    def __init__(self, mark: str, staging: int, target: int) -> None:
        self._mark = mark
        self._staging = staging
        self._target = target
        self._may_make_devices: bool | None = None
        made = os.fstat(staging)
        self._made_as = made.st_uid, made.st_gid
        self.counts = Counts()

    def deletion(self, path: str) -> Entry:
        """Give the entry that deletes a path."""
        uid, gid = self._made_as
        return Entry(headers.SYMLINK, path, link=self._mark, uid=uid, gid=gid)

    def opaque(self, path: str) -> Entry:
        """Give the entry that makes a directory opaque."""
        return self.deletion(f"{path}/{self._mark}" if path else self._mark)

    def open_in_target(self, parts: list[str], above: int) -> int:
        """Open a directory of the target; -1: it has none there.

        Args:
            parts: its path.
            above: file descriptor of the directory that it is in, if that is open; else -1.
        """
        try:
            if above >= 0:
                return os.open(parts[-1], READ_DIRECTORY, dir_fd=above)
            parent, name = open_beneath("/".join(parts) or ".", self._target)
            try:
                return os.open(name, READ_DIRECTORY, dir_fd=parent)
            finally:
                os.close(parent)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return -1

    def can_be_made(self, entry: Entry) -> bool:
        """Say whether an entry can be made here; if not, that is noted, and what was there goes all the same."""
        if entry.type not in (headers.CHARACTER_DEVICE, headers.BLOCK_DEVICE):
            return True
        if entry.type == headers.CHARACTER_DEVICE and not entry.device:
            self.missing.note_mark("the device 0:0", entry.name)
            return False
        if self._may_make_devices is None:
            self._may_make_devices = self._try_device()
        if not self._may_make_devices:
            self.missing.note("the device", entry.name)
        return self._may_make_devices

    def _try_device(self) -> bool:
        name = f"{self._mark}-device"
        try:
            os.mknod(name, stat.S_IFCHR | stat.S_IRUSR, os.makedev(1, 3), dir_fd=self._staging)
        except PermissionError:
            return False
        os.unlink(name, dir_fd=self._staging)
        return True


class ChangeEntries:
    """A change set that is a directory, as entries: for `history.unpack.Unpacker`, once.

    Args:
        changes: as `overlay.upper` gives them.
        making: see there.
    """

    def __init__(self, changes: Iterator[Change], making: Making) -> None:
        self._changes = changes
        self._making = making
        self._present: Change | None = None

    def entries(self) -> Iterator[Entry]:
        """Give them. See `TarReader.entries`."""
        for change in self._changes:
            path = change.path
            if change.kind is WHITEOUT:
                self._making.counts.deletions += 1
                yield self._making.deletion(path)
                continue
            self._present = change
            self._making.counts.entries += bool(path)
            entry = _entry(change, path)
            yield entry if self._making.can_be_made(entry) else self._making.deletion(path)
            if change.opaque:
                yield self._making.opaque(path)

    def whole_data(self) -> bytes | None:
        """See `TarReader.whole_data`."""
        assert self._present is not None
        if self._present.sparse:
            return None
        NOW.read += self._present.size
        return self._present.contents()

    def data(self) -> Iterator[tuple[int, bytes]]:
        """See `TarReader.data`."""
        change = self._present
        assert change is not None
        try:
            for offset, length in sparse.segments(change.fd, change.size):
                end = offset + length
                while offset < end:
                    piece = os.pread(change.fd, min(end - offset, _PIECE), offset)
                    if not piece:
                        raise change.changed()
                    NOW.read += len(piece)
                    yield offset, piece
                    offset += len(piece)
            if os.fstat(change.fd).st_size != change.size:
                raise change.changed()
        except OSError as error:
            fail(f"cannot read {change.shown}", error)


def refuse_true_owner(name: str, shown: str) -> None:
    """Refuse an attribute by which fuse-overlayfs says whose an entry is, of which nothing is known here.

    Raises:
        ArchiveError: it is one.
    """
    if name in _TRUE_OWNERS:
        raise ArchiveError(
            f"{shown} has the attribute {name}, in which fuse-overlayfs keeps its true owner",
            hint="apply an archive that the hook has made: those have true owners",
        )


def _entry(change: Change, path: str) -> Entry:
    for name in change.attributes:
        refuse_true_owner(name, change.shown)
    entry = Entry(
        headers.HARD_LINK if change.link_to is not None else _TYPES[change.kind],
        path,
        link=change.link_to.text if change.link_to is not None else change.target,
        mode=change.mode,
        uid=change.uid,
        gid=change.gid,
        mtime_ns=change.mtime_ns,
        size=change.size if change.kind is FILE else 0,
        device=change.rdev,
    )
    # Too many to be held, they look like a dictionary.
    entry.attributes = cast("dict[str, bytes]", change.attributes)
    return entry
