"""Finding the container that a person means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from archive_overlay.commands.recover.stores import Store
from archive_overlay.commands.snapshot.command import find_container
from archive_overlay.errors import ArchiveError

if TYPE_CHECKING:
    from pathlib import Path

ONE, OTHER, THIRD = f"{'ab':0<64}", f"{'ac':0<64}", f"{'0':0<64}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "overlay-containers").mkdir()
    # One is called as another's id begins.
    listed = [{"id": ONE, "names": ["web"]}, {"id": OTHER, "names": ["db", "ab"]}, {"id": THIRD}]
    (tmp_path / "overlay-containers/containers.json").write_text(json.dumps(listed))
    return Store(root=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "found"),
    [("web", ONE), ("db", OTHER), (ONE, ONE), ("ac", OTHER), ("ab0", ONE), ("ab", OTHER), ("0", THIRD)],
)
def test_a_container_has_names_an_id_and_the_beginning_of_that(store: Store, text: str, found: str) -> None:
    assert find_container(store, text).id == found


@pytest.mark.parametrize(
    ("text", "why"), [("a", "2 containers"), ("nobody", "no container"), ("", "no container")]
)
def test_nobody_is_guessed(store: Store, text: str, why: str) -> None:
    with pytest.raises(ArchiveError, match=why):
        find_container(store, text)
