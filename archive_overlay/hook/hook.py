"""What happens when a container stops, in the order in which it happens."""

from __future__ import annotations

import time

from archive_overlay import methods
from archive_overlay.destination import publish
from archive_overlay.destination.marker import Marker
from archive_overlay.destination.paths import Paths
from archive_overlay.errors import ArchiveError, HookError, Interrupted, internal_error, interruption
from archive_overlay.hook import runtime
from archive_overlay.hook.annotations import PREFIX, Context, group_by_name, parse_request
from archive_overlay.overlay.change import DIRECTORY, WHITEOUT
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.overlay.upper import read_changes
from archive_overlay.system.flush import Never, ToDisk
from archive_overlay.system.metadata import is_twin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from archive_overlay.cli import Settings
    from archive_overlay.destination.publish import Destination
    from archive_overlay.hook.annotations import ArchiveRequest
    from archive_overlay.hook.rescue import Rescue
    from archive_overlay.hook.runtime import Spec
    from archive_overlay.layout.add_layer import LayoutDestination
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.locate import OverlayMount
    from archive_overlay.system.flush import Flush


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
    work = _Work(settings, spec, state.id, log)
    for fault in spec.faults:
        work.complain(fault)
    try:
        work.do(asked)
    except Interrupted as interruption:
        work.give_up_all(str(interruption))
        raise
    finally:
        work.settle_failures()
    return 0 if work.saved_all else 1


class _Failure:
    """A request that could not be done."""

    __slots__ = ("keys", "name", "reason")

    def __init__(self, name: str, keys: Mapping[str, object], reason: str) -> None:
        self.name = name
        self.keys = keys
        self.reason = reason


class _Work:
    """One run of the hook: what all requests have in common, and what became of them so far."""

    def __init__(self, settings: Settings, spec: Spec, container: str, log: Log) -> None:
        self.saved_all = True
        self._settings = settings
        self._spec = spec
        self._log = log
        self._paths = Paths(settings.allowed)
        self._context = Context(id=container, timestamp=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        self._flush: Flush = ToDisk() if settings.fsync else Never()
        self._rescue = _make_rescue(settings.rescue_dir, container, log) if settings.rescue_dir else None
        self._interrupted = False
        self._pending: list[tuple[str, Mapping[str, object], ArchiveRequest, methods.Writer]] = []
        self._failures: list[_Failure] = []
        self._safe = ""  # name of the last archive that is all that it should be
        self._published: dict[str, str] = {}  # destination: name of the archive
        self._gone: dict[str, str] = {}  # upperdir that was renamed: where it is now

    def complain(self, message: str) -> None:
        """Log what is wrong, and remember that something is."""
        self._log.error(message)
        self.saved_all = False

    def do(self, asked: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """Do all requests; the failure of each is its own.

        Args:
            asked: names of archives, and their annotations.

        Raises:
            Interrupted: a signal ended the run; some requests are pending.
        """
        # All code that is needed is imported before the first archive begins, because a package upgrade
        # may replace this file in the meantime.
        for name, keys in asked:
            try:
                request = parse_request(name, keys, self._context, self._log)
                self._pending.append((name, keys, request, methods.load(request.method, request.compression)))
            except ArchiveError as error:
                self._failures.append(_Failure(name, keys, str(error)))
            except Exception as error:  # see below
                self._failures.append(_Failure(name, keys, internal_error(error)))
        # What renames the upperdir comes last, for it leaves nothing to archive for the others.
        self._pending.sort(key=lambda pending: pending[2].method.name == "move")
        while self._pending:
            name, keys, request, writer = self._pending[0]
            try:
                self._archive(request, writer)
            except Exception as error:  # a fault of this program must not cost the other archives
                if end := interruption(error):
                    raise end from error
                reason = str(error) if isinstance(error, ArchiveError) else internal_error(error)
                self._failures.append(_Failure(name, keys, reason))
            del self._pending[0]

    def give_up_all(self, reason: str) -> None:
        """Count all that is pending as failed, and be quick from now on."""
        self._interrupted = True
        self._failures += [
            _Failure(name, keys, reason)
            for name, keys, _, _ in self._pending
            if name != self._safe  # of which only cleaning up was left
        ]

    def settle_failures(self) -> None:
        """Say what failed and where its changes are now; keep them if that was asked for.

        This comes last, because keeping an upperdir may rename it.

        Raises:
            Interrupted: a signal came meanwhile.
        """
        interrupted = None
        for failure in self._failures:
            try:
                where = self._settle(failure)
            except Interrupted as error:
                # From now on signals are ignored, and only what takes no time is done.
                interrupted = error
                self._interrupted = True
                where = self._settle(failure)
            self.complain(f"archive {failure.name}: {failure.reason}{where}")
        if interrupted:
            raise interrupted

    def _settle(self, failure: _Failure) -> str:
        mount_point = failure.keys.get("mount-point")
        if not isinstance(mount_point, str):
            return ""
        try:
            overlay = self._find(runtime.normal_destination(mount_point))
        except ArchiveError as error:
            return "" if str(error) == failure.reason else f"; its changes are not to be found: {error}"
        if overlay.upper in self._gone:
            return f"; its changes are in {self._gone[overlay.upper]}"
        if is_twin(overlay.upper):
            return ""
        where = f"; its changes are in {overlay.upper} until the engine deletes them"
        if not self._rescue:
            return where
        try:
            kept = self._rescue.keep(
                overlay,
                failure.name,
                asked=failure.keys,
                reason=failure.reason,
                hurry=self._interrupted,
            )
        except ArchiveError as error:
            return f"{where}, and could not be kept: {error}"
        except Exception as error:  # a fault of this program must not cost other failures their rescue
            return f"{where}, or are in {self._settings.rescue_dir} already: {internal_error(error)}"
        self._gone[overlay.upper] = kept
        return f"; its changes are kept in {kept}"

    def _archive(self, request: ArchiveRequest, method: methods.Writer) -> None:
        """Do one request: judge it, remove the old marker, write, publish, create the marker."""
        started = time.monotonic()
        overlay = self._find(request.mount_point)
        if is_twin(overlay.upper):
            where = self._gone.get(overlay.upper)
            by = f"to {where}" if where else "by an earlier run of this hook"
            raise ArchiveError(f"the upperdir {overlay.upper} has been moved {by}")
        self._log.debug(f"archive {request.name}: the upperdir of {request.mount_point} is {overlay.upper}")
        destination = self._judge_destination(request, overlay.upper)
        marker = None
        if request.success:
            marker = Marker(
                request.success, archive_to=destination.path, upper=overlay.upper, paths=self._paths
            )
        may_rename = self._settings.policy is None
        method.judge(overlay, may_rename=may_rename)
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
                may_rename=may_rename,
            )
            # In a layer deletions come first, so that nothing can be taken for deleted by what is beside it.
            stream = read_changes(overlay, self._log, deletions_first=request.method.makes == "layout")
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
            self._published[destination.path] = request.name
            if staging.took_upper:
                self._gone[overlay.upper] = destination.path
            if marker:
                marker.create(self._flush)
            self._safe = request.name
        self._log.info(
            f"archive {request.name}: saved {tally} of {request.mount_point} to {destination.path} by"
            f" {request.method.name}{f', as {done}' if done else ''} in {time.monotonic() - started:.2f} s"
        )

    def _as_allowed(self, stream: Iterator[Change]) -> Iterator[Change]:
        policy = self._settings.policy
        return policy.applied(stream) if policy else stream

    def _judge_destination(self, request: ArchiveRequest, upper: str) -> Destination | LayoutDestination:
        if request.method.makes == "layout":
            from archive_overlay.layout import add_layer

            return add_layer.judge_destination(
                request.archive_to, parent=request.parent, upper=upper, paths=self._paths, log=self._log
            )
        destination = publish.judge_destination(
            request.archive_to,
            makes=request.method.makes,
            if_exists=request.if_exists,
            upper=upper,
            paths=self._paths,
        )
        if destination.path in self._published and destination.if_exists == "replace":
            raise ArchiveError(
                f"archive-to {destination.path} has archive {self._published[destination.path]} of this very stop,"
                " which would be replaced",
                hint="give each archive a path of its own",
            )
        return destination

    def _find(self, mount_point: str) -> OverlayMount:
        return find_overlay(self._spec, mount_point, mount_program=self._settings.mount_program)


def _make_rescue(directory: str, container: str, log: Log) -> Rescue:
    from archive_overlay.hook.rescue import Rescue

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
            if change.fd >= 0:  # nearly all
                self.entries += 1
                self.bytes += change.size
            elif change.kind is WHITEOUT:
                self.deletions += 1
            elif change.name or change.kind is not DIRECTORY:
                self.entries += 1
            yield change

    def __str__(self) -> str:
        if not self._counted:
            return "the upperdir"
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        deletions = "1 deletion" if self.deletions == 1 else f"{self.deletions} deletions"
        return f"{entries}, {deletions} and {self.bytes} bytes"
