"""Keep entries of a layer, to read them in another order: first in memory, then in a file without a name."""

from __future__ import annotations

import errno
import marshal
import os
import secrets
from array import array

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.system.open_flags import CREATE_AND_READ
from archive_overlay.tar import headers
from archive_overlay.tar.compress import write_all
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Entries(Protocol):
        """What is needed of a `TarReader`: entries that are read once, and the data of the present one."""

        def entries(self) -> Iterator[Entry]: ...
        def data(self) -> Iterator[tuple[int, bytes]]: ...


_MOST_IN_MEMORY = 256 * 1024
_PIECE = 256 * 1024
_LENGTH = 8  # bytes of the number before a record


class Stored:
    """An entry that was kept aside.

    Attributes:
        entry: what it is.
        segments: of a file: offset and length of each part that is no hole, one after the other.
        place: where their data are in the spool, one part after the other.
    """

    __slots__ = ("entry", "place", "segments")

    def __init__(self, entry: Entry, place: int, segments: array[int]) -> None:
        self.entry = entry
        self.place = place
        self.segments = segments


class Spool:
    """Where entries are kept. Close it at the end.

    Args:
        directory: file descriptor of the directory that the file is made in.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._fd = -1
        self._written = 0  # bytes in the file
        self._held = bytearray()  # what comes after them

    def close(self) -> None:
        """Release everything."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def add(self, entry: Entry, tar: Entries) -> int:
        """Keep the present entry of a tar, with its data.

        Returns:
            A number by which `get` gives it.

        Raises:
            ArchiveError: the tar is damaged, or the file cannot be written.
            OSError: the tar cannot be read.
        """
        place = self._end
        segments: array[int] = array("q")
        if entry.type == headers.REGULAR and entry.size:
            for offset, piece in tar.data():
                if segments and segments[-2] + segments[-1] == offset:
                    segments[-1] += len(piece)
                else:
                    segments.extend((offset, len(piece)))
                self._write(piece)
        number = self._end
        record = marshal.dumps(
            (
                entry.type,
                entry.name,
                entry.link,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime_ns,
                entry.size,
                entry.device,
                entry.attributes,
                place,
                segments.tobytes(),
            )
        )
        self._write(len(record).to_bytes(_LENGTH, "big") + record)
        return number

    def get(self, number: int) -> Stored:
        """Return an entry.

        Raises:
            ArchiveError: the file cannot be read.
        """
        size = int.from_bytes(self._read(number, _LENGTH), "big")
        kind, name, link, mode, uid, gid, mtime_ns, entry_size, device, attributes, place, packed = (
            marshal.loads(self._read(number + _LENGTH, size))
        )
        segments: array[int] = array("q")
        segments.frombytes(packed)
        entry = Entry(
            kind,
            name,
            link=link,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=mtime_ns,
            size=entry_size,
            device=device,
            attributes=attributes,
        )
        return Stored(entry, place, segments)

    def data(self, stored: Stored) -> Iterator[tuple[int, bytes]]:
        """Yield the data of a file: pieces, and at which offset each belongs.

        Raises:
            ArchiveError: they cannot be read.
        """
        place = stored.place
        numbers = iter(stored.segments)
        for offset, length in zip(numbers, numbers):
            end = offset + length
            while offset < end:
                piece = self._read(place, min(end - offset, _PIECE))
                yield offset, piece
                offset += len(piece)
                place += len(piece)

    @property
    def _end(self) -> int:
        return self._written + len(self._held)

    def _write(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > _MOST_IN_MEMORY:
            try:
                if self._fd < 0:
                    self._fd = unnamed_file(self._directory)
                write_all(self._fd, self._held)
            except OSError as error:
                fail("cannot keep entries of a layer aside in an unnamed file", error)
            self._written += len(self._held)
            self._held.clear()

    def _read(self, place: int, size: int) -> bytes:
        """Return bytes that were written together."""
        if place >= self._written:
            start = place - self._written
            return bytes(self._held[start : start + size])
        try:
            data = os.pread(self._fd, min(size, self._written - place), place)
        except OSError as error:
            fail("cannot read entries of a layer that were kept aside", error)
        if not data:
            raise ArchiveError("entries of a layer that were kept aside are gone")
        return data if len(data) == size else data + self._read(place + len(data), size - len(data))


def unnamed_file(directory: int) -> int:
    """Open a new file that nobody else can open.

    Raises:
        OSError: that is not possible.
    """
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        # Not every file system supports this, and old kernels take it for opening a directory.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    name = f"spool-{secrets.token_hex(8)}"
    fd = os.open(name, CREATE_AND_READ, 0o600, dir_fd=directory)
    os.unlink(name, dir_fd=directory)
    return fd
