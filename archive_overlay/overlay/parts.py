"""Read the names in a directory in order and in parts: a container may have made millions, and none is held for long."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    Key = tuple[bool, str]

# What an entry of a listing is; nearly all are regular files, of which nothing is noted.
IS_DIRECTORY = 1
IS_OTHER = 2  # neither a directory nor a regular file

# How many names are held while a directory is listed: each takes 320 bytes at most, or 600 if it is not UTF-8. Of a directory
# with more than half a million names, it is a 16th of them, because each part takes a listing of the whole directory.
_MOST_LISTED = 32 * 1024
_MOST_PARTS = 16


def most_listed(names: int) -> int:
    """Return how many names to hold while a directory with so many is listed."""
    return max(_MOST_LISTED, names // _MOST_PARTS)


def most_held(listed: int) -> int:
    """Return how many names all directories on the way may hold together, if so many are held while one is listed.

    It is a third more: so many must be listed below a directory to have its names forgotten. Otherwise each directory in
    it would cost a listing of it.
    """
    return listed * 4 // 3


def read_part(
    directory: int, after: Key | None, most: int, *, deletions_first: bool
) -> tuple[list[str], dict[str, int], Key | None]:
    """List the next names of a directory. This takes a listing of all of it.

    Args:
        directory: its file descriptor.
        after: where the last part ended; None: there was none.
        most: names that are held meanwhile; a part has three quarters of them, or more.
        deletions_first: whether 0:0 devices come before all else.

    Returns:
        Names, the last one first; what those are that are no regular files; and where this part ends, None if at the end.
    """
    deletions: list[str] = []
    others: list[str] = []
    kinds: dict[str, int] = {}
    end: Key | None = None
    with os.scandir(directory) as entries:
        for entry in entries:
            name, late = entry.name, True
            if deletions_first and not entry.is_file(follow_symlinks=False):
                late = not _is_deletion(entry)
            if after is not None and (name <= after[1] if late is after[0] else after[0]):
                continue
            if end is not None and (name > end[1] if late is end[0] else late):
                continue
            if not entry.is_file(follow_symlinks=False):
                kinds[name] = IS_DIRECTORY if entry.is_dir(follow_symlinks=False) else IS_OTHER
            (others if late else deletions).append(name)
            if len(deletions) + len(others) == most:
                # Texts are sorted in a third of the time of tuples, and those that were sorted before in less.
                deletions.sort()
                others.sort()
                left = most * 3 // 4
                dropped = deletions[left:] + others[max(left - len(deletions), 0) :]
                del deletions[left:], others[max(left - len(deletions), 0) :]
                for name in dropped:
                    kinds.pop(name, None)
                end = (True, others[-1]) if others else (False, deletions[-1])
    deletions.sort(reverse=True)
    others.sort(reverse=True)
    return others + deletions, kinds, end


def _is_deletion(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return False  # without asking the file system
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
