"""What the hook does when a part of it has a fault that nobody knows, or is interrupted where it is weak."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.destination.publish import Destination
from archive_overlay.errors import ArchiveError, Interrupted
from archive_overlay.hook import hook
from archive_overlay.hook.rescue_dir import RescueDirectory
from archive_overlay.keys import PREFIX
from archive_overlay.log import Log
from archive_overlay.methods import copy
from archive_overlay.settings import Settings
from tests.support.hooks import split_off_container
from tests.support.image_stores import CONTAINER, ImageStore

if TYPE_CHECKING:
    from pathlib import Path


class Kept:
    """A log sink that keeps the errors it is given."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def write(self, level: str, message: str) -> None:
        if level == "error":
            self.errors.append(split_off_container(message)[1])


def test_a_fault_of_a_rescue_costs_the_other_failures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts, annotations = [], {}
    for name in ("first", "second"):
        upper = tmp_path / name / "upper"
        upper.mkdir(parents=True)
        (upper / "made").touch()
        options = [f"lowerdir={tmp_path}", f"upperdir={upper}", f"workdir={tmp_path / name / 'work'}"]
        mounts.append({"destination": f"/{name}", "type": "overlay", "source": "overlay", "options": options})
        annotations[f"{PREFIX}{name}.mount-point"] = f"/{name}"
        annotations[f"{PREFIX}{name}.archive-to"] = "relative"
    (tmp_path / "config.json").write_text(json.dumps({"mounts": mounts, "annotations": annotations}))
    keep = RescueDirectory.keep

    def keep_but_the_first(self: RescueDirectory, overlay: Any, archive: str, **more: Any) -> str:
        if archive == "first":
            raise ZeroDivisionError("nobody knows")
        return keep(self, overlay, archive, **more)

    monkeypatch.setattr(RescueDirectory, "keep", keep_but_the_first)
    kept = Kept()

    status = hook.run(
        Settings(bundle=str(tmp_path), rescue_dir=str(tmp_path / "rescue")), Log("info", [kept])
    )

    assert status == 1
    first, second = kept.errors
    assert "archive first: archive-to 'relative' is a relative path" in first
    assert f"its changes are in {tmp_path}/first/upper until the engine deletes them" in first
    assert "internal error: ZeroDivisionError: nobody knows at " in first
    rescued = tmp_path / "rescue" / tmp_path.name / "second"
    assert second.endswith(f"its changes are kept in {rescued}")
    assert (rescued / "made").exists()


def test_a_lack_of_memory_costs_its_archive_alone_and_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts, annotations = [], {}
    for name in ("first", "second"):
        upper = tmp_path / name / "upper"
        (upper / "made").mkdir(parents=True)
        mounts.append(
            {"destination": f"/{name}", "type": "overlay", "options": [f"upperdir={upper}"]},
        )
        annotations[f"{PREFIX}{name}.mount-point"] = f"/{name}"
        annotations[f"{PREFIX}{name}.archive-to"] = str(tmp_path / "archives" / name)
    (tmp_path / "config.json").write_text(json.dumps({"mounts": mounts, "annotations": annotations}))
    write, writes = copy.write, iter((MemoryError,))

    def run_out_once(*arguments: Any) -> object:
        for error in writes:
            raise error
        return write(*arguments)

    monkeypatch.setattr(copy, "write", run_out_once)
    kept = Kept()

    assert hook.run(Settings(bundle=str(tmp_path), rescue_dir=f"{tmp_path}/rescue"), Log("info", [kept])) == 1

    (error,) = kept.errors
    assert error.startswith("archive first: out of memory; ")
    assert "report" not in error
    assert error.endswith(f"its changes are kept in {tmp_path}/rescue/{tmp_path.name}/first")
    assert (tmp_path / "archives" / "second" / "made").is_dir()


@pytest.mark.parametrize(
    ("name", "shown"),
    [("box", " (box)"), ("b" * 100, f" ({'b' * 64})"), ("box\n", ""), ("box): archive data: saved (all", "")],
)
def test_log_lines_name_the_container_by_its_short_id_and_the_name_that_the_store_has(
    tmp_path: Path, name: str, shown: str
) -> None:
    made = ImageStore(tmp_path / "storage")
    made.containers[0]["names"] = [name]
    made.write()
    annotations = {f"{PREFIX}data.mount-point": "/data", f"{PREFIX}data.archive-to": "relative"}
    (made.bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
    said: list[str] = []

    class Sink:
        def write(self, level: str, message: str) -> None:
            said.append(message)

    assert hook.run(Settings(bundle=str(made.bundle)), Log("error", [Sink()])) == 1

    (message,) = said
    assert message.startswith(f"{CONTAINER[:12]}{shown}: archive data: ")


def test_an_error_that_an_interruption_led_to_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upper").mkdir()
    mount = {"destination": "/data", "type": "overlay", "options": [f"upperdir={tmp_path / 'upper'}"]}
    annotations = {}
    for name in ("first", "second"):
        annotations[f"{PREFIX}{name}.mount-point"] = "/data"
        annotations[f"{PREFIX}{name}.archive-to"] = str(tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"mounts": [mount], "annotations": annotations}))

    def write(*_: object) -> None:
        try:
            raise Interrupted(15)
        finally:
            raise OSError("what was closed just before is closed again")

    monkeypatch.setattr(copy, "write", write)
    kept = Kept()

    with pytest.raises(Interrupted):
        hook.run(Settings(bundle=str(tmp_path)), Log("info", [kept]))

    assert [error.partition(";")[0] for error in kept.errors] == [
        "archive first: interrupted by signal 15",
        "archive second: interrupted by signal 15",
    ]


class Struck(Kept):
    """A log sink that is interrupted at its first error."""

    def write(self, level: str, message: str) -> None:
        super().write(level, message)
        if len(self.errors) == 1:
            raise Interrupted(15)


@pytest.mark.parametrize("fault", [[], [{"destination": 1}]], ids=["failure", "fault"])
def test_a_signal_while_an_error_is_logged_costs_no_failure_its_rescue(
    tmp_path: Path, fault: list[object]
) -> None:
    mounts, annotations = [*fault], {}
    for name in ("first", "second"):
        upper = tmp_path / name / "upper"
        (upper / "made").mkdir(parents=True)
        options = [f"lowerdir={tmp_path}", f"upperdir={upper}", f"workdir={tmp_path / name / 'work'}"]
        mounts.append({"destination": f"/{name}", "type": "overlay", "options": options})
        annotations[f"{PREFIX}{name}.mount-point"] = f"/{name}"
        annotations[f"{PREFIX}{name}.archive-to"] = "relative"
    (tmp_path / "config.json").write_text(json.dumps({"mounts": mounts, "annotations": annotations}))

    with pytest.raises(Interrupted):
        hook.run(Settings(bundle=str(tmp_path), rescue_dir=str(tmp_path / "rescue")), Log("info", [Struck()]))

    for name in ("first", "second"):
        assert (tmp_path / "rescue" / tmp_path.name / name / "made").is_dir()


def test_a_signal_before_the_first_archive_costs_no_failure_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upper" / "made").mkdir(parents=True)
    mount = {"destination": "/data", "type": "overlay", "options": [f"upperdir={tmp_path / 'upper'}"]}
    annotations = {f"{PREFIX}data.mount-point": "/data", f"{PREFIX}data.archive-to": str(tmp_path / "data")}
    (tmp_path / "config.json").write_text(json.dumps({"mounts": [mount], "annotations": annotations}))
    set_up = hook._rescue_directory

    def set_up_and_be_asked_to_end(*arguments: Any) -> RescueDirectory | None:
        signal.raise_signal(signal.SIGTERM)  # to this thread, which holds it off
        return set_up(*arguments)

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(number)

    monkeypatch.setattr(hook, "_rescue_directory", set_up_and_be_asked_to_end)
    before = signal.signal(signal.SIGTERM, interrupt)
    kept = Kept()
    try:
        with pytest.raises(Interrupted):
            hook.run(Settings(bundle=str(tmp_path), rescue_dir=str(tmp_path / "rescue")), Log("info", [kept]))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert [error.partition(":")[0] for error in kept.errors] == ["archive data"]
    assert (tmp_path / "rescue" / tmp_path.name / "data" / "made").is_dir()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


class Lines(Kept):
    """A log sink that keeps the warnings and errors it is given."""

    def write(self, level: str, message: str) -> None:
        if level in ("warning", "error"):
            self.errors.append(f"{level}: {split_off_container(message)[1]}")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ArchiveError("the disk is full", hint="run prune"), "the disk is full; run prune"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ImportError("bad local file header"), "bad local file header"),
        (ZeroDivisionError("nobody knows"), "internal error: ZeroDivisionError"),
    ],
)
def test_what_fails_after_all_archives_are_safe_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    (tmp_path / "upper" / "made").mkdir(parents=True)
    mount = {"destination": "/data", "type": "overlay", "options": [f"upperdir={tmp_path / 'upper'}"]}
    annotations = {}
    for name in ("first", "second"):
        annotations[f"{PREFIX}{name}.mount-point"] = "/data"
        annotations[f"{PREFIX}{name}.archive-to"] = str(tmp_path / name)
        annotations[f"{PREFIX}{name}.success"] = str(tmp_path / f"{name}.done")
    (tmp_path / "config.json").write_text(json.dumps({"mounts": [mount], "annotations": annotations}))
    tended = []

    def tend(self: Destination) -> None:
        tended.append((self.path, (tmp_path / "second.done").exists()))
        raise raised

    monkeypatch.setattr(Destination, "tend", tend, raising=False)
    kept = Lines()

    assert hook.run(Settings(bundle=str(tmp_path)), Log("info", [kept])) == 0

    assert tended == [(str(tmp_path / "first"), True), (str(tmp_path / "second"), True)]
    first, second = kept.errors
    assert first.startswith(f"warning: archive first: the archive is safe at {tmp_path / 'first'}, ")
    assert said in first
    assert said in second


def test_a_signal_after_all_archives_are_safe_ends_the_run_and_fails_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upper" / "made").mkdir(parents=True)
    mount = {"destination": "/data", "type": "overlay", "options": [f"upperdir={tmp_path / 'upper'}"]}
    annotations = {f"{PREFIX}data.mount-point": "/data", f"{PREFIX}data.archive-to": str(tmp_path / "data")}
    (tmp_path / "config.json").write_text(json.dumps({"mounts": [mount], "annotations": annotations}))

    def tend(_: Destination) -> None:
        try:
            raise Interrupted(15)
        finally:
            raise OSError("what was closed just before is closed again")

    monkeypatch.setattr(Destination, "tend", tend, raising=False)
    kept = Lines()

    with pytest.raises(Interrupted):
        hook.run(Settings(bundle=str(tmp_path)), Log("info", [kept]))

    assert kept.errors == []


def test_what_was_asked_for_besides_an_archive_and_is_interrupted_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upper").mkdir()
    mount = {"destination": "/data", "type": "overlay", "options": [f"upperdir={tmp_path / 'upper'}"]}
    annotations = {f"{PREFIX}data.mount-point": "/data", f"{PREFIX}data.archive-to": str(tmp_path / "data")}
    (tmp_path / "config.json").write_text(json.dumps({"mounts": [mount], "annotations": annotations}))

    def tend(_: object) -> list[str]:
        raise Interrupted(15)

    monkeypatch.setattr(Destination, "tend", tend, raising=False)
    monkeypatch.setattr(Destination, "outstanding", ("loading",), raising=False)
    program = tmp_path / "on-failure"
    program.write_text(f"#!/bin/sh\n/bin/cat >'{tmp_path}/told'\n")
    program.chmod(0o755)
    kept = Kept()

    with pytest.raises(Interrupted):
        hook.run(Settings(bundle=str(tmp_path), on_failure=str(program)), Log("info", [kept]))

    reason = f"the archive is safe at {tmp_path}/data, but loading was interrupted by signal 15"
    assert kept.errors == [f"archive data: {reason}"]
    told = json.loads((tmp_path / "told").read_text())
    assert (told["saved"], told["error"]) == (True, reason)
