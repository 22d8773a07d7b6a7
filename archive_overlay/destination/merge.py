"""One change set stacked on another, in place: each entry whole, at every moment.

The newer one was written into staging before, so nothing but renaming is left to do: a full disk or a broken source is
found out while the destination is still untouched. `overlay.compose.at_one_name` says what becomes of each name.

The order keeps two promises. A directory's entries come before its own metadata, and a mark that hides what lies below is
set before the directory is placed, and never taken from it: so nothing that was deleted shows at any moment. And whatever
a killed run has left, composing the newer one with that comes to the same as before: so the next run goes on.
"""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.marks import TRUSTED_OPAQUE, USER_OPAQUE
from archive_overlay.overlay import compose
from archive_overlay.system import kernel, metadata, signals
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.record import Record
from archive_overlay.system.tree import Descent, open_up, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Marks(Protocol):
        """How a tree says what is deleted, and which directories hide what lies below."""

        def is_whiteout(self, name: str, directory: int, status: os.stat_result) -> bool:
            """Return whether an entry deletes its name. It is never a regular file.

            Args:
                name: of the entry.
                directory: file descriptor of the directory that it is in.
                status: of the entry itself.
            """

        def hides(self, opaque: tuple[str, ...]) -> bool:
            """Return whether a directory with some attributes of those that `opaque` gives hides what lies below."""

        def opaque(self, name: str, directory: int) -> tuple[str, ...]:
            """Return the attributes by which overlays take a directory to hide what lies below.

            Args:
                name: of the directory.
                directory: file descriptor of the directory that it is in.

            Raises:
                OSError: they cannot be read.
            """

        def make_opaque(self, name: str, directory: int) -> None:
            """Have a directory hide what lies below. See `opaque`."""


# Beside the archive in the staging directory.
_ASIDE = "aside"


class OverlayMarks(Record):
    """The native marks of overlays, those that overlays of ordinary users have among them.

    A container of root's can set the attribute of those, which says nothing under the overlay that it has: then it must not
    be believed either, for it would hide what the older one has deleted below. It stays where it is.

    Attributes:
        attribute: the one that makes a directory opaque from now on.
    """

    attribute: str

    def is_whiteout(self, name: str, directory: int, status: os.stat_result) -> bool:
        """See `Marks`."""
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def hides(self, opaque: tuple[str, ...]) -> bool:
        """See `Marks`."""
        return TRUSTED_OPAQUE in opaque or (bool(opaque) and self.attribute != TRUSTED_OPAQUE)

    def opaque(self, name: str, directory: int) -> tuple[str, ...]:
        """See `Marks`."""
        path = f"/proc/self/fd/{directory}/{name}"
        return tuple(
            attribute
            for attribute in os.listxattr(path, follow_symlinks=False)
            if attribute in (TRUSTED_OPAQUE, USER_OPAQUE)
            and os.getxattr(path, attribute, follow_symlinks=False) == b"y"
        )

    def make_opaque(self, name: str, directory: int) -> None:
        """See `Marks`."""
        os.setxattr(f"/proc/self/fd/{directory}/{name}", self.attribute, b"y", follow_symlinks=False)


def merge(
    name: str, directory: int, onto: str, onto_directory: int, marks: Marks, *, covered: bool = False
) -> bool:
    """Stack the contents of one directory on another, and give that the first one's metadata.

    Args:
        name: the newer one. What is replaced may be left in it, or beside it.
        directory: file descriptor of the directory that it is in, the staging directory.
        onto: the older one, on the same file system.
        onto_directory: file descriptor of the directory that one is in.
        marks: what both have.
        covered: nothing lies below the older one, so whiteouts are carried out, and no mark is left.

    Returns:
        Whether each name was replaced in one step. If not, names could not be exchanged or directories not renamed here,
        and for a moment nothing was at one of them, or a part of it.

    Raises:
        OSError: an entry could not be placed; it and those that come later are as they were.
    """
    source = Descent(os.open(name, READ_DIRECTORY, dir_fd=directory))
    try:
        target = Descent(os.open(onto, READ_DIRECTORY, dir_fd=onto_directory))
        try:
            return _Merge(source, target, directory, marks).run(covered=covered)
        finally:
            target.close()
    finally:
        source.close()


class _Level:
    """A directory that both have.

    Attributes:
        names: what is to come of the newer one, last first.
        status: of the newer one, before moving entries out of it changed its time.
        kept: attributes by which the older one hides what lies below.
        covered: something hides what lies below, here or further up.
    """

    __slots__ = ("covered", "kept", "names", "status")

    def __init__(self, source: int, status: os.stat_result, kept: tuple[str, ...], *, covered: bool) -> None:
        self.names = os.listdir(source)
        self.names.sort(reverse=True)
        self.status = status
        self.kept = kept
        self.covered = covered


class _Merge:
    def __init__(self, source: Descent, target: Descent, staging: int, marks: Marks) -> None:
        self._source = source
        self._target = target
        self._staging = staging
        self._marks = marks
        self._in_one_step = True
        # The newer one hides all that the older one has. The top cannot be exchanged, so its entries are.
        self._hides = marks.hides(marks.opaque(".", source.fd))

    def run(self, *, covered: bool) -> bool:
        """Do it. See `merge`."""
        source, target = self._source, self._target
        if self._hides and not covered:
            self._marks.make_opaque(".", target.fd)
        top_opaque = self._marks.opaque(".", target.fd)
        covered = covered or self._marks.hides(top_opaque)
        levels = [_Level(source.fd, os.fstat(source.fd), top_opaque, covered=covered)]
        names = {*levels[0].names}
        while True:
            level = levels[-1]
            if level.names:
                name = level.names.pop()
                if self._place(name, covered=level.covered):
                    kept = self._marks.opaque(name, target.fd)
                    status = os.lstat(name, dir_fd=source.fd)
                    for directory in (source, target):
                        open_up(name, directory.fd)
                        directory.enter(name)
                    covered = level.covered or self._marks.hides(kept)
                    levels.append(_Level(source.fd, status, kept, covered=covered))
                continue
            levels.pop()
            if not levels:
                if self._hides:
                    self._remove_but(names)
                metadata.replace(target.fd, source.fd, level.status, keep=level.kept)
                return self._in_one_step
            emptied = source.leave()
            try:
                filled = target.leave()
                try:
                    metadata.replace(filled, emptied, level.status, keep=level.kept)
                finally:
                    os.close(filled)
            finally:
                os.close(emptied)

    def _remove_but(self, names: set[str]) -> None:
        """Remove all entries at the top of the older one but some."""
        target = self._target.fd
        staging = os.fstat(self._staging)  # in a mount point it is one of them
        for name in os.listdir(target):
            if name not in names and not os.path.samestat(os.lstat(name, dir_fd=target), staging):
                remove(_ASIDE, self._staging)
                self._take_away(name, _ASIDE, self._staging)

    def _place(self, name: str, *, covered: bool) -> bool:
        """Put an entry in its place, and say whether it is a directory that must be merged instead."""
        source, target = self._source.fd, self._target.fd
        status = os.lstat(name, dir_fd=source)
        try:
            found = os.lstat(name, dir_fd=target)
        except FileNotFoundError:
            found = None
        older = compose.NOTHING if found is None or self._hides else _kind(found)
        newer = self._kind(name, status)
        result = compose.at_one_name(older, newer, covered=covered)
        if result is compose.MERGED:
            return True
        if result is compose.NOTHING:
            os.unlink(name, dir_fd=source)
            if found is not None:
                self._take_away(name, name, source)
            return False
        if result is compose.NEWER_OPAQUE:
            self._marks.make_opaque(name, source)
        if stat.S_ISDIR(status.st_mode) and (covered or result is compose.NEWER_OPAQUE):
            self._remove_whiteouts(name)
        closed = open_up(name, source) if stat.S_ISDIR(status.st_mode) else None
        if closed is not None:
            self._place_closed(name, closed, found)
        else:
            self._put(name, status, found)
        return False

    def _place_closed(self, name: str, mode: int, found: os.stat_result | None) -> None:
        """Put a directory in its place and give it a mode there, whatever others put there at once."""
        fd = os.open(name, READ_DIRECTORY, dir_fd=self._source.fd)
        try:
            self._put(name, os.fstat(fd), found)
            os.chmod(fd, mode)
        finally:
            os.close(fd)

    def _put(self, name: str, status: os.stat_result, found: os.stat_result | None) -> None:
        # rename(2) replaces what is no directory, and nothing but that.
        if found is None or not (stat.S_ISDIR(found.st_mode) or stat.S_ISDIR(status.st_mode)):
            os.rename(name, name, src_dir_fd=self._source.fd, dst_dir_fd=self._target.fd)
        else:
            self._exchange(name)

    def _kind(self, name: str, status: os.stat_result) -> str:
        if self._marks.is_whiteout(name, self._source.fd, status):
            return compose.DELETED
        kind = _kind(status)
        if kind is compose.PLAIN and self._marks.hides(self._marks.opaque(name, self._source.fd)):
            return compose.OPAQUE
        return kind

    def _exchange(self, name: str) -> None:
        open_up(name, self._target.fd)
        try:
            kernel.exchange(name, self._source.fd, name, self._target.fd)
        except kernel.CannotExchangeError:
            self._in_one_step = False
            remove(_ASIDE, self._staging)
            with signals.HeldOff():
                taken = self._take_away(name, _ASIDE, self._staging)
                try:
                    os.rename(name, name, src_dir_fd=self._source.fd, dst_dir_fd=self._target.fd)
                except OSError:
                    if taken:
                        # Without it nobody would know that it hid what lies below.
                        os.rename(_ASIDE, name, src_dir_fd=self._staging, dst_dir_fd=self._target.fd)
                    raise

    def _take_away(self, name: str, new_name: str, directory: int) -> bool:
        """Move what the older one has at a name into staging; False: it had to be removed instead."""
        open_up(name, self._target.fd)
        try:
            os.rename(name, new_name, src_dir_fd=self._target.fd, dst_dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # An overlay does not rename a directory that a lower layer of it has.
            self._in_one_step = False
            remove(name, self._target.fd)
            return False
        return True

    def _remove_whiteouts(self, name: str) -> None:
        """Remove the whiteouts below a directory that is going to hide what lies below: listings would show them."""
        modes = [open_up(name, self._source.fd)]
        descent = Descent(os.open(name, READ_DIRECTORY, dir_fd=self._source.fd))
        try:
            pending = [self._remove_whiteouts_here(descent.fd)]
            while pending:
                if pending[-1]:
                    inner = pending[-1].pop()
                    modes.append(open_up(inner, descent.fd))
                    descent.enter(inner)
                    pending.append(self._remove_whiteouts_here(descent.fd))
                    continue
                pending.pop()
                mode = modes.pop()
                if mode is not None:
                    os.chmod(descent.fd, mode)
                if pending:
                    os.close(descent.leave())
        finally:
            descent.close()

    def _remove_whiteouts_here(self, directory: int) -> list[str]:
        """Remove those in one directory; give the directories in it."""
        directories = []
        before = os.fstat(directory)
        removed = False
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                elif not entry.is_file(follow_symlinks=False) and self._marks.is_whiteout(
                    entry.name, directory, entry.stat(follow_symlinks=False)
                ):
                    os.unlink(entry.name, dir_fd=directory)
                    removed = True
        if removed:
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
        return directories


def _kind(status: os.stat_result) -> str:
    return compose.PLAIN if stat.S_ISDIR(status.st_mode) else compose.OTHER
