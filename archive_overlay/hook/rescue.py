"""Settling what failed: saying where its changes are now, and keeping them if that was asked for."""

from __future__ import annotations

from archive_overlay.errors import ArchiveError, Interrupted, internal_error
from archive_overlay.hook.runtime import normal_destination
from archive_overlay.overlay.mount import DELETED, KEPT
from archive_overlay.system.metadata import is_twin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from archive_overlay.hook.ledger import Failure, Ledger
    from archive_overlay.hook.rescue_dir import RescueDirectory
    from archive_overlay.overlay.mount import OverlayMount

    Find = Callable[[str], OverlayMount]
    Lifetime = Callable[[OverlayMount, str], str]


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
            where = _settle(failure, ledger, find, lifetime_of, rescue, hurry=hurry)
            ledger.complain(f"archive {failure.name}: {failure.reason}{where}")
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
    ledger: Ledger,
    find: Find,
    lifetime_of: Lifetime,
    rescue: RescueDirectory | None,
    *,
    hurry: bool,
) -> str:
    """Settle one failure, and say where its changes are."""
    mount_point = failure.keys.get("mount-point")
    if not failure.keep or not isinstance(mount_point, str):
        return ""
    mount_point = normal_destination(mount_point)
    try:
        overlay = find(mount_point)
    except ArchiveError as error:
        return "" if str(error) == failure.reason else f"; its changes are not to be found: {error}"
    if overlay.upper in ledger.moved:
        ledger.kept.append(failure.name)
        return f"; its changes are in {ledger.moved[overlay.upper]}"
    if is_twin(overlay.upper):
        return ""
    lifetime = lifetime_of(overlay, mount_point)
    if lifetime == KEPT:
        return f"; its changes stay in {overlay.upper}, which the engine does not delete"
    where = f"; its changes are in {overlay.upper}"
    if lifetime == DELETED:
        where += " until the engine deletes them"
    if not rescue:
        return where
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
        return f"{where}, and could not be kept: {error}"
    except Exception as error:  # a fault of this program must not cost other failures their rescue
        return f"{where}, or are in {rescue.path} already: {internal_error(error)}"
    ledger.moved[overlay.upper] = kept
    ledger.kept.append(failure.name)
    return f"; its changes are kept in {kept}"
