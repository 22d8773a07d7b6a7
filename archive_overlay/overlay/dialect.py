"""How each kind of overlay marks whiteouts, opaque directories and its own bookkeeping.

Source: the kernel's Documentation/filesystems/overlayfs.rst; for fuse-overlayfs, its behaviour as measured.
"""

from __future__ import annotations

from archive_overlay.marks import (
    ENGINE_OWNER,
    FUSE_OPAQUE,
    FUSE_ORIGIN,
    FUSE_SECURITY,
    FUSE_USER,
    OPAQUE_MARKER,
    TRUSTED,
    TRUSTED_OPAQUE,
    USER,
    USER_OPAQUE,
)
from archive_overlay.system.record import Record

FOLLOWED = "followed"
REFUSED = "refused"
IGNORED = "ignored"


class Dialect(Record):
    """The marks of one kind of overlay. All other marks were set by a container, and mean nothing.

    Attributes:
        name: for messages.
        namespaces: prefixes of the extended attributes that the overlay keeps for itself, or that would
            come alive in an archive.
        opaque_attributes: extended attributes that make a directory opaque when they are "y".
        opaque_attribute: the one that an archive has.
        whiteout_files: whether `.wh.NAME` deletes NAME and `.wh..wh..opq` makes a directory opaque.
        escapes: whether it escapes the attributes of an overlay within the overlay by a second "overlay.".
        owner_attribute: the one that has the true owner and mode of files and directories, which are then no
            ordinary attributes of theirs; "" where there is none.
        origin_attribute: the one that has the path that a file had in a lower layer; "" where there is none that says so.
        redirects: what it does where a file's data or a directory's contents are said to be in a lower
            layer: FOLLOWED, REFUSED or IGNORED.
        refused: attributes that the overlay may or may not act on: an entry that has one is not read.
    """

    name: str
    namespaces: tuple[str, ...]
    opaque_attributes: tuple[str, ...]
    opaque_attribute: str
    whiteout_files: bool
    escapes: bool
    redirects: str
    owner_attribute: str = ""
    refused: tuple[str, ...] = ()
    origin_attribute: str = ""


NATIVE = Dialect(
    name="overlayfs",
    namespaces=(TRUSTED,),
    opaque_attributes=(TRUSTED_OPAQUE,),
    opaque_attribute=TRUSTED_OPAQUE,
    redirects=FOLLOWED,
    escapes=True,
    whiteout_files=False,
)

# The mount option userxattr: what an overlay in a user namespace uses.
NATIVE_USERXATTR = Dialect(
    name="overlayfs with userxattr",
    namespaces=(USER,),
    opaque_attributes=(USER_OPAQUE,),
    opaque_attribute=USER_OPAQUE,
    redirects=REFUSED,
    escapes=True,
    whiteout_files=False,
)


# Its own marks are in three namespaces, but user.overlay.* a container can set: it is in `namespaces`,
# so that it is left out, and not in `opaque_attributes`, so that it is not believed. What the archive
# has restacks under fuse-overlayfs and under a native userxattr mount alike.
def _fuse_overlayfs(owner_attribute: str) -> Dialect:
    return Dialect(
        name="fuse-overlayfs",
        namespaces=(TRUSTED, FUSE_USER, FUSE_SECURITY, USER),
        opaque_attributes=(TRUSTED_OPAQUE, FUSE_OPAQUE),
        opaque_attribute=USER_OPAQUE,
        redirects=IGNORED,
        escapes=False,
        whiteout_files=True,
        owner_attribute=owner_attribute,
        origin_attribute=FUSE_ORIGIN,
    )


FUSE_OVERLAYFS = _fuse_overlayfs("")
# By the value of its mount option xattr_permissions.
FUSE_OVERLAYFS_WITH_OWNERS = {
    "1": _fuse_overlayfs(f"{FUSE_SECURITY}override_stat"),
    "2": _fuse_overlayfs(f"{FUSE_USER}override_stat"),
}
# If the option is unknown, and the upperdir says that it was off.
FUSE_OVERLAYFS_WITHOUT_OWNERS = FUSE_OVERLAYFS.replace(
    refused=tuple(kind.owner_attribute for kind in FUSE_OVERLAYFS_WITH_OWNERS.values())
)
# With force_mask, engines note so at the top of a layer that its owners are in attributes.
ENGINE_OWNER_ATTRIBUTE = ENGINE_OWNER

# Not an overlay: everything is taken as it stands, marks included.
RAW = Dialect(
    name="no overlay",
    namespaces=(),
    opaque_attributes=(),
    opaque_attribute="",
    redirects=IGNORED,
    escapes=False,
    whiteout_files=False,
)

# fuse-overlayfs makes a directory opaque by an entry of the first name, whatever its type. It puts a device of the
# second name beside it, which by itself deletes the name ".opq".
OPAQUE_MARKERS = frozenset((OPAQUE_MARKER, ".wh..opq"))

# What the kernel and fuse-overlayfs note for themselves, without the namespace. It describes one mount
# of one upperdir, and is left out of archives. So is protattr, but with a warning.
BOOKKEEPING = frozenset(("origin", "impure", "nlink", "upper", "uuid"))
