"""Which revisions are kept, by rules.

The rules are those of restic's `forget`: `last` keeps the newest N revisions; `daily` the newest one of each of the last N
days that have one, and likewise weeks (from Monday, as ISO 8601 has them), months and years; `within` those that are at
most so much older than the newest. A rule that finds less than its N days keeps the oldest revision as well, so that a history
is not cut shorter than it must be. A revision is kept if one of the rules keeps it.

Days are those of UTC: the result must not depend on who prunes, or where. What is newer is what has the higher number,
whatever its time. A clock that was wrong for a while makes days of its own, and that is all.

Source: restic's documentation, "Removing snapshots according to a policy".
"""

from __future__ import annotations

from archive_overlay.history.dates import month_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from typing import Callable

    from archive_overlay.layout.keep import Keep

_DAY = 86400


def revisions_to_keep(
    revisions: Sequence[tuple[int, int | None]],
    keep: Keep,
    *,
    protected: Mapping[int, str],
    now: int | None = None,
) -> dict[int, list[str]]:
    """Choose the revisions that stay.

    Args:
        revisions: number and time (in seconds since 1970; None: nobody knows) of each, the newest first.
        keep: the rules. Without any, all revisions are kept.
        protected: numbers that are kept whatever the rules say, and why.
        now: the present time. A revision of the future does not count as the newest for `within`. None: nobody knows.

    Returns:
        The numbers that are kept, in the order of `revisions`, each with the reasons, in a few words each.
    """
    reasons: dict[int, list[str]] = {}

    def keeps(number: int, reason: str) -> None:
        reasons.setdefault(number, []).append(reason)

    if keep.everything:
        return {number: ["no rule"] for number, _ in revisions}
    if revisions:
        keeps(revisions[0][0], "newest")
    for number, time in revisions:
        if number in protected:
            keeps(number, protected[number])
        if time is None:
            keeps(number, "time not known")
    for number, _ in revisions[: keep.last]:
        keeps(number, "last")
    dated = [(number, time) for number, time in revisions if time is not None]
    for count, period, reason in (
        (keep.daily, _day, "daily"),
        (keep.weekly, _week, "weekly"),
        (keep.monthly, month_of, "monthly"),
        (keep.yearly, _year, "yearly"),
    ):
        for number in _newest_of_each(dated, count, period):
            keeps(number, reason)
    if keep.within and dated:
        newest = next((time for _, time in dated if now is None or time <= now), dated[0][1])
        for number, time in dated:
            if time >= newest - keep.within:
                keeps(number, "within")
    return {number: reasons[number] for number, _ in revisions if number in reasons}


def _newest_of_each(
    dated: Sequence[tuple[int, int]], count: int, period: Callable[[int], Hashable]
) -> list[int]:
    """Return the newest revision of each of so many periods, and if there are fewer, the oldest of all."""
    if not (count and dated):
        return []
    found: dict[Hashable, int] = {}
    for number, time in dated:
        key = period(time)
        if key not in found:
            if len(found) == count:
                return list(found.values())
            found[key] = number
    numbers = list(found.values())
    oldest = dated[-1][0]
    if len(found) < count and numbers[-1] != oldest:
        numbers.append(oldest)
    return numbers


def _day(time: int) -> int:
    return time // _DAY


def _week(time: int) -> int:
    return (time // _DAY + 3) // 7  # 1970 began on a Thursday


def _year(time: int) -> int:
    return month_of(time)[0]
