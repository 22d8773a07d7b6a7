"""What all requests of one run of the hook have in common."""

from __future__ import annotations

from archive_overlay.overlay import store
from archive_overlay.overlay.locate import environment_file, find_overlay
from archive_overlay.overlay.mount import KEPT, UNKNOWN
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.destination.paths import Paths
    from archive_overlay.hook.annotations import Context
    from archive_overlay.hook.ledger import Ledger
    from archive_overlay.hook.policy import Policy
    from archive_overlay.hook.runtime import Spec
    from archive_overlay.hook.saved import Saved
    from archive_overlay.log import Log
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.settings import Settings
    from archive_overlay.system.flush import Flush
    from archive_overlay.system.patience import Patience


class Run(Record):
    """What all requests of one run of the hook have in common.

    Attributes:
        settings: the command line's.
        spec: the container's.
        bundle: where that is.
        context: what placeholders in paths stand for.
        paths: where archives and markers may be.
        policy: what archives may hold; None: anything.
        patience: how long it may still wait for other programs.
        flush: when something counts as written.
        ledger: what became of the requests so far.
        saved: where it is noted what is saved; None: nowhere.
        recovering: whether the engine has not run the hook, and the container may be started again.
        running: whether the container runs.
        log: takes what happens.
    """

    settings: Settings
    spec: Spec
    bundle: str
    context: Context
    paths: Paths
    policy: Policy | None
    patience: Patience
    flush: Flush
    ledger: Ledger
    saved: Saved | None = None
    recovering: bool = False
    running: bool = False
    log: Log

    @property
    def place(self) -> store.Place:
        """Where the container is in an engine's store, by what the runtime says."""
        spec = self.spec
        return store.Place(
            container=self.context.id,
            bundle=self.bundle,
            root=spec.root,
            environment_file=environment_file(spec.mounts),
            annotations=spec.annotations,
            started=spec.started,
            running=self.running,
        )

    def find(self, mount_point: str) -> OverlayMount:
        """Find the overlay that the container has at a mount point.

        Args:
            mount_point: normalised.

        Raises:
            ArchiveError: there is none.
        """
        return find_overlay(
            self.spec.mounts,
            self.spec.root,
            mount_point,
            mount_program=self.settings.mount_program,
            bundle=self.bundle,
            ended=self.recovering,
        )

    def lifetime(self, overlay: OverlayMount, mount_point: str) -> str:
        """Say what becomes of the upperdir of an overlay that was found. See `overlay.lifetime`."""
        try:
            from archive_overlay.overlay.lifetime import lifetime
        except (
            ImportError
        ):  # another version has taken the place of this file, and this is for a message alone
            return UNKNOWN
        spec = self.spec
        if self.recovering and mount_point == "/":
            return UNKNOWN  # the engine starts the container with it again, or deletes it with the container
        return lifetime(overlay.upper, mount_point, spec.mounts, root=spec.root, bundle=self.bundle)

    def why_kept_in_place(self, overlay: OverlayMount, mount_point: str) -> str:
        """Say why an upperdir must not become the archive itself; "" if it may."""
        if self.policy:
            return "the hook's policy is to look at every entry"
        found = self.lifetime(overlay, mount_point)
        if found == KEPT:
            return "it is the user's own, and the next container goes on with it"
        if found == UNKNOWN:
            return (
                "it is neither in the container's bundle nor in the engine's store, so it may be needed again"
            )
        return ""
