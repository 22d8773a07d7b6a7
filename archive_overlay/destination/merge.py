"""Laying one directory tree over another, each entry whole.

What the upper tree does not name stays. Everything was written before, so nothing but renaming is
left to do: a full disk or a broken source is found out while the destination is still untouched.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.system import kernel, metadata
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.tree import Descent, remove


def merge(name: str, directory: int, onto: str, onto_directory: int) -> None:
    """Move the contents of one directory into another, and give it the first one's metadata.

    Args:
        name: the directory whose contents are moved; what is replaced may be left in it.
        directory: file descriptor of the directory it is in.
        onto: the directory that they are moved into, on the same file system.
        onto_directory: file descriptor of the directory that one is in.

    Raises:
        OSError: an entry could not be moved; it and those that come later are as they were.
    """
    source = Descent(os.open(name, READ_DIRECTORY, dir_fd=directory))
    try:
        target = Descent(os.open(onto, READ_DIRECTORY, dir_fd=onto_directory))
        try:
            _merge(source, target)
        finally:
            target.close()
    finally:
        source.close()


def _merge(source: Descent, target: Descent) -> None:
    # A directory's status is read first, as moving entries out of it changes its time, and given
    # last, as moving entries into it does so too.
    levels = [(_names(source), os.fstat(source.fd))]
    while True:
        names, status = levels[-1]
        if names:
            name = names.pop()
            if _place(name, source.fd, target.fd):
                source.enter(name)
                target.enter(name)
                levels.append((_names(source), os.fstat(source.fd)))
            continue
        levels.pop()
        if not levels:
            metadata.replace(target.fd, source.fd, status)
            return
        emptied = source.leave()
        try:
            filled = target.leave()
            try:
                metadata.replace(filled, emptied, status)
            finally:
                os.close(filled)
        finally:
            os.close(emptied)


def _place(name: str, source: int, target: int) -> bool:
    """Put an entry in its place, and say whether it is a directory that must be merged instead."""
    is_directory = stat.S_ISDIR(os.lstat(name, dir_fd=source).st_mode)
    try:
        found = os.lstat(name, dir_fd=target)
    except FileNotFoundError:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        return False
    if is_directory != stat.S_ISDIR(found.st_mode):
        try:
            kernel.exchange(name, source, name, target)
        except kernel.CannotExchangeError:
            remove(name, target)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        return False
    if not is_directory:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    return is_directory


def _names(descent: Descent) -> list[str]:
    names = os.listdir(descent.fd)
    names.sort(reverse=True)
    return names
