"""Owners by other numbers: of files, in their ACLs and in their capabilities.

For a container in a user namespace, engines mount the lower layers of its root file system by an id-mapped mount: what
belongs to user 0 on disk belongs to user 100000 in the overlay, say. What was copied up has the mapped owner on disk.
What the container takes for the owner is another step: `overlay/container_owners`.

Source: mount_setattr(2), "ID-mapped mounts"; capabilities(7), "File capability extended attribute versioning"; the
kernel's include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeVar

    from archive_overlay.overlay.change import Change

    Range = tuple[int, int, int]
    Nobody = TypeVar("Nobody", int, None)

# Whom stat(2) names where an owner is mapped to nobody.
OVERFLOW = 65534
_NOBODY = 0xFFFFFFFF

CAPABILITY = "security.capability"
_MAGIC_SIZE = 4
_REVISION = 0xFF000000
_WITHOUT_ROOT = 0x02000000
_WITH_ROOT = 0x03000000
_ROOT_AT = 20  # in bytes: the user id of the user namespace's root, in a capability of the second form

ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_HEADER = 4
_ACL_ENTRY = 8  # in bytes: tag, permissions, id
_ACL_ID_AT = 4
_ACL_USER = 2
_ACL_GROUP = 8


class OwnerMap(Record):
    """Owners by other numbers: those of an id-mapped mount, or of another user namespace.

    Attributes:
        users, groups: ranges of ids: the first before, the first after, how many.
    """

    users: Sequence[Range]
    groups: Sequence[Range]

    @property
    def changes_nothing(self) -> bool:
        """Whether each owner that it knows keeps its number."""
        return all(before == after for before, after, _ in (*self.users, *self.groups))

    @property
    def inverse(self) -> OwnerMap:
        """The way back."""
        return OwnerMap(users=_inverse(self.users), groups=_inverse(self.groups))

    def then(self, other: OwnerMap) -> OwnerMap:
        """Return the map that does what this one does, and then what another one does."""
        return OwnerMap(users=_chain(self.users, other.users), groups=_chain(self.groups, other.groups))

    def user(self, number: int) -> int | None:
        """Return a user's other number; None: there is none."""
        return _mapped(number, self.users, None)

    def group(self, number: int) -> int | None:
        """Return a group's other number; None: there is none."""
        return _mapped(number, self.groups, None)

    def apply(self, change: Change) -> None:
        """Give a change that was read from the disk the owners that the mount shows.

        Raises:
            ArchiveError: it has file capabilities that the mount does not show.
        """
        change.uid = _mapped(change.uid, self.users, OVERFLOW)
        change.gid = _mapped(change.gid, self.groups, OVERFLOW)
        attributes = change.attributes
        if CAPABILITY in attributes:
            shown = self.capability(attributes[CAPABILITY])
            if shown is None:
                raise unknown_capability(change)
            attributes[CAPABILITY] = shown
        for name in ACLS:
            if name in attributes:
                attributes[name] = self.acl(attributes[name])

    def capability(self, value: bytes) -> bytes | None:
        """Return the capabilities of a file to the root user by its other number; None: it has none."""
        root = root_of_capability(value)
        root = None if root is None else self.user(root)
        return None if root is None else with_root(value, root)

    def acl(self, value: bytes) -> bytes:
        """Return an ACL with the other numbers of those whom it names; -1 stands for who has none."""
        shown = bytearray(value)
        for place, is_user in _named(value):
            ranges = self.users if is_user else self.groups
            owner = _mapped(int.from_bytes(value[place], "little"), ranges, _NOBODY)
            shown[place] = owner.to_bytes(4, "little")
        return bytes(shown)

    def unknown_in_acl(self, value: bytes) -> str:
        """Return the first one named by an ACL who has no other number, as "user 7"; "" if all have one."""
        for place, is_user in _named(value):
            number = int.from_bytes(value[place], "little")
            if (self.user if is_user else self.group)(number) is None:
                return f"{'user' if is_user else 'group'} {number}"
        return ""


def root_of_capability(value: bytes) -> int | None:
    """Give the root user of the user namespace for which a file has capabilities; None: the value has no known form."""
    revision = int.from_bytes(value[:_MAGIC_SIZE], "little") & _REVISION
    if (revision, len(value)) == (_WITHOUT_ROOT, _ROOT_AT):
        return 0
    if (revision, len(value)) == (_WITH_ROOT, _ROOT_AT + 4):
        return int.from_bytes(value[_ROOT_AT:], "little")
    return None


def with_root(value: bytes, root: int) -> bytes:
    """Return the capabilities of a file for the user namespace with another root user.

    Args:
        value: one of which `root_of_capability` knows the form.
        root: the user.
    """
    flags = int.from_bytes(value[:_MAGIC_SIZE], "little") & ~_REVISION
    sets = value[_MAGIC_SIZE:_ROOT_AT]
    if root == 0:
        return (_WITHOUT_ROOT | flags).to_bytes(4, "little") + sets
    return (_WITH_ROOT | flags).to_bytes(4, "little") + sets + root.to_bytes(4, "little")


def unknown_capability(change: Change) -> ArchiveError:
    """Make the error for a file whose capabilities are for an unknown user namespace."""
    return ArchiveError(f"the file capabilities of {change.shown} belong to an unknown user namespace")


def _named(acl: bytes) -> Iterator[tuple[slice, bool]]:
    """Yield where in an ACL the numbers of users and groups are, and whether it is a user."""
    for entry in range(_ACL_HEADER, len(acl) - _ACL_ENTRY + 1, _ACL_ENTRY):
        tag = int.from_bytes(acl[entry : entry + 2], "little")
        if tag in (_ACL_USER, _ACL_GROUP):
            yield slice(entry + _ACL_ID_AT, entry + _ACL_ENTRY), tag == _ACL_USER


def _mapped(owner: int, ranges: Sequence[Range], nobody: Nobody) -> int | Nobody:
    for first, shown, count in ranges:
        if first <= owner < first + count:
            return shown + owner - first
    return nobody


def _inverse(ranges: Sequence[Range]) -> list[Range]:
    return [(after, before, count) for before, after, count in ranges]


def _chain(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    chained = []
    for before, between, count in ranges:
        for first, after, other_count in others:
            start = max(between, first)
            common = min(between + count, first + other_count) - start
            if common > 0:
                chained.append((before + start - between, after + start - first, common))
    return chained
