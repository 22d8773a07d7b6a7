"""Find what a container started from: the image in the engine's store whose layers lie below its overlay.

The path of a lower directory tells, at no cost:

    STORE/overlay/LAYER/diff    the topmost layer below a container's root file system; also by way of STORE/overlay/l/SHORT
    STORE/overlay/LAYER/merged  an image that podman has mounted, below an image mount with rw=true

A container may be made of an image in a second store (additionalimagestores in storage.conf). podman mounts no images of
such a store into containers.

Source: drivers/overlay/overlay.go of containers/storage; the mounts of podman 4.3, native and with fuse-overlayfs.
"""

from __future__ import annotations

import os

from archive_overlay.overlay import layers, store
from archive_overlay.overlay.layers import Driver, Layer
from archive_overlay.system.record import Record
from archive_overlay.system.user_namespace import overflow_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.dialect import Dialect
    from archive_overlay.overlay.mount import OverlayMount


class ContainerBase(Record):
    """The image that a container started from.

    Attributes:
        known: whether it is known which one that is.
        why_unknown: why not; "" if it is.
        ids: what its topmost layer may be called, in hexadecimal digits: the store's own name for it, and, after
            `with_all_ids`, what an engine that pulls the image calls it. Empty if that is unknown.
        drivers: where its layers are.
        dialect: how overlays of that store mark deletions.
    """

    known: bool
    why_unknown: str = ""
    ids: tuple[str, ...] = ()
    drivers: tuple[Driver, ...] = ()
    dialect: Dialect

    def layers(self) -> list[Layer]:
        """Return the image's layers, lowest first, as the store's list has them.

        Raises:
            UnknownError: the store does not say.
        """
        if not self.known:
            raise store.UnknownError(self.why_unknown)
        return layers.chain(self.ids[0], self.drivers)

    def with_all_ids(self) -> ContainerBase:
        """Return the same, with all ids: the store's list of layers is read.

        Layers may have random ids, if the engine made copies of them with other owners, and ids of their own, if they were
        pulled by a table of contents.

        Returns:
            A base that is not known, if the store does not say what the layers hold.
        """
        try:
            found = self.layers()
        except store.UnknownError as error:
            return self._unknown(str(error))
        unseen = next((layer for layer in found if not layer.diff_id), None)
        if unseen:
            return self._unknown(
                f"the engine's store has no diff ID of the layer {unseen.id}, which was pulled without reading all of it"
            )
        canonical = layers.canonical([layer.diff_id for layer in found])
        return self.replace(ids=tuple(dict.fromkeys([self.ids[0], canonical])))

    def _unknown(self, why: str) -> ContainerBase:
        return self.replace(known=False, why_unknown=why, ids=(), drivers=())


def container_base(overlay: OverlayMount, stores: Sequence[str]) -> ContainerBase:
    """Find the image below a container's overlay. Only links in the store are read.

    Args:
        overlay: what the container wrote into.
        stores: the engine's directories of layers; see `store.stores_of`.
    """
    try:
        identifier, drivers = _top_layer(overlay, stores)
    except store.UnknownError as error:
        return ContainerBase(known=False, why_unknown=str(error), dialect=overlay.dialect)
    return ContainerBase(known=True, ids=(identifier,), drivers=drivers, dialect=overlay.dialect)


def _top_layer(overlay: OverlayMount, stores: Sequence[str]) -> tuple[str, tuple[Driver, ...]]:
    if overlay.lowers_unknown:
        raise store.UnknownError(overlay.lowers_unknown)
    layer = store.layer_of_upper(overlay.upper, stores)
    # An engine that changes owners for a container keeps the original files in the container's own layer.
    lowers = [lower for lower in overlay.lowers if not (layer and lower.startswith(f"{layer}/"))]
    if not lowers:
        raise store.UnknownError("it has no lower directories")
    if layer:
        return _below_container(layer, lowers[0])
    return _mounted_image(lowers, stores, listed=overlay.lowers_are_listed)


def _below_container(layer: str, lower: str) -> tuple[str, tuple[Driver, ...]]:
    """Return the topmost layer below a container's own one."""
    # The engine alone makes links in its stores, as in the paths of its mounts.
    directory, name = os.path.split(os.path.realpath(lower))
    path, identifier = os.path.split(directory)
    if name != "diff" or not store.is_identifier(identifier):
        raise store.UnknownError(f"{lower} is not a layer")
    own = os.path.dirname(layer)
    if os.path.realpath(own) == path:
        return identifier, (Driver(path=own),)
    if layers.parent(os.path.basename(layer), own) != identifier:
        raise store.UnknownError(f"{own}-layers does not say that the container lies on {directory}")
    # The second store may belong to the host's root, whom a user namespace shows as another user.
    return identifier, (Driver(path=own), Driver(path=path, owners=(0, overflow_owner())))


def _mounted_image(
    lowers: Sequence[str], stores: Sequence[str], *, listed: bool
) -> tuple[str, tuple[Driver, ...]]:
    """Return the topmost layer of an image that is mounted at the only lower directory, or was (`listed`)."""
    lower = lowers[0]
    for path in dict.fromkeys([*stores, *map(os.path.realpath, stores)]):
        identifier, _, name = lower[len(path) + 1 :].partition("/")
        if not lower.startswith(f"{path}/") or not store.is_identifier(identifier):
            continue
        if name.startswith("merged/"):
            raise store.UnknownError(f"{lower} is a part of an image")
        if name == "merged" and len(lowers) == 1 and store.layer_at(lower):
            return identifier, (Driver(path=path),)
        if name == "diff" and listed:  # the image is not mounted any more
            return identifier, (Driver(path=path),)
    raise store.UnknownError(f"{lower} is a directory of the host, not an image")
