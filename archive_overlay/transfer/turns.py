"""What uses the images of a layout for long takes turns, without the layout's lock: containers that stop wait for that.

The lock is one of the directory of its blobs.

Source: flock(2).
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager

from archive_overlay.errors import ArchiveError
from archive_overlay.layout.blobs import BLOBS
from archive_overlay.system.activity import doing
from archive_overlay.system.open_flags import READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

_SECONDS_BETWEEN = 0.05


@contextmanager
def turn(layout: int, path: str, *, seconds: float) -> Generator[None, None, None]:
    """Take a turn.

    Args:
        layout: file descriptor of the layout's directory.
        path: of the layout, for messages.
        seconds: how long to wait for others.

    Raises:
        ArchiveError: others take longer, or the layout is not there.
    """
    try:
        fd = os.open(BLOBS.partition("/")[0], READ_DIRECTORY, dir_fd=layout)
    except OSError as error:
        raise ArchiveError(f"cannot lock the blobs of the image layout {path}: {error.strerror}") from error
    try:
        end = time.monotonic() + seconds
        with doing(f"waiting for another program that loads or pushes images of {path}"):
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                if time.monotonic() >= end:
                    raise ArchiveError(
                        f"another program has loaded or pushed images of {path} for more than {seconds:.0f} s"
                    )
                time.sleep(_SECONDS_BETWEEN)
        yield
    finally:
        os.close(fd)
