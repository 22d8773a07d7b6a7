"""One entry of a change set.

It holds what archives of all forms store of the entry. Of overlayfs, it only says that a name was deleted, or that a
directory hides what lies below.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol, Union

    Attributes = Union[dict[str, bytes], "LargeAttributes"]

    class Selected(Protocol):
        """What is archived of a directory. See `selection.Selected`."""

        def has(self, name: str) -> bool:
            """Say whether what has a name in it is archived itself."""

        def leads(self, name: str) -> bool:
            """Say whether something in a directory of a name in it may be, though it is not itself."""

        def inside(self, name: str) -> Selected:
            """Say what is archived of a directory that has a name in it."""


DIRECTORY = "directory"
FILE = "file"
SYMLINK = "symbolic link"
FIFO = "FIFO"
SOCKET = "socket"
CHARACTER_DEVICE = "character device"
BLOCK_DEVICE = "block device"
WHITEOUT = "whiteout"

KINDS = {
    kind: kind for kind in (DIRECTORY, FILE, SYMLINK, FIFO, SOCKET, CHARACTER_DEVICE, BLOCK_DEVICE, WHITEOUT)
}


# A path's text is kept up to this many characters. A longer one is made again whenever it is needed.
_LONGEST_KEPT = 1024
_SHOWN_NAMES = 32  # from the top, and from the other end


class TreePath:
    """A path below the root of a tree, as a name and the path of the directory that it is in.

    A container can make directories thousands deep. The texts of all their paths would take memory that grows with the
    square of the depth.

    Args:
        parent: path of the directory that it is in; None for the root of the tree.
        name: its name there; "" for the root. It may have slashes, if nobody asks for what is above it.

    Attributes:
        parent, name: see there.
        depth: how many paths are above it.
    """

    __slots__ = ("_prefix", "depth", "name", "parent")

    def __init__(self, parent: TreePath | None, name: str) -> None:
        self.parent = parent
        self.name = name
        self.depth: int = parent.depth + 1 if parent else 0
        self._prefix: str | None = None if parent else ""

    @property
    def prefix(self) -> str:
        """What the paths of a directory's entries begin with: "" or "a/b/"."""
        prefix = self._prefix
        if prefix is None:
            prefix = f"{self.text}/"
            if len(prefix) <= _LONGEST_KEPT:
                self._prefix = prefix
        return prefix

    @property
    def text(self) -> str:
        """The whole path, with slashes; "" for the root. It is made anew each time: no one should keep it."""
        names = []
        path = self
        while path._prefix is None:  # the root has one
            names.append(path.name)
            assert path.parent
            path = path.parent
        if not names:
            return path._prefix[:-1]
        names.reverse()
        return path._prefix + "/".join(names)

    @property
    def shown(self) -> str:
        """The path for messages, "." for the root; a very deep one without its middle."""
        names = []
        path = self
        while path.parent:
            names.append(path.name)
            path = path.parent
        names.reverse()
        if len(names) > 2 * _SHOWN_NAMES:
            names[_SHOWN_NAMES:-_SHOWN_NAMES] = ["[...]"]
        return "/".join(names) or "."

    @property
    def length(self) -> int:
        """How many characters the prefix has, without making it."""
        length = 0
        path: TreePath | None = self
        while path is not None:
            length += len(path.name) + 1
            path = path.parent
        return length - 1

    def forget(self) -> None:
        """Drop the kept text: the walk has left the directory."""
        if self.parent:
            self._prefix = None


TOP = TreePath(None, "")


class LargeAttributes:
    """Attributes of one entry that are too large for memory: each is read when it is asked for.

    Use it as a dictionary. A value that is put into it replaces the entry's own.

    Args:
        fd: of the entry, at least for looking at it. It must stay open as long as attributes are asked for.
        sizes: how long the value of each attribute is, by its full name.
        replaced: what has been put into it.
        path: the entry's, for messages.

    Attributes:
        fd, sizes, replaced: see there.
    """

    __slots__ = ("_path", "fd", "replaced", "sizes")

    def __init__(self, fd: int, sizes: dict[str, int], replaced: dict[str, bytes], path: TreePath) -> None:
        self.fd = fd
        self.sizes = sizes
        self.replaced = replaced
        self._path = path

    def __len__(self) -> int:
        return len(self.sizes)

    def __contains__(self, name: str) -> bool:
        return name in self.sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __getitem__(self, name: str) -> bytes:
        if name in self.replaced:
            return self.replaced[name]
        try:
            value = os.getxattr(f"/proc/self/fd/{self.fd}", name)
        except OSError as error:
            fail(f"cannot read the extended attribute {name} of {self._path.shown}", error)
        if len(value) != self.sizes[name]:
            raise ArchiveError(
                f"the extended attribute {name} of {self._path.shown} changed while it was read"
            )
        return value

    def __setitem__(self, name: str, value: bytes) -> None:
        self.sizes[name] = len(value)
        self.replaced[name] = value

    def __delitem__(self, name: str) -> None:
        del self.sizes[name]
        self.replaced.pop(name, None)

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield names and values, one after the other.

        Raises:
            ArchiveError: one cannot be read, or is not as long as it was.
        """
        for name in list(self.sizes):
            yield name, self[name]


class Change:
    """One entry of a change set.

    Attributes:
        kind: one of the constants of this module; WHITEOUT: the name was deleted.
        directory: path of the directory it is in; `TOP` for the root's entries, and for the root itself. Where changes
            come depth first, its depth alone says which of the directories above it that is.
        name: its name there; "" for the change set's root directory.
        mode: permission bits.
        uid, gid: owner.
        atime_ns, mtime_ns: times in nanoseconds since 1970.
        size: of a file, in bytes.
        rdev: of a device.
        attributes: extended attributes, by full name. If there is much of them, they are read when they are asked
            for, and only until the next change is taken.
        opaque: of a directory: it hides what lies below.
        target: of a symbolic link.
        shared: a number of the file's own, from 1 on, if it has several names; 0: it has not, or nobody looked.
        link_to: path of an earlier change that is the same file, or None.
        fd: of a file that is no link: open for reading, at the start, until the next change is taken.
            -1 otherwise, and if the data are at hand.
        data: of a file, all that is in it, if another process has read it already; None otherwise.
        pieces: of a file that is read from a layer, if it is large: its data, once, each piece with the offset that it
            belongs at; what is in between is zeros. None otherwise.
        sparse: whether the file may have holes.
        implicit: of a directory: its layer does not list it, but has something in it, so that what else is known of it
            comes from elsewhere: from lower layers, if they have it.
        selected: of a directory of an upperdir: what is archived of it; None: all of it.
    """

    # What few entries have. Each value that an entry must be given costs time, twice where another process writes it.
    rdev = 0
    opaque = False
    target = ""
    shared = 0
    link_to: TreePath | None = None
    fd = -1
    data: bytes | None = None
    pieces: Iterator[tuple[int, bytes]] | None = None
    implicit = False
    selected: Selected | None = None

    def __init__(
        self,
        kind: str,
        directory: TreePath,
        name: str,
        status: os.stat_result,
        attributes: Attributes,
        *,
        opaque: bool = False,
        target: str = "",
        shared: int = 0,
        link_to: TreePath | None = None,
        fd: int = -1,
    ) -> None:
        self.kind = kind
        self.directory = directory
        self.name = name
        mode, _, _, _, self.uid, self.gid, size = status[:7]
        self.mode = mode & 0o7777
        self.atime_ns = status.st_atime_ns
        self.mtime_ns = status.st_mtime_ns
        self.size = size
        self.attributes = attributes
        # In units of 512 bytes, whatever the block size (stat(2)).
        self.sparse = status.st_blocks * 512 < size
        if kind is FILE:
            self.fd = fd
        else:
            self.rdev = status.st_rdev
            self.opaque = opaque
            self.target = target
        if shared:
            self.shared = shared
            self.link_to = link_to

    @property
    def path(self) -> str:
        """Path from the root of the change set; "" for the root itself. No one should keep it."""
        directory = self.directory
        prefix = directory._prefix  # asked for so often that a property shows
        return (directory.prefix if prefix is None else prefix) + self.name

    @property
    def shown(self) -> str:
        """The path for messages; see `TreePath.shown`."""
        return (TreePath(self.directory, self.name) if self.name else self.directory).shown

    def contents(self) -> bytes:
        """Return all data of a small file.

        Raises:
            ArchiveError: they cannot be read, or are not as many as they should be.
        """
        data = self.data
        if data is None:
            try:
                # One byte more than there should be, so that a file that has grown is noticed.
                data = os.read(self.fd, self.size + 1)
            except OSError as error:
                fail(f"cannot read {self.shown}", error)
        if len(data) != self.size:
            raise self.changed()
        return data

    def changed(self) -> ArchiveError:
        """Return the error for a file whose size has changed."""
        return ArchiveError(f"{self.shown} changed its size while it was read")


def file_change(
    directory: TreePath, name: str, status: os.stat_result, attributes: Attributes, shared: int, fd: int
) -> Change:
    """Make a `Change` of a file that is no link. Nearly all are, and a class is slow to call."""
    change = Change.__new__(Change)
    mode, _, _, _, change.uid, change.gid, size = status[:7]
    change.kind = FILE
    change.directory = directory
    change.name = name
    change.mode = mode & 0o7777
    change.atime_ns = status.st_atime_ns
    change.mtime_ns = status.st_mtime_ns
    change.size = size
    change.attributes = attributes
    change.sparse = status.st_blocks * 512 < size
    change.fd = fd
    if shared:
        change.shared = shared
    return change


class Allowance:
    """How many bytes of one archive may still be written, before compression.

    Args:
        most: in all; None: any number.
    """

    __slots__ = ("_left", "_most")

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._left = 0 if most is None else most

    def expect(self, count: int) -> None:
        """Refuse bytes beyond the limit before the first one is written.

        Args:
            count: how many more bytes there will be.

        Raises:
            ArchiveError: that is more than allowed.
        """
        if self._most is not None and count > self._left:
            raise ArchiveError(f"the archive has more than {self._most} bytes, the most that is allowed")

    def take(self, count: int) -> None:
        """Count bytes that are about to be written.

        Raises:
            ArchiveError: they are more than allowed.
        """
        self.expect(count)
        self._left -= count
