"""Read an image from an engine's store, to copy it: its layers and its configuration.

A layer comes as its original tar, if the store can still rebuild that, and as changes otherwise. Only the engine writes
into its store, but the author of the image wrote what a layer holds: files are opened beneath the layer's directory,
and no link in it is followed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.overlay import images, store
from archive_overlay.overlay.layers import Driver, Layer, is_sha256
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.tar_split import reassembled
from archive_overlay.overlay.upper import read_changes
from archive_overlay.system.open_flags import READ, READ_DIRECTORY
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from archive_overlay.log import Log
    from archive_overlay.overlay.base import ContainerBase
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.dialect import Dialect

_LONGEST_JSON = 1 << 22


class StoredLayer(Record):
    """A layer of an image in a store.

    Attributes:
        diff_id: the digest of its tar, with "sha256:" before it; "" if the store does not know it.
        has_tar: whether the store has what it takes to put its tar together.
        layer: what the store says of it.
        directories: what it was unpacked to; before that what has been given to other users since, topmost first.
        lowers: the directories of the layers below, topmost first.
        dialect: how overlays of the store mark deletions.
    """

    diff_id: str
    has_tar: bool
    layer: Layer
    directories: tuple[str, ...]
    lowers: tuple[str, ...]
    dialect: Dialect

    def tar(self) -> Generator[bytes, None, None]:
        """Yield its tar. Only if it ends without an error is it right, with `diff_id` as its digest.

        Close the iterator if it is not read to its end.

        Raises:
            ArchiveError: it cannot be put together again, or is not what it was: there is `changes` then.
        """
        fds: list[int] = []
        try:
            try:
                fds.append(os.open(self.layer.tar_split, READ))
                # In the last one most files are as they were unpacked: those before it have been given to others.
                for path in reversed(self.directories):
                    fds.append(os.open(path, READ_DIRECTORY))
            except OSError as error:
                fail(f"the tar of the layer {self.layer.id} cannot be put together", error)
            yield from reassembled(fds[0], fds[1:], self.diff_id, self.layer.id)
        finally:
            for fd in fds:
                os.close(fd)

    def changes(self, log: Log) -> Generator[Change, None, None]:
        """Return what it changes, read from the directory that it was unpacked to.

        Close the iterator if it is not read to its end.

        Args:
            log: takes warnings of what is left out.

        Raises:
            ArchiveError: it cannot be read, or its files belong to other users than they did.
        """
        # podman 4.3 copies files of the layers below into such a layer, to give them away too.
        if self.layer.has_other_owners or len(self.directories) > 1:
            raise ArchiveError(
                f"the layer {self.layer.id} has been given to other users, and the engine's store does not say to whom it"
                " belonged"
            )
        overlay = OverlayMount(
            upper=self.directories[0], lowers=self.lowers, dialect=self.dialect, lowers_are_listed=True
        )
        return read_changes(overlay, log)


class StoredImage(Record):
    """An image in a store.

    Attributes:
        id: of the image; "" if the store has no image with these layers any more.
        config: its configuration, as the OCI image specification has it; None if the store has none that fits.
        layers: lowest first.
    """

    id: str
    config: dict[str, Any] | None
    layers: list[StoredLayer]


def image_of_store(base: ContainerBase) -> StoredImage:
    """Find the layers and the configuration of the image that a container started from.

    Args:
        base: the image.

    Raises:
        ArchiveError: the store does not have all of it, or does not say what it has.
    """
    try:
        found = base.layers()
        below: list[str] = []
        layers = []
        for layer in found:
            directories = store.directories(layer.directory)
            layers.append(
                StoredLayer(
                    diff_id=layer.diff_id,
                    has_tar=bool(layer.diff_id) and os.path.lexists(layer.tar_split),
                    layer=layer,
                    directories=tuple(directories),
                    lowers=tuple(below),
                    dialect=base.dialect,
                )
            )
            below = [*directories, *below]
        diff_ids = [layer.diff_id for layer in found]
        identifier, config = _configuration(base.drivers, base.ids[0], diff_ids)
    except store.UnknownError as error:
        raise ArchiveError(f"the container's image cannot be copied: {error}") from error
    return StoredImage(id=identifier, config=config, layers=layers)


def _configuration(
    drivers: tuple[Driver, ...], top: str, diff_ids: list[str]
) -> tuple[str, dict[str, Any] | None]:
    """Give the id and the configuration of an image with these layers: of several, one whose configuration can be read."""
    found = ""
    for image in images.with_top_layer(drivers, top):
        found = found or os.path.basename(image.directory)
        config = _read_config(image.directory)
        if config and _fits(config["rootfs"]["diff_ids"], diff_ids):
            return os.path.basename(image.directory), config
    return found, None


def _fits(configured: list[object], diff_ids: list[str]) -> bool:
    """Return whether a configuration is that of these layers, as far as their diff IDs are known."""
    return len(configured) == len(diff_ids) and all(
        not known or each == known for each, known in zip(configured, diff_ids)
    )


def _read_config(directory: str) -> dict[str, Any] | None:
    """Read the configuration that an image's manifest names; None: there is none, or it is damaged."""
    try:
        manifest = json.loads(store.bytes_of(f"{directory}/manifest", _LONGEST_JSON, "manifest", owners=None))
        digest = manifest["config"]["digest"]
        if not is_sha256(digest):
            return None
        name = base64.b64encode(digest.encode()).decode()
        text = store.bytes_of(f"{directory}/={name}", _LONGEST_JSON, "configuration", owners=None)
        if f"sha256:{hashlib.sha256(text).hexdigest()}" != digest:
            return None
        config = json.loads(text)
        return config if isinstance(config["rootfs"]["diff_ids"], list) else None
    except (store.UnknownError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
