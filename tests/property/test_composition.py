"""Change sets composed show what they show stacked, over whatever lies below: the law of docs/design.md.

It is tried with random containers on real mounts, by the stream and in place, as test_oracle.py tries archives.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.property.compositions import MOUNTS, Container, Example, faults_of, shrunk
from tests.property.conftest import EXAMPLES, SEED
from tests.property.containers import furnished, turns
from tests.support import overlays

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable

# A program that serves a mount takes many times as long as the kernel.
_TIMES = {"trusted": 5, "moving": 2, "userxattr": 2, "fuse": 0.4, "fuse-rootless": 0.4}


@pytest.mark.parametrize("mount", MOUNTS)
def test_composing_is_stacking(
    mount: str, namespace: Callable[[bool], overlays.Namespace], scratch: Path
) -> None:
    flavour = MOUNTS[mount]
    overlays.need(flavour)
    where = namespace(flavour.rootless)
    for number in range(int(_TIMES[mount] * EXAMPLES)):
        example = some_example(mount, random.Random(f"{SEED} {mount} {number}"))

        if faults_of(example, where, scratch):
            least = shrunk(example, lambda example: bool(faults_of(example, where, scratch)))
            pytest.fail(
                "\n".join([repr(least), *faults_of(least, where, scratch), f"seed {SEED}"]), pytrace=False
            )


def some_example(mount: str, chance: random.Random) -> Example:
    count = chance.choice((2, 2, 3))
    made = [Container(on_top=chance.random() < 0.6, changes=turns(chance)) for _ in range(count)]
    return Example(mount, furnished(chance), made)
