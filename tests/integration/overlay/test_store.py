"""What the engine's store says and the mount table does not: which layer a container has, and what lies below it."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import expect_equal
from tests.integration.overlay.test_unmounted import IDS, REFERRING, Layer, changes
from tests.support import hooks, overlays, tools

if TYPE_CHECKING:
    from typing import Callable

    from tests.integration.conftest import NewOverlay

CONTAINER = "ab12" * 16


class Container(Layer):
    """A container whose root file system is mounted in a place of which nothing is known here.

    Attributes:
        containers: the store's directory of containers.
        record: what the store has on the container.
        root: the spec's root.path, a directory in which nothing is mounted.
    """

    def __init__(self, overlay: overlays.Overlay, method: str, directory: Path) -> None:
        super().__init__(overlay, method, directory)
        self.containers = self.store.parent / "overlay-containers"
        self.record = {"id": CONTAINER, "names": ["box"], "image": "cd34" * 16, "layer": self.layer.name}
        self.root = directory / "intermediate-mountpoint-0.0"
        self.root.mkdir()
        (self.containers / CONTAINER).mkdir(parents=True)
        self.containers.chmod(0o700)
        self.write("containers.json", [{"id": "ef56" * 16, "layer": "image1"}, self.record])

    def write(self, name: str, listed: object) -> None:
        """Write one of the store's lists of containers."""
        (self.containers / name).write_text(json.dumps(listed))

    def run_here(self, *arguments: str | Path, mounts: Any = None, **keys: Any) -> hooks.Result:
        """Run the hook with podman's bundle."""
        bundle = hooks.Bundle(
            self.containers / CONTAINER / "userdata",
            mounts=mounts or [],
            annotations=self.asks(**{"mount_point": "/", **keys}),
            root=self.root,
        )
        return hooks.run_hook(bundle, *arguments)

    def expect_refusal(self, *reasons: str) -> None:
        """Run the hook, which is to archive nothing and say why."""
        result = self.run()
        assert result.status == 1
        for reason in (f"root file system {self.root} is not an overlay", *reasons):
            assert reason in result.only_error()
        assert os.listdir(self.out) == []


@pytest.fixture
def container(any_overlay: overlays.Overlay, method: str, scratch: Path) -> Container:
    """Give a container that made changes."""
    made = Container(any_overlay, method, scratch)
    made.overlay.change(changes)
    return made


# From a container to its layer


def test_a_root_file_system_that_is_mounted_elsewhere_is_found_by_its_container(container: Container) -> None:
    container.expect_the_same()


def test_so_is_that_of_a_container_run_with_rm(container: Container) -> None:
    (container.containers / "containers.json").rename(container.containers / "volatile-containers.json")

    container.expect_the_same()


def test_so_is_that_of_a_store_that_forgets_its_containers(container: Container) -> None:
    # podman's option transient_store keeps the list below the directory of what is gone after a reboot.
    other = container.directory / "run" / "overlay-containers"
    (other / CONTAINER / "userdata").mkdir(parents=True)
    other.chmod(0o700)
    (container.containers / "containers.json").rename(other / "volatile-containers.json")
    source = other / CONTAINER / "userdata" / ".containerenv"
    mount = {"destination": "/run/.containerenv", "type": "bind", "source": str(source), "options": ["bind"]}

    container.expect_the_same(mounts=[mount])


@pytest.mark.parametrize("identifier", ["ef56" * 16, "box", CONTAINER[:-1], f"{CONTAINER}0"])
def test_a_list_that_a_mount_of_the_container_names_is_not_believed(
    container: Container, identifier: str
) -> None:
    # Whoever writes the mounts may put anything at /run/.containerenv, but does not know the container's id yet.
    volume = container.directory / "volume" / "overlay-containers"
    (volume / identifier / "userdata").mkdir(parents=True)
    volume.chmod(0o700)
    (container.containers / "containers.json").rename(volume / "volatile-containers.json")
    mount = {
        "destination": "/run/.containerenv",
        "type": "bind",
        "source": str(volume / identifier / "userdata" / "file"),
        "options": ["bind"],
    }

    result = container.run(mounts=[mount])

    assert f"{container.containers} do not list a container {CONTAINER} with a layer" in result.only_error()
    assert os.listdir(container.out) == []


def test_a_list_of_containers_whose_names_somebody_chose_is_not_believed(container: Container) -> None:
    # An engine draws ids at random, so nobody can know one before there is a container.
    (container.containers / CONTAINER).rename(container.containers / "box")
    container.write("containers.json", [{**container.record, "id": "box"}])

    bundle = hooks.Bundle(
        container.containers / "box" / "userdata",
        annotations=container.asks(mount_point="/"),
        root=container.root,
    )
    result = container.overlay.inside(lambda: hooks.run_hook(bundle))

    assert result.only_error().startswith(
        f"archive data: the container's root file system {container.root} is not an overlay; "
    )
    assert os.listdir(container.out) == []


@pytest.mark.parametrize("name", ["containers.json", "volatile-containers.json"])
def test_a_list_that_others_may_write_is_no_engine_s(container: Container, name: str) -> None:
    path = container.containers / name
    (container.containers / "containers.json").rename(path)
    path.chmod(0o666)

    container.expect_refusal(f"others can write to {path}")


def test_so_is_that_of_a_bundle_that_a_person_names(container: Container) -> None:
    container.expect_the_same("--bundle", str(container.containers / CONTAINER / "userdata"))


def test_another_overlay_that_is_mounted_at_the_place_is_not_taken(container: Container) -> None:
    other = container.directory / "other"
    for name in ("lower", "upper", "work"):
        (other / name).mkdir(parents=True)
    (other / "upper" / "foreign").touch()
    options = [f"lowerdir={other}/lower", f"upperdir={other}/upper", f"workdir={other}/work"]
    container.overlay.inside(
        lambda: overlays.mount_overlay(container.root, [*options, *container.overlay.flavour.options])
    )
    try:
        container.expect_the_same()
    finally:
        container.overlay.inside(lambda: overlays.unmount(container.root))


def test_what_is_mounted_counts_where_the_store_has_no_layer_for_the_container(container: Container) -> None:
    (container.containers / "containers.json").unlink()
    container.overlay.merged = container.root
    container.overlay.mount()
    try:
        result = container.run()
    finally:
        container.overlay.unmount()

    assert result.status == 0, result.stderr


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {},
        None,
        ["box"],
        [{"id": "ef56" * 16, "layer": "c0ffee"}],
        [{"id": CONTAINER}],
        [{"id": CONTAINER, "layer": 1}],
        [{"id": CONTAINER, "layer": ""}],
        [{"id": CONTAINER, "layer": "../overlay/c0ffee"}],
        [{"id": CONTAINER, "layer": "."}],
    ],
    ids=str,
)
def test_a_record_that_names_no_layer_is_refused(container: Container, listed: object) -> None:
    container.write("containers.json", listed)

    container.expect_refusal(f"{container.containers} do not list a container {CONTAINER} with a layer")


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, '[{"id": "\xff'])
def test_garbage_for_a_record_is_refused(container: Container, text: str) -> None:
    (container.containers / "containers.json").write_bytes(text.encode("latin-1"))

    container.expect_refusal(f"{container.containers}/containers.json is not valid JSON")


def test_a_record_that_is_a_link_is_refused(container: Container) -> None:
    path = container.containers / "containers.json"
    path.rename(container.containers / "elsewhere")
    path.symlink_to("elsewhere")

    container.expect_refusal(str(path), "symbolic link")


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_records_that_others_may_write_are_no_engine_s(container: Container, mode: int) -> None:
    container.containers.chmod(mode)

    container.expect_refusal(f"others can write to {container.containers}")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a directory of another user")
def test_records_of_another_user_are_no_engine_s(container: Container) -> None:
    os.chown(container.containers, 1, 1)

    container.expect_refusal(f"others can write to {container.containers}")


def test_a_program_that_serves_another_upperdir_at_the_mount_point_is_not_believed(
    new_overlay: NewOverlay, method: str, scratch: Path
) -> None:
    container = Container(new_overlay(overlays.FUSE), method, scratch)
    container.overlay.upper = container.directory / "foreign"
    container.overlay.upper.mkdir()
    container.overlay.change(changes)

    result = container.run()

    assert result.status == 1
    assert f"{container.overlay.upper} of the container's root file system is not" in result.only_error()


# From a layer to what lies below it


@pytest.fixture
def referring(new_overlay: NewOverlay, method: str, scratch: Path) -> Layer:
    """Give a layer to be mounted with metacopy=on."""
    return Layer(new_overlay(REFERRING), method, scratch)


def refer(root: Path) -> None:
    """Make changes that leave data and contents in the lower layers."""
    changes(root)
    (root / "renamed").rename(root / "new")


def run_mounted(
    layer: Layer,
    change: Callable[[Path], object],
    *,
    lowerdirs: Callable[[], list[object]],
    mounted: Callable[[], object] = lambda: None,
) -> hooks.Result:
    """Mount a layer, make changes, and run the hook while it is mounted.

    Args:
        layer: what to mount.
        change: called with the merged directory.
        lowerdirs: called to prepare the lower layers; gives their names for the mount.
        mounted: called when the overlay is mounted.
    """

    def inside() -> hooks.Result:
        joined = ":".join(map(str, lowerdirs()))
        options = [f"lowerdir={joined}", f"upperdir={layer.overlay.upper}", f"workdir={layer.overlay.work}"]
        overlays.mount_overlay(layer.overlay.merged, [*options, *REFERRING.options])
        os.chdir("/")
        mounted()
        try:
            change(layer.overlay.merged)
            return layer.run_here()
        finally:
            overlays.unmount(layer.overlay.merged)

    return layer.overlay.inside(inside)


def descriptors(layer: Layer) -> list[object]:
    """Name lower layers as containers/storage does when a page has no room for their paths."""
    fds = [os.open(lower, os.O_RDONLY) for lower in layer.overlay.lowers]
    os.chdir("/proc/self/fd")
    return [*fds]


def expect_what_is_left(layer: Layer, result: hooks.Result) -> None:
    """Hold that the archive shows on the lower layers what the container left."""
    assert result.status == 0, result.stderr
    expect_equal(layer.overlay.view(), layer.overlay.restacked(layer.extracted))


def test_lower_layers_that_were_file_descriptors_are_read(referring: Layer) -> None:
    result = run_mounted(referring, refer, lowerdirs=lambda: descriptors(referring))

    expect_what_is_left(referring, result)
    assert (referring.extracted / "chmodded").read_text() == "chmodded of the top\n"


@pytest.mark.parametrize("name", ["lower", f"../l/{IDS[1]}", "../image1/diff"])
def test_nothing_is_archived_that_refers_to_layers_that_are_not_found(referring: Layer, name: str) -> None:
    path = referring.layer / name

    result = run_mounted(
        referring,
        refer,
        lowerdirs=lambda: descriptors(referring),
        mounted=lambda: path.rename(path.with_name("gone")),
    )

    assert result.status == 1
    assert "lower layers, which cannot be found" in result.only_error()
    assert os.listdir(referring.out) == []


def test_what_refers_to_no_layer_is_archived_without_them(referring: Layer) -> None:
    result = run_mounted(
        referring,
        lambda root: (root / "made").write_text("by a container"),
        lowerdirs=lambda: descriptors(referring),
        mounted=lambda: (referring.store / "l" / IDS[1]).unlink(),
    )

    assert result.status == 0, result.stderr
    assert (referring.extracted / "made").read_text() == "by a container"


def test_layers_of_a_second_store_are_where_the_mount_table_says(referring: Layer) -> None:
    (referring.store / "l" / IDS[1]).unlink()

    result = run_mounted(referring, refer, lowerdirs=lambda: [*referring.overlay.lowers])

    expect_what_is_left(referring, result)


def test_a_directory_that_was_a_mount_is_no_lower_layer(referring: Layer) -> None:
    mount_points = [referring.layer / "composefs-layers" / str(number) for number in range(2)]
    for lower, mount_point in zip(referring.overlay.lowers, mount_points):
        mount_point.mkdir(parents=True)
        (lower.parent / "composefs-data").mkdir()

    def bound() -> list[object]:
        for lower, mount_point in zip(referring.overlay.lowers, mount_points):
            overlays.bind(lower, mount_point)
        return [*mount_points]

    def detach() -> None:
        for mount_point in mount_points:
            overlays.detach(mount_point)

    result = run_mounted(referring, refer, lowerdirs=bound, mounted=detach)

    assert result.status == 1
    assert "composefs" in result.only_error()
    assert os.listdir(referring.out) == []


def test_a_relative_lower_layer_is_not_looked_for_beside_the_mount_point(referring: Layer) -> None:
    # Whoever may write there would choose what is archived.
    (referring.layer / "lower").unlink()
    planted = referring.layer / "0"
    shutil.copytree(referring.overlay.lowers[0], planted)

    def named() -> list[object]:
        os.chdir(referring.store)
        (referring.store / "0").symlink_to("image1/diff")
        return ["0"]

    result = run_mounted(referring, lambda root: (root / "chmodded").chmod(0o600), lowerdirs=named)

    assert result.status == 1
    assert "the mount table has 0, but not where that is" in result.only_error()


# Lower layers with other owners

ACL_USER = struct.pack("<HHI", 2, 7, 1234)
ACL = (
    struct.pack("<I", 2)
    + struct.pack("<HHI", 1, 6, 2**32 - 1)
    + ACL_USER
    + b"".join(struct.pack("<HHI", tag, 4, 2**32 - 1) for tag in (4, 16, 32))
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
SHOWN = 100_000
COUNT = 2000


def furnish(root: Path) -> None:
    """Put something of each owner into a directory."""
    directory = root / "renamed" / "owned"
    directory.mkdir()
    for number, owner in enumerate((0, 1, COUNT - 1, COUNT, 65_533)):
        (directory / str(number)).write_text("data")
        os.chown(directory / str(number), owner, owner)
    (directory / "program").write_text("of root")
    os.setxattr(directory / "program", "security.capability", CAPABILITY)
    (directory / "program").chmod(0o4755)
    (directory / "shared").touch()
    os.setxattr(directory / "shared", "system.posix_acl_access", ACL)
    os.symlink("program", directory / "link")
    os.chown(directory / "link", 7, 8, follow_symlinks=False)


class Mapped(Layer):
    """A container of a user namespace, whose lower layers were mounted for it while it was mounted itself."""

    def __init__(self, overlay: overlays.Overlay, method: str, directory: Path) -> None:
        super().__init__(overlay, method, directory)
        overlay.inside(lambda: furnish(overlay.lowers[1]))
        # Here they stay mounted, to compare with.
        shown = overlay.directory / "shown"
        shown.mkdir()
        overlay.inside(lambda: overlays.bind_id_mapped(self.store, shown, [(0, SHOWN, COUNT)]))
        overlay.lowers = [shown / "l" / identifier for identifier in IDS]
        for path in (overlay.upper, overlay.work):
            os.chown(path, SHOWN, SHOWN)
        containers = self.store.parent / "overlay-containers"
        containers.mkdir(mode=0o700)
        ranges = [{"container_id": 0, "host_id": SHOWN, "size": COUNT}]
        self.record = containers / "containers.json"
        record = {"id": CONTAINER, "layer": self.layer.name, "uidmap": ranges, "gidmap": ranges}
        self.record.write_text(json.dumps([record]))

    def run_mounted(self) -> hooks.Result:
        """Run the hook while the layer is mounted, after changes that refer to its lower layers."""
        mapped = self.layer / "mapped" / "0"
        mapped.mkdir(parents=True)

        def bound() -> list[object]:
            overlays.bind_id_mapped(self.store, mapped, [(0, SHOWN, COUNT)])
            return [mapped / "l" / identifier for identifier in IDS]

        return run_mounted(self, refer, lowerdirs=bound, mounted=lambda: overlays.detach(mapped))


@pytest.fixture
def id_mapped(new_overlay: NewOverlay, method: str, scratch: Path) -> Mapped:
    """Give a layer of a container in a user namespace."""
    tools.need_root()
    return Mapped(new_overlay(REFERRING), method, scratch)


def test_what_lies_below_has_the_owners_that_the_container_saw(id_mapped: Mapped) -> None:
    result = id_mapped.run_mounted()

    expect_what_is_left(id_mapped, result)
    program = os.stat(id_mapped.extracted / "new" / "owned" / "program")
    assert (program.st_uid, program.st_mode & 0o7777) == (SHOWN, 0o4755)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("uidmap", "other"),
        lambda text: text.replace("c0ffee", "other"),
        lambda text: text.replace(str(SHOWN), '"0"'),
        lambda text: text.replace("size", "other"),
        lambda text: text.replace(f"{SHOWN}", "null"),
    ],
)
def test_without_a_record_of_the_owners_nothing_is_guessed(
    id_mapped: Mapped, spoil: Callable[[str], str]
) -> None:
    id_mapped.record.write_text(spoil(id_mapped.record.read_text()))

    result = id_mapped.run_mounted()

    assert result.status == 1
    assert "does not say who owns the lower layers" in result.only_error()
    assert os.listdir(id_mapped.out) == []
