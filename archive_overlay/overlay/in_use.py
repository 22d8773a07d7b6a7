"""Whether a mounted overlay still writes into an upperdir."""

from __future__ import annotations

import os

from archive_overlay.overlay.options import upperdirs
from archive_overlay.system import kernel, mountinfo
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.overlay.mount import OverlayMount

# The bit of CAP_SYS_ADMIN. Source: capabilities(7), the kernel's include/uapi/linux/capability.h.
_MAY_MOUNT = 1 << 21


def can_ask() -> bool:
    """Return whether this process may ask what `is_mounted` asks.

    Raises:
        OSError: /proc is not mounted.
    """
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) & _MAY_MOUNT) and kernel.may_mount_overlays()
    return False


def is_mounted(overlay: OverlayMount) -> bool:
    """Return whether the kernel has an overlay mounted, in any namespace, that writes into an upperdir.

    The mount tables of other namespaces are not read: the owner of a namespace chooses the paths in its table, and so
    could claim any upperdir. The kernel goes by the inode.

    Args:
        overlay: whose upperdir.

    Raises:
        OSError: the kernel does not say, the mounts cannot be read, or the upperdir is gone.
    """
    fd = os.open(overlay.upper, READ_TOP_DIRECTORY)
    try:
        return _is_in_table(os.fstat(fd)) or kernel.is_written_by_overlay(fd)
    finally:
        os.close(fd)


def has_overlay(upper: str) -> bool:
    """Return whether the kernel has an overlay mounted that writes into a directory.

    Args:
        upper: its path.

    Raises:
        OSError: see `is_mounted`.
    """
    fd = os.open(upper, READ_TOP_DIRECTORY)
    try:
        return kernel.is_written_by_overlay(fd)
    finally:
        os.close(fd)


def is_mounted_elsewhere(upper: str) -> bool:
    """Return whether the kernel has an overlay mounted that writes into a directory, and this namespace has none.

    Args:
        upper: its path.

    Raises:
        OSError: see `is_mounted`.
    """
    return has_overlay(upper) and not _is_in_table(os.stat(upper))


def _is_in_table(status: os.stat_result) -> bool:
    """Return whether this namespace's table has such an overlay.

    The kernel's mark is that of the first overlay on an upperdir. If somebody mounted a second one and unmounted the
    first, only the table shows it.
    """
    for mounted in mountinfo.read().of_type("overlay"):
        for upper in upperdirs(mounted.options):
            if not upper.startswith("/"):
                continue  # relative to an unknown directory
            try:
                other = os.stat(upper)
            except OSError:
                continue  # not to be found, so another one; it may have vanished since the table was read
            if os.path.samestat(other, status):
                return True
    return False
