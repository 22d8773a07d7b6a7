"""Packs: revisions that an image holds only composed with others, kept beside the image.

    manifest of an image --annotation `history`--> history index --> packs

An index of OCI lists the packs of one history, and index.json lists that index, without a name: so programs that collect
garbage by the specification leave all of it alone, and nobody takes it for an image. Each pack is a manifest: its config
is a list of revisions and pieces; its layers are a blob of small pieces, one after the other, and a blob for each large
one. Packs are never changed: branches share them.

Source: OCI image specification, image-index.md; manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import hashlib
import os
import re

from archive_overlay.errors import ArchiveError
from archive_overlay.keys import PREFIX
from archive_overlay.layout.blobs import damaged
from archive_overlay.layout.layer import MEDIA_TYPES
from archive_overlay.layout.pieces import Piece
from archive_overlay.layout.read import CREATED, HISTORY, INDEX_TYPE, MANIFEST_TYPE, read_json_blob
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from archive_overlay.layout.blobs import Blobs

    class Edit(Protocol):
        """What `edit.Edit` has."""

        def add_blob(self, data: bytes) -> dict[str, Any]: ...
        def add_file(self, name: str, digest: str) -> None: ...
        def read_staged(self, name: str) -> bytes: ...
        def add_json(self, value: object) -> dict[str, Any]: ...
        def list_unnamed(self, descriptor: dict[str, Any]) -> None: ...


REVISIONS_TYPE = "application/vnd.launchplatform.archive-overlay.revisions.v1+json"
CHANGE_SETS_TYPE = "application/vnd.launchplatform.archive-overlay.change-sets.v1"
# Of a pack in a history index: the revisions it has, those of them that are pruned, and the last one that counts.
_REVISIONS = f"{PREFIX}revisions"
_PRUNED = f"{PREFIX}pruned"
_UP_TO = f"{PREFIX}up-to"

# A piece up to this size shares a blob with others: a file of its own takes 4 KiB at least.
LARGEST_SHARED = 64 * 1024
# A pack is read and written as a whole.
MOST_REVISIONS = 1000
LARGEST_BLOB = 64 * 1024 * 1024
# Of one pack: runs of pruned revisions, and how far its numbers are apart.
_MOST_PRUNED = 4 * MOST_REVISIONS
_WIDEST = 10_000_000

_HISTORY = re.compile(r"(sha256:[0-9a-f]{64}) ([0-9]{1,12})")
_RANGE = re.compile(r"([1-9][0-9]{0,8})(?:-([1-9][0-9]{0,8}))?")


class Kept(Record):
    """What is known of one revision.

    Attributes:
        number: its number.
        annotations: as those of the layer that it was.
        created, created_by, comment: from the image's history; "" if there was nothing.
    """

    number: int
    annotations: Mapping[str, Any]
    created: str = ""
    created_by: str = ""
    comment: str = ""


class Pack(Record):
    """A pack that has been read.

    Attributes:
        revisions: the lowest number first.
        pieces: in any order.
    """

    revisions: Sequence[Kept]
    pieces: Sequence[Piece]


class PackEntry(Record):
    """A pack as a history index lists it.

    Attributes:
        descriptor: of its manifest.
        first, last: the lowest and the highest number in it.
        pruned: numbers of revisions in it that are revisions no more, as pairs of first and last.
        up_to: the highest number that counts; other histories may have other revisions after it.
    """

    descriptor: Mapping[str, Any]
    first: int
    last: int
    pruned: Sequence[tuple[int, int]] = ()
    up_to: int

    def has(self, number: int) -> bool:
        """Return whether a number counts in this history, and is not pruned."""
        return number <= self.up_to and not any(first <= number <= last for first, last in self.pruned)


def history_of(annotations: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the descriptor of the history index that a manifest's annotations name; None: they name none."""
    said = annotations.get(HISTORY)
    match = _HISTORY.fullmatch(said) if isinstance(said, str) else None
    return {"mediaType": INDEX_TYPE, "digest": match[1], "size": int(match[2])} if match else None


def read_history(blobs: Blobs, descriptor: Mapping[str, Any]) -> list[PackEntry]:
    """Read a history index.

    Raises:
        ArchiveError: it is missing or damaged.
        OSError: it cannot be read.
    """
    listed = read_json_blob(blobs, descriptor).get("manifests")
    if not isinstance(listed, list):
        raise damaged("a history index has no list of packs")
    return [_entry(each) for each in listed]


def read_pack(blobs: Blobs, entry: PackEntry) -> Pack:
    """Read what counts in a history from a pack.

    Raises:
        ArchiveError: it is missing or damaged.
        OSError: it cannot be read.
    """
    manifest = read_json_blob(blobs, entry.descriptor)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not all(isinstance(each, dict) for each in layers):
        raise damaged("a pack has no list of layers")
    listed = read_json_blob(blobs, manifest.get("config") or {})
    by_digest = {each.get("digest"): each for each in layers}
    shared = next((each for each in layers if each.get("mediaType") == CHANGE_SETS_TYPE), None)
    try:
        revisions = [
            Kept(
                number=_natural(each["number"]),
                annotations=_object(each["annotations"]),
                created=_text(each.get("created")),
                created_by=_text(each.get("created_by")),
                comment=_text(each.get("comment")),
            )
            for each in listed["revisions"]
        ]
        pieces = [_piece(each, shared, by_digest) for each in listed["pieces"]]
    except (KeyError, TypeError, ValueError):
        raise damaged("a list of revisions is not valid") from None
    return Pack(
        revisions=[each for each in revisions if entry.has(each.number)],
        pieces=[each for each in pieces if each.last <= entry.up_to],
    )


def blobs_of(blobs: Blobs, entry: PackEntry) -> list[str]:
    """Return the digests of what a pack's manifest refers to.

    Raises:
        ArchiveError: it is missing or damaged.
        OSError: it cannot be read.
    """
    manifest = read_json_blob(blobs, entry.descriptor)
    parts = [manifest.get("config"), *(manifest.get("layers") or [])]
    return [str(part.get("digest")) for part in parts if isinstance(part, dict)]


def read_shared(blobs: Blobs, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bytes]]:
    """Read small pieces of packs.

    Args:
        blobs: of the layout.
        pieces: each shares a blob with others.

    Yields:
        Each piece, and its bytes as they are stored. Nobody has verified them.

    Raises:
        ArchiveError: a blob is missing, or ends too early.
        OSError: it cannot be read.
    """
    fd, opened = -1, None
    try:
        for piece in pieces:
            if piece.blob is not opened:
                if fd >= 0:
                    os.close(fd)
                    fd = -1
                fd = blobs.open(piece.blob)
                opened = piece.blob
            assert piece.offset is not None
            data = os.pread(fd, piece.size, piece.offset)
            if len(data) < piece.size:
                raise damaged("a blob of change sets ends too early")
            yield piece, data
    finally:
        if fd >= 0:
            os.close(fd)


def add_pack(
    edit: Edit,
    blobs: Blobs,
    revisions: Sequence[Kept],
    pieces: Sequence[Piece],
    *,
    staged: Mapping[str, str] | None = None,
) -> PackEntry:
    """Add a pack to what is written to a layout.

    Args:
        edit: takes the blobs.
        blobs: of the layout; the pieces are in there.
        revisions: the lowest number first. There is one at least, or a piece.
        pieces: those that are small are copied.
        staged: of pieces that are files in staging, their names there, by their digests.

    Raises:
        ArchiveError: a piece is missing, or damaged.
        OSError: it cannot be read or written.
    """
    small = [piece for piece in pieces if piece.size <= LARGEST_SHARED]
    listed: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    gathered = bytearray()
    if small:
        for piece, data in _stored_bytes(edit, blobs, small, staged or {}):
            listed.append({**_listed(piece), "offset": len(gathered)})
            gathered += data
    for piece in pieces:
        if piece.size > LARGEST_SHARED:
            if staged and piece.digest in staged:
                edit.add_file(staged[piece.digest], piece.digest)
            listed.append(_listed(piece))
            layers.append({"mediaType": piece.media_type, "digest": piece.digest, "size": piece.size})
    config = {
        "revisions": [
            {
                "number": each.number,
                "annotations": dict(each.annotations),
                **{key: value for key, value in _said_by_image(each) if value},
            }
            for each in revisions
        ],
        "pieces": listed,
    }
    config_descriptor = {"mediaType": REVISIONS_TYPE, **edit.add_json(config)}  # refused if it is too large
    if gathered:
        layers.insert(0, {"mediaType": CHANGE_SETS_TYPE, **edit.add_blob(bytes(gathered))})
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": REVISIONS_TYPE,
        "config": config_descriptor,
        "layers": layers,
    }
    descriptor = {
        "mediaType": MANIFEST_TYPE,
        "artifactType": REVISIONS_TYPE,
        **edit.add_json(manifest),
    }
    numbers = [each.number for each in revisions] + [piece.last for piece in pieces]
    first, last = min(numbers + [piece.first for piece in pieces]), max(numbers)
    return PackEntry(descriptor=descriptor, first=first, last=last, up_to=last)


def add_history(edit: Edit, entries: Sequence[PackEntry]) -> str:
    """Add a history index to what is written to a layout.

    Returns:
        The value of the annotation `HISTORY`; "" if there is no pack.
    """
    if not entries:
        return ""
    manifests = []
    for entry in entries:
        annotations = {_REVISIONS: format_ranges([(entry.first, entry.last)])}
        if entry.pruned:
            annotations[_PRUNED] = format_ranges(entry.pruned)
        if entry.up_to < entry.last:
            annotations[_UP_TO] = str(entry.up_to)
        kept = {key: entry.descriptor[key] for key in ("mediaType", "artifactType", "digest", "size")}
        manifests.append({**kept, "annotations": annotations})
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "artifactType": REVISIONS_TYPE,
        "manifests": manifests,
    }
    descriptor = {"mediaType": INDEX_TYPE, "artifactType": REVISIONS_TYPE, **edit.add_json(index)}
    # Of what is said of an index's entry, some programs keep annotations alone.
    edit.list_unnamed({**descriptor, "annotations": {HISTORY: "index"}})
    return f"{descriptor['digest']} {descriptor['size']}"


def format_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """Return runs of numbers as text: "12-40 43"."""
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_ranges(text: str) -> list[tuple[int, int]]:
    """Read runs of numbers.

    Raises:
        ValueError: the text is something else.
    """
    ranges = []
    for word in text.split():
        match = _RANGE.fullmatch(word)
        if not match:
            raise ValueError(f"{word!r} is not a run of revisions")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise ValueError(f"{word!r} is not a run of revisions")
        ranges.append((first, last))
    return ranges


def _entry(descriptor: object) -> PackEntry:
    try:
        assert isinstance(descriptor, dict)
        annotations = _object(descriptor["annotations"])
        ((first, last),) = parse_ranges(annotations[_REVISIONS])
        pruned = parse_ranges(annotations.get(_PRUNED, ""))
        ((up_to, _),) = parse_ranges(annotations.get(_UP_TO, str(last)))
        if len(pruned) > _MOST_PRUNED or last - first > _WIDEST:
            raise ValueError
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        raise damaged("a history index is not valid") from None
    return PackEntry(
        descriptor={
            "mediaType": MANIFEST_TYPE,
            "artifactType": REVISIONS_TYPE,
            "digest": descriptor.get("digest"),
            "size": descriptor.get("size"),
        },
        first=first,
        last=last,
        pruned=pruned,
        up_to=min(up_to, last),
    )


def _piece(
    listed: Mapping[str, Any], shared: Mapping[str, Any] | None, blobs: Mapping[Any, Mapping[str, Any]]
) -> Piece:
    first, last = _natural(listed["first"]), _natural(listed["last"])
    size = _natural(listed["size"])
    media_type = listed["mediaType"]
    if last < first or media_type not in MEDIA_TYPES.values():
        raise ValueError
    offset = listed.get("offset")
    if offset is None:
        blob = blobs[listed["digest"]]
    elif shared is None or type(offset) is not int or offset < 0 or size > LARGEST_SHARED:
        raise ValueError
    else:
        blob = shared
    return Piece(
        first=first,
        last=last,
        digest=_text(listed["digest"]),
        size=size,
        diff_id=_text(listed["diff_id"]),
        media_type=media_type,
        blob=blob,
        offset=offset,
    )


def _listed(piece: Piece) -> dict[str, Any]:
    return {
        "first": piece.first,
        "last": piece.last,
        "mediaType": piece.media_type,
        "digest": piece.digest,
        "size": piece.size,
        "diff_id": piece.diff_id,
    }


def _stored_bytes(
    edit: Edit, blobs: Blobs, pieces: Iterable[Piece], staged: Mapping[str, str]
) -> Iterator[tuple[Piece, bytes]]:
    """Yield small pieces with their bytes, whether they are blobs of their own, share one, or are in staging."""
    for piece in pieces:
        if piece.digest in staged:
            data = edit.read_staged(staged[piece.digest])
        elif piece.offset is None:
            fd = blobs.open(piece.blob)
            with open(fd, "rb") as file:
                data = file.read(piece.size + 1)
        else:
            ((_, data),) = read_shared(blobs, [piece])
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != piece.digest:
            raise ArchiveError(f"{piece.label}: its digest is not {piece.digest}, as the image says")
        yield piece, data


def _said_by_image(kept: Kept) -> list[tuple[str, str]]:
    created = "" if CREATED in kept.annotations else kept.created
    return [("created", created), ("created_by", kept.created_by), ("comment", kept.comment)]


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
