"""The runtime namespace's mounts at this moment, as the kernel lists them.

Source: proc(5), "/proc/pid/mountinfo".
"""

from __future__ import annotations

import os

from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class MountedFilesystem(Record):
    """One line of the table.

    Attributes:
        mount_point: absolute path.
        root: the part of the file system that is mounted there; "/" for all of it.
        type: "overlay", "fuse.fuse-overlayfs", "ext4", ...
        options: the file system's own options, with the kernel's octal escapes undone.
    """

    mount_point: str
    root: str
    type: str
    options: tuple[str, ...]


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
            mounted = MountedFilesystem(
                mount_point=_decoded(fields[4]),
                root=_decoded(fields[3]),
                type=_decoded(fields[separator + 1]),
                # Commas inside a value are escaped, so the bare ones separate.
                options=tuple(_decoded(option) for option in fields[separator + 3].split(b",")),
            )
            self._all.append(mounted)
            self._at[mounted.mount_point] = mounted  # the last one covers the others

    def at(self, path: str) -> MountedFilesystem | None:
        """Give the mount that is visible at a path; None if the path is no mount point.

        Args:
            path: absolute; symbolic links in it are resolved.
        """
        return self._at.get(path) or self._at.get(os.path.realpath(path))

    def of_type(self, type: str) -> list[MountedFilesystem]:
        """Give all mounts of a type, covered ones too."""
        return [mounted for mounted in self._all if mounted.type == type]


def read() -> MountTable:
    """Read the mounts of this process's namespace.

    Raises:
        OSError: /proc is not mounted.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        return MountTable(file)


def read_all() -> Iterator[MountTable]:
    """Read the mounts of all namespaces that processes are in, as far as this process may see them.

    Raises:
        OSError: /proc is not mounted.
    """
    seen = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                seen.add(namespace)
                with open(f"/proc/{pid}/mountinfo", "rb") as file:
                    yield MountTable(file)
        except OSError:
            continue  # it has ended, or is another user's


def _decoded(field: bytes) -> str:
    if b"\\" in field:
        begin, *escaped = field.split(b"\\")
        field = begin + b"".join([_unescaped(part) for part in escaped])
    return os.fsdecode(field)


def _unescaped(part: bytes) -> bytes:
    """Give what a backslash and these bytes stand for; not every file system escapes its own options."""
    digits = part[:3]
    if len(digits) < 3 or digits[0] not in b"0123" or digits.strip(b"01234567"):
        return b"\\" + part
    return bytes([int(digits, 8)]) + part[3:]
