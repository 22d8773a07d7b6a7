"""What a container can do to its mounts, as values that can be made at random, shrunk and printed.

An operation is a tuple: a name of `OPERATIONS` and its arguments. Paths are relative to the container's
root; an operation that the system refuses changes nothing, as in a container.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import stat
import struct
from typing import TYPE_CHECKING

from hypothesis import strategies

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random
    from typing import Any, Callable

    from hypothesis.strategies import SearchStrategy

    Operation = tuple[Any, ...]

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_PAGE = 4096

# A process that takes longer than so many seconds hangs.
LONGEST = 30


def run(root: os.PathLike[str], operations: Iterable[Operation]) -> None:
    """Do the operations in a process whose root directory is `root`, as a container's processes do.

    Args:
        root: the directory.
        operations: what is done, in order.

    Raises:
        AssertionError: the process ended in an unexpected way.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(LONGEST)
            os.chroot(root)
            os.chdir("/")
            for name, *arguments in operations:
                try:
                    OPERATIONS[name](*arguments)
                except OSError:
                    pass
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the container's process ended with wait status {status}"


def _open(path: str, flags: int) -> int:
    # A FIFO would make the container wait, and a device's data are not in the change set.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(None, "no file")
    return os.open(path, flags)


def _write(path: str, size: int) -> None:
    if not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    with open(_open(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
        file.write(b"%d " % size * (size // 4 + 1))
        file.truncate(size)


def _append(path: str) -> None:
    with open(_open(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
        file.write(b"appended")


def _scatter(path: str, pages: Iterable[int]) -> None:
    with open(_open(path, os.O_RDWR), "r+b") as file:
        for page in pages:
            file.seek(page * _PAGE)
            file.write(b"page %d" % page)


def _punch(path: str, page: int, count: int) -> None:
    _fallocate(path, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, page, count)


def _allocate(path: str, page: int, count: int) -> None:
    _fallocate(path, _FALLOC_FL_KEEP_SIZE, page, count)


def _fallocate(path: str, mode: int, page: int, count: int) -> None:
    with open(_open(path, os.O_RDWR), "r+b") as file:
        offset, length = ctypes.c_long(page * _PAGE), ctypes.c_long(count * _PAGE)
        _libc.fallocate(file.fileno(), mode, offset, length)


def _rmtree(path: str) -> None:
    # shutil would open a FIFO, and wait.
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)


def _recreate(path: str) -> None:
    _rmtree(path)
    os.mkdir(path)


def _become(path: str, kind: str) -> None:
    """Put something else where something is, or where nothing is."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
    if kind == "directory":
        os.mkdir(path)
    elif kind == "file":
        _write(path, 9)
    elif kind == "symlink":
        os.symlink("a", path)


def _fill(path: str) -> None:
    """Write a file, and make the directories that are missing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _write(path, 7)


def _exchange(one: str, other: str) -> None:
    _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


def _link(path: str, name: str) -> None:
    os.link(path, name, follow_symlinks=False)


def _unnamed(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_TMPFILE | os.O_RDWR)
    try:
        os.write(fd, b"named later")
        os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)
    except OSError:
        _libc.linkat(fd, b"", _AT_FDCWD, os.fsencode(path), 0x1000)
    finally:
        os.close(fd)


def _mknod(path: str, kind: str, major: int, minor: int) -> None:
    types = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "FIFO": stat.S_IFIFO}
    os.mknod(path, types[kind] | 0o640, os.makedev(major, minor))


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


def _chmod(path: str, mode: int) -> None:
    if not os.path.islink(path):
        os.chmod(path, mode)


def _chown(path: str, uid: int, gid: int) -> None:
    os.chown(path, uid, gid, follow_symlinks=False)


def _utime(path: str, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)


def _setxattr(path: str, name: str, value: bytes) -> None:
    os.setxattr(path, name, value, follow_symlinks=False)


def _removexattr(path: str, name: str) -> None:
    os.removexattr(path, name, follow_symlinks=False)


def _acl(path: str, which: str, user: int, mask: int) -> None:
    """Set an ACL: one named user more, as `setfacl -m u:USER:rw,m:MASK` does.

    Source: the kernel's include/uapi/linux/posix_acl_xattr.h.
    """
    nobody = 0xFFFFFFFF
    entries = ((0x01, 7, nobody), (0x02, 6, user), (0x04, 5, nobody), (0x10, mask, nobody), (0x20, 4, nobody))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, f"system.posix_acl_{which}", value, follow_symlinks=False)


def _chattr(path: str, flags: int) -> None:
    fd = _open(path, os.O_RDONLY) if not os.path.isdir(path) else os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags))
    finally:
        os.close(fd)


def _furnish() -> None:
    """Make a small tree with something at most of the paths that operations name."""
    for directory in ("a", "a/a", "a/a/a", "a/b", "b", "b/a"):
        os.makedirs(directory, exist_ok=True)
        _write(f"{directory}/c", len(directory) * 1000)
        os.symlink("c", f"{directory}/s")
    os.link("a/c", "b/d")
    os.link("a/a/c", "a/d")
    _write("c", 5)
    _utime("a/b", 10**18 + 1)


OPERATIONS: dict[str, Callable[..., object]] = {
    "write": _write,
    "append": _append,
    "truncate": os.truncate,
    "scatter": _scatter,
    "punch": _punch,
    "allocate": _allocate,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rmtree": _rmtree,
    "mkdir": os.mkdir,
    "recreate": _recreate,
    "become": _become,
    "fill": _fill,
    "rename": os.rename,
    "exchange": _exchange,
    "link": _link,
    "unnamed": _unnamed,
    "symlink": os.symlink,
    "mknod": _mknod,
    "socket": _socket,
    "chmod": _chmod,
    "chown": _chown,
    "utime": _utime,
    "setxattr": _setxattr,
    "removexattr": _removexattr,
    "acl": _acl,
    "chattr": _chattr,
    "furnish": _furnish,
    "remount": lambda: None,  # the caller's affair
}

# Few names, so that operations meet.
_COMMON = ("a", "b", "c", "d", "s")
_ODD = (".wh.a", ".wh..wh..opq", ".wh..opq", "\udcff\n\x1b[1m", "n" * 255, "%=", "-r", "…")
_names = strategies.sampled_from(_COMMON * 8 + _ODD)
_paths = strategies.lists(_names, min_size=1, max_size=3).map("/".join)
_ids = strategies.sampled_from((0, 1, 1000, 65534))
_capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
_values = strategies.sampled_from((b"y", b"", b"x", b"\0=\n", b"/a", b"v" * 300))
_attributes = strategies.sampled_from(
    (
        "user.a",
        "user.b=%",
        "trusted.a",
        # Made to be taken for somebody else's.
        *(f"{space}.overlay.opaque" for space in ("user", "trusted")),
        *(
            f"{space}.overlay.{key}"
            for space in ("user", "trusted")
            for key in ("redirect", "metacopy", "whiteout")
        ),
        *(f"{space}.overlay.overlay.opaque" for space in ("user", "trusted")),
        "user.fuseoverlayfs.opaque",
        "user.fuseoverlayfs.origin",
    )
)


def _operation(name: str, *arguments: SearchStrategy[Any]) -> SearchStrategy[Operation]:
    return strategies.tuples(strategies.just(name), *arguments)


_one = strategies.one_of(
    _operation("rename", _paths, _paths),
    _operation("mkdir", _paths),
    _operation("write", _paths, strategies.sampled_from((0, 1, 600, 5000, 140000))),
    _operation("unlink", _paths),
    _operation("recreate", _paths),
    _operation("rmtree", _paths),
    _operation("rmdir", _paths),
    _operation("link", _paths, _paths),
    _operation("exchange", _paths, _paths),
    _operation("chmod", _paths, strategies.sampled_from((0o644, 0o0, 0o4755, 0o2711, 0o1777, 0o6777, 0o500))),
    _operation("append", _paths),
    _operation("symlink", strategies.sampled_from(("a", "/a/b", "..", "../b/c", "nowhere")), _paths),
    _operation("chown", _paths, _ids, _ids),
    _operation(
        "utime", _paths, strategies.sampled_from((0, 1, -1, 10**18 + 1, -(10**18) - 1, 2**33 * 10**9))
    ),
    _operation("truncate", _paths, strategies.sampled_from((0, 1, 4096, 300000))),
    _operation("scatter", _paths, strategies.lists(strategies.integers(0, 60), max_size=4)),
    _operation("punch", _paths, strategies.integers(0, 60), strategies.integers(1, 20)),
    _operation("allocate", _paths, strategies.integers(0, 60), strategies.integers(1, 20)),
    _operation("unnamed", _paths),
    _operation("mknod", _paths, strategies.just("FIFO"), strategies.just(0), strategies.just(0)),
    _operation(
        "mknod",
        _paths,
        strategies.sampled_from(("character", "block")),
        strategies.sampled_from((0, 1, 300)),
        strategies.sampled_from((0, 3, 70000)),
    ),
    _operation("socket", _paths),
    _operation("setxattr", _paths, _attributes, _values),
    _operation("setxattr", _paths, strategies.just("security.capability"), strategies.just(_capability)),
    _operation("removexattr", _paths, _attributes),
    _operation(
        "acl",
        _paths,
        strategies.sampled_from(("access", "default")),
        _ids,
        strategies.sampled_from((7, 4, 0)),
    ),
    _operation("chattr", _paths, strategies.sampled_from((0x10, 0x20, 0x40, 0))),
)

_FURNISH = ("furnish",)
REMOUNT = ("remount",)


def _several(operations: SearchStrategy[Operation]) -> SearchStrategy[list[Operation]]:
    # By itself hypothesis would make short lists only.
    return strategies.one_of(
        strategies.lists(operations, max_size=6), strategies.lists(operations, min_size=12, max_size=40)
    )


def _is_a_mark(operation: Operation) -> bool:
    return operation[0] == "setxattr" and ".overlay." in operation[2]


# The lowest layer is an ordinary directory, in which an overlay's attribute would be a true one.
base = strategies.tuples(
    strategies.sampled_from(([_FURNISH], [_FURNISH], [])),
    _several(_one.filter(lambda operation: not _is_a_mark(operation))),
).map(lambda parts: [*parts[0], *parts[1]])
# What is done to a mount; the root itself is changed now and then.
changes = _several(
    strategies.one_of(
        _one,
        _one,
        _one,
        _one,
        strategies.one_of(
            strategies.just(REMOUNT),
            _operation("chmod", strategies.just("."), strategies.sampled_from((0o555, 0o1777))),
            _operation("setxattr", strategies.just("."), _attributes, _values),
            _operation("acl", strategies.just("."), strategies.just("default"), _ids, strategies.just(7)),
            _operation("utime", strategies.just("."), strategies.just(-5)),
        ),
    )
)


# What matters where one container's changes are put on another's: each operation ends one thing and begins another, at
# the places that a furnished tree has.
_PLACES = (
    "a",
    "a",
    "b",
    "b",
    "a/a",
    "a/a",
    "a/b",
    "b/a",
    "a/c",
    "a/d",
    "b/c",
    "b/d",
    "a/a/a",
    "a/a/c",
    "a/b/c",
    "c",
)
_DIRECTORIES = ("a", "a", "b", "a/a", "a/a", "a/b", "b/a", "a/a/a")
_TURNS: tuple[tuple[Any, ...], ...] = (
    *[("become", _PLACES, ("nothing", "nothing", "directory", "file", "symlink"))] * 4,
    *[("fill", tuple(f"{directory}/{name}" for directory in _DIRECTORIES for name in "abces"))] * 4,
    *[("recreate", _DIRECTORIES)] * 3,
    ("write", _PLACES, (0, 600)),
    ("rename", _PLACES, _PLACES),
    ("exchange", _PLACES, _PLACES),
    ("link", _PLACES, _PLACES),
    ("chmod", _PLACES, (0o755, 0o0, 0o500, 0o2711, 0o1777)),
    ("chown", _PLACES, (0, 1000), (0, 65534)),
    ("utime", (*_DIRECTORIES, "."), (1, 10**18 + 1)),
    ("setxattr", (*_PLACES, "."), ("user.a", "trusted.a", "trusted.overlay.opaque"), (b"y", b"")),
    ("removexattr", _PLACES, ("user.a", "trusted.a")),
    ("acl", _DIRECTORIES, ("access", "default"), (1000,), (7, 0)),
    ("mknod", _PLACES, ("FIFO",), (0,), (0,)),
    REMOUNT,
)


def turns(chance: Random) -> list[Operation]:
    """Give what a container does, at random."""
    chosen = [chance.choice(_TURNS) for _ in range(chance.choice((1, 2, 3, 4, 6, 9, 14)))]
    return [(name, *map(chance.choice, arguments)) for name, *arguments in chosen]


def furnished(chance: Random) -> list[Operation]:
    """Give what makes a lowest layer, at random."""
    return [_FURNISH, *(each for each in turns(chance) if each != REMOUNT and not _is_a_mark(each))]
