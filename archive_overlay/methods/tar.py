"""The method `tar.gz`: the change set as a compressed tar, in the overlay's native form.

The headers are written here rather than by tarfile, which takes longer for one than it takes to read
a small file.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; extended attributes as
GNU tar and libarchive read them, SCHILY.xattr.NAME.
"""

from __future__ import annotations

import os

from archive_overlay import sparse
from archive_overlay.compress import GzipWriter
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.overlay.changes import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    WHITEOUT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.log import Log
    from archive_overlay.methods import Target
    from archive_overlay.overlay.changes import Change

_BLOCK = 512
_RECORD = 20 * _BLOCK
# Headers and small files are gathered up to this size before they are compressed.
_GATHERED = 128 * 1024

_HARD_LINK = b"1"
_TYPES = {
    FILE: b"0",
    SYMLINK: b"2",
    CHARACTER_DEVICE: b"3",
    WHITEOUT: b"3",
    BLOCK_DEVICE: b"4",
    DIRECTORY: b"5",
    FIFO: b"6",
}
_SET_USER_ID = 0o4000
_SET_GROUP_ID = 0o2000
# The largest numbers of a ustar header: 7 and 11 octal digits.
_LARGEST_SHORT = 0o7777777
_LARGEST_LONG = 0o77777777777


def write(changes: Iterator[Change], target: Target, log: Log) -> None:
    """Write the changes as a tar. See `methods.Writer`."""
    path = ""
    try:
        fd = os.open(
            target.name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o666,
            dir_fd=target.directory,
        )
        try:
            output = GzipWriter(fd, level=6, jobs=len(os.sched_getaffinity(0)))
            try:
                writer = _Writer(output, target, log)
                for change in changes:
                    path = change.path
                    writer.add(change)
                writer.finish()
            finally:
                output.close()
        finally:
            os.close(fd)
    except OSError as error:
        fail(f"cannot write {path or '.'} into the tar", error)


class _Writer:
    """A tar that is being written."""

    def __init__(self, output: GzipWriter, target: Target, log: Log) -> None:
        self._output = output
        self._target = target
        self._log = log
        self._gathered = bytearray()
        self._length = 0

    def add(self, change: Change) -> None:
        if change.kind is SOCKET:
            self._log.warning(f"{change.path} is left out: it is a socket, which a tar cannot hold")
            return
        holes = self._holes(change)
        self._gathered += self._headers(change, holes)
        if holes:
            self._add_segments(change, holes)
        elif change.fd >= 0:
            self._add_data(change, change.size)
            if os.read(change.fd, 1):
                raise _changed(change)
            self._pad(change.size)
        if len(self._gathered) >= _GATHERED:
            self._flush()

    def finish(self) -> None:
        # Two blocks of zeros end a tar; GNU tar expects whole records.
        self._gathered += bytes(2 * _BLOCK)
        self._gathered += bytes(-(self._length + len(self._gathered)) % _RECORD)
        self._flush()
        self._output.finish()

    def _flush(self) -> None:
        self._output.write(self._gathered)
        self._length += len(self._gathered)
        self._gathered.clear()

    def _holes(self, change: Change) -> _Sparse | None:
        """Give the map of a file if storing it takes less than storing its holes."""
        if change.fd < 0 or not change.sparse:
            return None
        holes = _Sparse(change)
        if holes.stored_size < change.size:
            return holes
        os.lseek(change.fd, 0, os.SEEK_SET)
        return None

    def _add_data(self, change: Change, size: int) -> None:
        """Add the next bytes of a file."""
        left = size
        while left:
            data = os.read(change.fd, min(left, _GATHERED))
            if not data:
                raise _changed(change)
            left -= len(data)
            self._gathered += data
            if len(self._gathered) >= _GATHERED:
                self._flush()

    def _add_segments(self, change: Change, holes: _Sparse) -> None:
        """Add a sparse file's map, and then what are no holes in it."""
        for line in holes.map_lines():
            self._gathered += line
            if len(self._gathered) >= _GATHERED:
                self._flush()
        self._pad(holes.map_size)
        stored = 0
        for offset, length in sparse.segments(change.fd, change.size):
            os.lseek(change.fd, offset, os.SEEK_SET)
            self._add_data(change, length)
            stored += length
        if stored != holes.data_size or os.fstat(change.fd).st_size != change.size:
            raise _changed(change)
        self._pad(stored)

    def _pad(self, size: int) -> None:
        self._gathered += bytes(-size % _BLOCK)

    def _headers(self, change: Change, holes: _Sparse | None) -> bytes:
        records: dict[str, bytes] = {}
        name = b"./" + os.fsencode(change.path)
        type_flag = _TYPES[change.kind]
        link = b""
        attributes = change.attributes
        if change.kind is DIRECTORY:
            if change.name:
                name += b"/"
            if change.opaque:
                attributes = {**attributes, self._target.opaque_attribute: b"y"}
        if change.link_to is not None:
            type_flag = _HARD_LINK
            link = b"./" + os.fsencode(change.link_to)
        elif change.kind is SYMLINK:
            link = os.fsencode(change.target)
        if holes:
            records |= holes.records(name)
            name = b"./GNUSparseFile.0/" + os.fsencode(change.name)
        elif len(name) > 100 or not name.isascii():
            records["path"] = name
        if len(link) > 100 or not link.isascii():
            records["linkpath"] = link
        size = holes.stored_size if holes else change.size if change.fd >= 0 else 0
        if size > _LARGEST_LONG:
            records["size"] = b"%d" % size
        uid, gid, mode = self._owner_and_mode(change)
        if uid > _LARGEST_SHORT:
            records["uid"] = b"%d" % uid
        if gid > _LARGEST_SHORT:
            records["gid"] = b"%d" % gid
        seconds, fraction = divmod(change.mtime_ns, 10**9)
        if change.kind is not WHITEOUT and (fraction or not 0 <= seconds <= _LARGEST_LONG):
            records["mtime"] = _decimal(change.mtime_ns)
        for attribute, value in attributes.items():
            records[f"SCHILY.xattr.{self._attribute_key(attribute, change)}"] = value
        device = change.rdev if change.kind in (CHARACTER_DEVICE, BLOCK_DEVICE) else 0
        header = _ustar(
            name=name,
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            seconds=seconds,
            type_flag=type_flag,
            link=link,
            device=device,
        )
        return _extended(name, records) + header if records else header

    def _owner_and_mode(self, change: Change) -> tuple[int, int, int]:
        if self._target.owner is None:
            return change.uid, change.gid, change.mode
        uid, gid = self._target.owner
        lost = 0
        if change.kind is FILE:
            # A set-user-ID bit says "run as the owner": without the owner it would say something
            # that nobody in the container said.
            lost |= _SET_USER_ID if uid != change.uid else 0
            lost |= _SET_GROUP_ID if gid != change.gid else 0
        if change.mode & lost:
            self._log.warning(
                f"{change.path}: set-user-ID and set-group-ID are left out, because tar-content-owner replaces"
                " its owner"
            )
        return uid, gid, change.mode & ~lost

    def _attribute_key(self, attribute: str, change: Change) -> str:
        if "=" not in attribute:
            return attribute
        self._log.warning(
            f"{change.path}: the attribute {attribute} has = in its name, which not every program that reads tars"
            " restores; GNU tar does"
        )
        return attribute.replace("%", "%25").replace("=", "%3D")


class _Sparse:
    """How a sparse file is stored: a map of its segments, then the segments, without the holes.

    The map is a list of decimal numbers, a line each: how many segments there are, and the offset and
    the length of each. A hole at the end is shown by a segment of no length.

    Source: GNU tar manual, "Storing Sparse Files", PAX format, version 1.0; Python's tarfile and Go's
    archive/tar read it too.
    """

    def __init__(self, change: Change) -> None:
        self._change = change
        self._count = 0
        self.data_size = 0
        self.map_size = 0
        end = 0
        # The segments are not kept: a file may have millions.
        for offset, length in self._segments():
            self._count += 1
            self.data_size += length
            self.map_size += len(b"%d\n%d\n" % (offset, length))
            end = offset + length
        self._ends_in_a_hole = end < change.size
        if self._ends_in_a_hole:
            self._count += 1
            self.map_size += len(b"%d\n0\n" % change.size)
        self.map_size += len(b"%d\n" % self._count)

    @property
    def stored_size(self) -> int:
        """Bytes of the map and the segments together, the map padded to blocks."""
        return self.map_size + -self.map_size % _BLOCK + self.data_size

    def records(self, name: bytes) -> dict[str, bytes]:
        """Give the records of the extended header."""
        return {
            "GNU.sparse.major": b"1",
            "GNU.sparse.minor": b"0",
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": b"%d" % self._change.size,
        }

    def map_lines(self) -> Iterator[bytes]:
        """Give the map."""
        yield b"%d\n" % self._count
        for offset, length in self._segments():
            yield b"%d\n%d\n" % (offset, length)
        if self._ends_in_a_hole:
            yield b"%d\n0\n" % self._change.size

    def _segments(self) -> Iterator[tuple[int, int]]:
        return sparse.segments(self._change.fd, self._change.size)


def _changed(change: Change) -> ArchiveError:
    return ArchiveError(f"{change.path} changed its size while it was read")


def _ustar(
    *,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    type_flag: bytes,
    link: bytes,
    device: int,
) -> bytes:
    """Give a header block. What does not fit into a field must be in an extended header too."""
    fields = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % (uid if uid <= _LARGEST_SHORT else 0),
            b"%07o\0" % (gid if gid <= _LARGEST_SHORT else 0),
            b"%011o\0" % (size if size <= _LARGEST_LONG else 0),
            b"%011o\0" % min(max(seconds, 0), _LARGEST_LONG),
            b"        ",
            type_flag,
            link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),  # no names of user and group: they are the host's
            b"%07o\0" % os.major(device),
            b"%07o\0" % os.minor(device),
        )
    )
    return b"%b%06o\0 %b" % (fields[:148], sum(fields), fields[156:].ljust(_BLOCK - 156, b"\0"))


def _extended(name: bytes, records: dict[str, bytes]) -> bytes:
    """Give an extended header: the records for the entry whose header comes next."""
    body = b"".join(_record(os.fsencode(key), value) for key, value in records.items())
    header = _ustar(
        name=b"./PaxHeaders/" + name.rstrip(b"/").rpartition(b"/")[2],
        mode=0o644,
        uid=0,
        gid=0,
        size=len(body),
        seconds=0,
        type_flag=b"x",
        link=b"",
        device=0,
    )
    return header + body + bytes(-len(body) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    # A record's length counts its own digits.
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _decimal(nanoseconds: int) -> bytes:
    # Before 1970 it is -12.5, not -13 and a half.
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    sign = b"-" if nanoseconds < 0 else b""
    return b"%b%d.%09d" % (sign, seconds, fraction) if fraction else b"%b%d" % (sign, seconds)
