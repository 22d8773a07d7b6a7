"""What the bar says, by a clock that is turned by hand."""

from __future__ import annotations

import pytest

from archive_overlay.commands.progress import Meter

K, M, G = 1 << 10, 1 << 20, 1 << 30


def meter(*seen: tuple[float, int]) -> Meter:
    made = Meter(100.0)
    for seconds, done in seen:
        made.add(100.0 + seconds, done)
    return made


def test_a_line_says_how_far_it_is_how_fast_and_how_long_it_will_take() -> None:
    assert meter((10, 3 * G), (20, 6 * G)).line(12 * G, 79) == (
        "[###############...............] 50% of 12G  307M/s  0:20 left"
    )


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "[###############...............] 50% of 12G  307M/s  0:20 left"),
        (50, "[#########.........] 50% of 12G  307M/s  0:20 left"),
        (40, "50% of 12G  307M/s  0:20 left"),
        (20, "50%  0:20 left"),
        (10, "50%"),
        (2, ""),
    ],
)
def test_it_fits_the_terminal(width: int, line: str) -> None:
    said = meter((10, 3 * G), (20, 6 * G)).line(12 * G, width)

    assert len(said) <= width
    assert said == line


def test_without_a_total_it_says_how_much_and_how_fast() -> None:
    done = meter((2, 40 * M))

    assert done.line(0, 79) == "40M  20M/s"
    assert done.line(0, 5) == "40M"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    slow_then_fast = [(float(second), second * K) for second in range(60)]
    slow_then_fast += [(60.0 + second, 60 * K + second * M) for second in range(10)]

    assert " 1.0M/s " in meter(*slow_then_fast).line(G, 79)


def test_the_time_that_is_left_does_not_jump_when_it_stalls_for_a_moment() -> None:
    steady = [(float(second), second * M) for second in range(40)]
    stalled = [*steady, *((39.0 + second, 39 * M) for second in range(1, 6))]

    assert " 0:21 left" in meter(*steady).line(60 * M, 79)
    line = meter(*stalled).line(60 * M, 79)
    assert " 0/s " in line
    assert " 0:28 left" in line


def test_it_is_not_done_before_all_is_done() -> None:
    assert "] 99% of " in meter((5, 1000 * M - 1)).line(1000 * M, 79)
    assert "] 100% of 1.0G  200M/s" in meter((5, 1000 * M)).line(1000 * M, 79)


def test_more_than_there_was_said_to_be_is_all() -> None:
    assert meter((5, 2000)).line(1000, 79) == f"[{'#' * 30}] 100% of 1.0K  400/s"


def test_what_goes_on_when_all_is_read_is_said() -> None:
    assert meter((5, 1000)).line(1000, 79, then="flushing to disk").endswith("100% of 1.0K  flushing to disk")
    assert "flushing" not in meter((5, 900)).line(1000, 79, then="flushing to disk")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1, "0:01"), (59, "0:59"), (3599, "59:59"), (3600, "1:00:00"), (86399, "23:59:59"), (90000, "1 d 1 h")],
)
def test_times(seconds: int, shown: str) -> None:
    assert f"  {shown} left" in meter((1.0, 1)).line(1 + seconds, 79)


def test_nothing_done_yet_has_no_end() -> None:
    assert meter((1.0, 0)).line(5000, 79) == f"[{'.' * 30}] 0% of 4.9K  0/s"
