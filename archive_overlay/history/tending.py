"""Tend a history once a stop's revision is safe: compose layers if there are too many."""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.history.compaction import Composer, compact, put_compacted
from archive_overlay.history.revisions import Image, opened_layout
from archive_overlay.layout.edit import Edit, until_published
from archive_overlay.layout.lock import lock
from archive_overlay.layout.read import read_index, tagged
from archive_overlay.layout.stored import open_stored

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.destination.paths import Paths
    from archive_overlay.destination.staging import Staging
    from archive_overlay.history.compaction import Form
    from archive_overlay.log import Log
    from archive_overlay.system.patience import Patience


def make_room(
    path: str,
    tag: str,
    staging: Staging,
    *,
    most: int,
    form: Form,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> str:
    """Compose layers of an image, if it has no room for one more.

    Args:
        path: of the layout, resolved.
        tag: the image's.
        staging: in the layout.
        most: how many layers the image may have.
        form: how layers are written.
        paths: how to get to the layout.
        patience: how long to wait for others.
        log: is told if it does.

    Returns:
        What was done, for a message; "" for nothing.

    Raises:
        ArchiveError: that is not possible; the image is as it was.
    """
    with opened_layout(path, paths) as layout:
        descriptor = tagged(read_index(layout), tag)
        if descriptor is None:
            return ""
        try:
            with Image(path, tag, os.dup(layout), open_stored(layout, descriptor)) as image:
                before = len(image.stored.layers)
                plan = compact(image, Composer(image, staging, form, log), most=most)
        except ArchiveError:
            if tagged(read_index(layout), tag) == descriptor:
                raise
            return ""  # somebody else has composed them, and deleted what was read here
        if plan is None:
            return ""
        lock(layout, path, patience, log)
        edit = Edit(layout, staging)

        def put() -> str:
            descriptor = tagged(edit.index, tag)
            now = open_stored(layout, descriptor) if descriptor else None
            if now is None or not put_compacted(plan, tag, layout, now, edit):
                return ""  # somebody else has composed them, or the tag is gone
            edit.publish()
            after = before - sum(len(old) - 1 for old, _ in plan.layers)
            return f"{before} layers have become {after}"

        return until_published(edit, path, put)
