"""Map the owners in a stream of changes from those on disk to those in the container.

Source: the kernel's security/commoncap.c, cap_inode_getsecurity. Where the maps come from: `overlay/mappings`.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.log import Repeated
from archive_overlay.overlay.change import FILE, WHITEOUT
from archive_overlay.overlay.owners import (
    ACLS,
    CAPABILITY,
    OVERFLOW,
    OwnerMap,
    root_of_capability,
    unknown_capability,
    with_root,
)
from archive_overlay.system import user_namespace
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change

_SET_USER_ID = 0o4000
_SET_GROUP_ID = 0o2000

# What else can be done where an owner has no number in the container.
KEEP = "owners=host keeps the numbers that owners have on the host"


class ContainerOwners(Record):
    """Maps ids on disk to ids in the container.

    Attributes:
        files: those of the owners of files.
        attributes: those in ACLs and file capabilities, which no mount program maps.
    """

    files: OwnerMap
    attributes: OwnerMap

    def applied(
        self, stream: Iterator[Change], log: Log, *, directory: bool, any_owner: bool
    ) -> Iterator[Change]:
        """Yield the changes with the owners that the container saw.

        Args:
            stream: the changes as they are on disk.
            log: takes warnings of what is left out.
            directory: they become files of the host, where the ids belong to other users. So that nobody gets these
                users' rights by running a file, it loses its set-user-ID and set-group-ID bits and its capabilities.
            any_owner: owners do not matter, because the archive replaces them.

        Raises:
            ArchiveError: an owner has no number in the container, or cannot have it in a directory.
        """
        warnings = Repeated(log)
        here = _here() if directory else None
        try:
            for change in stream:
                if change.kind is WHITEOUT:
                    change.uid = change.gid = 0  # the kernel made it, and not the container
                else:
                    lost = self._give_owner(change, here, any_owner=any_owner)
                    if directory and change.kind is FILE and change.mode & lost:
                        _leave_out(change, lost, warnings)
                    if change.attributes:
                        self._map_attributes(change, warnings, directory=directory)
                yield change
        finally:
            warnings.finish()

    def _give_owner(self, change: Change, here: OwnerMap | None, *, any_owner: bool) -> int:
        """Set a change's owner in the container, and return the mode bits that would then mean another user."""
        user, group = self.files.user(change.uid), self.files.group(change.gid)
        if not any_owner and (user is None or group is None):
            unknown = f"user {change.uid}" if user is None else f"group {change.gid}"
            raise ArchiveError(
                f"{change.shown} belongs to {unknown}, who has no number in the container's user namespace",
                hint=f"{KEEP}; in a tar or an image, tar-content-owner gives everything one owner",
            )
        user = OVERFLOW if user is None else user
        group = OVERFLOW if group is None else group
        if here and (here.user(user) is None or here.group(group) is None):
            unknown = f"user {user}" if here.user(user) is None else f"group {group}"
            raise ArchiveError(
                f"{change.shown} belongs to {unknown} of the container, whom this hook's user namespace does not have",
                hint=f"a tar or an image can hold that; {KEEP}",
            )
        lost = (_SET_USER_ID if user != change.uid else 0) | (_SET_GROUP_ID if group != change.gid else 0)
        change.uid, change.gid = user, group
        return lost

    def _map_attributes(self, change: Change, warnings: Repeated, *, directory: bool) -> None:
        attributes = change.attributes
        if CAPABILITY in attributes:
            value = attributes[CAPABILITY]
            shown = self._capability(value)
            if shown is None:
                raise unknown_capability(change)
            if directory and shown != value:
                del attributes[CAPABILITY]
                warnings.warning(
                    "file capabilities left out",
                    ": its file capabilities are left out, because they are for another user namespace on the host; a"
                    " tar or an image keeps them, and so does owners=host",
                    path=lambda: change.shown,
                )
            else:
                attributes[CAPABILITY] = shown
        for name in ACLS:
            if name in attributes:
                value = attributes[name]
                unknown = self.attributes.unknown_in_acl(value)
                if unknown:
                    raise ArchiveError(
                        f"the attribute {name} of {change.shown} names {unknown}, who has no number in the container's"
                        " user namespace",
                        hint=KEEP,
                    )
                attributes[name] = self.attributes.acl(value)

    def _capability(self, value: bytes) -> bytes | None:
        """Return the capabilities of a file as getxattr(2) does in the container; None: it has no access to them."""
        root = root_of_capability(value)
        if root is None:
            return None
        inside = self.attributes.user(root)
        if inside is None and root == 0:
            inside = 0  # root of the namespace around it: what he gives counts in the container as well
        return None if inside is None else with_root(value, inside)


def _here() -> OwnerMap:
    """Return the owners that this process can set."""
    try:
        users, groups = user_namespace.numbers()
    except OSError as error:
        fail("cannot find out which users there are here", error)
    return OwnerMap(
        users=[(first, first, count) for first, count in users],
        groups=[(first, first, count) for first, count in groups],
    )


def _leave_out(change: Change, bits: int, warnings: Repeated) -> None:
    change.mode &= ~bits
    warnings.warning(
        "set-user-ID and set-group-ID left out",
        ": set-user-ID and set-group-ID are left out, because its owner in the container is another one on the host; a"
        " tar or an image keeps them, and so does owners=host",
        path=lambda: change.shown,
    )
