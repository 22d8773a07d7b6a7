"""Branches, drawn with characters as `git log --graph` draws them.

What has at most one parent each is a forest. Its branches are listed one after the other, the newest first, and each down to
where it left another.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence
    from typing import TypeVar

    K = TypeVar("K", bound=Hashable)


def children_first(parents: Mapping[K, K | None], tips: Sequence[K]) -> list[K]:
    """Put nodes in an order in which each comes before its parent, and branches stay in one piece.

    Args:
        parents: of each node; None for a root.
        tips: the nodes without children, the most interesting first.
    """
    waiting = dict.fromkeys(parents, 0)
    for parent in parents.values():
        if parent is not None:
            waiting[parent] += 1
    ready = [tip for tip in reversed(tips) if not waiting[tip]]
    found = []
    while ready:
        node = ready.pop()
        found.append(node)
        parent = parents[node]
        if parent is not None:
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    return found


def draw(nodes: Sequence[K], parents: Mapping[K, K | None]) -> Iterator[tuple[K, list[str], str, str]]:
    """Draw nodes, each of which comes before its parent.

    Yields:
        Each node, the lines that are drawn before it, what is drawn on its line, and on further lines of its text.
    """
    lanes: list[K] = []  # the node that each lane leads to
    before: list[str] = []
    for node in nodes:
        if node not in lanes:
            lanes.append(node)
        here = lanes.index(node)
        for lane in range(len(lanes) - 1, here, -1):
            if lanes[lane] == node:
                target = max(each for each in range(lane) if lanes[each] == node)
                before += _joined(len(lanes), lane, target)
                del lanes[lane]
        line = " ".join("*" if lane == here else "|" for lane in range(len(lanes)))
        parent = parents[node]
        if parent is None:
            after = " ".join(" " if lane == here else "|" for lane in range(len(lanes)))
            yield node, before, line, after.rstrip()
            moves = here < len(lanes) - 1
            before = [_moved(len(lanes), here)] if moves else []
            del lanes[here]
        else:
            yield node, before, line, " ".join("|" * len(lanes))
            before = []
            lanes[here] = parent


def _joined(lanes: int, lane: int, target: int) -> list[str]:
    """Draw how a lane ends in one to the left of it. What is to the right of it moves up."""
    line = _lanes(lanes, lane)
    for crossed in range(target + 1, lane - 1):
        line[2 * crossed + 1] = "_"
    drawn = ["".join(line)]
    if lane > target + 1:
        line = _lanes(lanes - 1, lanes)
        line[2 * target + 1] = "/"
        drawn.append("".join(line))
    return [text.rstrip() for text in drawn]


def _moved(lanes: int, ended: int) -> str:
    """Draw how the lanes to the right of one that has ended move up."""
    line = _lanes(lanes, ended + 1)
    line[2 * ended] = " "
    line[2 * ended + 1] = "/"
    return "".join(line).rstrip()


def _lanes(lanes: int, moving: int) -> list[str]:
    """Draw lanes, those from one on moving to the left."""
    line = [" "] * (2 * lanes)
    for lane in range(lanes):
        if lane < moving:
            line[2 * lane] = "|"
        else:
            line[2 * lane - 1] = "/"
    return line
