"""The private place in which an archive is made, and what becomes of it.

It is beside the archive's destination, so on the same file system:

    .NAME.archive_overlay-RANDOM/     private (0700), marked, locked while its maker lives
        archive                       what a method writes, until it is renamed to the destination
        keep-INODE                    the upperdir with this inode number is the archive
        passing-NUMBER-IDENTITY       this archive goes through the backup name with this number

A staging directory that nobody has locked was left by a run that was killed, and is debris. The one
thing in it that is not debris is an upperdir that was moved there and did not come to be published:
`keep-INODE` tells it from an archive, and it gets a backup name.

What only has such a name is neither removed nor written into; a warning names it. Where staging directories cannot be
marked, nothing is ever removed that another run left.

With `backup`, an archive first gets the backup name that the old one is to have, and then the two are
exchanged: so the old one has a name of its own at every moment. `passing-NUMBER-IDENTITY` tells an archive that
did not come to be exchanged from a backup. Its inode number alone would not: others may have removed it, and another
file may have got the number.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from archive_overlay.destination import names
from archive_overlay.errors import fail
from archive_overlay.system import kernel, signals, tree
from archive_overlay.system.activity import doing
from archive_overlay.system.open_flags import CREATE, READ, READ_DIRECTORY

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
_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
_BLOCK = 1 << 20
_DEFAULT_ACL = "system.posix_acl_default"
_NOT_THERE = (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP)


class Staging:
    """A private directory beside a destination. Use it as a context manager.

    What is still in it at the end is removed, and so is what killed runs to the same destination left.

    Args:
        parent: resolved path of the directory in which it is made; missing ones are made (mode 0755).
        name: the destination's name there; "" if the parent is the destination.
        paths: how to get there.
        flush: when something counts as written.
        log: takes warnings of what is not removed.
        file_mode: permission bits of files that are made in it; None: see `create_file`.
        owner: user and group that these files are given to; None: they stay what this process makes.

    Attributes:
        path: of the destination.
        name: the destination's name.
        parent: file descriptor of the directory that the destination is in.
        directory: file descriptor of the staging directory.
        flush: when something counts as written.
        log: takes warnings.
        mark: the attribute that tells it from what others made; "" where it cannot be set.

    Raises:
        ArchiveError: there is no writing beside the destination.
    """

    def __init__(
        self,
        parent: str,
        name: str,
        *,
        paths: Paths,
        flush: Flush,
        log: Log,
        file_mode: int | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.parent = self.directory = -1
        self.path = os.path.join(parent, name) if name else parent
        self._parent_path = parent
        self.mark = ""
        self._own_name = ""
        self._unmarked: list[str] = []
        self._said: set[str] = set()
        self._passing: tuple[str, int] | None = None
        self._file_mode = file_mode
        self._owner = owner
        self._times: tuple[int, int] | None = None
        self._taken: tuple[int, str, int] | None = None
        self._paths = paths
        self.flush = flush
        self.log = log

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
        with signals.HeldOff(), doing("tidying up", slow=False):
            self._leave()

    def less_safe(self, why: str) -> None:
        """Warn, once, that the file system or a filter of system calls leaves no way that is as safe as usual."""
        if why not in self._said:
            self._said.add(why)
            self.log.warning(f"{self.path}: {why}")

    def keep_times(self, status: os.stat_result | None = None) -> None:
        """Let the directory that staging is in have these times when staging is gone; None: those that it has now."""
        status = status or os.fstat(self.parent)
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

    def create_file(self, name: str) -> int:
        """Create a file that is to be an archive, or a part of one.

        What goes into it may have been private in the container. So it is for its owner alone, unless the administrator
        gave a mode, or the directory that it is for has a default ACL: then it is what it would be if it were created
        there.

        Returns:
            A file descriptor, for the caller to close.

        Raises:
            OSError: it cannot be created.
        """
        if self._file_mode is None and self._inherits():
            try:
                fd = os.open(name, CREATE, 0o666, dir_fd=self.directory)
            finally:
                _remove_attribute(self.directory, _DEFAULT_ACL)
        else:
            fd = os.open(name, CREATE, _PRIVATE, dir_fd=self.directory)
        if self._owner is not None:
            os.chown(fd, *self._owner)
        if self._file_mode is not None:
            os.chmod(fd, self._file_mode)  # whatever the umask is
        return fd

    def adopt(self, path: str, name: str) -> None:
        """Let a file that another program has made in staging be as those that `create_file` makes.

        Args:
            path: where it is in staging.
            name: what it is called in staging from then on.

        Raises:
            OSError: that is not possible.
        """
        old = os.open(path, READ, dir_fd=self.directory)
        try:
            if self._file_mode is None and self._inherits():
                os.unlink(path, dir_fd=self.directory)
                with open(self.create_file(name), "wb") as new:
                    while data := os.read(old, _BLOCK):
                        new.write(data)
                return
            if self._owner is not None:
                os.fchown(old, *self._owner)
            os.fchmod(old, _PRIVATE if self._file_mode is None else self._file_mode)
        finally:
            os.close(old)
        os.rename(path, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def _inherits(self) -> bool:
        """Let what is made in staging inherit what it would inherit beside it; False: nothing."""
        try:
            os.setxattr(self.directory, _DEFAULT_ACL, os.getxattr(self.parent, _DEFAULT_ACL))
        except OSError as error:
            # Where there is one, it may name somebody who has no id in this user namespace. Network file systems and
            # FUSE programs have errors of their own.
            if error.errno not in _NOT_THERE:
                self.log.warning(
                    f"{self.path} is for its owner alone: the default ACL of {self._parent_path} cannot be used:"
                    f" {error.strerror}"
                )
            return False
        return True

    def take_backup_name(self, take: Callable[[str], object]) -> str:
        """Find the next free backup name of the destination: NAME.~1~, NAME.~2~, ...

        Args:
            take: gives something the name that it is called with, or raises FileExistsError.

        Returns:
            The name that was taken.

        Raises:
            OSError: see `names.take_backup_name`.
        """
        return names.take_backup_name(self.name, self.parent, take)

    def pass_by_backup_name(self) -> str:
        """Give the archive the next free backup name of the destination, for the old one to get it.

        Returns:
            The name. Call `passed` when the two have been exchanged, or else `recall`.
        """
        inode = os.lstat(ARCHIVE, dir_fd=self.directory).st_ino
        identity = kernel.identity(ARCHIVE, self.directory)

        def take(backup: str) -> None:
            note = f"{_PASSING}{backup[len(self.name) + 2 : -1]}-{identity}"
            os.mkdir(note, dir_fd=self.directory)
            self._passing = backup, inode
            try:
                kernel.rename_new(ARCHIVE, self.directory, backup, self.parent, self.less_safe)
            except FileExistsError:
                self.passed()
                raise

        return self.take_backup_name(take)

    def passed(self) -> None:
        """Note that the archive has come through its backup name."""
        self._passing = None
        for entry in os.listdir(self.directory):
            if entry.startswith(_PASSING):
                os.rmdir(entry, dir_fd=self.directory)

    def recall(self) -> None:
        """Take the archive back from its backup name, if it still has it."""
        if self._passing is None:
            return
        backup, inode = self._passing
        if _inode(backup, self.parent) == inode:
            os.rename(backup, ARCHIVE, src_dir_fd=self.parent, dst_dir_fd=self.directory)
        self.passed()

    def _recall_of_dead(self, directory: int) -> None:
        """Take back the archive that a killed run left under a backup name."""
        for entry in os.listdir(directory):
            if not entry.startswith(_PASSING):
                continue
            number, _, identity = entry[len(_PASSING) :].partition("-")
            backup = f"{self.name}.~{number}~"
            if identity and kernel.identity(backup, self.parent) == identity:
                os.rename(backup, ARCHIVE, src_dir_fd=self.parent, dst_dir_fd=directory)
            os.rmdir(entry, dir_fd=directory)

    def _give_back(self) -> None:
        if self._taken is None:
            return
        directory, name, inode = self._taken
        try:
            if _inode(ARCHIVE, self.directory) != inode:
                return
            if _inode(name, directory) is None:  # it has no twin there yet
                kernel.rename_new(ARCHIVE, self.directory, name, directory, self.less_safe)
                return
            try:
                kernel.exchange(ARCHIVE, self.directory, name, directory)
            except kernel.CannotExchangeError:
                # Takes the place of the twin, and of nothing that is not empty.
                os.rename(ARCHIVE, name, src_dir_fd=self.directory, dst_dir_fd=directory)
        finally:
            os.close(directory)

    def _make(self) -> None:
        while self.directory < 0:
            name = names.new_staging_name(self.name)
            os.mkdir(name, stat.S_IRWXU, dir_fd=self.parent)
            self._own_name = name
            # Until it is locked, another run may take it for debris.
            try:
                fd = os.open(name, READ_DIRECTORY, dir_fd=self.parent)
            except FileNotFoundError:
                continue
            if os.listdir(fd):
                # Somebody who may write to the parent gave the name to a directory of his choice.
                os.close(fd)
                self._own_name = ""
                raise OSError(
                    errno.ENOTEMPTY, "a directory that had just been made was exchanged for another"
                )
            self.mark = names.set_mark(fd)
            forget_inheritance(fd)
            if _lock(fd) is not False and _is_at(fd, name, self.parent):
                self.directory = fd
                continue
            os.close(fd)
            if not self.mark:
                remove_empty(name, self.parent)  # nobody else does

    def _remove_debris(self) -> None:
        for name in os.listdir(self.parent):
            if not names.is_staging_name(name, self.name):
                continue
            try:
                fd = os.open(name, READ_DIRECTORY, dir_fd=self.parent)
            except OSError:
                continue  # not one of ours, or its maker has just removed it
            try:
                if os.fstat(fd).st_uid != os.geteuid():
                    continue
                if not names.is_marked(fd):
                    self._unmarked.append(name)
                elif _lock(fd) and _is_at(fd, name, self.parent):
                    self.log.debug(f"removing {name} in {self._parent_path}, left by a run that was killed")
                    self._recall_of_dead(fd)
                    self._remove(name, fd)
            except OSError as error:
                self._warn(name, error)
            finally:
                os.close(fd)

    def _tell_of_unmarked(self) -> None:
        # At the end, when a run that had just begun at the start has locked its own, or is gone.
        left = [name for name in self._unmarked if self._is_unlocked(name)]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            self.log.warning(
                f"{os.path.join(self._parent_path, min(left))}{more} may be what a killed run left, or somebody"
                " else's: it has no mark of this program, so it stays; look into it, and remove it yourself"
            )

    def _is_unlocked(self, name: str) -> bool:
        try:
            fd = os.open(name, READ_DIRECTORY, dir_fd=self.parent)
        except OSError:
            return False
        try:
            return bool(_lock(fd))
        finally:
            os.close(fd)

    def _remove(self, name: str, fd: int) -> None:
        for entry in os.listdir(fd):
            if entry.startswith(_KEEP) and entry == f"{_KEEP}{_inode(ARCHIVE, fd)}":
                self.take_backup_name(
                    lambda backup: kernel.rename_new(ARCHIVE, fd, backup, self.parent, self.less_safe)
                )
        # Whoever may write to the parent may have given the name to something else meanwhile.
        tree.empty(fd)
        try:
            os.rmdir(name, dir_fd=self.parent)
        except (FileNotFoundError, NotADirectoryError):
            pass

    def _warn(self, name: str, error: OSError) -> None:
        self.log.warning(
            f"cannot remove the staging directory {os.path.join(self._parent_path, name)}: {error.strerror};"
            " the next run to the same destination tries again"
        )

    def _leave(self) -> None:
        """Remove what there is, and let go of everything."""
        self._tell_of_unmarked()
        try:
            if self.directory >= 0:
                self.recall()
                self._give_back()
                self._remove(self._own_name, self.directory)
                if self._times:
                    os.utime(self.parent, ns=self._times)
            elif self._own_name:
                os.rmdir(self._own_name, dir_fd=self.parent)
        except OSError as error:
            self._warn(self._own_name, error)
        for fd in (self.directory, self.parent):
            try:
                if fd >= 0:
                    os.close(fd)
            except OSError:
                pass  # nothing was written to it
        self.directory = self.parent = -1


def forget_inheritance(fd: int) -> None:
    """Make a directory private (0700), and keep what its parent gave it from everything that is made in it.

    Args:
        fd: of the directory.

    Raises:
        OSError: that is not possible.
    """
    os.chmod(fd, stat.S_IRWXU)  # no set-group-ID bit
    for name in (_DEFAULT_ACL, "system.posix_acl_access"):
        _remove_attribute(fd, name)


def _remove_attribute(fd: int, name: str) -> None:
    try:
        os.removexattr(fd, name)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise


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


def remove_empty(name: str, directory: int) -> None:
    """Remove a directory that was just made, unless it is gone or is something else by now.

    Args:
        name: the directory.
        directory: file descriptor of the directory it is in.
    """
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError:
        pass


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
