"""Runs in which one process reads and another one writes: whichever of them dies or fails, and when."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.crash.conftest import CASES, Case, Place, Places, change, make_places
from tests.support import faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPLACING = tuple(case for case in CASES if case.if_exists == "replace" and case.method.name != "move")
each_case = pytest.mark.parametrize("case", REPLACING, ids=str)

FILES = 400


def change_much(root: Path) -> None:
    """Make more than one process writes, and an entry of each kind."""
    change(root)
    for number in range(FILES):
        directory = root / f"directory {number % 4}"
        directory.mkdir(exist_ok=True)
        (directory / f"file {number}").write_text(f"{number}" * 100)


@pytest.fixture(scope="module")
def large(executable: Path) -> Iterator[Places]:
    """Give places with a change set that two processes save."""
    yield from make_places(executable, change=change_much, jobs=2)


def survivors(place: Place, case: Case, outcome: faults.Outcome, status: int) -> list[str]:
    """Say what is wrong after a run that something was done to, and after the next one."""
    wrong = [] if outcome.status == status else [f"the status is {outcome.status}: {outcome.stderr}"]
    wrong += outcome.strange_lines() + place.judge(case)
    if place.identify(case, place.archive) != "old":
        wrong.append("the old archive is gone")
    # A run that can still do so removes what it made; the next one removes what is left.
    if status != -signal.SIGKILL:
        wrong += [f"debris: {name}" for name in place.staging()]
    result = place.run(place.hook(case))
    if result.status != 0:
        return [*wrong, f"the next run failed: {result.stderr}"]
    return wrong + place.judge_complete(case, result.stderr)


def strike(
    call: str,
    what: signal.Signals | str,
    status: int,
    case: Case,
    spare_reader: bool,
    place: Place,
    number: int,
) -> list[str]:
    """Do something to one call of a run."""
    if not place.knows(case):
        place.learn(case)
    place.lay_out(case)
    outcome = faults.strike(place.hook(case), call, number, what, spare_first=spare_reader)
    return [f"{what!r} at {call} {number}: {line}" for line in survivors(place, case, outcome, status)]


def strike_each(
    places: Places,
    case: Case,
    call: str,
    what: signal.Signals | str,
    status: int,
    *,
    spare_reader: bool = False,
) -> None:
    """Do something to each call of a name in turn, but for the one by which the reader tries whether it may make it."""
    place = places.all[0]
    place.lay_out(case)
    calls = faults.count(place.hook(case), call)
    assert calls >= FILES // 128
    act = partial(strike, call, what, status, case, spare_reader)
    assert not places.each(act, range(1, calls + (not spare_reader)))


@each_case
def test_the_writer_ends_with_a_reader_that_is_killed(large: Places, case: Case) -> None:
    # A run ends when both processes have: if the writer went on for ever, this would not end.
    strike_each(large, case, "sendmsg", signal.SIGKILL, -signal.SIGKILL)


@each_case
def test_a_writer_that_is_killed_is_a_failed_archive(large: Places, case: Case) -> None:
    strike_each(large, case, "recvmsg", signal.SIGKILL, 1, spare_reader=True)


@each_case
def test_a_reader_that_is_asked_to_end_ends_the_writer_and_cleans_up(large: Places, case: Case) -> None:
    strike_each(large, case, "sendmsg", signal.SIGTERM, 143)


@each_case
def test_what_the_writer_cannot_do_is_a_failed_archive(large: Places, case: Case) -> None:
    strike_each(large, case, "recvmsg", "EIO", 1, spare_reader=True)


@pytest.mark.parametrize(("call", "error"), [("socketpair", "EMFILE"), ("clone", "EAGAIN")])
@each_case
def test_one_process_does_it_where_there_can_be_no_other(
    large: Places, case: Case, call: str, error: str
) -> None:
    place = large.all[0]
    place.learn(case)
    place.lay_out(case)

    outcome = faults.strike(place.hook(case), call, 1, error)

    assert outcome.status == 0, outcome.stderr
    assert not place.judge_complete(case, outcome.stderr)
