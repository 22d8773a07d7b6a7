"""Comparison of change sets and states, held against what two directories show that are walked one after the other."""

from __future__ import annotations

import random
import stat
from typing import TYPE_CHECKING

import pytest

from archive_overlay.commands import diff
from archive_overlay.commands.archives import plain_tree
from archive_overlay.history.comparison import (
    ADDED,
    DELETED,
    METADATA,
    MODIFIED,
    OPAQUE,
    STATES,
    UNCHANGED,
    compare,
)
from archive_overlay.history.revisions import open_image
from archive_overlay.history.states import States
from archive_overlay.log import Log
from tests.support import image_layouts
from tests.support.random_images import random_layers, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from archive_overlay.history.comparison import Difference
    from tests.support.random_images import View


def letters(old: View, new: View) -> dict[str, str]:
    """Give the letter of each path at which two directories differ."""
    found = {}
    for path in old.keys() | new.keys():
        if path not in new:
            found[path] = DELETED
        elif path not in old:
            found[path] = ADDED
        elif old[path][:2] != new[path][:2]:
            found[path] = MODIFIED
        elif old[path] != new[path]:
            found[path] = METADATA
    return found


def brief(found: dict[str, str], old: View, new: View) -> dict[str, str]:
    """Leave out what was in deleted directories, and times of directories in which something is different."""
    listed = dict(found)
    for path, letter in found.items():
        above = [path[:end] for end, character in enumerate(path) if character == "/"]
        if letter is DELETED and any(each not in new or new[each][0] != stat.S_IFDIR for each in above):
            del listed[path]
    for path in sorted(listed, reverse=True):
        is_time = (
            listed[path] is METADATA and new[path][0] == stat.S_IFDIR and old[path][2][0] == new[path][2][0]
        )
        if is_time and any(each.startswith(f"{path}/") for each in listed):
            del listed[path]
    return listed


def given(differences: Iterable[Difference]) -> dict[str, str]:
    found = {}
    for each in differences:
        assert each.change.path not in found
        if each.change.name and each.letter is not UNCHANGED:
            found[each.change.path] = each.letter
    return found


@pytest.mark.parametrize("seed", range(25))
def test_revisions_differ_as_directories_do(tmp_path: Path, seed: int) -> None:
    layers = [*random_layers(random.Random(seed))]
    image_layouts.put(tmp_path / "layout", "main", layers=layers)
    with open_image(f"{tmp_path}/layout:main") as image:
        views = [unpacked(image, number + 1, tmp_path / str(number)) for number in range(len(layers))]
        for number, (old, new) in enumerate(zip([{}, *views], views), 1):
            expected = letters(old, new)
            for everything, wanted in ((True, expected), (False, brief(expected, old, new))):
                with diff.revision_differences(
                    image, image.numbered(number), States(), Log("panic", []), everything=everything
                ) as (differences, _):
                    found = given(differences)
                hiding = {path for path, letter in found.items() if letter is OPAQUE}
                assert all(old[path][0] == new[path][0] == stat.S_IFDIR for path in hiding)
                assert {path: letter for path, letter in found.items() if path not in hiding} == {
                    path: letter for path, letter in wanted.items() if path not in hiding
                }, f"revision {number}, everything: {everything}"
        for older in range(len(layers)):
            for newer in range(len(layers)):
                one, other = (diff.State(image, image.numbered(each + 1)) for each in (older, newer))
                with diff.two_revisions(one, other, States(), everything=True) as differences:
                    found = given(differences)
                expected = letters(views[older], views[newer])
                hiding = {path for path, letter in found.items() if letter is OPAQUE}
                assert {path: letter for path, letter in found.items() if path not in hiding} == {
                    path: letter for path, letter in expected.items() if path not in hiding
                }, f"from {older + 1} to {newer + 1}"


@pytest.mark.parametrize("seed", range(8))
def test_a_directory_differs_from_a_revision_as_from_its_extraction(tmp_path: Path, seed: int) -> None:
    layers = [*random_layers(random.Random(seed))]
    image_layouts.put(tmp_path / "layout", "main", layers=layers)
    with open_image(f"{tmp_path}/layout:main") as image:
        last = image.numbered(0)
        old, new = unpacked(image, 1, tmp_path / "old"), unpacked(image, last.number, tmp_path / "new")
        with (
            States().opened(image, image.state(last)) as state,
            plain_tree(str(tmp_path / "old")).source() as reader,
        ):
            assert state
            assert given(compare(state, reader, STATES, everything=True)) == letters(old, new)
