"""Where the data of a sparse file are.

Source: lseek(2), SEEK_DATA and SEEK_HOLE.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def segments(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that are not holes, in order.

    Args:
        fd: the file; its position is moved.
        size: where to stop; anything beyond it is ignored.

    Yields:
        Offset and length in bytes. A file system without holes gives one segment.

    Raises:
        OSError: the file system cannot tell.
    """
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole up to the end
            raise
        if start >= size:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end - start
