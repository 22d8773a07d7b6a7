"""Extended attributes: which are the container's, which are the overlay's, and which are the host's.

Source: the kernel's Documentation/filesystems/overlayfs.rst; for fuse-overlayfs, its behaviour as measured.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.marks import TRUSTED_STAGING, USER_STAGING
from archive_overlay.overlay.dialect import BOOKKEEPING, ENGINE_OWNER_ATTRIBUTE, FOLLOWED, IGNORED, REFUSED
from archive_overlay.system.metadata import SELINUX_LABEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from archive_overlay.log import Repeated
    from archive_overlay.overlay.change import Attributes, LargeAttributes
    from archive_overlay.overlay.dialect import Dialect

# Attributes of an entry are held in memory up to so many bytes, names included. It may have 16,000 of 64 KiB.
_HELD_TOGETHER = 64 * 1024


class Marks:
    """What the overlay says of an entry by its own attributes.

    Attributes:
        opaque: the directory hides what lies below.
        redirect: where in the lower layers its contents are; "" for the same place.
        metacopy: the file's data are in a lower layer.
        other_names: names of the file that are not in the upperdir show its contents too.
        origin: which entry of a lower layer it was copied up from, in the kernel's own form; b"" if it does not say.
        lower_path: where in the lower layers fuse-overlayfs had the file from, a relative path; "" where nothing says so.
        owner: user id, group id and mode that are the true ones; None: those of the entry itself.
    """

    __slots__ = ("lower_path", "metacopy", "opaque", "origin", "other_names", "owner", "redirect")

    def __init__(self) -> None:
        self.opaque = False
        self.redirect = ""
        self.metacopy = False
        self.other_names = False
        self.origin = b""
        self.lower_path = ""
        self.owner: tuple[int, int, int] | None = None


_MOST_DIGITS = 10  # of 32 bits
NO_ATTRIBUTES: dict[str, bytes] = {}
NO_MARKS = Marks()


def read_attributes(
    file: int | str,
    names: list[str],
    dialect: Dialect,
    warnings: Repeated,
    *,
    shown: Callable[[], str],
    on_demand: Callable[[dict[str, int]], LargeAttributes],
) -> tuple[Attributes, Marks]:
    """Read the extended attributes of an entry, and separate the container's from the overlay's.

    Args:
        file: a file descriptor, or the name of one in /proc/self/fd.
        names: the attributes that it has.
        dialect: whose marks are believed.
        warnings: takes one of each attribute that is left out though it says something of the entry.
        shown: gives its path, for messages.
        on_demand: gives attributes with values of these sizes, by name; called if they are too many to be held.

    Returns:
        The container's attributes by full name, and the overlay's marks.

    Raises:
        ArchiveError: an attribute cannot be read, or refers to a place that the hook does not search.
    """
    attributes: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    held = 0
    marks = Marks()
    for name in names:
        if name == SELINUX_LABEL:
            continue
        if name in (TRUSTED_STAGING, USER_STAGING):
            warnings.warning(
                "attributes left out",
                f": the attribute {name} is left out, because this program would act on it",
                path=shown,
            )
            continue
        try:
            value = os.getxattr(file, name)
        except OSError as error:
            fail(f"cannot read the extended attribute {name} of {shown()}", error)
        namespace = next((space for space in dialect.namespaces if name.startswith(space)), "")
        key = name[len(namespace) :]
        # Since Linux 6.7 the attributes of an overlay within the overlay are escaped by a second
        # "overlay."; they are the container's.
        escaped = dialect.escapes and namespace.endswith(".overlay.") and key.startswith("overlay.")
        if name == dialect.owner_attribute:
            marks.owner = _owner(value)
        elif dialect.owner_attribute and name == ENGINE_OWNER_ATTRIBUTE:
            continue
        elif not namespace or escaped:
            sizes[name] = len(value)
            held += len(name) + len(value)
            if held <= _HELD_TOGETHER:
                attributes[name] = value
        elif name in dialect.opaque_attributes:
            marks.opaque = marks.opaque or value == b"y"
        elif key in ("metacopy", "redirect") and dialect.redirects is not IGNORED:
            if dialect.redirects is REFUSED:
                raise ArchiveError(
                    f"{shown()} has {name}, but {dialect.name} does not follow redirects: its contents are lost"
                )
            if key == "redirect" and not value:
                raise ArchiveError(f"the redirect '' of {shown()} is not one that the kernel follows")
            marks.metacopy = marks.metacopy or key == "metacopy"
            marks.redirect = os.fsdecode(value) if key == "redirect" else marks.redirect
        elif key == "origin" and dialect.redirects is FOLLOWED:
            marks.origin = value
        elif key == "nlink":
            marks.other_names = _names_elsewhere(value)
        elif name == dialect.origin_attribute:
            marks.lower_path = os.fsdecode(value.partition(b"\0")[0])
        elif key == "protattr":
            warnings.warning(
                "flags of chattr left out",
                f": it was made {_flags(value)} (chattr), which is left out: no archive can hold it",
                path=shown,
            )
        elif name in dialect.refused:
            raise ArchiveError(
                f"{shown()} has the attribute {name}, and it is not known whether {dialect.name} got its owner from there"
            )
        elif key not in BOOKKEEPING:
            warnings.warning(
                "attributes left out",
                f": the attribute {name} is left out, because an overlay would act on it",
                path=shown,
            )
    if held > _HELD_TOGETHER:
        return on_demand(sizes), marks
    return attributes, marks


def _owner(value: bytes) -> tuple[int, int, int] | None:
    """Read "uid:gid:mode" as fuse-overlayfs 1.10 does; None: it would fail."""
    uid, _, rest = value.lstrip().partition(b":")
    gid, _, rest = rest.partition(b":")
    # The mode is octal, and what comes after it is for later versions.
    mode = rest[: len(rest) - len(rest.lstrip(b"0123456789"))]
    if not uid.isdigit() or not gid.isdigit() or not mode or mode.strip(b"01234567"):
        return None
    if max(len(uid), len(gid), len(mode)) > _MOST_DIGITS:
        return None
    return int(uid), int(gid), int(mode, 8) & 0o7777


def _flags(protection: bytes) -> str:
    """Return the flags that the kernel noted for an entry, and that its real file lacks.

    Source: fs/overlayfs/util.c, ovl_check_protattr.
    """
    known = {ord("i"): "immutable", ord("a"): "append-only"}
    return " and ".join(known[flag] for flag in protection if flag in known) or repr(protection)


def _names_elsewhere(nlink: bytes) -> bool:
    # "U+N": the file has N links more in the overlay than in the upper layer, which counts one of its
    # own, the index entry. Written with index=on only.
    try:
        return nlink.startswith(b"U") and int(nlink[1:]) > -1
    except ValueError:
        return False


def attributes_size(attributes: Attributes) -> int:
    """Return the size in bytes of all names and values, without reading them."""
    names = sum(len(os.fsencode(name)) for name in attributes)
    if isinstance(attributes, dict):
        return names + sum(map(len, attributes.values()))
    return names + sum(attributes.sizes.values())
