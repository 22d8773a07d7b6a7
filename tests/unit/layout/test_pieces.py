from __future__ import annotations

from archive_overlay.layout.pieces import Piece, Pieces


def piece(first: int, last: int) -> Piece:
    digest = f"{first}-{last}"
    return Piece(
        first=first, last=last, digest=digest, size=1, diff_id="", media_type="", blob={"digest": digest}
    )


def test_a_piece_that_overlaps_another_one_hides_no_way_around_it() -> None:
    pieces = Pieces()
    pieces.add([piece(1, 1), piece(2, 3), piece(1, 5), piece(2, 7), piece(8, 8)])

    assert [each.digest for each in pieces.cover(1, 8) or []] == ["1-1", "2-7", "8-8"]
    assert [each.digest for each in pieces.cover(1, 5) or []] == ["1-5"]
    assert pieces.cover(4, 8) is None
