"""Images of an engine's store, by the name that a history is loaded by: the one that has it now, and those that had it.

Source: images.go and layers.go of containers/storage.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.keys import PREFIX
from archive_overlay.overlay import images, layers, store
from archive_overlay.overlay.layers import Driver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable

    from archive_overlay.overlay.images import Listed
    from archive_overlay.transfer.names import Name
    from archive_overlay.transfer.skopeo import Skopeo
    from archive_overlay.transfer.stores import EngineStore

# Images that are removed at once. There is one, usually.
_MOST_REMOVED = 8


def find_named(place: EngineStore, name: Name) -> Listed | None:
    """Find the image that has a name in a store.

    Raises:
        UnknownError: the store's list cannot be read.
    """
    return next((each for each in images.listed(place.driver) if str(name) in each.names), None)


def ids_of(place: EngineStore, image: Listed) -> Sequence[str]:
    """Return the ids that stores may have for an image's topmost layer.

    Raises:
        UnknownError: the store's list cannot be read.
    """
    if not image.layer:
        return ()
    found = layers.chain(image.layer, [Driver(path=place.driver)])
    diff_ids = [layer.diff_id for layer in found]
    return [image.layer, *([layers.canonical(diff_ids)] if all(diff_ids) else [])]


def remove_superseded(place: EngineStore, name: Name, skopeo: Skopeo, say: Callable[[str], object]) -> None:
    """Remove images that were loaded by a name, lost it, and that nobody uses. What fails is for the next time.

    Args:
        place: the store.
        name: it.
        skopeo: removes them.
        say: is told what was removed, and what was not.
    """
    try:
        mounted = place.mounted()
        found = [each for each in images.listed(place.driver) if _is_superseded(each, name)]
        for image in found[:_MOST_REMOVED]:
            if image.layer not in mounted and _is_ours(image):
                skopeo.delete(place.transport(f"@{image.identifier}"))
                say(f"removed image {image.identifier[:12]}, which was {name}")
    except (ArchiveError, store.UnknownError) as error:
        say(f"an image that was {name} stays in the engine's store: {error}")


def _is_superseded(image: Listed, name: Name) -> bool:
    """Return whether an image has no name, and never had another one."""
    return not image.names and image.former == (str(name),)


def _is_ours(image: Listed) -> bool:
    """Return whether this program made an image: others keep theirs, whoever took its name away."""
    return any(PREFIX in manifest for manifest in images.manifests(image.image))
