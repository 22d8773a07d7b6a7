"""Entries of a tar, whatever program wrote it.

tarfile is not used. A reader on it was tried, over a guarded file that goes forward only: 201 lines, and 110 of the
422 that were here all the same; listing 30,500 entries took 3 times as long, extracting them twice. The guard has
to read extended headers itself, for tarfile must not see them as they are:

- The data of a sparse file with a `size` record (what `tar` and `oci` write has one from 8 GiB on) it takes for
  longer than they are, and skips the entry that comes next, in silence (3.9 to 3.13, in Debian 13 too; not 3.14).
- CVE-2024-6232: one attribute of 65,000 digits, which any container can set, takes 33 s (3.9.18, 3.10.13,
  3.12.1). In the same versions an attribute with the text `hdrcharset=` in it can end the reading.
- For each segment of a sparse file it keeps 127 bytes, where there may be millions. 16 are kept here.

It also stops at a damaged header as if the tar ended there, and takes the access time in a header of GNU's
form for a part of the name. tests/unit/tar/test_reader.py has the tars (`MISREAD_BY_TARFILE`).

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar
Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import os
from array import array

from archive_overlay.errors import ArchiveError
from archive_overlay.tar import headers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.tar.decompress import Reader

_BLOCK = headers.BLOCK
_ZEROS = bytes(_BLOCK)

# Types besides those of `headers`.
_OLD_FILE = b"\0"
_CONTIGUOUS_FILE = b"7"
_EXTENDED = b"x"
_SOLARIS_EXTENDED = b"X"
_GLOBAL = b"g"
_GNU_NAME = b"L"
_GNU_LINK = b"K"
_GNU_SPARSE = b"S"
_GNU_VOLUME_LABEL = b"V"

_KNOWN_TYPES = frozenset(
    (
        headers.REGULAR,
        headers.HARD_LINK,
        headers.SYMLINK,
        headers.CHARACTER_DEVICE,
        headers.BLOCK_DEVICE,
        headers.DIRECTORY,
        headers.FIFO,
    )
)
# What has no data after its header, whatever size that gives: some writers give a hard link its file's.
_WITHOUT_DATA = _KNOWN_TYPES - {headers.REGULAR}
_POSIX_MAGIC = b"ustar\0"
_SPARSE = frozenset((b"GNU.sparse.major", b"GNU.sparse.size", b"GNU.sparse.realsize"))
_ATTRIBUTE = b"SCHILY.xattr."
# An extended header holds paths and attributes, of 64 KiB at most each.
_LARGEST_HEADER = 16 * 1024 * 1024
_MOST_RECORDS = 16 * 1024
# Each entry looks at all records of global headers. Real ones have one or two.
_LARGEST_GLOBAL = 64 * 1024
_MOST_GLOBAL_RECORDS = 256
# Offsets and lengths of a sparse file's segments, of 8 bytes each.
_MOST_SPARSE_NUMBERS = 4 * 1024 * 1024
# Bytes of numbers that are read at once.
_AT_ONCE = 4096
_LARGEST_NUMBER = 2**63 - 1
# One more means "leave it as it is" to chown(2).
_LARGEST_ID = 2**32 - 2
_LARGEST_DEVICE_NUMBER = 2**31 - 1  # major or minor, to makedev(3)
_NO_ATTRIBUTES: dict[str, bytes] = {}


class Entry:
    """One entry. It is no `Record`, which takes 2 us to make instead of 0.8, for each of perhaps millions.

    Attributes:
        type: one of the constants of `headers`.
        name: its path as it stands there; a slash at the end is left out.
        link: what a symbolic or hard link points to, as it stands there.
        mode: permission bits.
        uid, gid: owner.
        mtime_ns: in nanoseconds since 1970.
        size: of a file, in bytes.
        device: of a device, as in stat(2).
        attributes: extended attributes, by full name.
    """

    __slots__ = ("attributes", "device", "gid", "link", "mode", "mtime_ns", "name", "size", "type", "uid")

    def __init__(
        self,
        type: bytes,
        name: str,
        *,
        link: str = "",
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        size: int = 0,
        device: int = 0,
        attributes: dict[str, bytes] = _NO_ATTRIBUTES,
    ) -> None:
        self.type = type
        self.name = name
        self.link = link
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = size
        self.device = device
        self.attributes = attributes


class TarReader:
    """A tar that is being read, once from its beginning to its end.

    Args:
        source: its bytes.
    """

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._global: dict[bytes, bytes] = {}
        self._sparse: array[int] | None = None  # offset and length of each segment of the entry
        self._left = 0  # bytes of the entry's data that are still to come
        self._padding = 0

    def entries(self) -> Iterator[Entry]:
        """Give the entries; what was not taken of an entry's data is left out.

        Raises:
            ArchiveError: it is no tar, or is damaged.
            OSError: it cannot be read.
        """
        read = self._source.read
        records: dict[bytes, bytes] = {}
        segments: array[int] = array("q")  # what records say of them
        name = link = None  # of GNU's long names
        while True:
            if self._left or self._padding:
                self._source.skip(self._left + self._padding)
                self._left = self._padding = 0
            header = read(_BLOCK)
            if header == _ZEROS:
                return
            if len(header) < _BLOCK:
                raise ArchiveError("it is no tar" if not header else "it ends too early")
            _check(header)
            type_flag = header[156:157]
            size = _natural(header[124:136])
            if type_flag in (_EXTENDED, _SOLARIS_EXTENDED, _GLOBAL):
                if type_flag == _GLOBAL:
                    self._global.update(_records(self._read_header(size, _LARGEST_GLOBAL))[0])
                    if len(self._global) > _MOST_GLOBAL_RECORDS:
                        raise ArchiveError("it is damaged: its global headers have more records than any")
                else:
                    records, segments = _records(self._read_header(size))
                continue
            if type_flag in (_GNU_NAME, _GNU_LINK):
                text = self._read_header(size).split(b"\0", 1)[0]
                if type_flag == _GNU_NAME:
                    name = text
                else:
                    link = text
                continue
            if self._global:
                records = {**self._global, **records}
            if type_flag != _GNU_VOLUME_LABEL:
                yield self._entry(header, type_flag, size, records, segments, name, link)
            else:
                self._expect_data(size)
            records, segments, name, link = {}, array("q"), None, None

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Give the data of the present entry, a file: pieces, and at which offset each belongs.

        Raises:
            ArchiveError: the tar ends too early.
            OSError: it cannot be read.
        """
        if self._sparse is None:
            offset = 0
            while self._left:
                piece = self._some()
                yield offset, piece
                offset += len(piece)
            return
        numbers = iter(self._sparse)
        for offset, length in zip(numbers, numbers):
            end = offset + length
            while offset < end:
                piece = self._some(end - offset)
                yield offset, piece
                offset += len(piece)

    def whole_data(self) -> bytes | None:
        """Give all data of the present entry at once; None: there are holes in it, so that `data` is needed."""
        if self._sparse is not None:
            return None
        data = self._source.read(self._left)
        if len(data) < self._left:
            raise ArchiveError("it ends too early")
        self._left = 0
        return data

    def _some(self, most: int = _LARGEST_NUMBER) -> bytes:
        piece = self._source.read_some(min(self._left, most))
        if not piece:
            raise ArchiveError("it ends too early")
        self._left -= len(piece)
        return piece

    def _read_header(self, size: int, most: int = _LARGEST_HEADER) -> bytes:
        if size > most:
            raise ArchiveError("it is damaged: an extended header is larger than any")
        body = self._source.read(size + -size % _BLOCK)
        if len(body) < size:
            raise ArchiveError("it ends too early")
        return body[:size]

    def _expect_data(self, size: int) -> None:
        self._left = size
        self._padding = -size % _BLOCK

    def _entry(
        self,
        header: bytes,
        type: bytes,
        size: int,
        records: dict[bytes, bytes],
        segments: array[int],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        posix = header[257:263] == _POSIX_MAGIC
        name = header[:100].rstrip(b"\0") if long_name is None else long_name
        if b"\0" in name:
            name = name.split(b"\0", 1)[0]
        if posix and header[345] and long_name is None:
            name = header[345:500].split(b"\0", 1)[0] + b"/" + name
        link = header[157:257].split(b"\0", 1)[0] if long_link is None else long_link
        uid, gid = _natural(header[108:116]), _natural(header[116:124])
        mtime_ns = _number(header[136:148]) * 10**9
        attributes = _NO_ATTRIBUTES
        if records:
            name = records.get(b"path", name)
            link = records.get(b"linkpath", link)
            if b"mtime" in records:
                mtime_ns = _nanoseconds(records[b"mtime"])
            if len(records) > 1 or b"mtime" not in records:
                uid = _decimal(records.get(b"uid"), uid)
                gid = _decimal(records.get(b"gid"), gid)
                size = _decimal(records.get(b"size"), size)
                attributes = {
                    os.fsdecode(key[len(_ATTRIBUTE) :]): value
                    for key, value in records.items()
                    if key.startswith(_ATTRIBUTE)
                }
        if max(uid, gid) > _LARGEST_ID:
            raise ArchiveError(f"{os.fsdecode(name)} has an owner who cannot be: {uid}:{gid}")
        if type in (_OLD_FILE, _CONTIGUOUS_FILE, _GNU_SPARSE):
            kind = headers.DIRECTORY if type == _OLD_FILE and name.endswith(b"/") else headers.REGULAR
        elif type in _KNOWN_TYPES:
            kind = type
        else:
            raise ArchiveError(f"{os.fsdecode(name)} is of a type that this program does not know: {type!r}")
        if kind in _WITHOUT_DATA:
            size = 0
        self._expect_data(size)
        self._sparse = None
        if type == _GNU_SPARSE:
            size = self._read_old_sparse_map(header)
        elif kind == headers.REGULAR and (segments or not _SPARSE.isdisjoint(records)):
            name = records.get(b"GNU.sparse.name", name)
            size = self._read_sparse_map(records, segments, size)
        device = 0
        if kind in (headers.CHARACTER_DEVICE, headers.BLOCK_DEVICE):
            major, minor = _natural(header[329:337]), _natural(header[337:345])
            if max(major, minor) > _LARGEST_DEVICE_NUMBER:
                raise ArchiveError(f"{os.fsdecode(name)} is a device that cannot be: {major}:{minor}")
            device = os.makedev(major, minor)
        entry = Entry(kind, os.fsdecode(name.rstrip(b"/") or name[:1]))
        entry.link = os.fsdecode(link)
        entry.mode = _natural(header[100:108]) & 0o7777
        entry.uid = uid
        entry.gid = gid
        entry.mtime_ns = mtime_ns
        entry.size = size
        entry.device = device
        entry.attributes = attributes
        return entry

    def _read_old_sparse_map(self, header: bytes) -> int:
        """Read the segments of a sparse file from its header and the blocks after it; give its size."""
        numbers: array[int] = array("q")
        self._sparse = numbers
        _add_old_segments(numbers, header[386:482])
        more = header[482]
        while more:
            block = self._source.read(_BLOCK)
            if len(block) < _BLOCK:
                raise ArchiveError("it ends too early")
            _add_old_segments(numbers, block[:504])
            _bound(numbers)
            more = block[504]
        return self._checked_sparse(numbers, _natural(header[483:495]))

    def _read_sparse_map(self, records: dict[bytes, bytes], segments: array[int], size: int) -> int:
        """Read the segments of a sparse file from its records, or from what begins its data; give its size."""
        if b"GNU.sparse.major" in records:
            segments = self._read_map_in_data()
            size = _decimal(records.get(b"GNU.sparse.realsize"), size)
        else:
            size = _decimal(records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size")), size)
        self._sparse = segments
        return self._checked_sparse(segments, size)

    def _read_map_in_data(self) -> array[int]:
        numbers: array[int] = array("q")
        wanted = -1
        unfinished = b""
        while len(numbers) != wanted:
            block = self._source.read(min(_BLOCK, self._left))
            if len(block) < _BLOCK:
                raise ArchiveError("it is damaged: the map of a sparse file has no end")
            self._left -= _BLOCK
            *lines, unfinished = (unfinished + block).split(b"\n")
            if len(unfinished) > _BLOCK:
                raise ArchiveError("it is damaged: the map of a sparse file is no list of numbers")
            for line in lines:
                if wanted < 0:
                    wanted = 2 * _decimal(line, 0)
                elif len(numbers) < wanted:
                    numbers.append(_decimal(line, 0))
            _bound(numbers)
        return numbers

    def _checked_sparse(self, numbers: array[int], size: int) -> int:
        end = stored = 0
        pairs = iter(numbers)
        for offset, length in zip(pairs, pairs):
            if offset < end or length < 0:
                raise ArchiveError("it is damaged: the segments of a sparse file overlap")
            end = offset + length
            stored += length
        if len(numbers) % 2 or end > size or stored > self._left:
            raise ArchiveError("it is damaged: the segments of a sparse file are not in it")
        return size


def _check(header: bytes) -> None:
    """Refuse what is no header."""
    try:
        checksum = int(header[148:156].split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        raise ArchiveError("it is no tar, or is damaged") from None
    unsigned = sum(header[:148]) + sum(header[156:]) + 8 * 0x20
    if checksum == unsigned:
        return
    # Some old programs take bytes for signed numbers.
    if checksum != unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise ArchiveError("it is no tar, or is damaged")


def _number(field: bytes) -> int:
    """Give a number of a header: octal digits, or of GNU's form with a first bit of 1 all other bits."""
    first = field[0]
    if first >= 0x80:
        number = int.from_bytes(field, "big", signed=first == 0xFF)
        number = number if first == 0xFF else number - (0x80 << (8 * (len(field) - 1)))
        if not -_LARGEST_NUMBER <= number <= _LARGEST_NUMBER:
            raise ArchiveError("it is damaged: a header has a number that is too large")
        return number
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        raise ArchiveError("it is damaged: a header has a number that is none") from None


def _natural(field: bytes) -> int:
    number = _number(field)
    if number < 0:
        raise ArchiveError("it is damaged: a header has a number that is negative")
    return number


def _decimal(text: bytes | None, otherwise: int) -> int:
    """Give a number of a record, which is neither negative nor too large."""
    if text is None:
        return otherwise
    if not (text.isdigit() and len(text) < 20 and int(text) <= _LARGEST_NUMBER):
        raise ArchiveError(f"it is damaged: {text[:40]!r} is no size or number")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    """Give a time in seconds, with a fraction or without, in nanoseconds."""
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    if not (whole.isdigit() and len(whole) < 19 and (fraction.isdigit() or not fraction)):
        raise ArchiveError(f"it is damaged: {text[:40]!r} is no time")
    return sign * (int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0")))


def _records(body: bytes) -> tuple[dict[bytes, bytes], array[int]]:
    """Read the records of an extended header; of those about segments, of which keys are not unique, the numbers."""
    records: dict[bytes, bytes] = {}
    segments: array[int] = array("q")
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 20)
        length = body[position:space] if space > 0 else b""
        end = position + int(length) if length.isdigit() else 0
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not space < end <= len(body) or body[end - 1 : end] != b"\n":
            if not body[position:].strip(b"\0"):
                break  # padding
            raise ArchiveError("it is damaged: an extended header has a record that is none")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.map"):
            _add_numbers(segments, value)
        else:
            records[key] = value
            if len(records) > _MOST_RECORDS:
                raise ArchiveError("it is damaged: an extended header has more records than any")
        position = end
    return records, segments


def _add_numbers(numbers: array[int], text: bytes) -> None:
    """Add what has commas in between, some at a time: a list of all would take ten times the memory."""
    start = 0
    while start <= len(text):
        end = text.find(b",", start + _AT_ONCE)
        end = len(text) if end < 0 else end
        some = text[start:end]
        try:
            if len(some) > 2 * _AT_ONCE or not some.translate(None, b",").isdigit():
                raise ValueError
            numbers.extend(map(int, some.split(b",")))
        except (OverflowError, ValueError):
            raise ArchiveError(f"it is damaged: {some[:40]!r} is no size or number") from None
        _bound(numbers)
        start = end + 1


def _add_old_segments(numbers: array[int], fields: bytes) -> None:
    for start in range(0, len(fields), 24):
        if not fields[start]:
            return
        numbers.append(_number(fields[start : start + 12]))
        numbers.append(_number(fields[start + 12 : start + 24]))


def _bound(numbers: array[int]) -> None:
    if len(numbers) > _MOST_SPARSE_NUMBERS:
        raise ArchiveError("it is damaged: a sparse file has more segments than any")
