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
from archive_overlay.marks import FORM_COMMENT, FORMS
from archive_overlay.tar import headers, sparse_map
from archive_overlay.tar.formats import not_a_tar
from archive_overlay.tar.numbers import (
    LARGEST_NUMBER,
    decimal,
    nanoseconds,
    natural,
    number,
    owner,
    signed_decimal,
)
from archive_overlay.tar.records import ATTRIBUTE, COMMENT, in_force, read_global_records, read_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
# An extended header holds paths and attributes, of 64 KiB at most each.
_LARGEST_HEADER = headers.LARGEST_EXTENDED
# Real global headers have a comment, or a few numbers.
_LARGEST_GLOBAL = 64 * 1024
# 8,000 directories with names of 255 bytes, one in the other: no system call takes such a path, but a container can make
# it, and the hook archives it.
_LONGEST_PATH = 2 * 1024 * 1024
_FIRST_UNUSUAL_OWNER = 2**31
_LARGEST_DEVICE_NUMBER = 2**31 - 1  # major or minor, to makedev(3)
_NO_ATTRIBUTES: dict[str, bytes] = {}
_NO_SEGMENTS: array[int] = array("q")
# Few combinations of mode, owner and group are in a tar, and most entries have one of them.
_MOST_OWNERS = 256


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

    Attributes:
        marks: which marks are in it, one of the values of `marks.FORMS`, as the first entry of a tar of this program
            says; "" for other tars, and before the first entry.
    """

    def __init__(self, source: Reader) -> None:
        self.marks = ""
        self._source = source
        self._global: dict[bytes, bytes] = {}
        self._owners: dict[bytes, tuple[int, int, int]] = {}  # mode, owner and group, by their fields
        self._sparse: array[int] | None = None  # offset and length of each segment of the entry
        self._left = 0  # bytes of the entry's data that are still to come
        self._padding = 0

    def entries(self) -> Iterator[Entry]:
        """Yield the entries; what was not taken of an entry's data is left out.

        Not every program writes the two blocks of zeros that are the end of a tar. This one does.

        Raises:
            ArchiveError: it is not a tar, or is damaged.
            OSError: it cannot be read.
        """
        read = self._source.read
        records = self._global
        segments = _NO_SEGMENTS  # what records say of them
        name = link = None  # of GNU's long names
        first = at_start = True
        while True:
            if self._left or self._padding:
                missing = self._source.skip(self._left + self._padding)
                if missing == self._padding and missing and not self.marks:
                    return  # umoci leaves out the padding at the end as well
                if missing:
                    raise ArchiveError("it ends too early")
                self._left = self._padding = 0
            header = read(_BLOCK)
            if header == _ZEROS:
                self._expect_end()
                return
            if len(header) < _BLOCK:
                unfinished = records is not self._global or name is not None or link is not None
                if header and at_start:
                    raise not_a_tar(header)
                if header or unfinished or self.marks:
                    raise ArchiveError("it ends too early")
                return
            if not _is_header(header):
                raise (
                    not_a_tar(header)
                    if at_start
                    else ArchiveError("it is damaged: an entry's header does not have the right checksum")
                )
            at_start = False
            type_flag = header[156:157]
            try:
                size = natural(header[124:136])
            except ValueError as error:
                raise _damaged(header, records, name, error) from None
            if type_flag == _GLOBAL:
                added = read_global_records(self._read_header(size, _LARGEST_GLOBAL))
                self._global = in_force({**self._global, **added})
                records = {**self._global, **records}
                continue
            if type_flag in (_EXTENDED, _SOLARIS_EXTENDED):
                records, segments = (
                    self._global,
                    _NO_SEGMENTS,
                )  # let go of an earlier one before this one is read
                records, segments = read_records(self._read_header(size))
                records = in_force({**self._global, **records})
                continue
            if type_flag in (_GNU_NAME, _GNU_LINK):
                text = self._read_header(size, _LONGEST_PATH + 1).split(b"\0", 1)[0]
                if type_flag == _GNU_NAME:
                    name = text
                else:
                    link = text
                continue
            if type_flag != _GNU_VOLUME_LABEL:
                try:
                    entry = self._entry(header, type_flag, size, records, segments, name, link)
                except ValueError as error:
                    raise _damaged(header, records, name, error) from None
                if first:
                    first = False
                    self.marks = _marks_of(entry, records)
                records, segments, name, link = self._global, _NO_SEGMENTS, None, None
                yield entry
            else:
                self._left, self._padding = size, -size % _BLOCK
                records, segments, name, link = self._global, _NO_SEGMENTS, None, None

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Yield the data of the present entry, a file: pieces, and at which offset each belongs.

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
        """Return all data of the present entry at once; None: there are holes in it, so that `data` is needed."""
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
        if self._source.skip(-size % _BLOCK):
            raise ArchiveError("it ends too early")
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
        link = long_link
        if link is None:
            link = header[157:257].split(b"\0", 1)[0] if header[157] else b""
        fields = header[100:124]
        if fields not in self._owners:
            if len(self._owners) == _MOST_OWNERS:
                self._owners.clear()
            self._owners[fields] = number(fields[:8]) & 0o7777, number(fields[8:16]), number(fields[16:])
        mode, uid, gid = self._owners[fields]
        mtime_ns = number(header[136:148]) * 10**9
        attributes = _NO_ATTRIBUTES
        if records:
            name = records.get(b"path", name)
            link = records.get(b"linkpath", link)
            if b"mtime" in records:
                mtime_ns = nanoseconds(records[b"mtime"])
            if len(records) > 1 or b"mtime" not in records:
                uid = signed_decimal(records.get(b"uid"), uid)
                gid = signed_decimal(records.get(b"gid"), gid)
                size = decimal(records.get(b"size"), size)
                attributes = {
                    os.fsdecode(key[len(ATTRIBUTE) :]): value
                    for key, value in records.items()
                    if key.startswith(ATTRIBUTE)
                }
        if len(name) > _LONGEST_PATH or len(link) > _LONGEST_PATH:
            raise ArchiveError(
                f"the path of an entry, or of what it links to, is longer than {_LONGEST_PATH} bytes"
            )
        if type in (_OLD_FILE, _CONTIGUOUS_FILE, _GNU_SPARSE):
            kind = headers.DIRECTORY if type == _OLD_FILE and name.endswith(b"/") else headers.REGULAR
        elif type in _KNOWN_TYPES:
            kind = type
        else:
            raise ArchiveError(f"{_shown(name)} is of a type that this program does not know: {type!r}")
        if kind in _WITHOUT_DATA:
            size = 0
        self._left = size
        self._padding = -size % _BLOCK
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
        if name.endswith(b"/"):
            name = name.rstrip(b"/") or b"/"
        return Entry(
            kind,
            os.fsdecode(name),
            link=os.fsdecode(link) if link else "",
            mode=mode,
            uid=uid if 0 <= uid < _FIRST_UNUSUAL_OWNER else owner(uid),
            gid=gid if 0 <= gid < _FIRST_UNUSUAL_OWNER else owner(gid),
            mtime_ns=mtime_ns,
            size=size,
            device=device,
            attributes=attributes,
        )


def _is_header(header: bytes) -> bool:
    """Say whether a block has the checksum of a header."""
    field = header[148:156]
    digits = field[:6]
    if not (digits.isdigit() and field[6:] == b"\0 "):
        digits = field.split(b"\0", 1)[0].strip() or b"0"
    try:
        checksum = int(digits, 8)
    except ValueError:
        return False
    # The lower half of Adler-32 is the sum of all bytes and 1, as long as it is below 65521: so for each half.
    whole = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
    unsigned = whole - (adler32(field) & 0xFFFF) + 1 + 8 * 0x20
    if checksum == unsigned:
        return True
    # Some old programs take bytes for signed numbers.
    return checksum == unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _marks_of(first: Entry, records: Mapping[bytes, bytes]) -> str:
    """Return what the first entry of a tar of this program, the root directory, says of the marks in it."""
    comment = records.get(COMMENT, b"").decode("latin-1")
    marks = comment[len(FORM_COMMENT) :]
    says = first.name == "." and first.type == headers.DIRECTORY and comment.startswith(FORM_COMMENT)
    return marks if says and marks in FORMS.values() else ""


def _damaged(
    header: bytes, records: Mapping[bytes, bytes], long_name: bytes | None, error: ValueError
) -> ArchiveError:
    """Make the error that says what a header has, and of which entry it is."""
    name = header[:100].split(b"\0", 1)[0] if long_name is None else long_name
    return ArchiveError(f"it is damaged: {_shown(records.get(b'path', name))} has {error}")


def _shown(name: bytes) -> str:
    return brief(os.fsdecode(name))
