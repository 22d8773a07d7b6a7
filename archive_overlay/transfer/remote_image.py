"""An image in a registry, as far as it says what history it is.

Whoever can write there may mean harm. What is read is bounded, and counts only if it is what its digest says.

Source: OCI image specification, manifest.md, config.md; OCI distribution specification, "Pulling manifests".
"""

from __future__ import annotations

import hashlib
import json

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.layout.read import MANIFEST_TYPE
from archive_overlay.layout.stored import ANCESTOR_DIGITS, ancestors_in, chains_in, chains_of
from archive_overlay.system.record import Record
from archive_overlay.transfer.names import SCHEME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from archive_overlay.transfer.names import Name
    from archive_overlay.transfer.skopeo import Skopeo

_IMAGES = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
# As in layouts; see `layout.read`.
_MOST_BYTES = 4 * 1024 * 1024
_MOST_VALUES = 128 * 1024
_MOST_DIGITS = 20


class RemoteImage(Record):
    """An image in a registry.

    Attributes:
        name: of it.
        digest: of its manifest.
        manifest: as it is there, whatever that is.
        layers: digests of its layers; none if it is no single image.
    """

    name: Name
    digest: str
    manifest: Mapping[str, Any]
    layers: tuple[str, ...]


class RemoteHistory(Record):
    """What an image in a registry says of the revisions that it has.

    Attributes:
        top: the ids that its topmost layer may have in stores.
        known: those of all its layers.
        ancestors: the beginnings of those that it has had, and no layer says any more; see `stored.ANCESTORS`.
    """

    top: frozenset[str]
    known: frozenset[str]
    ancestors: frozenset[str]

    def has(self, ids: Iterable[str]) -> bool:
        """Return whether a layer is among its own, or was, by the ids that it may have in stores."""
        return any(each in self.known or each[:ANCESTOR_DIGITS] in self.ancestors for each in ids)


def by_digest(name: Name, digest: str) -> str:
    """Return the name of an image by its digest: what that names cannot change, and it needs no tag."""
    return f"{SCHEME}{name.host}/{name.path}@{digest}"


def look_at(skopeo: Skopeo, name: Name) -> RemoteImage | None:
    """Look at an image in a registry; None: there is none of that name.

    Raises:
        ArchiveError: that cannot be said, or it is nothing that an image can be.
    """
    data = skopeo.manifest(name.reference)
    if data is None:
        return None
    manifest = _parse(data, name)
    listed = manifest.get("layers")
    layers = (
        [each.get("digest") for each in listed or () if isinstance(each, dict)] if _is_image(manifest) else []
    )
    return RemoteImage(
        name=name,
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        manifest=manifest,
        layers=tuple(each for each in layers if isinstance(each, str)),
    )


def read_history(skopeo: Skopeo, image: RemoteImage) -> RemoteHistory:
    """Read what an image in a registry says of the revisions that it has; of what is no single image that is nothing.

    Raises:
        ArchiveError: it cannot be read, or is not what its digest says.
    """
    nothing = RemoteHistory(top=frozenset(), known=frozenset(), ancestors=frozenset())
    described = image.manifest.get("config")
    if not image.layers or not isinstance(described, dict):
        return nothing
    data = skopeo.config(by_digest(image.name, image.digest))
    digest = described.get("digest")
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise ArchiveError(f"{image.name.reference} has a config that is not what its digest says")
    rootfs = _parse(data, image.name).get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    listed = image.manifest["layers"]
    if not isinstance(diff_ids, list) or len(diff_ids) != len(listed):
        return nothing
    ids = [
        {chain, *chains_in(_annotations(layer))} - {""} for chain, layer in zip(chains_of(diff_ids), listed)
    ]
    return RemoteHistory(
        top=frozenset(ids[-1]),
        known=frozenset().union(*ids),
        ancestors=frozenset(ancestors_in(_annotations(image.manifest))),
    )


def _is_image(manifest: Mapping[str, Any]) -> bool:
    return manifest.get("mediaType", MANIFEST_TYPE) in _IMAGES and isinstance(manifest.get("layers"), list)


def _annotations(layer: object) -> Mapping[str, Any]:
    annotations = layer.get("annotations") if isinstance(layer, dict) else None
    return annotations if isinstance(annotations, dict) else {}


def _parse(data: bytes, name: Name) -> dict[str, Any]:
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if len(data) > _MOST_BYTES or values > _MOST_VALUES:
        raise ArchiveError(
            f"{name.reference} says more than {_MOST_BYTES} bytes or {_MOST_VALUES} values of itself"
        )
    try:
        value = json.loads(data, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name.reference} is not an image: {brief(str(error))}") from error
    if not isinstance(value, dict):
        raise ArchiveError(f"{name.reference} is not an image: its manifest or config is not a JSON object")
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:_MOST_DIGITS]}... is not a valid number")
    return int(text)
