"""Whether two archives are of the same upperdir."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from archive_overlay.overlay.identity import identity
from archive_overlay.overlay.store import Place

if TYPE_CHECKING:
    from pathlib import Path

CONTAINER = "0123456789abcdef" * 4
PLACE = Place(container=CONTAINER, bundle="", root="", environment_file="", annotations={}, started=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Give a container's bundle in a store."""
    made = tmp_path / "storage/overlay-containers" / CONTAINER / "userdata"
    made.mkdir(parents=True)
    return made


def of(upper: Path, bundle: Path, *, archive: str = "data", lower: str = "below", **keys: object) -> str:
    upper.mkdir(parents=True, exist_ok=True)
    place = PLACE.replace(bundle=str(bundle), **keys)
    return identity(str(upper), place, archive=archive, lower=[lower])


def test_a_root_file_system_is_the_same_at_each_start(tmp_path: Path, bundle: Path) -> None:
    layer = tmp_path / "storage/overlay/layer"
    layer.mkdir(parents=True)
    (layer / "lower").write_text("l/A")

    assert of(layer / "diff", bundle) == of(layer / "diff", bundle, started=2)


def test_what_the_engine_makes_for_a_start_is_the_same_until_the_next_one(bundle: Path) -> None:
    upper = bundle / "overlay/1/upper"

    assert of(upper, bundle) == of(upper, bundle)
    assert of(upper, bundle) != of(upper, bundle, started=2)
    assert of(upper, bundle, started=0) == ""


def test_a_directory_of_the_user_s_is_the_same_for_all_containers_and_starts(
    tmp_path: Path, bundle: Path
) -> None:
    first = of(tmp_path / "own", bundle)

    assert of(tmp_path / "own", bundle, started=2, container="f" * 64) == first
    os.rename(tmp_path / "own", tmp_path / "former")
    assert of(tmp_path / "own", bundle) != first


def test_of_another_engine_s_directories_only_those_of_the_same_container_are(tmp_path: Path) -> None:
    first = of(tmp_path / "fs", tmp_path / "bundle")

    assert of(tmp_path / "fs", tmp_path / "bundle", started=2) == first
    assert of(tmp_path / "fs", tmp_path / "bundle", container="f" * 64) != first


def test_each_archive_makes_another_one_and_so_does_what_lies_below_if_that_can_change(
    tmp_path: Path, bundle: Path
) -> None:
    upper, own = bundle / "overlay/1/upper", tmp_path / "own"

    assert of(upper, bundle) != of(upper, bundle, archive="b")
    assert of(own, bundle) != of(own, bundle, lower="other")
    # After a reboot, nobody knows any more what it lay on.
    assert of(upper, bundle) == of(upper, bundle, lower="")
