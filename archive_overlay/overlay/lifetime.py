"""Find out how long an upperdir lasts: whether it may be renamed, or the next container will need it.

An engine makes upperdirs for one start of a container and deletes them afterwards. It keeps them with everything else
of the container:

    BUNDLE/overlay/N/upper                  podman, for volumes with :O and for image mounts
    BUNDLE/...                              whoever runs runc or crun on a bundle of his own
    STORE/overlay-containers/ID/userdata    where that bundle is; buildah has its overlays there, and another bundle
    STORE/overlay/LAYER/diff                containers/storage, for root file systems; Docker has overlay2/LAYER/diff
    ROOT/io.containerd.snapshotter.v1.*/snapshots/N/fs    containerd, for root file systems

Whatever is elsewhere, somebody else made. With `-v DIR:/x:O,upperdir=U,workdir=W` podman mounts at BUNDLE/overlay/N/merge
as usual, but writes into U, which it never deletes. What other programs made is UNKNOWN: they
may delete it or keep it.

Only the engine can give an upperdir such a path: it is resolved, without mounts on the way, and the directories belong
to the engine's user. A user who names one of them as an upperdir gives it up.

Source: MountWithOptions in pkg/overlay of containers/buildah; drivers/overlay of containers/storage; experiments.
"""

from __future__ import annotations

import os

from archive_overlay.overlay import store
from archive_overlay.overlay.mount import DELETED, KEPT, UNKNOWN
from archive_overlay.system import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.mount import Mount

_SNAPSHOTTER = "io.containerd.snapshotter.v1."


def lifetime(upper: str, mount_point: str, mounts: Sequence[Mount], *, root: str, bundle: str) -> str:
    """Return what becomes of a container's upperdir if the hook leaves it alone.

    Args:
        upper: absolute path.
        mount_point: where the container has the overlay, normalised.
        mounts: the spec's.
        root: absolute path of the container's root file system; "" where the spec has none.
        bundle: absolute path of its bundle; "" if it has none.

    Returns:
        DELETED, KEPT, or in all cases of doubt UNKNOWN.
    """
    path = os.path.realpath(upper)
    stores = store.stores_of(bundle, root)
    homes = [bundle, *(f"{os.path.dirname(each)}/overlay-containers" for each in stores)]
    if any(_is_inside(path, home) for home in homes) or _is_layer(path, stores) or _is_snapshot(path):
        return DELETED
    source = next((mount.source for mount in reversed(mounts) if mount.destination == mount_point), "")
    if store.container_in_store(bundle)[1] and _is_inside(os.path.realpath(os.path.dirname(source)), bundle):
        return KEPT
    return UNKNOWN


def _is_inside(path: str, directory: str) -> bool:
    """Return whether a resolved path is in a directory, and in the same file system from there on."""
    top = os.path.realpath(directory)
    if not directory.startswith("/") or not path.startswith(f"{top}/"):
        return False
    return not _has_mount_between(top, path)


def _has_mount_between(top: str, path: str) -> bool:
    try:
        mounts = mountinfo.read()
    except OSError:
        return True
    while len(path) > len(top):
        if mounts.exactly_at(path):
            return True
        path = os.path.dirname(path)
    return False


def _is_layer(path: str, stores: Sequence[str]) -> bool:
    layer = store.layer_of_upper(path, stores)
    return bool(layer) and _is_private(os.path.dirname(layer))


def _is_snapshot(path: str) -> bool:
    parts = path.split("/")
    if len(parts) < 5 or parts[-1] != "fs" or not parts[-2].isdecimal() or parts[-3] != "snapshots":
        return False
    return parts[-4].startswith(_SNAPSHOTTER) and _is_private("/".join(parts[:-2]))


def _is_private(directory: str) -> bool:
    try:
        store.check_private(directory)
    except store.UnknownError:
        return False
    return True
