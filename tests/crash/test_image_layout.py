"""Whatever call of a run goes wrong: an image layout has the old revision or the new one, and no lie about it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.conftest import below, change, changed
from tests.support import faults, hooks, image_layouts, overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYERS = 2  # of the revision that is there before

# A call, the directory that it is about, and a name in it.
_FLUSH = re.compile(r"(?:fsync|fdatasync|syncfs|sync)\(\d*<(?P<path>[^>]*)>")
_RENAME = re.compile(r"renameat2?\(.*\d+<(?P<path>[^>]*)>, \"(?P<name>[^\"]*)\"")
_MARKER = re.compile(r"(?P<call>unlinkat|openat)\(.*\"success\", (?P<flags>[A-Z_|0]*)")


class Place:
    """A change set, and a layout to which it is appended again and again.

    Attributes:
        layout: where the layout is.
        hook: what appends to it, as one process.
        hook_of_two: the same as two processes.
    """

    def __init__(self, executable: Path, directory: Path, namespace: overlays.Namespace, old: bool) -> None:
        self.overlay = overlays.Overlay(overlays.NATIVE, directory, namespace)
        self.overlay.layer(below)
        self.overlay.change(change)
        self.layout = directory / "layout"
        self._success = directory / "success"
        self._template = directory / "template"
        self._upper = changed(self.overlay.upper)
        self.old = LAYERS if old else 0
        if old:
            image_layouts.put(self._template, "latest", layers=[b"one layer", b"and another one"])
            image_layouts.put(self._template, "other", layers=[b"a layer of another image"])
        asked = hooks.annotations(
            "data", mount_point="/data", method="oci", archive_to=self.layout, success=self._success
        )
        scratch = directory / "scratch"
        scratch.mkdir()
        bundle = hooks.Bundle(scratch / "bundle", mounts=[self.overlay.spec_mount()], annotations=asked)
        # Runs of two processes do not go the same way each time.
        self.hook = faults.Hook(executable, bundle, directory, scratch, ("--jobs", "1"))
        self.hook_of_two = faults.Hook(executable, bundle, directory, scratch, ("--jobs", "2"))

    def lay_out(self) -> None:
        """Put the old revision into the layout, with its marker; or nothing."""
        shutil.rmtree(self.layout, ignore_errors=True)
        if self.old:
            shutil.copytree(self._template, self.layout)
        else:
            self.layout.mkdir()
        self._success.write_text("of an earlier run")

    def layers(self) -> int:
        """Say how many layers the image has; all that belongs to it has to be there."""
        if not (self.layout / "index.json").exists() or not image_layouts.tags(self.layout):
            return 0
        image_layouts.expect_whole(self.layout)
        return len(image_layouts.read(self.layout).layers)

    def judge(self) -> Iterator[str]:
        """Say what is wrong after a run that came to whatever end."""
        layers = self.layers()
        if layers not in (self.old, self.old + 1):
            yield f"there are {layers} layers"
        marker = self._success.read_text() if self._success.exists() else None
        if marker == "" and layers != self.old + 1:
            yield "the marker is there, and the new revision is not"
        if marker and layers != self.old:
            yield "the old marker is there, and the new revision too"
        if self.old and image_layouts.tags(self.layout).count("other") != 1:
            yield "another tag is lost"
        if changed(self.overlay.upper) != self._upper:
            yield "the upperdir was touched"

    def judge_complete(self) -> Iterator[str]:
        """Say what is wrong after a run that says that all is well."""
        yield from self.judge()
        if self.layers() != self.old + 1:
            yield "the new revision is not there"
        if not self._success.exists() or self._success.read_text():
            yield "there is no marker"

    def strangers(self) -> list[str]:
        """Give what is in the layout that belongs in none."""
        return sorted(set(os.listdir(self.layout)) - {"blobs", "index.json", "oci-layout"})

    def run_again(self) -> Iterator[str]:
        """Say what is wrong after one more run with nothing in its way: it adds what the first one has not added."""
        result = faults.run(self.hook)
        # Of a run that was killed before it could mark its staging directory, that is left: empty, and the log has it.
        left = [
            name for name in self.strangers() if name not in result.stderr or os.listdir(self.layout / name)
        ]
        if result.status != 0:
            yield f"the next run fails: {result.stderr}"
        elif self.layers() != self.old + 1 or left:
            yield f"after the next run there are {self.layers()} layers, not {self.old + 1}; {left}"


def steps(place: Place, *arguments: str) -> list[str]:
    """Say what a run flushes, and when it gives what a name in the layout."""
    place.lay_out()
    hook = dataclasses.replace(place.hook, arguments=(*place.hook.arguments, *arguments))
    calls = faults.with_paths(
        hook,
        {"fsync", "fdatasync", "syncfs", "sync", "renameat", "renameat2", "rename", "unlinkat", "openat"},
    )
    return [step for call in calls if (step := _step(call))]


def _step(call: faults.Call) -> str:
    """Say what a call does for durability, if anything; numbers and what differs from run to run are #."""
    if flush := _FLUSH.match(call.text):
        return f"{call.name} {flush['path']}"
    if rename := _RENAME.match(call.text):
        return f"name {rename['path']}/{rename['name']}"
    if marker := _MARKER.match(call.text):
        if marker["call"] == "unlinkat":
            return "remove the marker"
        return "create the marker" if "O_CREAT" in marker["flags"] else ""
    return ""


@pytest.fixture(params=[True, False], ids=["layout", "no-layout"])
def place(request: pytest.FixtureRequest, executable: Path) -> Iterator[Place]:
    """Give a place with an old revision, and one without."""
    tools.need_root()
    tools.need("strace", "setfacl", "unshare")
    if not overlays.holds_upperdirs(Path("/dev/shm")):
        tools.cannot_run("/dev/shm takes no whiteouts and extended attributes")
    namespace = overlays.Namespace(rootless=False)
    directory = overlays.new_directory("archive_overlay-crash-", Path("/dev/shm"))
    made = Place(executable, directory, namespace, request.param)
    yield made
    made.overlay.close()
    namespace.close()


def test_blobs_come_before_what_refers_to_them_and_all_before_the_marker(place: Place) -> None:
    staging = "HOME/layout/.#"
    # A layout without images, so that one with blobs and without an index is known to have lost it.
    first = (
        []
        if place.old
        else [
            f"fsync {staging}/oci-layout",
            f"fsync {staging}/index.json",
            "name HOME/layout/oci-layout",
            "name HOME/layout/index.json",
            "fsync HOME/layout",
        ]
    )

    assert steps(place) == [
        "remove the marker",
        "fsync HOME",
        f"fsync {staging}/archive",  # the layer; config and manifest are named by their digests
        f"fsync {staging}/#",
        f"fsync {staging}/#",
        *first,
        f"fsync {staging}/index.json",
        *["name HOME/layout/blobs/sha#/#"] * 3,
        "fsync HOME/layout/blobs/sha#",
        "fsync HOME/layout/blobs",
        "fsync HOME/layout",
        "name HOME/layout/index.json",
        "fsync HOME/layout",
        "create the marker",
        "fsync HOME",
    ]


def test_without_fsync_nothing_is_flushed(place: Place) -> None:
    done = steps(place, "--no-fsync")

    assert "create the marker" in done
    assert [step for step in done if "sync" in step] == []


def test_a_kill_at_any_call_leaves_at_most_blobs_that_nothing_refers_to(place: Place) -> None:
    place.lay_out()
    calls = faults.changing_calls(place.hook)
    assert not [*place.judge_complete(), *place.strangers()]
    complaints = []

    for index, call in enumerate(calls):
        place.lay_out()
        outcome = faults.send(place.hook, calls, index, signal.SIGKILL)
        assert outcome.status == -signal.SIGKILL
        complaints += [f"killed at {call}: {each}" for each in (*place.judge(), *place.run_again())]

    assert not complaints, "\n".join(complaints)


def test_a_failure_of_any_call_leaves_the_old_revision_or_the_new_one(place: Place) -> None:
    place.lay_out()
    calls = [call for call in faults.failing_calls(place.hook) if call.changes]
    assert not [*place.judge_complete(), *place.strangers()]
    complaints = []

    for call in calls:
        place.lay_out()
        outcome = faults.fail(place.hook, call)
        wrong = [*(place.judge() if outcome.status else place.judge_complete()), *outcome.strange_lines()]
        if outcome.status not in (0, 1):
            wrong.append(f"it ended with {outcome}")
        if place.strangers() and "cannot remove" not in outcome.stderr:
            wrong.append(f"debris, and no word about it: {place.strangers()}")
        complaints += [f"{call.error} at {call}: {each}" for each in (*wrong, *place.run_again())]

    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("place", [True], ids=["layout"], indirect=True)
def test_a_signal_at_any_call_leaves_no_debris(place: Place) -> None:
    place.lay_out()
    calls = faults.changing_calls(place.hook)[:-1]
    complaints = []

    for index, call in enumerate(calls):
        place.lay_out()
        outcome = faults.send(place.hook, calls, index, signal.SIGTERM)
        wrong = [*place.judge(), *outcome.strange_lines(), *(f"debris: {name}" for name in place.strangers())]
        if outcome.status != 128 + signal.SIGTERM:
            wrong.append(f"it ended with {outcome}")
        complaints += [f"SIGTERM at {call}: {each}" for each in (*wrong, *place.run_again())]

    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("call", "what", "status"),
    [
        ("sendmsg", signal.SIGKILL, -signal.SIGKILL),
        ("sendmsg", signal.SIGHUP, 128 + signal.SIGHUP),
        ("recvmsg", signal.SIGKILL, 1),
        ("recvmsg", "EIO", 1),
    ],
    ids=["reader-killed", "reader-asked-to-end", "writer-killed", "writer-fails"],
)
def test_whichever_of_two_processes_comes_to_grief_the_old_revision_stays(
    place: Place, call: str, what: signal.Signals | str, status: int
) -> None:
    place.lay_out()
    # The reader tries whether it may receive, and goes on by itself if not.
    spare = call == "recvmsg"
    calls = faults.count(place.hook_of_two, call) - spare
    assert calls > 1
    complaints = []

    for number in range(1, calls + 1):
        place.lay_out()
        outcome = faults.strike(place.hook_of_two, call, number, what, spare_first=spare)
        wrong = [*place.judge(), *outcome.strange_lines()]
        if outcome.status != status or place.layers() != place.old:
            wrong.append(f"it ended with {outcome} and {place.layers()} layers")
        if status != -signal.SIGKILL and place.strangers():
            wrong.append(f"debris: {place.strangers()}")
        complaints += [f"{what!r} at {call} {number}: {each}" for each in (*wrong, *place.run_again())]

    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("calls", "directories"),
    [
        ({"fsync": "EINVAL"}, True),  # as CIFS has it
        ({"fsync": "EPERM"}, False),
        ({"fsync": "ENOSYS", "syncfs": "ENOSYS"}, False),
    ],
    ids=["directories", "files", "neither"],
)
def test_where_nothing_can_be_flushed_on_its_own_a_revision_is_added(
    place: Place, calls: dict[str, str], directories: bool
) -> None:
    place.lay_out()

    outcome, made = faults.refuse(place.hook, calls, directories=calls if directories else ())

    assert outcome.status == 0, outcome.stderr
    assert made == calls.keys()
    assert not list(place.judge_complete())
    said = [line.message for line in hooks.parse_log(outcome.stderr) if line.level == "warning"]
    assert ["it is not certain that all was written" in line for line in said] == [True] * ("syncfs" in calls)


def test_without_locks_no_revision_is_added(place: Place) -> None:
    place.lay_out()

    outcome, made = faults.refuse(place.hook, {"flock": "ENOSYS"})

    assert (outcome.status, made) == (1, {"flock"})
    assert "Function not implemented" in outcome.stderr
    assert place.layers() == place.old
    assert not list(place.judge())


@pytest.mark.parametrize("call", ["prctl", "sendmsg", "recvmsg"])
def test_one_process_adds_a_revision_where_two_may_not(place: Place, call: str) -> None:
    place.lay_out()

    outcome, made = faults.refuse(place.hook_of_two, {call: "EPERM"})

    assert outcome.status == 0, outcome.stderr
    assert made == {call}
    assert not list(place.judge_complete())
    assert "level=warning" not in outcome.stderr
