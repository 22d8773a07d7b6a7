"""Compaction: fewer layers, the same revisions.

Runs of an image's younger layers become one layer each (`tiers` says which). What the image then has only composed goes into a
pack: the facts of the revisions, and their change sets, so each revision can still be had.

The work is done without the layout's lock, which other containers wait for when they stop: layers are composed first, into
files that nobody else sees. Then, under the lock, they take the places of those that they were made of, if these are still
where they were.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.history.composing import compose_layers
from archive_overlay.history.tiers import OF_REVISION, runs_to_compose
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.images import put_image, with_chain, with_composed
from archive_overlay.layout.packs import LARGEST_SHARED, MOST_REVISIONS, add_history, add_pack
from archive_overlay.layout.pieces import Piece
from archive_overlay.layout.read import HISTORY
from archive_overlay.layout.stored import WEIGHT
from archive_overlay.system.activity import NOW
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from archive_overlay.destination.staging import Staging
    from archive_overlay.history.revisions import Image
    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.layer import Layer
    from archive_overlay.layout.packs import Kept, PackEntry
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log

# When there are so many packs of few revisions, they become one: a history of any length has few of them.
_MANY_PACKS = 10
# Layers of so many revisions at most are kept when they are composed with others, if they are small. So a state of a long
# history is made of few pieces: without them it would be one for each revision.
_MOST_TOGETHER = 100


class Form(Record):
    """How layers are written.

    Attributes:
        compression: a name in `layer.MEDIA_TYPES`.
        level: of the compression.
        jobs: how many threads may compress; 0: as many as there are processors for this process.
    """

    compression: str = "gzip"
    level: int = 6
    jobs: int = 0


class Fresh(Record):
    """A change set that was composed, and is in staging.

    Attributes:
        first, last: numbers of the revisions in it.
        layer: what is known of it.
        name: of its file in staging.
    """

    first: int
    last: int
    layer: Layer
    name: str

    @property
    def piece(self) -> Piece:
        """It as a piece that is a blob of its own."""
        layer = self.layer
        return Piece(
            first=self.first,
            last=self.last,
            digest=layer.digest,
            size=layer.size,
            diff_id=layer.diff_id,
            media_type=layer.media_type,
            blob={"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size},
        )


class Composer:
    """Composes pieces of an image into files in staging, each run of revisions once.

    Args:
        image: whose pieces.
        staging: where the files are made.
        form: how they are written.
        log: takes warnings of what is left out.

    Attributes:
        image: see there; it may become a newer one of the same history.
    """

    def __init__(self, image: Image, staging: Staging, form: Form, log: Log) -> None:
        self.image = image
        self._staging = staging
        self._form = form
        self._log = log
        self._made: dict[tuple[int, tuple[str, ...]], Fresh] = {}

    def expect(self, runs: Iterable[Sequence[Piece]]) -> None:
        """Count what is going to be read to compose some runs."""
        for pieces in runs:
            if len(pieces) > 1 and self._key(pieces) not in self._made:
                NOW.expected += sum(piece.size for piece in pieces)

    def compose(self, pieces: Sequence[Piece]) -> Fresh:
        """Compose pieces that follow one another.

        Raises:
            ArchiveError: one of them is damaged, or the result cannot be written.
            OSError: there is no writing in staging.
        """
        key = self._key(pieces)
        if key in self._made:
            return self._made[key]
        name = f"composed-{len(self._made)}"
        fd = self._staging.create_file(name)
        try:
            layer = compose_layers(
                [lambda piece=piece: self.image.read(piece) for piece in pieces],  # type: ignore[misc]
                fd,
                directory=self._staging.directory,
                where=self._staging.path,
                compression=self._form.compression,
                level=self._form.level,
                jobs=self._form.jobs,
                log=self._log,
            )
        finally:
            os.close(fd)
        self._made[key] = Fresh(first=pieces[0].first, last=pieces[-1].last, layer=layer, name=name)
        return self._made[key]

    def _key(self, pieces: Sequence[Piece]) -> tuple[int, tuple[str, ...]]:
        # Other revisions may have changed the same.
        return pieces[0].first, tuple(piece.digest for piece in pieces)

    def made(self, first: int, last: int) -> Layer | None:
        """Give what was composed of a run of revisions; None: nothing was."""
        found = (each.layer for each in self._made.values() if (each.first, each.last) == (first, last))
        return next(found, None)


class Plan(Record):
    """What a compaction has composed.

    Attributes:
        layers: by the digests of the layers whose place each takes.
        pieces: what is to be in packs, of what is not there yet: layers as they are, and others that were composed.
        fresh: those of them that were composed.
    """

    layers: Sequence[tuple[tuple[str, ...], Fresh]]
    pieces: Sequence[Piece]
    fresh: Sequence[Fresh]


def compact(image: Image, composer: Composer, *, most: int) -> Plan | None:
    """Compose what has to be composed for an image to have room for one more layer.

    Args:
        image: the image.
        composer: of this image.
        most: how many layers it may have.

    Returns:
        What was composed; None if nothing had to be.

    Raises:
        ArchiveError: a layer is damaged, or the result cannot be written.
        OSError: there is no writing in staging.
    """
    stored = image.stored
    base = sum(piece.last <= stored.base for piece in stored.layers)
    weights = [_weight(stored, position) for position in range(base, len(stored.layers))]
    runs = runs_to_compose(weights, others=base, most=most)
    if not runs:
        return None
    stored.packs_to_keep()  # so nothing is composed in vain
    return compose_runs(image, composer, [(base + begin, base + end) for begin, end in runs])


def compose_runs(image: Image, composer: Composer, runs: Iterable[tuple[int, int]]) -> Plan:
    """Compose runs of an image's layers, and what the revisions in them need to be had alone.

    Args:
        image: the image.
        composer: of this image.
        runs: positions of the first layer and of the one after the last, of each.

    Raises:
        ArchiveError, OSError: see `compact`.
    """
    stored = image.stored
    layers, pieces, fresh = [], [], []
    for begin, end in runs:
        run = stored.layers[begin:end]
        layers.append((tuple(piece.digest for piece in run), composer.compose(run)))
        inside = [each for each in image.revisions if run[0].first <= each.number <= run[-1].last]
        if len(inside) < 2:
            continue  # all of it is one revision, and the layer is its change set
        pieces += [piece for piece in run if _shortens(piece)]
        for revision in inside:
            found = _alone(image, max(revision.previous + 1, run[0].first), revision.number)
            if len(found) > 1:
                made = composer.compose(found)
                fresh.append(made)
                pieces.append(made.piece)
            elif found[0].in_image and found[0] not in pieces:
                pieces.append(found[0])
    return Plan(layers=layers, pieces=pieces, fresh=fresh)


def put_compacted(plan: Plan, tag: str, layout: int, image: StoredImage, edit: Edit) -> bool:
    """Let the composed layers take their places.

    Args:
        plan: what was composed.
        tag: the image's.
        layout: file descriptor of the layout's directory, which is locked.
        image: as it is now.
        edit: is going to publish it.

    Returns:
        Whether that is possible: somebody else may have composed the same layers.

    Raises:
        ArchiveError: a pack is damaged.
        OSError: something cannot be read or written.
    """
    digests = [piece.digest for piece in image.layers]
    places = []
    for old, made in plan.layers:
        # Other layers may have changed the same.
        begin = next((i for i, piece in enumerate(image.layers) if piece.first == made.first), None)
        if begin is None or tuple(digests[begin : begin + len(old)]) != old:
            return False
        places.append((begin, begin + len(old), made))
    kept = {each.number: each for each in image.kept()}
    manifest, config = dict(image.manifest), dict(image.config)
    inside: list[Kept] = []
    superseded: list[str] = []
    for begin, end, made in sorted(places, reverse=True, key=lambda place: place[0]):
        edit.add_file(made.name, made.layer.digest)
        inside += [kept[piece.last] for piece in image.layers[begin : end - 1] if piece.last in kept]
        superseded += digests[begin:end]
        weight = sum(_weight(image, position) for position in range(begin, end))
        manifest, config = with_composed(manifest, config, begin, end, made.piece, weight)
    manifest["layers"] = with_chain(manifest["layers"], config["rootfs"]["diff_ids"])
    with Blobs(layout) as blobs:
        entries = [*image.packs_to_keep()]
        if inside or plan.pieces:
            staged = {each.layer.digest: each.name for each in plan.fresh}
            inside.sort(key=lambda each: each.number)
            entries.append(add_pack(edit, blobs, inside, plan.pieces, staged=staged))
            entries, merged = with_merged(image, entries, edit, blobs)
            superseded += merged
        value = add_history(edit, entries)
    annotations = {key: each for key, each in manifest["annotations"].items() if key != HISTORY}
    manifest["annotations"] = {**annotations, HISTORY: value} if value else annotations
    put_image(edit, tag, manifest, config, instead_of=image, superseded=superseded)
    return True


def _alone(image: Image, first: int, last: int) -> list[Piece]:
    """Give the pieces that hold a run of revisions; one of a pack before a layer, because it is there already."""
    packed = [piece for piece in image.stored.pieces(first, last) if not piece.in_image]
    whole = [piece for piece in packed if piece.first == first and piece.last == last]
    return whole[:1] or image.between(first - 1, last)


def _shortens(piece: Piece) -> bool:
    """Say whether it is worth its bytes to keep a composed layer beside the change sets of its revisions."""
    return 0 < piece.last - piece.first < _MOST_TOGETHER and piece.size <= LARGEST_SHARED


def _weight(image: StoredImage, position: int) -> int:
    """Give what a layer weighs; see `tiers`."""
    piece = image.layers[position]
    annotations = image.manifest["layers"][position].get("annotations") or {}
    said = annotations.get(WEIGHT, "")
    if isinstance(said, str) and said.isascii() and said.isdigit() and len(said) < 19:
        return int(said)
    return piece.size + OF_REVISION * (piece.last - piece.first + 1)


def with_merged(
    image: StoredImage, entries: list[PackEntry], edit: Edit, blobs: Blobs
) -> tuple[list[PackEntry], list[str]]:
    """Let the last packs of a history become one, if they are many and small; give the digests of the old ones, too.

    The last entry is one that is still in staging, and stays.
    """
    *older, newest = entries
    count = revisions = 0
    for entry in reversed(older):
        revisions += entry.last - entry.first + 1
        if revisions > MOST_REVISIONS:
            break
        count += 1
    if count < _MANY_PACKS:
        return entries, []
    merged = older[-count:]
    kept: list[Kept] = []
    pieces: list[Piece] = []
    digests = [str(entry.descriptor["digest"]) for entry in merged]
    try:
        for entry in merged:
            found = image.content(entry)
            kept += found[0]
            pieces += found[1]
            digests += image.blobs_of(entry)
        known = {each.number: each for each in reversed(kept)}  # the first one counts, as always
        kept = [known[number] for number in sorted(known)]
        whole = [add_pack(edit, blobs, kept, pieces)] if kept or pieces else []
    except ArchiveError:  # one is damaged, or long messages make the whole too large: they stay as they are
        return entries, []
    return [*older[:-count], *whole, newest], digests
