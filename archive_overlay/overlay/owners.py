"""Owners of what lies in lower layers that the engine mounted with other owners.

For a container in a user namespace, engines mount the lower layers of its root file system by an id-mapped mount: what
belongs to user 0 on disk belongs to user 100000 in the overlay, say. What was copied up has the mapped owner on disk.

Source: mount_setattr(2), "ID-mapped mounts"; capabilities(7), "File capability extended attribute versioning"; the
kernel's include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.change import Change

    Range = tuple[int, int, int]

# Whom stat(2) names where an owner is mapped to nobody.
_OVERFLOW = 65534
_NOBODY = 0xFFFFFFFF

_CAPABILITY = "security.capability"
_MAGIC_SIZE = 4
_REVISION = 0xFF000000
_WITHOUT_ROOT = 0x02000000
_WITH_ROOT = 0x03000000
_ROOT_AT = 20  # in bytes: the user id of the user namespace's root, in a capability of the second form

_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_HEADER = 4
_ACL_ENTRY = 8  # in bytes: tag, permissions, id
_ACL_ID_AT = 4
_ACL_USER = 2
_ACL_GROUP = 8


class OwnerMap(Record):
    """Which owners an id-mapped mount shows.

    Attributes:
        users, groups: ranges of ids: the first on disk, the first in the mount, how many.
    """

    users: Sequence[Range]
    groups: Sequence[Range]

    def apply(self, change: Change) -> None:
        """Give a change that was read from the disk the owners that the mount shows.

        Raises:
            ArchiveError: it has file capabilities that the mount does not show.
        """
        change.uid = _mapped(change.uid, self.users, _OVERFLOW)
        change.gid = _mapped(change.gid, self.groups, _OVERFLOW)
        attributes = change.attributes
        if _CAPABILITY in attributes:
            shown = self._capability(attributes[_CAPABILITY])
            if shown is None:
                raise ArchiveError(
                    f"the file capabilities of {change.shown} belong to an unknown user namespace"
                )
            attributes[_CAPABILITY] = shown
        for name in _ACLS:
            if name in attributes:
                attributes[name] = self._acl(attributes[name])

    def _capability(self, value: bytes) -> bytes | None:
        """Give the capabilities of a file to the root user that the mount shows."""
        magic = int.from_bytes(value[:_MAGIC_SIZE], "little")
        revision, flags = magic & _REVISION, magic & ~_REVISION
        if (revision, len(value)) == (_WITHOUT_ROOT, _ROOT_AT):
            root = 0
        elif (revision, len(value)) == (_WITH_ROOT, _ROOT_AT + 4):
            root = int.from_bytes(value[_ROOT_AT:], "little")
        else:
            return None
        root = _mapped(root, self.users, _NOBODY)
        if root == _NOBODY:
            return None
        sets = value[_MAGIC_SIZE:_ROOT_AT]
        if root == 0:
            return (_WITHOUT_ROOT | flags).to_bytes(4, "little") + sets
        return (_WITH_ROOT | flags).to_bytes(4, "little") + sets + root.to_bytes(4, "little")

    def _acl(self, value: bytes) -> bytes:
        shown = bytearray(value)
        for entry in range(_ACL_HEADER, len(value) - _ACL_ENTRY + 1, _ACL_ENTRY):
            tag = int.from_bytes(value[entry : entry + 2], "little")
            if tag in (_ACL_USER, _ACL_GROUP):
                place = slice(entry + _ACL_ID_AT, entry + _ACL_ENTRY)
                ranges = self.users if tag == _ACL_USER else self.groups
                owner = _mapped(int.from_bytes(value[place], "little"), ranges, _NOBODY)
                shown[place] = owner.to_bytes(4, "little")
        return bytes(shown)


def _mapped(owner: int, ranges: Sequence[Range], nobody: int) -> int:
    for first, shown, count in ranges:
        if first <= owner < first + count:
            return shown + owner - first
    return nobody
