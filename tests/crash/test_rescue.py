"""--rescue-dir: an upperdir whose archive failed is kept, and the log says where the changes are now."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.hook.rescue_dir import RescueDirectory
from archive_overlay.log import Log, StreamSink
from archive_overlay.overlay.dialect import NATIVE
from archive_overlay.overlay.mount import OverlayMount
from tests.crash.conftest import CASES, Place, Places, changed
from tests.support import faults, hooks, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

COPY = next(case for case in CASES if case.method.name == "copy" and case.if_exists == "replace")


class Rescued:
    """A place whose archives fail, and what becomes of its upperdir.

    Attributes:
        place: where.
        directory: the rescue directory.
        kept: where the upperdir is kept, if nothing has that name yet.
        arguments: the command line.
        before: the upperdir as it was.
    """

    def __init__(self, place: Place, directory: Path | None = None) -> None:
        self.place = place
        self.directory = directory or place.scratch / "rescue"
        self.kept = self.directory / "c1" / "data"
        self.arguments: tuple[str, ...] = ("--rescue-dir", str(self.directory))
        self.before = trees.view(place.spare_upper)

    def run(self, *arguments: str, **keys: object) -> hooks.Result:
        """Run the hook, with a destination that cannot be unless the keys say something else."""
        return self.place.run(self.hook(*arguments, **keys))

    def hook(self, *arguments: str, **keys: object) -> faults.Hook:
        """Give that hook."""
        return self.place.hook(COPY, *self.arguments, *arguments, **{"archive_to": "relative", **keys})

    def run_asked(self, asked: dict[str, str], *, container: str = "c1") -> hooks.Result:
        """Run the hook for other archives, or as another container's."""
        mounts = [self.place.overlay.spec_mount()]
        executable = self.place.hook(COPY).executable
        bundle = hooks.Bundle(self.place.overlay.directory, mounts=mounts, annotations=asked)
        state = json.dumps({**json.loads(bundle.state()), "id": container})
        return hooks.run_hook(state.encode(), "--rescue-dir", self.directory, executable=executable)

    def description(self) -> dict[str, Any]:
        """Give what is beside the kept upperdir."""
        found: dict[str, Any] = json.loads(self.kept.with_name("data.json").read_text())
        return found

    def whole(self) -> list[Path]:
        """Give the places where the change set is, whole."""
        upper = self.place.overlay.upper
        candidates = [upper, *self.directory.glob("*/*"), *self.directory.glob("*/.*/archive")]
        return [path for path in candidates if path.is_dir() and trees.view(path) == self.before]


def prepare(rescued: Rescued) -> None:
    """Let the place be as before any run, and the rescue directory be absent."""
    shutil.rmtree(rescued.directory, ignore_errors=True)
    rescued.place.lay_out(COPY)


@pytest.fixture
def rescued(place: Place) -> Rescued:
    """Give a change set whose root directory is an unusual one, and an empty rescue directory."""
    found = Rescued(place)
    prepare(found)
    upper = place.overlay.upper
    os.chown(upper, 1000, 1001)
    upper.chmod(0o2510)
    os.setxattr(upper, "user.colour", b"blue")
    found.before = trees.view(upper)
    return found


@pytest.fixture
def other_disk(rescued: Rescued) -> Iterator[Path]:
    """Give a directory on another file system, which is there for `Overlay.inside`."""
    disk = rescued.place.scratch / "disk"
    disk.mkdir(exist_ok=True)
    rescued.place.overlay.inside(lambda: overlays.mount_tmpfs(disk, "size=8m"))
    yield disk
    rescued.place.overlay.inside(lambda: overlays.unmount(disk))


def test_the_upperdir_is_renamed_and_has_an_empty_twin(rescued: Rescued) -> None:
    upper = rescued.place.overlay.upper
    before = upper.stat()

    result = rescued.run()

    assert result.status == 1
    assert str(rescued.kept) in result.only_error()
    assert rescued.kept.stat().st_ino == before.st_ino, "renamed, not copied"
    assert trees.view(rescued.kept) == rescued.before, "bookkeeping and all"
    twin = trees.view(upper).entries
    assert list(twin) == [trees.TOP]
    assert replace(twin[trees.TOP], mtime_ns=0) == replace(rescued.before.entries[trees.TOP], mtime_ns=0)
    assert stat.S_IMODE(rescued.kept.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(rescued.kept.parent)) == ["data", "data.json"]


def test_the_description_says_what_was_asked_and_why_it_failed(rescued: Rescued) -> None:
    result = rescued.run(archive_to="relative", method="tar.gz")

    description = rescued.description()
    assert description["archive"] == "data"
    assert description["annotations"]["archive-to"] == "relative"
    assert description["annotations"]["method"] == "tar.gz"
    assert description["upperdir"] == str(rescued.place.overlay.upper)
    assert description["lowerdirs"] == [str(lower) for lower in rescued.place.overlay.lowers]
    assert "relative" in description["reason"]
    assert description["reason"] in result.only_error()
    assert stat.S_IMODE(rescued.kept.with_name("data.json").stat().st_mode) == 0o600


def test_what_is_there_already_stays(rescued: Rescued) -> None:
    first = rescued.run()
    kept = changed(rescued.kept)
    description = rescued.kept.with_name("data.json").read_bytes()
    rescued.place.restart_container()
    before = trees.view(rescued.place.overlay.upper)

    second = rescued.run()

    assert (first.status, second.status) == (1, 1)
    assert changed(rescued.kept) == kept
    assert rescued.kept.with_name("data.json").read_bytes() == description
    assert str(rescued.kept.with_name("data.~1~")) in second.only_error()
    assert trees.view(rescued.kept.with_name("data.~1~")) == before
    assert rescued.kept.with_name("data.~1~.json").exists()


@pytest.mark.parametrize("there", ["data", "data.json"])
def test_nothing_foreign_is_overwritten(rescued: Rescued, there: str) -> None:
    foreign = rescued.kept.with_name(there)
    foreign.parent.mkdir(parents=True)
    foreign.write_text("precious")

    result = rescued.run()

    assert result.status == 1
    assert foreign.read_text() == "precious"
    (whole,) = rescued.whole()
    assert str(whole) in result.only_error()


def test_names_with_slashes_stay_inside(rescued: Rescued) -> None:
    names = ["/absolute", "a/b", "%2F", "\u00fc" * 200, "\udc80"]
    lost = set(names)
    outside = set(os.listdir(rescued.place.scratch))

    for name in names:
        # Each archive has an upperdir of its own: a container that was started again.
        rescued.place.restart_container()
        asked = hooks.annotations(name, mount_point="/data", archive_to="relative")
        result = rescued.run_asked(asked, container="../../container")

        assert result.status == 1
        if "kept in" in result.only_error():
            lost.remove(name)

    assert lost == set()
    (container,) = rescued.directory.iterdir()
    assert container.name == "..%2F..%2Fcontainer"
    kept = [path for path in container.iterdir() if path.is_dir()]
    assert len(kept) == len(names)
    assert {json.loads(path.with_name(f"{path.name}.json").read_text())["archive"] for path in kept} == set(
        names
    )
    assert set(os.listdir(rescued.place.scratch)) == {*outside, "rescue"}


@pytest.mark.parametrize("container", [".", "..", "", "/"])
def test_ids_that_mean_something_to_a_path_stay_inside(rescued: Rescued, container: str) -> None:
    asked = hooks.annotations("data", mount_point="/data", archive_to="relative")

    result = rescued.run_asked(asked, container=container)

    assert result.status == 1
    (directory,) = rescued.directory.iterdir()
    assert sorted(os.listdir(directory)) == ["data", "data.json"]


def fails_for_want_of_space(rescued: Rescued) -> hooks.Result:
    disk = rescued.place.scratch / "full"
    disk.mkdir(exist_ok=True)

    def run() -> hooks.Result:
        overlays.mount_tmpfs(disk, "size=16k")
        try:
            return rescued.run(archive_to=disk / "archive")
        finally:
            overlays.unmount(disk)

    return rescued.place.overlay.inside(run)


FAILURES = {
    "unknown method": lambda rescued: rescued.run(method="no such method"),
    "relative archive-to": lambda rescued: rescued.run(archive_to="relative"),
    "destination not writable": lambda rescued: rescued.run(archive_to="/proc/no/archive"),
    "destination of the wrong type": lambda rescued: rescued.run(archive_to=rescued.place.success),
    "if-exists is fail": lambda rescued: rescued.run(
        archive_to=rescued.place.archive, if_exists="fail", success=rescued.place.scratch / "none"
    ),
    "marker cannot be": lambda rescued: rescued.run(
        archive_to=rescued.place.out / "new", success="/proc/no/success"
    ),
    "full disk": fails_for_want_of_space,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_kind_of_failure_keeps_the_upperdir(rescued: Rescued, failure: str) -> None:
    result = FAILURES[failure](rescued)

    assert result.status == 1
    assert result.only_error().endswith(f"its changes are kept in {rescued.kept}")
    assert rescued.whole() == [rescued.kept]


@pytest.mark.parametrize("call", ["syncfs", "mkdirat", "fsetxattr"])
def test_a_failure_of_the_system_keeps_the_upperdir(rescued: Rescued, call: str) -> None:
    hook = rescued.hook(archive_to=rescued.place.archive)
    calls = [each for each in faults.failing_calls(hook) if each.name == call]
    prepare(rescued)
    rescued.before = trees.view(rescued.place.overlay.upper)

    outcome = faults.fail(hook, calls[0])

    assert outcome.status == 1
    assert f"its changes are kept in {rescued.kept}" in outcome.stderr
    assert rescued.whole() == [rescued.kept]


def test_an_archive_that_can_be_saved_is_saved_before_the_upperdir_is_kept(rescued: Rescued) -> None:
    place = rescued.place
    asked = {
        **hooks.annotations("bad", mount_point="/data", archive_to="relative"),
        **hooks.annotations("good", mount_point="/data", archive_to=place.out / "good"),
        **hooks.annotations("worse", mount_point="/data", archive_to="relative"),
    }

    result = rescued.run_asked(asked)

    assert result.status == 1
    assert all(str(rescued.directory / "c1" / "bad") in error for error in result.messages("error"))
    assert (place.out / "good" / "file").exists()
    assert sorted(os.listdir(rescued.directory / "c1")) == ["bad", "bad.json"]


def test_what_cannot_be_described_is_kept_all_the_same(rescued: Rescued) -> None:
    hook = rescued.hook()
    calls = faults.failing_calls(hook, status=1)
    prepare(rescued)
    rescued.before = trees.view(rescued.place.overlay.upper)
    (create,) = (call for call in calls if "data.json" in call.text and "O_CREAT" in call.text)

    outcome = faults.fail(hook, create)

    assert outcome.status == 1
    assert f"its changes are kept in {rescued.kept}" in outcome.stderr
    assert "data.json" in outcome.stderr.splitlines()[0]
    assert rescued.whole() == [rescued.kept]


def test_what_is_nested_too_deeply_to_be_described_is_kept_all_the_same(
    rescued: Rescued, capfd: pytest.CaptureFixture[str]
) -> None:
    nested: list[object] = []
    for _ in range(10_000):
        nested = [nested]
    overlay = OverlayMount(upper=str(rescued.place.overlay.upper), lowers=(), dialect=NATIVE)
    rescue = RescueDirectory(str(rescued.directory), "c1", Log("info", [StreamSink(2, terminal=False)]))

    kept = rescue.keep(
        overlay, "data", asked={"success": nested}, reason="it must be a string", may_rename=True, hurry=False
    )

    assert kept == str(rescued.kept)
    assert rescued.whole() == [rescued.kept]
    assert "data.json, the notes on" in capfd.readouterr().err


def test_whatever_call_fails_the_log_says_where_the_changes_are(places: Places) -> None:
    first = Rescued(places.all[0])
    prepare(first)
    calls = faults.failing_calls(first.hook(), status=1)

    def fail(place: Place, call: faults.Call) -> list[str]:
        rescued = Rescued(place)
        prepare(rescued)
        outcome = faults.fail(rescued.hook(), call)
        wrong = outcome.strange_lines()
        if outcome.status != 1:
            wrong.append(f"exit status {outcome.status}")
        whole = rescued.whole()
        # An upperdir of which the kernel does not say whether it is mounted is copied.
        if len(whole) != 1 and whole[:-1] != [place.overlay.upper]:
            wrong.append(f"the change set is in {whole}")
        elif (
            "cannot read the spec" not in outcome.stderr  # nobody knows of any archive
            and not call.text.startswith("write(2")  # the log itself
            and not re.search(
                f'(its changes are (kept )?in|the upperdir) {re.escape(str(whole[-1]))}[ "]', outcome.stderr
            )
        ):
            wrong.append(f"the change set is in {whole}, but the log is {outcome.stderr}")
        return [f"{call.error} at {call}: {each}" for each in wrong]

    complaints = places.each(fail, calls)

    assert len(calls) > 40
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("failure", FAILURES)
def test_without_a_rescue_dir_the_log_says_where_the_changes_are(rescued: Rescued, failure: str) -> None:
    upper = rescued.place.overlay.upper
    rescued.arguments = ()

    result = FAILURES[failure](rescued)

    assert result.status == 1
    assert result.only_error().endswith(f"its changes are in {upper} until the engine deletes them")
    assert rescued.whole() == [upper]


def elsewhere(rescued: Rescued, disk: Path) -> Rescued:
    """Give the same with its rescue directory on another disk."""
    found = Rescued(rescued.place, disk / "rescue")
    found.before = rescued.before
    return found


def test_across_file_systems_the_upperdir_is_copied(rescued: Rescued, other_disk: Path) -> None:
    rescued = elsewhere(rescued, other_disk)
    overlay = rescued.place.overlay

    result, kept, names = overlay.inside(
        lambda: (rescued.run(), trees.view(rescued.kept), sorted(os.listdir(rescued.kept.parent)))
    )

    assert result.status == 1
    assert result.only_error().endswith(f"its changes are kept in {rescued.kept}")
    assert kept == rescued.before, "bookkeeping and all"
    assert names == ["data", "data.json"]
    assert trees.view(overlay.upper) == rescued.before


def test_what_is_beyond_the_limits_fills_no_other_file_system(rescued: Rescued, other_disk: Path) -> None:
    there = elsewhere(rescued, other_disk)
    limits = ("--max-bytes=1", "--no-setid")

    result, names = there.place.overlay.inside(
        lambda: (there.run(*limits), sorted(path.name for path in other_disk.rglob("*")))
    )

    assert result.status == 1
    assert "nor copied: the archive has more than 1 bytes, the most that is allowed" in result.only_error()
    assert names == ["c1", "rescue"]
    assert trees.view(there.place.overlay.upper) == there.before
    # Where that writes nothing, it is kept, and as it was.
    assert rescued.run(*limits).status == 1
    assert trees.view(rescued.kept) == rescued.before


def test_a_full_rescue_disk_leaves_the_upperdir_and_says_so(rescued: Rescued, other_disk: Path) -> None:
    rescued = elsewhere(rescued, other_disk)
    overlay = rescued.place.overlay
    (overlay.upper / "huge").write_bytes(os.urandom(9 << 20))
    before = changed(overlay.upper)

    result, names = overlay.inside(
        lambda: (rescued.run(), sorted(path.name for path in other_disk.rglob("*")))
    )

    assert result.status == 1
    assert f"its changes are in {overlay.upper} until" in result.only_error()
    assert "could not be kept" in result.only_error()
    assert "No space left" in result.only_error()
    assert names == ["c1", "rescue"]
    assert changed(overlay.upper) == before


@pytest.mark.parametrize("flavour", [overlays.NATIVE, overlays.FUSE], ids=str)
def test_an_overlay_that_is_still_mounted_is_copied(rescued: Rescued, flavour: overlays.Flavour) -> None:
    overlays.need(flavour)
    directory = rescued.place.scratch / "mounted"
    directory.mkdir()
    overlay = overlays.Overlay(flavour, directory, rescued.place.overlay.namespace)
    try:
        overlay.mount()
        overlay.inside(lambda: (overlay.merged / "made").write_text("by a container"))
        inode = overlay.upper.stat().st_ino
        asked = hooks.annotations("data", mount_point="/data", archive_to="relative")
        bundle = hooks.Bundle(directory, mounts=[overlay.spec_mount()], annotations=asked)
        executable = rescued.place.hook(COPY).executable

        result = overlay.inside(
            lambda: hooks.run_hook(bundle, "--rescue-dir", rescued.directory, executable=executable)
        )

        assert result.status == 1
        assert result.only_error().endswith(f"its changes are kept in {rescued.kept}")
        assert overlay.upper.stat().st_ino == inode, "what the container has mounted is where it was"
        assert trees.view(rescued.kept) == trees.view(overlay.upper)
    finally:
        overlay.close()


def test_a_kill_at_any_call_leaves_the_upperdir_whole_in_one_place(places: Places) -> None:
    first = Rescued(places.all[0])
    prepare(first)
    calls = faults.changing_calls(first.hook(), status=1)

    def kill(place: Place, index: int) -> list[str]:
        rescued = Rescued(place)
        prepare(rescued)
        untouched = changed(place.out)
        outcome = faults.send(rescued.hook(), calls, index, signal.SIGKILL)
        wrong = []
        if outcome.status != -signal.SIGKILL:
            wrong.append(f"it ended with {outcome}")
        if len(rescued.whole()) != 1:
            wrong.append(f"the change set is in {rescued.whole()}")
        if place.marker() != "old" or changed(place.out) != untouched:
            wrong.append("archive or marker was touched")
        return [f"killed at {calls[index]}: {each}" for each in wrong]

    complaints = places.each(kill, range(len(calls)))

    assert len(calls) > 5
    assert not complaints, "\n".join(complaints)


def test_a_kill_at_any_call_of_a_copy_leaves_the_upperdir(rescued: Rescued, other_disk: Path) -> None:
    rescued = elsewhere(rescued, other_disk)
    upper = rescued.place.overlay.upper
    before = changed(upper)

    def kill_at_each() -> tuple[int, list[str]]:
        calls = faults.changing_calls(rescued.hook(), status=1)
        wrong = []
        for index, call in enumerate(calls):
            shutil.rmtree(rescued.directory)
            faults.send(rescued.hook(), calls, index, signal.SIGKILL)
            if changed(upper) != before:
                wrong.append(f"killed at {call}: the upperdir was touched")
            if rescued.kept.exists() and trees.view(rescued.kept) != rescued.before:
                wrong.append(f"killed at {call}: what is kept is not whole")
            result = rescued.run()
            # Of a run that was killed before it could mark its staging directory, that is left: empty, and the log has it.
            left = sorted(
                path.name
                for path in rescued.kept.parent.iterdir()
                if path.name not in result.stderr or not path.is_dir() or any(path.iterdir())
            )
            if result.status != 1 or not all(name.startswith("data") for name in left):
                wrong.append(f"killed at {call}: another run leaves {left} and says {result.stderr}")
        return len(calls), wrong

    tried, wrong = rescued.place.overlay.inside(kill_at_each)

    assert tried > 40
    assert not wrong, "\n".join(wrong)


def test_a_signal_during_one_rescue_costs_no_other_failure_its_report(
    rescued: Rescued, other_disk: Path
) -> None:
    there = elsewhere(rescued, other_disk)
    hook = there.hook()
    more = hooks.annotations("more", mount_point="/data", archive_to="relative")
    asked = {**hook.bundle.spec["annotations"], **more}
    mounts = [rescued.place.overlay.spec_mount()]
    both = replace(hook, bundle=hooks.Bundle(hook.bundle.directory, mounts=mounts, annotations=asked))

    outcome = rescued.place.overlay.inside(lambda: faults.strike(both, "fsetxattr", 1, signal.SIGTERM))

    assert outcome.status == 128 + signal.SIGTERM
    errors = [line.message for line in hooks.parse_log(outcome.stderr) if line.level == "error"]
    assert [error.partition(":")[0] for error in errors] == ["archive data", "archive more"]
    assert all(str(rescued.place.overlay.upper) in error for error in errors)
    assert trees.view(rescued.place.overlay.upper) == rescued.before
