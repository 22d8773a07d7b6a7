"""Which engine's store a container came from, and what skopeo and podman are told of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.store import Place
from archive_overlay.transfer.names import parse_store_name
from archive_overlay.transfer.stores import store_of

if TYPE_CHECKING:
    from pathlib import Path

CONTAINER = "0123456789abcdef" * 4
FUSE = "/usr/bin/fuse-overlayfs"


class Host:
    """Directories like those of an engine."""

    def __init__(self, root: Path) -> None:
        self.graph = root / "graph"
        self.run = root / "run"
        self.bundle = self.graph / "overlay-containers" / CONTAINER / "userdata"
        self.environment = self.run / "overlay-containers" / CONTAINER / "userdata"
        for path in (self.bundle, self.environment, self.graph / "overlay", self.graph / "overlay-images"):
            path.mkdir(parents=True)
        for path in (self.run, self.graph / "overlay-images"):
            path.chmod(0o700)

    def place(self, bundle: str = "", environment_file: str = "") -> Place:
        return Place(
            container=CONTAINER,
            bundle=bundle or str(self.bundle),
            root="",
            environment_file=environment_file or str(self.environment / ".containerenv"),
            annotations={},
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_skopeo_is_told_both_roots(host: Host) -> None:
    found = store_of(host.place(), FUSE)
    name = found.transport(parse_store_name("data:main"))
    assert name == f"containers-storage:[overlay@{host.graph}+{host.run}]localhost/data:main"


def test_a_mount_program_is_told_if_the_store_has_one(host: Host) -> None:
    (host.graph / "overlay" / ".has-mount-program").write_text("true")
    found = store_of(host.place(), FUSE)
    assert f"+{host.run}:overlay.mount_program={FUSE}]" in found.transport("@1")
    assert f"--storage-opt=overlay.mount_program={FUSE}" in found.podman_options


def test_mounted_layers_are_listed(host: Host) -> None:
    found = store_of(host.place(), FUSE)
    assert found.mounted() == set()
    (host.run / "overlay-layers").mkdir()
    listed = host.run / "overlay-layers" / "mountpoints.json"
    listed.write_text(json.dumps([{"id": "abc", "path": "/x", "count": 1}]))
    assert found.mounted() == {"abc"}


def test_a_run_root_without_the_container_s_id_is_not_believed(host: Host) -> None:
    elsewhere = str(host.run / "overlay-containers" / ("f" * 64) / "userdata" / ".containerenv")
    with pytest.raises(ArchiveError, match="does not say where the store's list of mounts is"):
        store_of(host.place(environment_file=elsewhere), FUSE)


@pytest.mark.parametrize("which", ["graph", "run"])
def test_a_store_to_which_others_may_write_is_not_believed(host: Host, which: str) -> None:
    (host.run if which == "run" else host.graph / "overlay-images").chmod(0o777)
    with pytest.raises(ArchiveError, match="others can write"):
        store_of(host.place(), FUSE)


def test_a_bundle_that_is_in_no_store_has_none(host: Host, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not in a store"):
        store_of(host.place(bundle=str(tmp_path)), FUSE)


def test_a_path_that_skopeo_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a character in its path"):
        store_of(Host(tmp_path / "a+b").place(), FUSE)
