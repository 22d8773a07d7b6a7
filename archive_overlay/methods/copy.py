"""The method `copy`: the change set as a directory, in the overlay's native form."""

from __future__ import annotations

import errno
import marshal
import os
import stat

from archive_overlay.destination.publish import judge_destination
from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import fail
from archive_overlay.methods.writer_process import write_beside
from archive_overlay.overlay.attributes import NO_ATTRIBUTES, attributes_size
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    WHITEOUT,
    Allowance,
)
from archive_overlay.system import metadata, sparse
from archive_overlay.system.open_flags import CREATE, CREATE_AND_READ, LOOK, READ_DIRECTORY
from archive_overlay.system.tree import Descent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.methods import Destination, Request, Target
    from archive_overlay.overlay.change import Attributes, Change
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.overlay.store import Place
    from archive_overlay.settings import Settings
    from archive_overlay.system.patience import Patience

_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
_OPAQUE = b"y"
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
# Beside the archive in the staging directory.
_LINKS = "links"
_ATTRIBUTES = "attributes"
# Attributes of a directory that are held while it is filled; there may be thousands of directories.
_FEW_BYTES = 1024
_LENGTH = 4  # bytes of the length of a record in that file


def require(compression: str) -> None:
    """Nothing is needed. See `methods.Writer`."""


def judge(overlay: OverlayMount, *, keep_in_place: str) -> None:
    """Nothing is refused. See `methods.Writer`."""


def destination(
    request: Request,
    *,
    overlay: OverlayMount,
    container: Place,
    settings: Settings,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> Destination:
    """A directory. See `methods.Writer`."""
    return judge_destination(
        request.archive_to,
        makes="directory",
        if_exists=request.if_exists,
        upper=overlay.upper,
        paths=paths,
        patience=patience,
    )


def write(changes: Iterator[Change], target: Target, log: Log) -> str:
    """Write the changes as a directory. See `methods.Writer`.

    Returns:
        The attribute that makes directories in it opaque.
    """
    write_beside(changes, lambda stream: _write(stream, target), jobs=target.jobs)
    return target.overlay.dialect.opaque_attribute


def _write(changes: Iterator[Change], target: Target) -> None:
    writer = _Writer(target)
    change = None
    mask = os.umask(0)  # files are made with the mode that they keep
    try:
        for change in changes:
            writer.add(change)
        writer.finish()
    except OSError as error:
        shown = change.shown if change else "."
        fail(f"cannot write {shown} into {target.staging.path}", error)
    finally:
        os.umask(mask)
        writer.close()


class _Writer:
    """A position in the copy: the directories that are still being filled."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._allowance = Allowance(target.max_bytes)
        self._made_as = -1, -1  # the owner of what is made in the copy
        self._descent: Descent | None = None
        self._open: list[tuple[Change, metadata.Attributes]] = []  # from the root down
        self._links = _Links(target.staging.directory)
        self._set_aside = _SetAside(target.staging.directory)

    def add(self, change: Change) -> None:
        if self._target.max_bytes is not None:
            self._allowance.take(self._size(change))
        if self._descent is None:
            self._begin(change)
            return
        while len(self._open) > change.directory.depth + 1:
            self._leave()
        here = self._descent.fd
        name = change.name
        if change.link_to is not None:
            self._links.link(change.shared, name, here)
            return
        if change.kind is FILE:
            _copy_file(change, here, self._made_as, self._allowance)
        elif change.kind is DIRECTORY:
            # Private until it is complete: it gets its owner and mode when it is left.
            os.mkdir(name, stat.S_IRWXU, dir_fd=here)
            self._descent.enter(name)
            self._enter(change)
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
        if change.shared:
            self._links.keep(change.shared, name, here)

    def finish(self) -> None:
        """Leave the directories that are still open."""
        while len(self._open) > 1:
            self._leave()
        if self._descent:
            self._complete(self._descent.fd, *self._open.pop())

    def close(self) -> None:
        if self._descent:
            self._descent.close()
        self._links.close()
        self._set_aside.close()

    def _size(self, change: Change) -> int:
        """Return the bytes that an entry takes: its name, attributes, target, and contents unless it may have holes."""
        size = len(os.fsencode(change.name)) + len(os.fsencode(change.target))
        if change.attributes:
            size += attributes_size(change.attributes)
        if change.opaque:
            size += len(self._target.overlay.dialect.opaque_attribute) + len(_OPAQUE)
        if change.kind is FILE and change.link_to is None and not change.sparse:
            size += change.size
        return size

    def _begin(self, root: Change) -> None:
        staging = self._target.staging.directory
        os.mkdir(ARCHIVE, stat.S_IRWXU, dir_fd=staging)
        self._descent = Descent(os.open(ARCHIVE, READ_DIRECTORY, dir_fd=staging))
        made = os.fstat(self._descent.fd)
        self._made_as = made.st_uid, made.st_gid
        self._enter(root)

    def _enter(self, directory: Change) -> None:
        attributes = self._set_aside.put(directory.attributes)
        directory.attributes = NO_ATTRIBUTES
        self._open.append((directory, attributes))

    def _leave(self) -> None:
        assert self._descent is not None
        left = self._descent.leave()
        try:
            self._complete(left, *self._open.pop())
        finally:
            os.close(left)

    def _complete(self, fd: int, directory: Change, attributes: metadata.Attributes) -> None:
        if directory.opaque:
            opaque = {self._target.overlay.dialect.opaque_attribute: _OPAQUE}
            metadata.give_attributes(fd, directory, opaque)
        metadata.give(fd, directory, attributes, made_as=self._made_as)

    def _make_whiteout(self, change: Change, directory: int) -> None:
        try:
            os.mknod(change.name, stat.S_IFCHR, 0, dir_fd=directory)
        except OSError as error:
            fail(
                f"cannot write the deletion of {change.shown} into {self._target.staging.path}",
                error,
                hint="the file system of archive-to must be able to hold 0:0 devices (an overlay cannot);"
                " method tar.gz works on any file system",
            )


class _Links:
    """Files with several names, each under its number in a directory beside the archive.

    To find a file again by its path would take a step for each directory on its way, and there may be thousands of
    both.

    Args:
        staging: file descriptor of the staging directory, with which they are removed.
    """

    def __init__(self, staging: int) -> None:
        self._staging = staging
        self._directory = -1
        self._error: OSError | None = None

    def keep(self, number: int, name: str, directory: int) -> None:
        """Keep a file to find it again."""
        if self._directory < 0:
            os.mkdir(_LINKS, stat.S_IRWXU, dir_fd=self._staging)
            self._directory = os.open(_LINKS, READ_DIRECTORY, dir_fd=self._staging)
        try:
            _link(name, directory, str(number), self._directory)
        except OSError as error:
            self._error = error  # this matters only if another name comes

    def link(self, number: int, name: str, directory: int) -> None:
        """Give a file that was kept another name."""
        try:
            _link(str(number), self._directory, name, directory)
        except FileNotFoundError as error:
            raise self._error or error from None
        except OSError as error:
            # It has all the links that it may have, and this one beside the archive is one of them.
            if error.errno != errno.EMLINK:
                raise
            os.rename(str(number), name, src_dir_fd=self._directory, dst_dir_fd=directory)

    def close(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)


def _link(name: str, directory: int, new: str, new_directory: int) -> None:
    os.link(name, new, src_dir_fd=directory, dst_dir_fd=new_directory, follow_symlinks=False)


class _SetAside:
    """Attributes of the directories that are still being filled, in a file beside the archive.

    Directories are completed from the inside out, so what was put there last is taken first.

    Args:
        staging: file descriptor of the staging directory. The file has no name there.
    """

    def __init__(self, staging: int) -> None:
        self._staging = staging
        self._file = -1
        self._end = 0

    def put(self, attributes: Attributes) -> metadata.Attributes:
        """Set attributes aside, and give them as they will be read; a few are just held."""
        if isinstance(attributes, dict) and sum(map(len, attributes.values())) <= _FEW_BYTES:
            return attributes
        if self._file < 0:
            self._file = os.open(_ATTRIBUTES, CREATE_AND_READ, _PRIVATE, dir_fd=self._staging)
            os.unlink(_ATTRIBUTES, dir_fd=self._staging)
        start = self._end
        for item in attributes.items():
            record = marshal.dumps(item)
            data = len(record).to_bytes(_LENGTH, "little") + record
            while data:
                written = os.pwrite(self._file, data, self._end)
                self._end += written
                data = data[written:]
        return _OnDisk(self, start, len(attributes))

    def take(self, start: int, count: int) -> Iterator[tuple[str, bytes]]:
        """Yield what was put at a place, and forget it."""
        self._end = place = start
        for _ in range(count):
            size = int.from_bytes(os.pread(self._file, _LENGTH, place), "little")
            yield marshal.loads(os.pread(self._file, size, place + _LENGTH))
            place += _LENGTH + size

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class _OnDisk:
    """Attributes that were set aside."""

    __slots__ = ("_aside", "_count", "_start")

    def __init__(self, aside: _SetAside, start: int, count: int) -> None:
        self._aside = aside
        self._start = start
        self._count = count

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Return names and values, one after the other."""
        return self._aside.take(self._start, self._count)


def _copy_file(change: Change, directory: int, made_as: tuple[int, int], allowance: Allowance) -> None:
    # A set-user-ID bit must not be there before its owner is, and an ACL has a mode of its own.
    plain = change.mode < _SPECIAL_BITS and not change.attributes
    fd = os.open(change.name, CREATE, change.mode if plain else _PRIVATE, dir_fd=directory)
    try:
        if change.sparse:
            if _copy_segments(change, fd, allowance) != change.size:
                raise change.changed()
        elif change.size <= _AT_ONCE:
            data = change.contents()
            left = len(data) - os.write(fd, data) if data else 0
            while left:
                left -= os.write(fd, data[-left:])
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


def _copy_segments(change: Change, target: int, allowance: Allowance) -> int:
    """Copy what are no holes, and give the size that the source has."""
    os.truncate(target, change.size)
    for offset, length in sparse.segments(change.fd, change.size):
        allowance.take(length)
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
    # The first does not work between all file systems, and a filter of system calls may refuse each but the last. What was
    # copied up to then stays.
    for step in (os.copy_file_range, _send, _read_and_write):
        try:
            while count := step(source, target, min(most - copied, _PIECE)):
                copied += count
            break
        except OSError:
            if step is _read_and_write:
                raise
    return copied


def _send(source: int, target: int, most: int) -> int:
    return os.sendfile(target, source, None, most)


def _read_and_write(source: int, target: int, most: int) -> int:
    data = os.read(source, min(most, _AT_ONCE))
    count = len(data)
    while data:
        data = data[os.write(target, data) :]
    return count


def _give_attributes(change: Change, directory: int) -> None:
    fd = os.open(change.name, LOOK, dir_fd=directory)
    try:
        metadata.give_attributes(f"/proc/self/fd/{fd}", change, change.attributes)
    finally:
        os.close(fd)
