"""`archive_overlay load`: an image of a layout, in the engine's store."""

from __future__ import annotations

import os

from archive_overlay.commands import Output, shown
from archive_overlay.commands.writing import find_tagged
from archive_overlay.destination.paths import Paths
from archive_overlay.errors import ArchiveError
from archive_overlay.history.revisions import opened_layout
from archive_overlay.layout.read import images, read_index, tag_of, tagged
from archive_overlay.layout.stored import open_stored
from archive_overlay.settings import DEFAULT_PODMAN
from archive_overlay.transfer.load_for_user import load, store_of_user
from archive_overlay.transfer.names import parse_store_name
from archive_overlay.transfer.skopeo import Skopeo
from archive_overlay.transfer.turns import turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from typing import Any

    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.transfer.names import Name


def run(options: argparse.Namespace, log: Log) -> None:
    """Load an image into the store of the user who runs this.

    Args:
        options: `layout`, LAYOUT:TAG; `name`, by which it is loaded; `timeout`; `skopeo`.
        log: is told for whom it waits.

    Raises:
        ArchiveError: there is no such image, the name stands for something that is not in the layout, or the image could not
            be loaded.
    """
    found = find_tagged(options.layout, numbered=True)
    if found.number:
        raise ArchiveError(
            f"load takes the newest revision of a tag, not {shown(options.layout)}",
            hint=f"give revision {found.number} a tag first: archive_overlay tag {shown(options.layout)} NEW",
        )
    name = parse_store_name(options.name)
    skopeo = Skopeo(options.skopeo, environment=None, timeout=options.timeout, say=log.debug)
    skopeo.require()
    loaded = load_tag(skopeo, found.path, found.name, name, options.timeout, log)
    output = Output()
    image = f"{shown(found.path)}:{shown(found.name)}"
    output.line(f"{image}: loaded as {name}" if loaded else f"{name} is {image} already")
    output.flush()


def load_tag(skopeo: Skopeo, path: str, tag: str, name: Name, timeout: int, log: Log) -> bool:
    """Load an image into the store of the user who runs this; say whether the store lacked it.

    Args:
        skopeo: does it.
        path, tag: of the image. If there is no such tag, nothing is loaded.
        name: by which it is loaded.
        timeout: how long to wait for others who load or push, in seconds.
        log: is told of images that are removed.

    Raises:
        ArchiveError: the image could not be loaded. The name is where it was.
    """
    paths = Paths()
    resolved = paths.resolve(os.path.abspath(path), "the image layout")
    with opened_layout(resolved, paths) as layout, turn(layout, resolved, seconds=timeout):
        index = read_index(layout)
        descriptor = tagged(index, tag)
        if descriptor is None:
            return False
        image, others = open_stored(layout, descriptor), _others(layout, index, tag)
        place = store_of_user(DEFAULT_PODMAN, log)
        return load(image, others, f"oci:{resolved}:{tag}", place, name, skopeo, log)


def _others(layout: int, index: Mapping[str, Any], tag: str) -> Iterator[StoredImage]:
    """Give the images of a layout that have other tags."""
    for descriptor in images(index):
        if tag_of(descriptor) not in ("", tag):
            try:
                yield open_stored(layout, descriptor, whole=False)
            except (ArchiveError, OSError):
                continue  # damaged, or no image: another one's matter
