"""Directory trees as values: what two trees must agree in for an archive to be right.

A `View` holds what an application sees of a tree, as far as "The oracle" of docs/design.md counts it.
Left out are inode and device numbers, atime, ctime, block counts, and the sizes and link counts of
directories.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Union

    Tree = Union[str, bytes, os.PathLike[str]]

# Labels belong to the host, not to a tree.
HOST_ATTRIBUTES = ("security.selinux",)

WHITEOUT = "whiteout"

TOP = b"."

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Entry:
    """One name of a tree.

    Attributes:
        kind: "file", "directory", "symlink" and so on; `WHITEOUT`: a character device 0:0, which says that
            the name was deleted, and of which nothing else counts.
        mode: permissions with set-user-ID, set-group-ID and sticky bits; 0o777 of a symlink.
        mtime_ns: nanoseconds since 1970, negative before.
        content: SHA-256 of a file's data with its size, or a symlink's target; empty for others.
        device: major and minor number of a device node.
        attributes: extended attributes by name, sorted.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)
    attributes: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class View:
    """A whole tree.

    Attributes:
        entries: what each name is, by its path relative to the tree; the tree itself is `TOP`.
        links: the groups of two or more names that are one file.
    """

    entries: Mapping[bytes, Entry]
    links: frozenset[frozenset[bytes]]

    def linked_among(self, linkable: set[bytes]) -> View:
        """Give the view with those links only that are between these names."""
        links = (group & linkable for group in self.links)
        return View(self.entries, frozenset(group for group in links if len(group) > 1))


def view(tree: Tree, *, bookkeeping: tuple[str, ...] = (), linkable: set[bytes] | None = None) -> View:
    """Read a tree.

    A name that a listing shows and that cannot be looked up counts as absent: a whiteout in an opaque
    directory looks like that in a merged view.

    Args:
        tree: the directory; a mount point of an overlay or an ordinary one.
        bookkeeping: prefixes of extended attributes by which an overlay keeps its books.
        linkable: the names among which `View.links` looks for one file under several names: those of
            the change set, whose hard links count. None: all names.
    """
    entries: dict[bytes, Entry] = {}
    names: dict[tuple[int, int], set[bytes]] = {}
    for path, fd, status in _walk(tree):
        entries[path] = _read(fd, status, bookkeeping)
        if entries[path].kind in ("directory", WHITEOUT):
            continue
        if linkable is None or path in linkable:
            names.setdefault((status.st_dev, status.st_ino), set()).add(path)
    links = frozenset(frozenset(group) for group in names.values() if len(group) > 1)
    return View(entries, links)


def without(seen: View, kind: str) -> View:
    """Give the view without entries of one kind: "socket", for formats that have none."""
    gone = {path for path, entry in seen.entries.items() if entry.kind == kind}
    links = (group - gone for group in seen.links)
    return View(
        {path: entry for path, entry in seen.entries.items() if path not in gone},
        frozenset(group for group in links if len(group) > 1),
    )


def differences(first: View, second: View) -> list[str]:
    """Say in a line each what tells two views apart; no line: they are equal."""
    lines = []
    for path in sorted(first.entries.keys() | second.entries.keys()):
        one, other = first.entries.get(path), second.entries.get(path)
        if one is None or other is None:
            lines.append(f"{path!r}: only in the {'second' if one is None else 'first'} tree")
        elif one.kind != other.kind:
            lines.append(f"{path!r}: {one.kind} != {other.kind}")
        else:
            lines += [f"{path!r}: {difference}" for difference in _entry_differences(one, other)]
    for group in sorted(map(sorted, first.links - second.links)):
        lines.append(f"one file in the first tree only: {group!r}")
    for group in sorted(map(sorted, second.links - first.links)):
        lines.append(f"one file in the second tree only: {group!r}")
    return lines


def traces(tree: Tree) -> dict[bytes, tuple[int, int]]:
    """Give each name's atime and ctime in nanoseconds, without changing any.

    Of symlinks the atime is left out: reading a target sets it, and no flag prevents that.
    """
    found = {}
    for path, _, status in _walk(tree):
        atime = 0 if stat.S_ISLNK(status.st_mode) else status.st_atime_ns
        found[path] = (atime, status.st_ctime_ns)
    return found


def names(tree: Tree) -> set[bytes]:
    """Give all paths of a tree, whiteouts excepted."""
    return {path for path, entry in view(tree).entries.items() if entry.kind != WHITEOUT}


def _entry_differences(one: Entry, other: Entry) -> Iterator[str]:
    if one.mode != other.mode:
        yield f"mode {one.mode:#o} != {other.mode:#o}"
    if (one.uid, one.gid) != (other.uid, other.gid):
        yield f"owner {one.uid}:{one.gid} != {other.uid}:{other.gid}"
    if one.mtime_ns != other.mtime_ns:
        yield f"mtime {one.mtime_ns} ns != {other.mtime_ns} ns"
    if one.content != other.content:
        yield f"{'target' if one.kind == 'symlink' else 'content'} {one.content!r} != {other.content!r}"
    if one.device != other.device:
        yield f"device {one.device} != {other.device}"
    ours, theirs = dict(one.attributes), dict(other.attributes)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"attribute {name}: {ours.get(name)!r} != {theirs.get(name)!r}"


def _read(fd: int, status: os.stat_result, bookkeeping: tuple[str, ...]) -> Entry:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    content, device = b"", (0, 0)
    if kind == "file":
        content = _digest(fd)
    elif kind == "symlink":
        content = os.readlink(b"", dir_fd=fd)
    elif kind.endswith("device"):
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        if kind == "character device" and device == (0, 0):
            return Entry(WHITEOUT, 0, 0, 0, 0)
    return Entry(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        content,
        device,
        tuple(_attributes(fd, bookkeeping)),
    )


def _digest(fd: int) -> bytes:
    digest, size = hashlib.sha256(), 0
    data = _reopen(fd, os.O_RDONLY)
    try:
        while block := os.read(data, 1 << 16):
            digest.update(block)
            size += len(block)
    finally:
        os.close(data)
    return b"%d bytes %s" % (size, digest.hexdigest()[:16].encode())


def _attributes(fd: int, bookkeeping: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    # The fd is opened with O_PATH, for which only the way through /proc works; it leads to the entry
    # itself, also if that is a symlink.
    path = f"/proc/self/fd/{fd}"
    for name in sorted(os.listxattr(path)):
        if name not in HOST_ATTRIBUTES and not name.startswith(bookkeeping):
            yield name, os.getxattr(path, name)


def _walk(tree: Tree) -> Iterator[tuple[bytes, int, os.stat_result]]:
    """Visit each entry as its path, an O_PATH file descriptor, valid until the next one, and its status.

    One descriptor for a directory is open at a time, whatever the depth, and no path is used that
    could be too long for the system.
    """
    fd = os.open(tree, _DIRECTORY)
    fd = _replaced(fd, _reopen(fd, _DIRECTORY))
    yield TOP, fd, os.stat(fd)
    pending = [sorted(os.listdir(fd), reverse=True)]
    path: list[bytes] = []
    try:
        while pending:
            if not pending[-1]:
                pending.pop()
                if path:
                    path.pop()
                    fd = _replaced(fd, os.open("..", _DIRECTORY, dir_fd=fd))
                continue
            name = os.fsencode(pending[-1].pop())
            try:
                entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except FileNotFoundError:
                continue
            try:
                status = os.stat(entry)
                yield b"/".join([*path, name]), entry, status
                if stat.S_ISDIR(status.st_mode):
                    fd = _replaced(fd, _reopen(entry, _DIRECTORY))
                    path.append(name)
                    pending.append(sorted(os.listdir(fd), reverse=True))
            finally:
                os.close(entry)
    finally:
        os.close(fd)


def _replaced(old: int, new: int) -> int:
    os.close(old)
    return new


def _reopen(fd: int, flags: int) -> int:
    path, flags = f"/proc/self/fd/{fd}", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Reading must leave no trace: some tests compare access times.
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)
