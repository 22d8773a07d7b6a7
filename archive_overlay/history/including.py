"""Copy the image that a history begins with from an engine's store into the layout.

The first revision of a history is numbered as if that image were below it, so that nothing is renumbered when it comes. Until
then the revision says that its base is absent, and which one it is.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.history.revisions import opened_layout
from archive_overlay.layout.edit import Edit, until_published
from archive_overlay.layout.images import put_image, with_base
from archive_overlay.layout.layer import write_layer, write_tar
from archive_overlay.layout.lock import lock
from archive_overlay.layout.provenance import ABSENT, BASE
from archive_overlay.layout.read import read_index, tagged
from archive_overlay.layout.stored import open_stored

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping, Sequence
    from typing import Any, Callable, Protocol

    from archive_overlay.destination.paths import Paths
    from archive_overlay.destination.staging import Staging
    from archive_overlay.history.compaction import Form
    from archive_overlay.layout.layer import Layer
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.system.patience import Patience

    class StoreLayer(Protocol):
        """What `overlay.image_layers.StoredLayer` has."""

        @property
        def diff_id(self) -> str: ...
        @property
        def has_tar(self) -> bool: ...
        def tar(self) -> Generator[bytes, None, None]: ...
        def changes(self, log: Log) -> Generator[Change, None, None]: ...

    class StoreImage(Protocol):
        """What `overlay.image_layers.StoredImage` has."""

        @property
        def config(self) -> dict[str, Any] | None: ...
        @property
        def layers(self) -> Sequence[StoreLayer]: ...


def include_base(
    path: str,
    tag: str,
    staging: Staging,
    *,
    ids: Collection[str],
    find: Callable[[], StoreImage],
    form: Form,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> str:
    """Copy the image that a history begins with, if it is not in the layout and a container has just had it.

    Args:
        path: of the layout, resolved.
        tag: of the history.
        staging: in the layout.
        ids: what the store, and engines that pull it, call the topmost layer of the image that the container had.
        find: gives that image.
        form: how layers are written.
        paths: how to get to the layout.
        patience: how long to wait for others.
        log: is told if it does, and takes warnings of what is left out.

    Returns:
        What was done, for a message; "" for nothing.

    Raises:
        ArchiveError: that is not possible; the history is as it was.
    """
    with opened_layout(path, paths) as layout:
        now = _without_base(layout, read_index(layout), tag, ids)
        if now is None:
            return ""
        image = find()
        if len(image.layers) != now.first - 1:
            raise ArchiveError(
                f"the container's image has {len(image.layers)} layers, not {now.first - 1} as before"
            )
        layers = [
            _copy(layer, f"base-{number}", staging, form, log) for number, layer in enumerate(image.layers, 1)
        ]
        lock(layout, path, patience, log)
        edit = Edit(layout, staging)

        def put() -> str:
            now = _without_base(layout, edit.index, tag, ids)
            if now is None:
                return ""  # somebody else was faster
            for number, layer in enumerate(layers, 1):
                edit.add_file(f"base-{number}", layer.digest)
            put_image(edit, tag, *with_base(now, layers, image.config, ids), instead_of=now)
            edit.publish()
            return f"the container's image was added as {'revision 1' if len(layers) == 1 else f'revisions 1 to {len(layers)}'}"

        return until_published(edit, path, put)


def _without_base(
    layout: int, index: Mapping[str, Any], tag: str, ids: Collection[str]
) -> StoredImage | None:
    """Return an image that lacks its base, if the base is one of these."""
    descriptor = tagged(index, tag)
    image = open_stored(layout, descriptor) if descriptor else None
    if image is None or image.first < 2:
        return None
    kept = image.kept()
    said = kept[0].annotations.get(BASE) if kept else None
    word, _, identifier = said.partition(" ") if isinstance(said, str) else ("", "", "")
    return image if word == ABSENT and identifier in ids else None


def _copy(layer: StoreLayer, name: str, staging: Staging, form: Form, log: Log) -> Layer:
    """Write a layer of the store into staging: as the original tar if possible, else from its directory."""
    fd = staging.create_file(name)
    try:
        if layer.has_tar:
            pieces = layer.tar()
            try:
                found = write_tar(pieces, fd, where=staging.path, **vars(form))
                if found.diff_id == layer.diff_id:
                    return found
            except ArchiveError as error:
                log.debug(f"a layer is read from its directory: {error}")
            finally:
                pieces.close()
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        changes = layer.changes(log)
        try:
            return write_layer(changes, fd, where=staging.path, **vars(form), log=log)
        finally:
            changes.close()
    finally:
        os.close(fd)
