"""Random change sets carried out on a plain directory: it is then what the container saw, and can be taken back."""

from __future__ import annotations

import os
import random
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, core, given, seed, settings, strategies

from archive_overlay.methods import METHODS
from tests.property import containers, stacks
from tests.property.conftest import EXAMPLES, SOAKING
from tests.support import hooks, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Callable

    Operations = Sequence[containers.Operation]

_seed = core.global_force_seed
if _seed is None:
    _seed = random.randrange(2**32) if SOAKING else 3100
# Without redirects, so that the layers between the container and the base can be applied as they are.
_STACKS = ("plain", "redirect", "userxattr", "fuse", "fuse-rootless")
# What apply never gives.
_NEVER = (*stacks.MARKS, "user.containers.")


@pytest.mark.parametrize("name", _STACKS)
@seed(_seed)
@settings(
    max_examples=EXAMPLES if SOAKING else EXAMPLES // 4,  # each has all methods, there and back
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    base=containers.base, lower=containers.changes, changes=containers.changes, tar=strategies.integers(0, 2)
)
def test_what_is_applied_is_what_the_container_saw(
    name: str,
    namespace: Callable[[bool], overlays.Namespace],
    scratch: Path,
    base: Operations,
    lower: Operations,
    changes: Operations,
    tar: int,
) -> None:
    stack = stacks.STACKS[name]
    overlays.need(stack.flavour)

    found = stacks.on_tmpfs(
        namespace(stack.flavour.rootless), scratch, lambda: faults(stack, base, lower, changes, tar, scratch)
    )

    assert not found, "\n".join([*found, f"again: pytest --hypothesis-seed={_seed}"])


def faults(
    stack: stacks.Stack, base: Operations, lower: Operations, changes: Operations, tar: int, directory: Path
) -> Iterator[str]:
    """Do it, and say in a line each what is wrong."""
    if stack.flavour.program:
        # Such names and attributes it takes for marks in lower layers, too; and with such an attribute it cannot be
        # mounted again.
        base, lower = (
            [each for each in done if ".wh." not in str(each) and "overlay" not in str(each)]
            for done in (base, lower)
        )
        changes = [each for each in changes if not (each[0] == "setxattr" and len(each[3]) > 200)]
    (directory / "overlay").mkdir()
    overlay = overlays.Overlay(
        stack.flavour, directory / "overlay", stacks.Here(rootless=stack.flavour.rootless)
    )
    overlay.layer(partial(containers.run, operations=base))
    maker = stacks.PLAIN if not stack.flavour.rootless and not stack.flavour.program else stack.lowers[0]
    overlay.layer(partial(containers.run, operations=lower), maker)
    if stack.flavour.program:
        for layer in overlay.lowers:
            stacks.leave_one_name(layer)
    overlay.change(partial(containers.run, operations=changes))
    example = stacks.Example("", base, [], changes, tar)
    failures = stacks.run_hook(overlay, directory, example.methods)
    if overlay.is_served:
        overlay.unmount()
    left = overlay.whole_view()
    change_set = trees.names(overlay.upper)
    below, bottom = overlay.lowers
    for method in example.methods:
        archive = directory / method
        if method in failures or not os.path.lexists(archive):
            continue
        if METHODS[method].makes == "layout":
            if change_set == {trees.TOP}:
                continue  # no layer says that nothing changed
            archive = Path(f"{archive}:latest")
        data = directory / f"data of {method}"
        subprocess.run(["cp", "--archive", bottom, data], check=True)
        yield from apply(below, data, "--marks", _marks(maker))
        before = trees.view(data)
        reverse = directory / f"{method}.tar"
        yield from apply(archive, data, "--reverse", str(reverse), *_marks_of(method, stack))
        gone = () if METHODS[method].makes == "directory" else stacks.sockets(left)
        yield from (
            f"{method}: {fault}"
            for fault in trees.differences(
                _plain(left, gone).linked_among(change_set.difference(gone)),
                _plain(trees.view(data), gone).linked_among(change_set.difference(gone)),
            )
        )
        yield from apply(reverse, data, "--marks", "trusted" if os.geteuid() == 0 else "user")
        gone = stacks.sockets(before)
        nothing: set[bytes] = set()
        yield from (
            f"{method}, taken back: {fault}"
            for fault in trees.differences(
                _plain(before, gone).linked_among(nothing),
                _plain(trees.view(data), gone).linked_among(nothing),
            )
        )


def apply(archive: Path, data: Path, *options: str) -> Iterator[str]:
    """Apply a change set in a process of its own, and say what went wrong."""
    arguments = ["apply", "--no-fsync", *options, str(archive), str(data)]
    status, _, stderr = hooks.keep_warm().run(
        arguments, b"", cwd=Path("/"), environment={}, here=True, timeout=containers.LONGEST
    )
    if status:
        yield f"{arguments}: {os.fsdecode(stderr)}"


def _marks(maker: overlays.Flavour) -> str:
    return "user" if "userxattr" in maker.options else "trusted"


def _marks_of(method: str, stack: stacks.Stack) -> tuple[str, ...]:
    """Say whose marks an archive has, where a container can have made it look like another's."""
    if METHODS[method].makes == "layout":
        return ()
    return ("--marks", "user" if stack.flavour.program else _marks(stack.flavour))


def _plain(seen: trees.View, gone: tuple[bytes, ...]) -> trees.View:
    """Give the view without what a plain directory or a tar does not have, and what is never applied."""
    return trees.without(stacks.less(seen, gone, _NEVER), trees.WHITEOUT)
