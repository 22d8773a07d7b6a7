"""Keeping what is written apart from what is read."""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, fail


def keep_apart(label: str, path: str, upper: str, *, what: str = "the upperdir") -> None:
    """Refuse a path that is in the upperdir, or that the upperdir is in.

    Args:
        label: the annotation that has the path.
        path: absolute, of something that is going to be written.
        upper: the upperdir that is archived, or whatever else is read.
        what: that, for messages.

    Raises:
        ArchiveError: they are not apart, or one of them cannot be looked at.
    """
    try:
        upper_status = os.stat(upper)
    except OSError as error:
        fail(f"cannot read {what} {upper}", error)
    for place in _self_and_parents(path):
        status = _status(place, label)
        if status and os.path.samestat(status, upper_status):
            raise ArchiveError(f"{label} {path} is {what} {upper} or in it", hint="name a path outside of it")
    status = _status(path, label)
    if status:
        for place in _self_and_parents(os.path.realpath(upper)):
            if os.path.samestat(os.stat(place), status):
                raise ArchiveError(f"{label} {path} contains {what} {upper}", hint="name another path")


def _self_and_parents(path: str) -> list[str]:
    found = [path]
    while found[-1] != "/":
        found.append(os.path.dirname(found[-1]))
    return found


def _status(path: str, label: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        fail(f"cannot look at {label} {path}", error)
