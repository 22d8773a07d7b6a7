"""Headers of tar entries, in the PAX format.

TarInfo.tobuf of tarfile takes 47 us for a file with a time in nanoseconds and 38 us with an attribute, which is
longer than it takes to read a small file; these take 3 us and 11 us (Python 3.11). It also fails at an attribute
whose name is not UTF-8.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; for extended attributes
(SCHILY.xattr.NAME) and sparse files (GNU.sparse.*), what GNU tar writes.
"""

from __future__ import annotations

import os
from functools import lru_cache
from zlib import adler32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 512

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
CHARACTER_DEVICE = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"
_EXTENDED = b"x"

# What readers take of one extended header, ours among them: so much in it, and so many records.
LARGEST_EXTENDED = 16 * 1024 * 1024
MOST_RECORDS = 16 * 1024
# Programs written in Go, which are nearly all that read layers of images, take so much (archive/tar, since 1.18.7 and
# 1.19.2), and leave out attributes without a value.
LARGEST_EXTENDED_OF_LAYER = 1024 * 1024
# They make entries by path, so no path may be longer than the kernel takes, with a slash before it.
LONGEST_PATH_OF_LAYER = 4096 - 2
# And so many segments of a sparse file.
MOST_SEGMENTS = 2 * 1024 * 1024

# The largest numbers of a header: 7 and 11 octal digits.
_LARGEST_SHORT = 0o7777777
_LARGEST_LONG = 0o77777777777  # it has ten decimal digits
_NAME_SIZE = 100
_SIZE_FIELD = slice(124, 135)
_DEVICE_OFFSET = 329
_NO_DEVICE = (2 * b"0000000\0").ljust(BLOCK - _DEVICE_OFFSET, b"\0")
_MAGIC = b"ustar\x0000" + bytes(64)  # no names of user and group: they are the host's
_NO_LINK = bytes(_NAME_SIZE)


def of_file(name: bytes, mode: int, uid: int, gid: int, mtime_ns: int, size: int) -> bytes:
    """Return what `of_entry` gives for a regular file without records, in a third of the time.

    Nearly all entries are such files, of which at most the time needs a record, of a fixed length.
    """
    seconds, fraction = divmod(mtime_ns, 10**9)
    if (
        len(name) > _NAME_SIZE
        or not name.isascii()
        or uid > _LARGEST_SHORT
        or gid > _LARGEST_SHORT
        or size > _LARGEST_LONG
        or not _TEN_DIGITS <= seconds <= _LARGEST_LONG
    ):
        return of_entry(
            name=name, type_flag=REGULAR, mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, size=size
        )
    before = b"%b%b%011o\0%011o\0" % (name.ljust(_NAME_SIZE, b"\0"), _numbers(mode, uid, gid), size, seconds)
    checksum = (adler32(before) & 0xFFFF) + _FILE_CHECKSUM
    if fraction:
        return _FILE_WITH_TIME % (seconds, fraction, before, checksum)
    return _FILE % (before, checksum)


@lru_cache(maxsize=256)
def _numbers(mode: int, uid: int, gid: int) -> bytes:
    return b"%07o\0%07o\0%07o\0" % (mode, uid, gid)


def of_entry(
    *,
    name: bytes,
    type_flag: bytes,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    size: int = 0,
    link: bytes = b"",
    device: int = 0,
    records: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return the header of an entry, with an extended header before it where something does not fit.

    Args:
        name: path in the archive; of a directory with a slash at the end.
        type_flag: one of the constants of this module.
        mode: permission bits.
        uid, gid: owner.
        mtime_ns: in nanoseconds since 1970.
        size: bytes of data that come after the header.
        link: what a hard or symbolic link points to.
        device: of a device, as in stat(2).
        records: further records of the extended header; `path` may stand for a name that is not the
            entry's path.
    """
    seconds, fraction = divmod(mtime_ns, 10**9)
    header = _header(name, type_flag, mode, uid, gid, size, seconds, link, device)
    extended = dict(records) if records else {}
    if len(name) > _NAME_SIZE or not name.isascii():
        extended.setdefault(b"path", name)
    if link and (len(link) > _NAME_SIZE or not link.isascii()):
        extended[b"linkpath"] = link
    if fraction or not 0 <= seconds <= _LARGEST_LONG:
        extended[b"mtime"] = _decimal(mtime_ns)
    if uid > _LARGEST_SHORT:
        extended[b"uid"] = b"%d" % uid
    if gid > _LARGEST_SHORT:
        extended[b"gid"] = b"%d" % gid
    if size > _LARGEST_LONG:
        extended[b"size"] = b"%d" % size
    if not extended:
        return header
    body = b"".join([record(key, value) for key, value in extended.items()])
    return b"".join((_extended_header(len(body)), body, bytes(-len(body) % BLOCK), header))


def with_room(entry: bytes, size: int) -> tuple[bytes, bytes]:
    """Make room for more records in what `of_entry` gave, when they are too large to be held together.

    Args:
        entry: what it gave.
        size: of the records, in bytes.

    Returns:
        What comes before the records, and what comes after them.
    """
    own = entry[BLOCK : BLOCK + records_size(entry)]
    size += len(own)
    return _extended_header(size) + own, bytes(-size % BLOCK) + entry[-BLOCK:]


def records_size(entry: bytes) -> int:
    """Return the bytes of all records that are in what `of_entry` gave."""
    return int(entry[_SIZE_FIELD], 8) if len(entry) > BLOCK else 0


def record_size(key: bytes, size: int) -> int:
    """Return the bytes that a record takes.

    Args:
        key: its key.
        size: of its value, in bytes.
    """
    # A record's length counts its own digits.
    rest = len(key) + size + 3
    length = rest + len(str(rest))
    return rest + len(str(length))


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of an extended header."""
    return b"%d %b=%b\n" % (record_size(key, len(value)), key, value)


@lru_cache(maxsize=256)
def _extended_header(size: int) -> bytes:
    # Its name means nothing.
    return _header(b"././@PaxHeader", _EXTENDED, 0o644, 0, 0, size, 0, b"", 0)


def _header(
    name: bytes,
    type_flag: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes,
    device: int,
) -> bytes:
    before = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name[:_NAME_SIZE].ljust(_NAME_SIZE, b"\0"),
        mode,
        uid if uid <= _LARGEST_SHORT else 0,
        gid if gid <= _LARGEST_SHORT else 0,
        size if size <= _LARGEST_LONG else 0,
        min(max(seconds, 0), _LARGEST_LONG),
    )
    after = b"%b%b%b%b" % (
        type_flag,
        link[:_NAME_SIZE].ljust(_NAME_SIZE, b"\0") if link else _NO_LINK,
        _MAGIC,
        _device_fields(device) if device else _NO_DEVICE,
    )
    # The sum of all bytes, the sum's own field being 8 spaces. It is also the lower half of Adler-32,
    # less 1, as long as it is below 65521: so for each part.
    checksum = (adler32(before) & 0xFFFF) + (adler32(after) & 0xFFFF) - 2 + 8 * 0x20
    return b"%b%06o\0 %b" % (before, checksum, after)


def _device_fields(device: int) -> bytes:
    return (b"%07o\0%07o\0" % (os.major(device), os.minor(device))).ljust(len(_NO_DEVICE), b"\0")


def _decimal(nanoseconds: int) -> bytes:
    # Before 1970 it is -12.5, not -13 and a half.
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    sign = b"-" if nanoseconds < 0 else b""
    return b"%b%d.%09d" % (sign, seconds, fraction) if fraction else b"%b%d" % (sign, seconds)


# The extended header of an entry that needs nothing but a time with ten digits and nanoseconds: the
# record, 30 bytes long, is to be filled in.
_TEN_DIGITS = 10**9
_TIME_RECORD = b"30 mtime=%d.%09d\n" + bytes(BLOCK - 30)
_TIME_HEADER = _extended_header(30)
# The headers of a regular file that needs nothing else, the same way.
_AFTER = REGULAR + _NO_LINK + _MAGIC + _NO_DEVICE
_FILE_CHECKSUM = (adler32(_AFTER) & 0xFFFF) - 2 + 8 * 0x20
_FILE = b"%b%06o\0 " + _AFTER
_FILE_WITH_TIME = _TIME_HEADER + _TIME_RECORD + _FILE
