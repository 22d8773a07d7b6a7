"""Settling what failed: saying where its changes are now, and keeping them if that was asked for."""

from __future__ import annotations

from archive_overlay.errors import ArchiveError, Interrupted, brief, internal_error
from archive_overlay.hook.runtime import normal_destination
from archive_overlay.overlay.mount import DELETED, KEPT
from archive_overlay.system.activity import doing
from archive_overlay.system.metadata import is_twin
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from archive_overlay.hook.ledger import Failure, Ledger
    from archive_overlay.hook.rescue_dir import RescueDirectory
    from archive_overlay.overlay.mount import OverlayMount

    Find = Callable[[str], OverlayMount]
    Lifetime = Callable[[OverlayMount, str], str]


class Whereabouts(Record):
    """Where the changes of an archive that failed are.

    Attributes:
        said: the same in words, to follow the reason; "" if there is nothing to say.
        path: of the upperdir, wherever it is now; "" if it is not known.
        kept: whether it stays there; None: nobody knows.
    """

    said: str = ""
    path: str = ""
    kept: bool | None = None


def settle(
    ledger: Ledger, find: Find, lifetime_of: Lifetime, rescue: RescueDirectory | None, *, hurry: bool
) -> None:
    """Say what failed and where its changes are now; keep them if that was asked for.

    This comes last, because keeping an upperdir may rename it.

    Args:
        ledger: has the failures.
        find: gives the overlay at a mount point, as `overlay.locate` does.
        lifetime_of: says what becomes of its upperdir, as `overlay.lifetime` does.
        rescue: keeps upperdirs; None: nobody asked for that.
        hurry: do only what takes no time.

    Raises:
        Interrupted: a signal came meanwhile.
    """
    interrupted = None
    failures = list(ledger.failures)
    while failures:
        failure = failures[0]
        try:
            with doing("keeping its changes", subject=f"archive {failure.name}", slow=False):
                where = _settle(failure, ledger.moved, find, lifetime_of, rescue, hurry=hurry)
            ledger.note(
                failure.name,
                {
                    "error": brief(failure.reason),
                    "changes": where.path or None,
                    "changes_kept": where.kept,
                },
            )
            ledger.complain(f"archive {failure.name}: {failure.reason}{where.said}")
            if where.path in ledger.moved.values():
                ledger.kept.append(failure.name)
            del failures[0]
        except Interrupted as error:
            # From now on signals are ignored, and only what takes no time is done. A failure is rather said twice
            # than not at all.
            interrupted = error
            hurry = True
    if interrupted:
        raise interrupted


def _settle(
    failure: Failure,
    moved: dict[str, str],
    find: Find,
    lifetime_of: Lifetime,
    rescue: RescueDirectory | None,
    *,
    hurry: bool,
) -> Whereabouts:
    """Settle one failure, and say where its changes are."""
    mount_point = failure.keys.get("mount-point")
    if not failure.keep or not isinstance(mount_point, str):
        return Whereabouts()
    mount_point = normal_destination(mount_point)
    try:
        overlay = find(mount_point)
    except ArchiveError as error:
        unsaid = str(error) != failure.reason
        return Whereabouts(said=f"; its changes are not to be found: {error}" if unsaid else "")
    if overlay.upper in moved:
        there = moved[overlay.upper]
        return Whereabouts(said=f"; its changes are in {there}", path=there, kept=True)
    if is_twin(overlay.upper):
        return Whereabouts()
    lifetime = lifetime_of(overlay, mount_point)
    if lifetime == KEPT:
        said = f"; its changes stay in {overlay.upper}, which the engine does not delete"
        return Whereabouts(said=said, path=overlay.upper, kept=True)
    said = f"; its changes are in {overlay.upper}"
    if lifetime == DELETED:
        said += " until the engine deletes them"
    left = Whereabouts(said=said, path=overlay.upper, kept=False if lifetime == DELETED else None)
    if not rescue:
        return left
    try:
        kept = rescue.keep(
            overlay,
            failure.name,
            asked=failure.keys,
            reason=failure.reason,
            may_rename=lifetime == DELETED,
            hurry=hurry,
        )
    except ArchiveError as error:
        return left.replace(said=f"{said}, and could not be kept: {error}")
    except Exception as error:  # a fault of this program must not cost other failures their rescue
        said += f", or are in {rescue.path} already: {internal_error(error)}"
        return Whereabouts(said=said, path=overlay.upper)
    moved[overlay.upper] = kept
    return Whereabouts(said=f"; its changes are kept in {kept}", path=kept, kept=True)
