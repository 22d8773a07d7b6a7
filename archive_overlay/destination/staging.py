"""The private place in which an archive is made, and what becomes of it.

It is beside the archive's destination, so on the same file system:

    .NAME.archive_overlay-RANDOM/     private (0700), locked while its maker lives
        archive                       what a method writes, until it is renamed to the destination
        keep-INODE                    the upperdir with this inode number is the archive
        passing-INODE                 the archive with this inode number goes through a backup name

A staging directory that nobody has locked was left by a run that was killed, and is debris. The one
thing in it that is not debris is an upperdir that was moved there and did not come to be published:
`keep-INODE` tells it from an archive, and it gets a backup name.

With `backup`, an archive first gets the backup name that the old one is to have, and then the two are
exchanged: so the old one has a name of its own at every moment. `passing-INODE` tells an archive that
did not come to be exchanged from a backup.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import zlib

from archive_overlay.errors import fail
from archive_overlay.system import kernel, signals, tree
from archive_overlay.system.open_flags import READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Callable

    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.system.flush import Flush

ARCHIVE = "archive"

_KEEP = "keep-"
_PASSING = "passing-"
_SUFFIX = ".archive_overlay-"
_RANDOM_BYTES = 6
_NAME_MAX = 255


class Staging:
    """A private directory beside a destination. Use it as a context manager.

    What is still in it at the end is removed, and so is what killed runs to the same destination left.

    Args:
        parent: resolved path of the directory in which it is made; missing ones are made (mode 0755).
        name: the destination's name there; "" if the parent is the destination.
        paths: how to get there.
        flush: when something counts as written.
        log: takes warnings of what cannot be removed.

    Attributes:
        path: of the destination.
        name: the destination's name.
        parent: file descriptor of the directory that the destination is in.
        directory: file descriptor of the staging directory.
        flush: when something counts as written.

    Raises:
        ArchiveError: there is no writing beside the destination.
    """

    def __init__(self, parent: str, name: str, *, paths: Paths, flush: Flush, log: Log) -> None:
        self.name = name
        self.parent = self.directory = -1
        self.path = os.path.join(parent, name) if name else parent
        self._parent_path = parent
        self._own_name = ""
        self._times: tuple[int, int] | None = None
        self._taken: tuple[int, str, int] | None = None
        self._paths = paths
        self.flush = flush
        self._log = log

    def __enter__(self) -> Staging:  # noqa: PYI034, Self is not in Python 3.9
        try:
            # A signal comes before there is a staging directory, or after it is known what to remove.
            with signals.HeldOff():
                self.parent = self._paths.make(self._parent_path, self.flush)
                self._remove_debris()
                self._make()
        except OSError as error:
            self._leave()
            fail(f"cannot write into {self._parent_path}, where the archive is made", error)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with signals.HeldOff():
            self._leave()

    def keep_times(self) -> None:
        """Let the directory that staging is in have the times that it has now, when staging is gone."""
        status = os.fstat(self.parent)
        self._times = status.st_atime_ns, status.st_mtime_ns

    @property
    def took_upper(self) -> bool:
        """Whether the archive is a directory that was renamed, by `take`."""
        return self._taken is not None

    def take(self, name: str, directory: int) -> None:
        """Rename a directory to be the archive. If it does not come to be published, it goes back.

        Args:
            name: the directory.
            directory: file descriptor of the directory it is in.

        Raises:
            OSError: EXDEV if that is on another file system.
        """
        inode = os.lstat(name, dir_fd=directory).st_ino
        os.mkdir(f"{_KEEP}{inode}", dir_fd=self.directory)
        self._taken = os.dup(directory), name, inode
        try:
            os.rename(name, ARCHIVE, src_dir_fd=directory, dst_dir_fd=self.directory)
        except OSError:
            os.rmdir(f"{_KEEP}{inode}", dir_fd=self.directory)
            raise

    def take_backup_name(self, take: Callable[[str], object]) -> str:
        """Find the next free backup name of the destination: NAME.~1~, NAME.~2~, ...

        Args:
            take: gives something the name that it is called with, or raises FileExistsError.

        Returns:
            The name that was taken.
        """
        number = max((number for number, _ in self._backups()), default=0)
        return _take_numbered_name(self.name, number + 1, take)

    def pass_by_backup_name(self) -> str:
        """Give the archive the next free backup name of the destination, for the old one to get it.

        Returns:
            The name. Call `passed` when the two have been exchanged, or else `recall`.
        """
        os.mkdir(f"{_PASSING}{_inode(ARCHIVE, self.directory)}", dir_fd=self.directory)
        return self.take_backup_name(
            lambda backup: kernel.rename_new(ARCHIVE, self.directory, backup, self.parent)
        )

    def passed(self) -> None:
        """Note that the archive has come through its backup name."""
        for entry in os.listdir(self.directory):
            if entry.startswith(_PASSING):
                os.rmdir(entry, dir_fd=self.directory)

    def recall(self) -> None:
        """Take the archive back from its backup name, if it still has it."""
        self._recall(self.directory)

    def _recall(self, directory: int) -> None:
        for entry in os.listdir(directory):
            if not entry.startswith(_PASSING):
                continue
            for _, name in self._backups():
                if entry == f"{_PASSING}{_inode(name, self.parent)}":
                    os.rename(name, ARCHIVE, src_dir_fd=self.parent, dst_dir_fd=directory)
            os.rmdir(entry, dir_fd=directory)

    def _backups(self) -> list[tuple[int, str]]:
        """Give the numbers and names of the destination's backups."""
        begin = f"{self.name}.~"
        found = []
        for name in os.listdir(self.parent):
            number = name[len(begin) : -1]
            if name == f"{begin}{number}~" and number.isascii() and number.isdigit():
                found.append((int(number), name))
        return found

    def _give_back(self) -> None:
        if self._taken is None:
            return
        directory, name, inode = self._taken
        try:
            if _inode(ARCHIVE, self.directory) != inode:
                return
            if _inode(name, directory) is None:  # it has no twin there yet
                kernel.rename_new(ARCHIVE, self.directory, name, directory)
            else:
                kernel.exchange(ARCHIVE, self.directory, name, directory)
        finally:
            os.close(directory)

    def _make(self) -> None:
        while self.directory < 0:
            name = f"{staging_prefix(self.name)}{os.urandom(_RANDOM_BYTES).hex()}"
            os.mkdir(name, stat.S_IRWXU, dir_fd=self.parent)
            self._own_name = name
            # Until it is locked, another run may take it for debris.
            try:
                fd = os.open(name, READ_DIRECTORY, dir_fd=self.parent)
            except FileNotFoundError:
                continue
            forget_inheritance(fd)
            if _lock(fd) is not False and _is_at(fd, name, self.parent):
                self.directory = fd
            else:
                os.close(fd)

    def _remove_debris(self) -> None:
        prefix = staging_prefix(self.name)
        for name in os.listdir(self.parent):
            if not name.startswith(prefix):
                continue
            try:
                fd = os.open(name, READ_DIRECTORY, dir_fd=self.parent)
            except OSError:
                continue  # not one of ours, or its maker has just removed it
            try:
                if os.fstat(fd).st_uid == os.geteuid() and _lock(fd) and _is_at(fd, name, self.parent):
                    self._log.debug(f"removing {name} in {self._parent_path}, left by a run that was killed")
                    self._remove(name, fd)
            except OSError as error:
                self._warn(name, error)
            finally:
                os.close(fd)

    def _remove(self, name: str, fd: int) -> None:
        self._recall(fd)
        for entry in os.listdir(fd):
            if entry.startswith(_KEEP) and entry == f"{_KEEP}{_inode(ARCHIVE, fd)}":
                self.take_backup_name(lambda backup: kernel.rename_new(ARCHIVE, fd, backup, self.parent))
        tree.remove(name, self.parent)

    def _warn(self, name: str, error: OSError) -> None:
        self._log.warning(
            f"cannot remove the staging directory {os.path.join(self._parent_path, name)}: {error.strerror};"
            " the next run to the same destination tries again"
        )

    def _leave(self) -> None:
        """Remove what there is, and let go of everything."""
        try:
            if self.directory >= 0:
                self.recall()
                self._give_back()
                self._remove(self._own_name, self.directory)
                if self._times:
                    os.utime(self.parent, ns=self._times)
            elif self._own_name:
                tree.remove(self._own_name, self.parent)
        except OSError as error:
            self._warn(self._own_name, error)
        for fd in (self.directory, self.parent):
            try:
                if fd >= 0:
                    os.close(fd)
            except OSError:
                pass  # nothing was written to it
        self.directory = self.parent = -1


def take_free_name(name: str, take: Callable[[str], object]) -> str:
    """Find a free name: NAME, NAME.~1~, NAME.~2~, ...

    Args:
        name: the first that is tried.
        take: gives something the name that it is called with, or raises FileExistsError.

    Returns:
        The name that was taken.
    """
    try:
        take(name)
    except FileExistsError:
        return _take_numbered_name(name, 1, take)
    return name


def forget_inheritance(fd: int) -> None:
    """Make a directory private (0700), and keep what its parent gave it from everything that is made in it.

    Args:
        fd: of the directory.

    Raises:
        OSError: that is not possible.
    """
    os.chmod(fd, stat.S_IRWXU)  # no set-group-ID bit
    for name in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise


def staging_prefix(name: str) -> str:
    """Give the beginning of the names of all staging directories of one destination.

    Args:
        name: the destination's name, "" if staging is inside it; one that is too long for more is cut, and gets a checksum.
    """
    if not name:
        return _SUFFIX
    encoded = os.fsencode(name)
    room = _NAME_MAX - 1 - len(_SUFFIX) - 2 * _RANDOM_BYTES
    if len(encoded) <= room:
        return f".{name}{_SUFFIX}"
    kept = os.fsdecode(encoded[: room - 9])
    return f".{kept}-{zlib.crc32(encoded):08x}{_SUFFIX}"


def _take_numbered_name(name: str, number: int, take: Callable[[str], object]) -> str:
    while True:
        numbered = f"{name}.~{number}~"
        try:
            take(numbered)
        except FileExistsError:
            number += 1
            continue
        return numbered


def _lock(fd: int) -> bool | None:
    """Lock a staging directory: its lock dies with its maker, whatever namespace that was in.

    Returns:
        False: somebody alive has it. None: the file system has no locks, so nobody can tell.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(fd: int, name: str, directory: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(name, dir_fd=directory))
    except FileNotFoundError:
        return False


def _inode(name: str, directory: int) -> int | None:
    try:
        return os.lstat(name, dir_fd=directory).st_ino
    except FileNotFoundError:
        return None
