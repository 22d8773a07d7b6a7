"""What happens when a container stops, in the order in which it happens."""

from __future__ import annotations

import os
import time

from archive_overlay import methods
from archive_overlay.destination.marker import Marker
from archive_overlay.destination.names import split_off_tag
from archive_overlay.destination.paths import Paths
from archive_overlay.errors import (
    OUT_OF_MEMORY,
    ArchiveError,
    HookError,
    Interrupted,
    StaleError,
    internal_error,
    interruption,
)
from archive_overlay.hook import rescue, runtime
from archive_overlay.hook.annotations import Context, group_by_name, parse_request, timestamp
from archive_overlay.hook.heartbeat import Heartbeat
from archive_overlay.hook.ledger import Ledger
from archive_overlay.hook.run import Run
from archive_overlay.hook.saved import Saved
from archive_overlay.hook.tally import Tally
from archive_overlay.overlay import store
from archive_overlay.overlay.locate import environment_file, mount_at
from archive_overlay.overlay.upper import read_changes
from archive_overlay.system import activity, signals
from archive_overlay.system.activity import doing
from archive_overlay.system.flush import Never, ToDisk
from archive_overlay.system.metadata import is_twin
from archive_overlay.system.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from archive_overlay.hook.annotations import ArchiveRequest
    from archive_overlay.hook.image_annotations import Refusal
    from archive_overlay.hook.policy import Policy
    from archive_overlay.hook.rescue_dir import RescueDirectory
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.settings import Settings


# One archive that is alone needs them, if at all, before it begins.
_FOR_UNUSUAL_MOUNTS = ("archive_overlay.overlay.ended_servers", "archive_overlay.overlay.references")


def run(
    settings: Settings,
    log: Log,
    *,
    names: Collection[str] | None = None,
    recovering: Saved | None = None,
    running: Callable[[Collection[str]], None] | None = None,
) -> int:
    """Save what a container asks for in its annotations.

    Args:
        settings: the command line's.
        log: takes what happens.
        names: of the archives that are meant; None: all.
        recovering: where it is noted what is saved, locked, if the engine has not run the hook; None: it runs it now.
        running: if the container runs, is called when its archives are made, with the names of those that have nothing new;
            None: it has stopped. Others are kept out by the caller, and nothing is noted: what the container changes from now
            on is to be saved as well.

    Returns:
        0 if all that was asked for is saved, 1 if something is not.

    Raises:
        Interrupted: a signal ended the run; what was being written is removed.
    """
    try:
        state = runtime.state_of_bundle(settings.bundle) if settings.bundle else runtime.read_state(0)
        log = log.named(state.short_id)
        spec = runtime.read_spec(state.bundle)
        log.about = runtime.called(log.about, spec.container_name)
    except HookError as error:
        log.error(str(error))
        return 1
    except MemoryError:
        log.error(OUT_OF_MEMORY)
        return 1
    try:
        return _run(settings, state, spec, log, names=names, recovering=recovering, running=running)
    except MemoryError:
        log.error(OUT_OF_MEMORY)
        return 1


def _run(
    settings: Settings,
    state: runtime.State,
    spec: runtime.Spec,
    log: Log,
    *,
    names: Collection[str] | None,
    recovering: Saved | None,
    running: Callable[[Collection[str]], None] | None,
) -> int:
    """Save what a container asks for. See `run`."""
    asked = {
        name: keys for name, keys in group_by_name(spec.annotations, log) if names is None or name in names
    }
    if not asked:
        return 0
    if spec.swallowed:
        log.warning(
            f"{' '.join(spec.swallowed)} has no effect: it stands in the first of the hook's args, where the program's"
            ' name belongs; put "archive_overlay" before it'
        )
    patience = Patience()
    saved = recovering or (None if running else _saved(state.bundle, spec.root))
    if saved and not recovering:
        asked = _without_saved_meanwhile(asked, saved, patience, log)
    # From now on there is something to lose: a signal comes when it is known how that is rescued.
    with Heartbeat(log), signals.HeldOff() as held_off:
        ledger = Ledger(asked, log)
        this = Run(
            settings=settings,
            spec=spec,
            bundle=state.bundle,
            context=Context(id=state.id, timestamp=timestamp(time.time_ns())),
            paths=Paths(settings.allowed),
            policy=_policy(settings),
            patience=patience,
            flush=ToDisk(log.warning) if settings.fsync else Never(),
            ledger=ledger,
            saved=saved,
            recovering=recovering is not None,
            running=running is not None,
            log=log,
        )
        send_reports = _load_reports(settings, log)
        hurry = False
        try:
            _save_and_tend(asked, this, held_off, running)
        except Interrupted:
            hurry = True
            raise
        finally:
            if send_reports:
                stopped = this.context.timestamp
                send_reports(ledger, settings, this.place, stopped=stopped, hurry=hurry, log=log)
        return 0 if ledger.saved_all else 1


def _save_and_tend(
    asked: Mapping[str, Mapping[str, object]],
    run: Run,
    held_off: signals.HeldOff,
    running: Callable[[Collection[str]], None] | None,
) -> None:
    """Do all requests, settle what failed, and do what is left to do where archives are safe.

    Args:
        asked: the annotations of each archive by key, by the archive's name.
        run: what they have in common.
        held_off: holds signals off until it is known how what fails is rescued.
        running: see `run`.

    Raises:
        Interrupted: see `run`.
    """
    settings, ledger = run.settings, run.ledger
    keeper = _rescue_directory(settings, run.context.id, run.log)
    hurry = False
    made: Mapping[str, methods.Destination] = {}
    ask_image = not settings.trust_image_annotations and store.is_of_store(run.bundle, run.spec.root)
    # Until it is known what the image asks for, all may be the image's.
    unkept = {*asked} if ask_image else set()
    try:
        held_off.let_in()
        refused = _what_images_ask_for(asked, run) if ask_image else {}
        unkept = {name for name, refusal in refused.items() if not refusal.keep}
        for fault in run.spec.faults:
            ledger.complain(fault)
        made = _archive_all(asked, refused, run)
        if running:
            running(ledger.unchanged)
    except Interrupted as interruption:
        ledger.give_up(str(interruption), unkept=unkept)
        hurry = True
        raise
    except MemoryError:  # between two archives
        ledger.give_up(OUT_OF_MEMORY, unkept=unkept)
    finally:
        rescue.settle(ledger, run.find, run.lifetime, keeper, hurry=hurry)
        if run.saved:
            for name in ledger.kept:
                run.saved.add(name)
    # Only now, for it takes time, in which whoever started the hook may lose patience with it.
    _tend_all(made, run)


def archive_one(request: ArchiveRequest, writer: methods.Writer, run: Run) -> methods.Destination:
    """Do one request: judge it, remove the old marker, write, publish, create the marker.

    Args:
        request: what is asked for.
        writer: its method.
        run: what it has in common with the others.

    Returns:
        Where the archive is.

    Raises:
        ArchiveError: it cannot be done. The destination is as it was, but for `merge`.
        Interrupted: a signal came meanwhile.
    """
    started = time.monotonic()
    ledger, flush, log = run.ledger, run.flush, run.log
    overlay = _with_container_owners(run.find(request.mount_point), request, run)
    upper = overlay.upper
    if is_twin(upper):
        by = f"to {ledger.moved[upper]}" if upper in ledger.moved else "by an earlier run of this hook"
        raise ArchiveError(f"the upperdir {upper} has been moved {by}")
    if overlay.may_lack:
        log.warning(f"archive {request.name}: something may be missing: {overlay.may_lack}")
    log.debug(f"archive {request.name}: the upperdir of {request.mount_point} is {upper}")
    destination = writer.destination(
        request,
        overlay=overlay,
        container=run.place,
        settings=run.settings,
        paths=run.paths,
        patience=run.patience,
        log=log,
    )
    for complaint in getattr(destination, "complaints", ()):
        ledger.complain_of(request.name, complaint)
    path = destination.path
    layout, tag = ("", "") if request.method.makes == "layout" else split_off_tag(path)
    if layout and not os.path.lexists(path):
        log.warning(
            f"archive {request.name}: method {request.method.name} makes a {request.method.makes} called"
            f" {os.path.basename(path)}; for the tag {tag} of an image layout {layout}, add method=oci"
        )
    ledger.expect_free(request, path)
    marker = None
    if request.success:
        marker = Marker(request.success, archive_to=path, upper=upper, paths=run.paths)
    keep_in_place = run.why_kept_in_place(overlay, request.mount_point) if request.method.renames else ""
    writer.judge(overlay, keep_in_place=keep_in_place)
    tally = Tally(log)
    writing = doing("writing", so_far=tally.so_far, slow=False)
    with writing, destination.stage(flush, log, run.settings.file_mode) as staging:
        if marker:
            marker.remove(flush)
        target = methods.Target(
            staging=staging,
            overlay=overlay,
            flush=flush,
            owner=request.owner,
            compression=request.compression,
            level=request.level,
            whiteouts=request.whiteouts,
            jobs=run.settings.jobs,
            keep_in_place=keep_in_place,
            max_bytes=run.settings.max_bytes,
        )
        compare = getattr(destination, "compare", None)
        if compare:
            activity.NOW.takes_long()  # nothing may have to be written in the end
            with compare(lambda log: _InOrder(overlay, request, run, log, tally), staging, log) as changes:
                result = writer.write(tally.counted(changes), target, log)
        else:
            stream = read_changes(
                overlay,
                log,
                deletions_first=request.method.deletions_first,
                max_entries=run.settings.max_entries,
                selection=request.selection,
                left_out=tally.left_out(request, log),
            )
            try:
                counted = tally.counted(stream)
                allowed = run.policy.applied(counted) if run.policy else counted
                result = writer.write(_with_owners(allowed, overlay, request, log), target, log)
            finally:
                stream.close()
        if run.recovering:
            _expect_no_new_start(run, upper)
        if tally.excluded and hasattr(destination, "excluded"):
            destination.excluded = tally.excluded
        done = destination.publish(staging, result)
        ledger.publish(request.name, path)
        if not getattr(destination, "added", True):
            ledger.unchanged.append(request.name)
        if staging.took_upper:
            ledger.moved[upper] = path
        if marker:
            marker.create(flush)
        ledger.is_safe(request.name)
        if run.saved:
            run.saved.add(request.name)
        ledger.note(
            request.name,
            {
                "saved": True,
                "mount_point": request.mount_point,
                "method": request.method.name,
                "path": path,
                "success": request.success,
                **tally.facts,
                **_facts(destination),
            },
        )
    seconds = time.monotonic() - started
    ledger.note(request.name, {"seconds": round(seconds, 3)})
    log.info(
        f"archive {request.name}: saved {tally} of {request.mount_point}{tally.exclusion} to {path}"
        f" by {request.method.name}{f', as {done}' if done else ''} in {seconds:.2f} s"
    )
    return destination


class _InOrder:
    """All changes as they may be archived, in the order of names. Use it as a context manager."""

    def __init__(
        self, overlay: OverlayMount, request: ArchiveRequest, run: Run, log: Log, tally: Tally
    ) -> None:
        self._stream = read_changes(
            overlay,
            log,
            max_entries=run.settings.max_entries,
            selection=request.selection,
            left_out=tally.left_out(request, log),
        )
        allowed = run.policy.applied(self._stream) if run.policy else self._stream
        self._changes = _with_owners(allowed, overlay, request, log)

    def __enter__(self) -> Iterator[Change]:
        return self._changes

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _saved(bundle: str, root: str) -> Saved | None:
    """Open the mark of a container that is in an engine's store.

    Only such containers are recovered. Other bundles may be for everybody to read, and so to lock.
    """
    if not store.container_in_store(bundle)[1]:
        return None
    try:
        return Saved(store.lasting_directory(bundle, root))
    except OSError:
        return None  # nothing is noted then, and nothing else depends on it


def _without_saved_meanwhile(
    asked: dict[str, dict[str, object]], saved: Saved, patience: Patience, log: Log
) -> dict[str, dict[str, object]]:
    """Wait until no other run is at work for this container, and give what that one has not saved."""
    if saved.lock():
        return asked  # whatever is noted: who runs the hook again wants it again
    log.info(f"another run is saving what this container asks for: waiting for at most {patience.left} s")
    with Heartbeat(log), doing("waiting for another run that saves what this container asks for"):
        waited = saved.wait(patience)
    if not waited:
        log.warning(f"another run has not finished in {patience.seconds} s: continuing anyway")
    found = saved.names
    for name in asked:
        if name in found:
            log.info(f"archive {name}: another run has just saved it")
    return {name: keys for name, keys in asked.items() if name not in found}


def _expect_no_new_start(run: Run, upper: str) -> None:
    """Make sure that the engine has not deleted what was read, while it was read.

    Raises:
        ArchiveError: it may have.
    """
    if (run.saved and run.saved.has_begun_again) or not os.path.isdir(upper):
        raise ArchiveError("the container was started again or removed while its changes were read")


def _with_container_owners(overlay: OverlayMount, request: ArchiveRequest, run: Run) -> OverlayMount:
    """Have an overlay say whose its files are in the container, if it has other numbers for that and they are asked for."""
    spec = run.spec
    mount = mount_at(spec.mounts, request.mount_point)
    mapped = spec.user_namespace or overlay.program_owners or (mount and mount.is_id_mapped)
    if request.owners == "host" or not mapped:
        return overlay
    from archive_overlay.overlay import mappings

    owners = mappings.find(spec.user_namespace, mount, overlay)
    if owners and request.method.makes == "directory" and os.geteuid() != 0:
        run.log.info(
            f"archive {request.name}: everything belongs to user {os.geteuid()}, because without privileges this hook"
            " can give files to nobody else; a tar has the owners that the container saw"
        )
        return overlay
    return overlay.replace(container_owners=owners)


def _with_owners(
    stream: Iterator[Change], overlay: OverlayMount, request: ArchiveRequest, log: Log
) -> Iterator[Change]:
    if not overlay.container_owners:
        return stream
    return overlay.container_owners.applied(
        stream, log, directory=request.method.makes == "directory", any_owner=request.owner is not None
    )


def _archive_all(
    asked: Mapping[str, Mapping[str, object]], refused: Mapping[str, Refusal], run: Run
) -> dict[str, methods.Destination]:
    """Do all requests, and give the destinations of the archives that are safe, by the archives' names."""
    # All code that is needed is imported before the first archive begins, because a package upgrade may replace
    # this file in the meantime.
    ready: list[tuple[ArchiveRequest, methods.Writer]] = []
    for name, keys in asked.items():
        if name in refused:
            run.ledger.fail(name, refused[name].reason, keep=refused[name].keep)
            continue
        with run.ledger.failing_alone(name):
            request = parse_request(name, keys, run.context, run.log)
            ready.append((request, methods.load(request.method, request.compression)))
            if request.method.renames:
                _load("archive_overlay.overlay.lifetime")
            if request.base:
                _load("archive_overlay.overlay.image_layers")
            if request.load_as:
                _load("archive_overlay.transfer.load_at_stop")
            if request.push_to:
                _load("archive_overlay.transfer.push_at_stop")
    if run.spec.user_namespace or any(mount.is_id_mapped for mount in run.spec.mounts):
        __import__("archive_overlay.overlay.mappings")
    if len(ready) > 1:
        _load(*_FOR_UNUSUAL_MOUNTS)
    # What renames the upperdir comes last, for it leaves nothing to archive for the others.
    ready.sort(key=lambda each: each[0].method.renames)
    saved: dict[str, methods.Destination] = {}
    for request, writer in ready:
        begun = doing("at work", subject=f"archive {request.name}", slow=False)
        with run.ledger.failing_alone(request.name), begun:
            try:
                saved[request.name] = archive_one(request, writer, run)
            except StaleError:
                saved[request.name] = archive_one(request, writer, run)
            run.ledger.done(request.name)
    return saved


def _tend_all(saved: Mapping[str, methods.Destination], run: Run) -> None:
    """Do what is left to do at destinations whose archives are safe: nothing of it makes them less so."""
    waiting = dict(saved)
    try:
        for name, destination in saved.items():
            _tend(name, destination, run)
            del waiting[name]
    except Interrupted as end:
        for name, destination in waiting.items():
            outstanding: Sequence[str] = getattr(destination, "outstanding", ())
            if outstanding:
                reason = (
                    f"the archive is safe at {destination.path}, but {' and '.join(outstanding)} was {end}"
                )
                run.ledger.complain_of(name, reason)
        raise


def _tend(name: str, destination: methods.Destination, run: Run) -> None:
    """Do what is left to do at one destination."""
    tend: Callable[[], list[str]] | None = getattr(destination, "tend", None)
    if not tend:
        return
    try:
        with doing("at work", subject=f"archive {name}", slow=False):
            complaints = tend()
        for complaint in complaints:
            run.ledger.complain_of(name, complaint)
    except Exception as error:
        if end := interruption(error):
            raise end from error
        expected = isinstance(error, (ArchiveError, OSError, ImportError))
        reason = str(error) if expected else internal_error(error)
        run.log.warning(
            f"archive {name}: the archive is safe at {destination.path}, but the work to be done after it failed:"
            f" {reason}; the next stop tries again"
        )
        # What was asked for besides has not been done, so this must not look like a success.
        outstanding: Sequence[str] = getattr(destination, "outstanding", ())
        if outstanding:
            run.ledger.complain_of(name, f"the archive is safe, but {' and '.join(outstanding)} was not done")
    finally:
        run.ledger.note(name, _facts(destination))


def _facts(destination: methods.Destination) -> Mapping[str, object]:
    """Give what else is known of an archive there; see `methods.Tended`."""
    facts: Mapping[str, object] = getattr(destination, "facts", {})
    return facts


def _what_images_ask_for(asked: Mapping[str, Mapping[str, object]], run: Run) -> Mapping[str, Refusal]:
    """Give the archives that are not, or not only, asked for by the user, and so are not made."""
    from archive_overlay.hook import image_annotations
    from archive_overlay.overlay import images

    spec = run.spec

    def lowers() -> Sequence[str]:
        try:
            return run.find("/").lowers
        except ArchiveError:
            return ()

    def told(name: str) -> None:
        if not spec.container_name:
            run.log.about = runtime.called(run.log.about, name)

    container = images.Container(
        bundle=run.bundle,
        root=spec.root,
        environment_file=environment_file(spec.mounts),
        lowers=lowers,
        told=told,
    )
    try:
        return image_annotations.refusals(asked, spec.annotations, container)
    except Exception as error:  # so nobody knows what the image asks for
        if end := interruption(error):
            raise end from error
        return image_annotations.refuse_all(asked, internal_error(error), keep=False)


def _policy(settings: Settings) -> Policy | None:
    if not settings.limits_contents:
        return None
    from archive_overlay.hook.policy import Policy

    return Policy(setid=settings.setid, max_entries=settings.max_entries)


def _rescue_directory(settings: Settings, container: str, log: Log) -> RescueDirectory | None:
    if not settings.rescue_dir:
        return None
    from archive_overlay.hook.rescue_dir import RescueDirectory

    _load("archive_overlay.overlay.lifetime", *_FOR_UNUSUAL_MOUNTS)
    limits = _policy(settings.replace(setid=True))  # what is kept is kept as it was
    return RescueDirectory(settings.rescue_dir, container, log, limits=limits, max_bytes=settings.max_bytes)


def _load_reports(settings: Settings, log: Log) -> Callable[..., None] | None:
    """Give what tells the administrator's programs of archives, if there are any."""
    if not settings.on_success and not settings.on_failure:
        return None
    try:
        from archive_overlay.hook.reports import send_reports
    except ImportError as error:  # another version has taken the place of this file
        log.warning(f"no program will be run for --on-success or --on-failure: {error}")
        return None

    return send_reports


def _load(*modules: str) -> None:
    """Import what may be needed later; see `_archive_all`."""
    for module in modules:
        __import__(module)
