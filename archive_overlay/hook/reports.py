"""Telling programs of the administrator what became of each archive: `--on-success` and `--on-failure`.

A program gets one JSON object on its standard input. man/sections.in says what is in it. Whoever starts a container
chooses some of that: names, paths, the message of an error. It is data in JSON, and never an argument or a variable.
"""

from __future__ import annotations

import json
import time

from archive_overlay.errors import ArchiveError, Interrupted, brief, internal_error, interruption
from archive_overlay.overlay.labels import container_labels
from archive_overlay.system.activity import doing
from archive_overlay.system.programs import run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from archive_overlay.hook.ledger import Ledger
    from archive_overlay.log import Log
    from archive_overlay.overlay.store import Place
    from archive_overlay.settings import Settings

# How long one program may take, all of them together, and all of them once a signal has asked the hook to end.
_SECONDS = 60
_SECONDS_IN_ALL = 300
_SECONDS_IN_A_HURRY = 5
# How many are run at one stop: annotations can ask for any number of archives.
_MOST = 100

_UNKNOWN: Mapping[str, object] = {
    "saved": False,
    **dict.fromkeys(("path", "tag", "revision", "success", "entries", "deletions", "bytes", "seconds")),
    **dict.fromkeys(("loaded", "pushed", "error", "changes", "changes_kept")),
}


def send_reports(
    ledger: Ledger, settings: Settings, container: Place, *, stopped: str, hurry: bool, log: Log
) -> None:
    """Run the administrator's program for each archive whose end is known.

    What a program does, or fails to do, changes nothing for the archives and the exit status.

    Args:
        ledger: knows what became of them.
        settings: name the programs.
        container: where it is in an engine's store.
        stopped: when it did, as placeholders have it.
        hurry: a signal has asked the hook to end.
        log: takes what the programs write to standard error.

    Raises:
        Interrupted: a signal came meanwhile.
    """
    labels = container_labels(container)
    about = {
        "container": container.container,
        "container_name": labels.name or None,
        "image": labels.image or None,
        "stopped": stopped,
    }
    deadline = time.monotonic() + (_SECONDS_IN_A_HURRY if hurry else _SECONDS_IN_ALL)
    end: Interrupted | None = None
    sent = untold = 0
    for name, facts in ledger.facts.items():
        failed = facts.get("error") is not None
        program = settings.on_failure if failed else settings.on_success
        if not program:
            continue
        left = deadline - time.monotonic()
        if sent == _MOST or left <= 0:
            untold += 1
            continue
        sent += 1
        report = {"archive": name, **about, **_asked(ledger.asked[name]), **_UNKNOWN, **facts}
        try:
            _run(program, report, min(left, _SECONDS), log)
        except Interrupted as interrupted:
            end = interrupted
            deadline = time.monotonic() + _SECONDS_IN_A_HURRY
        except ArchiveError as error:
            option = "--on-failure" if failed else "--on-success"
            log.warning(f"archive {name}: {option} {program}: {error}")
    if untold:
        log.warning(
            f"no program was told of {untold} more archives: there was no time, or there were too many"
        )
    if end:
        raise end


def _run(program: str, report: Mapping[str, object], timeout: float, log: Log) -> None:
    """Run a program to its end.

    Raises:
        ArchiveError: it failed.
        Interrupted: a signal came meanwhile; the program was killed.
    """
    try:
        with doing(f"waiting for {program}"):
            run_program(
                [program],
                environment={},
                timeout=timeout,
                say=lambda line: log.info(f"{program}: {line}"),
                data=f"{json.dumps(report)}\n".encode(),
            )
    except ArchiveError:
        raise
    except Exception as error:  # a fault of this program must not cost other archives their report
        if interrupted := interruption(error):
            raise interrupted from error
        raise ArchiveError(internal_error(error)) from error


def _asked(keys: Mapping[str, object]) -> dict[str, object]:
    """Give what the annotations say where nothing better is known."""
    mount_point, method = keys.get("mount-point"), keys.get("method") or "copy"
    return {
        "mount_point": brief(mount_point) if isinstance(mount_point, str) else None,
        "method": brief(method) if isinstance(method, str) else None,
    }
