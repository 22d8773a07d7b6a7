"""How many examples are tried, and what they share with the integration tests."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
from hypothesis import core
from hypothesis.configuration import set_hypothesis_home_dir

from tests.integration.conftest import (  # noqa: F401
    any_overlay,
    any_saver,
    method,
    namespace,
    new_overlay,
    overlay,
    pytest_make_parametrize_id,
    saver,
    scratch,
)

set_hypothesis_home_dir(Path(__file__).resolve().parents[2] / ".cache" / "hypothesis")

# `make soak` says how many examples of each mount it wants.
SOAKING = bool(os.environ.get("EXAMPLES"))
EXAMPLES = int(os.environ.get("EXAMPLES") or 16)

# No deadline, for a busy machine is no fault. What failed once is tried again when soaking, and else nothing is that
# is not tried by everybody.
hypothesis.settings.register_profile(
    "oracle",
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    **({} if SOAKING else {"database": None}),
)
hypothesis.settings.load_profile("oracle")

# Everybody's examples are the same, so that a change is judged and not its luck. `make soak` finds what nobody has
# seen: it takes others each time, and a failure names the seed for --hypothesis-seed.
SEED = core.global_force_seed
if SEED is None:
    SEED = random.randrange(2**32) if SOAKING else 3000
