"""What would be flushed, and in which order."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class Flushed:
    """Flushes nothing, and keeps what it was asked for.

    Args:
        top: paths are noted relative to this directory.

    Attributes:
        steps: one entry for each call: its name, what it was about, and whether that was a file with nothing in it yet.
            Random parts of names are left out.
    """

    def __init__(self, top: Path) -> None:
        self.steps: list[str] = []
        self._top = top

    def file_system(self, fd: int) -> None:
        """Note a flush of a whole file system."""
        self._note("file system", fd)

    def file(self, fd: int) -> None:
        """Note a flush of one file or directory."""
        self._note("file", fd)

    def _note(self, what: str, fd: int) -> None:
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self._top)
        begin, suffix, rest = path.partition(".archive_overlay-")
        status = os.fstat(fd)
        empty = " (empty)" if stat.S_ISREG(status.st_mode) and not status.st_size else ""
        self.steps.append(f"{what} {begin}{suffix}{rest[12:]}{empty}")


def open_files(below: Path) -> list[str]:
    """Give the files below a directory that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # it was the list's own
        if path.startswith(f"{below}/"):
            found.append(os.path.relpath(path, below))
    return sorted(found)
