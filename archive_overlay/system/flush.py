"""Waiting until what was written is on disk, or not."""

from __future__ import annotations

import errno
import os

from archive_overlay.system.activity import doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Protocol

    class Flush(Protocol):
        """When something counts as written."""

        def file_system(self, fd: int) -> None:
            """Flush all that was written to a file's file system."""

        def file(self, fd: int) -> None:
            """Flush one file or directory."""


# What file systems and filters of system calls say where there is no such call: CIFS and others have EINVAL for
# directories. What could not be written is another error.
_NO_SUCH_CALL = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM)


class ToDisk:
    """Something counts as written when it is on disk. Each method raises OSError where that fails.

    Args:
        warn: is told once if the kernel does not say whether something is on disk.
    """

    def __init__(self, warn: Callable[[str], object]) -> None:
        from archive_overlay.system import kernel

        self._sync_file_system = kernel.sync_file_system
        self._warn = warn
        self._warned = False

    def file_system(self, fd: int) -> None:
        """Flush all that was written to a file's file system: once for a tree, not for each file."""
        try:
            with doing("flushing to disk"):
                self._sync_file_system(fd)
        except OSError as error:
            if error.errno not in _NO_SUCH_CALL:
                raise
            with doing("flushing to disk"):
                os.sync()
            if not self._warned:
                self._warned = True
                self._warn(
                    f"it is not certain that all was written to the disk: syncfs failed ({error.strerror}), and sync, which"
                    " was called instead, reports no errors"
                )

    def file(self, fd: int) -> None:
        """Flush one file or directory."""
        try:
            with doing("flushing to disk"):
                os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_SUCH_CALL:
                raise
            self.file_system(fd)


class Never:
    """Something counts as written when the kernel has it; a power failure may take it back."""

    def file_system(self, fd: int) -> None:
        """Do nothing."""

    def file(self, fd: int) -> None:
        """Do nothing."""
