"""Overlays of a store of which a reboot, or the engine, has unmounted everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay import dialect
from archive_overlay.overlay.base import container_base
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.overlay.mount import Mount
from archive_overlay.overlay.owners import OwnerMap
from archive_overlay.overlay.store import lasting_directory, stores_of
from tests.support.image_stores import CONTAINER, LAYER, TOP, ImageStore

if TYPE_CHECKING:
    from pathlib import Path

    from archive_overlay.overlay.mount import OverlayMount

BOTTOM = "1c2d" * 16


class Unmounted:
    """A store with a container and its image of two layers.

    Args:
        directory: an empty one.
    """

    def __init__(self, directory: Path) -> None:
        self.store = ImageStore(directory / "store")
        self.bundle = self.store.bundle
        self.driver = self.store.driver
        (self.driver / "l").mkdir()
        for layer, link in ((LAYER, "A"), (TOP, "B"), (BOTTOM, "C")):
            (self.driver / layer / "diff").mkdir(parents=True)
            (self.driver / "l" / link).symlink_to(f"../{layer}/diff")
        (self.driver / LAYER / "lower").write_text("l/B:l/C")
        (self.driver / TOP / "lower").write_text("l/C")
        self.store.write()

    def serve_by_a_program(self, **maps: object) -> None:
        (self.driver / ".has-mount-program").write_text("true")
        self.store.containers[0].update(maps)
        self.store.write()

    def upper(self, number: str) -> Path:
        upper = self.bundle / "overlay" / number / "upper"
        for each in (upper, upper.with_name("work"), upper.with_name("merge")):
            each.mkdir(parents=True)
        return upper

    def find(self, *mounts: Mount, at: str, ended: bool = True) -> OverlayMount:
        return find_overlay(
            mounts,
            str(self.store.root),
            at,
            mount_program="/usr/bin/fuse-overlayfs",
            bundle=str(self.bundle),
            ended=ended,
        )

    @property
    def image(self) -> list[str]:
        return [str(self.driver / layer / "diff") for layer in (TOP, BOTTOM)]


@pytest.fixture
def unmounted(tmp_path: Path) -> Unmounted:
    """A store."""
    return Unmounted(tmp_path)


def native(upper: Path, lower: Path) -> Mount:
    options = (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={upper.with_name('work')}", "userxattr")
    return Mount(destination="/data", type="overlay", source=str(upper.with_name("merge")), options=options)


@pytest.mark.parametrize("mount_point_is_left", [True, False])
def test_the_layers_of_an_image_come_from_the_store(unmounted: Unmounted, mount_point_is_left: bool) -> None:
    lower = unmounted.driver / TOP / "merged"
    if mount_point_is_left:
        lower.mkdir()
    upper = unmounted.upper("7")

    overlay = unmounted.find(native(upper, lower), at="/data", ended=False)

    assert overlay.upper == str(upper)
    assert list(overlay.lowers) == unmounted.image
    base = container_base(overlay, stores_of(str(unmounted.bundle), str(unmounted.store.root)))
    assert base.ids == (TOP,)


def test_an_image_whose_layers_are_gone_is_unknown(unmounted: Unmounted) -> None:
    (unmounted.driver / BOTTOM / "diff").rmdir()

    overlay = unmounted.find(native(unmounted.upper("7"), unmounted.driver / TOP / "merged"), at="/data")

    assert overlay.lowers == ()
    assert BOTTOM in overlay.lowers_unknown


def test_a_directory_of_the_host_stays_what_lies_below(unmounted: Unmounted, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/diff").mkdir(parents=True)
    (tmp_path / "elsewhere/merged").mkdir()

    overlay = unmounted.find(native(unmounted.upper("7"), tmp_path / "elsewhere/merged"), at="/data")

    assert overlay.lowers == (str(tmp_path / "elsewhere/merged"),)


def test_what_fuse_overlayfs_served_is_in_the_bundle(unmounted: Unmounted) -> None:
    upper = unmounted.upper("7")
    mount = Mount(destination="/data", type="bind", source=str(upper.with_name("merge")), options=())

    assert unmounted.find(mount, at="/data").upper == str(upper)
    with pytest.raises(ArchiveError, match="not an overlay"):
        unmounted.find(mount, at="/data", ended=False)


def test_the_root_file_system_that_fuse_overlayfs_served_has_the_owners_of_its_container(
    unmounted: Unmounted,
) -> None:
    ids: list[dict[str, Any]] = [{"container_id": 0, "host_id": 1000, "size": 10}]
    unmounted.serve_by_a_program(uidmap=ids, gidmap=ids)

    overlay = unmounted.find(at="/")

    assert overlay.upper == str(unmounted.driver / LAYER / "diff")
    assert list(overlay.lowers) == unmounted.image
    assert overlay.program_owners == OwnerMap(users=[(0, 1000, 10)], groups=[(0, 1000, 10)])
    assert overlay.dialect == dialect.FUSE_OVERLAYFS_WITHOUT_OWNERS
    with pytest.raises(ArchiveError, match="whose options are no longer known"):
        unmounted.find(at="/", ended=False)


def test_a_container_of_crio_has_a_directory_that_lasts_beside_its_bundle(
    unmounted: Unmounted, tmp_path: Path
) -> None:
    bundle = str(tmp_path / f"run/overlay-containers/{CONTAINER}/userdata")
    root = str(unmounted.store.root)

    assert lasting_directory(bundle, root) == bundle
    (unmounted.bundle / "config.json").write_text("{}")
    assert lasting_directory(bundle, root) == str(unmounted.bundle)
    assert lasting_directory("/srv/bundle", root) == "/srv/bundle"
