"""Which users have an id in this process's user namespace.

Source: user_namespaces(7), "User and group ID mappings"; proc(5), /proc/sys/kernel/overflowuid; xattr(7).
"""

from __future__ import annotations

import errno
import os

_MAP = "/proc/self/uid_map"
_NOBODY = 65534


def has_all_users() -> bool:
    """Return whether every user of the host has an id of their own here, as in the initial namespace.

    Raises:
        OSError: /proc is not mounted.
    """
    with open(_MAP, encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def sees_trusted_attributes() -> bool:
    """Return whether the kernel shows this process the extended attributes that begin with `trusted.`.

    It hides them from a process that lacks CAP_SYS_ADMIN in the initial user namespace. Such a process may not remove
    one either, and the kernel checks that before it looks whether there is one. A pipe never has any.

    Raises:
        OSError: there is no pipe to be had.
    """
    reader, writer = os.pipe()
    try:
        os.removexattr(reader, "trusted.none")
    except OSError as error:
        return error.errno != errno.EPERM
    finally:
        os.close(reader)
        os.close(writer)
    return True


def numbers() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the users and groups that have an id here, as ranges: the first id, and how many.

    Raises:
        OSError: /proc is not mounted.
    """
    return _ranges(_MAP), _ranges("/proc/self/gid_map")


def _ranges(path: str) -> list[tuple[int, int]]:
    with open(path, encoding="ascii") as file:
        return [(int(first), int(count)) for first, _, count in map(str.split, file)]


def overflow_owner() -> int:
    """Return the user id that stands for all users who have none here."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _NOBODY


def outside(user: int) -> int:
    """Return the id that a user of this namespace has in the one around it; the same id if that is unknown."""
    try:
        with open(_MAP, encoding="ascii") as file:
            for line in file:
                first, first_outside, count = map(int, line.split())
                if first <= user < first + count:
                    return first_outside + user - first
    except (OSError, ValueError):
        pass
    return user
