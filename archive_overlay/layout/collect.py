"""Find blobs of a layout that nothing refers to.

Source: OCI image specification, image-layout.md.
"""

from __future__ import annotations

import re
import stat
import time

from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.reachable import reachable
from archive_overlay.layout.read import images, is_history
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_NAME = re.compile("[0-9a-f]{64}")


class Unneeded(Record):
    """What a layout has that no image needs.

    Attributes:
        blobs: digest and size of each.
        younger: how many others there are that are not old enough.
        histories: digests of the histories that the index lists and no image names.
    """

    blobs: Sequence[tuple[str, int]]
    younger: int
    histories: Sequence[str]

    @property
    def bytes(self) -> int:
        """The total size of the blobs."""
        return sum(size for _, size in self.blobs)


def unneeded_blobs(layout: int, index: Mapping[str, Any], *, older: float) -> Unneeded:
    """Find the blobs that nothing refers to. Links to blobs outside do not count: these are not this layout's.

    Args:
        layout: file descriptor of the layout's directory.
        index: the layout's.
        older: how many seconds ago a blob was made or changed, at least.

    Raises:
        UnknownError: the index leads to something that this program does not know.
        ArchiveError: it leads to something that is missing or damaged.
        OSError: something cannot be read.
    """
    before = time.time() - older
    found, younger = [], 0
    with Blobs(layout) as blobs:
        needed = reachable(blobs, images(index))
        for name in sorted(blobs.names()):
            if not _NAME.fullmatch(name) or f"sha256:{name}" in needed:
                continue
            try:
                status = blobs.status(name)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            if max(status.st_mtime, status.st_ctime) > before:
                younger += 1
            else:
                found.append((f"sha256:{name}", status.st_size))
    histories = [
        str(each.get("digest"))
        for each in index["manifests"]
        if is_history(each) and each.get("digest") not in needed
    ]
    return Unneeded(blobs=found, younger=younger, histories=histories)
