"""Names of directories that mean something in mount options, through every call that mounts an overlay."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.overlay.mount import Mount
from archive_overlay.overlay.options import from_spec
from tests.support import overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

    from archive_overlay.overlay.mount import OverlayMount

# With what each of them is if something is undone once too often, or not at all.
NAMES = ["a,b", "a\\b", "a:b", "a b", "a\tb", "a\nb", "a\\054b", "a\\,b", "a\\:b", "a\\\\b", "a=b", "\udcff"]
NEIGHBOURS = ["a", "ab", "a054b", "a\\", "b", "a\\134\\054b", "a\\054", "a\\040b", "a,b", "a\\\\,b"]


class Layers:
    """An overlay's directories, each with neighbours whose names are nearly the same.

    Args:
        directory: an empty one.
        name: what the directories are called.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.merged = directory / "merged"
        self.work = directory / "work"
        self.upper, self.lower, self.data = (directory / kind / name for kind in ("upper", "lower", "data"))
        for made in (self.merged, self.work, self.upper, self.lower, self.data):
            made.mkdir(parents=True)
        for kind in (self.upper, self.lower, self.data):
            for neighbour in NEIGHBOURS:
                (kind.parent / neighbour).mkdir(exist_ok=True)

    def by_mount(self) -> None:
        """Mount them by mount(2)."""
        overlays.mount_overlay(self.merged, self.options())

    def options(self) -> list[str]:
        """Give the options for mount(2)."""
        return [
            f"lowerdir={overlays.escape_lower(self.lower)}::{overlays.escape_lower(self.data)}",
            f"upperdir={overlays.escape(self.upper)}",
            f"workdir={overlays.escape(self.work)}",
            "metacopy=on",
        ]

    def by_strings(self) -> None:
        """Mount them by fsconfig(2) with paths."""
        overlays.configure_overlay(
            self.merged,
            [
                ("lowerdir+", str(self.lower)),
                ("datadir+", str(self.data)),
                ("upperdir", str(self.upper).replace("\\", "\\\\")),
                ("workdir", str(self.work)),
                ("metacopy", "on"),
            ],
        )

    def by_descriptors(self) -> None:
        """Mount them by fsconfig(2) with file descriptors."""
        overlays.configure_overlay(
            self.merged,
            [
                ("lowerdir+", self.lower),
                ("datadir+", self.data),
                ("upperdir", self.upper),
                ("workdir", self.work),
                ("metacopy", "on"),
            ],
        )


@pytest.fixture
def layers(
    scratch: Path, namespace: Callable[[bool], overlays.Namespace]
) -> Iterator[Callable[[str], Layers]]:
    """Give directories with a name; what is mounted on them goes in the end."""
    overlays.need(overlays.NATIVE)
    made: list[Layers] = []

    def layers(name: str) -> Layers:
        made.append(Layers(scratch, name))
        return made[-1]

    yield layers
    for each in made:
        namespace(False).inside(lambda merged=each.merged: overlays.detach(merged))  # type: ignore[misc]


def found_behind(merged: Path) -> OverlayMount:
    mount = Mount(destination="/data", type="bind", source=str(merged), options=("bind",))
    return find_overlay([mount], "", "/data", mount_program=overlays.FUSE_OVERLAYFS)


@pytest.mark.parametrize("call", [Layers.by_mount, Layers.by_strings, Layers.by_descriptors])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_directories_are_those_that_the_kernel_took(
    layers: Callable[[str], Layers],
    namespace: Callable[[bool], overlays.Namespace],
    name: str,
    call: Callable[[Layers], None],
) -> None:
    made = layers(name)

    def find() -> OverlayMount:
        try:
            call(made)
        except OSError:
            if call is Layers.by_descriptors:
                tools.cannot_run("this kernel takes no file descriptors")  # before Linux 6.13
            raise
        (made.merged / "changed").touch()
        return found_behind(made.merged)

    found = namespace(False).inside(find)

    assert os.path.samefile(found.upper, made.upper)
    assert os.listdir(found.upper) == ["changed"]
    assert found.lowers == (str(made.lower),)
    assert found.data_lowers == (str(made.data),)


# A lowerdir+ has no escapes, so the kernel takes no comma in it but after a backslash.
@pytest.mark.parametrize(
    ("name", "appended"),
    [(name, False) for name in NAMES] + [(name, True) for name in NAMES if name != "a,b"],
    ids=ascii,
)
def test_the_spec_means_what_the_kernel_takes(
    layers: Callable[[str], Layers],
    namespace: Callable[[bool], overlays.Namespace],
    name: str,
    appended: bool,
) -> None:
    made = layers(name)
    options = made.options()
    if appended:
        options[:1] = [f"lowerdir+={made.lower}", f"datadir+={made.data}"]
    (made.lower / "below").touch()

    def mount_and_look() -> list[str]:
        overlays.mount_overlay(made.merged, options)
        (made.merged / "changed").touch()
        return sorted(os.listdir(made.merged))

    assert namespace(False).inside(mount_and_look) == ["below", "changed"]
    # podman splits at all commas.
    found = from_spec(",".join(options).split(","), "the mount")
    assert os.listdir(found.upper) == ["changed"]
    assert found.lowers == (str(made.lower),)
    assert found.data_lowers == (str(made.data),)


def test_two_overlays_on_the_two_directories_that_one_text_may_mean(
    layers: Callable[[str], Layers], namespace: Callable[[bool], overlays.Namespace], scratch: Path
) -> None:
    made = layers("a\\,b")
    other = scratch / "other", scratch / "other-work"
    for directory in other:
        directory.mkdir()

    def find() -> None:
        made.by_descriptors()
        overlays.configure_overlay(
            other[0],
            [("lowerdir+", made.lower), ("upperdir", made.upper.parent / "a,b"), ("workdir", other[1])],
        )
        try:
            with pytest.raises(ArchiveError, match="the mount table does not say which"):
                found_behind(made.merged)
            assert found_behind(other[0]).upper.endswith("/a,b")
        finally:
            overlays.detach(other[0])

    namespace(False).inside(find)


# fuse-overlayfs splits at a colon whatever stands before it.
@pytest.mark.parametrize("name", [name for name in NAMES if ":" not in name], ids=ascii)
def test_directories_are_those_that_fuse_overlayfs_took(
    layers: Callable[[str], Layers], namespace: Callable[[bool], overlays.Namespace], name: str
) -> None:
    overlays.need(overlays.FUSE)
    made = layers(name)

    def find() -> OverlayMount:
        options = [
            f"{key}={overlays.escape(path)}"
            for key, path in (("lowerdir", made.lower), ("upperdir", made.upper), ("workdir", made.work))
        ]
        subprocess.run(
            [overlays.FUSE_OVERLAYFS, "-o", ",".join(options), made.merged], check=True, capture_output=True
        )
        (made.merged / "changed").touch()
        return found_behind(made.merged)

    found = namespace(False).inside(find)

    assert os.listdir(found.upper) == ["changed"]
    assert found.upper == str(made.upper)
    assert found.lowers == (str(made.lower),)
