"""Whatever call of a run goes wrong: no archive is lost, no marker lies, and the next run puts all right."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from archive_overlay.methods import METHODS
from tests.crash.conftest import ATTEMPTS, CASES, HAVE_TESTS_OF_THEIR_OWN, Case, Place, Places
from tests.support import faults

if TYPE_CHECKING:
    from typing import Callable

# Files get their names in the same way whatever compresses them, so keeping the old one is tried with one of them.
each_case = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.if_exists != "backup" or case.method.name not in ("tar.gz", "tar.zst")],
)

# The first case of those that read the changes in the same way, which is what most calls do: tars do so, compressed or not.
# `move` reads them as `copy` does.
READ_IN_FULL = {
    case.method.name.partition(".")[0]: case for case in reversed(CASES) if case.method.name != "move"
}.values()

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)


def test_no_method_is_left_out() -> None:
    assert {case.method.name for case in CASES} | HAVE_TESTS_OF_THEIR_OWN.keys() == METHODS.keys()


@each_case
def test_only_the_first_thread_changes_anything(place: Place, case: Case) -> None:
    place.lay_out(case)

    faults.changing_calls(place.hook(case), other_threads=True)


@each_case
def test_a_kill_at_any_call_loses_nothing(places: Places, case: Case) -> None:
    kill_at_each(places, case)


def kill_at_each(places: Places, case: Case, *, since: str = "") -> None:
    """Kill a run at each call that changes something.

    Args:
        since: the name of the call with which it begins; "": from the first one on.
    """
    calls = recorded(places, case, faults.changing_calls)
    settled = Settled(case)

    def kill(place: Place, index: int) -> list[str]:
        place.lay_out(case)
        outcome = faults.send(place.hook(case), calls, index, signal.SIGKILL)
        wrong = place.judge(case) if outcome.status == -signal.SIGKILL else [f"it ended with {outcome}"]
        return [f"killed at {calls[index]}: {each}" for each in [*wrong, *settled.run_again(place)]]

    expect_nothing_wrong(places.each(kill, range(first(calls, since), len(calls))), len(calls))


@each_case
def test_a_failure_of_any_call_loses_nothing(places: Places, case: Case) -> None:
    fail_each(places, case)


def fail_each(places: Places, case: Case, *, since: str = "", in_full: bool = True) -> None:
    """Let each call of a run fail. See `kill_at_each`.

    Args:
        in_full: also each of those that look the same and change nothing, if the case is `READ_IN_FULL`.
    """
    calls = recorded(places, case, faults.failing_calls)
    if case not in READ_IN_FULL or not in_full:
        calls = without_repetitions(calls)
    settled = Settled(case)

    def fail(place: Place, call: faults.Call) -> list[str]:
        place.lay_out(case)
        outcome = faults.fail(place.hook(case), call)
        wrong = []
        if outcome.status == 0:
            wrong += place.judge_complete(case, outcome.stderr)
        elif outcome.status == 1:
            wrong += place.judge(case)
            if case.method.name == "move" and "cannot read the spec" not in outcome.stderr:
                wrong += [
                    f"the change set is in {path}, and the log says {outcome.stderr}"
                    for path in place.places_of_change_set()
                    if str(path) not in outcome.stderr
                ]
            wrong += [f"debris: {name}" for name in place.staging() if name not in outcome.stderr]
            if place.marker() == "new":
                wrong.append("the marker is there, but the run says that it failed")
        else:
            wrong.append(f"it ended with {outcome}")
        wrong += outcome.strange_lines()
        return [f"{call.error} at {call}: {each}" for each in [*wrong, *settled.run_again(place)]]

    expect_nothing_wrong(places.each(fail, calls[first(calls, since) :]), len(calls))


@each_case
def test_a_signal_at_any_call_leaves_no_debris(places: Places, case: Case) -> None:
    interrupt_at_each(places, case)


def interrupt_at_each(places: Places, case: Case, *, since: str = "") -> None:
    """Have a run asked to end at each call that changes something. See `kill_at_each`."""
    calls = recorded(places, case, faults.changing_calls)[:-1]
    settled = Settled(case)

    def interrupt(place: Place, index: int) -> list[str]:
        number = SIGNALS[index % len(SIGNALS)]
        place.lay_out(case)
        outcome = faults.send(place.hook(case), calls, index, number)
        wrong = place.judge(case)
        if outcome.status != 128 + number:
            wrong.append(f"exit status {outcome.status}: {outcome.stderr}")
        if place.staging():
            wrong.append(f"debris: {place.staging()}")
        if place.identify(case, place.archive) == "old" and place.backups(case):
            wrong.append(f"debris: backups of {place.backups(case)}")
        wrong += outcome.strange_lines()
        return [f"{number.name} at {calls[index]}: {each}" for each in [*wrong, *settled.run_again(place)]]

    expect_nothing_wrong(places.each(interrupt, range(first(calls, since), len(calls))), len(calls))


def first(calls: list[faults.Call], name: str) -> int:
    """Give the index of the first call of a name; 0 for ""."""
    return next(index for index, call in enumerate(calls) if call.name == name) if name else 0


def recorded(
    places: Places, case: Case, record: Callable[[faults.Hook], list[faults.Call]]
) -> list[faults.Call]:
    """Give the calls of a run with nothing in its way, and prepare the places for judging others."""
    for place in places.all:
        place.learn(case)
    first = places.all[0]
    recordings: list[list[faults.Call]] = []
    # See `conftest.ATTEMPTS`: what two runs have in common is the way that others go too.
    while not recordings or recordings[-1] not in recordings[:-1]:
        assert len(recordings) < 2 * ATTEMPTS, "no two runs go the same way"
        first.lay_out(case)
        recordings.append(record(first.hook(case)))
        assert not first.judge_complete(case, "")
    return recordings[-1]


def without_repetitions(calls: list[faults.Call]) -> list[faults.Call]:
    """Give all calls that change something, and of those that look the same and change nothing the last one.

    They are the same line of the program at one entry after another, and which one it is makes no difference to what
    another case does with the archive.
    """
    last = {call.text: index for index, call in enumerate(calls)}
    return [call for index, call in enumerate(calls) if call.changes or last[call.text] == index]


class Settled:
    """What is known of runs that come after others that went wrong."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._states: set[object] = set()

    def run_again(self, place: Place) -> list[str]:
        """Say what is wrong after another run. What a state leads to that was there before is known."""
        state = place.state(self._case)
        if state in self._states:
            return []
        before = place.identify(self._case, place.archive)
        backups = place.to_be_kept(self._case)
        place.restart_container()
        result = place.run(place.hook(self._case))
        wrong = place.judge_complete(self._case, result.stderr, before=before, backups=backups)
        if result.status != 0:
            wrong.append(f"exit status {result.status}: {result.stderr}")
        if state and not wrong:
            self._states.add(state)
        return [f"after another run: {each}" for each in wrong]


def expect_nothing_wrong(complaints: list[str], tried: int) -> None:
    assert tried, "nothing was tried"
    if complaints:
        pytest.fail("\n".join([f"{len(complaints)} complaints, {tried} calls:", *complaints]), pytrace=False)
