"""Rules that say which revisions to keep, as people write them."""

from __future__ import annotations

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.layout.keep import Keep, parse_keep


@pytest.mark.parametrize("separator", [",", ";", " ", ", ", ",;\t"])
def test_rules_are_separated_by_what_podman_leaves_together(separator: str) -> None:
    text = separator.join(["last=30", "daily=14", "weekly=8", "monthly=12", "yearly=3", "within=30d"])

    assert parse_keep(text) == Keep(
        last=30, daily=14, weekly=8, monthly=12, yearly=3, within=30 * 24 * 60 * 60
    )


@pytest.mark.parametrize("text", ["", " ", ",", " ; "])
def test_without_a_rule_everything_is_kept(text: str) -> None:
    assert parse_keep(text).everything


def test_durations_may_have_several_units() -> None:
    day = 24 * 60 * 60
    assert parse_keep("within=1y6m2w3d4h").within == (365 + 6 * 30 + 2 * 7 + 3) * day + 4 * 3600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hourly=3", "unknown rule 'hourly=3'"),
        ("30", "unknown rule '30'"),
        ("last", "how many"),
        ("last=", "how many"),
        ("last=0", "how many"),
        ("last=-1", "how many"),
        ("last=²", "how many"),
        ("last=1000000", "how many"),
        ("last=1,last=2", "last twice"),
        ("within=30", "not a duration"),
        ("within=d", "not a duration"),
        ("within=0d", "not a duration"),
        ("within=3d4", "not a duration"),
        ("within=1000000d", "not a duration"),
        ("within=", "not a duration"),
    ],
)
def test_what_is_no_rule_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        parse_keep(text)
