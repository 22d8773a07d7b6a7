"""The method `move`: the upperdir itself, renamed. No byte is copied.

What is renamed keeps its bookkeeping, and refers to its lower layers as before. Where that could be
more than bookkeeping, and where renaming is not possible, the work of `copy` is done instead.
"""

from __future__ import annotations

import errno
import os

from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.marks import USER, USER_STAGING
from archive_overlay.methods import copy
from archive_overlay.overlay.in_use import can_ask, is_mounted
from archive_overlay.system import metadata
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.methods import Destination, Request, Target
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.overlay.store import Place
    from archive_overlay.settings import Settings
    from archive_overlay.system.patience import Patience


def require(compression: str) -> None:
    """Nothing is needed. See `methods.Writer`."""


def judge(overlay: OverlayMount, *, keep_in_place: str) -> None:
    """Refuse an upperdir that a mount still writes into. See `methods.Writer`."""
    try:
        if _obstacle(overlay, keep_in_place=keep_in_place):
            return
        mounted = is_mounted(overlay)
    except OSError as error:
        fail(f"cannot find out whether the upperdir {overlay.upper} is mounted", error)
    if mounted:
        raise ArchiveError(
            f"the upperdir {overlay.upper} cannot be moved: it is still mounted", hint="use method copy"
        )


def destination(
    request: Request,
    *,
    overlay: OverlayMount,
    container: Place,
    settings: Settings,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> Destination:
    """A directory. See `methods.Writer`."""
    return copy.destination(
        request,
        overlay=overlay,
        container=container,
        settings=settings,
        paths=paths,
        patience=patience,
        log=log,
    )


def write(changes: Iterator[Change], target: Target, log: Log) -> str:
    """Rename the upperdir, or else write the changes as `copy` does. See `methods.Writer`."""
    overlay = target.overlay
    reason = _obstacle(overlay, keep_in_place=target.keep_in_place)
    if target.staging.mark == USER_STAGING and USER not in overlay.dialect.namespaces:
        reason = reason or "in a user namespace, a container may have set marks of this program in it"
    if not reason:
        try:
            _take(overlay.upper, target)
            return overlay.dialect.opaque_attribute
        except OSError as error:
            if error.errno != errno.EXDEV:
                fail(f"cannot move the upperdir {overlay.upper}", error)
            reason = "it is on another file system"
    log.info(f"the upperdir {overlay.upper} is copied, not moved: {reason}")
    return copy.write(changes, target, log)


def _obstacle(overlay: OverlayMount, *, keep_in_place: str) -> str:
    """Say why the upperdir is not to be renamed; "" if nothing is known against it."""
    if overlay.dialect.whiteout_files:  # fuse-overlayfs
        return "fuse-overlayfs keeps state in it"
    if overlay.may_refer_to_lowers:
        return "with metacopy, redirect_dir or index it may refer to its lower layers"
    if overlay.container_owners:
        return "its files get the owners that they have in the container"
    if not can_ask():
        return "finding out whether it is still mounted takes CAP_SYS_ADMIN and permission to mount overlays"
    return keep_in_place


def _take(upper: str, target: Target) -> None:
    # The engine may have named it by a symbolic link, or with a slash at the end.
    directory, name = os.path.split(os.path.realpath(upper))
    fd = os.open(directory, READ_TOP_DIRECTORY)
    try:
        target.staging.take(name, fd)
        # The engine deletes what it made, and expects to find it.
        metadata.make_twin(ARCHIVE, target.staging.directory, name, fd)
    finally:
        os.close(fd)
