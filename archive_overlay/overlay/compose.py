"""Composition: of two change sets, an older one and a newer one, the one that shows what stacking both shows.

    over any lower layers:  compose(older, newer)  shows what  newer over older over them  shows

Composing is associative, so of many change sets any neighbours may be composed first. It takes one pass, and memory for the
depth of the tree: what a source has at one name is compared with what the other has there, and sources come in the same
order. Where a directory is merged in place (`destination/merge`), `at_one_name` decides as well.

Source: the kernel's Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories", "Merging".
"""

from __future__ import annotations

from archive_overlay.overlay.change import DIRECTORY, WHITEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from archive_overlay.overlay.change import Change

    class Source(Protocol):
        """A change set that is read once, depth first: the root, then names in the order of their code points.

        All raise ArchiveError if the change set cannot be read.
        """

        def ahead(self) -> tuple[int, str] | None:
            """Return the depth of the directory that the next entry is in, and its name: -1 and "" for the root.

            None: there is nothing more.
            """

        def is_directory(self) -> bool:
            """Return whether the next entry is a directory."""

        def take(self) -> Change | None:
            """Return the next entry, which is valid until the next `take`; None: it comes to nothing.

            If it is a directory, what is in it comes next.
            """

        def skip(self) -> None:
            """Skip the next entry and everything in it. Other names of the same file remain complete."""


# What a change set has at a name.
NOTHING = "nothing"
OTHER = "other"  # anything but a directory; for an older one, a whiteout too
PLAIN = "plain"  # a directory
OPAQUE = "opaque"  # a directory that hides what lies below
DELETED = "deleted"  # a whiteout

# What is there then, besides NOTHING.
NEWER = "newer"
NEWER_OPAQUE = "newer, opaque"  # a directory that has to hide what lies below from now on
MERGED = "merged"  # the entries of both directories; the newer one's metadata; opaque if the older one is


def at_one_name(older: str, newer: str, *, covered: bool) -> str:
    """Decide what two change sets give at one name, if the newer one has something there.

    Args:
        older: NOTHING, OTHER or PLAIN, which stands for any directory.
        newer: DELETED, OTHER, PLAIN or OPAQUE.
        covered: what lies below is hidden here by a directory further up, so whiteouts mean nothing.

    Returns:
        NOTHING, NEWER, NEWER_OPAQUE or MERGED. Unless it is MERGED, all that the older one has there is gone.
    """
    if newer is DELETED:
        return NOTHING if covered else NEWER
    if newer is PLAIN and older is PLAIN:
        return MERGED
    # What the older one has instead of a directory hid what lies below.
    return NEWER_OPAQUE if newer is PLAIN and older is OTHER else NEWER


def compose(sources: Sequence[Source]) -> Source:
    """Compose change sets.

    Args:
        sources: at least one, the oldest first. Their owner closes them.
    """
    if len(sources) == 1:
        return sources[0]
    half = len(sources) // 2  # so an entry of any goes through few of many
    return _Composed(compose(sources[:half]), compose(sources[half:]))


def changes_of(source: Source) -> Iterator[Change]:
    """Yield what is in a change set, each change valid until the next one is taken.

    Raises:
        ArchiveError: it cannot be read.
    """
    while source.ahead() is not None:
        change = source.take()
        if change is not None:
            yield change


def comes_first(one: tuple[int, str], other: tuple[int, str]) -> bool:
    """Return whether one place comes before another: what is deeper is in a directory that only one of them has."""
    return one[0] > other[0] or (one[0] == other[0] and one[1] <= other[1])


class _Composed:
    """Two change sets as one `Source`."""

    def __init__(self, older: Source, newer: Source) -> None:
        self._older = older
        self._newer = newer
        # The next entry, once somebody has asked for it, and who has something there.
        self._looked = False
        self._place: tuple[int, str] | None = None
        self._in_older = self._in_newer = False
        # Whether the directories from the root to the present one hide what lies below.
        self._covered: list[bool] = []

    def ahead(self) -> tuple[int, str] | None:
        if self._looked:
            return self._place
        older = self._older.ahead()
        newer = self._newer.ahead()
        if older is None or newer is None:
            self._place = older or newer
        else:
            self._place = older if comes_first(older, newer) else newer
        self._in_older = older is not None and older == self._place
        self._in_newer = newer is not None and newer == self._place
        self._looked = True
        return self._place

    def is_directory(self) -> bool:
        self.ahead()
        return self._newer.is_directory() if self._in_newer else self._older.is_directory()

    def skip(self) -> None:
        self.ahead()
        self._looked = False
        if self._in_older:
            self._older.skip()
        if self._in_newer:
            self._newer.skip()

    def take(self) -> Change | None:
        place = self.ahead()
        self._looked = False
        assert place
        del self._covered[place[0] + 1 :]
        covered = bool(self._covered) and self._covered[-1]
        change = self._compose(covered) if self._in_newer else self._take_older()
        if change is None or (covered and change.kind is WHITEOUT):
            return None
        if change.kind is DIRECTORY:
            self._covered.append(covered or change.opaque)
            if covered:
                change.implicit = False
        return change

    def _compose(self, covered: bool) -> Change | None:
        change = self._take_newer()
        if change is None:
            return self._take_older() if self._in_older else None
        there = NOTHING if not self._in_older else PLAIN if self._older.is_directory() else OTHER
        result = at_one_name(there, _kind(change), covered=covered)
        if result is MERGED:
            below = self._take_older()
            opaque = below is not None and below.opaque
            if change.implicit and below is not None:
                change = below
            change.opaque = opaque
        elif change.implicit and there is PLAIN:
            self._describe(change)
        elif self._in_older:
            self._older.skip()
            change.implicit = False  # no source left below can add to it
        if result is NEWER_OPAQUE:
            change.opaque = True
        return change if result is not NOTHING else None

    def _describe(self, change: Change) -> None:
        """Take over the older one's metadata of a directory, and skip its contents."""
        below = self._take_older()
        if below is not None:
            change.mode, change.uid, change.gid = below.mode, below.uid, below.gid
            change.atime_ns, change.mtime_ns = below.atime_ns, below.mtime_ns
            change.attributes, change.implicit = below.attributes, below.implicit
        depth = change.directory.depth if change.name else -1
        while (place := self._older.ahead()) is not None and place[0] > depth:
            self._older.skip()

    def _take_older(self) -> Change | None:
        change = self._older.take()
        if change is not None and change.shared:
            change.shared *= 2  # even ones are the older one's: no two files have the same number
        return change

    def _take_newer(self) -> Change | None:
        change = self._newer.take()
        if change is not None and change.shared:
            change.shared = 2 * change.shared + 1
        return change


def _kind(change: Change) -> str:
    if change.kind is WHITEOUT:
        return DELETED
    if change.kind is DIRECTORY:
        return OPAQUE if change.opaque else PLAIN
    return OTHER
