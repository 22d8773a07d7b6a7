"""How a change set in staging says what is deleted, and which directories hide what was there.

Marks of overlays will not do: not every file system holds them, and not every user may set them. And no archive may be able
to have these. So each run has a mark of its own that nobody can guess: a symbolic link to it deletes the name it has, and a
directory that has one by that name is opaque.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.history.unpack import OVERLAY_ATTRIBUTES

_RANDOM_BYTES = 16


class PrivateMarks:
    """The marks of this run. See `destination.merge.Marks`.

    Attributes:
        text: a symbolic link's target, or its name.
    """

    def __init__(self) -> None:
        self.text = f"archive_overlay-{os.urandom(_RANDOM_BYTES).hex()}"

    def is_whiteout(self, name: str, directory: int, status: os.stat_result) -> bool:
        """See `Marks`."""
        return stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=directory) == self.text

    def hides(self, opaque: tuple[str, ...]) -> bool:
        """See `Marks`."""
        return self.text in opaque

    def opaque(self, name: str, directory: int) -> tuple[str, ...]:
        """Give the mark if a directory is opaque, and what it has of overlays, which it keeps. See `Marks`.

        In staging nothing has any of an overlay's.
        """
        attributes = os.listxattr(f"/proc/self/fd/{directory}/{name}", follow_symlinks=False)
        found = tuple(each for each in attributes if each.startswith(OVERLAY_ATTRIBUTES))
        try:
            os.lstat(f"{name}/{self.text}", dir_fd=directory)
        except FileNotFoundError:
            return found
        return (*found, self.text)

    def make_opaque(self, name: str, directory: int) -> None:
        """Do nothing: a directory that is placed hides nothing that has to be hidden. See `Marks`."""
