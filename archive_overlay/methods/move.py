"""The method `move`: the upperdir itself, renamed. No byte is copied.

What is renamed keeps its bookkeeping, and refers to its lower layers as before. Where that could be
more than bookkeeping, and where renaming is not possible, the work of `copy` is done instead.
"""

from __future__ import annotations

import errno
import os

from archive_overlay import metadata
from archive_overlay.errors import ArchiveError
from archive_overlay.methods import copy
from archive_overlay.overlay import dialect
from archive_overlay.overlay.locate import is_mounted
from archive_overlay.staging import ARCHIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.log import Log
    from archive_overlay.methods import Target
    from archive_overlay.overlay.changes import Change

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def require(compression: str) -> None:
    """Nothing is needed. See `methods.Writer`."""


def write(changes: Iterator[Change], target: Target, log: Log) -> None:
    """Rename the upperdir, or else write the changes as `copy` does. See `methods.Writer`.

    Raises:
        ArchiveError: another mount still writes into the upperdir.
    """
    overlay = target.overlay
    reason = ""
    if overlay.dialect is dialect.FUSE_OVERLAYFS:
        reason = "fuse-overlayfs keeps state in it"
    elif not target.may_rename:
        reason = "the hook's policy is to look at every entry"
    elif overlay.may_refer_to_lowers:
        reason = "with metacopy or redirect_dir it may refer to its lower layers"
    else:
        try:
            if is_mounted(overlay):
                raise ArchiveError(
                    f"the upperdir {overlay.upper} cannot be moved: it is still mounted",
                    hint="use method copy",
                )
            _take(overlay.upper, target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise ArchiveError(f"cannot move the upperdir {overlay.upper}: {error.strerror}") from error
            reason = "it is on another file system"
    log.info(f"the upperdir {overlay.upper} is copied, not moved: {reason}")
    copy.write(changes, target, log)


def _take(upper: str, target: Target) -> None:
    # The engine may have named it by a symbolic link, or with a slash at the end.
    directory, name = os.path.split(os.path.realpath(upper))
    fd = os.open(directory, _DIRECTORY)
    try:
        target.staging.take(name, fd)
        # The engine deletes what it made, and expects to find it.
        metadata.make_twin(ARCHIVE, target.staging.directory, name, fd)
    finally:
        os.close(fd)
