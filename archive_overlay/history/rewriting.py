"""A history written anew: fewer revisions, other layers. Squash, prune and tag are that.

The **cuts** of a history are its revisions and the last ones of its layers. What lies between two cuts that follow one another
is needed by itself, as a part of a revision's change set: as a layer, or as a piece of a pack. Other pieces are of use if
they begin and end at cuts. So pieces stay nested, and what revisions have had that are none any more goes when they go.

Source: docs/design.md, "Histories".
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.keys import PREFIX
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.images import entries_up_to, image_of, put_image, with_chain
from archive_overlay.layout.packs import LARGEST_BLOB, LARGEST_SHARED, MOST_REVISIONS, add_history, add_pack
from archive_overlay.layout.pieces import Pieces
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from archive_overlay.history.compaction import Composer, Fresh
    from archive_overlay.history.revisions import Image
    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.packs import Kept, PackEntry
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.layout.stored import StoredImage

# Facts of a revision that are counted from its change set.
_COUNTED = ("entries", "deletions", "bytes")


class Wanted(Record):
    """What a history is to become.

    Attributes:
        runs: its layers, the lowest first: pieces that follow one another, and become one each.
        kept: what is known of each of its revisions, by number.
        tidy: whether packs are rewritten that have something in them which is not needed any more.
    """

    runs: Sequence[Sequence[Piece]]
    kept: Mapping[int, Kept]
    tidy: bool = True


class Plan(Record):
    """A history that is going to be written.

    Attributes:
        layers: of the image, the lowest first.
        fresh: those layers that were composed.
        kept: what is known of each revision, by number.
        entries: packs that stay as they are.
        facts: of revisions that are to be in new packs, the lowest number first.
        pieces: the same of pieces.
        staged: those of these pieces that are files in staging: their names there, by digest.
        superseded: digests of blobs that it does not need.
    """

    layers: Sequence[Piece]
    fresh: Sequence[Fresh]
    kept: Mapping[int, Kept]
    entries: Sequence[PackEntry]
    facts: Sequence[Kept]
    pieces: Sequence[Piece]
    staged: Mapping[str, str]
    superseded: Sequence[str]


class _Cuts:
    """Where a history can be cut."""

    def __init__(self, layers: Sequence[Piece], numbers: set[int]) -> None:
        self.first = layers[0].first
        ends = {piece.last for piece in layers}
        self.sorted = sorted({n for n in numbers if self.first <= n <= layers[-1].last} | ends)
        self._cuts = set(self.sorted)
        self._layers = {(piece.first, piece.last) for piece in layers}

    def units(self) -> Iterator[tuple[int, int]]:
        """Give what lies between two cuts that follow one another, and is no layer."""
        first = self.first
        for last in self.sorted:
            if (first, last) not in self._layers:
                yield first, last
            first = last + 1

    def fits(self, piece: Piece) -> bool:
        """Say whether a piece of a pack is of use."""
        begins = piece.first == self.first or piece.first - 1 in self._cuts
        return begins and piece.last in self._cuts and (piece.first, piece.last) not in self._layers


def plan_rewriting(image: Image, wanted: Wanted, composer: Composer) -> Plan:
    """Compose what has to be composed for a history to become another one.

    Args:
        image: its image.
        wanted: what it is to become.
        composer: of this image.

    Raises:
        ArchiveError: something of it is missing or damaged, or a piece cannot be written.
        OSError: something cannot be read or written.
    """
    stored = image.stored
    kept = dict(wanted.kept)
    layers: list[Piece] = []
    fresh: list[Fresh] = []
    composer.expect(wanted.runs)
    for run in wanted.runs:
        if len(run) == 1:
            layers.append(run[0])
            continue
        made = composer.compose(run)
        fresh.append(made)
        layers.append(made.piece)
    cuts = _Cuts(layers, set(kept))
    ends = {piece.last for piece in layers}
    entries: list[PackEntry] = []
    there = Pieces()
    there.add(layers)
    loose: list[Piece] = []  # of packs that do not stay
    packed: set[int] = set()
    superseded: list[str] = []
    for entry in entries_up_to(stored, layers[-1].last):
        facts, pieces = stored.content(entry)
        if wanted.tidy and not _is_tidy(entry, facts, pieces, kept, ends, cuts):
            loose += [piece for piece in pieces if cuts.fits(piece)]
            superseded += [str(entry.descriptor["digest"]), *stored.blobs_of(entry)]
            continue
        entries.append(entry)
        there.add(pieces)
        packed |= {each.number for each in facts}
    chosen = {(piece.first, piece.last): piece for piece in loose}
    in_image = {(piece.first, piece.last): piece for piece in stored.layers}
    whole = {(piece.first, piece.last): piece for piece in layers}
    staged: dict[str, str] = {}
    for first, last in cuts.units():
        found = there.cover(first, last)
        if found is None or (wanted.tidy and len(found) > 1):
            piece = chosen.get((first, last)) or in_image.get((first, last))
            if piece is None:
                unit = composer.compose(_alone(image, first, last))
                piece = unit.piece
                staged[piece.digest] = unit.name
            chosen[first, last] = piece
    made_of = {(each.first, each.last): each.layer for each in fresh}
    for first, number in _changes(cuts, kept):
        # What revisions are none any more have left to this one is among what it is said to have changed.
        if sum(first <= each.number <= number for each in image.revisions) > 1:
            layer = made_of.get((first, number)) or composer.made(first, number)
            counts = (layer.entries, layer.deletions, layer.bytes) if layer else (None, None, None)
            kept[number] = _counted(kept[number], counts)
    facts = [kept[number] for number in sorted(kept) if number not in ends and number not in packed]
    # Small pieces are copied.
    remaining = {piece.digest for piece in layers}
    remaining |= {piece.digest for piece in chosen.values() if piece.size > LARGEST_SHARED}
    superseded += [piece.digest for piece in stored.layers if (piece.first, piece.last) not in whole]
    return Plan(
        layers=layers,
        fresh=fresh,
        kept=kept,
        entries=entries,
        facts=facts,
        pieces=sorted(chosen.values(), key=lambda piece: (piece.last, -piece.first)),
        staged=staged,
        superseded=[digest for digest in superseded if digest not in remaining],
    )


def put_rewritten(
    plan: Plan, tag: str, layout: int, image: StoredImage, edit: Edit, *, instead_of: StoredImage | None
) -> None:
    """Let a tag name the image of a history that was written anew.

    Args:
        plan: the history.
        tag: its tag.
        layout: file descriptor of the layout's directory, which is locked.
        image: what it was made of.
        edit: is going to publish it.
        instead_of: the image that has the tag now; None: there is none.

    Raises:
        ArchiveError: something is damaged.
        OSError: something cannot be read or written.
    """
    for made in plan.fresh:
        edit.add_file(made.name, made.layer.digest)
    entries = list(plan.entries)
    with Blobs(layout) as blobs:
        for facts, pieces in _bundles(plan.facts, plan.pieces):
            entries.append(add_pack(edit, blobs, facts, pieces, staged=plan.staged))
    history = add_history(edit, sorted(entries, key=lambda entry: entry.last))
    manifest, config = image_of(layout, image, plan.layers, plan.kept, history, edit)
    manifest["layers"] = with_chain(manifest["layers"], config["rootfs"]["diff_ids"])
    put_image(
        edit,
        tag,
        manifest,
        config,
        instead_of=instead_of,
        superseded=plan.superseded if instead_of else (),
        platform=image.descriptor.get("platform"),
    )


def facts_of(image: StoredImage) -> dict[int, Kept]:
    """Give what is known of the revisions of an image, by number.

    Raises:
        ArchiveError: not all of it can be read. Written anew, the history would be without the rest.
    """
    found = {each.number: each for each in image.kept()}
    if image.lost:
        raise ArchiveError(
            f"a part of the history cannot be read: {image.lost[0]}",
            hint="archive_overlay verify says what is lost",
        )
    return found


def _is_tidy(
    entry: PackEntry,
    facts: Sequence[Kept],
    pieces: Sequence[Piece],
    kept: Mapping[int, Kept],
    ends: set[int],
    cuts: _Cuts,
) -> bool:
    """Say whether all that a pack has is needed."""
    return (
        not entry.pruned
        and all(each == kept.get(each.number) and each.number not in ends for each in facts)
        and all(map(cuts.fits, pieces))
    )


def _alone(image: Image, first: int, last: int) -> list[Piece]:
    found = image.stored.cover(first, last)
    if found is None:
        raise ArchiveError(
            f"{image.name}: the change sets of revisions {first} to {last} are not all in the layout",
            hint=f"archive_overlay verify {image.path} says what is missing",
        )
    return found


def _changes(cuts: _Cuts, kept: Mapping[int, Kept]) -> Iterator[tuple[int, int]]:
    """Give the run of numbers that each revision's change set has."""
    first = cuts.first
    for number in cuts.sorted:
        if number in kept:
            yield first, number
            first = number + 1


def _counted(kept: Kept, counts: Sequence[int | None]) -> Kept:
    """Give what is known of a revision with other counts; None: nobody knows."""
    annotations = dict(kept.annotations)
    for name, value in zip(_COUNTED, counts):
        annotations.pop(f"{PREFIX}{name}", None)
        if value is not None:
            annotations[f"{PREFIX}{name}"] = str(value)
    return kept.replace(annotations=annotations)


def _bundles(
    facts: Sequence[Kept], pieces: Sequence[Piece]
) -> Iterator[tuple[Sequence[Kept], Sequence[Piece]]]:
    """Divide what goes into packs into packs."""
    begin = count = size = 0
    end = 0
    numbers = sorted({each.number for each in facts} | {piece.last for piece in pieces})
    sizes: dict[int, int] = {}
    for piece in pieces:
        if piece.size <= LARGEST_SHARED:
            sizes[piece.last] = sizes.get(piece.last, 0) + piece.size
    for number in numbers:
        if count == MOST_REVISIONS or size + sizes.get(number, 0) > LARGEST_BLOB:
            yield _between(facts, pieces, begin, end)
            begin, count, size = end, 0, 0
        end = number
        count += 1
        size += sizes.get(number, 0)
    if count:
        yield _between(facts, pieces, begin, end)


def _between(
    facts: Sequence[Kept], pieces: Sequence[Piece], after: int, last: int
) -> tuple[Sequence[Kept], Sequence[Piece]]:
    return (
        [each for each in facts if after < each.number <= last],
        [piece for piece in pieces if after < piece.last <= last],
    )
