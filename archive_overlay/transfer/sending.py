"""How much of a layout in staging another program has sent: how far it has read the files there."""

from __future__ import annotations

import os
from itertools import chain

from archive_overlay.system.positions import children, positions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable


def sent_from(directory: str) -> Callable[[], int]:
    """Make what gives how many bytes of the files below a directory programs that this one has started have read.

    A file that is not open any more has been read as far as was seen when it was.
    """
    seen: dict[str, int] = {}

    def sent() -> int:
        for path, position in chain.from_iterable(map(positions, children())):
            if path.startswith(f"{directory}/"):
                seen[path] = max(seen.get(path, 0), position)
        return sum(seen.values())

    return sent


def came_into(directory: int, name: str) -> Callable[[], int]:
    """Make what gives how many bytes have come into a layout that is being written.

    Args:
        directory: file descriptor of the directory that it is in.
        name: of the layout. What has a second name elsewhere was there before.
    """

    def came() -> int:
        size = 0
        for place in (name, f"{name}/blobs", f"{name}/blobs/sha256"):
            path = f"/proc/self/fd/{directory}/{place}"
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        status = entry.stat(follow_symlinks=False)
                        if entry.is_file(follow_symlinks=False) and status.st_nlink == 1:
                            size += status.st_size
            except OSError:
                continue  # it is not there yet, or has another name by now
        return size

    return came
