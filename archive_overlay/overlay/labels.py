"""The names of a container and its image, for people only.

Whoever starts a container chooses its name, its annotations and, by a tag, its image's name. No decision may depend on
them.

Source: containers.go of containers/storage and pkg/annotations of CRI-O; pkg/cri/annotations of containerd; the stores and
specs of podman 4.3, CRI-O and containerd.
"""

from __future__ import annotations

import json
import os

from archive_overlay.overlay import store
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from archive_overlay.overlay.store import Place

_IMAGES = ("io.kubernetes.cri-o.ImageName", "io.kubernetes.cri.image-name")

_LONGEST = 255  # characters
_LONGEST_METADATA = 1 << 20


class Labels(Record):
    """The names of a container and its image.

    Attributes:
        name: of the container; "" if it is unknown.
        image: name of the image that it was made of; "" if it is unknown, or was named by its id.
    """

    name: str
    image: str


def container_labels(container: Place) -> Labels:
    """Find out what people call a container, from annotations of Kubernetes' engines or else from the engine's store.

    Args:
        container: where it is in a store.
    """
    name, image = _first(container.annotations, store.CONTAINER_NAMES), _first(container.annotations, _IMAGES)
    if not (name and image):
        record = _record(container)
        names, metadata = record.get("names"), _metadata(record)
        name = name or _label(names[0] if isinstance(names, list) and names else None)
        image = image or _label(metadata.get("image-name"))
    return Labels(name=name, image=image)


def _first(annotations: Mapping[str, object], keys: Iterable[str]) -> str:
    return next(filter(None, (_label(annotations.get(key)) for key in keys)), "")


def _record(container: Place) -> Mapping[str, object]:
    """Return what the engine's store has on a container; nothing if it does not know it, or cannot be read."""
    containers, identifier = store.container_in_store(container.bundle)
    elsewhere, same = store.container_in_store(os.path.dirname(container.environment_file))
    places = [containers, elsewhere] if same == identifier else [containers]
    try:
        for place in filter(None, dict.fromkeys(places)):
            for record in store.records(place):
                if record.get("id") == identifier:
                    return record
    except store.UnknownError:
        pass
    return {}


def _metadata(record: Mapping[str, object]) -> Mapping[str, object]:
    """Read the engine's own notes in a record, which are JSON in a string."""
    text = record.get("metadata")
    if not isinstance(text, str) or len(text) > _LONGEST_METADATA:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _label(value: object) -> str:
    """Return a text of others as one short line: without control characters and halves of characters."""
    if not isinstance(value, str):
        return ""
    return "".join(character for character in value[: 2 * _LONGEST] if character.isprintable())[:_LONGEST]
