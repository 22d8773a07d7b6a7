"""Set owner, attributes, mode and times of a file, in the one order that keeps them all.

chown(2) drops set-user-ID bits and capabilities, so the owner comes first. A set-user-ID bit without
its owner would make a container user's file a program that runs as root, so the mode comes last, after everything that
can fail.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.errors import fail
from archive_overlay.system.open_flags import READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Entry(Protocol):
        """Something that is to have an owner, a mode and times.

        Attributes:
            uid, gid: owner.
            mode: permission bits.
            atime_ns, mtime_ns: times in nanoseconds since 1970.
        """

        uid: int
        gid: int
        mode: int
        atime_ns: int
        mtime_ns: int

        @property
        def shown(self) -> str:
            """Its path, for messages."""

    class Attributes(Protocol):
        """Extended attributes by their full names, as a dictionary has them."""

        def items(self) -> Iterable[tuple[str, bytes]]:
            """Return names and values."""


# The host's label for a file, not the container's doing.
SELINUX_LABEL = "security.selinux"
# No directory that a container writes to has this time, unless the container sets it. (Whole seconds: some file systems
# store nothing finer.)
_TWIN_TIME_NS = 10**9


def give(file: int | str, entry: Entry, attributes: Attributes, *, made_as: tuple[int, int]) -> None:
    """Set owner, attributes, mode and times of an open file or directory to those of an entry.

    Args:
        file: a file descriptor, or the name of one in /proc/self/fd.
        entry: whose owner, mode and times it gets.
        attributes: the extended attributes it gets.
        made_as: user and group id that it has now. Unmapped owners are skipped: chown(2) cannot set them, and the file
            already has that owner.

    Raises:
        ArchiveError: an attribute cannot be given.
        OSError: something else cannot be given.
    """
    if made_as != (entry.uid, entry.gid):
        os.chown(file, entry.uid, entry.gid)
    give_attributes(file, entry, attributes)
    os.chmod(file, entry.mode)
    os.utime(file, ns=(entry.atime_ns, entry.mtime_ns))


def give_attributes(file: int | str, entry: Entry, attributes: Attributes) -> None:
    """Set extended attributes of an open file or directory.

    Args:
        file: see `give`.
        entry: whose they are, for messages.
        attributes: by their full names.

    Raises:
        ArchiveError: one cannot be given.
    """
    for name, value in attributes.items():
        try:
            os.setxattr(file, name, value)
        except OSError as error:
            fail(
                f"cannot give {entry.shown} the extended attribute {name}",
                error,
                hint="the file system of archive-to must be able to hold it; method tar.gz works on any file system",
            )


def replace(directory: int, other: int, status: os.stat_result, *, keep: Iterable[str] = ()) -> None:
    """Make an open directory's owner, attributes, mode and times those of another.

    Args:
        directory: file descriptor of the directory that gets them; other attributes are removed, but for the host's
            label.
        other: file descriptor of the one that has the attributes. There may be many, so they are read one by one.
        status: of the other one. It has the owner, mode and times, which may have changed since.
        keep: further attributes that are neither removed nor given.

    Raises:
        OSError: something cannot be read or given.
    """
    untouched = {SELINUX_LABEL, *keep}
    attributes = [name for name in os.listxattr(other) if name not in untouched]
    kept = {*untouched, *attributes}
    now = os.fstat(directory)
    if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
        os.chown(directory, status.st_uid, status.st_gid)
    for name in os.listxattr(directory):
        if name not in kept:
            os.removexattr(directory, name)
    for name in attributes:
        os.setxattr(directory, name, os.getxattr(other, name))
    os.chmod(directory, status.st_mode & 0o7777)
    os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))


def make_twin(name: str, directory: int, twin: str, twin_directory: int) -> None:
    """Make an empty directory with the owner, attributes and mode of another, and a time that tells them apart.

    Args:
        name: the other one.
        directory: file descriptor of the directory it is in.
        twin: the new one's name.
        twin_directory: file descriptor of the directory that it is made in.

    Raises:
        OSError: it cannot be made.
    """
    os.mkdir(twin, stat.S_IRWXU, dir_fd=twin_directory)
    source = os.open(name, READ_DIRECTORY, dir_fd=directory)
    try:
        target = os.open(twin, READ_DIRECTORY, dir_fd=twin_directory)
        try:
            replace(target, source, os.fstat(source))
            os.utime(target, ns=(_TWIN_TIME_NS, _TWIN_TIME_NS))
        finally:
            os.close(target)
    finally:
        os.close(source)


def is_twin(path: str) -> bool:
    """Return whether a directory was left by `make_twin` in the place of one that was renamed.

    Without this check, an engine that runs the hook twice would archive an empty change set over the true one.

    Args:
        path: absolute.
    """
    try:
        return os.stat(path).st_mtime_ns == _TWIN_TIME_NS and not os.listdir(path)
    except OSError:
        return False
