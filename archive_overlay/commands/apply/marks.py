"""How a change set in staging says what is deleted, and which directories hide what was there.

Marks of overlays will not do: not every file system holds them, and not every user may set them. And no archive may be able
to have these. So each run has a mark of its own that nobody can guess: a symbolic link to it deletes the name it has, and a
directory that has one by that name is opaque.
"""

from __future__ import annotations

import os
import stat

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

    def opaque(self, name: str, directory: int) -> tuple[str, ...]:
        """Give anything at all if a directory is opaque. See `Marks`."""
        try:
            os.lstat(f"{name}/{self.text}", dir_fd=directory)
        except FileNotFoundError:
            return ()
        return (self.text,)

    def make_opaque(self, name: str, directory: int) -> None:
        """Do nothing: a directory that is placed hides nothing that has to be hidden. See `Marks`."""
