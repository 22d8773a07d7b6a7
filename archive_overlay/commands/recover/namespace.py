"""The user namespace of a user's containers, made without podman.

podman would make it, too, but not without taking note that the host was started again (see `stores`).

Source: user_namespaces(7); newuidmap(1); subuid(5); pkg/rootless of podman.
"""

from __future__ import annotations

import ctypes
import os
import pwd

from archive_overlay.errors import ArchiveError, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_NEW_MOUNTS, _NEW_USERS = 0x20000, 0x10000000
_PROGRAMS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin")
_LONGEST = 1 << 22


def enter() -> None:
    """Become root of a user namespace with this user's subordinate ids, as podman makes one for containers.

    Raises:
        ArchiveError: this is not possible, or podman has such a namespace, in which it has mounted things.
    """
    user, group = os.geteuid(), os.getegid()
    if _has_namespace(user):
        raise ArchiveError(
            "podman is running for this user, and has mounted its containers in a mount namespace of its own",
            hint="run this there: podman unshare archive_overlay recover",
        )
    names = {str(user), _name(user)}
    maps = [
        ("uid", user, _subordinate("/etc/subuid", names)),
        ("gid", group, _subordinate("/etc/subgid", names)),
    ]
    commands = [_command(f"new{kind}map", own, ranges) for kind, own, ranges in maps]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _map(reader, writer, commands)
    os.close(reader)
    libc = ctypes.CDLL(None, use_errno=True)
    refused = libc.unshare(_NEW_USERS | _NEW_MOUNTS)
    number = ctypes.get_errno()
    if not refused:
        os.write(writer, b"\n")
    os.close(writer)
    _, status = os.waitpid(child, 0)
    if refused:
        fail("this user is not allowed to create user namespaces", OSError(number, os.strerror(number)))
    if status:
        raise ArchiveError("newuidmap or newgidmap has given this user no subordinate ids; see /etc/subuid")


def _map(reader: int, writer: int, commands: list[list[str]]) -> NoReturn:
    """In a process outside of the new namespace: have its ids mapped as soon as it is there."""
    try:
        os.close(writer)
        if os.read(reader, 1):
            for command in commands:
                process = os.posix_spawn(command[0], command, {})
                if os.waitpid(process, 0)[1]:
                    os._exit(1)
        os._exit(0)
    finally:
        os._exit(1)


def _command(name: str, own: int, ranges: list[tuple[int, int]]) -> list[str]:
    program = next((path for each in _PROGRAMS if os.access(path := f"{each}/{name}", os.X_OK)), "")
    if not program:
        raise ArchiveError(
            f"there is no {name}, which rootless containers need", hint="install it (package uidmap)"
        )
    numbers, inside = [0, own, 1], 1
    for first, count in ranges:
        numbers += inside, first, count
        inside += count
    return [program, str(os.getpid()), *map(str, numbers)]


def _subordinate(path: str, names: set[str]) -> list[tuple[int, int]]:
    """Give the ranges of subordinate ids that a file gives to a user: the first one, and how many."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(_LONGEST).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        name, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if name in names and first.isdecimal() and count.isdecimal():
            found.append((int(first), int(count)))
    return found


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return ""


def _has_namespace(user: int) -> bool:
    """Say whether this user has a process in a user namespace of the kind that podman makes."""
    own = os.readlink("/proc/self/ns/user")
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid != user or os.readlink(f"/proc/{name}/ns/user") == own:
                continue
            with open(f"/proc/{name}/uid_map", encoding="ascii") as file:
                if file.readline().split() == ["0", str(user), "1"]:
                    return True
        except OSError:
            continue  # it has ended, or is not to be looked at
    return False
