"""Layers of an image applied to a directory, one after the other.

Whoever made the layers may mean harm. The directory is walked by file descriptors, and no symbolic link in
it is followed: an entry can only ever be made in a directory that this walk has entered from the top.

What a layer deletes is what lower layers have, wherever in it that is said. So each layer is read twice: first all of it
goes that lies below, then its entries are made. No list of its entries is needed for that, which could be longer than
memory; what is remembered is what the directories from the top to the present one are to have.

Source: OCI image specification, layer.md, "Applying Changesets".
"""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.errors import ArchiveError, brief, fail
from archive_overlay.history.missing import Missing
from archive_overlay.marks import (
    ENGINE_OWNER,
    FUSE_SECURITY,
    FUSE_USER,
    OPAQUE_MARKER,
    TRUSTED,
    USER,
    WHITEOUT_PREFIX,
)
from archive_overlay.system.metadata import SELINUX_LABEL
from archive_overlay.system.open_flags import CREATE, LOOK
from archive_overlay.system.tree import Descent, open_beneath, remove
from archive_overlay.tar import headers
from archive_overlay.tar.changes import split_link, split_path, whiteout_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from archive_overlay.tar.reader import Entry

    class Entries(Protocol):
        """What `TarReader` has: entries that are read once, and the data of the present one."""

        def entries(self) -> Iterator[Entry]: ...
        def whole_data(self) -> bytes | None: ...
        def data(self) -> Iterator[tuple[int, bytes]]: ...


_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
_SPECIAL_BITS = 0o1000  # from here on: sticky, set-group-ID, set-user-ID
_SET_IDS = stat.S_ISUID | stat.S_ISGID
# Up to this size a file is written at once.
_AT_ONCE = 128 * 1024
# Parts of the targets of symbolic links that may be on the way of one entry: a link that leads to itself has no end.
_MOST_FOLLOWED = 256
_ZERO_BLOCK = 64 * 1024
_ZEROS = bytes(_ZERO_BLOCK)
# The type of a socket: tars have none, but a change set that is a directory has.
SOCKET = b"socket"
_TYPES = {
    headers.FIFO: stat.S_IFIFO,
    headers.CHARACTER_DEVICE: stat.S_IFCHR,
    headers.BLOCK_DEVICE: stat.S_IFBLK,
    SOCKET: stat.S_IFSOCK,
}
# Somebody may use the directory as a layer of an overlay, which would act on these. Escaped ones, of an overlay within an
# overlay, are among them: they mean something as soon as there is such another one.
OVERLAY_ATTRIBUTES = (TRUSTED, USER, FUSE_USER, FUSE_SECURITY, ENGINE_OWNER)
# In a directory, what is made in it inherits these.
_DEFAULT_ACL = "system.posix_acl_default"
# Both kinds may come in the way of making something in the directory, so it gets them when it is left.
_ACL = "system.posix_acl_"
# Of the directories from the top to the present one together; one has 64 KiB at most, and none that is real 4.
_MOST_ACL_BYTES = 16 * 1024 * 1024
# What the system says to somebody who may not give what an entry has, or where the file system cannot.
_NOT_GIVEN = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class Unpacker:
    """A directory that is being filled. Call `finish` at the end, and `close` in any case.

    Args:
        top: file descriptor of the directory, which is empty and nobody else's. The caller keeps it.
        whiteout_names: whether names that begin with .wh. stand for deletions, as in layers.

    Attributes:
        missing: what could not be given to entries.
    """

    def __init__(self, top: int, *, whiteout_names: bool = True) -> None:
        self.missing = Missing()
        self._whiteout_names = whiteout_names
        self._top = top
        made = os.fstat(top)
        self._made_as = made.st_uid, made.st_gid
        self._mask = os.umask(0)  # files are made with the mode that they keep
        self._descent = Descent(os.dup(top))
        # The directories from the top to the position, and what each is to have once it is left.
        self._frames = [_Frame("")]
        self._frames[0].mode = 0o755
        self._acl_bytes = 0

    def hide(self, tar: Entries) -> None:
        """Remove what a layer hides of those before it: what it deletes, and what it has a directory instead of.

        Raises:
            ArchiveError: it would lead out of the directory, is damaged, or something cannot be removed.
            OSError: it cannot be read.
        """
        for entry in tar.entries():
            parts = split_path(entry.name)
            name = parts.pop() if parts else ""
            try:
                if self._go_below(parts) and name.startswith(WHITEOUT_PREFIX):
                    self._delete(name, entry)
            except OSError as error:
                fail(f"cannot apply {brief(entry.name)}", error)
        self._go_to([])

    def apply(self, tar: Entries) -> None:
        """Make a layer's entries, on top of what is left of the layers before it.

        Raises:
            ArchiveError: it would lead out of the directory, is damaged, or cannot be written.
            OSError: it cannot be read.
        """
        for entry in tar.entries():
            parts = split_path(entry.name)
            try:
                self._apply(entry, parts, tar)
            except OSError as error:
                fail(f"cannot make {brief(entry.name)}", error)
        self._go_to([])

    def finish(self) -> None:
        """Give the top what it is to have.

        Raises:
            ArchiveError: that is not possible.
        """
        try:
            self._complete(self._top, self._frames[0])
        except OSError as error:
            fail("cannot set the metadata of the image's root directory", error)

    def close(self) -> None:
        """Let go of the directory."""
        os.umask(self._mask)
        self._descent.close()

    def _apply(self, entry: Entry, parts: list[str], tar: Entries) -> None:
        if not parts:
            if entry.type != headers.DIRECTORY:
                raise ArchiveError("the image's root is not a directory")
            self._go_to([])
            self._describe(entry)
            return
        name = parts.pop()
        if self._is_mark(name):
            self._go_to_marked(parts)  # what it says has been done
            return
        self._go_to(parts)
        if entry.type == headers.DIRECTORY:
            self._enter_new(name)
            self._describe(entry)
            return
        while True:
            try:
                self._make(entry, name, tar)
                return
            except FileExistsError:
                if entry.type == headers.HARD_LINK and self._is_link(entry, name):
                    return
                remove(name, self._descent.fd)

    def _is_mark(self, name: str) -> bool:
        return self._whiteout_names and name.startswith(WHITEOUT_PREFIX)

    def _make(self, entry: Entry, name: str, tar: Entries) -> None:
        here = self._descent.fd
        if entry.type == headers.REGULAR:
            self._make_file(entry, name, tar)
        elif entry.type == headers.HARD_LINK:
            self._link(entry, name)
        elif entry.type == headers.SYMLINK:
            if "\0" in entry.link:
                raise ArchiveError(
                    f"{brief(entry.name)} points to {brief(entry.link)!r}, which is not a path"
                )
            os.symlink(entry.link, name, dir_fd=here)
            if self._made_as != (entry.uid, entry.gid) or entry.attributes:
                self._give_special(entry, name)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=here, follow_symlinks=False)
        elif entry.type == headers.CHARACTER_DEVICE and not entry.device:
            # An overlay would take it for a deletion. What lower layers have under its name is gone all the same.
            remove(name, here)
            self.missing.note_mark("the device 0:0", entry.name)
        else:
            try:
                os.mknod(name, _TYPES[entry.type] | _PRIVATE, entry.device, dir_fd=here)
            except PermissionError:
                self.missing.note("the device", entry.name)
                return
            self._give_special(entry, name)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=here, follow_symlinks=False)

    def _make_file(self, entry: Entry, name: str, tar: Entries) -> None:
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
        parts = split_link(entry.link)
        if not parts:
            raise ArchiveError(f"{brief(entry.name)} is a hard link to a directory")
        try:
            parent, target = self._open_linked(parts, entry)
        except OSError as error:
            fail(f"cannot make {brief(entry.name)}, a hard link to {brief(entry.link)}", error)
        try:
            os.link(target, name, src_dir_fd=parent, dst_dir_fd=self._descent.fd, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            fail(f"cannot make {brief(entry.name)}, a hard link to {brief(entry.link)}", error)
        finally:
            os.close(parent)

    def _open_linked(self, parts: list[str], entry: Entry) -> tuple[int, str]:
        """Open the directory in which there is what an entry is a hard link to; see `open_beneath`.

        On the way there may be symbolic links, which the layers have made in the directory that is being filled: they
        lead to places in it.
        """
        try:
            return open_beneath("/".join(parts), self._top)
        except NotADirectoryError:
            *directories, name = parts
            try:
                self._leave_to([])
                self._follow(directories, make=False)
                return os.dup(self._descent.fd), name
            finally:
                self._go_to(split_path(entry.name)[:-1])

    def _is_link(self, entry: Entry, name: str) -> bool:
        """Return whether a hard link is there already: perhaps it is one to itself."""
        parent, target = self._open_linked(split_link(entry.link), entry)
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
        for name, value in entry.attributes.items():
            self._give_attribute(file, name, value, entry.name)
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

    def _give_attribute(self, file: int | str, name: str, value: bytes, path: str) -> None:
        if name == SELINUX_LABEL:
            return
        if name.startswith(OVERLAY_ATTRIBUTES):
            self.missing.note_mark(f"the attribute {name}", path)
            return
        try:
            os.setxattr(file, name, value)
        except OSError as error:
            if error.errno not in _NOT_GIVEN:
                raise
            self.missing.note(f"the attribute {name}", path)
        except ValueError:
            raise ArchiveError(f"{brief(path)} has an attribute {name!r}, and that name is invalid") from None

    def _delete(self, mark: str, entry: Entry) -> None:
        """Do what a name says that stands for no entry."""
        if mark == OPAQUE_MARKER:
            self._empty()
            return
        remove(whiteout_of(mark, entry.name), self._descent.fd)

    def _empty(self) -> None:
        """Remove what is in the directory at the position."""
        # A file system may skip names while others are removed: until it gives none.
        found = True
        while found:
            found = False
            with os.scandir(self._descent.fd) as entries:
                for each in entries:
                    found = True
                    remove(each.name, self._descent.fd)

    def _go_below(self, parts: list[str]) -> bool:
        """Move the position to a directory that lower layers have, or as near to it as there is one.

        Returns:
            Whether it is there. If a directory of the present layer is to take the place of something else on the way,
            that has been removed: as in an overlay, it hides whatever lower layers have under its name.
        """
        for part in parts[self._leave_to(parts) :]:
            try:
                self._enter(part)
            except FileNotFoundError:
                return False
            except NotADirectoryError:
                os.unlink(part, dir_fd=self._descent.fd)
                return False
        return True

    def _go_to(self, parts: list[str]) -> None:
        """Move the position to a directory, and make those on the way that are not there."""
        common = self._leave_to(parts)
        for number in range(common, len(parts)):
            part = parts[number]
            if self._is_mark(part):
                raise self._marked_directory(part)
            try:
                self._enter(part)
            except FileNotFoundError:
                self._enter_new(part)
            except NotADirectoryError:
                try:
                    self._follow(parts[number:], make=True)
                except NotADirectoryError as error:
                    raise ArchiveError(
                        f"{brief(error.filename)} is not a directory, but there is an entry in it"
                    ) from None
                return

    def _go_to_marked(self, parts: list[str]) -> None:
        """Move the position to a directory that holds a mark, unless it is none: then there is nothing to delete in it.

        Raises:
            ArchiveError: the layer has a symbolic link on the way. The mark would have to be known where that leads to.
        """
        if self._leave_to(parts) == len(parts):
            return
        *above, name = parts
        self._go_to(above)
        try:
            mode = os.lstat(name, dir_fd=self._descent.fd).st_mode
        except FileNotFoundError:
            mode = stat.S_IFDIR
        if stat.S_ISLNK(mode) or [frame.name for frame in self._frames[1:]] != above:
            raise ArchiveError(
                f"{brief('/'.join(parts))} leads through a symbolic link of its layer, but something is deleted there"
            )
        if stat.S_ISDIR(mode):
            self._go_to(parts)

    def _follow(self, parts: list[str], *, make: bool) -> None:
        """Go on from the position through symbolic links, each as if the directory that is filled were the root.

        Args:
            parts: the way, of which the first part may be a link.
            make: whether directories of it are made that are not there; those that a link names never are.

        Raises:
            NotADirectoryError: something on the way is neither a directory nor a link; its path is the file name.
        """
        pending = [(part, make) for part in reversed(parts)]
        followed = 0
        while pending:
            part, make = pending.pop()
            if self._is_mark(part):
                raise self._marked_directory(part)
            if part == "..":
                if len(self._frames) > 1:
                    self._leave()
                continue
            try:
                self._enter(part)
            except FileNotFoundError:
                if not make:
                    raise
                self._enter_new(part)
            except NotADirectoryError:
                if not stat.S_ISLNK(os.lstat(part, dir_fd=self._descent.fd).st_mode):
                    raise NotADirectoryError(
                        errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._path(part)
                    ) from None
                target = os.readlink(part, dir_fd=self._descent.fd)
                followed += 1 + target.count("/")
                if followed > _MOST_FOLLOWED:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                if target.startswith("/"):
                    self._leave_to([])
                pending += [(each, False) for each in reversed(target.split("/")) if each not in ("", ".")]

    def _marked_directory(self, name: str) -> ArchiveError:
        return ArchiveError(f"{brief(self._path(name))} is a directory, but its name stands for a deletion")

    def _leave_to(self, parts: list[str]) -> int:
        """Go up to what the position and a directory have in common; say how many directories that is from the top."""
        frames = self._frames
        common = 0
        # Looked for from the top, but no further than the position is deep: that has been walked as well.
        for part in parts[: len(frames) - 1]:
            if frames[common + 1].name != part:
                break
            common += 1
        while len(frames) > common + 1:
            self._leave()
        return common

    def _enter_new(self, name: str) -> None:
        """Make a directory, if it is not there, and enter it."""
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
                self._frames.append(_Frame(name))
                self._frames[-1].mode = 0o755
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
        self._frames.append(frame)
        try:
            acl = os.getxattr(self._descent.fd, _DEFAULT_ACL)
            os.removexattr(self._descent.fd, _DEFAULT_ACL)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
        else:
            self._defer(_DEFAULT_ACL, acl)

    def _describe(self, entry: Entry) -> None:
        """Give the directory at the position what its entry says, now or when it is left."""
        frame = self._frames[-1]
        # Its attributes must not be remembered: each of the directories from the top to here may have 16 MiB of them.
        for name in os.listxattr(self._descent.fd):
            if name not in entry.attributes and name != SELINUX_LABEL:
                os.removexattr(self._descent.fd, name)
        self._forget_acls(frame)
        for name, value in entry.attributes.items():
            if name.startswith(_ACL):
                self._defer(name, value)
            else:
                self._give_attribute(self._descent.fd, name, value, entry.name)
        frame.owner = entry.uid, entry.gid
        frame.mode = entry.mode
        frame.times = entry.mtime_ns, entry.mtime_ns

    def _defer(self, name: str, acl: bytes) -> None:
        """Give an ACL to the directory at the position when it is left."""
        self._acl_bytes += len(acl)
        if self._acl_bytes > _MOST_ACL_BYTES:
            raise ArchiveError(
                f"directories, one in the other, have more than {_MOST_ACL_BYTES} bytes of ACLs"
            )
        frame = self._frames[-1]
        frame.acls = {**(frame.acls or {}), name: acl}

    def _forget_acls(self, frame: _Frame) -> None:
        if frame.acls is not None:
            self._acl_bytes -= sum(map(len, frame.acls.values()))
            frame.acls = None

    def _leave(self) -> None:
        left = self._descent.leave()
        frame = self._frames.pop()
        try:
            self._complete(left, frame)
        finally:
            os.close(left)

    def _complete(self, fd: int, frame: _Frame) -> None:
        if frame.owner is not None:
            now = os.fstat(fd)
            if (now.st_uid, now.st_gid) != frame.owner:
                try:
                    os.chown(fd, *frame.owner)
                except OSError as error:
                    if error.errno not in _NOT_GIVEN:
                        raise
                    known = "the owner" in self.missing
                    self.missing.note("the owner", "" if known else self._path(frame.name))
        if frame.acls is not None:
            for name, acl in frame.acls.items():
                self._give_attribute(fd, name, acl, frame.name)
            self._forget_acls(frame)
        if frame.mode is not None:
            os.chmod(fd, frame.mode)
        if frame.times is not None:
            os.utime(fd, ns=frame.times)

    def _path(self, name: str) -> str:
        """Return the path of an entry of the directory at the position."""
        return "/".join([*(frame.name for frame in self._frames[1:]), name])


class _Frame:
    """A directory that is open, and what it gets when it is left.

    Attributes:
        name: in the directory above.
        owner, acls, mode, times: what it had or is to have; None: nothing is to be done.
    """

    __slots__ = ("acls", "mode", "name", "owner", "times")

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner: tuple[int, int] | None = None
        self.acls: dict[str, bytes] | None = None
        self.mode: int | None = None
        self.times: tuple[int, int] | None = None


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
