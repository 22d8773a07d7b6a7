"""Where archives and success markers may be, and how to get there.

A path is resolved once (`system/resolve.py` says which links are followed), and judged. After that it is walked
component by component by directory file descriptors, following no symbolic link: whoever changes it in between
makes the request fail, and does not lead it elsewhere.
"""

from __future__ import annotations

import os

from archive_overlay.destination.names import is_staging_name
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.system.open_flags import READ_DIRECTORY, STEP
from archive_overlay.system.resolve import Resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.system.flush import Flush


class Paths:
    """The directories in which something may be written.

    Args:
        allowed: absolute paths of these directories; none: anywhere.
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._named = allowed
        self._resolved: tuple[str, ...] | None = None
        self._resolver = Resolver()

    def resolve(self, path: str, label: str) -> str:
        """Resolve symbolic links, but not those that others may have made.

        Args:
            path: absolute; its end need not exist.
            label: the annotation or the option that has the path.

        Raises:
            ArchiveError: the path leads nowhere, or to a place that is not allowed.
        """
        return self._judged(path, self._look(path, path, label), label)

    def resolve_parent(self, path: str, label: str) -> str:
        """Resolve the symbolic links on the way to an entry, but not the entry itself.

        Raises:
            ArchiveError: see `resolve`.
        """
        directory, name = os.path.split(path)
        return self._judged(path, os.path.join(self._look(directory, path, label), name), label)

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

    def _look(self, path: str, whole: str, label: str) -> str:
        """Resolve a path, which is all or a part of what an annotation says.

        Raises:
            ArchiveError: it leads nowhere, by a link of others, or through what is the kernel's.
        """
        try:
            found = self._resolver.resolve(path)
            _expect_reachable(path)
        except OSError as error:
            fail(f"cannot look at {label} {whole}", error)
        return found.path

    def _judged(self, path: str, resolved: str, label: str) -> str:
        if any(is_staging_name(name) for name in resolved.split("/")):
            raise ArchiveError(
                f"{label} {path} has a name that this program uses for its working directories",
                hint="choose another name",
            )
        if self._named and not self._base(resolved):
            where = f"{path}, which is {resolved}," if resolved != path else path
            raise ArchiveError(
                f"{label} {where} is not allowed",
                hint=f"it must be in {' or '.join(self._allowed() or self._named)}",
            )
        return resolved

    def _base(self, path: str) -> str:
        return next((base for base in self._allowed() if path.startswith(base.rstrip("/") + "/")), "")

    def _allowed(self) -> tuple[str, ...]:
        """Return the allowed directories, resolved. One to which a link of others leads allows nothing."""
        if self._resolved is None:
            found = []
            for directory in self._named:
                try:
                    found.append(self._resolver.resolve(directory).path)
                except OSError:
                    continue  # what is asked for in there says why
            self._resolved = tuple(found)
        return self._resolved

    def _walk(self, path: str, flush: Flush | None) -> int:
        # An allowed directory is there: only what is below it is made. It may be what is to be opened itself.
        base = self._base(path + "/")
        fd = os.open("/", STEP)
        try:
            for names, make in ((base, None), (path[len(base) :], flush)):
                for name in names.split("/"):
                    if name:
                        inner = _enter(name, fd, make)
                        os.close(fd)
                        fd = inner
            return os.open(".", READ_DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)


def _expect_reachable(path: str) -> None:
    """Ask the kernel too, which knows more reasons not to go there than `Resolver`."""
    try:
        os.stat(path)
    except FileNotFoundError:
        pass


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
