"""Which revisions rules keep."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Callable, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive_overlay.history.dates import seconds_of
from archive_overlay.history.keep import revisions_to_keep
from archive_overlay.layout.keep import Keep

Revisions = list[tuple[int, Optional[int]]]

DAY = 86400
COUNTS = ("last", "daily", "weekly", "monthly", "yearly")
PERIODS: dict[str, Callable[[datetime], str]] = {
    "daily": lambda moment: f"{moment:%Y-%m-%d}",
    "weekly": lambda moment: f"{moment:%G-%V}",
    "monthly": lambda moment: f"{moment:%Y-%m}",
    "yearly": lambda moment: f"{moment:%Y}",
}
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def at(*days: str) -> Revisions:
    """Give revisions of these days at noon, "" for one whose day is not known, numbered from the last one on."""
    times = [seconds_of(f"{day}T12:00:00Z") for day in days]
    return list(zip(range(len(days), 0, -1), times))


def kept(revisions: Revisions, **rules: int) -> list[int]:
    return [*revisions_to_keep(revisions, Keep(**rules), protected={})]


def expected(revisions: Revisions, rules: Keep, protected: set[int]) -> set[int]:
    """Say what is kept, one rule and one period after the other."""
    keep = {number for number, time in revisions if time is None or number in protected}
    keep |= {number for number, _ in revisions[:1] + revisions[: rules.last]}
    dated = [(number, EPOCH + timedelta(seconds=time)) for number, time in revisions if time is not None]
    for rule, period in PERIODS.items():
        wanted = getattr(rules, rule)
        periods = list(dict.fromkeys(period(moment) for _, moment in dated))
        for each in periods[:wanted]:
            keep.add(max(number for number, moment in dated if period(moment) == each))
        if len(periods) < wanted and dated:
            keep.add(min(number for number, _ in dated))
    if rules.within and dated:
        keep |= {number for number, moment in dated if (dated[0][1] - moment).total_seconds() <= rules.within}
    return keep


# Close together, and far apart; some clocks step back.
STEPS = st.one_of(st.integers(-DAY, 4 * DAY), st.integers(-400 * DAY, 400 * DAY), st.none())
SMALL = st.integers(0, 5)


@given(
    steps=st.lists(STEPS, max_size=40),
    rules=st.builds(
        Keep,
        last=SMALL,
        daily=SMALL,
        weekly=SMALL,
        monthly=SMALL,
        yearly=SMALL,
        within=st.integers(0, 40 * DAY),
    ),
    protected=st.sets(st.integers(1, 40), max_size=3),
)
def test_what_each_rule_keeps_is_kept_and_nothing_else(
    steps: list[int | None], rules: Keep, protected: set[int]
) -> None:
    revisions: Revisions = []
    now = seconds_of("2026-11-27T09:00:00Z") or 0
    for number, step in enumerate(steps, 1):
        now += step or 0
        revisions.insert(0, (number, None if step is None else now))

    found = revisions_to_keep(revisions, rules, protected=dict.fromkeys(protected, "tag"))

    if rules.everything:
        assert [*found] == [number for number, _ in revisions]
    else:
        assert [*found] == sorted(expected(revisions, rules, protected), reverse=True)
    assert all(found.values())


def test_the_newest_revision_is_kept_whatever_the_rules_say() -> None:
    assert kept(at("2026-11-27", "2026-11-26"), within=1) == [2]


def test_the_last_revision_of_each_day_that_has_one() -> None:
    revisions = at("2026-11-27", "2026-11-27", "2026-11-20", "2026-11-20", "2026-11-01", "2026-10-01")

    assert kept(revisions, daily=3) == [6, 4, 2]


def test_weeks_begin_on_monday_and_may_lie_in_two_years() -> None:
    sunday, thursday, monday, before = "2027-01-03", "2026-12-31", "2026-12-28", "2026-12-27"

    assert kept(at(sunday, thursday, monday, before), weekly=2) == [4, 1]


def test_the_oldest_is_kept_if_there_are_not_enough_days() -> None:
    revisions = at("2026-11-27", "2026-11-26", "2026-11-26")

    assert kept(revisions, daily=3) == [3, 2, 1]
    assert kept(revisions, daily=2) == [3, 2]


def test_what_has_no_time_is_kept() -> None:
    assert kept(at("2026-11-27", "", "2026-11-26"), last=1) == [3, 2]


@pytest.mark.parametrize("now", [None, seconds_of("2026-11-28T00:00:00Z")])
def test_a_revision_of_the_future_counts_as_the_newest_only_if_nobody_knows_better(now: int | None) -> None:
    revisions = at("2099-01-01", "2026-11-27", "2026-11-20", "2026-10-01")

    found = revisions_to_keep(revisions, Keep(within=10 * DAY), protected={}, now=now)

    assert [*found] == ([4, 3, 2] if now else [4])


def test_reasons_are_given() -> None:
    found = revisions_to_keep(
        at("2026-11-27", "2026-11-26", ""), Keep(last=2, daily=1, within=DAY), protected={2: "tag v1"}
    )

    assert found == {
        3: ["newest", "last", "daily", "within"],
        2: ["tag v1", "last", "within"],
        1: ["time not known"],
    }
