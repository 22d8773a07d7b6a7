"""Which upperdirs the engine deletes, which it uses again, and where nobody knows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archive_overlay.overlay.lifetime import lifetime
from archive_overlay.overlay.mount import DELETED, KEPT, UNKNOWN, Mount
from archive_overlay.system import mountinfo
from archive_overlay.system.mountinfo import MountTable

ID = "0123456789abcdef" * 4


class Host:
    """A container of podman's on a host, and its store.

    Attributes:
        store: podman's directory.
        bundle: the container's bundle, in the store.
        user: a directory of the user's own.
    """

    def __init__(self, top: Path) -> None:
        self.store = top / "storage"
        self.bundle = self.store / "overlay-containers" / ID / "userdata"
        self.user = top / "user"
        for path in (self.bundle, self.store / "overlay", self.user):
            path.mkdir(parents=True, mode=0o700)

    def make(self, path: Path) -> Path:
        path.mkdir(parents=True, mode=0o700)
        return path

    def layer(self, name: str = "layer", store: str = "overlay") -> Path:
        layer = self.make(self.store / store / name)
        (layer / "lower").write_text("l/SHORT")
        (layer / "merged").mkdir()
        return self.make(layer / "diff")

    def ask(
        self,
        upper: Path | str,
        source: Path | str = "overlay",
        *,
        bundle: Path | str | None = None,
        root: Path | str = "",
        at: str = "/data",
    ) -> str:
        mounts = [
            Mount(destination="/data", type="bind", source="/covered", options=()),
            Mount(destination="/data", type="overlay", source=str(source), options=()),
        ]
        return lifetime(
            str(upper), at, mounts, root=str(root), bundle=str(self.bundle if bundle is None else bundle)
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_podman_deletes_what_it_made_in_the_bundle(host: Host) -> None:
    upper = host.make(host.bundle / "overlay" / "123" / "upper")

    assert host.ask(upper, upper.with_name("merge")) == DELETED


@pytest.mark.parametrize("kind", ["overlay", "bind"])
def test_podman_keeps_an_upperdir_that_the_user_named(host: Host, kind: str) -> None:
    merge = host.make(host.bundle / "overlay" / "123" / "merge")
    upper = host.make(host.user / "upper")
    mounts = [Mount(destination="/data", type=kind, source=str(merge), options=())]

    assert lifetime(str(upper), "/data", mounts, root="", bundle=str(host.bundle)) == KEPT


def test_so_it_does_where_a_mount_program_serves_the_mount_point(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = host.make(host.bundle / "overlay" / "123" / "merge")
    have_mounted(monkeypatch, merge)

    assert host.ask(host.make(host.user / "upper"), merge) == KEPT


def test_a_link_in_the_bundle_to_a_directory_of_the_user_s_makes_it_nobody_else_s(host: Host) -> None:
    kept = host.make(host.user / "upper")
    link = host.make(host.bundle / "overlay" / "123") / "upper"
    link.symlink_to(kept)

    assert host.ask(link, link.with_name("merge")) == KEPT


@pytest.mark.parametrize("mounted", ["overlay/123/upper", "overlay/123", "overlay"])
def test_what_is_mounted_in_a_bundle_may_be_needed_again(
    host: Host, mounted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper = host.make(host.bundle / "overlay" / "123" / "upper")
    have_mounted(monkeypatch, host.bundle / mounted)

    assert host.ask(upper) == UNKNOWN


def test_a_bundle_that_is_a_mount_point_is_a_bundle(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    upper = host.make(host.bundle / "overlay" / "123" / "upper")
    have_mounted(monkeypatch, host.bundle)

    assert host.ask(upper) == DELETED


def test_where_the_mounts_cannot_be_read_nothing_is_known(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> MountTable:
        raise OSError

    monkeypatch.setattr(mountinfo, "read", unreadable)

    assert host.ask(host.make(host.bundle / "overlay" / "123" / "upper")) == UNKNOWN


def test_an_upperdir_in_a_runtime_s_bundle_goes_with_it(host: Host) -> None:
    upper = host.make(host.user / "bundle" / "upper")

    assert host.ask(upper, bundle=host.user / "bundle") == DELETED


@pytest.mark.parametrize("upper", ["upper", "bundle2/upper", "bundle"])
def test_an_upperdir_beside_a_runtime_s_bundle_is_somebody_s(host: Host, upper: str) -> None:
    made = host.make(host.user / upper)

    assert host.ask(made, bundle=host.user / "bundle") == UNKNOWN


@pytest.mark.parametrize("bundle", ["", "/", "relative"])
def test_what_is_no_bundle_has_no_upperdir(host: Host, bundle: str) -> None:
    assert host.ask(host.make(host.user / "upper"), bundle=bundle) == UNKNOWN


@pytest.mark.parametrize("store", ["overlay", "overlay2"])
def test_the_engine_deletes_its_layers(host: Host, store: str) -> None:
    upper = host.layer(store=store)

    assert host.ask(upper, root=upper.with_name("merged"), bundle=host.user, at="/") == DELETED


def test_a_store_to_which_others_may_write_is_no_engine_s(host: Host) -> None:
    upper = host.layer()
    (host.store / "overlay").chmod(0o777)

    assert host.ask(upper, root=upper.with_name("merged"), at="/") == UNKNOWN


def test_buildah_has_its_overlays_where_podman_has_bundles(host: Host) -> None:
    root = host.layer().with_name("merged")
    upper = host.make(host.bundle / "overlay" / "123" / "upper")

    assert host.ask(upper, root=root, bundle=host.make(host.user / "buildah1")) == DELETED
    # What is elsewhere, buildah may have made for itself.
    assert host.ask(host.make(host.user / "upper"), root=root, bundle=host.user / "buildah1") == UNKNOWN


def test_a_bind_mount_of_what_the_administrator_mounted_is_not_podman_s(host: Host) -> None:
    assert host.ask(host.make(host.user / "upper"), host.make(host.user / "merge")) == UNKNOWN


def test_containerd_deletes_its_snapshots(host: Host) -> None:
    snapshots = host.user / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    upper = host.make(snapshots / "17" / "fs")
    os.chmod(snapshots, 0o700)

    assert (
        host.ask(upper, bundle=host.make(host.user / "task"), root=host.user / "task" / "rootfs", at="/")
        == DELETED
    )
    os.chmod(snapshots, 0o777)
    assert host.ask(upper, bundle=host.user / "task", at="/") == UNKNOWN


@pytest.mark.parametrize("path", ["snapshots/17/fs", "io.containerd.snapshotter.v1.x/snapshots/a/fs", "fs"])
def test_what_is_only_called_like_a_part_of_one_is_no_snapshot(host: Host, path: str) -> None:
    assert host.ask(host.make(host.user / path), bundle="") == UNKNOWN


def have_mounted(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    line = f"1 0 0:1 / {path} rw - tmpfs tmpfs rw\n".encode()
    monkeypatch.setattr(mountinfo, "read", lambda: MountTable([line]))
