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
from archive_overlay.tar import headers, sparse_map
from archive_overlay.tar.numbers import LARGEST_NUMBER, decimal, nanoseconds, natural, number

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
_LARGEST_HEADER = headers.LARGEST_EXTENDED
_MOST_RECORDS = headers.MOST_RECORDS
# Each entry looks at all records of global headers. Real ones have one or two.
_LARGEST_GLOBAL = 64 * 1024
_MOST_GLOBAL_RECORDS = 256
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
            size = natural(header[124:136])
            if type_flag in (_EXTENDED, _SOLARIS_EXTENDED, _GLOBAL):
                if type_flag == _GLOBAL:
                    self._global.update(_records(self._read_header(size, _LARGEST_GLOBAL))[0])
                    if len(self._global) > _MOST_GLOBAL_RECORDS:
                        raise ArchiveError("it is damaged: its global headers have too many records")
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

    def _some(self, most: int = LARGEST_NUMBER) -> bytes:
        piece = self._source.read_some(min(self._left, most))
        if not piece:
            raise ArchiveError("it ends too early")
        self._left -= len(piece)
        return piece

    def _read_header(self, size: int, most: int = _LARGEST_HEADER) -> bytes:
        if size > most:
            raise ArchiveError("it is damaged: an extended header is too large")
        body = self._source.read(size + -size % _BLOCK)
        if len(body) < size:
            raise ArchiveError("it ends too early")
        return body[:size]

    def _blocks(self) -> Iterator[bytes]:
        while self._left >= _BLOCK:
            block = self._source.read(_BLOCK)
            self._left -= _BLOCK
            yield block

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
        uid, gid = natural(header[108:116]), natural(header[116:124])
        mtime_ns = number(header[136:148]) * 10**9
        attributes = _NO_ATTRIBUTES
        if records:
            name = records.get(b"path", name)
            link = records.get(b"linkpath", link)
            if b"mtime" in records:
                mtime_ns = nanoseconds(records[b"mtime"])
            if len(records) > 1 or b"mtime" not in records:
                uid = decimal(records.get(b"uid"), uid)
                gid = decimal(records.get(b"gid"), gid)
                size = decimal(records.get(b"size"), size)
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
            self._sparse = sparse_map.of_old_header(header, self._source)
            size = natural(header[483:495])
        elif kind == headers.REGULAR and (segments or not _SPARSE.isdisjoint(records)):
            name = records.get(b"GNU.sparse.name", name)
            self._sparse = sparse_map.of_data(self._blocks()) if b"GNU.sparse.major" in records else segments
            size = decimal(records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size")), size)
        if self._sparse is not None:
            sparse_map.judge(self._sparse, size=size, stored=self._left)
        device = 0
        if kind in (headers.CHARACTER_DEVICE, headers.BLOCK_DEVICE):
            major, minor = natural(header[329:337]), natural(header[337:345])
            if max(major, minor) > _LARGEST_DEVICE_NUMBER:
                raise ArchiveError(f"{os.fsdecode(name)} has an impossible device number: {major}:{minor}")
            device = os.makedev(major, minor)
        entry = Entry(kind, os.fsdecode(name.rstrip(b"/") or name[:1]))
        entry.link = os.fsdecode(link)
        entry.mode = natural(header[100:108]) & 0o7777
        entry.uid = uid
        entry.gid = gid
        entry.mtime_ns = mtime_ns
        entry.size = size
        entry.device = device
        entry.attributes = attributes
        return entry


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
            sparse_map.add_numbers(segments, value)
        else:
            records[key] = value
            if len(records) > _MOST_RECORDS:
                raise ArchiveError("it is damaged: an extended header has too many records")
        position = end
    return records, segments
