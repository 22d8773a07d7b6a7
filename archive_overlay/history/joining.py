"""Join what another host has added to a history with what is here.

Hosts that share a registry have one history, and each has its own layout. A registry has images but no packs. So a
fetched image has the revisions that its layers name; revisions that it holds only composed are in this layout, if they
ever were. The history here is both together: the fetched image replaces the one here, and a pack keeps what only the
old one had, as in a compaction.

Whether one image continues another is known by the numbers of their revisions and by the ids of their layers in stores,
which depend on what is in each layer and below it.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.history.compaction import with_merged
from archive_overlay.history.pruning import without
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.images import descriptor_of, entries_up_to, put_image, with_ancestors
from archive_overlay.layout.packs import add_history, add_pack
from archive_overlay.layout.pieces import Pieces
from archive_overlay.layout.read import HISTORY, images, tag_of
from archive_overlay.layout.stored import (
    ANCESTOR_DIGITS,
    PRUNED,
    SUPERSEDED,
    chains_in,
    open_stored,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.packs import Kept, PackEntry
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.layout.stored import StoredImage


def goes_on_with(later: StoredImage, earlier: StoredImage) -> bool:
    """Return whether an image continues another one or equals it, however its layers were composed."""
    return not earlier.layers or _has(later, earlier.chains(), earlier.last)


def last_in_common(image: StoredImage, other: StoredImage) -> int:
    """Return the number of the last revision of an image that another one has, too; 0: there is none."""
    if image.layers and goes_on_with(other, image):
        return image.last
    theirs, beginnings = _all_ids(other), other.ancestors()
    numbers = [
        number
        for identifier, number in _all_ids(image).items()
        if number in (theirs.get(identifier), beginnings.get(identifier[:ANCESTOR_DIGITS]))
    ]
    return max(numbers, default=0)


def _has(image: StoredImage, ids: Mapping[str, int], number: int) -> bool:
    """Say whether an image has a revision, by ids that revisions had in stores. Packs are read only if they are needed."""
    asked = [each for each in ids if ids[each] == number]
    chains, beginnings = image.chains(), image.ancestors()
    if any(number in (chains.get(each), beginnings.get(each[:ANCESTOR_DIGITS])) for each in asked):
        return True
    every = _all_ids(image)
    return any(every.get(each) == number for each in asked)


def _all_ids(image: StoredImage) -> dict[str, int]:
    """Return all ids that an image's revisions had in stores, with their numbers."""
    found = {each: kept.number for kept in image.kept() for each in chains_in(kept.annotations)}
    return {**found, **image.chains()}


def named_besides(layout: int, index: Mapping[str, Any], tag: str, image: StoredImage) -> str:
    """Find another tag that has all of an image; "" if there is none.

    Args:
        layout: file descriptor of the layout's directory.
        index: the layout's.
        tag: the image's.
        image: whose last revision is looked for.
    """
    for descriptor in reversed(images(index)):
        name = tag_of(descriptor)
        if not name or name == tag:
            continue
        try:
            if goes_on_with(open_stored(layout, descriptor), image):
                return name
        except (ArchiveError, OSError):
            continue  # damaged, or no image: another one's matter
    return ""


def put_joined(
    edit: Edit,
    tag: str,
    layout: int,
    fetched: StoredImage,
    *,
    here: StoredImage | None,
) -> str:
    """Point a tag to an image that came from elsewhere, and keep what was known here of its revisions.

    What the image says of its own layout's packs and superfluous blobs does not apply here.

    Args:
        edit: is going to publish it, and has all of its blobs but the manifest that is not in the layout yet.
        tag: the tag.
        layout: file descriptor of the layout's directory, which is locked.
        fetched: the image.
        here: the image that has the tag now; None: there is none.

    Returns:
        The digest of the tag's new manifest.

    Raises:
        ArchiveError: what is here is damaged.
        OSError: something cannot be read or written.
    """
    said = {
        key: value
        for key, value in fetched.manifest["annotations"].items()
        if key not in (HISTORY, SUPERSEDED)
    }
    manifest: dict[str, Any] = {**fetched.manifest, "annotations": said}
    diff_ids = fetched.config["rootfs"]["diff_ids"]
    common = last_in_common(here, fetched) if here else 0
    superseded: list[str] = []
    if here and common == here.last and _has_layers(fetched, here):
        # Nothing was composed, so no pack is needed.
        if value := add_history(edit, here.packs_to_keep()):
            manifest["annotations"][HISTORY] = value
    elif here and common:
        known = {each.number: each for each in here.kept() if each.number <= common}
        manifest["layers"] = [
            descriptor_of(piece, known[piece.last]) if _is_pruned(layer) and piece.last in known else layer
            for piece, layer in zip(fetched.layers, manifest["layers"])
        ]
        entries, superseded = _kept_here(here, common, known, fetched, edit, layout)
        manifest = with_ancestors(manifest, diff_ids, here, up_to=common)
        if value := add_history(edit, entries):
            manifest["annotations"][HISTORY] = value
    return put_image(
        edit,
        tag,
        manifest,
        fetched.config,
        # If the image does not continue this one, another tag has this one and still needs it.
        instead_of=here if here and common == here.last else None,
        superseded=superseded,
        platform=fetched.descriptor.get("platform"),
        same_config=True,
    )


def _kept_here(
    here: StoredImage,
    common: int,
    known: Mapping[int, Kept],
    fetched: StoredImage,
    edit: Edit,
    layout: int,
) -> tuple[list[PackEntry], list[str]]:
    """Keep what is known here of an image's revisions; give its packs, and the digests of blobs that are not needed then."""
    here.packs_to_keep()
    entries = entries_up_to(here, common)
    theirs = {(piece.first, piece.last, piece.digest) for piece in fetched.layers}
    pieces = [
        piece
        for piece in here.layers
        if piece.last <= common and (piece.first, piece.last, piece.digest) not in theirs
    ]
    digests = [piece.digest for piece in pieces]
    said = {
        piece.last
        for piece, layer in zip(fetched.layers, fetched.manifest["layers"])
        if not _is_pruned(layer) or piece.last in known
    }
    of_layers = {piece.last for piece in here.layers} - said
    facts = [known[number] for number in sorted(known) if number in of_layers]
    # What layers say of revisions is newer, and is to be so when these layers are composed.
    entries = [without(entry, said & here.numbers_in(entry)) for entry in entries]
    numbers = sorted({*said, *known})
    pieces += _change_sets(numbers, [*fetched.layers, *here.pieces(here.first, common)])
    if facts or pieces:
        # Layers of the image that are in a pack besides are in staging, or here.
        with Blobs(layout) as blobs:
            entries.append(add_pack(edit, blobs, facts, pieces, staged=edit.staged()))
            entries, merged = with_merged(here, entries, edit, blobs)
        digests += merged
    return entries, digests


def _has_layers(image: StoredImage, other: StoredImage) -> bool:
    """Return whether an image has all layers of another one, and all of them are revisions still."""
    theirs = {(piece.first, piece.last, piece.digest) for piece in image.layers}
    return not any(map(_is_pruned, image.manifest["layers"])) and all(
        (piece.first, piece.last, piece.digest) in theirs for piece in other.layers
    )


def _is_pruned(layer: Mapping[str, Any]) -> bool:
    """Return whether the last revision of a layer was pruned."""
    return PRUNED in (layer.get("annotations") or {})


def _change_sets(numbers: Sequence[int], pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces that are missing to say what each revision changed, made from others.

    One host may have composed revisions that another host still has one by one. Then no piece says what the last one
    changed. The whole layer will do: on top of the others, it changes only what the last one changed.

    Args:
        numbers: of the revisions, in order.
        pieces: all that there are; none begins before the first revision's does.
    """
    there = Pieces()
    there.add(pieces)
    by_last: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_last.setdefault(piece.last, []).append(piece)
    for each in by_last.values():
        each.sort(key=lambda piece: -piece.first)  # those that have least besides
    missing: list[Piece] = []
    begin = min((piece.first for piece in pieces), default=1)
    for number in numbers:
        if there.cover(begin, number) is None:
            missing += [
                piece.replace(first=begin) for piece in _back(begin, number, by_last) if piece.first < begin
            ]
        begin = number + 1
    return missing


def _back(begin: int, number: int, by_last: Mapping[int, Sequence[Piece]]) -> list[Piece]:
    """Find consecutive pieces from a number down to the beginning; none if there are not enough."""
    follower: dict[int, Piece | None] = {number: None}  # by where the next one has to end
    pending = [number]
    while pending:
        end = pending.pop()
        for piece in by_last.get(end, ()):
            if piece.first <= begin:
                found = [piece]
                while (above := follower[found[-1].last]) is not None:
                    found.append(above)
                return found
            if piece.first - 1 not in follower:
                follower[piece.first - 1] = piece
                pending.append(piece.first - 1)
    return []
