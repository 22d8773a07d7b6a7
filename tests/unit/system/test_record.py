"""Records: named values that do not change."""

from __future__ import annotations

from typing import Any

import pytest

from archive_overlay.system.record import Record


class Point(Record):
    x: int
    y: int = 2


def test_a_field_has_its_value_or_its_default() -> None:
    assert (Point(x=1).x, Point(x=1).y, Point(x=1, y=3).y) == (1, 2, 3)


@pytest.mark.parametrize("values", [{}, {"y": 1}, {"x": 1, "z": 1}, {"x": 1, "y": 2, "z": 3}])
def test_only_its_fields_make_a_record_and_all_of_them(values: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Point (needs x|has no )"):
        Point(**values)


def test_a_record_does_not_change() -> None:
    point: Any = Point(x=1)

    with pytest.raises(AttributeError):
        point.x = 2
    with pytest.raises(AttributeError):
        del point.x
    assert point == Point(x=1, y=2)


def test_records_of_the_same_values_are_one_to_a_set_in_whatever_order_they_were_given() -> None:
    assert len({Point(x=1, y=3), Point(y=3, x=1)}) == 1
    assert Point(x=1) != Point(x=2)


def test_records_of_two_kinds_are_two() -> None:
    class Size(Record):
        x: int
        y: int = 2

    assert Point(x=1) != Size(x=1)


def test_a_record_with_another_value_is_another_record() -> None:
    point = Point(x=1, y=3)

    assert point.replace(y=4) == Point(x=1, y=4)
    assert point == Point(x=1, y=3)
    with pytest.raises(TypeError, match="Point has no "):
        point.replace(z=5)
