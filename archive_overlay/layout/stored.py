"""An image of a layout as a history: its revisions, and the pieces that hold them.

The annotations of layers are believed only if they are consistent: their revisions are consecutive. Any other layer is
one revision, by its position.

Source: OCI image specification, manifest.md; config.md, "history" and "rootfs.diff_ids".
"""

from __future__ import annotations

import hashlib
import re

from archive_overlay.errors import ArchiveError
from archive_overlay.keys import PREFIX
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.packs import Kept, blobs_of, history_of, parse_ranges, read_history, read_pack
from archive_overlay.layout.pieces import Piece, Pieces
from archive_overlay.layout.provenance import CREATED_BY, numbers_in
from archive_overlay.layout.read import read_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from archive_overlay.layout.packs import PackEntry

# Annotations of a layer: the revisions it has, that the last of them is none any more, the ids that the top layer of an
# image ending in it has had in stores, and what it weighs when layers are composed.
REVISION = f"{PREFIX}revision"
PRUNED = f"{PREFIX}pruned"
CHAINS = f"{PREFIX}chains"
WEIGHT = f"{PREFIX}weight"
# Of an image's manifest: what the next publication may delete, and which ids its top layer had in stores when it ended in an
# earlier revision, as far as no layer says it any more: "NUMBER:ID", with the first digits of each.
SUPERSEDED = f"{PREFIX}superseded"
ANCESTORS = f"{PREFIX}ancestors"
ANCESTOR_DIGITS = 16
_ANCESTOR = re.compile("([1-9][0-9]{0,8}):([0-9a-f]{16})")
# Revisions and pieces of all packs of an image. A few bytes of a layout that somebody made to do harm can name many.
_MOST_OF_HISTORY = 400_000


class StoredImage:
    """An image.

    Args:
        layout: file descriptor of the layout's directory, which stays open as long as this is used.
        descriptor: of the manifest.
        manifest, config: as `read.read_image` gives them.

    Attributes:
        descriptor, manifest, config: see there.
        layers: pieces, the lowest first.
        base: the number of the last revision that this program did not make and that has none of its below it; 0 if there
            is none.
        first, last: the lowest and the highest number; 0 and 0 if there is no layer. If the first is not 1, what the history
            began with is not here.
    """

    def __init__(
        self,
        layout: int,
        descriptor: Mapping[str, Any],
        manifest: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        self._layout = layout
        self.descriptor = descriptor
        self.manifest = manifest
        self.config = config
        self._history = _history_entries(config, len(manifest["layers"]))
        self.layers, self.base = self._read_layers()
        self.first = self.layers[0].first if self.layers else 0
        self.last = self.layers[-1].last if self.layers else 0
        self._packs: list[PackEntry] | None = None
        self._contents: dict[str, tuple[Sequence[Kept], Sequence[Piece]]] = {}
        self._read = 0  # revisions and pieces that packs had so far
        self._pieces = Pieces()
        self._pieces.add(self.layers)
        self.lost: list[str] = []

    @property
    def packs(self) -> list[PackEntry]:
        """The packs of its history. `lost` says why there are none, if there should be some."""
        if self._packs is None:
            self._packs = []
            descriptor = history_of(self.manifest["annotations"])
            if descriptor:
                try:
                    with Blobs(self._layout) as blobs:
                        found = read_history(blobs, descriptor)
                    # One that is there twice would be read twice.
                    self._packs = list({each.descriptor["digest"]: each for each in found}.values())
                except (ArchiveError, OSError) as error:
                    self.lost.append(str(error))
        return self._packs

    def packs_to_keep(self) -> list[PackEntry]:
        """Return the packs of its history, for an image in its place.

        Raises:
            ArchiveError: they are in this layout, and cannot be read now: without them the history would lose them.
            OSError: it cannot be told whether they are in this layout.
        """
        descriptor = history_of(self.manifest["annotations"])
        if descriptor and not self.packs and self.lost:
            with Blobs(self._layout) as blobs:
                if not blobs.lacks(descriptor):
                    raise ArchiveError(
                        f"a part of the history cannot be read: {self.lost[0]}",
                        hint="archive_overlay verify says what is lost",
                    )
        return self.packs

    def kept(self) -> list[Kept]:
        """Return what is known of all revisions, the lowest number first.

        What cannot be read is not among them; `lost` says why.
        """
        found: dict[int, Kept] = {}
        for piece, layer, history in zip(self.layers, self.manifest["layers"], self._history):
            annotations = _annotations(layer)
            if PRUNED not in annotations:
                found[piece.last] = Kept(
                    number=piece.last,
                    annotations=annotations,
                    created=_text(history, "created"),
                    created_by=_text(history, "created_by"),
                    comment=_text(history, "comment"),
                )
        for entry in self.packs:
            for each in self._content(entry)[0]:
                if self.first <= each.number <= self.last:
                    found.setdefault(each.number, each)
        return [found[number] for number in sorted(found)]

    def history_of_layer(self, position: int) -> Mapping[str, Any]:
        """Return the entry of a layer in the config's history; an empty one if that is unknown."""
        return self._history[position]

    def pieces(self, first: int, last: int) -> list[Piece]:
        """Return all pieces within a run of revisions, those in the image before others."""
        found = [piece for piece in self.layers if piece.first >= first and piece.last <= last]
        for entry in self.packs:
            if entry.first <= last and entry.last >= first:
                found += [
                    piece
                    for piece in self._content(entry)[1]
                    if piece.first >= first and piece.last <= last and piece.last <= self.last
                ]
        return found

    def cover(
        self, first: int, last: int, *, without: Collection[tuple[str, int]] = ()
    ) -> list[Piece] | None:
        """Choose the fewest pieces that hold a run of revisions; see `Pieces.cover`. Packs are read only if they are needed."""
        found = self._pieces.cover(first, last, without=without)
        if found is None:
            for entry in self.packs:
                if entry.first <= last and entry.last >= first:
                    self._content(entry)
            found = self._pieces.cover(first, last, without=without)
        return found

    def content(self, entry: PackEntry) -> tuple[Sequence[Kept], Sequence[Piece]]:
        """Return the revisions and pieces of a pack.

        Raises:
            ArchiveError: it is missing or damaged.
            OSError: it cannot be read.
        """
        with Blobs(self._layout) as blobs:
            pack = read_pack(blobs, entry)
        return pack.revisions, pack.pieces

    def numbers_in(self, entry: PackEntry) -> set[int]:
        """Return the numbers of the revisions in a pack; none if it is damaged."""
        return {each.number for each in self._content(entry)[0]}

    def blobs_of(self, entry: PackEntry) -> list[str]:
        """Return the digests of all blobs of a pack but its manifest.

        Raises:
            ArchiveError: it is missing or damaged.
            OSError: it cannot be read.
        """
        with Blobs(self._layout) as blobs:
            return blobs_of(blobs, entry)

    def chain(self) -> str:
        """Return the id that its top layer has in a store that has pulled it; "" if there is none."""
        chains = chains_of(self.config["rootfs"]["diff_ids"])
        return chains[-1] if chains else ""

    def chains(self) -> dict[str, int]:
        """Give all ids that its layers have had as the top ones in stores, as far as it says so, with their revisions."""
        found: dict[str, int] = {}
        of_layers = chains_of(self.config["rootfs"]["diff_ids"])
        for piece, layer, chain in zip(self.layers, self.manifest["layers"], of_layers):
            found.update((each, piece.last) for each in (*chains_in(_annotations(layer)), chain) if each)
        return found

    def ancestors(self) -> dict[str, int]:
        """Return the beginnings of ids that it has had, and no layer of it says any more, with their revisions."""
        said = ancestors_in(self.manifest["annotations"])
        return {each: number for each, number in said.items() if number <= self.last}

    def _content(self, entry: PackEntry) -> tuple[Sequence[Kept], Sequence[Piece]]:
        digest = str(entry.descriptor.get("digest"))
        if digest not in self._contents:
            try:
                if self._read > _MOST_OF_HISTORY:
                    raise ArchiveError("the history has more revisions than this program reads")
                self._contents[digest] = self.content(entry)
                self._read += sum(map(len, self._contents[digest]))
                self._pieces.add(piece for piece in self._contents[digest][1] if piece.last <= self.last)
            except (ArchiveError, OSError) as error:
                self.lost.append(f"revisions {entry.first} to {entry.last}: {error}")
                self._contents[digest] = (), ()
        return self._contents[digest]

    def _read_layers(self) -> tuple[list[Piece], int]:
        layers: list[Piece] = []
        base = last = 0
        diff_ids = self.config["rootfs"]["diff_ids"]
        for layer, diff_id, history in zip(self.manifest["layers"], diff_ids, self._history):
            first, end = _numbers(_annotations(layer), history, last + 1, lowest=not layers)
            layers.append(
                Piece(
                    first=first,
                    last=end,
                    digest=_text(layer, "digest"),
                    size=layer["size"] if type(layer.get("size")) is int else 0,
                    diff_id=diff_id if isinstance(diff_id, str) else "",
                    media_type=_text(layer, "mediaType"),
                    blob=layer,
                    in_image=True,
                )
            )
            last = end
            if base == len(layers) - 1 and not is_ours(_annotations(layer), history):
                base += 1
        return layers, layers[base - 1].last if base else 0


def open_stored(layout: int, descriptor: Mapping[str, Any], *, whole: bool = True) -> StoredImage:
    """Read an image.

    Args:
        layout: file descriptor of the layout's directory.
        descriptor: of its manifest.
        whole: whether all layers must be there.

    Raises:
        ArchiveError: the layout is damaged, or the image is of a form that this program does not know.
        OSError: it cannot be read.
    """
    return StoredImage(layout, descriptor, *read_image(layout, descriptor, whole=whole))


def chains_of(diff_ids: Iterable[object]) -> list[str]:
    """Return the ids that layers have in a store of podman's that has pulled them.

    Args:
        diff_ids: of the layers, the lowest first.

    Returns:
        64 hexadecimal digits for each; "" from the first diff ID on that is not as it should be.

    Source: layer ids in containers/image, storage/storage_dest.go; seen with podman 4.3 and 5.4.
    """
    chains: list[str] = []
    valid = True
    for diff_id in diff_ids:
        valid = valid and isinstance(diff_id, str) and diff_id.startswith("sha256:")
        if not valid:
            chains.append("")
        else:
            digits = str(diff_id).partition(":")[2]
            whole = f"{chains[-1]}+{digits}".encode() if chains else b""
            chains.append(hashlib.sha256(whole).hexdigest() if whole else digits)
    return chains


def chains_in(annotations: Mapping[str, Any]) -> list[str]:
    """Return the ids that the top layer of an image ending in a revision has had in stores, as its annotations say."""
    return _text(annotations, CHAINS).split()


def ancestors_in(annotations: Mapping[str, Any]) -> dict[str, int]:
    """Give the beginnings of ids that an image has had in stores, as its manifest's annotations say, with their revisions."""
    words = _text(annotations, ANCESTORS).split()
    return {match[2]: int(match[1]) for word in words if (match := _ANCESTOR.fullmatch(word))}


def is_ours(annotations: Mapping[str, Any], history: Mapping[str, Any]) -> bool:
    """Return whether this program wrote a layer."""
    return (
        f"{PREFIX}container" in annotations
        or PRUNED in annotations
        or history.get("created_by") == CREATED_BY
    )


def _numbers(
    annotations: Mapping[str, Any], history: Mapping[str, Any], expected: int, *, lowest: bool
) -> tuple[int, int]:
    """Return the first and the last revision of a layer."""
    said = None
    if REVISION in annotations:
        try:
            (said,) = parse_ranges(_text(annotations, REVISION))
        except ValueError:
            pass
    elif history.get("created_by") == CREATED_BY:
        said = numbers_in(history.get("comment"))
    if said and said[0] <= said[1] and (said[0] == expected or (lowest and said[0] > expected)):
        return said
    return expected, expected


def _history_entries(config: Mapping[str, Any], layers: int) -> Sequence[Mapping[str, Any]]:
    """Return the entry of each layer in the config's history."""
    entries = [
        each for each in config["history"] if isinstance(each, dict) and each.get("empty_layer") is not True
    ]
    # Otherwise which entry belongs to which layer is unknown.
    return entries if len(entries) == layers else [{} for _ in range(layers)]


def _annotations(layer: object) -> Mapping[str, Any]:
    annotations = layer.get("annotations") if isinstance(layer, dict) else None
    return annotations if isinstance(annotations, dict) else {}


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""
