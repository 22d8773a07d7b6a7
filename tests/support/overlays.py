"""Real overlays, as container engines make them, on a machine with or without root.

Everything is mounted in mount namespaces of the tests' own, so that no mount outlives the run and none
is seen outside. A test looks at a mount through `Overlay.inside`, which runs a function there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import select
import shutil
import signal
import stat
import struct
import subprocess
import threading
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import hooks, tools, trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Callable, TypeVar

    T = TypeVar("T")

FUSE_OVERLAYFS = "/usr/bin/fuse-overlayfs"

_libc = ctypes.CDLL(None, use_errno=True)
# Calls by it keep the interpreter's lock.
_libc_with_lock = ctypes.PyDLL(None, use_errno=True)
_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_CLONE_VM = 0x00000100
_CLONE_FS = 0x00000200
_CLONE_FILES = 0x00000400
_CLONE_VFORK = 0x00004000
_PR_CAPBSET_DROP = 24
CAP_SYS_ADMIN = 21
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
# How many bytes of stack a thread has by default.
_STACK = 8 << 20
# The numbers of system calls younger than 2019 are the same on all architectures but one.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000


@dataclass(frozen=True)
class Flavour:
    """A way in which an engine mounts an overlay.

    Attributes:
        name: as it shows in the names of tests.
        program: the executable that serves the mount; None: the kernel does.
        rootless: whether the mount is made in a user namespace.
        options: mount options besides the layers and the workdir.
    """

    name: str
    program: str | None = None
    rootless: bool = False
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def bookkeeping(self) -> tuple[str, ...]:
        """The prefixes of the attributes by which the overlay keeps its books in an upperdir."""
        if self.program:
            return ("user.fuseoverlayfs.", "user.overlay.", "trusted.overlay.")
        return ("user.overlay.",) if "userxattr" in self.options else ("trusted.overlay.",)

    @property
    def standing_alone(self) -> Flavour:
        """The same without redirects and data elsewhere: archives have neither, and must not need them."""
        if self.program or "userxattr" in self.options:
            return self
        return replace(self, options=("redirect_dir=nofollow", "metacopy=off"))


NATIVE = Flavour("native")
NATIVE_ROOTLESS = Flavour("native-rootless", rootless=True, options=("userxattr",))
FUSE = Flavour("fuse", program=FUSE_OVERLAYFS)
FUSE_ROOTLESS = Flavour("fuse-rootless", program=FUSE_OVERLAYFS, rootless=True)
FLAVOURS = (NATIVE, NATIVE_ROOTLESS, FUSE, FUSE_ROOTLESS)


class Namespace:
    """A mount namespace, with a user namespace around it or without, as long as it is open.

    Args:
        rootless: whether it has a user namespace. For root, its ids up to 65535 are those outside; an
            ordinary user has only an id 0 in it, which is the user.
    """

    def __init__(self, *, rootless: bool) -> None:
        # A run of the hook in here is forked from a process outside.
        hooks.keep_warm()
        self.rootless = rootless
        # How many users and groups there are, from 0 on.
        self.owners = 1 if rootless and os.geteuid() != 0 else 65536
        kinds = ["--user", "--mount"] if rootless else ["--mount"]
        # The namespace lives as long as a process is in it: this one waits for its stdin to close.
        self._holder = subprocess.Popen(
            ["unshare", *kinds, "--propagation", "private", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdin
        assert self._holder.stdout
        self._holder.stdin.write(b"\n")
        self._holder.stdin.flush()
        if self._holder.stdout.read(1) != b"\n":
            self.close()
            tools.cannot_run(f"unshare {' '.join(kinds)} is not allowed")
        if rootless:
            self._map_ids()

    @property
    def path(self) -> str:
        """The file by which another process enters its mounts."""
        return f"/proc/{self._holder.pid}/ns/mnt"

    @property
    def root(self) -> str:
        """The directory by which another process reaches its files."""
        return f"/proc/{self._holder.pid}/root"

    def inside(self, function: Callable[[], T]) -> T:
        """Run a function in this namespace.

        Args:
            function: called without arguments. What it changes in the memory of this process stays, and the files
                that it opens are open here, too.

        Raises:
            AssertionError: the function raised; the message is its traceback.
        """

        def told() -> T:
            try:
                return function()
            except Exception:
                raise AssertionError(f"inside the namespace:\n{traceback.format_exc()}") from None

        if self.rootless:
            return _beside(self._enter, told)
        if threading.get_native_id() != os.getpid():
            return self.apart(function)
        with _visit(self.path):
            return told()

    def apart(self, function: Callable[[], T]) -> T:
        """Run a function in a process of its own in this namespace; see `inside`.

        Args:
            function: what it returns has to be picklable, and what it changes in the memory of this process is lost.
        """
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                self._enter()
                answer = pickle.dumps((function(), None))
            except BaseException:
                answer = pickle.dumps((None, traceback.format_exc()))
            with open(writer, "wb") as pipe:
                pipe.write(answer)
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert answer, f"the process inside ended with wait status {status}"
        value: T
        value, failure = pickle.loads(answer)
        if failure:
            raise AssertionError(f"inside the namespace:\n{failure}")
        return value

    def close(self) -> None:
        """Let the namespace go, and with it all that is mounted in it."""
        for pipe in (self._holder.stdin, self._holder.stdout):
            assert pipe
            pipe.close()
        self._holder.wait()

    def _enter(self) -> None:
        kinds = (
            (("user", _CLONE_NEWUSER), ("mnt", _CLONE_NEWNS)) if self.rootless else (("mnt", _CLONE_NEWNS),)
        )
        fds = [(os.open(f"/proc/{self._holder.pid}/ns/{name}", os.O_RDONLY), kind) for name, kind in kinds]
        for fd, kind in fds:
            enter(fd, kind)
            os.close(fd)
        os.chdir("/")
        os.umask(0o022)

    def _map_ids(self) -> None:
        directory = Path(f"/proc/{self._holder.pid}")
        if os.geteuid() == 0:
            maps = "0 0 65536", "0 0 65536"
        else:
            (directory / "setgroups").write_text("deny")
            maps = f"0 {os.geteuid()} 1", f"0 {os.getegid()} 1"
        (directory / "uid_map").write_text(maps[0])
        (directory / "gid_map").write_text(maps[1])


@contextmanager
def _visit(path: str) -> Iterator[None]:
    """Let this thread, the only one of its process that counts, be in another mount namespace for a while.

    A process that is forked from a test costs a hundred times as much.
    """
    # The other threads keep the working directory and the umask that they have, and thus do not forbid it.
    _check(_libc.unshare(_CLONE_FS), "unshare")
    before = os.getcwd()
    here, there = (os.open(each, os.O_RDONLY | os.O_CLOEXEC) for each in ("/proc/self/ns/mnt", path))
    umask = os.umask(0o022)
    try:
        enter(there, _CLONE_NEWNS)
        os.chdir("/")
        yield
    finally:
        enter(here, _CLONE_NEWNS)
        os.chdir(before)
        os.umask(umask)
        os.close(here)
        os.close(there)


def _beside(enter: Callable[[], None], function: Callable[[], T]) -> T:
    """Run a function in a process that has nothing of its own but its namespaces, and wait for it.

    Only a process of one thread can enter a user namespace, and nobody comes back from one. A copy of this process would
    do, but costs as much time as this process has memory.

    Args:
        enter: called first: goes where the function is to run.
        function: it can do what it could do here, for memory and files are those of this process, and this thread
            waits meanwhile: vfork(2) with a stack. What kills it leaves an interpreter that cannot go on.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run(_: int | None) -> int:
        try:
            enter()
            done.append(function())
        except BaseException as error:
            failed.append(error)
        return 0

    with mmap.mmap(-1, _STACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as stack:
        begin = ctypes.c_char.from_buffer(stack)
        entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(run)
        top = ctypes.c_void_p(ctypes.addressof(begin) + _STACK)
        pid = _libc_with_lock.clone(
            entry, top, _CLONE_VM | _CLONE_VFORK | _CLONE_FILES | signal.SIGCHLD, None
        )
        del begin
    _check(min(pid, 0), "clone")
    os.waitpid(pid, 0)
    if failed:
        raise failed[0]
    return done[0]


class Overlay:
    """An overlay with its layers, first under a container, then saved and stacked again.

    Args:
        flavour: how it is mounted.
        directory: an empty directory of its own, whose file system can hold an upperdir.
        namespace: where it is mounted.
    """

    def __init__(self, flavour: Flavour, directory: Path, namespace: Namespace) -> None:
        self.flavour = flavour
        self.namespace = namespace
        self.inside = namespace.inside
        self.directory = directory
        self.upper = directory / "upper"
        self.work = directory / "work"
        self.merged = directory / "merge"
        self.lowers: list[Path] = []
        self.program: str | None = flavour.program
        self._served_by: int | None = None
        for made in (self.upper, self.work, self.merged):
            made.mkdir()

    def layer(self, function: Callable[[Path], object], flavour: Flavour | None = None) -> None:
        """Put one more lower layer on top of those there are.

        The first is an ordinary directory. Those after it are upperdirs of a mount over the ones below,
        so that their whiteouts and opaque directories are the file system's own.

        Args:
            function: called with the directory to change, inside the namespace.
            flavour: how the layers below are mounted; as the overlay by default.
        """
        flavour = flavour or self.flavour
        made = self.directory / f"lower{len(self.lowers)}"
        made.mkdir()
        if self.lowers:
            with self._temporary_work() as work:
                options = self._layers(flavour, lowers=self.lowers, upper=made, work=work)
                with self._mounted(flavour, options):
                    self.inside(lambda: function(self.merged))
        else:
            self.inside(lambda: function(made))
        self.lowers.insert(0, made)

    def change(self, function: Callable[[Path], object], *, again: bool = False) -> None:
        """Run a function on the merged directory, as a container would, and unmount it.

        An overlay that a process serves stays mounted, as it does until the hooks have run.

        Args:
            function: called with the merged directory, inside the namespace.
            again: whether it is to be mounted once more, although a process serves it.
        """
        if again or not self._served_by:
            self.mount()
        self.inside(lambda: function(self.merged))
        if not self.flavour.program:
            self.unmount()

    def mount(self) -> None:
        """Mount the overlay at `merged`."""
        if not self.lowers:
            self.layer(lambda _: None)
        options = self._layers(self.flavour, lowers=self.lowers, upper=self.upper, work=self.work)
        self._served_by = self._mount(self.flavour, options)

    def unmount(self) -> None:
        """Unmount the overlay, and wait for the process that served it."""
        self._unmount(self._served_by)
        self._served_by = None

    def close(self) -> None:
        """Unmount what is mounted, and delete all layers."""
        if self._served_by:
            self.unmount()
        self.inside(lambda: detach(self.merged))
        self.inside(lambda: remove(self.directory))
        if self.directory.exists():
            remove(self.directory)

    def spec_mount(self, destination: str = "/data") -> dict[str, Any]:
        """Give the mount as podman writes it into the spec."""
        if self.flavour.program:
            options = ["bind", "slave"]
            return {
                "destination": destination,
                "type": "bind",
                "source": str(self.merged),
                "options": options,
            }
        return hooks.overlay_mount(
            destination,
            upper=self.upper,
            lowers=self.lowers,
            work=self.work,
            userxattr="userxattr" in self.flavour.options,
        )

    @property
    def is_served(self) -> bool:
        """Whether a process serves the overlay at this moment."""
        return self._served_by is not None

    @property
    def kernel_names_the_server(self) -> bool:
        """Whether the kernel says which mount the process that serves the overlay serves: Linux 6.18 does."""
        files = Path(f"/proc/{self._served_by}/fdinfo").iterdir()
        return any(b"fuse_connection" in file.read_bytes() for file in files)

    def change_set(self) -> set[bytes]:
        """Give the names that the upperdir holds, whiteouts excepted."""
        return self.inside(lambda: trees.names(self.upper))

    def view(self) -> trees.View:
        """Give the view of a fresh mount: what the container left, as DESIGN.md's oracle has it."""
        return self.whole_view().linked_among(self.change_set())

    def whole_view(self) -> trees.View:
        """Give the view of a fresh mount with the links to what is not in the change set, too."""
        layers = self._layers(self.flavour, lowers=self.lowers, upper=self.upper, work=self.work)
        return self._view(self.flavour, layers)

    def restacked(self, archive: Path, flavour: Flavour | None = None) -> trees.View:
        """Give the view of a directory stacked on the same lower layers.

        Args:
            archive: what was saved, as a directory.
            flavour: how to mount it; by default as the overlay was, as far as an archive has to be.
        """
        flavour = flavour or self.flavour.standing_alone
        return self.whole_restacked(archive, flavour).linked_among(self.change_set())

    def whole_restacked(self, archive: Path, flavour: Flavour) -> trees.View:
        """Give the view of `restacked` with all its links."""
        return self._view(flavour, self._layers(flavour, lowers=[archive, *self.lowers]))

    def _view(self, flavour: Flavour, layers: Sequence[str]) -> trees.View:
        if self._served_by:
            self.unmount()
        with self._mounted(flavour, layers):
            return self.inside(lambda: trees.view(self.merged))

    def _layers(
        self,
        flavour: Flavour,
        *,
        lowers: Sequence[Path],
        upper: Path | None = None,
        work: Path | None = None,
    ) -> list[str]:
        options = ["lowerdir=" + ":".join(escape_lower(lower) for lower in lowers)]
        if upper and work:
            options += [f"upperdir={escape(upper)}", f"workdir={escape(work)}"]
        return [*options, *flavour.options]

    @contextmanager
    def _mounted(self, flavour: Flavour, options: Sequence[str]) -> Iterator[None]:
        process = self._mount(flavour, options)
        try:
            yield
        finally:
            self._unmount(process)

    def _mount(self, flavour: Flavour, options: Sequence[str]) -> int | None:
        if not flavour.program:
            self.inside(lambda: mount_overlay(self.merged, options))
            return None
        program = self.program or flavour.program
        joined = ",".join([*options, "private"])
        done = self.inside(
            lambda: subprocess.run(
                [program, "-o", joined, self.merged], capture_output=True, env={}, check=False
            )
        )
        assert done.returncode == 0, done.stderr
        # The program goes to the background by itself once the mount is there.
        return _process_with_argument(str(self.merged))

    def _unmount(self, process: int | None) -> None:
        watch = os.pidfd_open(process) if process else None
        self.inside(lambda: unmount(self.merged))
        if watch is not None:
            if not select.select([watch], [], [], 30)[0]:
                signal.pidfd_send_signal(watch, signal.SIGKILL)
                select.select([watch], [], [])
            os.close(watch)

    @contextmanager
    def _temporary_work(self) -> Iterator[Path]:
        work = self.directory / "layer-work"
        work.mkdir()
        yield work
        self.inside(lambda: remove(work))


def enter(fd: int, kind: int = 0) -> None:
    """Enter a namespace.

    Args:
        fd: file descriptor of the namespace.
        kind: what it has to be; 0: anything.
    """
    _check(_libc.setns(fd, kind), "setns")


def escape(path: Path) -> str:
    """Write a path for an overlay's mount option."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,")


def escape_lower(path: Path) -> str:
    """Write a path as one of those in an overlay's lowerdir option."""
    return escape(path).replace(":", "\\:")


def mount_overlay(target: Path, options: Sequence[str]) -> None:
    """Mount the kernel's overlayfs; `options` are escaped already."""
    joined = os.fsencode(",".join(options))
    _check(
        _libc.mount(b"overlay", os.fsencode(target), b"overlay", 0, joined),
        f"mount overlay at {target} with {joined!r}",
    )


def configure_overlay(target: Path, options: Sequence[tuple[str, str | Path]]) -> None:
    """Mount the kernel's overlayfs by fsconfig(2).

    Args:
        target: where.
        options: names and values; a Path is given as a file descriptor (Linux 6.13).
    """
    context = _syscall(_FSOPEN, b"overlay", 0)
    try:
        for name, value in options:
            if isinstance(value, Path):
                fd = os.open(value, os.O_PATH)
                try:
                    _syscall(_FSCONFIG, context, _FSCONFIG_SET_FD, name.encode(), None, fd)
                finally:
                    os.close(fd)
            else:
                _syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, name.encode(), os.fsencode(value), 0)
        _syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        mount = _syscall(_FSMOUNT, context, 0, 0)
    finally:
        os.close(context)
    try:
        _syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(mount)


def mount_tmpfs(target: Path, options: str) -> None:
    """Mount a tmpfs: a small disk that can be full."""
    _check(_libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, options.encode()), "mount tmpfs")


def mount_ramfs(target: Path) -> None:
    """Mount a file system that takes no extended attributes."""
    _check(_libc.mount(b"ramfs", os.fsencode(target), b"ramfs", 0, None), "mount ramfs")


def make_read_only(target: Path) -> None:
    """Let a mounted disk take no more writes."""
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY
    _check(_libc.mount(None, os.fsencode(target), None, flags, None), f"remount {target}")


def bind(source: Path, target: Path) -> None:
    """Bind a directory to another place."""
    _check(
        _libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None),
        f"bind {source} to {target}",
    )


def bind_id_mapped(source: Path, target: Path, ids: Sequence[tuple[int, int, int]]) -> None:
    """Bind a directory to another place where what is in it belongs to others.

    Args:
        ids: ranges of users, and of groups as well: the first on disk, the first that is shown, how many.
    """
    user_namespace = _user_namespace(ids)
    try:
        mount = _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE)
        try:
            attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
            _syscall(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, len(attributes))
            _syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(mount)
    finally:
        os.close(user_namespace)


def _user_namespace(ids: Sequence[tuple[int, int, int]]) -> int:
    """Give a file descriptor of a user namespace in which ids of one kind are others outside."""
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdin.write(b"\n")
        assert holder.stdout.read(1) == b"\n"
        text = "\n".join(" ".join(map(str, each)) for each in ids)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text(text)
        return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)


def _syscall(number: int, *arguments: bytes | int | None) -> int:
    result: int = _libc.syscall(number, *arguments)
    _check(0 if result >= 0 else result, f"system call {number}")
    return result


def unmount(target: Path) -> None:
    """Unmount what is mounted last at a directory."""
    _check(_libc.umount2(os.fsencode(target), 0), f"unmount {target}")


def new_directory(prefix: str, parent: Path) -> Path:
    """Make a directory with a name of its own, one that podman pulls from: the hook says so where it is not."""
    made = parent / f"{prefix}{os.urandom(6).hex()}"
    made.mkdir(mode=0o700)
    return made


def remove(tree: Path) -> None:
    """Delete a tree that a container wrote, whatever its modes and its depth."""
    try:
        shutil.rmtree(tree)
    except (OSError, RecursionError):
        # Programs can do more, and cost ten times as much.
        if tree.exists():
            subprocess.run(["chmod", "-R", "u+rwx", tree], check=False, capture_output=True)
            subprocess.run(["rm", "-rf", tree], check=False, capture_output=True)


def holds_upperdirs(directory: Path) -> bool:
    """Say whether the file system takes what an upperdir and an archive of it are made of."""
    probe = directory / "probe"
    try:
        os.mknod(probe, stat.S_IFCHR, os.makedev(0, 0))
        probe.unlink()
        probe.touch()
        os.setxattr(probe, "user.probe", b"")
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def need(flavour: Flavour) -> None:
    """Let the calling test run only where overlays of this flavour can be had."""
    tools.need("unshare")
    if not flavour.rootless:
        tools.need_root()
    if flavour.program:
        tools.need(flavour.program)
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            tools.cannot_run("/dev/fuse is not open to this user")


def copy_of_program(flavour: Flavour, directory: Path) -> Path:
    """Copy the program that serves a flavour, as something that may be deleted while it runs."""
    assert flavour.program
    return Path(shutil.copy(flavour.program, directory))


def _process_with_argument(argument: str) -> int:
    # It has just begun, so it is among the last ones.
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in arguments and pid != os.getpid():
            return pid
    raise AssertionError(f"no process serves {argument}")


def give_up_privilege(number: int) -> None:
    """Have the program that this process starts do without a capability that root has."""
    _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "drop a capability")


def leave_users() -> None:
    """Go into a new user namespace, and stay with the mounts of the old one, where this process may mount nothing then."""
    _check(_libc.unshare(_CLONE_NEWUSER), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        Path("/proc/self", name).write_text(text)


def leave_mounts() -> None:
    """Go into a new mount namespace, with copies of all mounts."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "make all mounts private")


def detach(target: Path) -> None:
    """Unmount all that is mounted at a directory, in use or not."""
    while _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:
        pass


def _check(result: int, action: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{action}: {os.strerror(number)}")
