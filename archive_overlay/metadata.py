"""Owner, attributes, mode and times: giving them to a file, in the one order that keeps them all.

chown(2) drops set-user-ID bits and capabilities, so the owner comes first. A set-user-ID bit without
its owner would make a container user's file a program that runs as root, so the mode comes last, and
whatever cannot be given fails before it.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from archive_overlay.overlay.changes import Change


def give(file: int | str, change: Change, attributes: Mapping[str, bytes]) -> None:
    """Give an open file or directory what a change says of it.

    Args:
        file: a file descriptor, or the name of one in /proc/self/fd.
        change: whose owner, mode and times it gets.
        attributes: the extended attributes it gets.

    Raises:
        OSError: something cannot be given.
    """
    os.chown(file, change.uid, change.gid)
    for name, value in attributes.items():
        os.setxattr(file, name, value)
    os.chmod(file, change.mode)
    os.utime(file, ns=(change.atime_ns, change.mtime_ns))


def transfer(source: int, target: int) -> None:
    """Make the owner, attributes, mode and times of one open directory those of another.

    Args:
        source: file descriptor of the directory that has them.
        target: file descriptor of the directory that gets them; attributes of its own are removed.

    Raises:
        OSError: something cannot be read or given.
    """
    status = os.fstat(source)
    os.chown(target, status.st_uid, status.st_gid)
    names = os.listxattr(source)
    for name in os.listxattr(target):
        if name not in names and name != "security.selinux":
            os.removexattr(target, name)
    for name in names:
        if name != "security.selinux":
            os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, status.st_mode & 0o7777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
