"""The runtime namespace's mounts at this moment, as the kernel lists them.

Source: proc(5), "/proc/pid/mountinfo", "/proc/pid/fdinfo/".
"""

from __future__ import annotations

import os

from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# The contents of these are the kernel's: their files query or control it, and hold no data. Some links lead to what
# processes have open. Source: /proc/filesystems, "nodev", without those that hold data or lead to such (tmpfs, ramfs,
# devtmpfs, hugetlbfs, overlay, autofs, network file systems, FUSE).
_OF_THE_KERNEL = frozenset(
    b"proc sysfs cgroup cgroup2 cpuset resctrl debugfs tracefs securityfs configfs bpf devpts mqueue nsfs pidfs pstore"
    b" efivarfs binfmt_misc selinuxfs smackfs apparmorfs fusectl nfsd rpc_pipefs binder functionfs gadgetfs xenfs"
    b" openpromfs spufs".split()
)


class Devices(Record):
    """Special file systems in the mount table, by their device numbers.

    Attributes:
        of_the_kernel: they hold no data.
        of_others: a program of another user serves them, and can claim any owner for their files.
    """

    of_the_kernel: frozenset[int]
    of_others: frozenset[int]


class MountedFilesystem(Record):
    """One line of the table.

    Attributes:
        mount_point: absolute path.
        root: the part of the file system that is mounted there; "/" for all of it.
        type: "overlay", "fuse.fuse-overlayfs", "ext4", ...
        device: number of the file system, as in `st_dev`.
        options: the file system's own options, with the kernel's octal escapes undone.
        number: the mount's id.
    """

    mount_point: str
    root: str
    type: str
    device: int
    options: tuple[str, ...]
    number: int = 0


class MountTable:
    """The mounts of a namespace, in the order in which they were made.

    Args:
        lines: of a mountinfo file.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._all: list[MountedFilesystem] = []
        self._at: dict[str, MountedFilesystem] = {}
        for line in lines:
            fields = line.rstrip(b"\n").split(b" ")
            separator = fields.index(b"-")
            major, _, minor = fields[2].partition(b":")
            mounted = MountedFilesystem(
                mount_point=_decoded(fields[4]),
                root=_decoded(fields[3]),
                type=_decoded(fields[separator + 1]),
                device=os.makedev(int(major), int(minor)),
                # Commas inside a value are escaped, so the bare ones separate.
                options=tuple(_decoded(option) for option in fields[separator + 3].split(b",")),
                number=int(fields[0]),
            )
            self._all.append(mounted)
            self._at[mounted.mount_point] = mounted  # the last one covers the others

    def at(self, path: str) -> MountedFilesystem | None:
        """Return the mount that is visible at a path; None if the path is no mount point.

        Args:
            path: absolute; symbolic links in it are resolved.
        """
        return self._at.get(path) or self._at.get(os.path.realpath(path))

    def exactly_at(self, path: str) -> MountedFilesystem | None:
        """Return the mount that is visible at a path; None if the path is no mount point.

        Args:
            path: absolute; no symbolic link in it is followed.
        """
        return self._at.get(path)

    def numbered(self, number: int) -> MountedFilesystem | None:
        """Return the mount with an id; None: there is none in this namespace."""
        return next((mounted for mounted in self._all if mounted.number == number), None)

    def below(self, path: str) -> list[str]:
        """Return the mount points below a directory.

        Args:
            path: absolute, without symbolic links.
        """
        return [mount_point for mount_point in self._at if mount_point.startswith(path.rstrip("/") + "/")]

    def is_served_by_a_program(self, path: str) -> bool:
        """Return whether what is mounted where a path leads through, nearest to its end, is a FUSE program's.

        Args:
            path: absolute; no symbolic link in it is followed.
        """
        while path not in self._at and path != "/":
            path = os.path.dirname(path)
        return path in self._at and self._at[path].type.partition(".")[0] == "fuse"

    def of_type(self, type: str) -> list[MountedFilesystem]:
        """Return all mounts of a type, covered ones too."""
        return [mounted for mounted in self._all if mounted.type == type]


def read() -> MountTable:
    """Read the mounts of this process's namespace.

    Raises:
        OSError: /proc is not mounted.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        return MountTable(file)


def read_devices() -> Devices:
    """Read which file systems of this process's namespace are the kernel's, and which are served by others.

    Raises:
        OSError: /proc is not mounted, or is that of other processes.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        return devices_of(file)


def devices_of(lines: Iterable[bytes]) -> Devices:
    """Return what `read_devices` reads.

    Args:
        lines: of a mountinfo file.
    """
    of_the_kernel, of_others = set(), set()
    for line in lines:
        mount, _, served = line.partition(b" - ")
        kind, _, rest = served.partition(b" ")
        if kind in _OF_THE_KERNEL:
            of_the_kernel.add(_device(mount))
        elif kind.startswith(b"fuse") and _is_of_another(rest):
            of_others.add(_device(mount))
    return Devices(of_the_kernel=frozenset(of_the_kernel), of_others=frozenset(of_others))


def device_below(fd: int) -> int | None:
    """Return the device number of the mount that an open file is in: on btrfs it is another one than stat(2) gives.

    Returns:
        None: this process's namespace has no such mount any more.

    Raises:
        OSError: /proc is not mounted.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        number = next((line.split()[1] for line in info if line.startswith(b"mnt_id:")), b"")
    with open("/proc/self/mountinfo", "rb") as mounts:
        return next((_device(line) for line in mounts if line.split(b" ", 1)[0] == number), None)


def _device(mount: bytes) -> int:
    major, _, minor = mount.split(b" ", 3)[2].partition(b":")
    return os.makedev(int(major), int(minor))


def _is_of_another(served: bytes) -> bool:
    """Return whether a FUSE mount is another user's; without allow_other, nobody but that user gets in."""
    options = served.split()[-1].split(b",")
    return b"allow_other" in options and not {b"user_id=0", b"user_id=%d" % os.geteuid()} & set(options)


def _decoded(field: bytes) -> str:
    if b"\\" in field:
        begin, *escaped = field.split(b"\\")
        field = begin + b"".join([_unescaped(part) for part in escaped])
    return os.fsdecode(field)


def _unescaped(part: bytes) -> bytes:
    """Return what a backslash and these bytes stand for; not every file system escapes its own options."""
    digits = part[:3]
    if len(digits) < 3 or digits[0] not in b"0123" or digits.strip(b"01234567"):
        return b"\\" + part
    return bytes([int(digits, 8)]) + part[3:]
