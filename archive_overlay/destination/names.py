"""Names beside a destination, of staging directories and backups, and the mark of staging directories.

    .NAME.archive_overlay-RANDOM      staging, RANDOM being 12 hexadecimal digits
    .archive_overlay-RANDOM           staging inside a destination
    NAME.~1~, NAME.~2~, ...           backups, as `cp --backup=numbered` names them

Anybody may have made an entry that is called so: a container in its tree, or somebody by an annotation. So a name
alone is no reason to remove anything, and no number that somebody else has taken keeps the next one from being found.

A staging directory has a mark: an extended attribute whose value is its own inode number. It is in the namespace that
overlays keep for themselves. The kernel lets nobody set it by way of an overlay, and no archive has it (see
`overlay.attributes`).
"""

from __future__ import annotations

import errno
import os
import zlib

from archive_overlay.marks import TRUSTED_STAGING, USER_STAGING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

_SUFFIX = ".archive_overlay-"
_RANDOM_BYTES = 6
_NAME_MAX = 255
_FULL = (errno.ENOSPC, errno.EDQUOT)
_HEXADECIMAL = frozenset("0123456789abcdef")
# Nobody has made a billion backups. A longer number leaves no room for the next one, and is not counted.
_MOST_DIGITS = 9
# How often a free name may be taken by somebody else a moment later.
_ATTEMPTS = 100


def staging_prefix(name: str) -> str:
    """Return the beginning of the names of all staging directories of one destination.

    Args:
        name: the destination's name, "" if staging is inside it; one that is too long for more is cut, and gets a checksum.
    """
    if not name:
        return _SUFFIX
    encoded = os.fsencode(name)
    room = _NAME_MAX - 1 - len(_SUFFIX) - 2 * _RANDOM_BYTES
    if len(encoded) <= room:
        return f".{name}{_SUFFIX}"
    kept = os.fsdecode(encoded[: room - 9])
    return f".{kept}-{zlib.crc32(encoded):08x}{_SUFFIX}"


def new_staging_name(name: str) -> str:
    """Return a name for a new staging directory of a destination. See `staging_prefix`."""
    return f"{staging_prefix(name)}{os.urandom(_RANDOM_BYTES).hex()}"


def is_staging_name(entry: str, name: str | None = None) -> bool:
    """Return whether an entry is called as staging directories are.

    Args:
        entry: its name.
        name: the destination's name, "" if staging is inside it; None: of any destination.
    """
    begin, suffix, digits = entry.rpartition(_SUFFIX)
    if not suffix or len(digits) != 2 * _RANDOM_BYTES or not _HEXADECIMAL.issuperset(digits):
        return False
    if name is None:
        return not begin or begin.startswith(".")
    return begin + suffix == staging_prefix(name)


def set_mark(fd: int) -> str:
    """Mark a staging directory.

    Args:
        fd: file descriptor of the directory.

    Returns:
        The name of the attribute that marks it; "" where the file system or a lack of privileges leaves no way.

    Raises:
        OSError: there is no room for a mark.

    Source: xattr(7), "Trusted extended attributes": they are for CAP_SYS_ADMIN, and not in a user namespace.
    """
    for name in (TRUSTED_STAGING, USER_STAGING):
        try:
            os.setxattr(fd, name, _mark_of(fd))
        except PermissionError:
            continue
        except OSError as error:
            # Programs of FUSE and servers have all kinds of words for it.
            if error.errno in _FULL:
                raise
            return ""
        return name
    return ""


def is_marked(fd: int) -> bool:
    """Return whether a run of this program made a directory.

    Args:
        fd: file descriptor of the directory.

    Whoever may set the trusted mark does not believe the other one, which a container can set in an overlay that uses
    trusted attributes.
    """
    for name in (TRUSTED_STAGING, USER_STAGING):
        try:
            return os.getxattr(fd, name) == _mark_of(fd)
        except OSError:
            pass
        try:
            os.setxattr(fd, name, b"", os.XATTR_REPLACE)  # there is none: this changes nothing
        except PermissionError:
            continue
        except OSError:
            return False
    return False


def take_backup_name(
    name: str, directory: int, take: Callable[[str], object], *, described_by: str = ""
) -> str:
    """Find the next free backup name of an entry, the one after the highest.

    Where no name comes after the highest, because the number or the name would be too long, it is the one after the
    highest that is followed by a free one: whoever takes the last number of all stops nobody.

    Args:
        name: the entry.
        directory: file descriptor of the directory it is in; it is listed once.
        take: gives something the name that it is called with, or raises FileExistsError.
        described_by: what names end in that belong to backups and take their numbers, besides their own.

    Returns:
        The name that was taken.

    Raises:
        OSError: ENAMETOOLONG: none fits; FileExistsError: others take each name that is found.
    """
    taken = _numbers(name, os.listdir(directory), described_by) | {0}
    longest = os.fpathconf(directory, "PC_NAME_MAX")
    room = (longest if longest > 0 else _NAME_MAX) - len(os.fsencode(f"{name}.~~"))
    most = 10 ** max(0, min(room, _MOST_DIGITS)) - 1
    for _ in range(_ATTEMPTS):
        number = max((after + 1 for after in taken if after < most and after + 1 not in taken), default=0)
        if not number:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        backup = f"{name}.~{number}~"
        try:
            take(backup)
        except FileExistsError:
            taken.add(number)
            continue
        return backup
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def take_free_name(
    name: str, directory: int, take: Callable[[str], object], *, described_by: str = ""
) -> str:
    """Find a free name: NAME, or else the next backup name. See `take_backup_name`."""
    try:
        take(name)
    except FileExistsError:
        return take_backup_name(name, directory, take, described_by=described_by)
    return name


def _mark_of(fd: int) -> bytes:
    # What is copied somewhere else, marks and all, is another directory.
    return b"%d" % os.fstat(fd).st_ino


def _numbers(name: str, entries: list[str], described_by: str) -> set[int]:
    begin = f"{name}.~"
    found = set()
    for entry in entries:
        if entry.startswith(begin):
            number, tilde, rest = entry[len(begin) :].partition("~")
            is_number = number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS
            if is_number and tilde and rest in ("", described_by):
                found.add(int(number))
    return found


def split_off_tag(path: str) -> tuple[str, str]:
    """Split a path that looks like LAYOUT:TAG of an image layout; "" for both if it does not.

    Times have colons too, before digits: so a tag begins with a letter here.
    """
    directory, slash, name = path.rpartition("/")
    name, _, tag = name.partition(":")
    looks = name and tag[:1].isalpha() and ":" not in tag
    return (f"{directory}{slash}{name}", tag) if looks else ("", "")
