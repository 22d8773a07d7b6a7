"""What programs of the administrator are told of archives, by --on-success and --on-failure."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.hook.test_signals import waiting
from tests.support import hooks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Saver

# In the order of the manual page.
FIELDS = (
    *("archive", "container", "container_name", "image", "stopped", "mount_point", "method", "saved", "path"),
    *(
        "tag",
        "revision",
        "success",
        "entries",
        "deletions",
        "bytes",
        "excluded",
        "seconds",
        "loaded",
        "pushed",
    ),
    *("error", "changes", "changes_kept"),
)


class Program:
    """A program that keeps what it is told, and what it finds around it.

    Args:
        path: of it.
        script: more of what it does.
    """

    def __init__(self, path: Path, script: str = "") -> None:
        self.path = path
        self._told = path.with_name(f"{path.name}.told")
        self._environment = path.with_name(f"{path.name}.environment")
        path.write_text(
            f"#!/bin/sh\n/bin/cat >>'{self._told}'\n/bin/cat /proc/$$/environ >'{self._environment}'\n{script}\n"
        )
        path.chmod(0o755)

    @property
    def told(self) -> list[dict[str, Any]]:
        """What it was told, each time that it was run."""
        return (
            [json.loads(line) for line in self._told.read_text().splitlines()] if self._told.exists() else []
        )

    @property
    def environment(self) -> bytes:
        return self._environment.read_bytes()


class Programs:
    """One program for each end that an archive may come to."""

    def __init__(self, directory: Path, script: str = "") -> None:
        self.success = Program(directory / "on-success", script)
        self.failure = Program(directory / "on-failure", script)
        self.options = f"--on-success={self.success.path}", f"--on-failure={self.failure.path}"


@pytest.fixture
def programs(scratch: Path) -> Programs:
    return Programs(scratch)


@pytest.mark.parametrize("method", ["oci"])
def test_a_program_is_told_what_became_of_an_archive(small: Saver, programs: Programs) -> None:
    small.overlay.change(lambda root: (root / "also").mkdir())

    result = small.run(*programs.options)

    assert result.status == 0, result.stderr
    (told,) = programs.success.told
    assert tuple(told) == FIELDS
    assert 0 < told.pop("seconds") < 60
    assert told.pop("stopped").endswith("Z")
    assert {field: value for field, value in told.items() if value is not None} == {
        "archive": "data",
        "container": "c1",
        "mount_point": "/data",
        "method": "oci",
        "saved": True,
        "path": str(small.archive),
        "tag": "latest",
        "revision": 1,
        "success": str(small.success),
        "entries": 2,
        "deletions": 0,
        "bytes": len("by a container"),
    }
    assert programs.success.environment == b""
    assert programs.failure.told == []


@pytest.mark.parametrize("method", ["copy"])
def test_each_archive_has_a_report_of_its_own(small: Saver, programs: Programs) -> None:
    name = "$(touch made);'\"\n\u202e"
    failing = hooks.annotations(name, mount_point="/data", archive_to=small.out / "other", method="zip")

    result = small.run(*programs.options, also=failing)

    assert result.status == 1
    assert [told["archive"] for told in programs.success.told] == ["data"]
    (told,) = programs.failure.told
    assert tuple(told) == FIELDS
    assert (told["archive"], told["method"], told["saved"], told["path"]) == (name, "zip", False, None)
    assert told["error"] in result.only_error()


@pytest.mark.parametrize("method", ["copy"])
@pytest.mark.parametrize("rescued", [False, True])
def test_a_program_can_still_read_what_was_not_saved(small: Saver, scratch: Path, rescued: bool) -> None:
    found = scratch / "found"
    programs = Programs(scratch, f"ls '{small.overlay.upper}' >'{found}'")
    rescue = (f"--rescue-dir={scratch / 'rescue'}",) if rescued else ()

    result = small.run(*programs.options, *rescue, method="zip")

    assert result.status == 1
    (told,) = programs.failure.told
    kept = str(scratch / "rescue/c1/data") if rescued else str(small.overlay.upper)
    assert (told["changes"], told["changes_kept"]) == (kept, rescued)
    assert os.listdir(kept) == ["made"]
    assert found.read_text() == ("" if rescued else "made\n")


@pytest.mark.parametrize("method", ["copy"])
def test_a_program_that_fails_costs_nothing(small: Saver, scratch: Path) -> None:
    programs = Programs(scratch, "echo no mail today >&2; exit 3")

    result = small.run(*programs.options)

    assert result.status == 0, result.stderr
    assert small.success.exists()
    program = programs.success.path
    assert f"{program}: no mail today" in result.messages("info")
    (warning,) = result.messages("warning")
    assert warning == (f"archive data: --on-success {program}: on-success ended with status 3: no mail today")


@pytest.mark.parametrize("method", ["copy"])
def test_a_program_that_is_not_there_costs_nothing(small: Saver, scratch: Path) -> None:
    result = small.run("--on-success", scratch / "missing")

    assert result.status == 0, result.stderr
    (warning,) = result.messages("warning")
    assert warning.startswith(f"archive data: --on-success {scratch / 'missing'}: cannot run")


@pytest.mark.parametrize("method", ["copy"])
def test_no_number_of_annotations_keeps_the_hook_busy(small: Saver, programs: Programs) -> None:
    also: dict[str, str] = {}
    for number in range(150):
        also |= hooks.annotations(f"n{number}", mount_point="/data", archive_to="/x", method="zip")

    result = small.run(*programs.options, also=also)

    assert result.status == 1
    assert len(programs.failure.told) == 99
    assert len(programs.success.told) == 1
    assert [each for each in result.messages("warning") if "no program was run for 51 more" in each]


@pytest.mark.parametrize("method", ["oci"])
def test_a_program_is_told_of_what_a_signal_ended(small: Saver, programs: Programs) -> None:
    def run() -> int:
        with waiting(small, *programs.options) as (process, _):
            process.send_signal(signal.SIGTERM)
            process.communicate()
            return process.returncode

    assert small.overlay.inside(run) == 128 + signal.SIGTERM

    (told,) = programs.failure.told
    assert (told["archive"], told["error"]) == ("data", "interrupted by signal 15")
    assert told["changes"] == str(small.directory / "rescue/bundle/data")
    assert told["changes_kept"] is True
