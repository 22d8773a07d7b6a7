"""A mount as the spec has it, and the overlay behind it."""

from __future__ import annotations

from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.dialect import Dialect
    from archive_overlay.overlay.owners import OwnerMap


class Mount(Record):
    """One mount of the spec.

    Attributes:
        destination: where it is in the container, normalised.
        type: "overlay", "bind", ...; empty where the spec has none.
        source: path in the runtime namespace; empty where the spec has none.
        options: as the spec has them.
    """

    destination: str
    type: str
    source: str
    options: tuple[str, ...]


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
        lower_owners: whose it is what lies in the lowerdirs; None: whose it is on disk.
    """

    upper: str
    lowers: tuple[str, ...]
    data_lowers: tuple[str, ...] = ()
    dialect: Dialect
    may_refer_to_lowers: bool = True
    lowers_unknown: str = ""
    lower_owners: OwnerMap | None = None

    def with_lowers(
        self, lowers: Sequence[str], *, unknown: str = "", owners: OwnerMap | None = None
    ) -> OverlayMount:
        """Give the same overlay with other lowerdirs, none of them for data alone.

        Args:
            lowers: see `lowers`.
            unknown: see `lowers_unknown`.
            owners: see `lower_owners`.
        """
        return self.replace(lowers=tuple(lowers), data_lowers=(), lowers_unknown=unknown, lower_owners=owners)
