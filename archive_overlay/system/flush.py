"""Waiting until what was written is on disk, or not."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Flush(Protocol):
        """When something counts as written."""

        def file_system(self, fd: int) -> None:
            """Flush all that was written to a file's file system."""

        def file(self, fd: int) -> None:
            """Flush one file or directory."""


class ToDisk:
    """Something counts as written when it is on disk. Each method raises OSError where that fails."""

    def __init__(self) -> None:
        from archive_overlay.system import kernel

        self._sync_file_system = kernel.sync_file_system

    def file_system(self, fd: int) -> None:
        """Flush all that was written to a file's file system: once for a tree, not for each file."""
        self._sync_file_system(fd)

    def file(self, fd: int) -> None:
        """Flush one file or directory."""
        os.fsync(fd)


class Never:
    """Something counts as written when the kernel has it; a power failure may take it back."""

    def file_system(self, fd: int) -> None:
        """Do nothing."""

    def file(self, fd: int) -> None:
        """Do nothing."""
