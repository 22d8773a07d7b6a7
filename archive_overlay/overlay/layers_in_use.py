"""Which mounted overlays have a directory among their layers.

If somebody changes a layer of a mounted overlay, what its users see is undefined. The kernel does not say which
directories are lower layers. So this reads the mount tables of all namespaces that the process may look at. Other users
choose what is in their tables, but can only cause a refusal.

Source: overlayfs.rst, "Changes to underlying filesystems"; proc(5).
"""

from __future__ import annotations

import os

from archive_overlay.overlay.mount_programs import arguments_of
from archive_overlay.overlay.options import layers_of_command_line, layers_of_mount_table
from archive_overlay.system import mountinfo
from archive_overlay.system.mountinfo import MountTable
from archive_overlay.system.open_flags import LOOK, READ
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.system.mountinfo import MountedFilesystem

_ROLES = {"lowerdir": "a lower layer", "upperdir": "the upperdir", "workdir": "the workdir"}


class LayerInUse(Record):
    """A layer of a mounted overlay.

    Attributes:
        role: what it is, "a lower layer" for example.
        path: as the overlay's options have it.
        mount_point: of the overlay.
        pid: of a process in the mount namespace where that is; 0: in this one. Of a program that serves it, that.
    """

    role: str
    path: str
    mount_point: str
    pid: int = 0

    def __str__(self) -> str:
        where = f" in the mount namespace of process {self.pid}" if self.pid else ""
        return f"{self.path}, {self.role} of the overlay at {self.mount_point}{where}"


class _Place(Record):
    """The place of a directory on its file system, independent of mounts.

    Attributes:
        device: number of its file system.
        path: from the root of that, without a slash at the end.
        status: of the directory.
    """

    device: int
    path: str
    status: os.stat_result

    def overlaps(self, other: _Place) -> bool:
        """Return whether one is the other, or in it."""
        if os.path.samestat(self.status, other.status):
            return True
        if not self.device or self.device != other.device:
            return False
        one, two = f"{self.path}/", f"{other.path}/"
        return one.startswith(two) or two.startswith(one)


def layer_in_use(directory: int) -> LayerInUse | None:
    """Find a mounted overlay one of whose layers is a directory, is in it, or has it in it.

    Args:
        directory: its file descriptor.

    Returns:
        None: no overlay is known to have it.

    Raises:
        OSError: /proc is not mounted.
    """
    here = mountinfo.read()
    place = _place(directory, here)
    for layer in _layers_of_all(here):
        mounted, table, found = layer
        there = _open_place(found, table)
        # What lies in an overlay itself is no layer of it.
        if there and there.overlaps(place) and there.device != (mounted.device if mounted else 0):
            return found
    return None


def _layers_of_all(
    here: MountTable,
) -> Iterator[tuple[MountedFilesystem | None, MountTable, LayerInUse]]:
    """Yield all layers of mounted overlays, with their mount and the table of the namespace that names them."""
    seen = set()
    own = os.stat("/proc/self/ns/mnt")
    seen.add((own.st_dev, own.st_ino))
    tables = {(own.st_dev, own.st_ino): here}
    yield from _layers_of_table(here, 0)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            status = os.stat(f"/proc/{name}/ns/mnt")
            namespace = status.st_dev, status.st_ino
            if namespace not in seen:
                with open(f"/proc/{name}/mountinfo", "rb") as file:
                    tables[namespace] = MountTable(file)
                seen.add(namespace)
                yield from _layers_of_table(tables[namespace], int(name))
            with open(os.open(f"/proc/{name}/cmdline", READ), "rb") as file:
                arguments = os.fsdecode(file.read()).rstrip("\0").split("\0")
        except OSError:
            continue  # it has ended, or may not be looked at
        if "fuse-overlayfs" not in os.path.basename(arguments[0]):
            continue
        options, mount_point = arguments_of(arguments[1:])
        for role, path in layers_of_command_line(options):
            found = LayerInUse(role=_ROLES[role], path=path, mount_point=mount_point, pid=int(name))
            yield None, tables[namespace], found


def _layers_of_table(
    table: MountTable, pid: int
) -> Iterator[tuple[MountedFilesystem, MountTable, LayerInUse]]:
    for mounted in table.of_type("overlay"):
        for role, path in layers_of_mount_table(mounted.options):
            # containers/storage names its own layers from its own directory.
            whole = os.path.join(os.path.dirname(os.path.dirname(mounted.mount_point)), path)
            found = LayerInUse(role=_ROLES[role], path=whole, mount_point=mounted.mount_point, pid=pid)
            yield mounted, table, found


def _open_place(layer: LayerInUse, table: MountTable) -> _Place | None:
    """Find out where a layer is; None: it is not to be found."""
    if layer.pid and table.is_served_by_a_program(layer.path):
        return None  # its server might never answer, and no engine stacks on such a file system
    try:
        root = f"/proc/{layer.pid}/root" if layer.pid else ""
        fd = os.open(root + layer.path, LOOK & ~os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _place(fd, table)
    finally:
        os.close(fd)


def _place(fd: int, table: MountTable) -> _Place:
    status = os.fstat(fd)
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        number = next((int(line.split()[1]) for line in info if line.startswith(b"mnt_id:")), 0)
    mounted = table.numbered(number)
    path = os.readlink(f"/proc/self/fd/{fd}")
    if mounted is None or not f"{path}/".startswith(mounted.mount_point.rstrip("/") + "/"):
        return _Place(device=0, path="", status=status)
    inside = path[len(mounted.mount_point.rstrip("/")) :]
    return _Place(device=mounted.device, path=(mounted.root.rstrip("/") + inside).rstrip("/"), status=status)
