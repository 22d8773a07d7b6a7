"""A change set is merged into another, and anything goes wrong: each entry is whole, and nothing that was deleted shows."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from archive_overlay.methods import METHODS
from tests.crash.conftest import Case, Place, Places, fingerprint, make_places
from tests.crash.test_every_call import (
    expect_nothing_wrong,
    fail_each,
    first,
    interrupt_at_each,
    kill_at_each,
    recorded,
)
from tests.support import faults, hooks, stacking, trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from archive_overlay.methods import Method

MERGE = Case(METHODS["copy"], "merge")
OPAQUE = "trusted.overlay.opaque"
# Up to here a run goes as any other that writes a copy: test_every_call.py is about that.
WRITTEN = "syncfs"
RUNS = 8
ROUNDS = 3


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)


def below(root: Path) -> None:
    """Make a directory for each cell of the rule, with something in it that one of the two deletes."""
    for name in ("deleted", "opaque", "file", "replaced", "goes", "covered", "inner", "deep/deleted"):
        write(root / name / "below")
    write(root / "covered" / "directory" / "below")
    write(root / "inner" / "directory" / "below")
    write(root / "deep" / "below")


def put_older(archive: Path, method: Method) -> None:
    """Put an archive of another container of the same base."""
    archive.mkdir()
    for name in ("opaque/old", "covered/directory/old", "covered/both", "inner/directory/old"):
        write(archive / name)
    for name in ("opaque", "covered", "inner"):
        os.setxattr(archive / name, OPAQUE, b"y")
    for name in ("replaced/old", "goes/old", "deep/old", "file"):
        write(archive / name)
    for name in ("deleted", "replaced/below", "deep/below", "deep/deleted"):
        os.mknod(archive / name, stat.S_IFCHR)
    for path in (*archive.rglob("*"), archive):
        os.utime(path, ns=(0, 0), follow_symlinks=False)


def change(root: Path) -> None:
    """Change the base as a container that has not seen the older archive."""
    for name in ("deleted", "opaque", "file", "covered", "inner/directory", "deep/deleted"):
        write(root / name / "new")
    os.link(root / "deleted" / "new", root / "opaque" / "link")
    os.link(root / "deleted" / "new", root / "zz link")
    for name in ("deleted", "opaque", "file", "inner/directory"):
        (root / name / "below").unlink()
    shutil.rmtree(root / "replaced")
    write(root / "replaced" / "new")
    shutil.rmtree(root / "goes")
    shutil.rmtree(root / "covered" / "directory")


@pytest.fixture(scope="module")
def stacks(executable: Path) -> Iterator[Places]:
    """Give places with two change sets for each cell of the rule."""
    yield from make_places(executable, below=below, change=change, put_old=put_older)


@pytest.fixture(scope="module")
def stacks_without_exchange(executable: Path) -> Iterator[Places]:
    """Give such places on a file system that cannot exchange names."""
    yield from make_places(executable, below=below, change=change, put_old=put_older, refused="renameat2")


def test_the_places_have_what_has_to_stay_hidden(stacks: Places) -> None:
    place = stacks.all[0]
    place.learn(MERGE)
    lower = trees.view(place.overlay.lowers[0])
    merged = trees.view(place.archive)

    shown = stacking.shown([merged, lower])

    assert {os.fsdecode(path) for path in lower.entries.keys() - shown} == {
        *("deleted/below", "opaque/below", "file/below", "replaced/below", "goes", "goes/below"),
        *("covered/below", "covered/directory", "covered/directory/below"),
        *("inner/below", "inner/directory/below", "deep/below", "deep/deleted/below"),
    }
    assert place.overlay.whole_restacked(place.archive, place.overlay.flavour).entries.keys() == shown
    assert not [path for path in merged.entries if path.startswith(b"covered/") and b"directory" in path]


def test_what_was_deleted_and_shows_is_noticed(stacks: Places) -> None:
    place = stacks.all[0]
    place.learn(MERGE)
    (place.archive / "deleted").rename(place.out / "elsewhere")

    assert {b"deleted/below"} == place.resurrected(MERGE)


def test_a_kill_at_any_call_shows_nothing_deleted(stacks: Places) -> None:
    kill_at_each(stacks, MERGE, since=WRITTEN)


def test_a_failure_of_any_call_shows_nothing_deleted(stacks: Places) -> None:
    # What is read is tried in full where nothing is composed: test_every_call.py.
    fail_each(stacks, MERGE, since=WRITTEN, in_full=False)


def test_a_signal_at_any_call_shows_nothing_deleted(stacks: Places) -> None:
    interrupt_at_each(stacks, MERGE, since=WRITTEN)


# Where names cannot be exchanged


def test_a_failure_leaves_no_gap_where_names_cannot_be_exchanged(stacks_without_exchange: Places) -> None:
    # Where names can be exchanged, every single call fails that reads: see above.
    fail_each(stacks_without_exchange, MERGE, since=WRITTEN, in_full=False)


def test_a_signal_leaves_no_gap_where_names_cannot_be_exchanged(stacks_without_exchange: Places) -> None:
    interrupt_at_each(stacks_without_exchange, MERGE, since=WRITTEN)


def test_a_kill_leaves_at_most_one_gap_where_names_cannot_be_exchanged(
    stacks_without_exchange: Places,
) -> None:
    """Between two steps nothing is at a name, and what it hid shows there, and nowhere else."""
    calls = recorded(stacks_without_exchange, MERGE, faults.changing_calls)
    gaps: set[bytes] = set()

    def kill(place: Place, index: int) -> list[str]:
        place.lay_out(MERGE)
        outcome = faults.send(place.hook(MERGE), calls, index, signal.SIGKILL)
        wrong = [] if outcome.status == -signal.SIGKILL else [f"it ended with {outcome}"]
        gap = missing(place)
        gaps.update(gap)
        wrong += [f"{gap} are missing"] if len(gap) > 1 else []
        wrong += [
            f"{path!r} shows" for path in place.resurrected(MERGE) if not path.startswith(tuple(gap) or b"/")
        ]
        result = place.run(place.hook(MERGE))
        wrong += place.judge_complete(MERGE, result.stderr) if not gap else []
        return [f"killed at {calls[index]}: {each}" for each in wrong]

    tried = range(first(calls, WRITTEN), len(calls))
    expect_nothing_wrong(stacks_without_exchange.each(kill, tried), len(tried))
    assert {b"deleted", b"file", b"goes", b"replaced"} <= gaps


def missing(place: Place) -> set[bytes]:
    """Give the topmost names that both archives have, and that are not there."""
    now = fingerprint(place.archive)
    assert isinstance(now, trees.View)
    both = place.names(MERGE, "old") & place.names(MERGE, "new")
    gone = both - now.entries.keys()
    return {path for path in gone if path.rpartition(b"/")[0] not in gone}


# Several at once


def test_of_merges_at_once_each_is_stacked_on_those_before(stacks: Places) -> None:
    """A directory takes the place of a deleted one in one exchange: not of what another run has just put there."""
    place = stacks.all[0]
    place.lay_out(MERGE)
    hook = place.hook(MERGE)
    hooks_at_once = []
    for number in range(RUNS):
        directory = place.scratch / f"run{number}"
        for name in ("deleted", "file", "opaque", "fresh/deep", "fresh"):
            write(directory / "upper" / name / f"of run {number}")
        mount = hooks.overlay_mount("/data", upper=directory / "upper", lowers=place.overlay.lowers)
        asked = hook.bundle.spec["annotations"]
        bundle = hooks.Bundle(directory / "bundle", mounts=[mount], annotations=asked)
        hooks_at_once.append(replace(hook, bundle=bundle, scratch=directory))

    for _ in range(ROUNDS):
        place.lay_out(MERGE)
        running = [faults.begin(each) for each in hooks_at_once]
        for run, each in zip(running, hooks_at_once):
            run.send(each.bundle.state())
        assert [run.wait() for run in running] == [0] * RUNS
        for run in running:
            run.close()

        for name in ("deleted", "file", "opaque", "fresh", "fresh/deep"):
            found = {each for each in os.listdir(place.archive / name) if each.startswith("of run")}
            assert found == {f"of run {number}" for number in range(RUNS)}, name
        for name in ("deleted", "file", "opaque"):
            assert os.getxattr(place.archive / name, OPAQUE) == b"y"
        assert os.listdir(place.out) == ["archive"]
