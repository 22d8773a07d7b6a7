"""Where archives and success markers may be, and how to get there.

A path is resolved once, and judged. After that it is walked component by component by directory file
descriptors, following no symbolic link: whoever changes it in between makes the request fail, and does
not lead it elsewhere.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.flush import Flush

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Places:
    """The directories in which something may be written.

    Args:
        allowed: absolute paths of these directories; none: anywhere.
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._allowed = tuple(os.path.realpath(directory) for directory in allowed)

    def resolve(self, path: str, label: str) -> str:
        """Resolve symbolic links, but only those that the kernel follows for this process as well.

        Args:
            path: absolute; its end need not exist.
            label: the annotation that has the path.

        Raises:
            ArchiveError: the path leads nowhere, or to a place that is not allowed.
        """
        try:
            os.stat(path)  # fails where fs.protected_symlinks forbids following
        except FileNotFoundError:
            pass
        except OSError as error:
            fail(f"cannot look at {label} {path}", error)
        resolved = os.path.realpath(path)
        if self._allowed and not self._base(resolved):
            where = f"{path}, which is {resolved}," if resolved != path else path
            raise ArchiveError(
                f"{label} {where} is not allowed", hint=f"it must be in {' or '.join(self._allowed)}"
            )
        return resolved

    def resolve_parent(self, path: str, label: str) -> str:
        """Resolve the symbolic links on the way to an entry, but not the entry itself.

        Raises:
            ArchiveError: see `resolve`.
        """
        directory, name = os.path.split(path)
        if not self._allowed:
            return os.path.join(self.resolve(directory, label), name)
        resolved = os.path.join(os.path.realpath(directory), name)
        if not self._base(resolved):
            raise ArchiveError(
                f"{label} {path} is not allowed", hint=f"it must be in {' or '.join(self._allowed)}"
            )
        return resolved

    def open(self, path: str) -> int:
        """Open a directory.

        Args:
            path: resolved.

        Raises:
            OSError: there is none, or a component has become a symbolic link.
        """
        return self._walk(path, None)

    def make(self, path: str, flush: Flush) -> int:
        """Open a directory; make it and its missing parents with mode 0755 if need be.

        Args:
            path: resolved.
            flush: when something counts as written.

        Raises:
            OSError: one cannot be made, or a component has become a symbolic link.
        """
        return self._walk(path, flush)

    def _base(self, path: str) -> str:
        return next((base for base in self._allowed if path.startswith(base.rstrip("/") + "/")), "")

    def _walk(self, path: str, flush: Flush | None) -> int:
        # An allowed directory itself may be what is opened: something is to be made in it.
        base = self._base(path + "/") or "/"
        fd = os.open(base, _STEP)
        try:
            for name in path[len(base) :].split("/"):
                if name:
                    inner = _enter(name, fd, flush)
                    os.close(fd)
                    fd = inner
            return os.open(".", _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)


def _enter(name: str, directory: int, flush: Flush | None) -> int:
    try:
        return os.open(name, _STEP, dir_fd=directory)
    except FileNotFoundError:
        if flush is None:
            raise
    try:
        os.mkdir(name, 0o755, dir_fd=directory)
    except FileExistsError:
        pass  # another run has just made it
    parent = os.open(".", _DIRECTORY, dir_fd=directory)
    try:
        flush.file(parent)
    finally:
        os.close(parent)
    return os.open(name, _STEP, dir_fd=directory)
