"""The engine's store on disk: from a container to its layer, and from a layer to its overlay's directories.

    STORE/overlay/LAYER/diff     what the layer holds; a container's is its upperdir
    STORE/overlay/LAYER/diff1    the same before the engine changed its owners; diff2 and so on below it
    STORE/overlay/LAYER/lower    the layers below, topmost first: l/SHORT:l/SHORT:...
    STORE/overlay/LAYER/merged   the mount point
    STORE/overlay/LAYER/mapped   where the layers below were mounted for a user namespace, if they ever were
    STORE/overlay/l/SHORT        a symbolic link to ../LAYER/diff
    STORE/overlay-containers/ID/userdata               podman's bundle
    STORE/overlay-containers/containers.json           layer and user namespace of each container
    STORE/overlay-containers/volatile-containers.json  the same for containers run with --rm

What it has on images is in `overlay/images`.

The mount table does not say all of this: it shows names as the mounting process wrote them, and those may be numbers of
its file descriptors, or mounts that it detached as soon as the overlay was mounted.

Only the engine writes here, except below `diff`, which belongs to containers and images: nothing in there is read. A
container whose root user is the host's makes directories that look just the same in its volumes. So a store is believed
only where the runtime's words lead to it: the bundle, or the root file system's path (see `stores_of`).

Source: drivers/overlay/overlay.go and containers.go of containers/storage; the stores of podman 4.3 and 5.4.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.overlay.owners import OwnerMap
from archive_overlay.system.open_flags import READ
from archive_overlay.system.record import Record
from archive_overlay.system.resolve import SHARED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_CONTAINERS = "overlay-containers"
_RECORDS = ("containers.json", "volatile-containers.json")

# The digits of an id that podman and CRI-O draw at random for a container.
_ID_DIGITS = 64
# Annotations by which Kubernetes' engines say what a container is called.
CONTAINER_NAMES = ("io.kubernetes.container.name", "io.kubernetes.cri.container-name")

# The longest list of lower layers that is read. The driver allows 500 of 29 characters each.
_LONGEST_LIST = 1 << 16

# The longest list of containers that is read. A container takes about 1 KB.
_LONGEST_RECORD = 1 << 26

JSON_SPACE = " \t\n\r"


class Place(Record):
    """What the runtime says of a container's place in a store.

    Attributes:
        container: its id.
        bundle: its bundle.
        root: its root.path.
        environment_file: source of the mount at /run/.containerenv; "" without one. An engine whose list of containers is
            not to outlive a reboot keeps it where that file is.
        annotations: of the container, as people and engines chose them: no fact is to be concluded from them.
        started: when its bundle's config.json was written, in nanoseconds: engines write it at each start, so together with
            the id it says which start of the container this was. 0: nobody knows.
        running: whether it runs.
    """

    container: str
    bundle: str
    root: str
    environment_file: str
    annotations: Mapping[str, object]
    started: int = 0
    running: bool = False


class UnknownError(Exception):
    """The store does not say what is asked; the message says why, with the path."""


def lasting_directory(bundle: str, root: str) -> str:
    """Return the directory that an engine keeps of a container as long as it has the container, reboots included.

    podman has the bundle there. CRI-O has a copy of the bundle's config.json there, and the bundle where a reboot removes it.

    Args:
        bundle: its bundle.
        root: its root.path.

    Returns:
        The bundle, where there is no other.
    """
    _, container = container_in_store(bundle)
    for layers in stores_of(bundle, root) if container else ():
        directory = f"{os.path.dirname(layers)}/{_CONTAINERS}/{container}/userdata"
        if os.path.lexists(f"{directory}/config.json"):
            return directory
    return bundle


def layer_of_container(bundle: str, environment_file: str) -> str:
    """Find the layer that a container's root file system is.

    Args:
        bundle: its bundle; only in a store does it say anything.
        environment_file: source of the mount at /run/.containerenv; "" without one. An engine whose list of
            containers is not to outlive a reboot keeps it where that file is.

    Returns:
        The layer's directory; "" where the bundle is in no store.

    Raises:
        UnknownError: the store does not say.
    """
    containers, container = container_in_store(bundle)
    if os.path.basename(containers) != _CONTAINERS:
        return ""
    elsewhere, same = container_in_store(os.path.dirname(environment_file))
    places = [containers, elsewhere] if same == container and elsewhere != containers else [containers]
    for place in places:
        for record in records(place):
            layer = record.get("layer")
            if record.get("id") == container and isinstance(layer, str) and is_identifier(layer):
                return f"{os.path.dirname(containers)}/overlay/{layer}"
    raise UnknownError(f"{' and '.join(places)} do not list a container {container} with a layer")


def is_of_store(bundle: str, root: str) -> bool:
    """Return whether a container may be one of an engine's store, by the paths in its spec alone.

    Args:
        bundle: its bundle.
        root: its root.path.
    """
    return bool(container_in_store(bundle)[1]) or os.path.basename(root) == "merged"


def container_in_store(directory: str) -> tuple[str, str]:
    """Give the store's directory of containers, and the container, whose directory STORE/DRIVER-containers/ID/userdata is.

    Returns:
        "" and "" for any other directory.
    """
    above, name = os.path.split(os.path.normpath(directory))
    containers, container = os.path.split(above)
    if name == "userdata" and containers.endswith("-containers") and is_drawn(container):
        return containers, container
    return "", ""


def layer_at(mount_point: str) -> str:
    """Return the directory of the layer that has its mount point there; "" for any other place."""
    layer, name = os.path.split(mount_point)
    return layer if name == "merged" and os.path.lexists(f"{layer}/diff") else ""


def stores_of(bundle: str, root: str) -> list[str]:
    """Return the directories of layers of the engine that ran a container, by what the runtime says of the container.

    Args:
        bundle: the container's.
        root: its root file system's path.
    """
    containers, _ = container_in_store(bundle)
    found = [f"{os.path.dirname(containers)}/overlay"] if os.path.basename(containers) == _CONTAINERS else []
    layer = layer_at(root)
    return [*found, os.path.dirname(layer)] if layer else found


def layer_of_upper(upper: str, stores: Sequence[str]) -> str:
    """Return the directory of the layer that an upperdir belongs to; "" where it belongs to none.

    Args:
        upper: absolute path.
        stores: see `stores_of`.
    """
    layer, name = os.path.split(upper)
    if name != "diff" or not os.path.lexists(f"{layer}/lower"):
        return ""
    return layer if any(_is_same(os.path.dirname(layer), store) for store in stores) else ""


def directory_of_relative(upper: str, mount_point: str, stores: Sequence[str]) -> str:
    """Return the directory that an overlay's relative paths are relative to; "" if nobody knows.

    To fit many layers into a page, drivers mount from the store's directory, with paths relative to it. The layer whose
    mount point it is has its upperdir as ID/diff there.

    Args:
        upper: the upperdir's path, as the mount has it.
        mount_point: absolute path.
        stores: see `stores_of`.
    """
    layer = layer_at(mount_point)
    store, name = os.path.split(layer)
    if not layer or upper != f"{name}/diff" or not any(_is_same(store, each) for each in stores):
        return ""
    return store


def upper(layer: str) -> str:
    """Return a layer's upperdir.

    Raises:
        UnknownError: it is not there as a directory.
    """
    return _directory(f"{layer}/diff")


def lowers(layer: str) -> list[str]:
    """Return the directories that a layer's overlay has below its upperdir, topmost first.

    Raises:
        UnknownError: the list of lower layers is missing or malformed, or a layer is not there as a directory.
    """
    store = os.path.dirname(layer)
    for directory in (store, f"{store}/l"):
        check_private(directory)
    text = _text_of(f"{layer}/lower", _LONGEST_LIST)
    found = _older(layer)
    for entry in text.split(":"):
        found += _lower_layer(store, entry)
    return found


def directories(layer: str) -> list[str]:
    """Return the directories that a layer of an image is in, topmost first.

    Args:
        layer: its directory.

    Raises:
        UnknownError: it is in none, or they are not there as directories.
    """
    if os.path.lexists(f"{_directory(layer)}/composefs-data"):
        raise UnknownError(f"the lower layer {layer} is an image of composefs, which is not mounted any more")
    return [_directory(f"{layer}/diff"), *_older(layer)]


def image_directories(layer: str) -> list[str]:
    """Return all directories of the image whose topmost layer this is, topmost first.

    Args:
        layer: its directory.

    Raises:
        UnknownError: see `lowers`.
    """
    own = directories(layer)
    if not os.path.lexists(f"{layer}/lower"):  # there is nothing below it
        check_private(os.path.dirname(layer))
        return own
    return [own[0], *lowers(layer)]


def lower_owners(layer: str) -> OwnerMap | None:
    """Return the owners that a layer's overlay shows for what lies in its lower layers; None: those on disk.

    Raises:
        UnknownError: they are others, and the store does not say which.
    """
    if not os.path.lexists(f"{layer}/mapped"):
        return None
    if owners := _container_owners(layer):
        return owners
    raise UnknownError(
        f"{_containers_of(layer)} does not say who owns the lower layers of {layer} in its user namespace"
    )


def program_owners(layer: str) -> OwnerMap | None:
    """Return the owners that a program in user space showed for what is in a container's layer; None: those on disk.

    Where the container has a user namespace, the engine tells fuse-overlayfs to show the container's numbers on disk as those
    of the host.

    Raises:
        UnknownError: the store does not say.
    """
    return _container_owners(layer)


def _container_owners(layer: str) -> OwnerMap | None:
    """Return the map that the store has for the user namespace of the container with this layer; None: it has none."""
    name = os.path.basename(layer)
    for record in records(_containers_of(layer)):
        if record.get("layer") == name:
            users, groups = _ranges(record.get("uidmap")), _ranges(record.get("gidmap"))
            if users and groups:
                return OwnerMap(users=users, groups=groups)
    return None


def _containers_of(layer: str) -> str:
    return f"{os.path.dirname(os.path.dirname(layer))}/{_CONTAINERS}"


def has_mount_program(layer: str) -> bool:
    """Return whether the overlays of a layer's store are served in user space.

    Raises:
        UnknownError: the store's note of that cannot be read.
    """
    note = f"{os.path.dirname(layer)}/.has-mount-program"
    return os.path.lexists(note) and _text_of(note, _LONGEST_LIST).strip() == "true"


def records(containers: str) -> Iterator[dict[str, object]]:
    """Yield what a store has on each of its containers.

    Args:
        containers: the directory STORE/DRIVER-containers.

    Raises:
        UnknownError: others than the engine can write there, or a list cannot be read.
    """
    check_private(containers)
    for path in (f"{containers}/{name}" for name in _RECORDS):
        if os.path.lexists(path):
            yield from elements(path)


def elements(path: str, *, owners: Collection[int] = ()) -> Iterator[dict[str, object]]:
    """Yield the objects in one of the store's lists, one after the other, so that no more than one is in memory.

    Args:
        path: of a file of JSON.
        owners: whose it may be, besides this user's.

    Raises:
        UnknownError: others can write to it, it cannot be read, or is no list.
    """
    # The scanner of `json`, without the rest: see `hook/runtime`.
    from _json import make_scanner

    text = os.fsdecode(bytes_of(path, _LONGEST_RECORD, owners=owners)).strip(JSON_SPACE)
    if text in ("null", "[]", "{}"):
        return
    scan = make_scanner(AsLoads)  # type: ignore[arg-type]
    position, separator = 0, "["
    try:
        while text[position] == separator:
            value, position = scan(text, after_space(text, position + 1))
            if isinstance(value, dict):
                yield value
            position, separator = after_space(text, position), ","
        if text[position] == "]" and position == len(text) - 1:
            return
    except Exception:  # SystemError among them: without `json` the scanner has no words for what is wrong
        pass
    raise UnknownError(f"{path} is not valid JSON, or not a list")


class AsLoads:
    """What the scanner of `json` has to be told to read JSON as `json.loads` does."""

    strict = True
    object_hook = object_pairs_hook = parse_constant = None
    parse_float = float
    parse_int = int


def after_space(text: str, position: int) -> int:
    """Return the position of what comes next in JSON.

    Raises:
        IndexError: nothing comes.
    """
    while text[position] in JSON_SPACE:
        position += 1
    return position


def _ranges(listed: object) -> list[tuple[int, int, int]]:
    """Read ranges of ids; an empty list where anything in them is not as it should be."""
    found = []
    for entry in _list(listed):
        numbers = (
            [entry.get(key) for key in ("container_id", "host_id", "size")] if isinstance(entry, dict) else []
        )
        first, shown, count = numbers or (None, None, None)
        if not (isinstance(first, int) and isinstance(shown, int) and isinstance(count, int)):
            return []
        found.append((first, shown, count))
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _lower_layer(store: str, entry: str) -> list[str]:
    """Return the directories of an entry l/SHORT in a list of lower layers, topmost first."""
    directory, _, name = entry.partition("/")
    if directory != "l" or not is_identifier(name):
        raise UnknownError(f"{entry[:80]!r} does not name a lower layer")
    try:
        link = os.readlink(f"{store}/{entry}")
    except OSError as error:
        raise UnknownError(f"{store}/{entry}: {error.strerror}") from error
    parts = link.split("/")
    if len(parts) != 3 or parts[0] != ".." or not is_identifier(parts[1]) or parts[2] != "diff":
        raise UnknownError(f"{store}/{entry} leads to {link}, which is not a layer")
    return directories(f"{store}/{parts[1]}")


def _older(layer: str) -> list[str]:
    """Return what a layer was before its owners were mapped to others: diff1 and so on, below its diff."""
    found: list[str] = []
    while os.path.lexists(f"{layer}/diff{len(found) + 1}"):
        found.append(_directory(f"{layer}/diff{len(found) + 1}"))
    return found


def is_identifier(name: str) -> bool:
    """Return whether something can be the id of a layer, an image or a container."""
    return name.isascii() and name.isalnum()


def is_drawn(name: str) -> bool:
    """Say whether a name is an id that an engine draws for a container: nobody can write it into a mount beforehand."""
    return len(name) == _ID_DIGITS and not name.strip("0123456789abcdef")


def _is_same(directory: str, other: str) -> bool:
    try:
        return os.path.samefile(directory, other)
    except OSError:
        return False


def check_private(directory: str, *, owners: Collection[int] = ()) -> None:
    """Make sure that nobody but the engine's user can put anything into a directory.

    Args:
        directory: its path.
        owners: other users who may.

    Raises:
        UnknownError: others can, or it cannot be looked at.
    """
    try:
        status = os.stat(directory)
    except OSError as error:
        raise UnknownError(f"{directory}: {error.strerror}") from error
    _check_owner(status, directory, owners)


def _check_owner(status: os.stat_result, path: str, owners: Collection[int] = ()) -> None:
    owned = status.st_uid == os.geteuid() or status.st_uid in owners
    if not owned or status.st_mode & SHARED:
        raise UnknownError(f"others can write to {path}, so it is not an engine's store")


def bytes_of(path: str, longest: int, what: str = "list", *, owners: Collection[int] | None = ()) -> bytes:
    """Read a file of the store.

    Args:
        path: its path.
        longest: how many bytes it may have.
        what: it is.
        owners: whose it may be, besides this user's; None: its directory has been judged, and the owner says no more.

    Raises:
        UnknownError: it is longer, no regular file, others can write to it, or it cannot be read.
    """
    try:
        fd = os.open(path, READ)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UnknownError(f"{path} is not a regular file")
            if owners is not None:
                _check_owner(status, path, owners)
            with open(fd, "rb", closefd=False) as file:
                text = file.read(longest + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise UnknownError(f"{path}: {error.strerror}") from error
    if len(text) > longest:
        raise UnknownError(f"{path} is longer than any {what} that an engine writes")
    return text


def _directory(path: str) -> str:
    try:
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError as error:
        raise UnknownError(f"{path}: {error.strerror}") from error
    if not is_directory:
        raise UnknownError(f"{path} is not a directory")
    return path


def _text_of(path: str, longest: int) -> str:
    # A layer's own directory may belong to the container's root user.
    return os.fsdecode(bytes_of(path, longest))
