"""What an upperdir holds, as a stream of changes in which nothing of overlayfs is left.

Where an upperdir only refers to a lower layer (a file of which the metadata alone were copied up, a
directory that was renamed), the stream has what is there: the change set stands on its own. The upperdir
was written by a container: every name in it, every link and every attribute may have been made to do harm.
It is walked by directory file descriptors, and nothing in it is written.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.overlay.attributes import NO_ATTRIBUTES, NO_MARKS, Marks, read_attributes
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    WHITEOUT,
    Change,
)
from archive_overlay.overlay.lowers import Directory, Lowers
from archive_overlay.system import tree
from archive_overlay.system.open_flags import LOOK, READ, READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from archive_overlay.log import Log
    from archive_overlay.overlay.dialect import Dialect
    from archive_overlay.overlay.lowers import Place
    from archive_overlay.overlay.mount import OverlayMount

_KINDS = {
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFREG: FILE,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
    stat.S_IFCHR: CHARACTER_DEVICE,
    stat.S_IFBLK: BLOCK_DEVICE,
}


def read_changes(
    overlay: OverlayMount, log: Log, *, deletions_first: bool = False
) -> Generator[Change, None, None]:
    """Read what the container changed, depth first.

    The root directory comes first, a directory before what is in it, names in the order of their code
    points, and of several names of one file the first carries it. Close the iterator if it is not read
    to its end.

    Args:
        overlay: what to read.
        log: takes warnings of what is left out.
        deletions_first: in each directory, give what was deleted before everything else.

    Raises:
        ArchiveError: something cannot be read, vanished, or does not stand on its own.
    """
    reader = _Reader(overlay, log, deletions_first)
    try:
        yield from reader.read()
    finally:
        reader.close()


class _Level:
    """A directory that is being read: what is still to come in it, and what is known of it."""

    __slots__ = (
        "complete",
        "directories",
        "lower",
        "names",
        "no_files",
        "node",
        "opaque",
        "others",
        "prefix",
        "whiteouts",
    )

    def __init__(self, prefix: str, node: Directory) -> None:
        self.prefix = prefix
        self.node = node
        self.opaque = False
        self.complete = False  # what lies below comes too, because in the archive it will not be below
        self.names: list[str] = []  # what is to come, last first
        self.directories: set[str] = set()
        self.others: set[str] = set()  # neither directories nor files
        self.lower: set[str] = set()  # not in the upperdir
        self.whiteouts: dict[str, str] = {}  # deleted name: the entry that says so
        self.no_files: set[str] = set()  # what is in one of these four


class _Reader:
    """The walk: one position, and what must be remembered on the way."""

    def __init__(self, overlay: OverlayMount, log: Log, deletions_first: bool) -> None:
        self._upper = overlay.upper
        self._dialect: Dialect = overlay.dialect
        self._log = log
        self._deletions_first = deletions_first
        self._lowers = Lowers(overlay)
        self._lower_owners = overlay.lower_owners
        self._first_names: dict[tuple[int, int], str] = {}
        self._file = -1
        try:
            top = tree.open_unseen(overlay.upper, READ_TOP_DIRECTORY)
        except OSError as error:
            fail(f"cannot read the upperdir {overlay.upper}", error)
        self._descent = tree.Descent(top)
        self._levels: list[_Level] = []
        self._only_below = 0  # how many of the levels, the last ones, have no directory in the upperdir

    def close(self) -> None:
        self._close_file()
        self._descent.close()

    def read(self) -> Generator[Change, None, None]:
        path = ""
        levels = self._levels
        try:
            yield self._upper_directory("", "", None)
            while levels:
                level = levels[-1]
                if not level.names:
                    path = level.prefix
                    self._leave()
                    continue
                name = level.names.pop()
                path = level.prefix + name
                if name not in level.no_files:  # first, because nearly all are files
                    yield self._upper_file(level, name, path)
                    self._close_file()
                elif name in level.whiteouts:
                    if not (level.opaque or level.complete):
                        yield self._whiteout(level, name)
                elif name in level.directories:
                    self._descent.enter(name)
                    yield self._upper_directory(level.prefix, name, level)
                elif name in level.others:
                    change = self._other(level, name)
                    # An opaque directory needs no whiteouts, and those in it would show up in listings.
                    if not (change.kind is WHITEOUT and (level.opaque or level.complete)):
                        yield change
                else:
                    below = self._from_below(level, name)
                    if below is not None:
                        if self._lower_owners:
                            self._lower_owners.apply(below)
                        yield below
                        self._close_file()
        except OSError as error:
            fail(f"cannot read {self._shown(path)}", error)

    def _leave(self) -> None:
        self._levels.pop()
        if self._only_below:
            self._only_below -= 1
        elif self._levels:
            os.close(self._descent.leave())

    def _upper_directory(self, prefix: str, name: str, parent: _Level | None) -> Change:
        """Give the directory at the walk's position, and list it."""
        fd = self._descent.fd
        status = os.fstat(fd)
        path = prefix + name
        attributes, marks = self._attributes(fd, path)
        node = Directory(parent.node if parent else None, name, redirect=marks.redirect, opaque=marks.opaque)
        level = _Level(path + "/" if name else "", node)
        level.opaque = marks.opaque
        with os.scandir(fd) as entries:
            for entry in entries:
                level.names.append(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    level.directories.add(entry.name)
                elif not entry.is_file(follow_symlinks=False):
                    level.others.add(entry.name)
        if self._dialect.whiteout_files:
            self._translate_whiteout_files(level)
        moved = bool(marks.redirect) and not marks.opaque
        if moved or (parent is not None and parent.complete):
            level.complete = True
            below = self._lowers.below(node)
            if moved and not below:
                raise ArchiveError(
                    f"{self._shown(path)} has its contents from {marks.redirect}, which is in no lower layer"
                )
            level.lower = self._lowers.names(below).difference(level.names)
            level.names.extend(level.lower)
        level.names.sort(reverse=True)
        level.no_files = level.directories.union(level.others, level.lower, level.whiteouts)
        if self._deletions_first and (level.others or level.whiteouts):
            level.names.sort(key=lambda name: self._is_deletion(level, name))
        self._levels.append(level)
        change = Change(DIRECTORY, prefix, name, status, attributes, opaque=level.opaque or moved)
        return self._with_true_owner(change, marks)

    def _translate_whiteout_files(self, level: _Level) -> None:
        """Take the entries out of a listing that only say something of others."""
        marks = [name for name in level.names if name.startswith(WHITEOUT_PREFIX)]
        if not marks:
            return
        level.opaque = level.opaque or OPAQUE_MARKER in marks
        level.whiteouts = {
            mark[len(WHITEOUT_PREFIX) :]: mark
            for mark in marks
            if mark not in (OPAQUE_MARKER, WHITEOUT_PREFIX)  # the latter deletes no name
        }
        entries = set(level.names).difference(marks)
        level.names = list(entries.union(level.whiteouts))

    def _is_deletion(self, level: _Level, name: str) -> bool:
        if name in level.whiteouts:
            return True
        if name not in level.others:
            return False
        status = os.lstat(name, dir_fd=self._descent.fd)
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def _upper_file(self, level: _Level, name: str, path: str) -> Change:
        fd = self._file = tree.open_unseen(name, READ, self._descent.fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError(f"{self._shown(path)} was replaced while it was read")
        if status.st_nlink > 1:
            link_to = self._first_name(status, path)
            if link_to is not None:
                return Change(FILE, level.prefix, name, status, NO_ATTRIBUTES, link_to=link_to)
        attributes, marks = self._attributes(fd, path)
        if marks is NO_MARKS and not self._dialect.owner_attribute:
            return Change(FILE, level.prefix, name, status, attributes, fd=fd)
        if marks.metacopy:
            data = self._lowers.data_of_metacopy(level.node, name, marks.redirect)
            self._close_file()
            fd = self._file = self._lowers.open_to_read(data)
        return self._with_true_owner(Change(FILE, level.prefix, name, status, attributes, fd=fd), marks)

    def _with_true_owner(self, change: Change, marks: Marks) -> Change:
        if self._dialect.owner_attribute:
            if marks.owner is None:
                raise ArchiveError(
                    f"{self._shown(change.path)} has no {self._dialect.owner_attribute} that says whose it is"
                )
            change.uid, change.gid, change.mode = marks.owner
        return change

    def _other(self, level: _Level, name: str) -> Change:
        """Give an entry that must not be opened: it is looked at through an O_PATH descriptor."""
        fd = os.open(name, LOOK, dir_fd=self._descent.fd)
        try:
            return self._special(fd, level.prefix, name)
        finally:
            os.close(fd)

    def _special(self, fd: int, prefix: str, name: str) -> Change:
        status = os.fstat(fd)
        path = prefix + name
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind is CHARACTER_DEVICE and status.st_rdev == 0:
            return Change(WHITEOUT, prefix, name, status, NO_ATTRIBUTES)
        if kind is DIRECTORY or kind is FILE:
            raise ArchiveError(f"{self._shown(path)} was replaced while it was read")
        target = os.readlink("", dir_fd=fd) if kind is SYMLINK else ""
        if status.st_nlink > 1:
            link_to = self._first_name(status, path)
            if link_to is not None:
                return Change(kind, prefix, name, status, NO_ATTRIBUTES, target=target, link_to=link_to)
        attributes, _ = self._attributes(f"/proc/self/fd/{fd}", path)
        return Change(kind, prefix, name, status, attributes, target=target)

    def _whiteout(self, level: _Level, name: str) -> Change:
        status = os.lstat(level.whiteouts[name], dir_fd=self._descent.fd)
        return Change(WHITEOUT, level.prefix, name, status, NO_ATTRIBUTES)

    def _from_below(self, level: _Level, name: str) -> Change | None:
        """Give an entry that the upperdir does not have; None if a lower layer deleted it."""
        found = self._lowers.find(level.node, name)
        if not found.places:
            return None
        place = found.places[0]
        fd = self._lowers.open(place, LOOK)
        try:
            if place.is_directory:
                return self._lower_directory(level, name, found.places, fd)
            if found.data is None or not stat.S_ISREG(place.status.st_mode):
                return self._special(fd, level.prefix, name)
            path = level.prefix + name
            if place.status.st_nlink > 1:
                link_to = self._first_name(place.status, path)
                if link_to is not None:
                    return Change(FILE, level.prefix, name, place.status, NO_ATTRIBUTES, link_to=link_to)
            attributes, _ = self._attributes(f"/proc/self/fd/{fd}", path)
            self._file = self._lowers.open_to_read(found.data)
            return Change(FILE, level.prefix, name, place.status, attributes, fd=self._file)
        finally:
            os.close(fd)

    def _lower_directory(self, parent: _Level, name: str, places: list[Place], fd: int) -> Change:
        path = parent.prefix + name
        attributes, _ = self._attributes(f"/proc/self/fd/{fd}", path)
        level = _Level(path + "/", Directory(parent.node, name, places=places))
        level.complete = True
        level.lower = self._lowers.names(places)
        level.names = sorted(level.lower, reverse=True)
        level.no_files = level.lower
        self._levels.append(level)
        self._only_below += 1
        return Change(DIRECTORY, parent.prefix, name, places[0].status, attributes)

    def _close_file(self) -> None:
        # Not there any more before it is closed: a signal in between must not have it closed twice.
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _first_name(self, status: os.stat_result, path: str) -> str | None:
        """Give the path under which a file with several names came before; None: this is the first."""
        key = (status.st_dev, status.st_ino)
        first = self._first_names.setdefault(key, path)
        return None if first is path else first

    def _attributes(self, file: int | str, path: str) -> tuple[dict[str, bytes], Marks]:
        try:
            names = os.listxattr(file)
        except OSError as error:
            fail(f"cannot list the extended attributes of {self._shown(path)}", error)
        if not names:
            return NO_ATTRIBUTES, NO_MARKS
        attributes, marks = read_attributes(file, names, self._shown(path), self._dialect, self._log)
        if marks.other_names:
            raise ArchiveError(
                f"{self._shown(path)} has other names in a lower layer, which show what was written to it but are"
                " not in the upperdir",
                hint="mount without index=on",
            )
        return attributes, marks

    def _shown(self, path: str) -> str:
        return os.path.join(self._upper, path) if path else self._upper
