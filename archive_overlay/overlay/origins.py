"""Whether what is found in the lower layers is what the kernel found there.

A lower layer may be a mount that was detached since: its mount point is an empty directory then, and the look-up goes on to
the layers below that, which may have an older file of the same name. The kernel notes, for what it copies up, which entry of
the topmost layer that was. The note alone proves nothing: engines' stores are copied to other disks, and upperdirs with them.
So it counts only where a layer above is empty.

Source: the kernel's Documentation/filesystems/overlayfs.rst, "Sharing and copying layers"; fs/overlayfs/overlayfs.h, struct
ovl_fb, for the note.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.system.open_flags import LOOK, READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from archive_overlay.overlay.lowers import Lowers, Place

# Of the note: version and magic number, and where its parts are. After the flags come the handle's type, the file system's
# UUID and the handle.
_KNOWN = b"\x00\xfb"
_LENGTH_AT = 2
_TYPE_AT = 4
_HANDLE_AT = 21


class Origins:
    """What is known of layers that may be gone.

    Args:
        lowers: the lower layers.

    Raises:
        ArchiveError: one cannot be read.
    """

    def __init__(self, lowers: Lowers) -> None:
        self._lowers = lowers
        self._told = False
        self._empty = [root for root in lowers.roots() if self._is_empty(root)]

    def empty_below(self, place: Place) -> str:
        """Give a layer below that of a place which is empty, the first time that it is asked for one; or else ""."""
        below = [root for root in self._empty if root.layer > place.layer]
        if not below or self._told:
            return ""
        self._told = True
        return self._lowers.shown(below[0].layer, below[0].path)

    def check(self, origin: bytes, place: Place, shown: Callable[[], str]) -> None:
        """Make sure that an entry of the upperdir was copied up from a place.

        Args:
            origin: the kernel's note of where it came from; b"" without one.
            place: where the look-up leads now.
            shown: gives the entry's path, for messages.

        Raises:
            ArchiveError: it was copied up from elsewhere, and a layer above the place may be gone.
        """
        above = next((root for root in self._empty if root.layer < place.layer), None)
        if above is None or origin[:_LENGTH_AT] != _KNOWN or origin[_LENGTH_AT] != len(origin):
            return
        from archive_overlay.system import kernel

        found = self._lowers.shown(place.layer, place.path)
        try:
            fd = self._lowers.open(place, LOOK)
            try:
                handle = kernel.file_handle(fd)
            finally:
                os.close(fd)
        except OSError as error:
            fail(f"cannot read {found}", error)
        if handle is not None and handle != (origin[_TYPE_AT], origin[_HANDLE_AT:]):
            gone = self._lowers.shown(above.layer, above.path)
            raise ArchiveError(
                f"{shown()} is not a copy of {found}, but of what was in a layer above: perhaps in {gone}, which is empty now",
                hint="keep lower layers mounted until the hook has run",
            )

    def _is_empty(self, root: Place) -> bool:
        try:
            fd = self._lowers.open(root, READ_DIRECTORY)
            try:
                with os.scandir(fd) as entries:
                    return next(entries, None) is None
            finally:
                os.close(fd)
        except OSError as error:
            fail(f"cannot read {self._lowers.shown(root.layer, root.path)}", error)
