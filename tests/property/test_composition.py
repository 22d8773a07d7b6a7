"""Change sets composed show what they show stacked, over whatever lies below: the law of docs/design.md.

It is tried with random containers on real mounts, by the stream and in place, as test_oracle.py tries archives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies

from tests.property import containers
from tests.property.compositions import MOUNTS, Container, Example, faults_of
from tests.property.conftest import EXAMPLES
from tests.property.test_oracle import _seed
from tests.support import overlays

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable

# A program that serves a mount takes many times as long as the kernel.
_TIMES = {"trusted": 6, "moving": 4, "userxattr": 4, "fuse": 1, "fuse-rootless": 1}

_base = strategies.one_of(
    strategies.just([("furnish",)]), strategies.lists(containers.plain, max_size=8).map(lambda more: [("furnish",), *more])
)
_container = strategies.builds(Container, on_top=strategies.booleans(), changes=containers.turns)


@pytest.mark.parametrize("mount", MOUNTS)
def test_composing_is_stacking(
    mount: str, namespace: Callable[[bool], overlays.Namespace], scratch: Path
) -> None:
    flavour = MOUNTS[mount]
    overlays.need(flavour)

    @seed(_seed)
    @settings(max_examples=_TIMES[mount] * EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
    @given(base=_base, made=strategies.lists(_container, min_size=2, max_size=3))
    def composing_is_stacking(base: list[containers.Operation], made: list[Container]) -> None:
        faults = faults_of(Example(mount, base, made), namespace(flavour.rootless), scratch)

        assert not faults, "\n".join([*faults, f"again: pytest --hypothesis-seed={_seed}"])

    composing_is_stacking()
