"""A mount of the spec, and the overlay behind it."""

from __future__ import annotations

from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archive_overlay.overlay.container_owners import ContainerOwners
    from archive_overlay.overlay.dialect import Dialect
    from archive_overlay.overlay.owners import OwnerMap

# What becomes of an upperdir when the container has ended. See `overlay.lifetime`.
DELETED = "deleted"  # the engine deletes it, with the container or at its next start
KEPT = "kept"  # the engine uses it again: it is the user's own
UNKNOWN = "unknown"


# Options of a mount that shows other owners than those on disk; ridmap means what is mounted below, too.
IDMAP = ("idmap", "ridmap")


class Mount(Record):
    """One mount of the spec.

    Attributes:
        destination: where it is in the container, normalised.
        type: "overlay", "bind", ...; empty where the spec has none.
        source: path in the runtime namespace; empty where the spec has none.
        options: as the spec has them.
        mappings: what the spec says under `uidMappings` and `gidMappings`; empty where it says nothing.
    """

    destination: str
    type: str
    source: str
    options: tuple[str, ...]
    mappings: Mapping[str, object] = {}

    @property
    def is_id_mapped(self) -> bool:
        """Whether it may show other owners than those on disk."""
        return bool(self.mappings) or any(option.partition("=")[0] in IDMAP for option in self.options)


class OverlayMount(Record):
    """An overlay, by its directories in the runtime namespace.

    Attributes:
        upper: absolute path of the upperdir.
        lowers: absolute paths of the lowerdirs, topmost first.
        data_lowers: of those that have nothing but the data of files, topmost first.
        dialect: how it marks deletions and the like.
        may_refer_to_lowers: whether the upperdir may have files whose data, directories whose contents,
            or names of files, are in the lower layers.
        lowers_unknown: why it is not known what the lowerdirs are; "" if it is.
        lower_owners: owners of what lies in the lowerdirs; None: those on disk.
        program_owners: which owners the program that serves it shows for those on disk; None: the same.
        container_owners: the map to the container's owners; None: nobody asked, or the ids are the hook's.
        lowers_are_listed: whether the lowerdirs are those that the engine's store lists, and not mounts.
        may_lack: why the upperdir may lack something that the container wrote; "" if nothing is known.
    """

    upper: str
    lowers: tuple[str, ...]
    data_lowers: tuple[str, ...] = ()
    dialect: Dialect
    may_refer_to_lowers: bool = True
    lowers_unknown: str = ""
    lower_owners: OwnerMap | None = None
    program_owners: OwnerMap | None = None
    container_owners: ContainerOwners | None = None
    lowers_are_listed: bool = False
    may_lack: str = ""

    def with_lowers(
        self, lowers: Sequence[str], *, unknown: str = "", owners: OwnerMap | None = None
    ) -> OverlayMount:
        """Give the same overlay with the lowerdirs that the engine's store lists, none of them for data alone, or with none.

        Args:
            lowers: see `lowers`.
            unknown: see `lowers_unknown`.
            owners: see `lower_owners`.
        """
        return self.replace(
            lowers=tuple(lowers),
            data_lowers=(),
            lowers_unknown=unknown,
            lower_owners=owners,
            lowers_are_listed=True,
        )
