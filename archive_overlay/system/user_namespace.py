"""Which users have an id in this process's user namespace.

Source: user_namespaces(7), "User and group ID mappings"; proc(5), /proc/sys/kernel/overflowuid.
"""

from __future__ import annotations

_MAP = "/proc/self/uid_map"
_NOBODY = 65534


def has_all_users() -> bool:
    """Say whether every user of the host has his own id here, as in the initial namespace.

    Raises:
        OSError: /proc is not mounted.
    """
    with open(_MAP, encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def overflow_owner() -> int:
    """Give the user id that stands for all users who have none here."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _NOBODY


def outside(user: int) -> int:
    """Give the id that a user of this namespace has in the one around it; the same id if that is unknown."""
    try:
        with open(_MAP, encoding="ascii") as file:
            for line in file:
                first, first_outside, count = map(int, line.split())
                if first <= user < first + count:
                    return first_outside + user - first
    except (OSError, ValueError):
        pass
    return user
