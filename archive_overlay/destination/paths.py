"""Where archives and success markers may be, and how to get there.

A path is resolved once, and judged. After that it is walked component by component by directory file
descriptors, following no symbolic link: whoever changes it in between makes the request fail, and does
not lead it elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.system.open_flags import LOOK, READ_DIRECTORY, STEP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.system.flush import Flush

_SHARED = stat.S_ISVTX | stat.S_IWOTH  # a directory like /tmp
_MOST_LINKS = 40  # as the kernel has it, path_resolution(7)
# What is in there is the kernel's. Its links lead to files of processes, whatever their text says: /proc/self/exe
# is the interpreter.
_OF_THE_KERNEL = ("proc", "sys")


class Paths:
    """The directories in which something may be written.

    Args:
        allowed: absolute paths of these directories; none: anywhere.
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._allowed = tuple(os.path.realpath(directory) for directory in allowed)

    def resolve(self, path: str, label: str) -> str:
        """Resolve symbolic links, but not those that others put into a directory that everybody may write to.

        Args:
            path: absolute; its end need not exist.
            label: the annotation that has the path.

        Raises:
            ArchiveError: the path leads nowhere, or to a place that is not allowed.
        """
        return self._judged(path, _look(path, path, label), label)

    def resolve_parent(self, path: str, label: str) -> str:
        """Resolve the symbolic links on the way to an entry, but not the entry itself.

        Raises:
            ArchiveError: see `resolve`.
        """
        directory, name = os.path.split(path)
        return self._judged(path, os.path.join(_look(directory, path, label), name), label)

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

    def _judged(self, path: str, resolved: str, label: str) -> str:
        if self._allowed and not self._base(resolved):
            where = f"{path}, which is {resolved}," if resolved != path else path
            raise ArchiveError(
                f"{label} {where} is not allowed", hint=f"it must be in {' or '.join(self._allowed)}"
            )
        return resolved

    def _base(self, path: str) -> str:
        return next((base for base in self._allowed if path.startswith(base.rstrip("/") + "/")), "")

    def _walk(self, path: str, flush: Flush | None) -> int:
        # An allowed directory itself may be what is opened: something is to be made in it.
        base = self._base(path + "/") or "/"
        fd = os.open(base, STEP)
        try:
            for name in path[len(base) :].split("/"):
                if name:
                    inner = _enter(name, fd, flush)
                    os.close(fd)
                    fd = inner
            return os.open(".", READ_DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)


def _look(path: str, whole: str, label: str) -> str:
    """Resolve a path, which is all or a part of what an annotation says.

    Raises:
        ArchiveError: it leads nowhere, or through what is the kernel's.
    """
    try:
        resolved = _resolved(path)
        _expect_reachable(path)
    except OSError as error:
        fail(f"cannot look at {label} {whole}", error)
    return resolved


def _expect_reachable(path: str) -> None:
    """Ask the kernel too, which knows more reasons not to go there than `_resolved`."""
    try:
        os.stat(path)
    except FileNotFoundError:
        pass


def _resolved(path: str) -> str:
    """Resolve symbolic links, each with the directory that it was found in at hand.

    What does not exist is taken as it is. The kernel's own rule for links of others may be switched off,
    and holds for a whole path at once: who exchanges a directory for a link after that is not stopped by it.

    Source: proc(5), /proc/sys/fs/protected_symlinks.
    """
    found: list[str] = []
    pending = path.split("/")[::-1]
    links = 0
    fd = os.open("/", STEP)
    try:
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name in _OF_THE_KERNEL and not found:
                raise PermissionError(errno.EACCES, f"it leads through /{name}, where no archive can be")
            try:
                inner = os.open(name, LOOK, dir_fd=fd)
            except FileNotFoundError:
                return os.path.normpath("/" + "/".join([*found, name, *pending[::-1]]))
            status = os.fstat(inner)
            if not stat.S_ISLNK(status.st_mode):
                os.close(fd)
                fd = inner
                found = found[:-1] if name == ".." else [*found, name]
                continue
            try:
                links += 1
                _expect_trusted(status, os.fstat(fd))
                target = os.readlink("", dir_fd=inner)
            finally:
                os.close(inner)
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            pending += target.split("/")[::-1]
            if target.startswith("/"):
                os.close(fd)
                fd = -1
                fd = os.open("/", STEP)
                found = []
        return "/" + "/".join(found)
    finally:
        if fd >= 0:
            os.close(fd)


def _expect_trusted(link: os.stat_result, directory: os.stat_result) -> None:
    shared = directory.st_mode & _SHARED == _SHARED
    if shared and link.st_uid not in (os.geteuid(), directory.st_uid):
        raise PermissionError(errno.EACCES, "a symbolic link of somebody else is in a directory like /tmp")


def _enter(name: str, directory: int, flush: Flush | None) -> int:
    try:
        return os.open(name, STEP, dir_fd=directory)
    except FileNotFoundError:
        if flush is None:
            raise
    try:
        os.mkdir(name, 0o755, dir_fd=directory)
    except FileExistsError:
        pass  # another run has just made it
    parent = os.open(".", READ_DIRECTORY, dir_fd=directory)
    try:
        flush.file(parent)
    finally:
        os.close(parent)
    return os.open(name, STEP, dir_fd=directory)
