"""Follow symbolic links on the way to what a container has mounted.

The engine followed the spec's paths when the container was started. Since then, somebody may have put a link there. A
link is followed only if neither the container nor another user can have made it: its directory belongs to root or to
the hook's user, nobody else may write there unless the link itself belongs to one of them, and it is not in anything
that the container has mounted.

Source: path_resolution(7); user_namespaces(7) for the owner of what has none in a namespace.
"""

from __future__ import annotations

import os

from archive_overlay.system import user_namespace
from archive_overlay.system.resolve import MOST_LINKS, SHARED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from archive_overlay.overlay.mount import Mount

_ROOT = 0


class ForeignLinkError(Exception):
    """A link on the way may be another user's; the message says which one and why."""


def followed(path: str, mounts: Sequence[Mount]) -> str:
    """Follow the links in a path; what is not there stays as it is.

    Args:
        path: absolute, normalised.
        mounts: the spec's; what is below their sources, the container could change.

    Raises:
        ForeignLinkError: a link must not be followed.
    """
    mounted: list[str] | None = None
    left = _components(path)
    links = 0
    place = "/"
    while left:
        name = left.pop()
        if name == "..":
            place = os.path.dirname(place)
            continue
        entry = os.path.join(place, name)
        try:
            target = os.readlink(entry)
        except OSError:
            place = entry  # no link, or nothing
            continue
        links += 1
        if links > MOST_LINKS:
            raise ForeignLinkError(f"too many symbolic links lead from {path}")
        if mounted is None:
            mounted = [os.path.realpath(mount.source) for mount in mounts if _is_writable(mount)]
        _judge(entry, place, mounted)
        if target.startswith("/"):
            place = "/"
        left += _components(target)
    return place


def _components(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _is_writable(mount: Mount) -> bool:
    """Return whether the container could change what a mount has, without having the whole host anyway."""
    return mount.source.startswith("/") and mount.source != "/" and "ro" not in mount.options


def _judge(link: str, directory: str, mounted: Iterable[str]) -> None:
    if any(f"{link}/".startswith(f"{source}/") for source in mounted):
        raise ForeignLinkError(f"{link} is a symbolic link that the container may have made")
    status = os.stat(directory)
    shared = status.st_mode & SHARED
    if status.st_uid not in (_ROOT, os.geteuid(), _root_of_the_host()) or (shared and not _is_own(link)):
        raise ForeignLinkError(f"{link} is a symbolic link that another user may have made")


def _is_own(link: str) -> bool:
    """Return whether a link is root's or this user's, and nobody can have given it another name.

    With the umask of many distributions, 002, a user's group may write to his directories, though nobody else is in it.
    """
    status = os.lstat(link)
    return status.st_uid in (_ROOT, os.geteuid()) and status.st_nlink == 1


def _root_of_the_host() -> int:
    """Return the owner that the host's root appears as. In a user namespace, other users appear as the same one."""
    try:
        return _ROOT if user_namespace.has_all_users() else user_namespace.overflow_owner()
    except OSError:
        return _ROOT
