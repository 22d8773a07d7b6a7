"""`archive_overlay untag`: a tag less."""

from __future__ import annotations

from archive_overlay.commands import Output, shown
from archive_overlay.commands.writing import find_tagged, open_layout
from archive_overlay.errors import ArchiveError
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.images import superseded_by
from archive_overlay.layout.packs import history_of
from archive_overlay.layout.read import images
from archive_overlay.layout.stored import is_ours, open_stored

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from archive_overlay.commands.writing import Layout
    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log


def run(options: argparse.Namespace, log: Log) -> None:
    """Remove a tag.

    Args:
        options: `layout`, LAYOUT:TAG; `fsync`.
        log: is told for whom it waits.

    Raises:
        ArchiveError: there is no such tag, or the layout cannot be written.
    """
    found = find_tagged(options.layout, numbered=False)
    with open_layout(found.path, fsync=options.fsync, log=log) as layout:
        left = layout.write_at_once(lambda edit: _untag(layout, found.name, edit))
        output = Output()
        empty = "" if left else "; no image is left in the layout"
        output.line(
            f"the tag {shown(found.name)} is removed, with the revisions that no other tag has{empty}; gc removes layers of"
            " other programs"
        )
        output.flush()


def _untag(layout: Layout, tag: str, edit: Edit) -> int:
    """Remove the tag; say how many images are left."""
    descriptor = layout.descriptor(tag)
    edit.remove_tag(tag)
    try:
        edit.discard(_own(open_stored(layout.fd, descriptor, whole=False), layout))
    except ArchiveError:
        pass  # it is damaged, and gc knows what else is needed
    edit.publish()
    return len(images(edit.index)) - 1


def _own(image: StoredImage, layout: Layout) -> Iterator[str]:
    """Give the digests of what this program has written for an image.

    Its other layers may be wanted by a program that does not take the lock, and has just seen that they are there.
    """
    yield image.descriptor["digest"]
    yield image.manifest["config"]["digest"]
    for position, layer in enumerate(image.manifest["layers"]):
        if is_ours(layer.get("annotations") or {}, image.history_of_layer(position)):
            yield layer["digest"]
    yield from superseded_by(image.manifest)
    history = history_of(image.manifest["annotations"])
    with Blobs(layout.fd) as blobs:
        if history and blobs.has(history):
            yield history["digest"]
    for entry in image.packs:
        yield str(entry.descriptor["digest"])
        yield from image.blobs_of(entry)
