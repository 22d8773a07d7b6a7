"""Directories of caches, which can be made anew: a file in them says so.

Whoever can write to a directory can put that file there, and keep what is in it from being archived. A container does so to
its own archive alone.

Source: the Cache Directory Tagging Specification, https://bford.info/cachedir/.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.system import tree
from archive_overlay.system.open_flags import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.overlay.lowers import Directory, Lowers
    from archive_overlay.overlay.mount import OverlayMount

TAG = "CACHEDIR.TAG"
_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"


class Caches:
    """The directories of one upperdir that are caches, as the container saw them.

    Args:
        overlay: its overlay.
        lowers: the lower layers. If nobody knows them, a tag counts only if the upperdir has it.
    """

    def __init__(self, overlay: OverlayMount, lowers: Lowers) -> None:
        self._overlay = overlay
        self._lowers = lowers

    def is_one(self, fd: int, directory: Directory, *, hides: bool) -> bool:
        """Say whether a directory of the upperdir has a valid tag, there or in the lower layers.

        Args:
            fd: file descriptor of the directory.
            directory: the same for looking into the lower layers.
            hides: whether it is known that it hides what lies below.

        Raises:
            ArchiveError: a lower layer cannot be read.
            OSError: the directory cannot be read.
        """
        try:
            status = os.stat(TAG, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return not hides and not self._is_hidden(fd) and self.is_lower(directory)
        if not stat.S_ISREG(status.st_mode):
            return False
        file = tree.open_unseen(TAG, READ, fd)
        try:
            if os.read(file, len(_SIGNATURE)) == _SIGNATURE:
                return True
            # Only the metadata of the tag may have been copied up.
            namespace = self._overlay.dialect.opaque_attribute[: -len("opaque")]
            refers = self._overlay.may_refer_to_lowers and f"{namespace}metacopy" in os.listxattr(file)
        finally:
            os.close(file)
        return refers and self.is_lower(directory)

    def is_lower(self, directory: Directory) -> bool:
        """Say whether a directory has a valid tag in the lower layers.

        Raises:
            ArchiveError: see `is_one`.
        """
        if self._overlay.lowers_unknown:
            return False
        data = self._lowers.find(directory, TAG).data
        if data is None or not data.is_file:
            return False
        file = self._lowers.open_to_read(data)
        try:
            return os.read(file, len(_SIGNATURE)) == _SIGNATURE
        finally:
            os.close(file)

    def _is_hidden(self, directory: int) -> bool:
        """Say whether whiteout files of fuse-overlayfs hide what a directory has in the lower layers."""
        return self._overlay.dialect.whiteout_files and any(
            _is_there(name, directory) for name in (OPAQUE_MARKER, WHITEOUT_PREFIX + TAG)
        )


def _is_there(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True
