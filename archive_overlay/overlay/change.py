"""One entry of a change set.

What is in it is what an archive of any form has to say of the entry, and nothing of overlayfs but that it
was deleted, or hides what lies below.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, fail

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


class Change:
    """One entry of a change set.

    Attributes:
        kind: one of the constants of this module; WHITEOUT: the name was deleted.
        directory: path of the directory it is in, as a prefix: "" or "a/b/".
        name: its name there; "" for the change set's root directory.
        mode: permission bits.
        uid, gid: owner.
        atime_ns, mtime_ns: times in nanoseconds since 1970.
        size: of a file, in bytes.
        rdev: of a device.
        attributes: extended attributes, by full name.
        opaque: of a directory: it hides what lies below.
        target: of a symbolic link.
        link_to: path of an earlier change that is the same file, or None.
        fd: of a file that is no link: open for reading, at the start, until the next change is taken.
            -1 otherwise, and if the data are at hand.
        data: of a file, all that is in it, if another process has read it already; None otherwise.
        sparse: whether the file may have holes.
    """

    __slots__ = (
        "atime_ns",
        "attributes",
        "data",
        "directory",
        "fd",
        "gid",
        "kind",
        "link_to",
        "mode",
        "mtime_ns",
        "name",
        "opaque",
        "rdev",
        "size",
        "sparse",
        "target",
        "uid",
    )

    def __init__(
        self,
        kind: str,
        directory: str,
        name: str,
        status: os.stat_result,
        attributes: dict[str, bytes],
        *,
        opaque: bool = False,
        target: str = "",
        link_to: str | None = None,
        fd: int = -1,
    ) -> None:
        self.kind = kind
        self.directory = directory
        self.name = name
        self.mode = status.st_mode & 0o7777
        self.uid = status.st_uid
        self.gid = status.st_gid
        self.atime_ns = status.st_atime_ns
        self.mtime_ns = status.st_mtime_ns
        self.size = status.st_size
        self.rdev = status.st_rdev
        self.attributes = attributes
        self.opaque = opaque
        self.target = target
        self.link_to = link_to
        self.fd = fd
        self.data: bytes | None = None
        # In units of 512 bytes, whatever the block size (stat(2)).
        self.sparse = status.st_blocks * 512 < status.st_size

    @property
    def path(self) -> str:
        """Path from the root of the change set; "" for the root itself."""
        return self.directory + self.name

    def contents(self) -> bytes:
        """Give all data of a small file.

        Raises:
            ArchiveError: they cannot be read, or are not as many as they should be.
        """
        data = self.data
        if data is None:
            try:
                # One byte more than there should be, so that a file that has grown is noticed.
                data = os.read(self.fd, self.size + 1)
            except OSError as error:
                fail(f"cannot read {self.path}", error)
        if len(data) != self.size:
            raise self.changed()
        return data

    def changed(self) -> ArchiveError:
        """Make the error that says that a file has not the size that it had."""
        return ArchiveError(f"{self.path} changed its size while it was read")
