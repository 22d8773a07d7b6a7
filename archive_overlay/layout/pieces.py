"""Pieces: the change sets that a layout holds, and which of them make up a state or a revision.

A piece is the change set of revisions `first` to `last`, composed. Of any two pieces of one history, one contains the other
or they have no revision in common: compaction only ever composes neighbours. So the fewest pieces that make up a run of
revisions are found by taking, from the first revision on, the longest piece that begins there and does not go too far. Pruning
makes exceptions: what was composed up to a revision that is pruned later may overlap what is composed then. Where the longest
piece leads nowhere, a shorter one is taken.
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

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add pieces. Of several with the same revisions, the one that was added first is preferred."""
        for piece in pieces:
            there = self._by_first.setdefault(piece.first, [])
            there.append(piece)
            there.sort(key=lambda each: -each.last)

    def cover(
        self, first: int, last: int, *, without: Collection[tuple[str, int]] = ()
    ) -> list[Piece] | None:
        """Choose the fewest pieces that hold a run of revisions and no other.

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
            if found is not None:
                chosen.append(found)
                number = found.last + 1
            elif chosen:
                # The longest piece ends in the middle of another one, which was composed after its last revision was pruned.
                dead.add(number)
                number = chosen.pop().first
            else:
                return None
        return chosen
