"""What a tar holds, as changes: its entries, and what its marks say of deletions and opaque directories.

Source: OCI image specification, layer.md, "Whiteouts"; the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
from array import array

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    TOP,
    WHITEOUT,
    Change,
    TreePath,
)
from archive_overlay.system.record import Record
from archive_overlay.tar import headers
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.tar.reader import TarReader

_KINDS = {
    headers.REGULAR: FILE,
    headers.HARD_LINK: FILE,
    headers.SYMLINK: SYMLINK,
    headers.CHARACTER_DEVICE: CHARACTER_DEVICE,
    headers.BLOCK_DEVICE: BLOCK_DEVICE,
    headers.DIRECTORY: DIRECTORY,
    headers.FIFO: FIFO,
}


class Form(Record):
    """Which marks a tar has.

    Attributes:
        whiteout_files: whether `.wh.NAME` deletes NAME and `.wh..wh..opq` makes a directory opaque.
        whiteout_devices: whether a 0:0 device deletes its name.
        opaque_attributes: extended attributes that make a directory opaque when they are "y".
    """

    whiteout_files: bool
    whiteout_devices: bool
    opaque_attributes: tuple[str, ...]


# Directories, one in the other: for each that is open, an extraction remembers what it is to have.
_DEEPEST = 64 * 1024
_FEWEST_SLOTS = 1 << 10
_ALL_BITS = 2**64 - 1
# What is remembered of a path.
_OPAQUE = 1
_DIRECTORY_ENTRY = 2  # it has one of its own, or has been given
_LINKABLE = {
    4: SYMLINK,
    8: FIFO,
    16: CHARACTER_DEVICE,
    32: BLOCK_DEVICE,
    64: WHITEOUT,
}  # what a hard link may be besides a file
_STRAY_MARKS = 128  # marks of layers are in it, and it has no entry before them
_NOT_A_DIRECTORY = 256  # and it is something else, in which they mean nothing
_HAS_ENTRIES = 512
_LINKED = 1024  # a hard link leads to it
_LINKABLE_MARKS = {kind: mark for mark, kind in _LINKABLE.items()}

LAYER = Form(whiteout_files=True, whiteout_devices=False, opaque_attributes=())


def read_marks(tar: TarReader, form: Form) -> Marks:
    """Read a tar to its end, because a mark may come after what it is about, and damage at the end.

    Args:
        tar: at its start.
        form: which marks count.

    Raises:
        ArchiveError: it is not a tar, is damaged, or an entry leads out of the top.
        OSError: it cannot be read.
    """
    marks = Marks()
    last: list[str] = []
    for entry in tar.entries():
        parts = split_path(entry.name)
        above = parts[:-1]
        if above != last:
            marks.add("/".join(above), _HAS_ENTRIES)
            last = above
        if form.whiteout_files and parts and parts[-1].startswith(WHITEOUT_PREFIX):
            directory = "/".join(parts[:-1])
            if parts[-1] == OPAQUE_MARKER:
                marks.add(directory, _OPAQUE)
            if directory and not marks.has(directory, _DIRECTORY_ENTRY):
                marks.stray = True
                marks.add(directory, _STRAY_MARKS)
            # In a tar of anybody, a container may have made a file with that name.
            if not form.whiteout_devices:
                whiteout_of(parts[-1], entry.name)
        elif entry.type == headers.DIRECTORY:
            opaque = any(entry.attributes.get(attribute) == b"y" for attribute in form.opaque_attributes)
            marks.add("/".join(parts), _DIRECTORY_ENTRY | (_OPAQUE if opaque else 0))
        else:
            if entry.type == headers.HARD_LINK:
                marks.add("/".join(split_link(entry.link)), _LINKED)
            if marks.stray:
                _note_what_is_no_directory(marks, entry, "/".join(parts))
    return marks


def read_changes(tar: TarReader, form: Form, marks: Marks) -> Iterator[Change]:
    """Read a tar once more, as changes.

    Args:
        tar: at its start again.
        form: which marks count.
        marks: what `read_marks` found in it.

    Returns:
        Its changes, in its order, without data and without extended attributes, of which each entry may have 16 MiB.
        An opaque directory that has no entry of its own comes where its mark is. A later entry of the same name does
        not replace an earlier one.

    Raises:
        ArchiveError: see `read_marks`.
        OSError: it cannot be read.
    """
    first_names: dict[int, TreePath] = {}  # of links that other links lead to
    for entry in tar.entries():
        parts = split_path(entry.name)
        name = parts.pop() if parts else ""
        directory = "/".join(parts)
        if form.whiteout_files and name.startswith(WHITEOUT_PREFIX):
            if marks.has(directory, _NOT_A_DIRECTORY):
                continue
            if name == OPAQUE_MARKER and not marks.has(directory, _DIRECTORY_ENTRY):
                marks.add(directory, _DIRECTORY_ENTRY)
                above, _, name = directory.rpartition("/")
                made = Entry(headers.DIRECTORY, directory)
                change = _change(DIRECTORY, made, above, name)
                change.opaque = True
                yield change
            elif name != OPAQUE_MARKER:  # whatever it is: that is how readers of layers take it
                yield _change(WHITEOUT, entry, directory, name[len(WHITEOUT_PREFIX) :])
            continue
        if marks.stray and entry.type != headers.DIRECTORY:
            _note_what_is_no_directory(marks, entry, f"{directory}/{name}" if directory else name)
        change = _change(_KINDS[entry.type], entry, directory, name)
        if form.whiteout_devices and entry.type == headers.CHARACTER_DEVICE and not entry.device:
            change.kind = WHITEOUT
            marks.add(change.path, _LINKABLE_MARKS[WHITEOUT])
            yield change
            continue
        if change.kind is DIRECTORY:
            change.opaque = marks.has(change.path, _OPAQUE)
        elif entry.type == headers.HARD_LINK:
            link_to = "/".join(split_link(entry.link))
            change.kind = next(
                (kind for mark, kind in _LINKABLE.items() if marks.has(link_to, mark)), change.kind
            )
            # Deletions of an upperdir are one file, and most programs that make tars have links for that.
            if change.kind is WHITEOUT:
                marks.add(change.path, _LINKABLE_MARKS[WHITEOUT])
            else:
                change.link_to = first_names.get(_hash(link_to)) or TreePath(TOP, link_to)
                if marks.has(change.path, _LINKED):
                    first_names[_hash(change.path)] = change.link_to
        elif change.kind is not FILE:
            change.target = entry.link if change.kind is SYMLINK else ""
            marks.add(change.path, _LINKABLE_MARKS[change.kind])
        yield change


def whiteout_of(mark: str, path: str) -> str:
    """Return the name that an entry deletes.

    Args:
        mark: the entry's name, which begins with `WHITEOUT_PREFIX`.
        path: the entry's, for messages.

    Raises:
        ArchiveError: nothing can have that name.
    """
    name = mark[len(WHITEOUT_PREFIX) :]
    if name in ("", ".", ".."):
        raise ArchiveError(f"{brief(path)} is a whiteout without a valid name")
    return name


def split_path(name: str) -> list[str]:
    """Split the path of an entry, which is relative to the top however it begins.

    What is before a `..` need not exist, and may be a link: others that read layers do not look at it either.

    Raises:
        ArchiveError: it leads out of the top, or is no path.
    """
    parts, leads_out = _split(name)
    if leads_out:
        raise ArchiveError(f"{brief(name)!r} leads out of the image's root directory")
    return parts


def split_link(target: str) -> list[str]:
    """Split the path that a hard link has. In the top, `..` is the top: so it is in all programs that read tars.

    Raises:
        ArchiveError: it is no path.
    """
    return _split(target)[0]


def _split(name: str) -> tuple[list[str], bool]:
    """Split a path, and say whether it leads out of the top."""
    if "\0" in name:
        raise ArchiveError(f"{brief(name)!r} is not a path")
    if name.count("/") > _DEEPEST:
        raise ArchiveError(f"{brief(name)!r} has more than {_DEEPEST} directories, one in the other")
    parts = [part for part in name.split("/") if part and part != "."]
    if ".." not in parts:
        return parts, False
    kept: list[str] = []
    leads_out = False
    for part in parts:
        if part != "..":
            kept.append(part)
        elif kept:
            kept.pop()
        else:
            leads_out = True
    return kept, leads_out


def _note_what_is_no_directory(marks: Marks, entry: Entry, path: str) -> None:
    """Note that something is no directory, nor leads to one, if layers' marks are in it: only they need it."""
    if entry.type != headers.SYMLINK and marks.has(path, _STRAY_MARKS):
        marks.add(path, _NOT_A_DIRECTORY)


def _change(kind: str, entry: Entry, path: str, name: str) -> Change:
    status = os.stat_result(
        (entry.mode, 0, 0, 1, entry.uid, entry.gid, entry.size, 0, 0, 0),
        {
            "st_atime_ns": entry.mtime_ns,
            "st_mtime_ns": entry.mtime_ns,
            "st_rdev": entry.device,
            "st_blocks": entry.size,  # whether there are holes is not known
        },
    )
    return Change(kind, TreePath(TOP, path) if path else TOP, name, status, {})


class Marks:
    """What a tar says of its entries in other places than their own: made by `read_marks`.

    A layer of a few megabytes can have millions of entries. So there is a number for each path here, and not the path,
    in 30 bytes at most: a dictionary of texts needs 200. That two paths are taken for one is less likely than that
    memory fails.

    Attributes:
        count: of how many paths something is remembered.
        stray: whether a mark of a layer is in something that has no entry as a directory before it.
    """

    def __init__(self) -> None:
        self.stray = False
        self.count = 0
        self._hashes = array("Q", bytes(8 * _FEWEST_SLOTS))  # 0: a slot that is free
        self._bits = array("H", bytes(2 * _FEWEST_SLOTS))

    def add(self, path: str | int, mark: int) -> None:
        """Remember something of a path, or of a number that stands for one."""
        slot = self._slot(_hash(path))
        if not self._hashes[slot]:
            self.count += 1
            if 3 * self.count > 2 * len(self._hashes):
                self._grow()
                slot = self._slot(_hash(path))
            self._hashes[slot] = _hash(path)
        self._bits[slot] |= mark

    def has(self, path: str | int, mark: int) -> bool:
        """Return whether something is remembered of a path."""
        return bool(self._bits[self._slot(_hash(path))] & mark)

    def is_only_on_the_way(self, directory: str) -> bool:
        """Return whether it may be that a directory is in the tar only for what is in it.

        Args:
            directory: one that has an entry of its own and is not opaque.
        """
        if not self.has(directory, _HAS_ENTRIES):
            return False
        while directory:
            directory = directory.rpartition("/")[0]
            if self.has(directory, _OPAQUE):
                return False  # it is new
        return True

    def _slot(self, key: int) -> int:
        last = len(self._hashes) - 1
        slot = key & last
        while self._hashes[slot] not in (0, key):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        old = self._hashes, self._bits
        self._hashes = array("Q", bytes(16 * len(old[0])))  # twice as many
        self._bits = array("H", bytes(2 * len(self._hashes)))
        for key, bits in zip(*old):
            if key:
                slot = self._slot(key)
                self._hashes[slot] = key
                self._bits[slot] = bits


def _hash(path: str | int) -> int:
    # Python's own has 64 bits and, of a text, a key that nobody can know (SipHash).
    return hash(path) & _ALL_BITS or 1
