"""Runs that compose layers, killed, failing, or several at once: no revision is lost, and the next one goes on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.history.revisions import open_image
from tests.support import faults, hooks, image_layouts, overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.history.revisions import Image, Revision

MOST = 3
RUNS = 8
# Of calls that give or take no name, each n-th is struck.
_EACH = 9
_NAMING = ("rename", "renameat", "renameat2", "unlink", "unlinkat")


class Place:
    """Change sets of a file with a number in it, and a layout that they go to.

    Attributes:
        layout: where it is.
        hook: what appends to it.
    """

    def __init__(self, executable: Path, directory: Path) -> None:
        self.directory = directory
        self.layout = directory / "layout"
        self._executable = executable
        self._template = directory / "template"
        self._layers_before = 0
        self.hook = self.appending("one")

    def appending(self, name: str, home: Path | None = None) -> faults.Hook:
        """Give a hook that saves an upperdir of its own."""
        scratch = self.directory / name
        for made in (scratch, scratch / "upper", scratch / "lower"):
            made.mkdir()
        (scratch / "upper" / f"file of {name}").write_text(name)
        asked = hooks.annotations(
            "data", mount_point="/data", method="oci", archive_to=f"{self.layout}:main", max_layers=MOST
        )
        mount = hooks.overlay_mount("/data", upper=scratch / "upper", lowers=[scratch / "lower"])
        bundle = hooks.Bundle(scratch / "bundle", mounts=[mount], annotations=asked)
        return faults.Hook(self._executable, bundle, home or self.directory, scratch, ("--jobs", "1"))

    def set(self, hook: faults.Hook, text: str) -> None:
        """Say what a hook saves the next time, in a new upperdir, as each start of a container gets one."""
        upper = hook.scratch / "upper"
        shutil.rmtree(upper)
        upper.mkdir()
        (upper / f"file of {hook.scratch.name}").write_text(hook.scratch.name)
        (upper / "number").write_text(text)

    def make_template(self) -> None:
        """Append until the next run composes layers that are composed already, and others."""
        while True:
            self.set(self.hook, str(len(self.texts()) + 1))
            self.keep()
            assert faults.run(self.hook).status == 0
            revisions, layers = self.texts(), self.layers()
            if len(revisions) > 2 * MOST and layers < MOST and layers <= self._layers_before:
                break
        self.lay_out()

    def keep(self) -> None:
        """Let what is there be what `lay_out` puts there."""
        shutil.rmtree(self._template, ignore_errors=True)
        self._layers_before = self.layers()
        if self.layout.exists():
            shutil.copytree(self.layout, self._template)

    def lay_out(self) -> None:
        shutil.rmtree(self.layout)
        shutil.copytree(self._template, self.layout)

    def layers(self) -> int:
        return len(image_layouts.read(self.layout, "main").layers) if self.layout.exists() else 0

    def texts(self) -> list[str]:
        """Give what each revision has; all that belongs to the layout has to be there."""
        if not self.layout.exists():
            return []
        image_layouts.expect_whole(self.layout)
        with open_image(f"{self.layout}:main") as image:
            assert [each.number for each in image.revisions] == list(range(1, len(image.revisions) + 1))
            assert not image.lost
            return [_text_in(image, revision) for revision in image.revisions]

    def judge(self, old: list[str], text: str, *, complete: bool = False) -> Iterator[str]:
        """Say what is wrong after a run that came to whatever end."""
        found = self.texts()
        if found not in ([*old, text], *([] if complete else [old])):
            yield f"the revisions have {found}"

    def run_again(self, text: str) -> Iterator[str]:
        """Say what is wrong after one more run with nothing in its way."""
        before = self.texts()
        self.set(self.hook, text)
        result = faults.run(self.hook)
        # Of a run that was killed before it could mark its staging directory, that is left.
        warnings = [said for said in result.messages("warning") if "no mark of this program" not in said]
        if result.status != 0 or warnings:
            yield f"the next run fails: {result.stderr}"
        elif self.texts() != [*before, text] or self.layers() >= MOST:
            yield f"after the next run there are {self.texts()} in {self.layers()} layers"


def _text_in(image: Image, revision: Revision) -> str:
    """Give what the file has after a revision, by its whole state: each piece is read, and its digests are compared."""
    text = ""
    for piece in image.state(revision):
        with image.read(piece) as tar:
            for entry in tar.entries():
                if entry.name.endswith("number"):
                    text = (tar.whole_data() or b"").decode()
    return text


@pytest.fixture
def place(executable: Path) -> Iterator[Place]:
    """Give a place on a file system that takes upperdirs."""
    tools.need_root()
    tools.need("strace", "unshare")
    directory = overlays.new_directory("archive_overlay-crash-", Path("/dev/shm"))
    yield Place(executable, directory)
    overlays.remove(directory)


def test_a_kill_while_layers_are_composed_loses_no_revision(place: Place) -> None:
    place.make_template()
    old = place.texts()
    place.set(place.hook, "new")
    calls = faults.changing_calls(place.hook)
    assert not list(place.judge(old, "new", complete=True))
    exchanges = [index for index, call in enumerate(calls) if call.name == "renameat2"]
    assert len(exchanges) == 2, "it appends, and composes layers"
    complaints = []

    chosen = [index for index, call in enumerate(calls) if call.name in _NAMING or index % _EACH == 0]
    for index in chosen:
        place.lay_out()
        place.set(place.hook, "new")
        outcome = faults.send(place.hook, calls, index, signal.SIGKILL)
        assert outcome.status == -signal.SIGKILL
        wrong = [*place.judge(old, "new", complete=index > exchanges[0]), *place.run_again("newer")]
        complaints += [f"killed at {calls[index]}: {each}" for each in wrong]

    assert not complaints, "\n".join(complaints)


def test_a_call_that_fails_while_layers_are_composed_fails_no_stop(place: Place) -> None:
    place.make_template()
    old = place.texts()
    place.set(place.hook, "new")
    changing = faults.changing_calls(place.hook)
    place.lay_out()
    calls = [call for call in faults.failing_calls(place.hook) if call.changes]
    first = next(index for index, call in enumerate(changing) if call.name == "renameat2")
    # What comes after the revision was published, and flushed.
    late = calls[[call.text for call in calls].index(changing[first].text) + 2 :]
    complaints = []

    for call in late[:: _EACH // 2]:
        place.lay_out()
        place.set(place.hook, "new")
        outcome = faults.fail(place.hook, call)
        wrong = [*place.judge(old, "new", complete=True), *outcome.strange_lines()]
        if outcome.status != 0:
            wrong.append(f"it ended with {outcome}")
        complaints += [f"{call.error} at {call}: {each}" for each in (*wrong, *place.run_again("newer"))]

    assert not complaints, "\n".join(complaints)


def test_of_runs_at_once_that_compose_layers_no_revision_is_lost(place: Place) -> None:
    crowd = [place.appending(f"run{number}") for number in range(RUNS)]
    expected: list[str] = []
    for turn in range(3):
        for number, hook in enumerate(crowd):
            place.set(hook, f"{turn}.{number}")
            expected.append(f"{turn}.{number}")
        running = [faults.begin(hook) for hook in crowd]
        for run, hook in zip(running, crowd):
            run.send(hook.bundle.state())
        for run in running:
            assert run.wait() == 0, run.stderr
            assert b"level=warning" not in run.stderr, run.stderr
            run.close()

        assert sorted(place.texts()) == sorted(expected)

    assert not list(place.run_again("alone"))
    left = set(os.listdir(place.layout)) - {"blobs", "index.json", "oci-layout"}
    assert not left
