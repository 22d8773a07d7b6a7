"""Pieces: the change sets that a layout holds, and which of them make up a state or a revision.

A piece is the change set of revisions `first` to `last`, composed. Two pieces made by one host either share no
revision, or one contains the other, because compaction only composes neighbours. So to find the fewest pieces for a run
of revisions, take the longest piece that begins at the first revision and does not go too far, and so on. Pieces of
several hosts may cross, because each host composes on its own. So may pieces composed up to a revision that was pruned
later and pieces composed since. If the simple way leads nowhere, all are tried.
"""

from __future__ import annotations

from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from typing import Any


class Piece(Record):
    """A change set that is stored as a layer is: a tar, perhaps compressed.

    Attributes:
        first, last: numbers of the revisions that are in it.
        digest: of it as it is stored.
        size: of it as it is stored, in bytes.
        diff_id: digest of the tar; "" if the image does not say it.
        media_type: of a layer.
        blob: descriptor of the blob that has it: the piece itself, or many pieces one after the other.
        offset: where it begins in the blob, if that has many; None: it is the blob.
        in_image: whether it is a layer of the image.
    """

    first: int
    last: int
    digest: str
    size: int
    diff_id: str
    media_type: str
    blob: Mapping[str, Any]
    offset: int | None = None
    in_image: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """Where it is stored: the same change set may be in several places, of which one is damaged."""
        return str(self.blob.get("digest")), -1 if self.offset is None else self.offset

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.first == self.last:
            return f"revision {self.first}"
        return f"revisions {self.first} to {self.last}"


class Pieces:
    """Pieces of one history, found by the revision that they begin with."""

    def __init__(self) -> None:
        self._by_first: dict[int, list[Piece]] = {}
        self._cross: bool | None = None  # whether any two do; None: that was not looked at

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add pieces. Of several with the same revisions, the one that was added first is preferred."""
        self._cross = None
        for piece in pieces:
            there = self._by_first.setdefault(piece.first, [])
            there.append(piece)
            there.sort(key=lambda each: -each.last)

    def cover(
        self, first: int, last: int, *, without: Collection[tuple[str, int]] = ()
    ) -> list[Piece] | None:
        """Choose the fewest pieces that hold a run of revisions and no other; where pieces cross, just few.

        Args:
            first, last: numbers of the run; there is nothing in it if `last` is less than `first`.
            without: places of pieces that are not to be used.

        Returns:
            The pieces, the oldest first; None: there are not enough.
        """
        chosen: list[Piece] = []
        dead: set[int] = set()  # no way leads from these numbers to the end
        number = first
        while number <= last:
            found = next(
                (
                    piece
                    for piece in self._by_first.get(number, ())
                    if piece.last <= last and piece.last + 1 not in dead and piece.place not in without
                ),
                None,
            )
            if found is None:
                return self._search(first, last, without) if self._some_cross() else None
            chosen.append(found)
            number = found.last + 1
        return chosen

    def _some_cross(self) -> bool:
        if self._cross is None:
            inside: list[int] = []  # the last revisions of the pieces that have begun and not ended
            self._cross = False
            for first in sorted(self._by_first):
                for piece in self._by_first[first]:
                    while inside and inside[-1] < first:
                        inside.pop()
                    if inside and inside[-1] < piece.last:
                        self._cross = True
                        return True
                    inside.append(piece.last)
        return self._cross

    def _search(self, first: int, last: int, without: Collection[tuple[str, int]]) -> list[Piece] | None:
        """Choose the fewest pieces of all that there are."""
        best: dict[int, tuple[int, Piece | None]] = {
            first: (0, None)
        }  # how many, and the last one, by what comes next
        for number in sorted(each for each in self._by_first if first <= each <= last):
            if number not in best:
                continue
            count = best[number][0] + 1
            for piece in self._by_first[number]:
                end = piece.last + 1
                if end > last + 1 or piece.place in without:
                    continue
                if end not in best or count < best[end][0]:
                    best[end] = count, piece
        chosen: list[Piece] = []
        number = last + 1
        while number != first:
            piece_before = best[number][1] if number in best else None
            if piece_before is None:
                return None
            chosen.append(piece_before)
            number = piece_before.first
        return chosen[::-1]
