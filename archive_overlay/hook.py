"""What happens when a container stops, in the order in which it happens."""

from __future__ import annotations

import os
import time

from archive_overlay import marker, methods, publish, runtime
from archive_overlay.annotations import group_by_name, parse_request
from archive_overlay.errors import ArchiveError, HookError
from archive_overlay.overlay.changes import DIRECTORY, FILE, WHITEOUT, changes
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.staging import ARCHIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.annotations import ArchiveRequest
    from archive_overlay.cli import Settings
    from archive_overlay.log import Log
    from archive_overlay.overlay.changes import Change
    from archive_overlay.runtime import Spec


def run(settings: Settings, log: Log) -> int:
    """Save what a container asks for in its annotations.

    Args:
        settings: the command line's.
        log: takes what happens.

    Returns:
        0 if all that was asked for is saved, 1 if something is not.
    """
    try:
        bundle = os.path.abspath(settings.bundle) if settings.bundle else runtime.read_state(0).bundle
        spec = runtime.read_spec(bundle)
    except HookError as error:
        log.error(str(error))
        return 1
    saved = True
    requests = []
    for name, keys in group_by_name(spec.annotations, log):
        try:
            request = parse_request(name, keys, log)
            # All code that is needed is imported before the first archive begins, because a package
            # upgrade may replace this file in the meantime.
            requests.append((request, methods.load(request.method)))
        except ArchiveError as error:
            log.error(f"archive {name}: {error}")
            saved = False
    if requests:
        for fault in spec.faults:
            log.error(fault)
            saved = False
    for request, method in requests:
        try:
            _archive(request, method, spec, settings, log)
        except ArchiveError as error:
            log.error(f"archive {request.name}: {error}")
            saved = False
        except Exception as error:  # a fault of this program must not cost the other archives
            log.error(f"archive {request.name}: internal error: {_where(error)}; please report it")
            saved = False
    return 0 if saved else 1


def _archive(
    request: ArchiveRequest, method: methods.Writer, spec: Spec, settings: Settings, log: Log
) -> None:
    """Do one request: judge it, remove the old marker, write, publish, create the marker."""
    started = time.monotonic()
    overlay = find_overlay(spec, request.mount_point, mount_program=settings.mount_program)
    log.debug(f"archive {request.name}: the upperdir of {request.mount_point} is {overlay.upper}")
    destination = publish.judge_destination(
        request.archive_to, makes=request.method.makes, if_exists=request.if_exists, upper=overlay.upper
    )
    if request.success:
        marker.judge(request.success, destination.path)
    with destination.stage(log) as staging:
        if request.success:
            marker.remove(request.success)
        tally = _Tally()
        stream = changes(overlay, log)
        try:
            method.write(
                tally.counted(stream),
                methods.Target(
                    directory=staging.directory,
                    name=ARCHIVE,
                    opaque_attribute=overlay.dialect.opaque_attribute,
                    owner=request.owner,
                ),
                log,
            )
        finally:
            stream.close()
        publish.publish(staging, destination)
        if request.success:
            marker.create(request.success)
    log.info(
        f"archive {request.name}: saved {tally} of {request.mount_point} to {destination.path} by"
        f" {request.method.name} in {time.monotonic() - started:.2f} s"
    )


class _Tally:
    """Counts what goes by, for the summary."""

    def __init__(self) -> None:
        self.entries = self.deletions = self.bytes = 0

    def counted(self, stream: Iterator[Change]) -> Iterator[Change]:
        for change in stream:
            if change.kind is WHITEOUT:
                self.deletions += 1
            elif change.name or change.kind is not DIRECTORY:
                self.entries += 1
                if change.kind is FILE and change.link_to is None:
                    self.bytes += change.size
            yield change

    def __str__(self) -> str:
        return f"{self.entries} entries, {self.deletions} deletions and {self.bytes} bytes"


def _where(error: Exception) -> str:
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__}: {error}{where}"
