"""Where a revision comes from, as an image's history has it."""

from __future__ import annotations

import itertools
import re

import pytest

from archive_overlay.layout.provenance import Provenance, numbers_in, read_provenance

# What a comment means, whatever is in it: but to find out by this can take the cube of its length.
MEANING = re.compile(r"container (.+), archive (.+), mount point (.+)", re.DOTALL)


def read(comment: str) -> tuple[str, str, str] | None:
    found = read_provenance({}, {"created_by": "archive_overlay", "comment": comment})
    return (found.container, found.archive, found.mount_point) if found else None


def test_what_is_written_is_read_again() -> None:
    written = Provenance(container="c1", archive="a\nb", mount_point="/data, archive, mount point")

    assert read(written.comment(7)) == ("c1", "a\nb", "/data, archive, mount point")
    assert numbers_in(written.comment(7)) == (7, 7)


def test_a_comment_means_what_it_always_meant() -> None:
    parts = ["container ", ", archive ", ", mount point ", "a"]
    meant = 0
    for length in range(8):
        for chosen in itertools.product(parts, repeat=length):
            comment = "".join(chosen)
            match = MEANING.fullmatch(comment)
            assert read(comment) == (match.groups() if match else None), comment
            meant += bool(match)
    assert meant > 500


@pytest.mark.parametrize("end", ["", "x"])
def test_a_comment_of_any_length_is_read_once(end: str) -> None:
    """Each of these would have taken hours by a regular expression."""
    many = 100_000
    for comment, is_ours in (
        ("container a" + ", archive b" * many + end, False),
        ("container a" + ", mount point b" * many + end, False),
        ("container a" + ", archive b" * many + ", mount point c" * many + end, True),
        ("container a" + ", archive b, mount point c" * many + end, True),
        ("x" + ", archive b, mount point c" * many + end, False),
    ):
        assert bool(read(comment)) is is_ours
