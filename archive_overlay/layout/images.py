"""Images that are about to be written to a layout: with one more layer, as of a revision, in the place of another.

Source: OCI image specification, manifest.md; config.md; annotations.md.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.keys import PREFIX
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.packs import add_history, format_ranges, read_shared
from archive_overlay.layout.provenance import CREATED_BY, composed_comment
from archive_overlay.layout.read import CREATED, HISTORY, MANIFEST_TYPE
from archive_overlay.layout.stored import CHAINS, REVISION, SUPERSEDED, WEIGHT, chains_in, chains_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.layer import Layer
    from archive_overlay.layout.packs import Kept
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.layout.provenance import Provenance
    from archive_overlay.layout.stored import StoredImage

# So many layers above a base are pulled in about the time that one takes; see `history.tiers`.
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
    """Give manifest and config of an image of this machine without a layer."""
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
    """Give manifest and config of an image with one more revision.

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
    """Give manifest and config of an image that is as a revision of another one was.

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
    kept = {each.number: each for each in image.kept()}
    positions = {piece.digest: position for position, piece in enumerate(image.layers)}
    layers, history = [], []
    with Blobs(layout) as blobs:
        for piece in pieces:
            position = positions.get(piece.digest) if piece.in_image else None
            if position is not None:
                layers.append(image.manifest["layers"][position])
                history.append(dict(image.history_of_layer(position)) or {"created_by": "unknown"})
                continue
            if piece.offset is not None:
                ((_, data),) = read_shared(blobs, [piece])
                if edit.add_blob(data)["digest"] != piece.digest:
                    raise ArchiveError(f"{piece.label} is damaged: its digest is not {piece.digest}")
            layers.append(descriptor_of(piece, kept.get(piece.last)))
            history.append(history_entry(piece, kept.get(piece.last)))
    annotations = {
        key: value
        for key, value in image.manifest["annotations"].items()
        if not _is_of_revision(key) and key not in (HISTORY, SUPERSEDED)
    }
    # What the manifest says of its last revision, as `with_layer` has it.
    annotations.update(
        (key, value)
        for key, value in (layers[-1].get("annotations") or {}).items()
        if _is_of_revision(key) and key not in (REVISION, CHAINS, WEIGHT)
    )
    if value := add_history(edit, entries_up_to(image, number)):
        annotations[HISTORY] = value
    return (
        {**image.manifest, "layers": layers, "annotations": annotations},
        {
            **image.config,
            "rootfs": {**image.config["rootfs"], "diff_ids": [piece.diff_id for piece in pieces]},
            "history": history,
        },
    )


def entries_up_to(image: StoredImage, number: int) -> list[Any]:
    """Give the packs of an image's history that have revisions up to a number, cut off there."""
    return [entry.replace(up_to=min(entry.up_to, number)) for entry in image.packs if entry.first <= number]


def descriptor_of(piece: Piece, kept: Kept | None) -> dict[str, Any]:
    """Give the descriptor of a piece as a layer of an image.

    Args:
        piece: it is, or is going to be, a blob of its own.
        kept: what is known of its last revision; None: that is none any more.
    """
    annotations = dict(kept.annotations) if kept else {}
    annotations[REVISION] = format_ranges([(piece.first, piece.last)])
    return {
        "mediaType": piece.media_type,
        "digest": piece.digest,
        "size": piece.size,
        "annotations": annotations,
    }


def history_entry(piece: Piece, kept: Kept | None) -> dict[str, Any]:
    """Give the entry of a piece in the history of an image's config; see `descriptor_of`."""
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
    """Give manifest and config of an image with one layer in the place of several.

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


def put_image(
    edit: Edit,
    tag: str,
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    instead_of: StoredImage | None,
    superseded: Iterable[str] = (),
    platform: object = None,
) -> None:
    """Let a tag name a new image.

    Args:
        edit: is going to publish it. All its layers are there, or are in `edit`.
        tag: its name.
        manifest, config: of the image; they say nothing of each other yet.
        instead_of: the image that has the tag now; None: there is none.
        superseded: digests of blobs that the new image does not need, besides manifest and config of the old one.
        platform: of the index's entry; None: nothing is said.

    Raises:
        ArchiveError: the image has become too large to be read.
    """
    config_type = manifest["config"].get("mediaType", _CONFIG_TYPE)
    config_descriptor = {**manifest["config"], "mediaType": config_type, **edit.add_json(config)}
    unneeded = set(superseded)
    if instead_of:
        unneeded |= {instead_of.descriptor["digest"], instead_of.manifest["config"]["digest"]}
        old = instead_of.manifest["annotations"].get(HISTORY)
        if isinstance(old, str) and old != manifest["annotations"].get(HISTORY):
            unneeded.add(old.partition(" ")[0])
        edit.discard(superseded_by(instead_of.manifest))
    unneeded.discard(config_descriptor["digest"])
    annotations = {key: value for key, value in manifest["annotations"].items() if key != SUPERSEDED}
    if unneeded:
        annotations[SUPERSEDED] = " ".join(sorted(unneeded))
    whole = {**manifest, "config": config_descriptor, "annotations": annotations}
    descriptor = {"mediaType": MANIFEST_TYPE, **edit.add_json(whole)}
    if instead_of and "platform" in instead_of.descriptor:
        platform = instead_of.descriptor["platform"]
    edit.set_tag(tag, {**({"platform": platform} if platform else {}), **descriptor})


def put_same(edit: Edit, tag: str, image: StoredImage) -> None:
    """Give one more tag to an image that is there."""
    edit.set_tag(tag, {key: image.descriptor[key] for key in _OF_IMAGE if key in image.descriptor})


def superseded_by(manifest: Mapping[str, Any]) -> list[str]:
    """Give the digests that the publication of an image made superfluous."""
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


def _is_of_revision(key: str) -> bool:
    return key == CREATED or (key.startswith(PREFIX) and key not in (HISTORY, SUPERSEDED))


def _full_history(config: Mapping[str, Any], layers: int) -> list[Any]:
    """Give the config's history with an entry for each layer: readers take the n-th entry for the n-th layer's."""
    history = config["history"]
    known = sum(not each.get("empty_layer") for each in history)
    return [*history, *[{"created_by": "unknown"}] * (layers - known)]
