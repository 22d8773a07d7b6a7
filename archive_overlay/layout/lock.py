"""The lock of an image layout: one program writes to it at a time.

Source: flock(2); proc(5), "/proc/locks", "/proc/pid/comm".
"""

from __future__ import annotations

import fcntl
import os

from archive_overlay.errors import ArchiveError
from archive_overlay.system import mountinfo
from archive_overlay.system.activity import doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.log import Log
    from archive_overlay.system.patience import Patience

# There may be any number: other users make them.
_MOST_LOCKS = 100_000


def lock(layout: int, path: str, patience: Patience, log: Log) -> None:
    """Wait until nobody else has a layout's lock, and take it. It goes when the layout is closed.

    Args:
        layout: file descriptor of the layout's directory.
        path: of the layout, for messages.
        patience: how long the run may wait, all its archives together.
        log: is told for whom it waits.

    Raises:
        ArchiveError: somebody else has it for too long.
        OSError: the file system has no locks.
    """
    with doing(f"waiting for the lock of the image layout {path}", slow=False):
        waiting = False
        while True:
            try:
                fcntl.flock(layout, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            if not waiting and patience.left:
                waiting = True
                log.info(
                    f"waiting for {_holder(layout)}, which holds the lock of the image layout {path}, for at most"
                    f" {patience.left} s"
                )
            if not patience.nap():
                raise ArchiveError(
                    f"the image layout {path} is locked by {_holder(layout)}, and this run has waited for locks for"
                    f" {patience.seconds} s, which is all that it may"
                )


def _holder(layout: int) -> str:
    """Say who has the lock, as far as the kernel tells: not of a process in another pid namespace."""
    try:
        status = os.fstat(layout)
        places = {
            f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
            for device in (status.st_dev, mountinfo.device_below(layout))
            if device is not None
        }
        with open("/proc/locks", encoding="ascii") as locks:
            for _, line in zip(range(_MOST_LOCKS), locks):
                fields = line.split()
                # "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF"; after "->" comes who waits.
                if fields[1] == "FLOCK" and fields[5] in places and fields[4].isdigit() and fields[4] != "0":
                    return f"another program (pid {fields[4]}{_name(fields[4])})"
    except (OSError, ValueError, IndexError):
        pass  # no /proc, or one of another kernel
    return "another program"


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as file:
            return f", {file.read().rstrip()}"
    except OSError:
        return ""
