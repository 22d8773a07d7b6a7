"""What became of each request is known, whatever ends the run, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError, Interrupted
from archive_overlay.hook.annotations import ArchiveRequest
from archive_overlay.hook.ledger import Failure, Ledger
from archive_overlay.log import Log
from archive_overlay.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping

ASKED: dict[str, Mapping[str, object]] = {"first": {"method": "copy"}, "second": {"method": "tar"}}


class Kept:
    """A log sink that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def write(self, level: str, message: str) -> None:
        self.messages.append(f"{level}: {message}")


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def ledger(kept: Kept) -> Ledger:
    return Ledger(ASKED, Log("info", [kept]))


def failure(name: str, reason: str) -> Failure:
    return Failure(name=name, keys=ASKED[name], reason=reason)


def test_at_first_nothing_has_gone_wrong(ledger: Ledger) -> None:
    assert ledger.saved_all is True
    assert ledger.failures == []
    assert ledger.moved == {}


def test_what_is_complained_of_is_said_and_remembered(ledger: Ledger, kept: Kept) -> None:
    ledger.complain("a mount is malformed")

    assert ledger.saved_all is False
    assert kept.messages == ["error: a mount is malformed"]


def test_a_failure_has_all_that_is_needed_to_settle_it(ledger: Ledger) -> None:
    ledger.fail("second", "no space")

    assert ledger.failures == [failure("second", "no space")]


def test_who_gives_up_counts_what_is_pending_and_nothing_twice(ledger: Ledger) -> None:
    ledger.fail("first", "no space")
    ledger.give_up("interrupted")
    ledger.give_up("interrupted again")

    assert ledger.failures == [failure("first", "no space"), failure("second", "interrupted")]


def test_what_is_done_is_not_given_up(ledger: Ledger) -> None:
    ledger.done("first")
    ledger.done("first")
    ledger.give_up("interrupted")

    assert ledger.failures == [failure("second", "interrupted")]


def test_an_archive_of_which_only_cleaning_up_was_left_is_not_given_up(ledger: Ledger) -> None:
    ledger.is_safe("first")
    ledger.give_up("interrupted")

    assert ledger.failures == [failure("second", "interrupted")]


def test_what_the_caller_has_of_the_annotations_stays(ledger: Ledger) -> None:
    ledger.done("first")
    ledger.fail("second", "no space")

    assert list(ASKED) == ["first", "second"]


@pytest.mark.parametrize("if_exists", ["replace", "merge", "backup", "fail", ""])
def test_only_a_replacement_would_lose_an_archive_of_the_same_run(ledger: Ledger, if_exists: str) -> None:
    request = ArchiveRequest(
        container="c1",
        name="second",
        mount_point="/data",
        archive_to="/srv/archive",
        success=None,
        method=METHODS["copy"],
        if_exists=if_exists,
        owner=None,
        compression="",
        level=0,
        whiteouts="overlay",
        parent="",
    )
    ledger.publish("first", "/srv/archive")

    ledger.expect_free(request, "/srv/other")
    if if_exists != "replace":
        ledger.expect_free(request, "/srv/archive")
        return
    with pytest.raises(
        ArchiveError,
        match="archive-to /srv/archive has archive first of the same stop, which would be replaced; give each",
    ):
        ledger.expect_free(request, "/srv/archive")


def test_what_fails_alone_costs_the_others_nothing(ledger: Ledger) -> None:
    with ledger.failing_alone("first"):
        raise ArchiveError("no space", hint="delete something")
    with ledger.failing_alone("second"):
        ledger.done("second")

    assert ledger.failures == [failure("first", "no space; delete something")]


def test_a_fault_of_this_program_is_said_to_be_one(ledger: Ledger) -> None:
    with ledger.failing_alone("first"):
        raise ZeroDivisionError("nobody knows")

    (failed,) = ledger.failures
    assert failed.reason.startswith("internal error: ZeroDivisionError: nobody knows at ")


def test_an_interruption_is_nobody_s_failure_alone(ledger: Ledger) -> None:
    with pytest.raises(Interrupted), ledger.failing_alone("first"):
        raise Interrupted(15)

    assert ledger.failures == []


def test_an_error_that_an_interruption_led_to_is_an_interruption(ledger: Ledger) -> None:
    def interrupted_while_it_cleans_up() -> None:
        try:
            raise Interrupted(15)
        finally:
            raise OSError("closed twice")

    with pytest.raises(Interrupted) as raised, ledger.failing_alone("first"):
        interrupted_while_it_cleans_up()

    assert isinstance(raised.value.__cause__, OSError)
    assert ledger.failures == []


def test_a_signal_does_not_make_a_failure_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    class Struck(Failure):
        def __init__(self, **_: object) -> None:
            raise Interrupted(15)

    known = Ledger({"data": {"mount-point": "/data"}}, Log("panic", []))
    monkeypatch.setattr("archive_overlay.hook.ledger.Failure", Struck)

    with pytest.raises(Interrupted) as struck, known.failing_alone("data"):
        raise OSError("the disk is full")
    monkeypatch.undo()
    known.give_up(str(struck.value))

    assert [(failure.name, failure.reason) for failure in known.failures] == [
        ("data", "interrupted by signal 15")
    ]
