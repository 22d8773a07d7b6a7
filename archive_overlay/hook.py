"""What happens when a container stops, in the order in which it happens."""

from __future__ import annotations

import time

from archive_overlay import methods, publish, runtime
from archive_overlay.annotations import PREFIX, Context, group_by_name, parse_request
from archive_overlay.errors import ArchiveError, HookError, Interrupted
from archive_overlay.flush import Never, ToDisk
from archive_overlay.marker import Marker
from archive_overlay.overlay.changes import DIRECTORY, FILE, WHITEOUT, changes
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.places import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Callable

    from archive_overlay.annotations import ArchiveRequest
    from archive_overlay.cli import Settings
    from archive_overlay.flush import Flush
    from archive_overlay.image_layout import LayoutDestination
    from archive_overlay.log import Log
    from archive_overlay.overlay.changes import Change
    from archive_overlay.overlay.locate import OverlayMount
    from archive_overlay.publish import Destination
    from archive_overlay.rescue import Rescue
    from archive_overlay.runtime import Spec


def run(settings: Settings, log: Log) -> int:
    """Save what a container asks for in its annotations.

    Args:
        settings: the command line's.
        log: takes what happens.

    Returns:
        0 if all that was asked for is saved, 1 if something is not.

    Raises:
        Interrupted: a signal ended the run; what was being written is removed.
    """
    try:
        state = runtime.state_of_bundle(settings.bundle) if settings.bundle else runtime.read_state(0)
        spec = runtime.read_spec(state.bundle)
    except HookError as error:
        log.error(str(error))
        return 1
    asked = list(group_by_name(spec.annotations, log))
    if not asked:
        return 0
    run = _Run(settings, spec, state.id, log)
    for fault in spec.faults:
        run.complain(fault)
    work = [(name, keys, run.prepare(name, keys)) for name, keys in asked]
    try:
        while work:
            name, keys, archive = work[0]
            if archive:
                run.attempt(name, keys, archive)
            del work[0]
    except Interrupted as interruption:
        for name, keys, archive in work:
            if archive:
                run.give_up(name, keys, str(interruption), hurry=True)
        raise
    return 0 if run.saved_all else 1


class _Run:
    """One run of the hook: what all requests have in common, and whether all is well so far."""

    def __init__(self, settings: Settings, spec: Spec, container: str, log: Log) -> None:
        self.saved_all = True
        self._settings = settings
        self._spec = spec
        self._log = log
        self._places = Places(settings.allowed)
        self._context = Context(id=container, timestamp=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        # All code that is needed is imported before the first archive begins, because a package
        # upgrade may replace this file in the meantime.
        self._flush: Flush = ToDisk() if settings.fsync else Never()
        self._rescue = _make_rescue(settings.rescue_dir, container, log) if settings.rescue_dir else None

    def complain(self, message: str) -> None:
        """Log what is wrong, and remember that something is."""
        self._log.error(message)
        self.saved_all = False

    def prepare(self, name: str, keys: Mapping[str, object]) -> Callable[[], None] | None:
        """Make the work of one archive's annotations; None if they cannot be used."""
        try:
            request = parse_request(name, keys, self._context, self._log)
            writer = methods.load(request.method, request.compression)
        except ArchiveError as error:
            self.give_up(name, keys, str(error), hurry=False)
            return None
        return lambda: self._archive(request, writer)

    def attempt(self, name: str, keys: Mapping[str, object], archive: Callable[[], None]) -> None:
        """Do one archive's work; its failure is its own."""
        try:
            archive()
        except ArchiveError as error:
            self.give_up(name, keys, str(error), hurry=False)
        except Exception as error:  # a fault of this program must not cost the other archives
            self.give_up(name, keys, f"internal error: {_where(error)}; please report it", hurry=False)

    def give_up(self, name: str, keys: Mapping[str, object], reason: str, *, hurry: bool) -> None:
        """Say that an archive failed and where its changes are now; keep them if that was asked for."""
        mount_point = keys.get("mount-point")
        if not isinstance(mount_point, str):
            self.complain(f"archive {name}: {reason}")
            return
        try:
            overlay = self._find(runtime.normal_destination(mount_point))
        except ArchiveError as error:
            missing = "" if str(error) == reason else f"; its changes are not to be found: {error}"
            self.complain(f"archive {name}: {reason}{missing}")
            return
        where = f"its changes are in {overlay.upper} until the engine deletes them"
        if self._rescue:
            try:
                kept = self._rescue.keep(overlay, name, asked=keys, reason=reason, hurry=hurry)
                where = f"its changes are kept in {kept}"
            except ArchiveError as error:
                where = f"{where}, and could not be kept: {error}"
        self.complain(f"archive {name}: {reason}; {where}")

    def _archive(self, request: ArchiveRequest, method: methods.Writer) -> None:
        """Do one request: judge it, remove the old marker, write, publish, create the marker."""
        started = time.monotonic()
        overlay = self._find(request.mount_point)
        self._log.debug(f"archive {request.name}: the upperdir of {request.mount_point} is {overlay.upper}")
        destination = self._judge_destination(request, overlay.upper)
        marker = None
        if request.success:
            marker = Marker(
                request.success, archive_to=destination.path, upper=overlay.upper, places=self._places
            )
        tally = _Tally(self._log)
        with destination.stage(self._flush, self._log) as staging:
            if marker:
                marker.remove(self._flush)
            target = methods.Target(
                staging=staging,
                overlay=overlay,
                owner=request.owner,
                compression=request.compression,
                level=request.level,
                whiteouts=request.whiteouts,
                jobs=self._settings.jobs,
                flush=self._flush,
                may_rename=self._settings.policy is None,
            )
            # In a layer deletions come first, so that nothing can be taken for deleted by what is beside it.
            stream = changes(overlay, self._log, deletions_first=request.method.makes == "layout")
            try:
                layer = method.write(self._as_allowed(tally.counted(stream)), target, self._log)
            finally:
                stream.close()
            facts = {
                f"{PREFIX}{key}": value
                for key, value in (
                    ("container", self._context.id),
                    ("archive", request.name),
                    ("mount-point", request.mount_point),
                    ("entries", str(tally.entries)),
                    ("deletions", str(tally.deletions)),
                )
            }
            comment = (
                f"container {self._context.id}, archive {request.name}, mount point {request.mount_point}"
            )
            done = destination.publish(staging, layer, facts, comment, self._flush)
            if marker:
                marker.create(self._flush)
        self._log.info(
            f"archive {request.name}: saved {tally} of {request.mount_point} to {destination.path} by"
            f" {request.method.name}{f', as {done}' if done else ''} in {time.monotonic() - started:.2f} s"
        )

    def _as_allowed(self, stream: Iterator[Change]) -> Iterator[Change]:
        policy = self._settings.policy
        return policy.applied(stream) if policy else stream

    def _judge_destination(self, request: ArchiveRequest, upper: str) -> Destination | LayoutDestination:
        if request.method.makes == "layout":
            from archive_overlay import image_layout

            return image_layout.judge_destination(
                request.archive_to, parent=request.parent, upper=upper, places=self._places
            )
        return publish.judge_destination(
            request.archive_to,
            makes=request.method.makes,
            if_exists=request.if_exists,
            upper=upper,
            places=self._places,
        )

    def _find(self, mount_point: str) -> OverlayMount:
        return find_overlay(self._spec, mount_point, mount_program=self._settings.mount_program)


def _make_rescue(directory: str, container: str, log: Log) -> Rescue:
    from archive_overlay.rescue import Rescue

    return Rescue(directory, container, log)


class _Tally:
    """Counts what goes by, for the summary."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.entries = self.deletions = self.bytes = 0
        self._counted = False

    def counted(self, stream: Iterator[Change]) -> Iterator[Change]:
        self._counted = True
        trace = self._log.wants("trace")
        for change in stream:
            if trace:
                self._log.trace(f"{change.path or '.'}: {change.kind}")
            if change.kind is WHITEOUT:
                self.deletions += 1
            elif change.name or change.kind is not DIRECTORY:
                self.entries += 1
                if change.kind is FILE and change.link_to is None:
                    self.bytes += change.size
            yield change

    def __str__(self) -> str:
        if not self._counted:
            return "the upperdir"
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        deletions = "1 deletion" if self.deletions == 1 else f"{self.deletions} deletions"
        return f"{entries}, {deletions} and {self.bytes} bytes"


def _where(error: Exception) -> str:
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__}: {error}{where}"
