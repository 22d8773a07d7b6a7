"""Where a path leads, and which symbolic links on the way are followed.

In a directory that others than its owner may write to, only entries of root, of this process's user and of that owner
are believed. A link of anybody else is not followed, and below a directory of anybody else, no link is followed.

So links in /home/alice are followed, because root gave her that directory. Links that she puts into /tmp are not, nor
links in a directory that she makes there. The kernel's own rule may be switched off, ignores directories, and does not
help if somebody exchanges a directory for a link afterwards.

Source: proc(5), /proc/sys/fs/protected_symlinks and protected_hardlinks; path_resolution(7).
"""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.system import mountinfo
from archive_overlay.system.open_flags import APPEND, CREATE, LOOK, STEP
from archive_overlay.system.record import Record
from archive_overlay.system.tree import open_beneath
from archive_overlay.system.user_namespace import overflow_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.system.mountinfo import Devices

# Others may write. If a directory has an ACL, the bits of its group are the most that any user or group is given there.
SHARED = stat.S_IWGRP | stat.S_IWOTH
MOST_LINKS = 40  # as the kernel has it, path_resolution(7)
# How often a log file may turn out to be something else than a moment ago.
_ATTEMPTS = 100
# Links to what this process already has open, chosen by whoever started it.
_STANDARD = {
    f"{directory}/{name}": number
    for directory, names in (("/dev", ("stdout", "stderr")), ("/dev/fd", "12"), ("/proc/self/fd", "12"))
    for number, name in enumerate(names, 1)
}


class Resolved(Record):
    """Where a path leads.

    Attributes:
        path: absolute, without symbolic links. Its end need not exist.
        strange: somebody else may have put there what the path leads to, or a directory on the way.
        status: of what the path leads to; None: nothing is there.
    """

    path: str
    strange: bool
    status: os.stat_result | None


class Resolver:
    """Resolves paths. The mount table is read once at most, when a path leads to another file system."""

    def __init__(self) -> None:
        self._devices: Devices | None = None
        self._overflow = -1

    def resolve(self, path: str) -> Resolved:
        """Find out where a path leads, and check each link together with its directory.

        Args:
            path: absolute; its end need not exist.

        Raises:
            OSError: it leads nowhere, by a link that is not followed, or through a file system of the kernel's own:
                links there lead to files of processes, whatever their text says.
        """
        way = _Way()
        try:
            status = self._walk(way, path)
            return Resolved(path=way.path, strange=way.strange, status=status)
        finally:
            way.close()

    def is_ours(self, status: os.stat_result) -> bool:
        """Return whether something belongs to root or to this process's user, and has no second name."""
        return self._owner(status) in (0, os.geteuid()) and _has_one_name(status)

    def _walk(self, way: _Way, path: str) -> os.stat_result | None:
        pending = path.split("/")[::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                way.leave()
                continue
            try:
                inner = _look(name, way.fd)
            except FileNotFoundError:
                missing = [name, *(each for each in pending[::-1] if each not in ("", "."))]
                if ".." in missing:
                    raise  # to leave a directory by .., it must be entered
                way.missing = missing
                return None
            try:
                status = os.fstat(inner)
                if status.st_dev != way.status.st_dev and self._is_of_the_kernel(status, inner):
                    raise _refusal(f"it leads through {way.place(name)}, which belongs to the kernel")
                believed = not way.strange and self._is_believed(status, way.status)
                if not stat.S_ISLNK(status.st_mode):
                    way.enter(name, inner, status, strange=not believed)
                    inner = -1
                    continue
                if not believed:
                    raise _refusal(f"{way.place(name)} is a symbolic link that another user may have made")
                target = os.readlink("", dir_fd=inner)
            finally:
                if inner >= 0:
                    os.close(inner)
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            pending += target.split("/")[::-1]
            if target.startswith("/"):
                way.restart()
        return way.status

    def _is_of_the_kernel(self, status: os.stat_result, fd: int) -> bool:
        try:
            return status.st_dev in self._mounted().of_the_kernel
        except OSError:
            # /proc is not this process's. A file system that holds no data cannot take them.
            return os.fstatvfs(fd).f_blocks == 0

    def _is_believed(self, entry: os.stat_result, directory: os.stat_result) -> bool:
        if not directory.st_mode & SHARED:
            return True
        owner = self._owner(entry)
        return owner >= 0 and owner in (0, os.geteuid(), self._owner(directory)) and _has_one_name(entry)

    def _owner(self, status: os.stat_result) -> int:
        """Return an owner; -1: unknown, and may be anybody.

        In a user namespace, all unmapped owners appear as one. A mount that maps ids may do the same.
        """
        if self._devices and status.st_dev in self._devices.of_others:
            return -1
        return -1 if status.st_uid and status.st_uid == self._overflow_owner() else status.st_uid

    def _overflow_owner(self) -> int:
        if self._overflow < 0:
            self._overflow = overflow_owner()
        return self._overflow

    def _mounted(self) -> Devices:
        if self._devices is None:
            self._devices = mountinfo.read_devices()
        return self._devices


class _Way:
    """A position on the way to something, and how it was reached.

    Attributes:
        fd: what was found last.
        status: of that.
        strange: see `Resolved`.
        missing: the names that come after it and do not exist.
    """

    def __init__(self) -> None:
        self.fd = os.open("/", STEP)
        self.status = os.fstat(self.fd)
        self.strange = False
        self.missing: list[str] = []
        self._names: list[str] = []
        self._above: list[os.stat_result] = []

    @property
    def path(self) -> str:
        return "/" + "/".join([*self._names, *self.missing])

    def place(self, name: str) -> str:
        return "/" + "/".join([*self._names, name])

    def enter(self, name: str, fd: int, status: os.stat_result, *, strange: bool) -> None:
        self._above.append(self.status)
        self._names.append(name)
        self._stand_on(fd, status)
        self.strange = strange

    def leave(self) -> None:
        """Go up by `..`. What was strange stays strange, because it may have led here."""
        fd = os.open("..", STEP, dir_fd=self.fd)
        status = os.fstat(fd)
        if not os.path.samestat(status, self._above[-1] if self._above else self.status):
            os.close(fd)
            raise OSError(errno.EAGAIN, f"{self.path} has just been moved")
        self._stand_on(fd, status)
        if self._above:
            self._above.pop()
            self._names.pop()

    def restart(self) -> None:
        """Go to the root directory, as a believed link says."""
        fd = os.open("/", STEP)
        self._stand_on(fd, os.fstat(fd))
        self._names.clear()
        self._above.clear()

    def close(self) -> None:
        os.close(self.fd)

    def _stand_on(self, fd: int, status: os.stat_result) -> None:
        before, self.fd, self.status = self.fd, fd, status
        os.close(before)


def _look(name: str, directory: int) -> int:
    """Open an entry to look at it; a directory as one who goes on into it.

    Some file systems are mounted only when a process enters them (autofs, exports within an export of NFS). Without
    entering, names in them would be missing. Source: open(2), O_PATH.
    """
    try:
        return os.open(name, STEP, dir_fd=directory)
    except NotADirectoryError:
        return os.open(name, LOOK, dir_fd=directory)


def _has_one_name(status: os.stat_result) -> bool:
    # Where the kernel lets them, others give names of their own to files and links of root's that are elsewhere.
    return status.st_nlink == 1 or stat.S_ISDIR(status.st_mode)


def open_resolved(found: Resolved, flags: int) -> int:
    """Open what a path was found to lead to, with no link on the way.

    Args:
        found: something that exists.
        flags: of `system/open_flags.py`.

    Returns:
        A file descriptor, for the caller to close.

    Raises:
        OSError: it cannot be opened, or is no longer what it was.
    """
    assert found.status
    parent, name = _open_parent(found)
    try:
        fd = os.open(name, flags, dir_fd=parent)
    finally:
        os.close(parent)
    if not os.path.samestat(os.fstat(fd), found.status):
        os.close(fd)
        raise OSError(errno.EAGAIN, f"{found.path} has just been replaced")
    return fd


def open_log_file(path: str) -> int:
    """Open a file to append to it, or make it (mode 0640), unless somebody else may have put it there.

    Args:
        path: absolute, or relative to the working directory.

    Raises:
        OSError: it cannot be opened, or may be somebody else's.
        ValueError: no file can have that name.
    """
    path = os.path.abspath(path)
    if path in _STANDARD:
        return os.dup(_STANDARD[path])
    for _ in range(_ATTEMPTS):
        resolver = Resolver()
        found = resolver.resolve(path)
        if found.strange and found.status and not resolver.is_ours(found.status):
            raise _refusal("another user may have put it there")
        if found.status and stat.S_ISDIR(found.status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if (fd := _open_as_found(found)) is not None:
            return fd
    raise OSError(errno.EAGAIN, "other programs keep replacing it")


def _open_as_found(found: Resolved) -> int | None:
    """Open a log file; None: it is no longer what it was."""
    parent, name = _open_parent(found)
    try:
        if found.status is None:
            return os.open(name, CREATE | APPEND, 0o640, dir_fd=parent)
        fd = os.open(name, APPEND, dir_fd=parent)
        if os.path.samestat(os.fstat(fd), found.status):
            return fd
        os.close(fd)
    except (FileExistsError, FileNotFoundError):
        pass
    finally:
        os.close(parent)
    return None


def _open_parent(found: Resolved) -> tuple[int, str]:
    top = os.open("/", STEP)
    try:
        return open_beneath(found.path[1:], top)
    finally:
        os.close(top)


def _refusal(reason: str) -> PermissionError:
    return PermissionError(errno.EACCES, reason)
