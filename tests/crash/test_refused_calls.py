"""File systems and filters of system calls that refuse some calls: archives are whole, and what is less safe is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.crash.conftest import CASES, Case, Place, Places, make_places
from tests.crash.test_two_processes import change_much
from tests.support import faults, hooks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Callable

NOT_CERTAIN = "it is not certain that all was written to the disk: syncfs failed"
NOT_ONLY_IF_FREE = "cannot give a name only if it is free"
GONE = "cannot exchange two names, so for a moment nothing was there"
IN_TWO_STEPS = "entries that changed type were replaced in two steps"


@dataclass(frozen=True)
class Refusal:
    """Calls that fail whenever they are made.

    Attributes:
        name: of the test.
        calls: names, and of the errors.
        directories: whether they fail for directories alone.
        warnings: gives what has to be said in a case; by default nothing.
    """

    name: str
    calls: dict[str, str]
    directories: bool = False
    warnings: Callable[[Case], set[str]] = lambda case: set()

    def __str__(self) -> str:
        return self.name


def flushes_a_tree(case: Case) -> bool:
    return case.method.makes == "directory"


def exchanges_directories(case: Case) -> bool:
    return case.method.makes == "directory" and case.if_exists in ("replace", "backup")


def backs_up_a_file(case: Case) -> bool:
    return case.method.makes == "file" and case.if_exists == "backup"


def when(condition: Callable[[Case], bool], *warnings: str) -> Callable[[Case], set[str]]:
    return lambda case: set(warnings) if condition(case) else set()


def without_exchange(case: Case) -> set[str]:
    return {IN_TWO_STEPS} if case.if_exists == "merge" else when(exchanges_directories, GONE)(case)


def without_links(case: Case) -> set[str]:
    return {GONE, NOT_ONLY_IF_FREE} if backs_up_a_file(case) else when(exchanges_directories, GONE)(case)


REFUSALS = (
    Refusal("directories-are-not-flushed", {"fsync": "EINVAL"}, directories=True),
    Refusal("fsync", {"fsync": "EPERM"}),
    Refusal("syncfs", {"syncfs": "EPERM"}, warnings=when(flushes_a_tree, NOT_CERTAIN)),
    Refusal("no-flush", {"fsync": "ENOSYS", "syncfs": "ENOSYS"}, warnings=lambda case: {NOT_CERTAIN}),
    *(
        Refusal(f"renameat2-{error}", {"renameat2": error}, warnings=without_exchange)
        for error in ("EPERM", "EINVAL")
    ),
    Refusal(
        "neither-renameat2-nor-links", {"renameat2": "EINVAL", "linkat": "EPERM"}, warnings=without_links
    ),
    Refusal(
        "neither-renameat2-nor-links-are-known",
        {"renameat2": "ENOSYS", "linkat": "ENOSYS"},
        warnings=without_links,
    ),
    Refusal("file-handles", {"name_to_handle_at": "EPERM"}),
    Refusal("locks", {"flock": "ENOSYS"}),
    Refusal("mounts", {"mount": "EPERM"}),
    Refusal("copying-in-the-kernel", {"copy_file_range": "EPERM"}),
    Refusal("all-copying-in-the-kernel", {"copy_file_range": "ENOSYS", "sendfile": "EPERM"}),
    Refusal("prctl", {"prctl": "EPERM"}),
)
# The links of the change set itself have no other way.
OF_TREES = {"linkat"}


def warnings_of(outcome: faults.Outcome) -> list[str]:
    lines = hooks.parse_log(outcome.stderr)
    return [line.message for line in lines if line.level == "warning"]


def wrong_after(place: Place, case: Case, refusal: Refusal, made: set[str]) -> list[str]:
    """Say what is wrong after a run in which calls were refused."""
    if not place.knows(case):
        place.learn(case)
    place.lay_out(case)
    directories = refusal.calls if refusal.directories else ()
    outcome, struck = faults.refuse(place.hook(case), refusal.calls, directories=directories)
    made |= struck
    if outcome.status != 0:
        return [outcome.stderr]
    wrong = place.judge_complete(case, outcome.stderr)
    said = warnings_of(outcome)
    expected = refusal.warnings(case)
    wrong += [f"nobody said {text}" for text in expected if not any(text in line for line in said)]
    wrong += [line for line in said if not any(text in line for text in expected)]
    if len(said) != len(set(said)):
        wrong.append(f"something was said twice: {said}")
    return wrong


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_an_archive_is_made_all_the_same(place: Place, refusal: Refusal) -> None:
    cases = [
        case
        for case in CASES
        if not (
            OF_TREES & refusal.calls.keys()
            and case.method.makes == "directory"
            and case.method.name != "move"
        )
    ]
    made: set[str] = set()

    wrong = [f"{case}: {line}" for case in cases for line in wrong_after(place, case, refusal, made)]

    assert not wrong, "\n".join(wrong)
    assert made == refusal.calls.keys(), "some calls were never made"


@pytest.fixture(scope="module")
def large(executable: Path) -> Iterator[Places]:
    """Give places with a change set that two processes save."""
    yield from make_places(executable, change=change_much, jobs=2)


# What two processes talk by, and what ends one with the other.
TWO = ("prctl", "sendmsg", "recvmsg", "sendto", "recvfrom", "socketpair")


@pytest.mark.parametrize("call", TWO)
def test_one_process_does_what_two_may_not(large: Places, call: str) -> None:
    place = large.all[0]
    made: set[str] = set()
    refusal = Refusal(call, {call: "EPERM"})

    wrong = []
    for case in CASES:
        if case.if_exists == "replace" and case.method.name in ("copy", "tar"):
            wrong += wrong_after(place, case, refusal, made)

    assert not wrong, "\n".join(wrong)
    assert made == {call}
