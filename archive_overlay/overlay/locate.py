"""Find the overlay behind a mount of the spec.

Source: OCI runtime specification, config.md, "Mounts"; proc(5); the mounts that engines were seen to make.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.overlay import dialect, links, mount_programs, store
from archive_overlay.overlay.mount import Mount, OverlayMount
from archive_overlay.overlay.options import from_mount_table, from_spec, upperdirs
from archive_overlay.system import mountinfo, user_namespace
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


# A file that podman mounts into each container.
_ENVIRONMENT_FILE = "/run/.containerenv"

_ABOUT_ARTIFACTS = (
    "an artifact is always read-only; for an archive, mount an image (type=image, rw=true) or a volume (:O)"
)
_REAL_PATH = "name it by its real path in the container's mounts"


def find_overlay(
    mounts: Sequence[Mount],
    root: str,
    mount_point: str,
    *,
    mount_program: str,
    bundle: str = "",
    ended: bool = False,
) -> OverlayMount:
    """Find the overlay that a container has at a mount point.

    Args:
        mounts: the spec's. Of several at one destination the last is what the container saw.
        root: absolute path of the container's root file system; "" where the spec has none.
        mount_point: the destination, normalised; "/" without a mount is the root file system.
        mount_program: path of the executable that serves overlays in user space.
        bundle: absolute path of the container's bundle, which podman has in its store; "" if it has none.
        ended: whether the host may have rebooted since the container ran, so that nothing is mounted any more.

    Raises:
        ArchiveError: there is no such mount, it is no overlay, or its upperdir is gone.
    """
    mount = mount_at(mounts, mount_point)
    believed = _Believed(
        mount_program=mount_program,
        bundle=bundle,
        stores=tuple(store.stores_of(bundle, root)),
        ended=ended,
    )
    if mount:
        overlay = _of_mount(mount, mounts, believed)
    elif mount_point == "/" and root:
        overlay = _of_root(
            root,
            environment_file=environment_file(mounts),
            believed=believed,
        )
    else:
        known = ", ".join(sorted({mount.destination for mount in mounts})) or "none"
        hint = f"mount-point must be the destination of a mount; there are: {known}"
        below = f"{mount_point.rstrip('/')}/"
        if any(mount.destination.startswith(below) and _is_artifact(mount) for mount in mounts):
            # podman mounts each file of an artifact by itself.
            hint = _ABOUT_ARTIFACTS
        raise ArchiveError(f"the container has no mount at {mount_point}", hint=hint)
    if _is_of_a_process(overlay.upper):
        raise ArchiveError(
            f"the upperdir of {mount_point} is {overlay.upper}, which is a different directory in each process"
        )
    if not overlay.upper.startswith("/"):
        raise ArchiveError(
            f"the upperdir {overlay.upper} of {mount_point} is a relative path, and its start is unknown"
        )
    for lower in (*overlay.lowers, *overlay.data_lowers):
        if _is_of_a_process(lower):
            reason = f"{lower} is a different directory in each process"
            overlay = overlay.replace(lowers=(), data_lowers=(), lowers_unknown=reason)
            break
    try:
        is_directory = stat.S_ISDIR(os.stat(overlay.upper).st_mode)
    except FileNotFoundError:
        raise ArchiveError(f"the upperdir {overlay.upper} of {mount_point} does not exist") from None
    except OSError as error:
        fail(f"cannot read the upperdir {overlay.upper} of {mount_point}", error)
    if not is_directory:
        raise ArchiveError(f"the upperdir {overlay.upper} of {mount_point} is not a directory")
    return overlay


def mount_at(mounts: Sequence[Mount], mount_point: str) -> Mount | None:
    """Return the mount that the container saw at a mount point, the last one there; None: the spec has none."""
    return next((mount for mount in reversed(mounts) if mount.destination == mount_point), None)


def _is_of_a_process(path: str) -> bool:
    """Return whether a path leads through what a process has open, by its text."""
    return f"/{os.path.normpath(path).lstrip('/')}".startswith(("/proc/", "/dev/fd/"))


def environment_file(mounts: Sequence[Mount]) -> str:
    """Return the source of the file at /run/.containerenv, which podman has in one of its stores; "" without one."""
    return next((mount.source for mount in reversed(mounts) if mount.destination == _ENVIRONMENT_FILE), "")


class _Believed(Record):
    """The facts that are believed besides the kernel and the spec.

    Attributes:
        mount_program: path of the executable that serves overlays in user space.
        bundle: the container's; "" if it has none.
        stores: the engine's directories of layers.
        ended: see `find_overlay`.
    """

    mount_program: str
    bundle: str
    stores: tuple[str, ...]
    ended: bool


def _of_mount(mount: Mount, mounts: Sequence[Mount], believed: _Believed) -> OverlayMount:
    if mount.type == "overlay":
        overlay = from_spec(mount.options, f"the mount at {mount.destination}")
        overlay = _without_links(_with_absolute_paths(overlay, mount.source, believed), mount, mounts)
        return _with_layers_of_image(overlay, believed)
    mounted = None
    if mount.source.startswith("/") and "\0" not in mount.source:
        try:
            source = links.followed(os.path.normpath(mount.source), mounts)
        except links.ForeignLinkError as error:
            raise ArchiveError(
                f"{mount.destination} is a bind mount of {mount.source}, but {error}", hint=_REAL_PATH
            ) from None
        mounted = _mounts().exactly_at(source)
        overlay_there = _behind(mounted, believed) if mounted else None
        if mounted and not overlay_there:
            overlay_there = _of_ended_server(mounted, believed, "")
        if not mounted and believed.ended:
            overlay_there = _left_in_bundle(source, believed)
        if overlay_there:
            return overlay_there
    raise _not_an_overlay(
        f"{mount.destination} is a {mount.type or 'bind'} mount of {mount.source or 'nothing'}, not an overlay",
        mounted,
        believed,
        hint=_ABOUT_ARTIFACTS
        if _is_artifact(mount)
        else "mount it with rw=true (image mounts) or :O (volumes)",
    )


def _is_artifact(mount: Mount) -> bool:
    """Say whether a mount is a file of an OCI artifact, from podman's store of these, by its text."""
    return "/artifacts/blobs/" in mount.source


def _without_links(overlay: OverlayMount, mount: Mount, mounts: Sequence[Mount]) -> OverlayMount:
    """Follow the links in the paths of an overlay that the spec has."""
    if not overlay.upper.startswith("/"):
        return overlay
    try:
        upper = links.followed(overlay.upper, mounts)
    except links.ForeignLinkError as error:
        raise ArchiveError(
            f"the upperdir of {mount.destination} is {overlay.upper}, but {error}", hint=_REAL_PATH
        ) from None
    overlay = overlay.replace(upper=upper)
    try:
        return overlay.replace(
            lowers=tuple(links.followed(lower, mounts) for lower in overlay.lowers),
            data_lowers=tuple(links.followed(lower, mounts) for lower in overlay.data_lowers),
        )
    except links.ForeignLinkError as error:
        return overlay.with_lowers((), unknown=str(error))


def _mounts() -> mountinfo.MountTable:
    try:
        return mountinfo.read()
    except OSError as error:
        raise ArchiveError(f"cannot read the mounts of this namespace: {error}") from error


def _behind(mounted: mountinfo.MountedFilesystem, believed: _Believed) -> OverlayMount | None:
    """Return the mounted overlay; None: the mount is a part of one, or something else."""
    if mounted.type == "overlay" and mounted.root == "/":
        upper = _upper_in_table(mounted)
        overlay = from_mount_table(mounted.options, f"the mount at {mounted.mount_point}", upper=upper)
        return _with_lowers_of_store(_with_absolute_paths(overlay, mounted.mount_point, believed), believed)
    return mount_programs.overlay_at(mounted, believed.mount_program)


def _upper_in_table(mounted: mountinfo.MountedFilesystem) -> str:
    """Return the upperdir of an overlay in the mount table; "" if it has none.

    Raises:
        ArchiveError: the table's text means two directories, and the kernel does not say which.
    """
    readings = upperdirs(mounted.options)
    there = [reading for reading in readings if os.path.isdir(reading)]
    if len(there) == 2 and not _is_same_directory(*there):
        from archive_overlay.overlay import in_use

        try:
            there = [upper for upper in there if in_use.has_overlay(upper)] if in_use.can_ask() else there
        except OSError as error:
            fail(f"cannot tell whether {' or '.join(there)} is the upperdir at {mounted.mount_point}", error)
        if len(there) != 1:
            raise ArchiveError(
                f"the upperdir of the mount at {mounted.mount_point} is {' or '.join(readings)}: the mount table does not"
                " say which",
                hint="give upperdirs names without backslashes",
            )
    return next(iter(there or readings), "")


def _of_ended_server(
    mounted: mountinfo.MountedFilesystem, believed: _Believed, layer: str
) -> OverlayMount | None:
    """Find the overlay of a FUSE mount whose process has ended.

    Args:
        mounted: the mount.
        believed: what is believed.
        layer: whose root file system it is; "" if it is none.

    Returns:
        None: it is not such a mount.

    Raises:
        ArchiveError: its upperdir is not to be found, or cannot be read.
    """
    if mounted.root != "/" or mounted.type.partition(".")[0] != "fuse":
        return None
    from archive_overlay.overlay import ended_servers

    if not ended_servers.has_ended(mounted, believed.mount_program):
        return None
    ended = f"the process that served the overlay at {mounted.mount_point} has ended"
    if layer:
        upper, lowers = f"{layer}/diff", _known_lowers(layer)
    else:
        upper, lowers = ended_servers.upper_in_bundle(mounted.mount_point, believed.bundle), []
    if not upper:
        raise ArchiveError(f"{ended}, and its upperdir is not in the container's bundle, where podman has it")
    try:
        overlay = ended_servers.overlay_on(upper, lowers)
    except OSError as error:
        fail(f"{ended}, and its upperdir {upper} cannot be read", error)
    return overlay.replace(may_lack=f"{ended}, and what it had not written yet is lost")


def _not_an_overlay(
    what: str, mounted: mountinfo.MountedFilesystem | None, believed: _Believed, *, hint: str
) -> ArchiveError:
    """Give the error for a mount that is no overlay, as far as is known; a program may serve one that is not believed."""
    server = mounted and mount_programs.server_not_believed(mounted, believed.mount_program)
    if not server:
        return ArchiveError(what, hint=hint)
    return ArchiveError(
        f"{what} that {believed.mount_program} serves: {server}",
        hint="if that serves overlays, name it by --mount-program",
    )


def _of_root(root: str, *, environment_file: str, believed: _Believed) -> OverlayMount:
    """Find the overlay of a container's root file system.

    If the container's root user cannot reach the engine's store, root.path is a second mount point, often only in the
    mount namespace of the container's monitor. The store leads to the first one.
    """
    unknown = ""
    place = root
    if not store.layer_at(root):
        try:
            layer = store.layer_of_container(believed.bundle, environment_file)
            place = f"{layer}/merged" if layer else root
        except store.UnknownError as error:
            unknown = f", and its layer cannot be found: {error}"
    mounted = _mounts().at(place)
    overlay = _behind(mounted, believed) if mounted else None
    layer = store.layer_at(place)
    if overlay is None and mounted:
        overlay = _of_ended_server(mounted, believed, layer)
    if overlay is None and layer:
        overlay = _left_in(layer, root, ended=believed.ended)
    if overlay is None:
        raise _not_an_overlay(
            f"the container's root file system {root} is not an overlay{unknown}",
            mounted,
            believed,
            hint="only what is mounted through overlayfs can be archived",
        )
    if layer and not _is_same_directory(overlay.upper, f"{layer}/diff"):
        raise ArchiveError(
            f"the upperdir {overlay.upper} of the container's root file system is not the {layer}/diff of its layer"
        )
    return overlay


def _known_lowers(layer: str) -> list[str]:
    """Return the lowerdirs of a layer, by which its image is known; an empty list if they are not to be found."""
    try:
        return store.lowers(layer)
    except store.UnknownError:
        return []


def _left_in_bundle(mount_point: str, believed: _Believed) -> OverlayMount | None:
    """Find the overlay that fuse-overlayfs served at a mount point in the bundle; None: it was none of those.

    Raises:
        ArchiveError: its upperdir cannot be read.
    """
    from archive_overlay.overlay import ended_servers

    upper = ended_servers.upper_in_bundle(mount_point, believed.bundle)
    if not upper:
        return None
    try:
        # Only the command line of a process that is gone said what lay below.
        return ended_servers.overlay_on(upper)
    except OSError as error:
        fail(f"the upperdir {upper} cannot be read", error)


def _with_layers_of_image(overlay: OverlayMount, believed: _Believed) -> OverlayMount:
    """Return an overlay on an image, with that image's layers if the engine has unmounted it since."""
    lower = overlay.lowers[0] if len(overlay.lowers) == 1 else ""
    layer = store.layer_at(lower)
    if not layer or os.path.dirname(layer) not in map(os.path.realpath, believed.stores):
        return overlay
    try:
        # The engine may have removed the mount point, too.
        if os.path.lexists(lower) and (os.listdir(lower) or _mounts().exactly_at(lower)):
            return overlay
        return overlay.with_lowers(store.image_directories(layer))
    except (OSError, store.UnknownError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        return overlay.with_lowers((), unknown=f"the image at {lower} is not mounted any more, and {reason}")


def _left_in(layer: str, root: str, *, ended: bool) -> OverlayMount | None:
    """Find the overlay of a root file system that the engine has unmounted, in its layer's directory.

    CRI-O unmounts before it runs poststop hooks. A reboot unmounts everything.

    Returns:
        None: something else is where it was mounted.

    Raises:
        ArchiveError: the store lacks some of the facts.
    """
    place = f"{layer}/merged"
    try:
        used = os.path.lexists(place) and (os.path.islink(place) or os.listdir(place))
        if used or mountinfo.read().at(place):
            return None
        lowers = store.lowers(layer)
        if store.has_mount_program(layer):
            if not ended:
                raise store.UnknownError(
                    "it was served by a mount program, whose options are no longer known"
                )
            from archive_overlay.overlay import ended_servers

            served = ended_servers.overlay_on(store.upper(layer), lowers)
            return served.replace(lowers_are_listed=True, program_owners=store.program_owners(layer))
        owners = store.lower_owners(layer)
        upper = store.upper(layer)
        trusted = user_namespace.has_all_users()
    except (OSError, store.UnknownError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise ArchiveError(
            f"the container's root file system {root} is not mounted any more, and what it was made of"
            f" cannot be found: {reason}"
        ) from error
    # A rootless driver mounts with userxattr. Nothing else works in a user namespace: trusted attributes can be neither
    # set nor read there.
    return OverlayMount(
        upper=upper,
        lowers=tuple(lowers),
        dialect=dialect.NATIVE if trusted else dialect.NATIVE_USERXATTR,
        lower_owners=owners,
        lowers_are_listed=True,
    )


def _with_lowers_of_store(overlay: OverlayMount, believed: _Believed) -> OverlayMount:
    """Give an overlay the lower layers that the engine's store lists, whatever the mount table calls them."""
    layer = store.layer_of_upper(overlay.upper, believed.stores)
    if not layer:
        return overlay
    try:
        return overlay.with_lowers(store.lowers(layer), owners=store.lower_owners(layer))
    except store.UnknownError as error:
        # The layers may be in a second store, of which the mount table has the paths. Those in the container's own
        # layer are mounts of the engine's making, and empty directories once it has detached them.
        listed = (*overlay.lowers, *overlay.data_lowers)
        if listed and all(os.path.isdir(lower) and not lower.startswith(f"{layer}/") for lower in listed):
            return overlay
        return overlay.with_lowers((), unknown=str(error))


def _is_same_directory(one: str, other: str) -> bool:
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False


def _with_absolute_paths(overlay: OverlayMount, mount_point: str, believed: _Believed) -> OverlayMount:
    relative = [path for path in (*overlay.lowers, *overlay.data_lowers) if not path.startswith("/")]
    if overlay.upper.startswith("/"):
        if not relative:
            return overlay
        return overlay.with_lowers((), unknown=f"the mount table has {relative[0]}, but not where that is")
    base = store.directory_of_relative(overlay.upper, mount_point, believed.stores)
    if not base:
        return overlay
    return overlay.replace(
        upper=os.path.join(base, overlay.upper),
        lowers=tuple(os.path.join(base, lower) for lower in overlay.lowers),
        data_lowers=tuple(os.path.join(base, lower) for lower in overlay.data_lowers),
    )
