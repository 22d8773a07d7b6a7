"""When a revision was made: RFC 3339 as seconds, and as people read it.

Source: RFC 3339, section 5.6.
"""

from __future__ import annotations

import re

_DAY = 86400
_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def seconds_of(text: str) -> int | None:
    """Read a date and time.

    Returns:
        Seconds since 1970 in UTC, without fractions; None: the text is not a date and time.
    """
    match = _DATE.fullmatch(text[:64])
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    if not (year and 1 <= month <= 12 and 1 <= day <= _days(year, month)):
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    seconds = _day_number(year, month, day) * _DAY + hour * 3600 + minute * 60 + second
    if match[7]:
        offset = int(match[8]) * 3600 + int(match[9]) * 60
        seconds -= offset if match[7] == "+" else -offset
    return seconds


def month_of(seconds: int) -> tuple[int, int]:
    """Return the year and the month, from 1 on, that a time in seconds since 1970 is in."""
    year, month, _ = _civil(seconds // _DAY)
    return year, month


def minute_text(seconds: int) -> str:
    """Give a time as people read it and sort(1) sorts it: 2026-11-27 09:05, in UTC."""
    day, second = divmod(seconds, _DAY)
    year, month, day = _civil(day)
    return f"{year:04}-{month:02}-{day:02} {second // 3600:02}:{second % 3600 // 60:02}"


def _days(year: int, month: int) -> int:
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return _DAYS[month - 1] + leap


def _day_number(year: int, month: int, day: int) -> int:
    """Count days from 1970-01-01 on. time.gmtime has no inverse, and `calendar` is too large an import for a hook."""
    year -= month < 3  # so that leap days come last in a year
    month = (month + 9) % 12
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 1
    return days - 719468


def _civil(number: int) -> tuple[int, int, int]:
    """Return the date of a day that is counted as `_day_number` does."""
    number += 719468
    era, of_era = divmod(number, 146097)
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    return year + 400 * era + (month > 9), month + 3 if month < 10 else month - 9, day
