"""Walk directory trees by file descriptor, however deep and however hostile.

No path is resolved from the root, and no more than two directories are open at a time.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.system.open_flags import LOOK, READ_DIRECTORY, STEP


class Descent:
    """A position in a tree of directories: the one that is open, and the way back.

    The way back is `..`, checked by device and inode: a tree may be deeper than the number of file
    descriptors, and a directory that somebody moved away meanwhile does not lead out of the tree.

    Args:
        fd: the top of the tree. The descent owns it.

    Attributes:
        fd: the directory at this position.
    """

    __slots__ = ("_above", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._above: list[tuple[int, int]] = []

    def enter(self, name: str) -> None:
        """Go down into a directory; a symbolic link does not count.

        Raises:
            OSError: there is no such directory. The position is unchanged.
        """
        here = os.fstat(self.fd)
        inner = open_unseen(name, READ_DIRECTORY, self.fd)
        outer, self.fd = self.fd, inner  # a signal must not have one closed twice
        os.close(outer)
        self._above.append((here.st_dev, here.st_ino))

    def leave(self) -> int:
        """Go up again.

        Returns:
            The directory that was left, still open, for the caller to close.

        Raises:
            OSError: it is no longer where it was. The position is unchanged.
        """
        outer = open_unseen("..", READ_DIRECTORY, self.fd)
        found = os.fstat(outer)
        if (found.st_dev, found.st_ino) != self._above[-1]:
            os.close(outer)
            raise OSError(None, "the directory was moved while it was read")
        self._above.pop()
        left, self.fd = self.fd, outer
        return left

    def close(self) -> None:
        """Close the directory at this position."""
        os.close(self.fd)


def open_unseen(name: str, flags: int, directory: int | None = None) -> int:
    """Open an entry of a directory without leaving an access time behind, where that is allowed.

    Args:
        name: the entry.
        flags: as for open(2); O_NOATIME is added.
        directory: file descriptor of the directory; None: the name is an absolute path.

    Raises:
        OSError: as open(2).
    """
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        # Only a file's owner may use it, and in a user namespace files may have unmapped owners.
        return os.open(name, flags, dir_fd=directory)


def open_beneath(path: str, top: int) -> tuple[int, str]:
    """Open the directory that holds a path, following no symbolic link and however long the path is.

    Args:
        path: relative to `top`, in its simplest form.
        top: file descriptor of a directory.

    Returns:
        A file descriptor, for the caller to close, and the last component of the path.

    Raises:
        OSError: there is no such directory.
    """
    *directories, name = path.split("/")
    fd = os.dup(top)
    try:
        for directory in directories:
            inner = os.open(directory, STEP, dir_fd=fd)
            os.close(fd)
            fd = inner
    except BaseException:
        os.close(fd)
        raise
    return fd, name


def remove(name: str, directory: int) -> None:
    """Remove an entry of a directory with all that is below it.

    Args:
        name: the entry; it need not exist.
        directory: file descriptor of the directory.

    Raises:
        OSError: something could not be removed.
    """
    try:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
            os.unlink(name, dir_fd=directory)
            return
    except FileNotFoundError:
        return
    # Without privileges, entries of a directory that is not writable (as the root of an upperdir often is) cannot be
    # removed.
    open_up(name, directory)
    fd = os.open(name, READ_DIRECTORY, dir_fd=directory)
    try:
        empty(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def empty(directory: int) -> None:
    """Remove all that is in a directory.

    Args:
        directory: its file descriptor.

    Raises:
        OSError: something could not be removed.
    """
    descent = Descent(os.dup(directory))
    try:
        pending = [_remove_files(descent.fd)]
        names: list[str] = []
        while pending:
            if pending[-1]:
                names.append(pending[-1].pop())
                open_up(names[-1], descent.fd)
                descent.enter(names[-1])
                pending.append(_remove_files(descent.fd))
            else:
                pending.pop()
                if names:
                    os.close(descent.leave())
                    os.rmdir(names.pop(), dir_fd=descent.fd)
    finally:
        descent.close()


def open_up(name: str, directory: int) -> int | None:
    """Let this user change a directory's contents and its place. Root may do so anyway.

    Others may put a symbolic link in its place meanwhile, so its mode is changed by file descriptor.

    Args:
        name: an entry, which need not be a directory.
        directory: file descriptor of the directory that it is in.

    Returns:
        The mode that it had; None: it is what it was.

    Raises:
        OSError: there is no such entry, or its owner is somebody else.
    """
    if os.geteuid() == 0:
        return None
    fd = os.open(name, LOOK, dir_fd=directory)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISDIR(mode) or mode & stat.S_IRWXU == stat.S_IRWXU:
            return None
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(mode) | stat.S_IRWXU)
        return stat.S_IMODE(mode)
    finally:
        os.close(fd)


def _remove_files(directory: int) -> list[str]:
    subdirectories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                subdirectories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return subdirectories
