"""Images to be written to a layout: with one more layer, as of a revision, or in place of another.

Source: OCI image specification, manifest.md; config.md; annotations.md.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.keys import PREFIX
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.packs import add_history, format_ranges, read_shared
from archive_overlay.layout.provenance import BASE, CREATED_BY, composed_comment
from archive_overlay.layout.read import CREATED, HISTORY, MANIFEST_TYPE
from archive_overlay.layout.stored import (
    ANCESTOR_DIGITS,
    ANCESTORS,
    CHAINS,
    PRUNED,
    REVISION,
    SUPERSEDED,
    WEIGHT,
    ancestors_in,
    chains_in,
    chains_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.layer import Layer
    from archive_overlay.layout.packs import Kept, PackEntry
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.layout.provenance import Provenance
    from archive_overlay.layout.stored import StoredImage

# Pulling so many layers above a base takes about as long as pulling one; see `history.tiers`.
COMFORTABLE = 20
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
# Of an index's entry: what is said of the image, and not of its name there.
_OF_IMAGE = ("mediaType", "digest", "size", "platform")
# Names of processors: config.md, "architecture" (those of Go).
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
    "armv6l": "arm",
    "armv7l": "arm",
    "loongarch64": "loong64",
}


def empty_image() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and config of an image of this machine without a layer."""
    machine = os.uname().machine
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {},
        "layers": [],
        "annotations": {},
    }
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }
    return manifest, config


def with_layer(
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    layer: Layer,
    provenance: Provenance,
    number: int,
    now: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and config of an image with one more revision.

    Args:
        manifest, config: of the image.
        layer: the revision's change set, which has been written.
        provenance: where it comes from.
        number: the revision's.
        now: the time, as RFC 3339 has it.
    """
    diff_ids = [*config["rootfs"]["diff_ids"], layer.diff_id]
    facts = {CREATED: now, **provenance.annotations()}
    annotations = {**facts, REVISION: str(number), CHAINS: chains_of(diff_ids)[-1]}
    descriptor = {
        "mediaType": layer.media_type,
        "digest": layer.digest,
        "size": layer.size,
        "annotations": annotations,
    }
    entry = {"created": now, "created_by": CREATED_BY, "comment": provenance.comment(number)}
    kept = {key: value for key, value in manifest["annotations"].items() if not _is_of_revision(key)}
    return (
        {
            **manifest,
            "layers": [*manifest["layers"], descriptor],
            "annotations": {**kept, **facts},
        },
        {
            **config,
            "created": now,
            "rootfs": {**config["rootfs"], "diff_ids": diff_ids},
            "history": [*_full_history(config, len(manifest["layers"])), entry],
        },
    )


def image_at(
    layout: int, image: StoredImage, number: int, edit: Edit
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and config of an image that equals a revision of another one.

    Args:
        layout: file descriptor of the layout's directory.
        image: the other one.
        number: of the revision.
        edit: takes the layers that are no blobs of their own yet, and the history.

    Raises:
        ArchiveError: a change set that it is made of is missing or damaged.
        OSError: it cannot be read or written.
    """
    pieces = image.cover(image.first, number)
    if pieces is None:
        raise ArchiveError(f"not all change sets up to revision {number} are in the layout")
    history = add_history(edit, entries_up_to(image, number))
    return image_of(layout, image, pieces, {each.number: each for each in image.kept()}, history, edit)


def image_of(
    layout: int,
    image: StoredImage,
    pieces: Sequence[Piece],
    kept: Mapping[int, Kept],
    history: str,
    edit: Edit,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and config of an image like another one, but with certain pieces as its layers.

    Args:
        layout: file descriptor of the layout's directory.
        image: the other one.
        pieces: at least one, the lowest first. Those that are blobs of their own are there, or are in `edit`.
        kept: what is known of each revision that there is then.
        history: as `add_history` gives it.
        edit: takes the layers that are no blobs of their own yet.

    Raises:
        ArchiveError: a piece is missing or damaged.
        OSError: it cannot be read or written.
    """
    known = {each.number: each for each in image.kept()}
    positions = {
        (piece.first, piece.last, piece.digest): position for position, piece in enumerate(image.layers)
    }
    layers: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    with Blobs(layout) as blobs:
        for piece in pieces:
            said = kept.get(piece.last)
            position = positions.get((piece.first, piece.last, piece.digest))
            if position is not None:
                layer = image.manifest["layers"][position]
                if said != known.get(piece.last):
                    layer = {**layer, "annotations": descriptor_of(piece, said)["annotations"]}
                layers.append(layer)
                entries.append(dict(image.history_of_layer(position)) or {"created_by": "unknown"})
                continue
            if piece.offset is not None:
                ((_, data),) = read_shared(blobs, [piece])
                if edit.add_blob(data)["digest"] != piece.digest:
                    raise ArchiveError(f"{piece.label} is damaged: its digest is not {piece.digest}")
            layers.append(descriptor_of(piece, said))
            entries.append(history_entry(piece, said))
    annotations = {
        key: value
        for key, value in image.manifest["annotations"].items()
        if not _is_of_revision(key) and key not in (HISTORY, SUPERSEDED, ANCESTORS)
    }
    # What the manifest says of its last revision, as `with_layer` has it.
    annotations.update(
        (key, value)
        for key, value in (layers[-1].get("annotations") or {}).items()
        if _is_of_revision(key) and key not in (REVISION, CHAINS, WEIGHT)
    )
    if history:
        annotations[HISTORY] = history
    same = next(
        (i for i, (new, old) in enumerate(zip(pieces, image.layers)) if new.digest != old.digest), None
    )
    if same is None:
        same = min(len(pieces), len(image.layers))
    manifest = {**image.manifest, "layers": layers, "annotations": annotations}
    return (
        with_ancestors(manifest, [piece.diff_id for piece in pieces], image, up_to=pieces[-1].last),
        {
            **image.config,
            "rootfs": {**image.config["rootfs"], "diff_ids": [piece.diff_id for piece in pieces]},
            "history": [*_history_below(image.config, len(image.layers), same), *entries[same:]]
            if image.layers
            else entries,
        },
    )


def entries_up_to(image: StoredImage, number: int) -> list[PackEntry]:
    """Return the packs of an image's history that have revisions up to a number, cut off there."""
    return [entry.replace(up_to=min(entry.up_to, number)) for entry in image.packs if entry.first <= number]


def descriptor_of(piece: Piece, kept: Kept | None) -> dict[str, Any]:
    """Return the descriptor of a piece as a layer of an image.

    Args:
        piece: it is, or is going to be, a blob of its own.
        kept: what is known of its last revision; None: that is none any more.
    """
    annotations = dict(kept.annotations) if kept else {PRUNED: "true"}
    annotations.pop(WEIGHT, None)
    annotations[REVISION] = format_ranges([(piece.first, piece.last)])
    return {
        "mediaType": piece.media_type,
        "digest": piece.digest,
        "size": piece.size,
        "annotations": annotations,
    }


def history_entry(piece: Piece, kept: Kept | None) -> dict[str, Any]:
    """Return the entry of a piece in the history of an image's config; see `descriptor_of`."""
    created = (kept.annotations.get(CREATED) or kept.created or None) if kept else None
    comment = kept.comment if kept and piece.first == piece.last else ""
    return {
        **({"created": created} if isinstance(created, str) else {}),
        "created_by": (kept.created_by if kept else "") or CREATED_BY,
        "comment": comment or composed_comment(piece.first, piece.last),
    }


def with_composed(
    manifest: Mapping[str, Any], config: Mapping[str, Any], begin: int, end: int, piece: Piece, weight: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and config of an image with one layer in the place of several.

    Args:
        manifest, config: of the image.
        begin, end: positions of the first of these layers, and of the one after the last.
        piece: the new layer. What is said of the last one is said of it.
        weight: what it weighs; see `history.tiers`.
    """
    layers, diff_ids = list(manifest["layers"]), list(config["rootfs"]["diff_ids"])
    annotations = dict(layers[end - 1].get("annotations") or {})
    annotations[REVISION] = format_ranges([(piece.first, piece.last)])
    annotations[WEIGHT] = str(weight)
    layers[begin:end] = [
        {
            "mediaType": piece.media_type,
            "digest": piece.digest,
            "size": piece.size,
            "annotations": annotations,
        }
    ]
    diff_ids[begin:end] = [piece.diff_id]
    history = _full_history(config, len(manifest["layers"]))
    own = [position for position, entry in enumerate(history) if not entry.get("empty_layer")]
    if len(own) == len(manifest["layers"]):
        created = history[own[end - 1]].get("created")
        composed = {
            **({"created": created} if created else {}),
            "created_by": CREATED_BY,
            "comment": composed_comment(piece.first, piece.last),
        }
        history[own[begin] : own[end - 1] + 1] = [composed]
    return (
        {**manifest, "layers": layers},
        {**config, "rootfs": {**config["rootfs"], "diff_ids": diff_ids}, "history": history},
    )


def with_base(
    image: StoredImage, layers: Sequence[Layer], base: Mapping[str, Any] | None, ids: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return manifest and config of an image with the image below it that it began with.

    Args:
        image: its lowest revision says that its base is absent.
        layers: of its base, lowest first.
        base: config of that; None: nobody has it.
        ids: what stores call its topmost layer.
    """
    below: list[dict[str, Any]] = [
        {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers
    ]
    below[-1]["annotations"] = {CHAINS: " ".join(ids)}
    above = [dict(layer) for layer in image.manifest["layers"]]
    # Where that is composed with others already, the annotation is that of a later one.
    above[0]["annotations"] = _without(above[0].get("annotations") or {}, BASE)
    diff_ids = [*(layer.diff_id for layer in layers), *image.config["rootfs"]["diff_ids"]]
    config = dict(base or image.config)
    history = _full_history(
        {"history": config.get("history") or []} if base else {"history": []}, len(layers)
    )
    if sum(not each.get("empty_layer") for each in history) != len(layers):
        history = [{"created_by": "unknown"}] * len(layers)
    config["history"] = [*history, *_full_history(image.config, len(above))]
    config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    if "created" in image.config:
        config["created"] = image.config["created"]
    return (
        {
            **image.manifest,
            "layers": [*below, *with_chain(above, diff_ids)],
            "annotations": _without(image.manifest["annotations"], BASE),
        },
        config,
    )


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {each: value for each, value in values.items() if each != key}


def put_image(
    edit: Edit,
    tag: str,
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    instead_of: StoredImage | None,
    superseded: Iterable[str] = (),
    platform: object = None,
    annotations: Mapping[str, str] = {},
    same_config: bool = False,
) -> str:
    """Point a tag to a new image.

    Args:
        edit: is going to publish it. All its layers are there, or are in `edit`.
        tag: its name.
        manifest, config: of the image; they say nothing of each other yet.
        instead_of: the image that has the tag now; None: there is none.
        superseded: digests of blobs that the new image does not need, besides manifest and config of the old one.
        platform: of the index's entry; None: nothing is said.
        annotations: of the tag; see `Edit.set_tag`.
        same_config: whether the manifest's config is there already, or is in `edit`.

    Returns:
        The digest of the image's manifest.

    Raises:
        ArchiveError: the image has become too large to be read.
    """
    config_descriptor = dict(manifest["config"])
    if not same_config:
        config_descriptor.setdefault("mediaType", _CONFIG_TYPE)
        config_descriptor.update(edit.add_json(config))
    unneeded = set(superseded)
    if instead_of:
        unneeded |= {instead_of.descriptor["digest"], instead_of.manifest["config"]["digest"]}
        old = instead_of.manifest["annotations"].get(HISTORY)
        if isinstance(old, str) and old != manifest["annotations"].get(HISTORY):
            unneeded.add(old.partition(" ")[0])
        edit.discard(superseded_by(instead_of.manifest))
        manifest = with_ancestors(manifest, config["rootfs"]["diff_ids"], instead_of, up_to=instead_of.last)
    unneeded.discard(config_descriptor["digest"])
    said = {key: value for key, value in manifest["annotations"].items() if key != SUPERSEDED}
    if unneeded:
        said[SUPERSEDED] = " ".join(sorted(unneeded))
    whole = {**manifest, "config": config_descriptor, "annotations": said}
    descriptor = {"mediaType": MANIFEST_TYPE, **edit.add_json(whole)}
    if instead_of and "platform" in instead_of.descriptor:
        platform = instead_of.descriptor["platform"]
    edit.set_tag(tag, {**({"platform": platform} if platform else {}), **descriptor}, annotations)
    return str(descriptor["digest"])


def put_same(edit: Edit, tag: str, image: StoredImage, annotations: Mapping[str, str] = {}) -> None:
    """Give one more tag to an image that is there; see `Edit.set_tag`."""
    descriptor = {key: image.descriptor[key] for key in _OF_IMAGE if key in image.descriptor}
    edit.set_tag(tag, descriptor, annotations)


def superseded_by(manifest: Mapping[str, Any]) -> list[str]:
    """Return the digests that the publication of an image made superfluous."""
    said = manifest["annotations"].get(SUPERSEDED)
    return said.split() if isinstance(said, str) else []


def with_chain(layers: Sequence[Mapping[str, Any]], diff_ids: Sequence[object]) -> list[dict[str, Any]]:
    """Note on the last layer the id that it has in stores, after those that it has had."""
    *others, last = (dict(layer) for layer in layers)
    annotations = dict(last.get("annotations") or {})
    chain = chains_of(diff_ids)[-1]
    known = [each for each in chains_in(annotations) if each != chain]
    if chain:
        annotations[CHAINS] = " ".join([*known[-_MOST_CHAINS:], chain])
    return [*others, {**last, "annotations": annotations}]


# Of one revision; each is for an image that somebody may still have mounted.
_MOST_CHAINS = 16


def with_ancestors(
    manifest: Mapping[str, Any], diff_ids: Sequence[object], old: StoredImage, *, up_to: int
) -> dict[str, Any]:
    """Note in a manifest the ids of an older image of its history in stores, if no layer has them any more.

    Packs have them, too, but stay in their layout. With this note, an image shows another host that it continues what
    that host has.

    Args:
        manifest: of the new image; what it has noted stays.
        diff_ids: of the new image.
        old: the older one.
        up_to: the last revision of that one that the new one goes on with.
    """
    found = {**old.ancestors(), **{each[:ANCESTOR_DIGITS]: number for each, number in old.chains().items()}}
    noted = {each: number for each, number in found.items() if number <= up_to}
    noted.update(ancestors_in(manifest["annotations"]))
    for layer, chain in zip(manifest["layers"], chains_of(diff_ids)):
        for each in (*chains_in(layer.get("annotations") or {}), chain):
            noted.pop(each[:ANCESTOR_DIGITS], None)
    annotations = _without(manifest["annotations"], ANCESTORS)
    if noted:
        words = [f"{number}:{each}" for each, number in noted.items()]
        words.sort(key=lambda word: int(word.partition(":")[0]))
        annotations[ANCESTORS] = " ".join(words[-_MOST_ANCESTORS:])
    return {**manifest, "annotations": annotations}


# They take 20 KB of each manifest. A host that has missed more revisions looks like a branch.
_MOST_ANCESTORS = 1000


def _is_of_revision(key: str) -> bool:
    return key == CREATED or (key.startswith(PREFIX) and key not in (HISTORY, SUPERSEDED, ANCESTORS))


def _history_below(config: Mapping[str, Any], layers: int, count: int) -> list[Any]:
    """Return the config's history of the lowest layers, with what it says beside layers.

    Args:
        config: of the image.
        layers: how many the image has.
        count: how many of them.
    """
    history = _full_history(config, layers)
    own = [position for position, entry in enumerate(history) if not entry.get("empty_layer")]
    if len(own) != layers:
        return [{"created_by": "unknown"}] * count  # which entry belongs to which layer is unknown
    return history[: own[count]] if count < layers else history


def _full_history(config: Mapping[str, Any], layers: int) -> list[Any]:
    """Return the config's history with an entry for each layer: readers take the n-th entry for the n-th layer's."""
    history = config["history"]
    known = sum(not each.get("empty_layer") for each in history)
    return [*history, *[{"created_by": "unknown"}] * (layers - known)]
