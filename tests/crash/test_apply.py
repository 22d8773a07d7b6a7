"""Whatever call of apply goes wrong: each entry is the old one or the new one, and the next run comes to the same end."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.conftest import below, change, copy
from tests.support import faults, hooks, overlays, tools, trees

if TYPE_CHECKING:
    from collections.abc import Iterator


class Place:
    """A change set, and a directory to which it is applied again and again.

    Attributes:
        data: the directory.
        reverse: what is overwritten is kept in it, if that is asked for.
        hook: what applies the change set.
    """

    def __init__(self, executable: Path, directory: Path, namespace: overlays.Namespace) -> None:
        overlay = overlays.Overlay(overlays.NATIVE, directory, namespace)
        overlay.layer(below)
        overlay.change(change)
        self.overlay = overlay
        self.data = directory / "data"
        self.reverse = directory / "reverse.tar"
        self._old = directory / "old"
        copy(overlay.lowers[0], self._old)
        for name in ("file", "link", "stays"):
            (self._old / name).write_text("old")
        for name in ("symlink", "empty"):
            (self._old / name).mkdir()
            (self._old / name / "below").write_text("old")
        os.setxattr(self._old / "opaque", "user.colour", b"grey")
        scratch = directory / "scratch"
        scratch.mkdir()
        self._bundle = hooks.Bundle(scratch / "bundle")
        self.hook = faults.Hook(executable, self._bundle, directory, scratch, self._arguments(keeps=True))
        self._settled: list[object] = []
        self.old = trees.view(self._old)
        self.lay_out()
        result = faults.run(self.hook)
        assert result.status == 0, result.stderr
        self.new = trees.view(self.data)
        assert trees.differences(self.old, self.new)

    def _arguments(self, *, keeps: bool) -> tuple[str, ...]:
        kept = ("--reverse", str(self.reverse)) if keeps else ()
        return ("apply", "--no-fsync", *kept, str(self.overlay.upper), str(self.data))

    def lay_out(self) -> None:
        """Let the directory be as it was."""
        shutil.rmtree(self.data, ignore_errors=True)
        copy(self._old, self.data)
        self.reverse.unlink(missing_ok=True)

    def staging(self) -> list[Path]:
        """Give what runs left."""
        return [
            path
            for path in (*self.data.iterdir(), *self.data.parent.iterdir())
            if ".archive_overlay-" in path.name
        ]

    def judge(self) -> Iterator[str]:
        """Say what is wrong after a run that came to whatever end."""
        now = {
            path: entry
            for path, entry in trees.view(self.data).entries.items()
            if not path.startswith(b".archive_overlay-")
        }
        for path in sorted(self.old.entries.keys() | self.new.entries.keys() | now.keys()):
            found = now.get(path)
            sides = [tree.entries.get(path) for tree in (self.old, self.new)]
            if found in sides:
                continue
            # Directories are between the two: their own metadata come last.
            if found and found.kind == "directory" and "directory" in [side.kind for side in sides if side]:
                continue
            yield f"{path!r} is neither old nor whole: {found}"
        if self.reverse.exists() and not self.reverse.stat().st_size:
            yield "the reverse is not whole"

    def run_again(self) -> Iterator[str]:
        """Say what is wrong after another run with nothing in its way, and after what was kept is applied.

        What a state leads to that was there before is known.
        """
        begins = not self.reverse.exists()
        state = None if self.staging() else (trees.view(self.data), begins or self.reverse.read_bytes())
        if state in self._settled:
            return
        complaints = [*self._run_again(begins)]
        if state and not complaints:
            self._settled.append(state)
        yield from complaints

    def _run_again(self, begins: bool) -> Iterator[str]:
        result = faults.run(dataclasses.replace(self.hook, arguments=self._arguments(keeps=begins)))
        if result.status != 0:
            yield f"the next run fails: {result.stderr}"
            return
        yield from self._debris(result.stderr)
        yield from (f"after the next run: {each}" for each in self._differences(self.new))
        back = ("apply", "--no-fsync", "--marks", "trusted", str(self.reverse), str(self.data))
        result = faults.run(dataclasses.replace(self.hook, arguments=back))
        if result.status != 0:
            yield f"it cannot be taken back: {result.stderr}"
        for each in self._differences(self.old):
            # A run that was killed with its staging in the directory has changed the time of that.
            if not (begins and each.startswith("b'.': mtime")):
                yield f"taken back: {each}"

    def _debris(self, log: str) -> Iterator[str]:
        before = self.data.stat()
        for path in self.staging():
            # Of a run that was killed before it could mark its staging directory, that is left: empty, and named. So is
            # that of the reverse, which has its name already.
            if os.listdir(path) or (path.name not in log and path.parent == self.data):
                yield f"debris: {path}"
            path.rmdir()
        os.utime(self.data, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _differences(self, expected: trees.View) -> list[str]:
        return trees.differences(expected, trees.view(self.data))


@pytest.fixture
def place(executable: Path) -> Iterator[Place]:
    """Give a place where something is applied, and what it overwrites is kept before."""
    tools.need_root()
    tools.need("setfacl", "unshare")
    if not overlays.holds_upperdirs(Path("/dev/shm")):
        tools.cannot_run("/dev/shm takes no whiteouts and extended attributes")
    namespace = overlays.Namespace(rootless=False)
    directory = Path(tempfile.mkdtemp(prefix="archive_overlay-crash-", dir="/dev/shm"))
    made = Place(executable, directory, namespace)
    yield made
    made.overlay.close()
    namespace.close()


def test_a_kill_at_any_call_leaves_each_entry_whole_and_the_next_run_goes_on(place: Place) -> None:
    place.lay_out()
    calls = faults.changing_calls(place.hook)
    complaints = []

    for index, call in enumerate(calls):
        place.lay_out()
        outcome = faults.send(place.hook, calls, index, signal.SIGKILL)
        assert outcome.status == -signal.SIGKILL
        complaints += [f"killed at {call}: {each}" for each in (*place.judge(), *place.run_again())]

    assert not complaints, "\n".join(complaints)


def test_a_failure_of_any_call_leaves_each_entry_whole_and_the_next_run_goes_on(place: Place) -> None:
    place.lay_out()
    calls = [call for call in faults.changing_calls(place.hook) if call.error]
    complaints = []

    for call in calls:
        place.lay_out()
        outcome = faults.fail(place.hook, call)
        wrong = [*place.judge()]
        if outcome.status not in (0, 1) or "Traceback" in outcome.stderr:
            wrong.append(f"it ended with {outcome}")
        if outcome.status == 0:
            now = trees.view(place.data).entries
            wrong += [
                f"{path!r} is not new"
                for path, entry in place.new.entries.items()
                if now.get(path) != entry and path != trees.TOP
            ]
        if place.staging() and "cannot remove" not in outcome.stderr:
            wrong.append(f"debris, and no word about it: {place.staging()}")
        complaints += [f"{call.error} at {call}: {each}" for each in (*wrong, *place.run_again())]

    assert not complaints, "\n".join(complaints)
