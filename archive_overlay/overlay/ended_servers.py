"""Find the upperdir of an overlay whose FUSE process has ended, for example because it was killed.

The options on the command line are gone. So the upperdir is only looked for where the engine itself put it, in its own
directories, and its own attributes say what the options were:

    BUNDLE/overlay/NUMBER/{merge,upper,work}    podman's image mounts and volumes; the mount point is `merge`
    STORE/overlay/LAYER/{merged,diff,work}      a container's root file system; see `overlay/store`

Source: containers/common, pkg/overlay; podman 4.3 and 5.4; fuse-overlayfs 1.10, as measured.
"""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.overlay import dialect, store
from archive_overlay.overlay.mount import OverlayMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.system.mountinfo import MountedFilesystem

# What the kernel answers for whoever served a mount.
_ENDED = (errno.ENOTCONN, errno.ECONNABORTED)


def has_ended(mounted: MountedFilesystem, mount_program: str) -> bool:
    """Return whether a mount was served by fuse-overlayfs, and is not any more.

    Args:
        mounted: a FUSE mount of this namespace.
        mount_program: path of the executable that serves overlays.
    """
    if mounted.type not in ("fuse.fuse-overlayfs", f"fuse.{os.path.basename(mount_program)}"):
        return False
    try:
        # The kernel may cache the status of files, but always asks for that of the file system.
        os.statvfs(mounted.mount_point)
    except OSError as error:
        return error.errno in _ENDED
    return False


def upper_in_bundle(mount_point: str, bundle: str) -> str:
    """Return the upperdir of an overlay that podman mounted in a container's bundle; "" if it is none of those.

    Args:
        mount_point: absolute path, without symbolic links.
        bundle: the container's, as the runtime names it.
    """
    directory, name = os.path.split(mount_point)
    above = os.path.dirname(directory)
    containers, _ = store.container_in_store(bundle)
    try:
        if name != "merge" or not containers or not os.path.samefile(above, f"{bundle}/overlay"):
            return ""
        # Nobody else can reach what is in there.
        store.check_private(containers)
        for path in (above, directory, f"{directory}/upper", f"{directory}/work"):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                return ""
    except (OSError, store.UnknownError):
        return ""
    return f"{directory}/upper"


def overlay_on(upper: str, lowers: Sequence[str] = ()) -> OverlayMount:
    """Return the overlay that fuse-overlayfs had on an upperdir.

    It gives the upperdir itself the attribute that has owners and modes, if its option xattr_permissions is on.

    Args:
        upper: absolute path.
        lowers: its lowerdirs, as far as they are known.

    Raises:
        OSError: the upperdir cannot be read.
    """
    names = os.listxattr(upper)
    # In user.fuseoverlayfs no container can make one. In security.fuseoverlayfs a privileged one can.
    kinds = [
        kind
        for kind in (dialect.FUSE_OVERLAYFS_WITH_OWNERS[value] for value in ("2", "1"))
        if kind.owner_attribute in names
    ]
    return OverlayMount(
        upper=upper,
        lowers=tuple(lowers),
        dialect=kinds[0] if kinds else dialect.FUSE_OVERLAYFS_WITHOUT_OWNERS,
    )
