"""Find the id mappings of a container's files: what the spec and the mounts say.

A container in a user namespace has other ids than the hook. There are up to three steps from the disk to the container,
each with a map of its own:

    on disk ─▶ what the mount program shows ─▶ what an id-mapped mount shows ─▶ what the container sees
               uidmapping of fuse-overlayfs    uidMappings of the mount         uidMappings of the container

The first two are there if the mount maps owners by itself; then often nothing remains to be done. The numbers outside
that the spec has are those of the namespace in which the runtime and its hooks run: for a rootless podman, its own.

Source: OCI runtime specification, config-linux.md, "User namespace mappings", and config.md, "Mounts"; crun(1), "idmap
mount options"; user_namespaces(7). docs/design.md, "Owners", says what engines were seen to do.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.overlay.container_owners import KEEP, ContainerOwners
from archive_overlay.overlay.mount import IDMAP
from archive_overlay.overlay.owners import OwnerMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archive_overlay.overlay.mount import Mount, OverlayMount
    from archive_overlay.overlay.owners import Range

_LARGEST_ID = 2**32 - 1
_MOST_DIGITS = 10  # of such a number
_EVERYBODY = ((0, 0, _LARGEST_ID),)
_KINDS = ("uidMappings", "gidMappings")
_OF_CRUN = {"uids": "uidMappings", "gids": "gidMappings"}


def find(
    user_namespace: Mapping[str, object], mount: Mount | None, overlay: OverlayMount
) -> ContainerOwners | None:
    """Find the map from the owners on disk of an overlay to those in the container.

    Args:
        user_namespace: what the spec says of the container's; empty: it has the hook's.
        mount: the spec's mount through which the container sees the overlay; None: it is the root file system.
        overlay: how it is mounted.

    Returns:
        None: the ids are the same.

    Raises:
        ArchiveError: the spec or the mount does not say.
    """
    container = _container(user_namespace)
    program = overlay.program_owners or _same()
    if mount and _is_mapped_for_container(mount):
        # The container's own map undoes what the mount shows outside the container.
        container = _same()
    elif mount and (by_mount := _of_mount(mount)):
        shown, relative = by_mount
        program = program.then(shown)
        container = _same() if relative else container
        return _unless_same(program.then(container), shown.then(container))
    return _unless_same(program.then(container), container)


def _unless_same(files: OwnerMap, attributes: OwnerMap) -> ContainerOwners | None:
    if files.changes_nothing and attributes.changes_nothing:
        return None
    return ContainerOwners(
        files=_same() if files.changes_nothing else files,
        attributes=_same() if attributes.changes_nothing else attributes,
    )


def _same() -> OwnerMap:
    return OwnerMap(users=_EVERYBODY, groups=_EVERYBODY)


def _container(said: Mapping[str, object]) -> OwnerMap:
    """Return the map from the hook's numbers to the container's."""
    if not said or _is_own(said.get("path")):
        return _same()
    maps = _maps(said, "linux", "containerID", "hostID")
    if maps is None:
        raise ArchiveError(
            "the spec has no uidMappings for the container's user namespace, so the container's owners of files are unknown",
            hint=KEEP,
        )
    return maps.inverse


def _is_own(path: object) -> bool:
    """Return whether a path names the hook's own user namespace."""
    try:
        return isinstance(path, str) and bool(path) and os.path.samefile(path, "/proc/self/ns/user")
    except (OSError, ValueError):
        return False


def _is_mapped_for_container(mount: Mount) -> bool:
    """Return whether the container's own user namespace maps a mount, as the bare option idmap requests."""
    return not mount.mappings and any(option in IDMAP for option in mount.options)


def _of_mount(mount: Mount) -> tuple[OwnerMap, bool] | None:
    """Return what an id-mapped mount shows for what is on disk, and whether that is in the container's own numbers."""
    what = f"the mount at {mount.destination}"
    maps = _maps(mount.mappings, what, "containerID", "hostID")
    if maps:
        return maps, False
    for option in mount.options:
        name, _, value = option.partition("=")
        if name in IDMAP and value:
            return _of_crun(value, what)
    return None


def _of_crun(text: str, what: str) -> tuple[OwnerMap, bool]:
    """Read what crun is told of an id-mapped mount: uids=DISK-SHOWN-COUNT#...;gids=...

    Where ranges begin with @, what is shown is in the container's numbers.
    """
    said: dict[str, object] = {}
    relative = set()
    for part in text.split(";"):
        kind, _, ranges = part.partition("=")
        relative.add(ranges.startswith("@"))
        triples = [triple.split("-") for triple in ranges.removeprefix("@").split("#")]
        said[_OF_CRUN.get(kind, kind)] = [
            {str(place): _as_number(number) for place, number in enumerate(triple)} for triple in triples
        ]
    if said.keys() - set(_KINDS) or len(relative) > 1:
        raise ArchiveError(
            f"{what} has the option idmap={brief(text)}, which this program does not understand", hint=KEEP
        )
    maps = _maps(said, what, "0", "1", "2")
    assert maps
    return maps, True in relative


def _as_number(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS else -1


def _maps(
    said: Mapping[str, object], what: str, before: str, after: str, count: str = "size"
) -> OwnerMap | None:
    """Read mappings; None: there are none. If only users have mappings, groups have the same ids."""
    ranges = {}
    for kind in _KINDS:
        listed = said.get(kind)
        if listed:
            ranges[kind] = _ranges(listed, f"{kind} of {what} in the spec", (before, after, count))
    if not ranges:
        return None
    users, groups = (ranges.get(kind, _EVERYBODY) for kind in _KINDS)
    return OwnerMap(users=users, groups=groups)


def _ranges(listed: object, what: str, keys: Sequence[str]) -> list[Range]:
    found = []
    for entry in listed if isinstance(listed, list) else (None,):
        numbers = [_number(entry.get(key)) for key in keys] if isinstance(entry, dict) else [-1]
        if min(numbers) < 0:
            raise ArchiveError(
                f"{what} are malformed: each must have {', '.join(keys)}, numbers from 0 to {_LARGEST_ID}"
            )
        first, shown, count = numbers
        found.append((first, shown, count))
    return found


def _number(value: object) -> int:
    """Return a number of a user or of users; -1 if it is not one."""
    return value if type(value) is int and 0 <= value <= _LARGEST_ID else -1
