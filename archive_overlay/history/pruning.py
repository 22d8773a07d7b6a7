"""Choose the revisions of an image that go, and drop them.

A stop only rewrites facts (`put_pruned`): what revisions changed stays where it is, as a part of the next one's change
set. `wanted_without` is for commands, which also free what is no longer needed.
"""

from __future__ import annotations

import time

from archive_overlay.errors import ArchiveError
from archive_overlay.history.dates import seconds_of
from archive_overlay.history.keep import revisions_to_keep
from archive_overlay.history.revisions import opened_layout
from archive_overlay.history.rewriting import Wanted, facts_of
from archive_overlay.keys import PREFIX
from archive_overlay.layout.edit import Edit, until_published
from archive_overlay.layout.images import descriptor_of, put_image
from archive_overlay.layout.lock import lock
from archive_overlay.layout.packs import add_history, format_ranges
from archive_overlay.layout.provenance import read_provenance
from archive_overlay.layout.read import CREATED, HISTORY, images, read_index, tag_of, tagged
from archive_overlay.layout.stored import CHAINS, PRUNED, REVISION, WEIGHT, open_stored
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from archive_overlay.destination.paths import Paths
    from archive_overlay.destination.staging import Staging
    from archive_overlay.layout.keep import Keep
    from archive_overlay.layout.packs import Kept, PackEntry
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.system.patience import Patience

_PARENT = f"{PREFIX}parent"
_BASE = f"{PREFIX}base"
# Facts that follow from where a revision is stored.
_OF_PLACE = (CHAINS, REVISION, WEIGHT, PRUNED)
# Facts that are counted anew if revisions before it are dropped.
_COUNTED = tuple(f"{PREFIX}{name}" for name in ("entries", "deletions", "bytes"))


class Choice(Record):
    """Which revisions of an image go.

    Attributes:
        kept: the numbers of those that stay, the newest first, each with the reasons.
        dropped: the numbers of the others, the newest first.
    """

    kept: Mapping[int, Sequence[str]]
    dropped: Sequence[int]


def choose(image: StoredImage, keep: Keep, protected: Mapping[int, str], now: float | None = None) -> Choice:
    """Choose by rules which revisions go.

    Besides those that are protected, the revisions of other programs stay, and the first one of this program if it says what
    the history began on.

    Args:
        image: their image.
        keep: the rules.
        protected: see `named_elsewhere`.
        now: the present time, in seconds since 1970; None: that of this machine.

    Raises:
        ArchiveError: a part of the history cannot be read.
    """
    facts = facts_of(image)
    stay = {number: "another program's" for number in facts if not _is_by_us(facts[number])}
    first = min((number for number in facts if number not in stay), default=0)
    if first and any(facts[first].annotations.get(key) for key in (_PARENT, _BASE)):
        stay[first] = "the beginning"
    stay.update(protected)
    newest_first = sorted(facts, reverse=True)
    kept = revisions_to_keep(
        [(number, _time_of(facts[number])) for number in newest_first],
        keep,
        protected=stay,
        now=int(time.time() if now is None else now),
    )
    return Choice(kept=kept, dropped=[number for number in newest_first if number not in kept])


def named_elsewhere(layout: int, index: Mapping[str, Any], image: StoredImage) -> dict[int, str]:
    """Return the revisions of an image on which others end or begin, each with a reason.

    Args:
        layout: file descriptor of the layout's directory.
        index: the layout's.
        image: one of its images.
    """
    own = {each.number: each for each in image.kept()}
    tag = tag_of(image.descriptor)
    found: dict[int, str] = {}
    for descriptor in images(index):
        if descriptor.get("digest") == image.descriptor.get("digest"):
            continue
        try:
            other = open_stored(layout, descriptor, whole=False)
        except (ArchiveError, OSError):
            continue  # damaged, or no image of this program's
        theirs = {each.number: each for each in other.kept()}
        common = [number for number in own if number in theirs and _same(own[number], theirs[number])]
        name = tag_of(descriptor) or "an image without a tag"
        if common and max(common) > image.base:
            number = max(common)
            found.setdefault(number, f"tag {name}" if number == other.last else f"branch {name}")
        for each in theirs.values():
            parent, _, digits = str(each.annotations.get(_PARENT, "")).rpartition("@")
            if parent == tag and digits.isascii() and digits.isdigit() and int(digits[:9]) in own:
                found.setdefault(int(digits[:9]), f"branch {name}")
    return found


def prune(
    path: str,
    tag: str,
    staging: Staging,
    *,
    keep: Keep,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> str:
    """Drop the revisions of an image that no rule keeps. No change set is read or written.

    Args:
        path: of the layout, resolved.
        tag: the image's.
        staging: in the layout.
        keep: the rules.
        paths: how to get to the layout.
        patience: how long to wait for others.
        log: is told if it does.

    Returns:
        What was done, for a message; "" for nothing.

    Raises:
        ArchiveError: that is not possible; the image is as it was.
    """
    with opened_layout(path, paths) as layout:
        if not _to_drop(layout, read_index(layout), tag, keep)[1]:
            return ""
        lock(layout, path, patience, log)
        edit = Edit(layout, staging)

        def put() -> str:
            image, dropped = _to_drop(layout, edit.index, tag, keep)
            if image is None or not dropped:
                return ""
            put_pruned(tag, image, dropped, edit)
            edit.publish()
            return f"pruned: {format_ranges(runs_of(dropped))}"

        return until_published(edit, path, put)


def _to_drop(
    layout: int, index: Mapping[str, Any], tag: str, keep: Keep
) -> tuple[StoredImage | None, Sequence[int]]:
    """Return an image, and the revisions of it that go."""
    descriptor = tagged(index, tag)
    if descriptor is None:
        return None, ()
    image = open_stored(layout, descriptor)
    if not choose(image, keep, {}).dropped:
        return image, ()  # nobody has to be asked
    return image, choose(image, keep, named_elsewhere(layout, index, image)).dropped


def put_pruned(tag: str, image: StoredImage, dropped: Collection[int], edit: Edit) -> None:
    """Drop revisions. No change set is read or written.

    Args:
        tag: the image's.
        image: as it is now.
        dropped: numbers of the revisions. The last one is not among them.
        edit: is going to publish it.

    Raises:
        ArchiveError, OSError: something cannot be read or written.
    """
    assert image.last not in dropped
    layers = []
    for piece, layer in zip(image.layers, image.manifest["layers"]):
        if piece.last in dropped:
            layer = {**layer, "annotations": descriptor_of(piece, None)["annotations"]}
        layers.append(layer)
    history = add_history(edit, [without(entry, dropped) for entry in image.packs])
    annotations = {key: value for key, value in image.manifest["annotations"].items() if key != HISTORY}
    if history:
        annotations[HISTORY] = history
    manifest = {**image.manifest, "layers": layers, "annotations": annotations}
    put_image(edit, tag, manifest, image.config, instead_of=image)


def wanted_without(
    image: StoredImage, dropped: Collection[int], *, within: tuple[int, int] | None = None
) -> Wanted:
    """Describe a history without some revisions and without anything that only these need.

    Args:
        image: its image.
        dropped: numbers of the revisions.
        within: numbers of the first and the last revision whose layers may be composed; None: all but the base's.

    Raises:
        ArchiveError: a part of the history cannot be read.
    """
    kept = {number: fact for number, fact in facts_of(image).items() if number not in dropped}
    begin, end = within or (image.base + 1, image.last)
    runs: list[Sequence[Piece]] = []
    run: list[Piece] = []
    numbers = sorted(kept)
    for piece in image.layers:
        if piece.first < begin or piece.last > end:
            runs += [run, [piece]] if run else [[piece]]
            run = []
            continue
        if run and any(piece.first <= number < piece.last for number in numbers):
            runs.append(run)
            run = []
        run.append(piece)
        if any(piece.first <= number <= piece.last for number in numbers):
            runs.append(run)
            run = []
    if run:
        runs.append(run)
    return Wanted(runs=runs, kept=kept)


def without(entry: PackEntry, dropped: Collection[int]) -> PackEntry:
    """Return an entry without the pruned revisions."""
    numbers = {number for number in dropped if entry.first <= number <= entry.last}
    if not numbers:
        return entry
    for first, last in entry.pruned:
        numbers.update(range(max(first, entry.first), min(last, entry.last) + 1))
    return entry.replace(pruned=runs_of(numbers))


def runs_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the runs of numbers that follow one another."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def _is_by_us(kept: Kept) -> bool:
    history = {"created_by": kept.created_by, "comment": kept.comment}
    return read_provenance(kept.annotations, history) is not None


def _time_of(kept: Kept) -> int | None:
    created = kept.annotations.get(CREATED) or kept.created
    return seconds_of(created) if isinstance(created, str) else None


def _same(one: Kept, other: Kept) -> bool:
    """Return whether two images mean the same revision."""
    return _identity(one) == _identity(other)


def _identity(kept: Kept) -> dict[str, Any]:
    said = {key: value for key, value in kept.annotations.items() if key not in (*_OF_PLACE, *_COUNTED)}
    return {**said, CREATED: said.get(CREATED) or kept.created, "created_by": kept.created_by}
