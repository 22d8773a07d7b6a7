"""Write where a revision comes from into an image, and read it.

It is stored twice. Annotations of layers have all of it, but are lost on the way through an engine's store; the image's
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
# What `Provenance.base` says, besides nothing.
UNKNOWN = "unknown"
ABSENT = "absent"
OTHER = "other"
# The annotation that says it.
BASE = f"{PREFIX}base"
_NUMBER = "revision "
_CONTAINER = "container "
_ARCHIVE = ", archive "
_MOUNT_POINT = ", mount point "


class Provenance(Record):
    """Where a revision comes from.

    Attributes:
        container: id of the container; "" if a person made the revision.
        archive: what the user calls the archive.
        mount_point: the mount's destination in the container.
        entries, deletions: how many there are in the revision; None if that is not known.
        bytes: of the contents of its files; None if that is not known.
        excluded: how many entries the user had left out; None if none, or if that is not known.
        container_name, image: what people call the container, and its image; "" if that is not known.
        message: what the user says of it.
        parent: the revision that it lies on, "TAG@N", if that is not the one before it.
        base: UNKNOWN if nobody knows what the container had mounted; ABSENT, and after a space the id of its top layer in
            the store, if that is no revision here; OTHER, and after a space what it had, if the user wants it on its parent all
            the same; "" if the parent is what the container had.
        upper: which upperdir it is of, 16 hexadecimal digits, and after a space the number of the first revision of that; ""
            if that is not known.
    """

    container: str
    archive: str
    mount_point: str
    entries: int | None = None
    deletions: int | None = None
    bytes: int | None = None
    excluded: int | None = None
    container_name: str = ""
    image: str = ""
    message: str = ""
    parent: str = ""
    base: str = ""
    upper: str = ""

    def annotations(self) -> dict[str, str]:
        """Return what the layer and the manifest are annotated with."""
        facts = {
            "container": self.container,
            "archive": self.archive,
            "mount-point": self.mount_point,
            "entries": self.entries,
            "deletions": self.deletions,
            "bytes": self.bytes,
            "excluded": self.excluded,
        }
        said = {
            "container-name": self.container_name,
            "image": self.image,
            "message": self.message,
            "parent": self.parent,
            "base": self.base,
            "upper": self.upper,
        }
        known = {key: str(value) for key, value in facts.items() if value is not None}
        return {
            f"{PREFIX}{key}": value for key, value in (*known.items(), *said.items()) if key in known or value
        }

    def comment(self, number: int) -> str:
        """Return the comment of the entry in the image's history."""
        if not self.container:
            return f"{_NUMBER}{number}: {self.message}"  # a person made it
        return f"{_NUMBER}{number}: {_CONTAINER}{self.container}{_ARCHIVE}{self.archive}{_MOUNT_POINT}{self.mount_point}"


def read_provenance(annotations: Mapping[str, Any], history: Mapping[str, Any]) -> Provenance | None:
    """Find out where a revision comes from.

    Args:
        annotations: of its layer.
        history: its entry in the image's history.

    Returns:
        None: another program made it.
    """
    if f"{PREFIX}container" in annotations:
        return Provenance(
            container=_text(annotations, "container"),
            archive=_text(annotations, "archive"),
            mount_point=_text(annotations, "mount-point"),
            entries=_count(annotations, "entries"),
            deletions=_count(annotations, "deletions"),
            bytes=_count(annotations, "bytes"),
            excluded=_count(annotations, "excluded"),
            container_name=_text(annotations, "container-name"),
            image=_text(annotations, "image"),
            message=_text(annotations, "message"),
            parent=_text(annotations, "parent"),
            base=_text(annotations, "base"),
            upper=_text(annotations, "upper"),
        )
    comment = history.get("comment")
    if history.get("created_by") == CREATED_BY and isinstance(comment, str):
        return _read_comment(_without_number(comment))
    return None


def first_of(annotations: Mapping[str, Any], upper: str) -> int:
    """Return the number of the first revision of an upperdir, if a layer is a revision of it; 0 if it is not.

    Args:
        annotations: of the layer.
        upper: the upperdir's identity.
    """
    identity, _, first = _text(annotations, "upper").partition(" ")
    if identity != upper or not (first.isascii() and first.isdigit() and len(first) < 10):
        return 0
    return int(first)


def composed_comment(first: int, last: int) -> str:
    """Return the comment in the image's history for a layer of several revisions."""
    return f"revisions {first} to {last}"


def numbers_in(comment: object) -> tuple[int, int] | None:
    """Give the first and the last revision that the comment of an entry in an image's history names; None: it names none."""
    if not isinstance(comment, str):
        return None
    words = comment[:64].split(" ")
    if words[0] == "revision" and len(words) > 1 and words[1].endswith(":"):
        numbers = [words[1][:-1]]
    elif words[0] == "revisions" and len(words) == 4 and words[2] == "to":
        numbers = [words[1], words[3]]
    else:
        return None
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
        return None
    return int(numbers[0]), int(numbers[-1])


def _without_number(comment: str) -> str:
    number, colon, rest = comment.partition(": ")
    return rest if colon and number.startswith(_NUMBER) else comment


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
