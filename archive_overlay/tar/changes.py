"""What a tar holds, as changes: its entries, and what its marks say of deletions and opaque directories.

Source: OCI image specification, layer.md, "Whiteouts"; the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
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


LAYER = Form(whiteout_files=True, whiteout_devices=False, opaque_attributes=())


def read_changes(tar: TarReader, form: Form) -> list[Change]:
    """Read a tar to its end, because a mark may come after what it is about, and damage at the end.

    Args:
        tar: at its start.
        form: which marks count.

    Returns:
        Its changes, in its order, without data and without extended attributes, of which each entry may have 16 MiB;
        opaque directories that have no entry of their own come last. A later entry of the same name does not replace
        an earlier one.

    Raises:
        ArchiveError: it is no tar, is damaged, or an entry leads out of the top.
        OSError: it cannot be read.
    """
    changes: list[Change] = []
    directories: dict[str, Change] = {}
    others: dict[str, Change] = {}  # what a hard link may be besides a file
    opaque: set[str] = set()
    for entry in tar.entries():
        parts = split_path(entry.name)
        name = parts.pop() if parts else ""
        path = "/".join(parts)
        if form.whiteout_files and name.startswith(WHITEOUT_PREFIX):
            if name == OPAQUE_MARKER:
                opaque.add(path)
            elif entry.type == headers.REGULAR:
                changes.append(_change(WHITEOUT, entry, path, name[len(WHITEOUT_PREFIX) :]))
            continue
        if form.whiteout_devices and entry.type == headers.CHARACTER_DEVICE and not entry.device:
            changes.append(_change(WHITEOUT, entry, path, name))
            continue
        change = _change(_KINDS[entry.type], entry, path, name)
        changes.append(change)
        if change.kind is DIRECTORY:
            directories[change.path] = change
            if any(entry.attributes.get(attribute) == b"y" for attribute in form.opaque_attributes):
                opaque.add(change.path)
        elif entry.type == headers.HARD_LINK:
            change.link_to = TreePath(TOP, "/".join(split_path(entry.link)))
            first = others.get(change.link_to.name)
            if first:
                change.kind, change.target = first.kind, first.target
        elif change.kind is not FILE:
            change.target = entry.link if change.kind is SYMLINK else ""
            others[change.path] = change
    for path in sorted(opaque):
        directory = directories.get(path)
        if directory is None:
            above, _, name = path.rpartition("/")
            directory = _change(DIRECTORY, Entry(headers.DIRECTORY, path), above, name)
            changes.append(directory)
        directory.opaque = True
    return changes


def split_path(name: str) -> list[str]:
    """Split the path of an entry, which is relative to the top however it begins.

    Raises:
        ArchiveError: it leads out of the top, or is no path.
    """
    if "\0" in name:
        raise ArchiveError(f"{name!r} is no path")
    parts = [part for part in name.split("/") if part and part != "."]
    if ".." in parts:
        raise ArchiveError(f"{name!r} leads out of the image's root directory")
    return parts


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
