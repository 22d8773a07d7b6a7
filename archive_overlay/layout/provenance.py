"""Where a revision comes from: written into an image, and read from it.

It is kept twice. Annotations of layers say all of it, and are lost on the way through an engine's store; the image's
history survives that.

Source: OCI image specification, annotations.md; config.md, "history".
"""

from __future__ import annotations

from archive_overlay.keys import PREFIX
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

CREATED_BY = "archive_overlay"
_CONTAINER = "container "
_ARCHIVE = ", archive "
_MOUNT_POINT = ", mount point "


class Provenance(Record):
    """Where a revision comes from.

    Attributes:
        container: id of the container.
        archive: what the user calls the archive.
        mount_point: the mount's destination in the container.
        entries, deletions: how many there are in the revision; None if that is not known.
    """

    container: str
    archive: str
    mount_point: str
    entries: int | None = None
    deletions: int | None = None

    def annotations(self) -> dict[str, str]:
        """Give what the layer and the manifest are annotated with."""
        facts = {
            "container": self.container,
            "archive": self.archive,
            "mount-point": self.mount_point,
            "entries": self.entries,
            "deletions": self.deletions,
        }
        return {f"{PREFIX}{key}": str(value) for key, value in facts.items() if value is not None}

    def comment(self) -> str:
        """Give the comment of the entry in the image's history."""
        return f"{_CONTAINER}{self.container}{_ARCHIVE}{self.archive}{_MOUNT_POINT}{self.mount_point}"


def read_provenance(annotations: Mapping[str, Any], history: Mapping[str, Any]) -> Provenance | None:
    """Find out where a revision comes from.

    Args:
        annotations: of its layer.
        history: its entry in the image's history.

    Returns:
        None: another program made it.
    """
    container = _text(annotations, "container")
    if container:
        return Provenance(
            container=container,
            archive=_text(annotations, "archive"),
            mount_point=_text(annotations, "mount-point"),
            entries=_count(annotations, "entries"),
            deletions=_count(annotations, "deletions"),
        )
    comment = history.get("comment")
    if history.get("created_by") == CREATED_BY and isinstance(comment, str):
        return _read_comment(comment)
    return None


def _read_comment(comment: str) -> Provenance | None:
    """Read what `Provenance.comment` gives; None: it is something else.

    A regular expression would try all pairs of commas. What is between the last words is taken, for in a path they are
    the least likely.
    """
    begin = len(_CONTAINER)
    # Each of the three has a character at least.
    mount_point = comment.rfind(_MOUNT_POINT, begin, len(comment) - 1)
    archive = comment.rfind(_ARCHIVE, begin + 1, mount_point - 1) if mount_point > 0 else -1
    if archive < 0 or not comment.startswith(_CONTAINER):
        return None
    return Provenance(
        container=comment[begin:archive],
        archive=comment[archive + len(_ARCHIVE) : mount_point],
        mount_point=comment[mount_point + len(_MOUNT_POINT) :],
    )


def _text(annotations: Mapping[str, Any], key: str) -> str:
    value = annotations.get(f"{PREFIX}{key}")
    return value if isinstance(value, str) else ""


def _count(annotations: Mapping[str, Any], key: str) -> int | None:
    text = _text(annotations, key)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
