"""Which layers of an image are composed when there are too many: a rule that rewrites little.

A layer has a **weight**: the bytes that its revisions had when they were stored, and something for each of them. So a composed
layer weighs what those weighed that it was made of. Neighbours may be composed if none of them weighs more than the others
together. So whenever a byte is rewritten, the layer that it is in weighs at least twice as much as before: over the life of a
history that weighs W, a byte of a revision that weighs w is rewritten at most log2(W / w) times, and large old layers stay as
they are. Of all runs of neighbours for which that is true, the one is composed that rewrites least for each layer that is
saved, until half of the room is free. So most stops compose nothing.

Engines look at each layer at each pull: podman 4.3 takes 0.14 s for an image of 10 layers, and 1 s for one of 100. So an image
has `COMFORTABLE` layers above its base at most, and fewer if the user's limit says so. Revisions of one size are then composed at
about every 9th stop, and each about once for each power of 10 in their number. Where weights are such that no run may be
composed, and there is no room for one more layer, the cheapest run is composed all the same: with a limit of a few layers,
bytes are rewritten more often.

Source: size-tiered compaction of log-structured merge trees.
"""

from __future__ import annotations

from archive_overlay.layout.images import COMFORTABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What each revision weighs besides its bytes: about what its file, and its place in a manifest, take.
OF_REVISION = 4096
# Of so many layers, the youngest, runs are looked for. Only histories that began elsewhere have more.
_MOST_LOOKED_AT = 512


def runs_to_compose(weights: Sequence[int], *, others: int, most: int) -> list[tuple[int, int]]:
    """Choose which neighbours are composed.

    Args:
        weights: of the layers that may be composed, the lowest first.
        others: how many layers the image has below them, which stay.
        most: how many layers the image may have.

    Returns:
        Runs as positions of their first layer and of the one after their last; none if there is room for one more layer.
    """
    room = max(1, min(most - others, COMFORTABLE))
    if len(weights) < room or len(weights) < 2:
        return []
    enough = max(1, room // 2)
    layers = [(position, position + 1, weight) for position, weight in enumerate(weights)]
    while len(layers) > enough:
        run = _cheapest(layers, balanced=True)
        if run is None:
            if len(layers) < room:
                break
            run = _cheapest(layers, balanced=False)
            if run is None:
                break
        begin, end = run
        whole = layers[begin][0], layers[end - 1][1], sum(weight for _, _, weight in layers[begin:end])
        layers[begin:end] = [whole]
    return [(first, end) for first, end, _ in layers if end - first > 1]


def _cheapest(layers: Sequence[tuple[int, int, int]], *, balanced: bool) -> tuple[int, int] | None:
    """Find the run that rewrites least for each layer that it saves; of equal ones the longest, then the youngest.

    Args:
        layers: of each, its weight comes last.
        balanced: whether no layer of it may weigh more than the others together.
    """
    best: tuple[int, int] | None = None
    least = 0.0
    for begin in range(max(0, len(layers) - _MOST_LOOKED_AT), len(layers) - 1):
        total = heaviest = layers[begin][2]
        for end in range(begin + 1, len(layers)):
            weight = layers[end][2]
            total += weight
            heaviest = max(heaviest, weight)
            if balanced and 2 * heaviest > total:
                continue
            cost = total / (end - begin)
            if best is None or cost <= least:
                best, least = (begin, end + 1), cost
    return best
