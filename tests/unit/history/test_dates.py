"""When revisions were made."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive_overlay.history.dates import minute_text, month_of, seconds_of


@given(moment=st.datetimes(timezones=st.just(timezone.utc)))
def test_dates_are_read_and_shown_as_datetime_does(moment: datetime) -> None:
    seconds = seconds_of(moment.isoformat())

    assert seconds == int(moment.replace(microsecond=0).timestamp())
    assert minute_text(seconds) == f"{moment:%Y}".rjust(4, "0") + f"{moment:-%m-%d %H:%M}"
    assert month_of(seconds) == (moment.year, moment.month)


@pytest.mark.parametrize(
    "text", ["1970-01-01T01:30:00+01:30", "1969-12-31T22:30:00.5-01:30", "1970-01-01t00:00:00z"]
)
def test_offsets(text: str) -> None:
    assert seconds_of(text) == 0


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2026-11-27", "2026-11-27T10:00:00", "2026-02-29T00:00:00Z", "1900-02-29T00:00:00Z"),
        *("2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-01-00T00:00:00Z", "0000-01-01T00:00:00Z"),
        *("2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "٢٠٢٦-01-01T00:00:00Z"),
        f"2026-01-01T00:00:00.{'0' * 100_000}Z",
    ],
)
def test_what_is_no_date(text: str) -> None:
    assert seconds_of(text) is None
