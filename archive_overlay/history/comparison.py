"""Compare a change set with what it lies on, or two states: a letter for each entry that differs.

Both sides are read once, side by side, in the order that `compose.Source` has. What is remembered grows with the depth of
the tree, and by one small record for each file that has several names.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from itertools import zip_longest

from archive_overlay.errors import fail
from archive_overlay.history.unpack import OVERLAY_ATTRIBUTES
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FILE,
    SYMLINK,
    WHITEOUT,
)
from archive_overlay.overlay.compose import comes_first
from archive_overlay.system.metadata import SELINUX_LABEL
from archive_overlay.system.record import Record
from archive_overlay.system.sparse import segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source

ADDED = "A"
CHANGED = "added or changed"  # shown as A: what was there is unknown
MODIFIED = "M"
METADATA = "m"
DELETED = "D"
OPAQUE = "O"
RENAMED = "R"
UNCHANGED = "="

_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)


class Difference:
    """One entry that differs.

    Attributes:
        letter: one of the constants of this module.
        change: the entry as it is now; if it was deleted, as it was, or the whiteout if that is not known. It is valid
            until the next difference is taken.
        old: the entry as it was, if it is known and was not deleted. As long valid.
        renamed_from: of a renamed directory: where it was.
    """

    __slots__ = ("change", "letter", "old", "renamed_from")

    def __init__(
        self, letter: str, change: Change, *, old: Change | None = None, renamed_from: str = ""
    ) -> None:
        self.letter = letter
        self.change = change
        self.old = old
        self.renamed_from = renamed_from


class Sides(Record):
    """What the two sides of a comparison are.

    Attributes:
        newer_is_whole: the newer side is a whole state, so what it lacks was deleted. Otherwise it is a change set that
            lies on the older side.
        older_is_whole: what the older side lacks was not there. Otherwise that is unknown.
        marks_are_entries: both sides are change sets, and are compared as they stand: with their whiteouts.
    """

    newer_is_whole: bool = False
    older_is_whole: bool = True
    marks_are_entries: bool = False


LIES_ON = Sides()
LIES_ON_UNKNOWN = Sides(older_is_whole=False)
STATES = Sides(newer_is_whole=True)
CHANGE_SETS = Sides(newer_is_whole=True, marks_are_entries=True)


def compare(
    newer: Source,
    older: Source | None,
    sides: Sides,
    *,
    everything: bool = False,
    renamed_from: Callable[[Change], str] = lambda change: "",
) -> Iterator[Difference]:
    """Compare two trees.

    If only the time of a directory differs, it is yielded only if nothing in it does: creating and deleting entries
    sets that time. A directory that a layer lists only for its contents is not yielded, nor are the former contents of
    a deleted directory. The contents of an opaque directory are compared with what it hides.

    Args:
        newer, older: the two; None for the older one: it is empty.
        sides: what they are.
        everything: also yield the former contents of deleted directories and, as `UNCHANGED`, directories that are only
            listed for their contents.
        renamed_from: says of a directory that was just taken from the newer side where it was before; "" if it was not
            renamed.

    Yields:
        Differences, depth first, names in the order of their code points.

    Raises:
        ArchiveError: one of them cannot be read.
    """
    return _Comparison(newer, older, sides, everything, renamed_from).run()


class _Comparison:
    """Two trees that are being compared: the position in both, and what must be remembered on the way."""

    def __init__(
        self,
        newer: Source,
        older: Source | None,
        sides: Sides,
        everything: bool,
        renamed_from: Callable[[Change], str],
    ) -> None:
        self._newer = newer
        self._older: Source = older or _Nothing()
        self._sides = sides
        self._everything = everything
        self._renamed_from = renamed_from
        # For each directory from the root to the present one: whether the newer side has all that is known to be in it
        # now.
        self._whole: list[bool] = []
        # Directories that are yielded only if nothing in them is: their depth, and what would be yielded.
        self._held: list[tuple[int, Difference]] = []
        self._newer_files: dict[int, Facts] = {}
        self._older_files: dict[int, Facts] = {}

    def run(self) -> Iterator[Difference]:
        while True:
            newer, older = self._newer.ahead(), self._older.ahead()
            if newer is None and older is None:
                break
            place = newer if older is None or (newer is not None and comes_first(newer, older)) else older
            assert place
            depth = place[0]
            held = self._held
            if held and held[-1][0] >= depth:
                _, last = held.pop()  # the others are above it
                held.clear()
                yield last
            del self._whole[depth + 1 :]
            whole = self._whole[-1] if self._whole else self._sides.newer_is_whole
            if older != place:
                found = self._only_newer(depth, whole)
            elif newer != place:
                found = self._only_older(depth, whole)
            else:
                found = self._both(depth, whole)
            if found is not None:
                self._held.clear()
                yield found
        if self._held:
            yield self._held.pop()[1]

    def _only_newer(self, depth: int, whole: bool) -> Difference | None:
        change = self._newer.take()
        return None if change is None else self._new(change, depth, whole)

    def _new(self, change: Change, depth: int, whole: bool) -> Difference | None:
        """Judge what the newer side has at a name, where the older one has nothing."""
        if change.shared and change.link_to is None:
            self._facts(change, self._newer_files)
        sides = self._sides
        known = whole or sides.older_is_whole
        if change.kind is WHITEOUT and not sides.marks_are_entries:
            return None if known else Difference(DELETED, change)
        if change.kind is not DIRECTORY:
            return Difference(ADDED if known else CHANGED, change)
        opaque = change.opaque and not known
        self._whole.append(whole or change.opaque)
        renamed_from = self._renamed_from(change)
        if renamed_from:
            return Difference(RENAMED, change, renamed_from=renamed_from)
        if opaque:
            return Difference(OPAQUE, change)
        if not change.name or (change.implicit and not self._everything):
            return None  # each tree has a root, and a path of a few bytes can have 65,536 directories
        if known:
            return Difference(ADDED, change)
        return self._hold(depth, Difference(CHANGED, change))

    def _only_older(self, depth: int, whole: bool) -> Difference | None:
        if not whole:
            self._older.skip()
            return None
        gone = self._older.take()
        return None if gone is None else self._deleted(gone, depth)

    def _deleted(self, gone: Change, depth: int) -> Difference | None:
        if gone.shared and gone.link_to is None:
            self._facts(gone, self._older_files)
        if gone.kind is WHITEOUT and not self._sides.marks_are_entries:
            return None
        if gone.kind is DIRECTORY:
            self._pass_over_older(depth)
            if not gone.name:
                return None
        return Difference(DELETED, gone)

    def _pass_over_older(self, depth: int) -> None:
        """Skip what the older side has in a directory that has been taken, unless it is to be yielded."""
        if self._everything:
            self._whole.append(True)
            return
        while (place := self._older.ahead()) is not None and place[0] > depth:
            self._older.skip()

    def _both(self, depth: int, whole: bool) -> Difference | None:
        change, old = self._newer.take(), self._older.take()
        marks = self._sides.marks_are_entries
        if old is not None and old.kind is WHITEOUT and not marks:
            old = None
        if old is None:
            return None if change is None else self._new(change, depth, whole)
        if change is None:
            if whole:
                return self._deleted(old, depth)
            while (place := self._older.ahead()) is not None and place[0] > depth:
                self._older.skip()
            return None
        if change.kind is WHITEOUT and not marks:
            return self._deleted(old, depth)
        if change.kind is DIRECTORY and old.kind is DIRECTORY:
            return self._both_directories(change, old, depth, whole)
        new_facts = self._facts(change, self._newer_files)
        old_facts = self._facts(old, self._older_files)
        if change.kind is not old.kind:
            if change.kind is DIRECTORY:
                self._whole.append(True)
            elif old.kind is DIRECTORY:
                self._pass_over_older(depth)
            return Difference(MODIFIED, change, old=old)
        if _contents_differ(change, new_facts, old, old_facts):
            return Difference(MODIFIED, change, old=old)
        if change.kind is not WHITEOUT and _metadata_differ(change, new_facts, old, old_facts):
            return Difference(METADATA, change, old=old)
        return None

    def _both_directories(self, change: Change, old: Change, depth: int, whole: bool) -> Difference | None:
        marks = self._sides.marks_are_entries
        hid_already = old.opaque if marks else whole
        opaque = change.opaque and not hid_already
        self._whole.append(whole or change.opaque)
        if opaque:
            return Difference(OPAQUE, change, old=old)
        if not (change.implicit or old.implicit):
            *now, time_now = metadata_of(change)
            *before, time_before = metadata_of(old)
            if now != before or not same_attributes(change, old) or (marks and change.opaque != old.opaque):
                return Difference(METADATA, change, old=old)
            if time_now != time_before:
                return self._hold(depth, Difference(METADATA, change, old=old))
        return Difference(UNCHANGED, change, old=old) if self._everything and change.name else None

    def _hold(self, depth: int, difference: Difference) -> Difference | None:
        """Keep a directory until it is known whether something in it is different."""
        if self._everything:
            return difference
        self._held.append((depth, difference))
        return None

    def _facts(self, change: Change, files: dict[int, Facts]) -> Facts | None:
        """Return what is remembered of a file with several names; None for other files."""
        if not change.shared:
            return None
        facts = files.get(change.shared)
        if facts is None:
            facts = files[change.shared] = Facts(change)
        return facts


class _Nothing:
    """A source that has nothing."""

    def ahead(self) -> tuple[int, str] | None:
        return None

    def is_directory(self) -> bool:
        raise NotImplementedError

    def take(self) -> Change | None:
        raise NotImplementedError

    def skip(self) -> None:
        raise NotImplementedError


class Facts:
    """What is remembered of a file with several names, because only the first one has its data and attributes.

    Args:
        change: its first name.
        metadata: see below; None: the change's.
        names: gives the names of the attributes that count; None: those that are the entry's own.

    Attributes:
        contents: digest of the data.
        attributes: digest of the attributes.
        metadata: owner, mode and time of modification.
    """

    __slots__ = ("attributes", "contents", "metadata")

    def __init__(
        self,
        change: Change,
        *,
        metadata: tuple[int, int, int, int] | None = None,
        names: Callable[[Change], list[str]] | None = None,
    ) -> None:
        self.contents = digest_of(change) if change.kind is FILE and change.link_to is None else b""
        self.metadata = metadata or metadata_of(change)
        attributes = blake2b(digest_size=16)
        for name in sorted((names or _compared)(change)):
            value = change.attributes[name]
            attributes.update(b"%d:%s%d:" % (len(name), os.fsencode(name), len(value)))
            attributes.update(value)
        self.attributes = attributes.digest()

    def equals(self, other: Facts) -> bool:
        """Return whether two files are the same."""
        return (self.contents, self.metadata, self.attributes) == (
            other.contents,
            other.metadata,
            other.attributes,
        )


def _contents_differ(change: Change, facts: Facts | None, old: Change, old_facts: Facts | None) -> bool:
    """Return whether two entries of one type differ in more than metadata."""
    kind = change.kind
    if kind is SYMLINK:
        return change.target != old.target
    if kind in (BLOCK_DEVICE, CHARACTER_DEVICE):
        return change.rdev != old.rdev
    if kind is not FILE:
        return False
    if change.size != old.size:
        return True
    if not change.size or (facts is None and old_facts is None and _is_one_file(change, old)):
        return False
    # Equal times do not mean equal contents: a container can set them.
    now = facts.contents if facts else digest_of(change)
    before = old_facts.contents if old_facts else digest_of(old)
    return now != before


def _is_one_file(change: Change, old: Change) -> bool:
    if change.fd < 0 or old.fd < 0:
        return False
    return os.path.samestat(os.fstat(change.fd), os.fstat(old.fd))


def _metadata_differ(change: Change, facts: Facts | None, old: Change, old_facts: Facts | None) -> bool:
    now = facts.metadata if facts else metadata_of(change)
    before = old_facts.metadata if old_facts else metadata_of(old)
    if now != before:
        return True
    if facts is None and old_facts is None:
        return not same_attributes(change, old)
    return (facts or Facts(change)).attributes != (old_facts or Facts(old)).attributes


def metadata_of(change: Change) -> tuple[int, int, int, int]:
    """Return mode, owner and time of modification."""
    # A symbolic link's mode means nothing, and not every archive has it.
    mode = 0 if change.kind is SYMLINK else change.mode
    return mode, change.uid, change.gid, change.mtime_ns


def _compared(change: Change) -> list[str]:
    """Return the names of an entry's attributes that are its own, and not the host's or an overlay's."""
    return [
        name
        for name in change.attributes
        if name != SELINUX_LABEL and not name.startswith(OVERLAY_ATTRIBUTES)
    ]


def same_attributes(
    change: Change, old: Change, *, names_of: Callable[[Change], list[str]] | None = None
) -> bool:
    """Return whether two entries have the same extended attributes.

    Args:
        change, old: the two.
        names_of: gives the names of those that count; None: those that are the entry's own.

    Raises:
        ArchiveError: they cannot be read.
    """
    if not change.attributes and not old.attributes:
        return True
    names_of = names_of or _compared
    names = names_of(change)
    if set(names) != set(names_of(old)):
        return False
    return all(change.attributes[name] == old.attributes[name] for name in names)


def same_data(change: Change, old: Change) -> bool:
    """Return whether two files, not hard links, have the same data. Holes count as zeros.

    Raises:
        ArchiveError: they cannot be read.
    """
    if change.size != old.size:
        return False
    return all(block == other for block, other in zip_longest(_blocks(change), _blocks(old)))


def digest_of(change: Change) -> bytes:
    """Return a digest of a file's data, the same wherever there are holes instead of zeros.

    Args:
        change: a file, not a hard link. If its data come in pieces, this uses them up.

    Raises:
        ArchiveError: they cannot be read.
    """
    digest = blake2b(digest_size=16)
    for offset, block in _blocks(change):
        digest.update(b"%d:" % offset)
        digest.update(block)
    return digest.digest()


def _blocks(change: Change) -> Iterator[tuple[int, bytes]]:
    """Yield a file's data in blocks, except for blocks of zeros."""
    start = 0
    block = bytearray()
    for position, data in data_of(change):
        offset = position
        taken = 0
        while taken < len(data):
            begin = offset - offset % _BLOCK
            if begin != start:
                if block.strip(b"\0"):
                    yield start, bytes(block).rstrip(b"\0")
                start = begin
                block.clear()
            end = min(len(data), taken + begin + _BLOCK - offset)
            block += bytes(offset - begin - len(block))
            block += data[taken:end]
            offset += end - taken
            taken = end
    if block.strip(b"\0"):
        yield start, bytes(block).rstrip(b"\0")


def data_of(change: Change) -> Iterator[tuple[int, bytes]]:
    """Yield a file's data: pieces in their order, and at which offset each belongs. What is in between is zeros.

    Raises:
        ArchiveError: they cannot be read.
    """
    if change.data is not None:
        yield 0, change.data
    elif change.pieces is not None:
        yield from change.pieces
    elif change.fd >= 0:
        try:
            for start, length in segments(change.fd, change.size):
                offset = start
                while offset < start + length:
                    data = os.pread(change.fd, min(_BLOCK, start + length - offset), offset)
                    if not data:
                        raise change.changed()
                    yield offset, data
                    offset += len(data)
        except OSError as error:
            fail(f"cannot read {change.shown}", error)
