"""Each failure says where its changes are now, and keeps them if that was asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.errors import ArchiveError, Interrupted
from archive_overlay.hook.ledger import Ledger
from archive_overlay.hook.rescue import settle
from archive_overlay.log import Log
from archive_overlay.overlay.dialect import NATIVE
from archive_overlay.overlay.mount import DELETED, KEPT, UNKNOWN, OverlayMount
from archive_overlay.system.metadata import make_twin

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Callable


class Settled:
    """Failures of one run, and what is said of them.

    Attributes:
        errors: what was said.
        kept: what the rescue was asked for, in turn: the archive, and whether in a hurry.
        keep: is called to keep an upperdir.
        renamed: whether it might have been renamed, for each that was kept.
        lifetime: what becomes of upperdirs.
    """

    def __init__(self, directory: Path) -> None:
        self.errors: list[str] = []
        self.kept: list[tuple[str, bool]] = []
        self.upper = directory / "upper"
        self.upper.mkdir()
        self.keep: Callable[[], str] = lambda: "/rescue/c1/data"
        self.path = "/rescue"
        self.lifetime = DELETED
        self.renamed: list[bool] = []
        self._asked: dict[str, Mapping[str, object]] = {}
        self._reasons: dict[str, str] = {}

    def write(self, level: str, message: str) -> None:
        assert level == "error"
        self.errors.append(message)

    def fail(self, name: str, reason: str = "no space", **keys: object) -> None:
        self._asked[name] = {"mount-point": "/data", **{key.replace("_", "-"): keys[key] for key in keys}}
        self._reasons[name] = reason

    def settle(self, *, rescue: bool = False, hurry: bool = False, moved: str = "") -> Ledger:
        ledger = Ledger(self._asked, Log("info", [self]))
        if moved:
            ledger.moved[str(self.upper)] = moved
        for name, reason in self._reasons.items():
            ledger.fail(name, reason)
        settle(ledger, self._find, lambda *_: self.lifetime, self._keeper() if rescue else None, hurry=hurry)
        return ledger

    def _find(self, mount_point: str) -> OverlayMount:
        if mount_point != "/data":
            raise ArchiveError(f"the container has no mount at {mount_point}")
        return OverlayMount(upper=str(self.upper), lowers=(), dialect=NATIVE)

    def _keeper(self) -> Any:
        settled = self

        class Keeper:
            path = "/rescue"

            def keep(
                self,
                overlay: OverlayMount,
                archive: str,
                *,
                asked: object,
                reason: str,
                may_rename: bool,
                hurry: bool,
            ) -> str:
                assert overlay.upper == str(settled.upper)
                assert (asked, reason) == (settled._asked[archive], settled._reasons[archive])
                settled.kept.append((archive, hurry))
                settled.renamed.append(may_rename)
                return settled.keep()

        return Keeper()


@pytest.fixture
def settled(tmp_path: Path) -> Settled:
    return Settled(tmp_path)


def test_changes_are_where_the_engine_has_them(settled: Settled) -> None:
    settled.fail("data")

    ledger = settled.settle()

    assert settled.errors == [
        f"archive data: no space; its changes are in {settled.upper} until the engine deletes them"
    ]
    assert ledger.saved_all is False


@pytest.mark.parametrize("rescue", [False, True])
def test_what_the_engine_does_not_delete_stays_where_it_is(settled: Settled, rescue: bool) -> None:
    settled.lifetime = KEPT
    settled.fail("data")

    ledger = settled.settle(rescue=rescue)

    assert settled.errors == [
        f"archive data: no space; its changes stay in {settled.upper}, which the engine does not delete"
    ]
    assert settled.kept == []
    assert ledger.moved == {}


def test_what_nobody_may_delete_is_said_to_be_where_it_is(settled: Settled) -> None:
    settled.lifetime = UNKNOWN
    settled.fail("data")

    settled.settle()

    assert settled.errors == [f"archive data: no space; its changes are in {settled.upper}"]


@pytest.mark.parametrize("lifetime", [DELETED, UNKNOWN])
def test_what_may_be_needed_again_is_not_renamed(settled: Settled, lifetime: str) -> None:
    settled.lifetime = lifetime
    settled.fail("data")

    settled.settle(rescue=True)

    assert settled.renamed == [lifetime == DELETED]
    assert settled.errors == ["archive data: no space; its changes are kept in /rescue/c1/data"]


@pytest.mark.parametrize("mount_point", ["data", "/data/", "//data/."])
def test_a_mount_point_may_be_written_in_many_ways(settled: Settled, mount_point: str) -> None:
    settled.fail("data", mount_point=mount_point)

    settled.settle()

    assert f"its changes are in {settled.upper}" in settled.errors[0]


def test_where_the_mount_point_is_not_clear_nothing_is_said(settled: Settled) -> None:
    settled.fail("data", mount_point={"both": "/data", "and": "/other"})

    settled.settle(rescue=True)

    assert settled.errors == ["archive data: no space"]
    assert settled.kept == []


def test_what_is_not_to_be_found_is_said_once(settled: Settled) -> None:
    settled.fail("first", mount_point="/nowhere")
    settled.fail("second", "the container has no mount at /nowhere", mount_point="/nowhere")

    settled.settle(rescue=True)

    assert settled.errors == [
        "archive first: no space; its changes cannot be found: the container has no mount at /nowhere",
        "archive second: the container has no mount at /nowhere",
    ]


def test_changes_that_were_moved_are_where_they_were_moved_to(settled: Settled) -> None:
    settled.fail("data")

    settled.settle(rescue=True, moved="/srv/archive")

    assert settled.errors == ["archive data: no space; its changes are in /srv/archive"]
    assert settled.kept == []


def test_an_empty_directory_that_was_left_in_an_upperdir_s_place_is_not_kept(settled: Settled) -> None:
    # An engine may run the hook twice: what the second run finds has no changes.
    top = os.open(settled.upper.parent, os.O_RDONLY)
    settled.upper.rename(settled.upper.parent / "moved")
    make_twin("moved", top, "upper", top)
    os.close(top)
    settled.fail("data", "the upperdir has been moved by an earlier run of this hook")

    settled.settle(rescue=True)

    assert settled.errors == ["archive data: the upperdir has been moved by an earlier run of this hook"]
    assert settled.kept == []


def test_changes_are_kept_and_for_two_failures_once(settled: Settled) -> None:
    settled.fail("first")
    settled.fail("second", "no method rar")

    settled.settle(rescue=True)

    assert settled.errors == [
        "archive first: no space; its changes are kept in /rescue/c1/data",
        "archive second: no method rar; its changes are in /rescue/c1/data",
    ]
    assert settled.kept == [("first", False)]


def test_changes_that_cannot_be_kept_are_still_where_they_were(settled: Settled) -> None:
    def keep() -> str:
        raise ArchiveError("cannot write into /rescue/c1")

    settled.keep = keep
    settled.fail("first")
    settled.fail("second")

    settled.settle(rescue=True)

    assert settled.errors == [
        f"archive {name}: no space; its changes are in {settled.upper} until the engine deletes them, and could"
        " not be kept: cannot write into /rescue/c1"
        for name in ("first", "second")
    ]


def test_a_fault_of_the_rescue_costs_the_other_failures_nothing(settled: Settled) -> None:
    def keep() -> str:
        settled.keep = lambda: "/rescue/c1/second"
        raise ZeroDivisionError("nobody knows")

    settled.keep = keep
    settled.fail("first")
    settled.fail("second")

    settled.settle(rescue=True)

    first, second = settled.errors
    assert (
        f"{settled.upper} until the engine deletes them, or are in /rescue already: internal error:" in first
    )
    assert second.endswith("kept in /rescue/c1/second")


@pytest.mark.parametrize("hurry", [False, True])
def test_who_is_in_a_hurry_keeps_in_a_hurry(settled: Settled, hurry: bool) -> None:
    settled.fail("data")

    settled.settle(rescue=True, hurry=hurry)

    assert settled.kept == [("data", hurry)]


def test_a_signal_makes_the_rest_hurry_and_is_passed_on_at_the_end(settled: Settled) -> None:
    def keep() -> str:
        settled.keep = lambda: f"/rescue/c1/{len(settled.kept)}"
        raise Interrupted(15)

    settled.keep = keep
    settled.fail("first")
    settled.fail("second", mount_point="/nowhere")

    with pytest.raises(Interrupted):
        settled.settle(rescue=True)

    assert settled.kept == [("first", False), ("first", True)]
    assert settled.errors[0] == "archive first: no space; its changes are kept in /rescue/c1/2"
    assert settled.errors[1].startswith("archive second: no space; its changes cannot be found")
