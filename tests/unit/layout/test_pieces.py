"""Which pieces of a history hold a run of revisions."""

from __future__ import annotations

import random

import pytest

from archive_overlay.layout.pieces import Piece, Pieces


def piece(first: int, last: int) -> Piece:
    name = f"{first}-{last}"
    return Piece(
        first=first, last=last, digest=name, size=1, diff_id=name, media_type="", blob={"digest": name}
    )


def numbers(found: list[Piece] | None) -> list[int]:
    return [number for each in found or () for number in range(each.first, each.last + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_two_hosts_hold_every_run_that_those_of_one_of_them_hold(seed: int) -> None:
    chance = random.Random(seed)
    last = 30
    hosts = []
    for _ in range(2):
        begin, pieces = 1, []
        while begin <= last:
            end = min(last, begin + chance.randrange(6))
            pieces.append(piece(begin, end))
            begin = end + 1
        hosts.append(pieces)
    here = Pieces()
    here.add(hosts[0])
    both = Pieces()
    both.add(hosts[0] + hosts[1])

    for first in range(1, last + 1):
        for end in range(first, last + 1):
            found = both.cover(first, end)
            assert found is None or numbers(found) == [*range(first, end + 1)]
            if here.cover(first, end) is not None:
                assert found is not None, (first, end)


def test_a_piece_that_is_damaged_is_gone_round() -> None:
    pieces = Pieces()
    pieces.add([piece(1, 4), piece(1, 2), piece(3, 6), piece(5, 6), piece(3, 4)])

    assert [each.digest for each in pieces.cover(1, 6) or ()] == ["1-4", "5-6"]
    assert [each.digest for each in pieces.cover(1, 6, without={("5-6", -1)}) or ()] == ["1-2", "3-6"]
    assert pieces.cover(1, 6, without={("5-6", -1), ("1-2", -1)}) is None


def test_a_piece_that_overlaps_another_one_hides_no_way_around_it() -> None:
    pieces = Pieces()
    pieces.add([piece(1, 1), piece(2, 3), piece(1, 5), piece(2, 7), piece(8, 8)])

    assert [each.digest for each in pieces.cover(1, 8) or []] == ["1-1", "2-7", "8-8"]
    assert [each.digest for each in pieces.cover(1, 5) or []] == ["1-5"]
    assert pieces.cover(4, 8) is None
