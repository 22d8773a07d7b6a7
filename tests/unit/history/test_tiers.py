"""Which layers are composed: never too many layers, and little written again."""

from __future__ import annotations

import math
import random

import pytest

from archive_overlay.history.tiers import runs_to_compose
from archive_overlay.layout.images import COMFORTABLE


class Life:
    """A history that grows.

    Attributes:
        layers: the weights of the revisions in each.
        rewritten: how often each revision was written again, by its number.
        compactions: at how many stops something was composed.
    """

    def __init__(self, *, most: int, base: int = 1) -> None:
        self.most = most
        self.base = base
        self.layers: list[list[tuple[int, int]]] = []
        self.rewritten: list[int] = []
        self.compactions = 0

    def stop(self, weight: int) -> None:
        self.layers.append([(len(self.rewritten), weight)])
        self.rewritten.append(0)
        weights = [sum(weight for _, weight in layer) for layer in self.layers]
        runs = runs_to_compose(weights, others=self.base, most=self.most)
        self.compactions += bool(runs)
        for begin, end in reversed(runs):
            run = [revision for layer in self.layers[begin:end] for revision in layer]
            for number, _ in run:
                self.rewritten[number] += 1
            self.layers[begin:end] = [run]


@pytest.mark.parametrize("most", [3, 5, 10, 100, 500])
def test_there_is_always_room_for_one_more_layer(most: int) -> None:
    life = Life(most=most)
    choose = random.Random(most)

    for _ in range(600):
        life.stop(choose.choice([4100, 5000, 10**6, 10**9]))
        assert life.base + len(life.layers) < max(most, life.base + 2)
        assert len(life.layers) < COMFORTABLE


@pytest.mark.parametrize("base", [2, 100, 150])
def test_a_base_that_takes_all_the_room_leaves_one_layer(base: int) -> None:
    life = Life(most=2, base=base)

    for _ in range(5):
        life.stop(4100)
        assert len(life.layers) == 1


def test_equal_revisions_are_written_again_a_few_times() -> None:
    life = Life(most=100)

    for _ in range(3000):
        life.stop(4100)

    assert max(life.rewritten) <= 6
    assert life.compactions < 3000 / 8


@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_written_again_as_often_as_the_logarithm(seed: int) -> None:
    life = Life(most=100)
    choose = random.Random(seed)
    weights = [int(4096 + choose.paretovariate(0.7) * 1000) for _ in range(1500)]

    for weight in weights:
        life.stop(weight)

    for times, weight in zip(life.rewritten, weights):
        assert times <= math.log2(sum(weights) / weight) + 1


def test_a_large_old_layer_stays() -> None:
    life = Life(most=100)
    life.stop(10**12)

    for _ in range(2000):
        life.stop(4100)

    assert life.rewritten[0] == 0
    assert life.layers[0] == [(0, 10**12)]


def test_what_began_elsewhere_with_many_layers_gets_few() -> None:
    runs = runs_to_compose([4100] * 520, others=1, most=100)

    assert 520 - sum(end - begin - 1 for begin, end in runs) <= COMFORTABLE
