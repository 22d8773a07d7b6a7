"""Overlays for tests, and the question that most tests end with: is the archive right?"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.methods import METHODS
from tests.support import hooks, overlays, tools, trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Callable

    NewOverlay = Callable[[overlays.Flavour], overlays.Overlay]


@pytest.fixture(scope="session")
def namespace() -> Iterator[Callable[[bool], overlays.Namespace]]:
    """Give the namespaces in which overlays are mounted, rootless or not."""
    made: dict[bool, overlays.Namespace] = {}

    def namespace(rootless: bool) -> overlays.Namespace:
        if rootless not in made:
            made[rootless] = overlays.Namespace(rootless=rootless)
        return made[rootless]

    yield namespace
    for each in made.values():
        each.close()


@pytest.fixture
def scratch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Give a directory on a file system that can hold upperdirs and their archives.

    It is in memory if that can be, for most of what a test does on a disk is waiting until all is flushed and deleted.
    Tests marked on_disk are where pytest's own directories are.
    """
    memory, disks = Path("/dev/shm"), (tmp_path, Path("/var/tmp"))
    on_disk = request.node.get_closest_marker("on_disk") or not _is_roomy(memory)
    for candidate in (*disks, memory) if on_disk else (memory, *disks):
        if os.access(candidate, os.W_OK) and overlays.holds_upperdirs(candidate):
            made = overlays.new_directory("archive_overlay-test-", candidate)
            yield made
            overlays.remove(made)
            return
    tools.cannot_run("no file system here takes whiteouts and extended attributes")


def _is_roomy(directory: Path) -> bool:
    """Say whether a test finds room there: it may take 400 MB, and many containers have 64."""
    return directory.is_dir() and shutil.disk_usage(directory).free > 1 << 30


@pytest.fixture
def new_overlay(scratch: Path, namespace: Callable[[bool], overlays.Namespace]) -> Iterator[NewOverlay]:
    """Make overlays, each in a directory of its own, in the bundle as podman has them."""
    made: list[overlays.Overlay] = []

    def new_overlay(flavour: overlays.Flavour) -> overlays.Overlay:
        overlays.need(flavour)
        directory = scratch / "bundle" / f"overlay{len(made)}"
        directory.mkdir(parents=True)
        made.append(overlays.Overlay(flavour, directory, namespace(flavour.rootless)))
        return made[-1]

    yield new_overlay
    for each in made:
        each.close()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name tests after flavours."""
    return val.name if isinstance(val, overlays.Flavour) else None


@pytest.fixture(params=overlays.FLAVOURS)
def overlay(request: pytest.FixtureRequest, new_overlay: NewOverlay) -> overlays.Overlay:
    """Give an overlay of each flavour."""
    flavour: overlays.Flavour = request.param
    return new_overlay(flavour)


@pytest.fixture
def any_overlay(new_overlay: NewOverlay) -> overlays.Overlay:
    """Give an overlay of the kernel: for tests that are about something else."""
    return new_overlay(overlays.NATIVE if os.geteuid() == 0 else overlays.NATIVE_ROOTLESS)


@pytest.fixture(params=["copy", "tar.gz"])
def method(request: pytest.FixtureRequest) -> str:
    """Give the name of a method: one that makes a directory, and one that makes a file.

    Tests for which these two do not stand for all parametrize `method` with others.
    """
    name: str = request.param
    return name


class Saver:
    """Runs the hook for one overlay and one method, and compares.

    Attributes:
        out: the directory of the archive, with nothing else in it.
        archive: where the archive is asked for.
        success: where its success marker is.
    """

    def __init__(self, overlay: overlays.Overlay, method: str, directory: Path) -> None:
        self.overlay = overlay
        self.method = method
        self.directory = directory
        self.out = directory / "out"
        self.out.mkdir()
        self.archive = self.out / "archive"
        self.success = directory / "success"

    def asks(self, **keys: object) -> dict[str, str]:
        """Give the annotations that ask for the archive.

        Args:
            keys: more annotations, or others, with underscores for dashes; None: leave it out.
        """
        asked = {
            "mount_point": "/data",
            "archive_to": self.archive,
            "success": self.success,
            "method": self.method,
            **keys,
        }
        return hooks.annotations("data", **{key: value for key, value in asked.items() if value is not None})

    def run(
        self,
        *arguments: str | Path,
        mounts: Sequence[Mapping[str, Any]] | None = None,
        root: Path | None = None,
        also: Mapping[str, str] | None = None,
        linux: Mapping[str, Any] | None = None,
        before: Callable[[], None] | None = None,
        **keys: object,
    ) -> hooks.Result:
        """Run the hook where the overlay is mounted.

        Args:
            arguments: the command line.
            mounts: the spec's mounts; by default the overlay at /data.
            root: the root file system's directory.
            also: more annotations, for other archives.
            linux: more of what the spec has under that name.
            before: called in the new process before the hook starts.
            keys: see `asks`.
        """
        return self.overlay.inside(
            lambda: self.run_here(
                *arguments, mounts=mounts, root=root, also=also, linux=linux, before=before, **keys
            )
        )

    def run_here(
        self,
        *arguments: str | Path,
        mounts: Sequence[Mapping[str, Any]] | None = None,
        root: Path | None = None,
        also: Mapping[str, str] | None = None,
        linux: Mapping[str, Any] | None = None,
        before: Callable[[], None] | None = None,
        **keys: object,
    ) -> hooks.Result:
        """Run the hook as `run` does, for a caller that is in the overlay's namespace already."""
        bundle = hooks.Bundle(
            self.directory / "bundle",
            mounts=[self.overlay.spec_mount()] if mounts is None else mounts,
            annotations={**self.asks(**keys), **(also or {})},
            root=root,
            linux=linux,
        )
        return hooks.run_hook(bundle, *arguments, before=before)

    @cached_property
    def extracted(self) -> Path:
        """The archive as a directory: itself, or what GNU tar makes of it."""
        if METHODS[self.method].makes == "directory":
            return self.archive
        directory = self.directory / "extracted"
        directory.mkdir()
        self.overlay.inside(lambda: extract(self.archive, directory))
        return directory

    def expect_the_same(
        self, *arguments: str, mounts: Sequence[Mapping[str, Any]] | None = None
    ) -> hooks.Result:
        """Save, restack on the same lower layers, and compare with what the container left.

        Args:
            arguments, mounts: see `run`.

        Returns:
            What the hook said.
        """
        # What is moved away has to be looked at before. What a program serves is looked at afterwards,
        # for that ends the program, and the hook would not find the upperdir.
        left = self._left() if self.method == "move" and not self.overlay.flavour.program else None
        result = self.run(*arguments, mounts=mounts)
        assert result.status == 0, result.stderr
        assert self.success.read_bytes() == b""
        assert os.listdir(self.out) == ["archive"], "debris beside the archive"
        view, change_set = left or self._left()
        if METHODS[self.method].makes == "file":
            view = trees.without(view, "socket")
        flavours = [self.overlay.flavour.standing_alone]
        if self.overlay.flavour.program and len(self.overlay.lowers) == 1:
            # What a program served restacks under the kernel too, unless it made lower layers of its own.
            flavours.append(overlays.NATIVE_ROOTLESS)
        for flavour in flavours:
            restacked = self.overlay.whole_restacked(self.extracted, flavour).linked_among(change_set)
            expect_equal(view, restacked, f"stacked again as {flavour.name}")
        return result

    def _left(self) -> tuple[trees.View, set[bytes]]:
        return self.overlay.view(), self.overlay.change_set()


def expect_equal(expected: trees.View, found: trees.View, what: str = "compared") -> None:
    """Compare two views, and say all that tells them apart."""
    differences = trees.differences(expected, found)
    assert not differences, "\n".join([f"{what}:", *differences])


@pytest.fixture
def saver(overlay: overlays.Overlay, method: str, scratch: Path) -> Saver:
    """Save an overlay of each flavour by each method."""
    return Saver(overlay, method, scratch)


@pytest.fixture
def any_saver(any_overlay: overlays.Overlay, method: str, scratch: Path) -> Saver:
    """Save an overlay of the kernel by each method: for tests that are about something else."""
    return Saver(any_overlay, method, scratch)


@pytest.fixture
def small(any_saver: Saver) -> Saver:
    """Save an overlay in which a container made a file, by each method."""
    any_saver.overlay.change(lambda root: (root / "made").write_text("by a container"))
    return any_saver


def extract(archive: Path, directory: Path) -> None:
    """Extract a tar file as a person would who wants all that is in it."""
    subprocess.run(
        [
            *("tar", "--extract", "--file", archive, "--directory", directory),
            *("--xattrs", "--xattrs-include=*", "--numeric-owner", "--preserve-permissions"),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
