"""Layers of an image applied to a directory, one after the other.

Whoever made the layers may mean harm. The directory is walked by file descriptors, and no symbolic link in
it is followed: an entry can only ever be made in a directory that this walk has entered from the top.

Source: OCI image specification, layer.md, "Applying Changesets".
"""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.marks import OPAQUE_MARKER, TRUSTED, WHITEOUT_PREFIX
from archive_overlay.system.metadata import SELINUX_LABEL
from archive_overlay.system.open_flags import CREATE, LOOK
from archive_overlay.system.tree import Descent, open_beneath, remove
from archive_overlay.tar import headers
from archive_overlay.tar.changes import split_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.tar.reader import Entry, TarReader


_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
_SPECIAL_BITS = 0o1000  # from here on: sticky, set-group-ID, set-user-ID
_SET_IDS = stat.S_ISUID | stat.S_ISGID
# Up to this size a file is written at once.
_AT_ONCE = 128 * 1024
_ZERO_BLOCK = 64 * 1024
_ZEROS = bytes(_ZERO_BLOCK)
_TYPES = {
    headers.FIFO: stat.S_IFIFO,
    headers.CHARACTER_DEVICE: stat.S_IFCHR,
    headers.BLOCK_DEVICE: stat.S_IFBLK,
}
# In a directory, what is made in it inherits these.
_DEFAULT_ACL = "system.posix_acl_default"
# What the system says to somebody who may not give what an entry has, or where the file system cannot.
_NOT_GIVEN = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class Missing:
    """What could not be given to entries: how often, and to which first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def note(self, what: str, path: str) -> None:
        """Note one entry."""
        count, first = self._found.get(what, (0, path))
        self._found[what] = count + 1, first

    def __str__(self) -> str:
        """Say what is missing, for a warning; "" if nothing is."""
        return ", ".join(
            f"{what} of {first}" + (f" and {count - 1} more" if count > 1 else "")
            for what, (count, first) in self._found.items()
        )


class Unpacker:
    """A directory that is being filled. Call `finish` at the end, and `close` in any case.

    Args:
        top: file descriptor of the directory, which is empty and nobody else's. The caller keeps it.

    Attributes:
        missing: what could not be given to entries.
    """

    def __init__(self, top: int) -> None:
        self.missing = Missing()
        self._top = top
        made = os.fstat(top)
        self._made_as = made.st_uid, made.st_gid
        self._mask = os.umask(0)  # files are made with the mode that they keep
        self._descent = Descent(os.dup(top))
        # The directories from the top to the position, and what each is to have once it is left.
        self._frames = [_Frame("")]
        self._frames[0].mode = 0o755
        self._path = ""  # of the position, as a prefix
        # Paths that the present layer has made: what it deletes is what lower layers have. None: there
        # is no lower layer.
        self._own: set[str] | None = None

    def apply(self, tar: TarReader) -> None:
        """Apply one layer on top of those before it.

        Raises:
            ArchiveError: it would lead out of the directory, is damaged, or cannot be written.
            OSError: it cannot be read.
        """
        for entry in tar.entries():
            parts = split_path(entry.name)
            try:
                self._apply(entry, parts, tar)
            except OSError as error:
                fail(f"cannot make {entry.name}", error)
        self._go_to([])
        self._own = set()

    def finish(self) -> None:
        """Give the top what it is to have.

        Raises:
            ArchiveError: that is not possible.
        """
        try:
            self._complete(self._top, self._frames[0])
        except OSError as error:
            fail("cannot give the image's root directory what it has", error)

    def close(self) -> None:
        """Let go of the directory."""
        os.umask(self._mask)
        self._descent.close()

    def _apply(self, entry: Entry, parts: list[str], tar: TarReader) -> None:
        if not parts:
            if entry.type != headers.DIRECTORY:
                raise ArchiveError("the image's root is no directory")
            self._go_to([])
            self._frames[0].entry = entry
            return
        name = parts.pop()
        self._go_to(parts)
        if name.startswith(WHITEOUT_PREFIX):
            self._delete(name)
            return
        path = self._path + name
        if self._own is not None:
            self._own.add(path)
        if entry.type == headers.DIRECTORY:
            self._enter_new(name, entry)
            return
        while True:
            try:
                self._make(entry, name, tar)
                return
            except FileExistsError:
                if entry.type == headers.HARD_LINK and self._is_link(entry, name):
                    return
                remove(name, self._descent.fd)

    def _make(self, entry: Entry, name: str, tar: TarReader) -> None:
        here = self._descent.fd
        if entry.type == headers.REGULAR:
            self._make_file(entry, name, tar)
        elif entry.type == headers.HARD_LINK:
            self._link(entry, name)
        elif entry.type == headers.SYMLINK:
            if "\0" in entry.link:
                raise ArchiveError(f"{entry.name} points to {entry.link!r}, which is no path")
            os.symlink(entry.link, name, dir_fd=here)
            if self._made_as != (entry.uid, entry.gid) or entry.attributes:
                self._give_special(entry, name)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=here, follow_symlinks=False)
        else:
            try:
                os.mknod(name, _TYPES[entry.type] | _PRIVATE, entry.device, dir_fd=here)
            except PermissionError:
                self.missing.note("the device", entry.name)
                return
            self._give_special(entry, name)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=here, follow_symlinks=False)

    def _make_file(self, entry: Entry, name: str, tar: TarReader) -> None:
        # A set-user-ID bit must not be there before its owner is, and an ACL has a mode of its own.
        plain = entry.mode < _SPECIAL_BITS and not entry.attributes
        fd = os.open(name, CREATE, entry.mode if plain else _PRIVATE, dir_fd=self._descent.fd)
        try:
            data = tar.whole_data() if entry.size <= _AT_ONCE else None
            if data is None:
                if entry.size:
                    os.truncate(fd, entry.size)  # what is not written is a hole
                for offset, piece in tar.data():
                    _write_what_is_not_zero(fd, piece, offset)
            elif data:
                _write(fd, data, 0)
            if not plain:
                self._give(fd, entry)
            elif self._made_as != (entry.uid, entry.gid):
                self._give_owner(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _link(self, entry: Entry, name: str) -> None:
        parts = split_path(entry.link)
        if not parts:
            raise ArchiveError(f"{entry.name} is a hard link to a directory")
        try:
            parent, target = open_beneath("/".join(parts), self._top)
        except OSError as error:
            fail(f"cannot make {entry.name}, a hard link to {entry.link}", error)
        try:
            os.link(target, name, src_dir_fd=parent, dst_dir_fd=self._descent.fd, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            fail(f"cannot make {entry.name}, a hard link to {entry.link}", error)
        finally:
            os.close(parent)

    def _is_link(self, entry: Entry, name: str) -> bool:
        """Say whether a hard link is there already: perhaps it is one to itself."""
        parent, target = open_beneath("/".join(split_path(entry.link)), self._top)
        try:
            there = os.lstat(name, dir_fd=self._descent.fd)
            return os.path.samestat(os.lstat(target, dir_fd=parent), there)
        except FileNotFoundError:
            return False
        finally:
            os.close(parent)

    def _give_special(self, entry: Entry, name: str) -> None:
        """Give an entry that must not be opened its owner, attributes and mode."""
        fd = os.open(name, LOOK, dir_fd=self._descent.fd)
        try:
            self._give(f"/proc/self/fd/{fd}", entry)
        finally:
            os.close(fd)

    def _give(self, file: int | str, entry: Entry) -> None:
        """Give owner, attributes and mode, in the order that keeps them all (see `metadata`)."""
        mode = entry.mode
        if self._made_as != (entry.uid, entry.gid) and not self._give_owner(file, entry):
            mode &= ~_SET_IDS  # they mean an owner who is not there
        self._give_attributes(file, entry)
        if entry.type != headers.SYMLINK:
            os.chmod(file, mode)

    def _give_owner(self, file: int | str, entry: Entry) -> bool:
        try:
            os.chown(file, entry.uid, entry.gid)
        except OSError as error:
            if error.errno not in _NOT_GIVEN:
                raise
            self.missing.note("the owner", entry.name)
            return False
        return True

    def _give_attributes(self, file: int | str, entry: Entry) -> None:
        for name, value in entry.attributes.items():
            if name == SELINUX_LABEL:
                continue
            try:
                # No container can set these, so no layer has them that was made from what a container did.
                if name.startswith(TRUSTED):
                    raise OSError(errno.EPERM, "an overlay would act on it")
                os.setxattr(file, name, value)
            except OSError as error:
                if error.errno not in _NOT_GIVEN:
                    raise
                self.missing.note(f"the attribute {name}", entry.name)
            except ValueError:
                raise ArchiveError(
                    f"{entry.name} has an attribute {name!r}, which is no name of one"
                ) from None

    def _delete(self, mark: str) -> None:
        """Do what a name says that stands for no entry."""
        own = self._own
        if own is None:
            return  # there is nothing below
        if mark == OPAQUE_MARKER:
            self._hide_lower()
            return
        name = mark[len(WHITEOUT_PREFIX) :]
        if name in ("", ".", ".."):
            raise ArchiveError(f"{self._path}{mark} deletes nothing that there can be")
        if self._path + name not in own:
            remove(name, self._descent.fd)
            return
        try:
            self._enter(name)
        except (FileNotFoundError, NotADirectoryError):
            return
        self._hide_lower()
        self._leave()

    def _hide_lower(self) -> None:
        """Remove from the directory at the position what lower layers have in it, and leave what is the present layer's."""
        pending = [self._hide_lower_here()]
        while pending:
            if pending[-1]:
                self._enter(pending[-1].pop())
                pending.append(self._hide_lower_here())
            else:
                pending.pop()
                if pending:
                    self._leave()

    def _hide_lower_here(self) -> list[str]:
        """Do it for the directory itself, and give the directories in it that are the present layer's."""
        assert self._own is not None
        kept = []
        with os.scandir(self._descent.fd) as entries:
            for entry in list(entries):
                if self._path + entry.name not in self._own:
                    remove(entry.name, self._descent.fd)
                elif entry.is_dir(follow_symlinks=False):
                    kept.append(entry.name)
        return kept

    def _go_to(self, parts: list[str]) -> None:
        """Move the position to a directory, and make those on the way that are not there."""
        frames = self._frames
        common = 0
        for frame, part in zip(frames[1:], parts):
            if frame.name != part:
                break
            common += 1
        while len(frames) > common + 1:
            self._leave()
        for part in parts[common:]:
            path = self._path + part
            lower = self._own is not None and path not in self._own
            if self._own is not None:
                self._own.add(path)
            try:
                self._enter(part)
            except FileNotFoundError:
                self._enter_new(part, None)
            except NotADirectoryError:
                if not lower:
                    raise ArchiveError(f"{path} is no directory, but there is an entry in it") from None
                # As in an overlay, a directory hides whatever lower layers have under its name.
                os.unlink(part, dir_fd=self._descent.fd)
                self._enter_new(part, None)

    def _enter_new(self, name: str, entry: Entry | None) -> None:
        """Make a directory, if it is not there, and enter it; without an entry it is one that is written into."""
        while True:
            try:
                os.mkdir(name, stat.S_IRWXU, dir_fd=self._descent.fd)
            except FileExistsError:
                try:
                    self._enter(name)
                except NotADirectoryError:
                    os.unlink(name, dir_fd=self._descent.fd)
                    continue
            else:
                self._descent.enter(name)
                self._push(_Frame(name))
                self._frames[-1].mode = 0o755
            if entry is not None:
                self._frames[-1].entry = entry
            return

    def _enter(self, name: str) -> None:
        """Enter a directory that is there, and keep what is made in it from inheriting anything.

        Raises:
            FileNotFoundError, NotADirectoryError: there is none.
        """
        status = os.lstat(name, dir_fd=self._descent.fd)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        frame = _Frame(name)
        frame.times = status.st_atime_ns, status.st_mtime_ns
        mode = status.st_mode & 0o7777
        if mode & stat.S_ISGID or mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(name, stat.S_IRWXU, dir_fd=self._descent.fd)
            frame.mode = mode
        self._descent.enter(name)
        self._push(frame)
        try:
            frame.default_acl = os.getxattr(self._descent.fd, _DEFAULT_ACL)
            os.removexattr(self._descent.fd, _DEFAULT_ACL)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise

    def _push(self, frame: _Frame) -> None:
        self._frames.append(frame)
        self._path += f"{frame.name}/"

    def _leave(self) -> None:
        left = self._descent.leave()
        frame = self._frames.pop()
        self._path = self._path[: -len(frame.name) - 1]
        try:
            self._complete(left, frame)
        finally:
            os.close(left)

    def _complete(self, fd: int, frame: _Frame) -> None:
        entry = frame.entry
        if entry is None:
            if frame.default_acl is not None:
                os.setxattr(fd, _DEFAULT_ACL, frame.default_acl)
            if frame.mode is not None:
                os.chmod(fd, frame.mode)
            if frame.times is not None:
                os.utime(fd, ns=frame.times)
            return
        now = os.fstat(fd)
        if (now.st_uid, now.st_gid) != (entry.uid, entry.gid):
            self._give_owner(fd, entry)
        for name in os.listxattr(fd):
            if name not in entry.attributes and name != SELINUX_LABEL:
                os.removexattr(fd, name)
        self._give_attributes(fd, entry)
        os.chmod(fd, entry.mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


class _Frame:
    """A directory that is open, and what it gets when it is left.

    Attributes:
        name: in the directory above.
        entry: has all of it; None: the rest says what it is.
        mode, times, default_acl: what it had or is to have; None: nothing is to be done.
    """

    __slots__ = ("default_acl", "entry", "mode", "name", "times")

    def __init__(self, name: str) -> None:
        self.name = name
        self.entry: Entry | None = None
        self.mode: int | None = None
        self.times: tuple[int, int] | None = None
        self.default_acl: bytes | None = None


def _write_what_is_not_zero(fd: int, data: bytes, offset: int) -> None:
    """Write data into a new file but for whole blocks of zeros: layers have zeros for what was a hole."""
    position = 0
    while position < len(data):
        end = position + _ZERO_BLOCK - (offset + position) % _ZERO_BLOCK
        block = data[position:end]
        if block != _ZEROS[: len(block)]:
            _write(fd, block, offset + position)
        position = end


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        offset += written
        data = data[written:]
