"""Overlays that a process serves in user space: only its command line has their options.

A container can run a program with any name and any command line. So a process is believed only if the kernel confirms
what no container can fake: see `overlay_at`.

Source: proc(5); namespaces(7); fuse(4); fuse-overlayfs(1); the kernel's fs/fuse/dev.c for `fuse_connection`.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.options import from_command_line
from archive_overlay.system.mountinfo import MountTable
from archive_overlay.system.open_flags import READ, READ_TOP_DIRECTORY
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.system.mountinfo import MountedFilesystem

# The number of /dev/fuse. Source: the kernel's Documentation/admin-guide/devices.txt.
_FUSE_DEVICE = os.makedev(10, 229)

# What `_fuse_connection` gives for no device, and for a kernel that does not say whose it is.
_NONE = -1
_UNKNOWN = -2

# What the kernel appends to the name of a program whose file was replaced by a package upgrade.
_DELETED = " (deleted)"


def overlay_at(mounted: MountedFilesystem, mount_program: str) -> OverlayMount | None:
    """Read the overlay behind a FUSE mount from the command line of the process that serves it.

    A process is believed if all of this holds:

    - It runs as the hook's user, in the hook's user and PID namespace, and its root directory is the hook's, by device and
      inode: a container's is another one.
    - It is in the hook's mount namespace; or the kernel says that it serves this mount; or, before Linux 6.18, its mount
      namespace has this very file system at this mount point. podman runs hooks of containers with a user namespace in a
      copy of the mount namespace in which it started the process.
    - Its executable is the file, by device and inode, that `mount_program` names here. If a package upgrade has
      replaced that file, it was started from that path.
    - It holds an open FUSE device. Where the kernel says whose connection that is (Linux 6.18), it is this mount's.
    - Its command line names this mount point, and an upperdir that is the same directory, by device and inode, in its
      mount namespace and here.

    Args:
        mounted: a mount of this namespace.
        mount_program: path of the executable.

    Returns:
        None: the mount is not FUSE's, or no such process serves it.

    Raises:
        ArchiveError: its options name no upperdir, or two processes name different ones and the kernel does not say
            which of them serves the mount.
    """
    if not _is_fuse(mounted):
        return None
    program = _Program(mount_program)
    here = _Namespaces()
    servers: list[_Server] = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            server = _server(int(pid), mounted, program, here)
            if server:
                servers.append(server)
    # If two processes claim one mount point, the kernel's word counts: the other is left over from an earlier mount.
    servers = [server for server in servers if server.is_certain] or servers
    if not servers:
        return None
    if any(server.options != servers[0].options for server in servers):
        pids = " and ".join(str(server.pid) for server in servers)
        raise ArchiveError(
            f"the processes {pids} both claim to serve {mounted.mount_point}, with different options",
            hint="end the one that is left over from an earlier mount",
        )
    overlay = _overlay(servers[0].options, mounted)
    if all(server.lowers_are_here for server in servers):
        return overlay
    return overlay.with_lowers(
        (), unknown=f"process {servers[0].pid} names them, in another mount namespace where they are others"
    )


def server_not_believed(mounted: MountedFilesystem, mount_program: str) -> str:
    """Describe what serves a FUSE mount behind which no overlay was found, for a message.

    Args:
        mounted: a mount of this namespace.
        mount_program: path of the executable that is believed.

    Returns:
        "" if the mount is not the hook's user's.
    """
    if not _is_fuse(mounted):
        return ""
    program = _Program(mount_program)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            process = os.open(f"/proc/{pid}", READ_TOP_DIRECTORY)
        except OSError:
            continue
        try:
            if _fuse_connection(process) == mounted.device:
                told = f"{os.readlink('exe', dir_fd=process)} (process {pid}) serves it"
                if program.is_that_of(process):
                    told += ", and is not believed: it has another namespace, user or root directory"
                return told
        except OSError:
            continue  # it has ended, or is another user's
        finally:
            os.close(process)
    # Before Linux 6.18 the kernel does not name the process.
    return f"something that calls itself {mounted.type.partition('.')[2] or 'nothing'} serves it"


class _Server(Record):
    """A process that is believed.

    Attributes:
        pid: its id.
        options: on its command line.
        lowers_are_here: whether the lowerdirs that it names mean the same in its mount namespace and here.
        is_certain: whether the kernel says that it serves the mount.
    """

    pid: int
    options: tuple[str, ...]
    lowers_are_here: bool
    is_certain: bool


class _Program:
    """The executable that is to be believed, as this namespace names it."""

    def __init__(self, path: str) -> None:
        self._paths = {path, os.path.realpath(path)}
        self._status: os.stat_result | None = None
        try:
            self._status = os.stat(path)
        except OSError:
            pass  # it was deleted while it runs

    def is_that_of(self, process: int) -> bool:
        """Return whether a process runs it; its mount namespace has been judged already."""
        if self._status and os.path.samestat(self._status, os.stat("exe", dir_fd=process)):
            return True
        path = os.readlink("exe", dir_fd=process)
        return (
            path.endswith(_DELETED)
            and path[: -len(_DELETED)] in self._paths
            and not os.path.lexists(path)  # the file's name itself ends in this
        )


class _Namespaces:
    """The namespaces of the hook."""

    def __init__(self) -> None:
        self._own = {kind: os.stat(f"/proc/self/ns/{kind}") for kind in ("mnt", "user", "pid")}

    def own_mounts(self, process: int) -> bool:
        """Return whether a process is in the hook's mount namespace."""
        return os.path.samestat(os.stat("ns/mnt", dir_fd=process), self._own["mnt"])

    def hold(self, process: int) -> bool:
        """Return whether a process is in those of users and of processes, and has the hook's root directory."""
        for kind in ("user", "pid"):
            if not os.path.samestat(os.stat(f"ns/{kind}", dir_fd=process), self._own[kind]):
                return False
        # A process in a container, or in a chroot, means other files by the same paths.
        return os.path.samestat(os.stat("root", dir_fd=process), os.stat("/"))


def _server(pid: int, mounted: MountedFilesystem, program: _Program, here: _Namespaces) -> _Server | None:
    """Judge a process; None: it does not serve the mount, or is not believed."""
    try:
        # Everything read through this descriptor belongs to one process, even if another one gets its id.
        process = os.open(f"/proc/{pid}", READ_TOP_DIRECTORY)
    except OSError:
        return None
    try:
        if not _is_own(process) or not here.hold(process):
            return None
        if not program.is_that_of(process):
            return None
        arguments = os.fsdecode(_read("cmdline", process)).rstrip("\0").split("\0")
        options = _options_for(arguments[1:], mounted.mount_point)
        if options is None:
            return None
        connection = _fuse_connection(process)
        if connection not in (_UNKNOWN, mounted.device):
            return None
        lowers_are_here = True
        if not here.own_mounts(process):
            if connection == _UNKNOWN and not _has_mount(process, mounted):
                return None
            overlay = _overlay(options, mounted)
            if not _is_here(overlay.upper, process):
                return None
            # The engine may have detached them since, in both.
            lowers_are_here = all(_is_here(lower, process) for lower in overlay.lowers)
        return _Server(
            pid=pid,
            options=options,
            lowers_are_here=lowers_are_here,
            is_certain=connection == mounted.device,
        )
    except OSError:
        return None  # it has ended, or is another user's
    finally:
        os.close(process)


def _is_own(process: int) -> bool:
    """Say whether a process is the hook's user's by all of its ids; a set-user-ID program's real user is its caller."""
    for line in _read("status", process).splitlines():
        if line.startswith(b"Uid:"):
            return {int(number) for number in line.split()[1:]} == {os.geteuid()}
    return False


def _overlay(options: Sequence[str], mounted: MountedFilesystem) -> OverlayMount:
    return from_command_line(options, f"the mount at {mounted.mount_point}")


def _fuse_connection(process: int) -> int:
    """Return the device number of the file system that a process serves."""
    directory = os.open("fd", READ_TOP_DIRECTORY, dir_fd=process)
    try:
        numbers = sorted(os.listdir(directory), key=int)
    finally:
        os.close(directory)
    for fd in numbers:
        try:
            if os.stat(f"fd/{fd}", dir_fd=process).st_rdev != _FUSE_DEVICE:
                continue
            said = _read(f"fdinfo/{fd}", process)
        except FileNotFoundError:
            continue  # closed meanwhile
        for line in said.splitlines():
            name, _, number = line.partition(b":")
            if name == b"fuse_connection":
                # The kernel's own form: 12 bits of major number, 20 of minor.
                return os.makedev(int(number) >> 20, int(number) & 0xFFFFF)
        return _UNKNOWN
    return _NONE


def _is_here(path: str, process: int) -> bool:
    """Return whether a path leads to the same directory in a process's mount namespace and here."""
    if not path.startswith("/"):
        return False
    try:
        return os.path.samestat(os.stat(path), os.stat(f"root{path}", dir_fd=process))
    except FileNotFoundError:
        return False


def _has_mount(process: int, mounted: MountedFilesystem) -> bool:
    """Return whether a process's mount namespace has the same file system, by its number, at the same mount point."""
    there = MountTable(_read("mountinfo", process).splitlines()).exactly_at(mounted.mount_point)
    return there is not None and (there.device, there.root) == (mounted.device, mounted.root)


def _is_fuse(mounted: MountedFilesystem) -> bool:
    """Say whether a mount is served in user space, for the hook's user. What follows "fuse." is the server's choice."""
    return (
        mounted.root == "/"
        and mounted.type.partition(".")[0] == "fuse"
        and f"user_id={os.geteuid()}" in mounted.options
    )


def _read(name: str, process: int) -> bytes:
    with open(os.open(name, READ, dir_fd=process), "rb") as file:
        return file.read()


def _options_for(arguments: Sequence[str], mount_point: str) -> tuple[str, ...] | None:
    options, where = arguments_of(arguments)
    if not where or mount_point not in (os.path.normpath(where), os.path.realpath(where)):
        return None
    return options


def arguments_of(arguments: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Read a command line of fuse-overlayfs.

    Args:
        arguments: without the program's name.

    Returns:
        The mount options, and the mount point; "" if there is none.
    """
    options: list[str] = []
    where = ""
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            options.append(next(rest, ""))
        elif argument.startswith("-o"):
            options.append(argument[2:])
        elif not argument.startswith("-"):
            where = argument
    return tuple(options), where
