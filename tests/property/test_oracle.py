"""Whatever a container does, its archive stacked again on the same lower layers is what it left.

This is "The oracle" of docs/design.md, tried with random containers on real mounts. What fails says by which
seed to see it again. `make soak` tries on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies

from tests.property import containers
from tests.property.conftest import SEED
from tests.property.stacks import STACKS, Example, faults_of
from tests.support import overlays

if TYPE_CHECKING:
    from typing import Callable

_lowers = strategies.lists(strategies.tuples(strategies.integers(0, 2), containers.changes), max_size=3)


@pytest.mark.parametrize("name", STACKS)
@seed(SEED)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(base=containers.base, lowers=_lowers, changes=containers.changes, tar=strategies.integers(0, 2))
def test_archives_stack_again_to_what_the_container_left(
    name: str,
    namespace: Callable[[bool], overlays.Namespace],
    scratch: Path,
    base: list[containers.Operation],
    lowers: list[tuple[int, list[containers.Operation]]],
    changes: list[containers.Operation],
    tar: int,
) -> None:
    flavour = STACKS[name].flavour
    overlays.need(flavour)

    faults = faults_of(Example(name, base, lowers, changes, tar), namespace(flavour.rootless), scratch)

    assert not faults, "\n".join([*faults, f"again: pytest --hypothesis-seed={SEED}"])
