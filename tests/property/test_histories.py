"""Histories of random containers: each revision extracted is what stacking the upperdirs shows, however layers are composed."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from archive_overlay.history.revisions import open_image
from tests.property import containers, stacks
from tests.property.compositions import MOUNTS, Stacked
from tests.property.conftest import SEED, SOAKING
from tests.support import hooks, image_layouts, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Callable

CONTAINERS = 12
HISTORIES = {"trusted": 2, "moving": 1, "userxattr": 1}


@pytest.mark.parametrize("mount", HISTORIES)
def test_each_revision_is_what_its_container_left(
    mount: str, namespace: Callable[[bool], overlays.Namespace], scratch: Path
) -> None:
    overlays.need(MOUNTS[mount])
    where = namespace(MOUNTS[mount].rootless)
    for number in range(HISTORIES[mount] * (8 if SOAKING else 1)):
        seed = f"{SEED} {mount} {number}"

        faults = stacks.on_tmpfs(where, scratch, partial(_faults, mount, seed, where.rootless, scratch))

        assert not faults, "\n".join([seed, *faults])


def _faults(mount: str, seed: str, rootless: bool, directory: Path) -> Iterator[str]:
    """Let containers run, each on what another one left; then look at all revisions of all tags."""
    chance = random.Random(seed)
    flavour = MOUNTS[mount]
    here = stacks.Here(rootless=rootless)
    base, layout = directory / "base", directory / "layout"
    base.mkdir()
    most = chance.choice((2, 3, 3, 4, 7))
    # What lies below, by tag: the upperdirs after each revision, the topmost first.
    history: dict[str, list[list[Path]]] = {"main": []}
    for number in range(CONTAINERS):
        tag = chance.choice([*history, "main", "main"])
        states = history[tag]
        below, keys = (states[-1] if states else [base]), {}
        if states and chance.random() < 0.15:
            parent = chance.randrange(1, len(states) + 1)
            below, keys = states[parent - 1], {"parent": f"{tag}@{parent}"}
            tag = f"branch{number}"
            history[tag] = states = states[:parent]
        overlay = Stacked(flavour, directory / f"container{number}", here, below)
        changes = containers.turns(chance) if states else containers.furnished(chance)
        for operations in stacks.sessions(changes):
            overlay.change(partial(containers.run, operations=operations))
        _stop(overlay, directory, archive_to=f"{layout}:{tag}", max_layers=most, **keys)
        if _revisions(f"{layout}:{tag}") > len(states):
            states.append([overlay.upper, *below])
        elif not states or _revisions(f"{layout}:{tag}") != len(states):
            yield f"container {number} left no revision of {tag}"
            return

    views = Stacked(flavour, directory / "views", here, [base])
    image_layouts.expect_whole(layout)
    for tag, states in history.items():
        layers = len(image_layouts.read(layout, tag).layers)
        if layers > max(2, most):
            yield f"{tag} has {layers} layers, not {most} at most"
        for number, stack in enumerate(states, 1):
            expected = _speakable(views.of([*map(str, stack)], flavour))
            found = _speakable(_extracted(f"{layout}:{tag}@{number}", directory))
            yield from (f"{tag}@{number}: {fault}" for fault in trees.differences(expected, found))


def _stop(overlay: overlays.Overlay, directory: Path, **keys: object) -> None:
    """Run the hook as at a container's stop."""
    mount = overlay.spec_mount()
    mount["options"] = list(dict.fromkeys([*mount["options"], *overlay.flavour.options]))
    asked = hooks.annotations("data", mount_point="/data", method="oci", **keys)
    bundle = hooks.Bundle(directory / "bundle", mounts=[mount], annotations=asked)
    said = _run("--log-level=warning", "--no-fsync", "--bundle", str(bundle.directory), cwd=directory)
    assert "failed" not in said, said  # composing


def _extracted(image: str, directory: Path) -> trees.View:
    made = directory / "extracted"
    _run("extract", "--no-fsync", image, str(made), cwd=directory)
    seen = trees.view(made)
    shutil.rmtree(made)
    return seen


def _run(*arguments: str, cwd: Path) -> str:
    status, _, stderr = hooks.keep_warm().run(
        [*arguments], b"", cwd=cwd, environment={}, here=True, timeout=containers.LONGEST
    )
    said = os.fsdecode(stderr)
    assert status == 0, said
    return said


def _revisions(image: str) -> int:
    with open_image(image) as opened:
        return opened.revisions[-1].number


def _speakable(seen: trees.View) -> trees.View:
    """Give a view without what layers have no form for, or `extract` never gives, and with no file of several names."""
    return trees.View(
        {
            path: replace(entry, attributes=_given(entry.attributes))
            for path, entry in seen.entries.items()
            if entry.kind != "socket" and not any(part.startswith(b".wh.") for part in path.split(b"/"))
        },
        frozenset(),
    )


def _given(attributes: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (name, value) for name, value in attributes if "=" not in name and not name.startswith(stacks.MARKS)
    )
