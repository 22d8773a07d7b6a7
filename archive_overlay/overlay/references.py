"""What an upperdir refers to in the lower layers, and whether that is what the kernel found there.

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
from archive_overlay.overlay.change import TOP, TreePath
from archive_overlay.system.open_flags import LOOK, READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from archive_overlay.log import Repeated
    from archive_overlay.overlay.attributes import Marks
    from archive_overlay.overlay.lowers import Lowers, Place
    from archive_overlay.overlay.mount import OverlayMount

# Of the note: version and magic number, and where its parts are. After the flags come the handle's type, the file system's
# UUID and the handle.
_KNOWN = b"\x00\xfb"
_LENGTH_AT = 2
_TYPE_AT = 4
_HANDLE_AT = 21


_KEEP_MOUNTED = "keep lower layers mounted until the hook has run"


class References:
    """The references of one upperdir.

    Args:
        overlay: its overlay.
        lowers: the lower layers.
        warnings: takes what may be missing.
    """

    def __init__(self, overlay: OverlayMount, lowers: Lowers, warnings: Repeated) -> None:
        self._listed = overlay.lowers_are_listed
        self._lowers = lowers
        self._warnings = warnings
        self._origins: _Origins | None = None

    def check_directory(self, below: list[Place], marks: Marks, shown: Callable[[], str]) -> None:
        """Make sure that what a directory has in the lower layers is there.

        Args:
            below: where it is in them, topmost first.
            marks: the overlay's, of the directory.
            shown: gives its path, for messages.

        Raises:
            ArchiveError: it is not, or a lower layer cannot be read.
        """
        if not below and marks.redirect:
            raise ArchiveError(
                f"{shown()} has its contents from {marks.redirect}, which is in no lower layer",
                hint=_KEEP_MOUNTED,
            )
        if not below and marks.origin:
            raise ArchiveError(
                f"{shown()} has contents in the lower layers, but no lower layer has such a directory",
                hint=_KEEP_MOUNTED,
            )
        self.check_origin(below, marks, shown)
        if self._origins and below and (gone := self._origins.empty_below(below[0])):
            self._warnings.warning(
                "a lower layer that is empty",
                f": the lower layer {gone} is empty; if something was mounted there, its contents are missing here",
                path=shown,
            )

    def check_origin(self, places: list[Place], marks: Marks, shown: Callable[[], str]) -> None:
        """Make sure that an entry of the upperdir was copied up from the first of some places; see `check_directory`."""
        if not places or self._listed or not self._lowers.are_several:
            return
        if self._origins is None:
            self._origins = _Origins(self._lowers)
        self._origins.check(marks.origin, places[0], shown)

    def open_data(self, data: Place, status: os.stat_result, shown: Callable[[], str]) -> int:
        """Open the data of a file, which another layer may have.

        Args:
            data: where they are.
            status: of the file.
            shown: gives its path, for messages.

        Raises:
            ArchiveError: there are more or fewer of them than the file has.
            OSError: they cannot be opened.
        """
        fd = self._lowers.open_to_read(data)
        size = os.fstat(fd).st_size
        if size != status.st_size:
            os.close(fd)
            raise ArchiveError(
                f"{shown()} has {status.st_size} bytes, and {self._lowers.shown(data.layer, data.path)}, which should have"
                f" its data, {size}"
            )
        return fd

    def warn_of_other_names(self, path: TreePath, lower_path: str, shown: Callable[[], str]) -> None:
        """Warn if the file that another one was copied from, by fuse-overlayfs, has several names.

        Args:
            path: of the file.
            lower_path: of the one that it was copied from, as fuse-overlayfs noted it.
            shown: gives the file's path, for messages.
        """
        lower = path  # nearly always; then the layer's directory is still open
        if lower_path != path.text:
            lower = TOP
            for part in lower_path.split("/"):
                if part in ("", ".", ".."):
                    return  # never seen
                lower = TreePath(lower, part)
        if self._lowers.has_other_names(lower):
            self._warnings.warning(
                "files with several names in a lower layer",
                ": the file has several names in a lower layer, and fuse-overlayfs keeps what was written to any of"
                " them under this name alone: see whether it is the one that was meant",
                path=shown,
            )


class _Origins:
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
        """Return a layer below that of a place which is empty, the first time that it is asked for one; or else ""."""
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
                hint=_KEEP_MOUNTED,
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
