"""`archive_overlay revert`: one more revision, which is as an earlier one was."""

from __future__ import annotations

import os
import time

from archive_overlay.commands import Output, shown
from archive_overlay.commands.writing import find_tagged, make_room_in, open_layout
from archive_overlay.errors import ArchiveError
from archive_overlay.history.composing import write_composed
from archive_overlay.history.revert import changes_back
from archive_overlay.layout.images import put_image, with_layer
from archive_overlay.layout.provenance import Provenance

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from archive_overlay.commands.writing import Layout
    from archive_overlay.history.revisions import Image, Revision
    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.layer import Layer
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change

_LAYER = "reverted"


def run(options: argparse.Namespace, log: Log) -> None:
    """Add the revision.

    Args:
        options: `revision`, LAYOUT:TAG@N; `message`; `max_layers`; `fsync`.
        log: takes a warning if nobody knows what lies below the history.

    Raises:
        ArchiveError: there is no such revision, what was changed lies on a base that is not there, something is damaged, or
            the layout cannot be written.
    """
    found = find_tagged(options.revision, numbered=True)
    if not found.number:
        raise ArchiveError(
            f"{options.revision} does not say which revision to go back to",
            hint=f"write {options.revision}@N",
        )
    with open_layout(found.path, fsync=options.fsync, log=log) as layout:
        reverting = _Reverting(layout, found.name, found.number, options.message)
        done = layout.write(found.name, reverting.revert)
        if reverting.unknown:
            log.warning(
                f"the base of {found.name} is unknown: {reverting.unknown} entries such as {reverting.example} are now deleted,"
                f" because revision {found.number} does not have them; anything below them is hidden"
            )
    make_room_in(found.path, found.name, options.max_layers, fsync=options.fsync, log=log)
    output = Output()
    output.line(f"{shown(found.name)}: {done}")
    output.flush()


class _Reverting:
    """What reverts an image to a revision.

    Attributes:
        unknown: how many changes may have been about what the history began on, which is not in the layout.
        example: the path of one of them.
    """

    def __init__(self, layout: Layout, tag: str, number: int, message: str) -> None:
        self._layout = layout
        self._tag = tag
        self._number = number
        self._message = message or f"revert to {number}"
        self._made: tuple[tuple[str, ...], Layer] | None = None
        self.unknown = 0
        self.example = ""

    def revert(self, edit: Edit | None) -> str:
        """Add the revision, or write its layer; say what was done."""
        layout = self._layout
        with layout.open(self._tag) as image:
            stored = image.stored
            revision = image.numbered(self._number)
            if revision.number == stored.last:
                return f"nothing to revert: revision {revision.number} is the last one"
            layer = self._layer(image, revision)
            number = stored.last + 1
            if layer.empty:
                return f"nothing to revert: nothing has changed since revision {revision.number}"
            if edit:
                edit.add_file(_LAYER, layer.digest)
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                provenance = Provenance(
                    container="",
                    archive="",
                    mount_point=_mount_point(image),
                    entries=layer.entries,
                    deletions=layer.deletions,
                    bytes=layer.bytes,
                    message=self._message,
                )
                manifest, config = with_layer(stored.manifest, stored.config, layer, provenance, number, now)
                put_image(edit, self._tag, manifest, config, instead_of=stored)
        if edit:
            edit.publish()
        return f"revision {number} restores revision {revision.number}"

    def _layer(self, image: Image, revision: Revision) -> Layer:
        """Write the layer, unless it is there from the first time."""
        state, since = image.state(revision), image.between(revision.number, image.stored.last)
        key = tuple(piece.digest for piece in (*state, *since))
        if self._made and self._made[0] == key:
            return self._made[1]
        staging = self._layout.staging
        if self._made:
            os.unlink(_LAYER, dir_fd=staging.directory)
        self.unknown = 0
        lacks_base = image.lacks_base
        # A first revision of this program's lay on something that is not in the layout, if only on an empty directory.
        whole = not lacks_base and image.revisions[0].provenance is None

        def unknown(change: Change) -> None:
            if not change.name:
                return
            if lacks_base:
                raise ArchiveError(
                    f"{image.name} cannot be reverted to {revision.number}: {change.shown} has changed since, and what it"
                    " was before may be in the image that the history began on, which is not in the layout",
                    hint=f"archive_overlay extract {image.name}@{revision.number} gives what the layout has of it",
                )
            self.unknown += 1
            self.example = self.example or change.shown

        fd = staging.create_file(_LAYER)
        try:
            layer = write_composed(
                [[lambda piece=piece: image.read(piece) for piece in pieces] for pieces in (state, since)],  # type: ignore[misc]
                lambda sources: changes_back(*sources, unknown=None if whole else unknown),
                fd,
                directory=staging.directory,
                where=staging.path,
                compression="gzip",
                level=6,
                jobs=0,
                log=self._layout.log,
            )
        finally:
            os.close(fd)
        self._made = key, layer
        return layer


def _mount_point(image: Image) -> str:
    """Give where containers have mounted the image last."""
    found = (each.provenance.mount_point for each in reversed(image.revisions) if each.provenance)
    return next(found, "")
