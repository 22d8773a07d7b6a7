"""A root file system that its engine has unmounted: the upperdir is found in the engine's store, or not at all."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import overlays, trees

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Callable

    from tests.integration.conftest import NewOverlay
    from tests.support import hooks

REFERRING = replace(overlays.NATIVE, name="native-metacopy", options=("metacopy=on", "redirect_dir=on"))
FLAVOURS = (overlays.NATIVE, overlays.NATIVE_ROOTLESS, REFERRING)

# As long as the driver makes them.
IDS = ("4VYXKQ2M3J5C7E6HABCDEFGHIJ", "Q7Z2W3E4R5T6Y7UABCDEFGHIJK")


class Layer(Saver):
    """A container's layer in the store of an engine, with two lower ones.

    Attributes:
        store: the directory of the overlay driver.
        layer: that of the container's layer.
        keeps_mount_point: whether the engine leaves the directory where it had mounted.
    """

    def __init__(self, overlay: overlays.Overlay, method: str, directory: Path) -> None:
        super().__init__(overlay, method, directory)
        self.keeps_mount_point = True
        self.store = overlay.directory / "store" / "overlay"
        self.layer = self.store / "c0ffee"
        (self.store / "l").mkdir(parents=True)
        self.store.chmod(0o700)
        overlay.layer(self._bottom)
        overlay.layer(self._top)
        for number, identifier in enumerate(IDS):
            layer = self.store / f"image{number}"
            layer.mkdir()
            overlay.lowers[number].rename(layer / "diff")
            overlay.lowers[number] = layer / "diff"
            (self.store / "l" / identifier).symlink_to(f"../image{number}/diff")
        self.layer.mkdir()
        overlay.upper, overlay.work = self.layer / "diff", self.layer / "work"
        overlay.merged = self.layer / "merged"
        for made in (overlay.upper, overlay.work, overlay.merged):
            made.mkdir()
        (self.layer / "lower").write_text(":".join(f"l/{identifier}" for identifier in IDS))

    @staticmethod
    def _bottom(root: Path) -> None:
        for name in ("deleted", "chmodded", "hidden/file", "renamed/file"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(f"{name} of the bottom\n")

    @staticmethod
    def _top(root: Path) -> None:
        (root / "chmodded").write_text("chmodded of the top\n")

    def run_here(self, *arguments: str | Path, root: Path | None = None, **keys: Any) -> hooks.Result:
        """Run the hook for the root file system, which no mount of the spec is."""
        if not self.keeps_mount_point:
            self.overlay.merged.rmdir()
        try:
            asked = {"mount_point": "/", **keys, "mounts": []}
            return super().run_here(*arguments, root=root or self.overlay.merged, **asked)
        finally:
            self.overlay.merged.mkdir(exist_ok=True)

    def expect_refusal(self, *reasons: str) -> None:
        """Run the hook, which is to archive nothing and say why."""
        result = self.run()
        assert result.status == 1
        for reason in (f"root file system {self.overlay.merged}", *reasons):
            assert reason in result.only_error()
        assert os.listdir(self.out) == []


def changes(root: Path) -> None:
    (root / "made").write_text("by a container")
    (root / "deleted").unlink()
    (root / "chmodded").chmod(0o600)
    shutil.rmtree(root / "hidden")
    (root / "hidden").mkdir()
    (root / "hidden" / "made").touch()


@pytest.fixture
def layer(any_overlay: overlays.Overlay, method: str, scratch: Path) -> Layer:
    """Give a layer in which a container made changes, and which is not mounted any more."""
    made = Layer(any_overlay, method, scratch)
    made.overlay.change(changes)
    return made


@pytest.mark.parametrize("keeps_mount_point", [True, False])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_all_that_was_changed_is_saved(
    new_overlay: NewOverlay, scratch: Path, method: str, flavour: overlays.Flavour, keeps_mount_point: bool
) -> None:
    layer = Layer(new_overlay(flavour), method, scratch)
    layer.keeps_mount_point = keeps_mount_point

    def change(root: Path) -> None:
        changes(root)
        if flavour is REFERRING:
            (root / "renamed").rename(root / "new")

    layer.overlay.change(change)

    layer.expect_the_same()


def test_a_directory_below_the_first_of_a_layer_counts(layer: Layer) -> None:
    # The driver has these where it gave the files of a layer other owners.
    older = layer.store / "image0" / "diff1"
    older.mkdir()
    (older / "from-below").write_text("data")
    layer.overlay.lowers.insert(1, older)
    if os.geteuid() == 0:
        layer.overlay.flavour = REFERRING
    layer.overlay.change(lambda root: (root / "from-below").chmod(0o600))

    layer.expect_the_same()


@pytest.mark.parametrize("name", ["lower", "link", "merged", "work", "diff1"])
def test_what_a_container_puts_into_its_root_directory_is_a_change_and_nothing_else(
    layer: Layer, name: str
) -> None:
    layer.overlay.change(lambda root: (root / name).write_text("l/../../../../etc"))

    layer.expect_the_same()


def test_a_move_leaves_the_store_what_it_has(any_overlay: overlays.Overlay, scratch: Path) -> None:
    layer = Layer(any_overlay, "move", scratch)
    layer.overlay.change(changes)
    before = layer.overlay.inside(lambda: trees.view(layer.overlay.upper))

    layer.expect_the_same()

    expect_equal(before, layer.overlay.inside(lambda: trees.view(layer.overlay.upper)))


# Refusals


def test_an_upperdir_that_is_a_link_is_refused(layer: Layer) -> None:
    layer.overlay.upper.rename(layer.layer / "elsewhere")
    layer.overlay.upper.symlink_to("elsewhere")

    layer.expect_refusal("not mounted any more", f"{layer.overlay.upper} is not a directory")

    layer.overlay.upper.unlink()
    layer.overlay.upper.mkdir()


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (link, "Too many levels of symbolic links"),
        (fifo, "is not a regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
        (lambda path: path.write_text(":".join([f"l/{IDS[0]}"] * 5000)), "longer than any list"),
    ],
    ids=["missing", "link", "fifo", "directory", "long"],
)
def test_without_a_list_of_lower_layers_nothing_is_guessed(
    layer: Layer, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(layer.layer / "lower")

    layer.expect_refusal("not mounted any more", f"{layer.layer}/lower", reason)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "x",
        "l",
        "l/",
        "l/.",
        "l/..",
        "/etc",
        "l//etc",
        "../l/A",
        f"l/{IDS[0]}/..",
        "l/A\n",
        "l/\u00e9",
        "l/\0",
    ],
)
def test_garbage_in_the_list_of_lower_layers_is_refused(layer: Layer, entry: str) -> None:
    (layer.layer / "lower").write_text(f"l/{IDS[0]}:{entry}")

    layer.expect_refusal("not mounted any more", "does not name a lower layer")


@pytest.mark.parametrize(
    "target",
    [
        "/etc",
        "/etc/x/diff",
        "../../diff",
        "..//diff",
        "../../../diff",
        "../image1",
        "../image1/work",
        "x/image1/diff",
    ],
)
def test_a_link_to_what_is_no_layer_is_refused(layer: Layer, target: str) -> None:
    (layer.store / "l" / IDS[1]).unlink()
    (layer.store / "l" / IDS[1]).symlink_to(target)

    layer.expect_refusal(f"{layer.store}/l/{IDS[1]} leads to {target}, which is not a layer")


def test_a_lower_layer_of_another_store_is_refused(layer: Layer) -> None:
    (layer.store / "l" / IDS[1]).unlink()

    layer.expect_refusal(f"{layer.store}/l/{IDS[1]}: No such file")


@pytest.mark.parametrize("name", ["diff", "diff1"])
def test_a_lower_layer_that_is_a_link_is_refused(layer: Layer, name: str) -> None:
    path = layer.store / "image1" / name
    if name == "diff":
        path.rename(layer.store / "image1" / "elsewhere")
    path.symlink_to("elsewhere")

    layer.expect_refusal(f"{path} is not a directory")


def test_a_lower_layer_that_was_mounted_as_an_image_of_composefs_is_refused(layer: Layer) -> None:
    (layer.store / "image1" / "composefs-data").mkdir()

    layer.expect_refusal("composefs")


def test_what_a_mount_program_served_is_refused(layer: Layer) -> None:
    (layer.store / ".has-mount-program").write_text("false")
    layer.expect_the_same()
    shutil.rmtree(layer.out)
    layer.out.mkdir()

    (layer.store / ".has-mount-program").write_text("true")
    layer.expect_refusal("mount program")


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_store_that_others_may_write_to_is_no_engine_s(layer: Layer, mode: int) -> None:
    layer.store.chmod(mode)

    layer.expect_refusal(f"others can write to {layer.store}")


# What is no such place


def test_a_directory_with_something_in_it_is_a_root_file_system_and_no_mount_point(layer: Layer) -> None:
    (layer.overlay.merged / "bin").mkdir()

    layer.expect_refusal("is not an overlay")

    (layer.overlay.merged / "bin").rmdir()


def test_a_link_is_no_mount_point(layer: Layer) -> None:
    layer.overlay.merged.rmdir()
    layer.overlay.merged.symlink_to("work")
    try:
        layer.expect_refusal("is not an overlay")
    finally:
        layer.overlay.merged.unlink()
        layer.overlay.merged.mkdir()


def test_another_name_says_nothing(layer: Layer) -> None:
    other = layer.layer / "other"
    other.mkdir()

    result = layer.run(root=other)

    assert result.status == 1
    assert f"the container's root file system {other} is not an overlay" in result.only_error()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of another kind")
def test_what_something_else_is_mounted_on_is_no_overlay(layer: Layer) -> None:
    layer.overlay.inside(lambda: overlays.mount_tmpfs(layer.overlay.merged, "size=1m"))
    try:
        layer.expect_refusal("is not an overlay")
    finally:
        layer.overlay.inside(lambda: overlays.unmount(layer.overlay.merged))
