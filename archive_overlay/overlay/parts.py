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

# How many names are held while a directory is listed, and by all directories on the way together. Each takes 320 bytes at
# most. The second number is larger by as many as must be listed below a directory to have its names forgotten: else each
# directory in it would cost a listing of it.
MOST_LISTED = 48 * 1024
MOST_HELD = 64 * 1024


def read_part(
    directory: int, after: Key | None, *, deletions_first: bool
) -> tuple[list[str], dict[str, int], Key | None]:
    """List the next names of a directory. The time grows with their number, for each part.

    Args:
        directory: its file descriptor.
        after: where the last part ended; None: there was none.
        deletions_first: whether 0:0 devices come before all else.

    Returns:
        Names, the last one first; what those are that are no regular files; and where this part ends, None if at the end.
    """
    found: list[tuple[bool, str, int]] = []
    end: Key | None = None
    with os.scandir(directory) as entries:
        for entry in entries:
            kind = 0
            if entry.is_dir(follow_symlinks=False):
                kind = IS_DIRECTORY
            elif not entry.is_file(follow_symlinks=False):
                kind = IS_OTHER
            late = not (deletions_first and kind == IS_OTHER and _is_deletion(entry))
            key = late, entry.name
            if (after is not None and key <= after) or (end is not None and key > end):
                continue
            found.append((late, entry.name, kind))
            if len(found) == MOST_LISTED:
                found.sort()
                del found[MOST_LISTED * 3 // 4 :]
                end = found[-1][:2]
    found.sort(reverse=True)
    return [name for _, name, _ in found], {name: kind for _, name, kind in found if kind}, end


def _is_deletion(entry: os.DirEntry[str]) -> bool:
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
