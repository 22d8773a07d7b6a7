"""Entries of a tar, whatever program wrote it.

tarfile is not used. A reader on it was tried, over a guarded file that goes forward only: 201 lines, and 110 of the
422 that were here all the same; listing 30,500 entries took 3 times as long, extracting them twice. The guard has
to read extended headers itself, for tarfile must not see them as they are:

- The data of a sparse file with a `size` record (what `tar` and `oci` write has one from 8 GiB on) it takes for
  longer than they are, and skips the entry that comes next, in silence (3.9 to 3.13, in Debian 13 too; not 3.14).
- CVE-2024-6232: one attribute of 65,000 digits, which any container can set, takes 33 s (3.9.18, 3.10.13,
  3.12.1). In the same versions an attribute with the text `hdrcharset=` in it can end the reading.
- For each segment of a sparse file it keeps 127 bytes, where there may be millions. 16 are kept here.

What an entry may take of memory is bounded here, for a few bytes of a compressed layer can become gigabytes of headers.

It also stops at a damaged header as if the tar ended there, and takes the access time in a header of GNU's
form for a part of the name. tests/unit/tar/test_reader.py has the tars (`MISREAD_BY_TARFILE`).

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar
Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import os
from array import array
from zlib import adler32

from archive_overlay.errors import ArchiveError, brief
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
# Records that say something of an entry, besides its attributes and where the data of a sparse file belong. All others
# are comments, in the end.
_MEANINGFUL = frozenset((b"path", b"linkpath", b"mtime", b"uid", b"gid", b"size"))
# An extended header holds paths and attributes, of 64 KiB at most each.
_LARGEST_HEADER = headers.LARGEST_EXTENDED
_MOST_RECORDS = headers.MOST_RECORDS
# Real global headers have a comment, or a few numbers.
_LARGEST_GLOBAL = 64 * 1024
# 8,000 directories with names of 255 bytes, one in the other: no system call takes such a path, but a container can make
# it, and the hook archives it.
_LONGEST_PATH = 2 * 1024 * 1024
# A key longer than this says nothing: names of attributes have 255 bytes, of which each may be escaped by three.
_LONGEST_KEY = 1024
_SPARSE_KEYS = b"GNU.sparse."
# Names of all attributes of an entry. listxattr(2) gives 64 KiB at most.
_LONGEST_NAMES = 1024 * 1024
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
            ArchiveError: it is not a tar, or is damaged.
            OSError: it cannot be read.
        """
        read = self._source.read
        records = self._global
        segments: array[int] = array("q")  # what records say of them
        name = link = None  # of GNU's long names
        while True:
            if self._left or self._padding:
                self._source.skip(self._left + self._padding)
                self._left = self._padding = 0
            header = read(_BLOCK)
            if header == _ZEROS:
                self._expect_end()
                return
            if len(header) < _BLOCK:
                raise ArchiveError("it is not a tar" if not header else "it ends too early")
            _check(header)
            type_flag = header[156:157]
            size = natural(header[124:136])
            if type_flag == _GLOBAL:
                self._global = {**self._global, **_global_records(self._read_header(size, _LARGEST_GLOBAL))}
                records = {**self._global, **records}
                continue
            if type_flag in (_EXTENDED, _SOLARIS_EXTENDED):
                records, segments = (
                    self._global,
                    array("q"),
                )  # let go of an earlier one before this one is read
                records, segments = _records(self._read_header(size))
                records = {**self._global, **records}
                continue
            if type_flag in (_GNU_NAME, _GNU_LINK):
                text = self._read_header(size, _LONGEST_PATH + 1).split(b"\0", 1)[0]
                if type_flag == _GNU_NAME:
                    name = text
                else:
                    link = text
                continue
            if type_flag != _GNU_VOLUME_LABEL:
                entry = self._entry(header, type_flag, size, records, segments, name, link)
                records, segments, name, link = self._global, array("q"), None, None
                yield entry
            else:
                self._expect_data(size)
                records, segments, name, link = self._global, array("q"), None, None

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
        body = self._source.read(size)
        self._source.skip(-size % _BLOCK)
        if len(body) < size:
            raise ArchiveError("it ends too early")
        return body

    def _expect_end(self) -> None:
        # Two blocks of zeros are the end. Go's reader refuses what comes after a single one, and GNU tar goes on: who looks
        # at a tar with one program must not get something else from another.
        if self._source.read(_BLOCK).strip(b"\0"):
            raise ArchiveError("it is damaged: after its end it goes on")

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
        if max(len(name), len(link)) > _LONGEST_PATH:
            raise ArchiveError(
                f"the path of an entry, or of what it links to, is longer than {_LONGEST_PATH} bytes"
            )
        if max(uid, gid) > _LARGEST_ID:
            raise ArchiveError(f"{_shown(name)} has an owner who cannot be: {uid}:{gid}")
        if type in (_OLD_FILE, _CONTIGUOUS_FILE, _GNU_SPARSE):
            kind = headers.DIRECTORY if type == _OLD_FILE and name.endswith(b"/") else headers.REGULAR
        elif type in _KNOWN_TYPES:
            kind = type
        else:
            raise ArchiveError(f"{_shown(name)} is of a type that this program does not know: {type!r}")
        if kind in _WITHOUT_DATA:
            size = 0
        self._expect_data(size)
        self._sparse = None
        if type == _GNU_SPARSE:
            self._sparse = sparse_map.of_old_header(header, self._source)
            size = natural(header[483:495])
        elif kind == headers.REGULAR and (segments or not _SPARSE.isdisjoint(records)):
            name = records.get(b"GNU.sparse.name", name)
            if len(name) > _LONGEST_PATH:
                raise ArchiveError(f"the path of an entry is longer than {_LONGEST_PATH} bytes")
            self._sparse = sparse_map.of_data(self._blocks()) if b"GNU.sparse.major" in records else segments
            size = decimal(records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size")), size)
        if self._sparse is not None:
            sparse_map.judge(self._sparse, size=size, stored=self._left)
        device = 0
        if kind in (headers.CHARACTER_DEVICE, headers.BLOCK_DEVICE):
            major, minor = natural(header[329:337]), natural(header[337:345])
            if max(major, minor) > _LARGEST_DEVICE_NUMBER:
                raise ArchiveError(f"{_shown(name)} has an impossible device number: {major}:{minor}")
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
        raise ArchiveError("it is not a tar, or is damaged") from None
    # The lower half of Adler-32 is the sum of all bytes and 1, as long as it is below 65521: so for each half.
    whole = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
    unsigned = whole - sum(header[148:156]) + 8 * 0x20
    if checksum == unsigned:
        return
    # Some old programs take bytes for signed numbers.
    if checksum != unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise ArchiveError("it is not a tar, or is damaged")


def _records(body: bytes) -> tuple[dict[bytes, bytes], array[int]]:
    """Read those records of an extended header that say something.

    Returns:
        What they say by their keys; and of those about segments, of which keys are not unique, the numbers.
    """
    records: dict[bytes, bytes] = {}
    segments: array[int] = array("q")
    position = count = names = 0
    size = len(body)
    while position < size:
        space = body.find(b" ", position, position + 20)
        length = body[position:space] if space > 0 else b""
        end = position + int(length) if length.isdigit() else 0
        # What is not looked at is not copied either: a record may be as large as its header.
        equals = body.find(b"=", space + 1, end - 1) if space < end <= size else -1
        if equals < 0 or body[end - 1 : end] != b"\n":
            if body.count(b"\0", position) == size - position:
                break  # padding
            raise ArchiveError("it is damaged: an extended header has an invalid record")
        key = body[space + 1 : min(equals, space + 1 + _LONGEST_KEY)]
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.map"):
            sparse_map.add_numbers(segments, body, equals + 1, end - 1)
        else:
            count += 1
            if key.startswith(_ATTRIBUTE):
                names += equals - space
            if count > _MOST_RECORDS or names > _LONGEST_NAMES or equals - space > _LONGEST_KEY:
                raise ArchiveError("it is damaged: an extended header has too many records, or too long ones")
            if key in _MEANINGFUL or key.startswith((_ATTRIBUTE, _SPARSE_KEYS)):
                records[key] = body[equals + 1 : end - 1]
        position = end
    return records, segments


def _global_records(body: bytes) -> dict[bytes, bytes]:
    """Read those records of a global header that say something of each entry; ArchiveError: nobody writes such ones."""
    records, segments = _records(body)
    # Each would be given to each entry: a few bytes would become any number of them.
    if segments or not records.keys() <= _MEANINGFUL:
        raise ArchiveError("it is damaged: a global header has attributes, or is of sparse files")
    return records


def _shown(name: bytes) -> str:
    return brief(os.fsdecode(name))
