"""Which blobs of a layout something refers to.

Source: OCI image specification, image-layout.md; image-index.md; manifest.md.
"""

from __future__ import annotations

from archive_overlay.layout.packs import history_of
from archive_overlay.layout.read import INDEX_TYPE, MANIFEST_TYPE, read_json_blob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from archive_overlay.layout.blobs import Blobs

# What has the digests of other blobs in it. Docker's own are found in layouts, too.
INDEXES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")


class UnknownError(Exception):
    """What is referred to cannot be known; the message says why."""


def reachable(
    blobs: Blobs, descriptors: Collection[Mapping[str, Any]], *, at_most: int | None = None
) -> set[str]:
    """Return the digests of all blobs that descriptors lead to.

    Args:
        blobs: of the layout.
        descriptors: of an index.
        at_most: how many manifests and indexes are read; None: all.

    Raises:
        UnknownError: there are more, or one of them is of a type that this program does not know.
        ArchiveError: one of them is missing or damaged.
        OSError: one of them cannot be read.
    """
    found: set[str] = set()
    pending = list(descriptors)
    read = 0
    while pending:
        descriptor = pending.pop()
        digest = descriptor.get("digest")
        if not isinstance(digest, str) or digest in found:
            continue
        found.add(digest)
        media_type = descriptor.get("mediaType", MANIFEST_TYPE)
        if media_type not in INDEXES and media_type not in MANIFESTS:
            raise UnknownError(f"{digest} is of type {media_type}, which this program does not know")
        read += 1
        if at_most is not None and read > at_most:
            raise UnknownError(f"the layout has more than {at_most} manifests")
        document = read_json_blob(blobs, descriptor)
        if media_type in INDEXES:
            pending += [each for each in _list(document.get("manifests")) if isinstance(each, dict)]
        else:
            parts = [document.get("config"), *_list(document.get("layers"))]
            found.update(
                part["digest"]
                for part in parts
                if isinstance(part, dict) and isinstance(part.get("digest"), str)
            )
            annotations = document.get("annotations")
            history = history_of(annotations) if isinstance(annotations, dict) else None
            # What was copied from another layout names a history that stayed there.
            if history and not blobs.lacks(history):
                pending.append(history)
        subject = document.get("subject")
        if isinstance(subject, dict) and isinstance(subject.get("digest"), str):
            # It may be in a registry only.
            if blobs.lacks(subject):
                found.add(subject["digest"])
            else:
                pending.append(subject)
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
