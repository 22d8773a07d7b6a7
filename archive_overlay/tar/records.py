"""Records of the extended headers of a tar, read.

What they may take of memory is bounded here, for a few bytes of a compressed layer can become gigabytes of them.

Source: POSIX.1-2017, pax, "pax Extended Header" and "pax Extended Header Keywords".
"""

from __future__ import annotations

from array import array

from archive_overlay.errors import ArchiveError
from archive_overlay.tar import headers, sparse_map

# What keys of extended attributes begin with.
ATTRIBUTE = b"SCHILY.xattr."
COMMENT = b"comment"
# Records that say something of an entry, besides its attributes and where the data of a sparse file belong. All others
# say nothing, but for a comment that says which marks are in the tar.
_MEANINGFUL = frozenset((b"path", b"linkpath", b"mtime", b"uid", b"gid", b"size"))
_SPARSE_KEYS = b"GNU.sparse."
_LONGEST_COMMENT = 64
# A key longer than this says nothing: names of attributes have 255 bytes, of which each may be escaped by three.
_LONGEST_KEY = 1024
# Names of all attributes of an entry. listxattr(2) gives 64 KiB at most.
_LONGEST_NAMES = 1024 * 1024


def read_records(body: bytes) -> tuple[dict[bytes, bytes], array[int]]:
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
            if key.startswith(ATTRIBUTE):
                names += equals - space
            if count > headers.MOST_RECORDS or names > _LONGEST_NAMES or equals - space > _LONGEST_KEY:
                raise ArchiveError("it is damaged: an extended header has too many records, or too long ones")
            short_comment = key == COMMENT and end - equals <= _LONGEST_COMMENT
            if short_comment or key in _MEANINGFUL or key.startswith((ATTRIBUTE, _SPARSE_KEYS)):
                records[key] = body[equals + 1 : end - 1]
        position = end
    return records, segments


def read_global_records(body: bytes) -> dict[bytes, bytes]:
    """Read those records of a global header that say something of each entry; ArchiveError: one holds what no program writes there."""
    records, segments = read_records(body)
    records.pop(COMMENT, None)  # git writes one
    # Each would be given to each entry: a few bytes would become any number of them.
    if segments or not records.keys() <= _MEANINGFUL:
        raise ArchiveError("it is damaged: a global header has attributes, or is of sparse files")
    return records


def in_force(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Leave out records without a value: they say that none before counts, not even what the header has.

    The header's field is believed all the same, as other readers do. Attributes may be empty.
    """
    if b"" not in records.values():
        return records
    return {key: value for key, value in records.items() if value or key.startswith(ATTRIBUTE)}
