"""Where the data of a sparse file belong, in each form that GNU tar has had for it.

A map is an array of numbers: offset and length of each segment, one after the other.

Source: GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

from array import array

from archive_overlay.errors import ArchiveError
from archive_overlay.tar.headers import BLOCK, MOST_SEGMENTS
from archive_overlay.tar.numbers import decimal, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.tar.decompress import Reader

_MOST_NUMBERS = 2 * MOST_SEGMENTS
# Bytes of numbers that are read at once.
_AT_ONCE = 4096


def of_old_header(header: bytes, source: Reader) -> array[int]:
    """Read a map from the header of an entry of type "S", and from the blocks after it.

    Raises:
        ArchiveError: it is damaged, or ends too early.
        ValueError: it has something else than a number (see `numbers`).
        OSError: it cannot be read.
    """
    numbers: array[int] = array("q")
    _add_old_segments(numbers, header[386:482])
    more = header[482]
    while more:
        block = source.read(BLOCK)
        if len(block) < BLOCK:
            raise ArchiveError("it ends too early")
        _add_old_segments(numbers, block[:504])
        more = block[504]
    return numbers


def of_data(blocks: Iterator[bytes]) -> array[int]:
    """Read the map with which the data of an entry begin (version 1.0).

    Args:
        blocks: the data; those of the map are taken.

    Raises:
        ArchiveError: it is damaged.
        ValueError: it has something else than a number (see `numbers`).
        OSError: it cannot be read.
    """
    numbers: array[int] = array("q")
    wanted = -1
    unfinished = b""
    while len(numbers) != wanted:
        block = next(blocks, b"")
        if len(block) < BLOCK:
            raise ArchiveError("it is damaged: the map of a sparse file has no end")
        *lines, unfinished = (unfinished + block).split(b"\n")
        if len(unfinished) > BLOCK:
            raise ArchiveError("it is damaged: the map of a sparse file is not a list of numbers")
        for line in lines:
            if wanted < 0:
                wanted = 2 * decimal(line, 0)
            elif len(numbers) < wanted:
                numbers.append(decimal(line, 0))
        _bound(numbers)
    return numbers


def add_numbers(numbers: array[int], text: bytes, start: int, end: int) -> None:
    """Add what has commas in between, some at a time: a list of all would take ten times the memory.

    Args:
        numbers: the map.
        text: has them, as a record of an extended header (versions 0.0 and 0.1).
        start, end: where they are in it.

    Raises:
        ArchiveError: something in it is no number.
    """
    while start <= end:
        comma = text.find(b",", start + _AT_ONCE, end)
        comma = end if comma < 0 else comma
        # One that goes on and on is no number.
        some = text[start : min(comma, start + 2 * _AT_ONCE)]
        try:
            if comma - start > 2 * _AT_ONCE or not some.translate(None, b",").isdigit():
                raise ValueError
            numbers.extend(map(int, some.split(b",")))
        except (OverflowError, ValueError):
            raise ArchiveError(f"it is damaged: {some[:40]!r} is not a size or number") from None
        _bound(numbers)
        start = comma + 1


def judge(numbers: array[int], *, size: int, stored: int) -> None:
    """Refuse a map that cannot be.

    Args:
        numbers: the map.
        size: of the file, in bytes.
        stored: bytes of its data that are in the tar.

    Raises:
        ArchiveError: segments overlap, or lie beyond the file's end or the data's.
    """
    end = total = 0
    pairs = iter(numbers)
    for offset, length in zip(pairs, pairs):
        if offset < end or length < 0:
            raise ArchiveError("it is damaged: the segments of a sparse file overlap")
        end = offset + length
        total += length
    if len(numbers) % 2 or end > size or total > stored:
        raise ArchiveError("it is damaged: the segments of a sparse file are not in it")


def _add_old_segments(numbers: array[int], fields: bytes) -> None:
    for start in range(0, len(fields), 24):
        if not fields[start]:
            break
        numbers.append(number(fields[start : start + 12]))
        numbers.append(number(fields[start + 12 : start + 24]))
    _bound(numbers)


def _bound(numbers: array[int]) -> None:
    if len(numbers) > _MOST_NUMBERS:
        raise ArchiveError("it is damaged: a sparse file has more than two million segments")
