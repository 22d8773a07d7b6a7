"""Whenever a command that tidies a history is killed: there is the old history or the new one, and all of it can be had."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import faults, histories, history, hooks, image_layouts, overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_STRIKES = 6

COMMANDS = {
    "squash": ["squash", "{}:main@3..6"],
    "prune": ["prune", "--keep-last", "2", "{}:main"],
    "revert": ["revert", "{}:main@4"],
    "tag": ["tag", "--max-layers", "2", "{}:main@6", "new"],
    "untag": ["untag", "{}:other"],
}


class Place:
    """A layout, and a command that changes it again and again.

    Attributes:
        layout: where it is.
        hook: the command.
    """

    def __init__(self, executable: Path, directory: Path, command: str) -> None:
        self.layout = directory / "layout"
        self._directory = directory
        self._template = directory / "template"
        histories.build(self._template, 7, most=4)
        history.output_of("tag", f"{self._template}:main@5", "other")
        scratch = directory / "scratch"
        scratch.mkdir()
        arguments = [each.format(self.layout) for each in COMMANDS[command]]
        bundle = hooks.Bundle(scratch / "bundle")
        self.hook = faults.Hook(executable, bundle, directory, scratch, tuple(arguments))
        self.lay_out()
        self.old = self.found()
        result = faults.run(self.hook)
        assert result.status == 0, result.stderr
        self.new = self.found()
        assert self.old != self.new

    def lay_out(self) -> None:
        """Let the layout be as it was."""
        shutil.rmtree(self.layout, ignore_errors=True)
        shutil.copytree(self._template, self.layout)

    def found(self) -> dict[str, list[int]]:
        """Give the numbers of all revisions, by tag."""
        return {tag: histories.numbers(self.layout, tag) for tag in image_layouts.tags(self.layout)}

    def judge(self, *, again: bool = False) -> Iterator[str]:
        """Say what is wrong after a run that came to whatever end, or after another one that nothing stopped."""
        verified = history.run("verify", "--read-data", self.layout)
        if verified.status:
            yield f"not all can be had: {verified.stdout}{verified.stderr}"
        elif not again and self.found() not in (self.old, self.new):
            yield f"there are the revisions {self.found()}"


@pytest.fixture(params=COMMANDS)
def place(request: pytest.FixtureRequest, executable: Path) -> Iterator[Place]:
    tools.need_root()
    tools.need("unshare")
    directory = overlays.new_directory("archive_overlay-crash-", Path("/dev/shm"))
    yield Place(executable, directory, request.param)
    overlays.remove(directory)


def test_a_kill_leaves_the_old_history_or_the_new_one(place: Place) -> None:
    place.lay_out()
    calls = faults.changing_calls(place.hook)
    # What puts the new history in the place of the old one comes last, and cleaning up after that.
    indices = sorted({*range(0, len(calls), max(1, len(calls) // MOST_STRIKES)), *_publication(calls)})
    complaints = []

    for index in indices:
        place.lay_out()
        outcome = faults.send(place.hook, calls, index, signal.SIGKILL)
        assert outcome.status == -signal.SIGKILL
        wrong = list(place.judge())
        again = faults.run(place.hook)
        if again.status not in (0, 1):
            wrong.append(f"the next run ends with {again}")
        complaints += [f"killed at {calls[index]}: {each}" for each in (*wrong, *place.judge(again=True))]

    assert not complaints, "\n".join(complaints)


def _publication(calls: list[faults.Call]) -> list[int]:
    """Give the calls next to the exchange of the index, and what is deleted after it."""
    exchanges = [
        index for index, call in enumerate(calls) if "index.json" in call.text and "rename" in call.name
    ]
    return [index for each in exchanges for index in (each, each + 1, each + 2) if index < len(calls)]
