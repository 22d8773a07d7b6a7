"""Branches, drawn."""

from __future__ import annotations

import pytest

from archive_overlay.commands.graph import children_first, draw


def drawn(parents: dict[str, str | None], tips: str) -> list[str]:
    lines = []
    for node, before, line, _ in draw(children_first(parents, tips), parents):
        lines += [*before, f"{line} {node}"]
    return lines


@pytest.mark.parametrize(
    ("parents", "tips", "lines"),
    [
        ({"b": "a", "a": None}, "b", ["* b", "* a"]),
        ({"c": "a", "b": "a", "a": None}, "cb", ["* c", "| * b", "|/", "* a"]),
        # A branch that was there before is crossed.
        (
            {"d": "a", "c": "b", "e": "a", "a": "b", "b": None},
            "dce",
            ["* d", "| * c", "| | * e", "| |/", "|/|", "* | a", "|/", "* b"],
        ),
        # One that ends makes room for another.
        (
            {"d": "a", "c": "b", "e": "a", "b": None, "a": None},
            "dce",
            ["* d", "| * c", "| * b", "| * e", "|/", "* a"],
        ),
        (
            {"w": "a", "x": "b", "y": "b", "z": "a", "b": "a", "a": None},
            "wxyz",
            ["* w", "| * x", "| | * y", "| |/", "| * b", "| | * z", "| |/", "|/", "* a"],
        ),
    ],
)
def test_each_branch_joins_the_one_that_it_left(
    parents: dict[str, str | None], tips: str, lines: list[str]
) -> None:
    assert drawn(parents, tips) == lines


def test_each_node_is_drawn_once_and_before_its_parent() -> None:
    parents = {number: (number - 1 - number % 7 if number > 7 else None) for number in range(100)}
    tips = [number for number in reversed(parents) if number not in parents.values()]

    order = children_first(parents, tips)

    assert sorted(order) == sorted(parents)
    place = {node: position for position, node in enumerate(order)}
    assert all(parent is None or place[node] < place[parent] for node, parent in parents.items())
    widths = [len(line) for _, before, line, _ in draw(order, parents) for line in [*before, line]]
    assert max(widths) <= 2 * len(tips)
