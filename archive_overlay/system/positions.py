"""How far processes have read the files that they have open.

Source: proc(5), "/proc/pid/fdinfo", "/proc/pid/task/tid/children".
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


def children() -> list[str]:
    """Give the ids of the processes that this one has started; none if the kernel does not say."""
    found: list[str] = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                found += file.read().split()
    except OSError:
        pass  # it has been built without that, or there is no /proc
    return found


def positions(process: int | str) -> Iterator[tuple[str, int]]:
    """Give the regular files that a process has open for reading alone, and the position in each.

    Args:
        process: its id. If it may not be looked at, or has ended, it has no files.
    """
    try:
        fds = os.listdir(f"/proc/{process}/fd")
    except OSError:
        return
    for fd in fds:
        try:
            with open(f"/proc/{process}/fdinfo/{fd}", encoding="ascii") as file:
                position = int(file.readline().partition(":")[2])
                flags = int(file.readline().partition(":")[2], 8)
            if flags & _ACCESS != os.O_RDONLY:
                continue
            if stat.S_ISREG(os.stat(f"/proc/{process}/fd/{fd}").st_mode):
                yield os.readlink(f"/proc/{process}/fd/{fd}"), position
        except (OSError, ValueError):
            continue  # it is closed by now
