"""Upperdirs that are archived again and again: each revision is what the mount showed at that moment, and no more than that."""

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
from tests.property.test_histories import _given
from tests.support import hooks, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Callable

CONTAINERS = 2
SNAPSHOTS = 5
HISTORIES = {"trusted": 1, "moving": 1, "userxattr": 1, "fuse": 1}


@pytest.mark.parametrize("mount", HISTORIES)
def test_each_snapshot_is_what_the_mount_showed(
    mount: str, namespace: Callable[[bool], overlays.Namespace], scratch: Path
) -> None:
    overlays.need(MOUNTS[mount])
    where = namespace(MOUNTS[mount].rootless)
    for number in range(HISTORIES[mount] * (8 if SOAKING else 1)):
        seed = f"{SEED} {mount} {number}"

        faults = stacks.on_tmpfs(where, scratch, partial(_faults, mount, seed, where.rootless, scratch))

        assert not faults, "\n".join([seed, *faults])


def _faults(mount: str, seed: str, rootless: bool, directory: Path) -> Iterator[str]:
    """Let containers run, one on what another one left, and save each of them several times."""
    chance = random.Random(seed)
    flavour = MOUNTS[mount]
    here = stacks.Here(rootless=rootless)
    base = directory / "base"
    base.mkdir()
    layout = directory / "layout"
    asked = {"max_layers": chance.choice((2, 3, 5, 40)), "keep": chance.choice(("", "", "last=2", "last=3"))}
    below = [base]
    # Of a file with several names below fuse-overlayfs, nobody can say what is right: see `stacks.leave_one_name`.
    for number in range(1 if flavour.program else CONTAINERS):
        tag = "main"
        overlay = Stacked(flavour, directory / f"container{number}", here, below)
        shown: dict[int, trees.View] = {}
        mine = _last(layout, tag)
        for snapshot in range(SNAPSHOTS):
            changes = containers.furnished(chance) if not (number or snapshot) else containers.turns(chance)
            for operations in stacks.sessions(changes) if chance.random() < 0.9 else ():
                if overlay.is_served:
                    overlay.unmount()
                overlay.change(partial(containers.run, operations=operations))
            if flavour.program and not overlay.is_served:
                overlay.change(os.listdir)
            if mine in shown and number and chance.random() < 0.1:
                _others_stop(flavour, here, directory, f"{number}-{snapshot}", layout, tag)
            said = _stop(overlay, directory, f"container{number}", archive_to=f"{layout}:main", **asked)
            again = _stop(overlay, directory, f"container{number}", archive_to=f"{layout}:main", **asked)
            branch = f"main-container{number}"
            tag = branch if _last(layout, branch) else tag
            image = f"{layout}:{tag}"
            seen = _speakable(overlay.view())
            moment = f"snapshot {snapshot} of container {number}"
            made = " as revision " in said
            if made:
                mine = _last(layout, tag)
                shown[mine] = seen
            elif not mine:
                continue
            found = _extracted(f"{image}@{mine}", directory).linked_among(overlay.change_set())
            if not made:
                # Nobody sees what was made and deleted since.
                seen, found = _without_top(seen), _without_top(found)
            yield from (f"{moment}: {fault} ({said})" for fault in trees.differences(seen, found))
            if " as revision " in again:
                yield f"{moment}: once more, there is another revision, though nothing was changed: {again}"
                return
        if overlay.is_served:
            overlay.unmount()
        with open_image(image) as opened:
            kept = [each.number for each in opened.revisions if each.number in shown]
        for each in kept:
            found = _extracted(f"{image}@{each}", directory)
            faults = trees.differences(_unlinked(shown[each]), _unlinked(found))
            yield from (f"{image}@{each}: {fault}" for fault in faults)
        if tag != "main" or _last(layout, "main") != mine:
            break
        below = [overlay.upper, *below]


def _others_stop(
    flavour: overlays.Flavour, here: stacks.Here, directory: Path, name: str, layout: Path, tag: str
) -> None:
    """Let somebody else add a revision on the last one."""
    below = directory / f"state{name}"
    _run("extract", "--no-fsync", f"{layout}:{tag}", str(below), cwd=directory)
    other = Stacked(flavour, directory / f"other{name}", here, [below])
    other.change(partial(containers.run, operations=[("write", "else", 7)]))
    _stop(other, directory, "another", archive_to=f"{layout}:main")
    if other.is_served:
        other.unmount()


def _stop(overlay: overlays.Overlay, directory: Path, name: str, **keys: object) -> str:
    """Run the hook as at a container's stop, or for a snapshot."""
    mount = overlay.spec_mount()
    mount["options"] = list(dict.fromkeys([*mount["options"], *overlay.flavour.options]))
    asked = hooks.annotations("data", mount_point="/data", method="oci", compression="none", **keys)
    bundle = hooks.Bundle(directory / name, mounts=[mount], annotations=asked)
    os.utime(bundle.directory / "config.json", (1, 1))
    said = _run("--no-fsync", "--bundle", str(bundle.directory), cwd=directory)
    assert " failed" not in said, said  # composing
    assert "not only what it changed" not in said, said
    return next(line for line in said.splitlines() if "archive data: saved " in line)


def _extracted(image: str, directory: Path) -> trees.View:
    made = directory / "extracted"
    _run("extract", "--no-fsync", image, str(made), cwd=directory)
    seen = _speakable(trees.view(made))
    shutil.rmtree(made)
    return seen


def _run(*arguments: str, cwd: Path) -> str:
    status, _, stderr = hooks.keep_warm().run(
        [*arguments], b"", cwd=cwd, environment={}, here=True, timeout=containers.LONGEST
    )
    said = os.fsdecode(stderr)
    assert status == 0, said
    return said


def _last(layout: Path, tag: str) -> int:
    """Give the number of a tag's last revision; 0: there is no such tag."""
    index = layout / "index.json"
    if not index.exists() or f'"{tag}"' not in index.read_text():
        return 0
    with open_image(f"{layout}:{tag}") as opened:
        return opened.revisions[-1].number


def _speakable(seen: trees.View) -> trees.View:
    """Give a view without what layers have no form for, or `extract` never gives."""
    entries = {
        path: replace(entry, attributes=_given(entry.attributes))
        for path, entry in seen.entries.items()
        if entry.kind != "socket" and not any(part.startswith(b".wh.") for part in path.split(b"/"))
    }
    links = (frozenset(group & entries.keys()) for group in seen.links)
    return trees.View(entries, frozenset(group for group in links if len(group) > 1))


def _without_top(seen: trees.View) -> trees.View:
    entries = {path: entry for path, entry in seen.entries.items() if path != trees.TOP}
    return trees.View(entries, seen.links)


def _unlinked(seen: trees.View) -> trees.View:
    return trees.View(seen.entries, frozenset())
