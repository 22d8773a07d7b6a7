"""Which revisions of an image are to be kept, as an annotation or a command line says it.

The words are those of restic's `forget`: `last=30,daily=14` keeps the last 30 revisions, and the last one of each of the
last 14 days that have one.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.system.record import Record

_COUNTS = ("last", "daily", "weekly", "monthly", "yearly")
_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400, "m": 30 * 86400, "y": 365 * 86400}
_KNOWN = "known are last=N, daily=N, weekly=N, monthly=N, yearly=N and within=30d"
# A larger number means all of them anyway, and other programs cannot read it as a number.
_MOST_DIGITS = 6
# podman 4.3 splits annotations at commas.
_SEPARATORS = ",; \t"


class Keep(Record):
    """Which revisions are to be kept: all that one of the rules keeps. Without any rule, all.

    Attributes:
        last: that many, the newest.
        daily, weekly, monthly, yearly: the newest one of each of that many days, weeks, months, years that have one.
        within: those that are younger than that many seconds before the newest.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: int = 0

    @property
    def everything(self) -> bool:
        """Whether there is no rule, and so nothing to prune."""
        return self == Keep()


def parse_keep(text: str) -> Keep:
    """Read rules such as `last=30,daily=14,within=30d`, separated by commas, semicolons or spaces.

    Args:
        text: without a rule in it: everything is kept.

    Raises:
        ArchiveError: a rule is unknown, is there twice, or its value is no number above 0.
    """
    for separator in _SEPARATORS[1:]:
        text = text.replace(separator, _SEPARATORS[0])
    found: dict[str, int] = {}
    for rule in filter(None, text.split(_SEPARATORS[0])):
        name, _, value = rule.partition("=")
        if name in found:
            raise ArchiveError(f"keep has {name} twice", hint="leave one of them out")
        if name in _COUNTS:
            found[name] = parse_count(value, rule)
        elif name == "within":
            found[name] = parse_duration(value)
        else:
            raise ArchiveError(f"unknown rule {brief(rule)!r} in keep", hint=_KNOWN)
    return Keep(**found)


def parse_count(value: str, rule: str) -> int:
    """Read how many revisions a rule keeps.

    Args:
        value: a number above 0.
        rule: what to call it in a message.

    Raises:
        ArchiveError: it is none.
    """
    if not (_is_number(value) and int(value)):
        raise ArchiveError(
            f"{brief(rule)!r} does not say how many revisions to keep",
            hint=f"give a number from 1 to {10**_MOST_DIGITS - 1}",
        )
    return int(value)


def parse_duration(value: str) -> int:
    """Read a duration, a number with h, d, w, m (30 days) or y (365 days), or several of them as 1y6m, in seconds.

    Raises:
        ArchiveError: it is none, or nothing.
    """
    seconds, number = 0, ""
    for character in value[: len(_SECONDS) * (_MOST_DIGITS + 1) + 1]:
        if character not in _SECONDS:
            number += character
            continue
        if not _is_number(number):
            break
        seconds, number = seconds + int(number) * _SECONDS[character], ""
    else:
        if seconds and not number:
            return seconds
    raise ArchiveError(
        f"{brief(value)!r} is not a duration", hint="give a number and h, d, w, m (30 days) or y: 30d, 1y6m"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
