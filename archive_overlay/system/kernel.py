"""Rename, flush, fork and ask for mounts in ways that the standard library lacks.

`ctypes` takes 2 to 3 ms to import, for types that nothing here uses. Its half that is written in C takes 0.5 ms. Modules import
this one only where they need it.

Source: renameat2(2), name_to_handle_at(2), syncfs(2), prctl(2), mount(2).
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    byref,
    dlopen,  # type: ignore[attr-defined,unused-ignore]
    dlsym,  # type: ignore[attr-defined,unused-ignore]
    get_errno,
)

from archive_overlay.system import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    Warn = Callable[[str], object]

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_EMPTY_PATH = 0x1000
_SET_PARENT_DEATH_SIGNAL, _GET_PARENT_DEATH_SIGNAL = 1, 2
# EXDEV comes from an overlay that cannot exchange; where a name is given it is another file system's. EPERM comes from a
# filter of system calls, or means what it says: then what is done instead fails in the same way.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV)
# Errors of a file system without hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
# Errors of a file system that cannot rename a directory onto an empty one.
_NOT_ONTO_EMPTY = (errno.EEXIST, errno.ENOTEMPTY, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP)


class _Int(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Unsigned(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "I"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _Libc:
    """The functions of the C library, looked up when they are called for the first time. Arguments are int or bytes."""

    _handle = dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # the program itself, with its libraries

    def __getattr__(self, name: str) -> Callable[..., int]:
        function: Callable[..., int] = _Function(dlsym(self._handle, name))
        setattr(self, name, function)
        return function


# What a file system knows an inode by: the length of the data in bytes, their type, the data. It is an array, because a
# ctypes.Structure imports three modules more on Python 3.14.
_LONGEST_HANDLE = 128
_Handle = _Unsigned * (2 + _LONGEST_HANDLE // 4)

_libc = _Libc()


class CannotExchangeError(OSError):
    """The file system cannot exchange two names."""


def exchange(name: str, directory: int, other_name: str, other_directory: int) -> None:
    """Exchange two entries in one step.

    Raises:
        CannotExchangeError: the file system cannot do this.
        OSError: as renameat2(2).
    """
    try:
        _renameat2(name, directory, other_name, other_directory, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            raise CannotExchangeError(error.errno, error.strerror) from error
        raise


def rename_new(
    name: str, directory: int, new_name: str, new_directory: int, warn: Warn | None = None
) -> None:
    """Rename an entry to a name that is not taken.

    Without renameat2(2), this uses link(2) for files, and makes an empty directory first for directories. If neither
    works (a mount of rclone), it looks whether the name is free, then renames: if somebody takes the name in between,
    their entry is lost.

    Args:
        name: the entry.
        directory: file descriptor of the directory it is in.
        new_name: its new name.
        new_directory: file descriptor of the directory of that.
        warn: is told if the last way was taken; None: it is not.

    Raises:
        FileExistsError: the name is taken.
        OSError: as renameat2(2).
    """
    try:
        _renameat2(name, directory, new_name, new_directory, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED or error.errno == errno.EXDEV:
            raise
        _rename_new_without_the_kernel(name, directory, new_name, new_directory, warn)


def identity(name: str, directory: int) -> str:
    """Return what tells an entry from all others on its file system, and from those that had its inode number before.

    Returns:
        The inode number, and after a dot a digest of what else the file system knows it by, if anything; "": there is
        no such entry.

    Source: name_to_handle_at(2).
    """
    try:
        inode = os.lstat(name, dir_fd=directory).st_ino
    except FileNotFoundError:
        return ""
    handle = _Handle(_LONGEST_HANDLE)
    mount = _Int()
    if _libc.name_to_handle_at(directory, os.fsencode(name), byref(handle), byref(mount), 0):
        return f"{inode}."
    return f"{inode}.{zlib.crc32(bytes(handle)[8 : 8 + handle[0]]):08x}"


def file_handle(fd: int) -> tuple[int, bytes] | None:
    """Return what a file system knows an open file by: a type and a value; None: this one has nothing of the kind.

    Args:
        fd: file descriptor; O_PATH is enough.

    Source: name_to_handle_at(2).
    """
    handle = _Handle(_LONGEST_HANDLE)
    mount = _Int()
    if _libc.name_to_handle_at(fd, b"", byref(handle), byref(mount), _EMPTY_PATH):
        return None
    return handle[1], bytes(handle)[8 : 8 + handle[0]]


def sync_file_system(fd: int) -> None:
    """Wait until everything written to a file's file system is on disk.

    Raises:
        OSError: something could not be written.
    """
    if _libc.syncfs(fd):
        _raise()


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends.

    Raises:
        OSError: the kernel cannot do this.
    """
    if _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signals.KILL, 0, 0, 0):
        _raise()


def can_end_with_parent() -> bool:
    """Return whether `end_with_parent` can be called, by asking for what this process has already."""
    now = _Int()
    if _libc.prctl(_GET_PARENT_DEATH_SIGNAL, byref(now), 0, 0, 0):
        return False
    return not _libc.prctl(_SET_PARENT_DEATH_SIGNAL, now.value, 0, 0, 0)


def may_mount_overlays() -> bool:
    """Return whether this process may ask the kernel for an overlay at all, besides having the capabilities.

    A seccomp filter or a security module may prevent it. A user namespace cannot mount in a mount namespace that is not
    its own, nor overlays at all before Linux 5.11.
    """
    nothing = b"/proc/self/status"  # not a directory, so nothing is mounted
    options = b"lowerdir=%b,upperdir=%b,workdir=%b" % (nothing, nothing, nothing)
    if not _libc.mount(b"overlay", nothing, b"overlay", 0, options):
        return True
    return get_errno() not in (errno.EPERM, errno.EACCES, errno.ENOSYS)


def is_written_by_overlay(fd: int) -> bool:
    """Return whether an overlay is mounted, in whatever namespace, that has a directory as upperdir or workdir.

    The kernel marks such directories, and refuses a second overlay on one with index=on. Only after that check does it
    refuse the overlay asked for here because its workdir is its upperdir. So nothing is mounted or written; the
    kernel's log gets a line.

    Args:
        fd: file descriptor of the directory; O_PATH is enough.

    Raises:
        OSError: the kernel does not say; without CAP_SYS_ADMIN in this user namespace it never does.

    Source: the kernel's fs/overlayfs/super.c, ovl_get_upper and ovl_get_workdir, since Linux 4.13.
    """
    path = f"/proc/self/fd/{fd}".encode()
    options = b"index=on,lowerdir=%b,upperdir=%b,workdir=%b" % (path, path, path)
    # Even if there were such an overlay, it could not be put on what is not a directory.
    try:
        if _libc.mount(b"overlay", b"/proc/self/status", b"overlay", 0, options):
            _raise()
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno not in (errno.EINVAL, errno.ENODEV):  # ENODEV: this kernel has no overlays
            raise
    return False


def _rename_new_without_the_kernel(
    name: str, directory: int, new_name: str, new_directory: int, warn: Warn | None
) -> None:
    if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
        try:
            os.link(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS or warn is None:
                raise
            _rename_to_absent(name, directory, new_name, new_directory, warn, error)
        else:
            os.unlink(name, dir_fd=directory)
        return
    # A directory can only replace an empty directory, such as one made just for this.
    os.mkdir(new_name, stat.S_IRWXU, dir_fd=new_directory)
    try:
        os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)
    except OSError as error:
        os.rmdir(new_name, dir_fd=new_directory)
        if error.errno not in _NOT_ONTO_EMPTY or warn is None:
            raise
        _rename_to_absent(name, directory, new_name, new_directory, warn, error)


def _rename_to_absent(
    name: str, directory: int, new_name: str, new_directory: int, warn: Warn, refused: OSError
) -> None:
    try:
        os.lstat(new_name, dir_fd=new_directory)
    except FileNotFoundError:
        os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)
        warn(
            f"its file system cannot give a name only if it is free ({refused.strerror}): what another program"
            " puts there at the same moment is lost"
        )
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)


def _renameat2(name: str, directory: int, other_name: str, other_directory: int, flags: int) -> None:
    if _libc.renameat2(directory, os.fsencode(name), other_directory, os.fsencode(other_name), flags):
        _raise()


def _raise() -> None:
    number = get_errno()
    raise OSError(number, os.strerror(number))
