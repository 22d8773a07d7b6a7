"""The method `copy`: the change set as a directory, in the overlay's native form."""

from __future__ import annotations

import os
import stat

from archive_overlay.destination.publish import judge_destination
from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import fail
from archive_overlay.methods.writer_process import write_beside
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    WHITEOUT,
)
from archive_overlay.system import metadata, sparse
from archive_overlay.system.open_flags import CREATE, LOOK, READ_DIRECTORY
from archive_overlay.system.tree import Descent, open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.methods import Destination, Request, Target
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.mount import OverlayMount

_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
_SPECIAL_BITS = 0o1000  # from here on: sticky, set-group-ID, set-user-ID
_TYPES = {
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
    CHARACTER_DEVICE: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK,
}
# Up to this size a file is read at once; beyond it the kernel copies, in pieces of the second size.
_AT_ONCE = 128 * 1024
_PIECE = 16 * 1024 * 1024


def require(compression: str) -> None:
    """Nothing is needed. See `methods.Writer`."""


def judge(overlay: OverlayMount, *, may_rename: bool) -> None:
    """Nothing is refused. See `methods.Writer`."""


def destination(request: Request, *, upper: str, paths: Paths, log: Log) -> Destination:
    """A directory. See `methods.Writer`."""
    return judge_destination(
        request.archive_to, makes="directory", if_exists=request.if_exists, upper=upper, paths=paths
    )


def write(changes: Iterator[Change], target: Target, log: Log) -> None:
    """Write the changes as a directory. See `methods.Writer`."""
    write_beside(changes, lambda stream: _write(stream, target), jobs=target.jobs)


def _write(changes: Iterator[Change], target: Target) -> None:
    writer = _Writer(target)
    change = None
    mask = os.umask(0)  # files are made with the mode that they keep
    try:
        for change in changes:
            writer.add(change)
        writer.finish()
    except OSError as error:
        path = change.path if change else ""
        fail(f"cannot write {path or '.'} into {target.staging.path}", error)
    finally:
        os.umask(mask)
        writer.close()


class _Writer:
    """A position in the copy: the directories that are still being filled."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._top = -1
        self._made_as = -1, -1  # the owner of what is made in the copy
        self._descent: Descent | None = None
        self._open: list[tuple[str, Change]] = []  # prefix of what comes into it, the directory itself

    def add(self, change: Change) -> None:
        if self._descent is None:
            self._begin(change)
            return
        while self._open[-1][0] != change.directory:
            self._leave()
        here = self._descent.fd
        name = change.name
        if change.link_to is not None:
            self._link(change, here)
        elif change.kind is FILE:
            _copy_file(change, here, self._made_as)
        elif change.kind is DIRECTORY:
            # Private until it is complete: it gets its owner and mode when it is left.
            os.mkdir(name, stat.S_IRWXU, dir_fd=here)
            self._descent.enter(name)
            self._open.append((change.path + "/", change))
        elif change.kind is WHITEOUT:
            self._make_whiteout(change, here)
        elif change.kind is SYMLINK:
            os.symlink(change.target, name, dir_fd=here)
            if self._made_as != (change.uid, change.gid):
                os.chown(name, change.uid, change.gid, dir_fd=here, follow_symlinks=False)
            if change.attributes:
                _give_attributes(change, here)
            os.utime(name, ns=(change.atime_ns, change.mtime_ns), dir_fd=here, follow_symlinks=False)
        else:
            os.mknod(name, _TYPES[change.kind] | stat.S_IRUSR, change.rdev, dir_fd=here)
            fd = os.open(name, LOOK, dir_fd=here)
            try:
                metadata.give(f"/proc/self/fd/{fd}", change, change.attributes, made_as=self._made_as)
            finally:
                os.close(fd)

    def finish(self) -> None:
        """Leave the directories that are still open."""
        while len(self._open) > 1:
            self._leave()
        if self._descent:
            self._complete(self._descent.fd, self._open.pop()[1])

    def close(self) -> None:
        if self._descent:
            self._descent.close()
            os.close(self._top)

    def _begin(self, root: Change) -> None:
        staging = self._target.staging.directory
        os.mkdir(ARCHIVE, stat.S_IRWXU, dir_fd=staging)
        self._top = os.open(ARCHIVE, READ_DIRECTORY, dir_fd=staging)
        self._descent = Descent(os.dup(self._top))
        made = os.fstat(self._top)
        self._made_as = made.st_uid, made.st_gid
        self._open.append(("", root))

    def _leave(self) -> None:
        assert self._descent is not None
        left = self._descent.leave()
        try:
            self._complete(left, self._open.pop()[1])
        finally:
            os.close(left)

    def _complete(self, fd: int, directory: Change) -> None:
        attributes = directory.attributes
        if directory.opaque:
            attributes = {**attributes, self._target.overlay.dialect.opaque_attribute: b"y"}
        metadata.give(fd, directory, attributes, made_as=self._made_as)

    def _link(self, change: Change, here: int) -> None:
        assert change.link_to is not None
        parent, name = open_beneath(change.link_to, self._top)
        try:
            os.link(name, change.name, src_dir_fd=parent, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(parent)

    def _make_whiteout(self, change: Change, directory: int) -> None:
        try:
            os.mknod(change.name, stat.S_IFCHR, 0, dir_fd=directory)
        except OSError as error:
            fail(
                f"cannot write the deletion of {change.path} into {self._target.staging.path}",
                error,
                hint="the file system of archive-to must be able to hold 0:0 devices (an overlay cannot);"
                " method tar.gz goes anywhere",
            )


def _copy_file(change: Change, directory: int, made_as: tuple[int, int]) -> None:
    # A set-user-ID bit must not be there before its owner is, and an ACL has a mode of its own.
    plain = change.mode < _SPECIAL_BITS and not change.attributes
    fd = os.open(change.name, CREATE, change.mode if plain else _PRIVATE, dir_fd=directory)
    try:
        if change.sparse:
            if _copy_segments(change, fd) != change.size:
                raise change.changed()
        elif change.size <= _AT_ONCE:
            data = change.contents()
            while data:
                data = data[os.write(fd, data) :]
        # One byte more than there should be, so that a file that has grown is noticed.
        elif _copy_in_kernel(change.fd, fd, change.size + 1) != change.size:
            raise change.changed()
        if not plain:
            metadata.give(fd, change, change.attributes, made_as=made_as)
            return
        if made_as != (change.uid, change.gid):
            os.chown(fd, change.uid, change.gid)
        os.utime(fd, ns=(change.atime_ns, change.mtime_ns))
    finally:
        os.close(fd)


def _copy_segments(change: Change, target: int) -> int:
    """Copy what are no holes, and give the size that the source has."""
    os.truncate(target, change.size)
    for offset, length in sparse.segments(change.fd, change.size):
        os.lseek(change.fd, offset, os.SEEK_SET)
        os.lseek(target, offset, os.SEEK_SET)
        if _copy_in_kernel(change.fd, target, length) != length:
            return -1  # it has been cut off meanwhile
    return os.fstat(change.fd).st_size


def _copy_in_kernel(source: int, target: int, most: int) -> int:
    """Copy from one file's position to another's, and give the number of bytes copied.

    Args:
        source, target: file descriptors.
        most: at most so many bytes are copied; fewer only if the source ends.
    """
    copied = 0
    try:
        while count := os.copy_file_range(source, target, min(most - copied, _PIECE)):
            copied += count
    except OSError:
        # Not between these file systems; what was copied up to here stays.
        while count := os.sendfile(target, source, None, min(most - copied, _PIECE)):
            copied += count
    return copied


def _give_attributes(change: Change, directory: int) -> None:
    fd = os.open(change.name, LOOK, dir_fd=directory)
    try:
        metadata.give_attributes(f"/proc/self/fd/{fd}", change, change.attributes)
    finally:
        os.close(fd)
