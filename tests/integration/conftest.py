"""Overlays for tests, and the question that most tests end with: is the archive right?"""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, overlays, tools, trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

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
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Give a directory on a file system that can hold upperdirs and their archives."""
    for candidate in (tmp_path, Path("/dev/shm"), Path("/var/tmp")):
        if os.access(candidate, os.W_OK) and overlays.holds_upperdirs(candidate):
            made = Path(tempfile.mkdtemp(prefix="archive_overlay-test-", dir=candidate))
            yield made
            overlays.remove(made)
            return
    tools.cannot_run("no file system here takes whiteouts and extended attributes")


@pytest.fixture
def new_overlay(
    scratch: Path, namespace: Callable[[bool], overlays.Namespace]
) -> Iterator[NewOverlay]:
    """Make overlays, each in a directory of its own."""
    made: list[overlays.Overlay] = []

    def new_overlay(flavour: overlays.Flavour) -> overlays.Overlay:
        overlays.need(flavour)
        directory = scratch / f"overlay{len(made)}"
        directory.mkdir()
        made.append(overlays.Overlay(flavour, directory, namespace(flavour.rootless)))
        return made[-1]

    yield new_overlay
    for each in made:
        each.close()


@pytest.fixture(params=overlays.FLAVOURS, ids=lambda flavour: str(flavour.name))
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
    """Give the name of each method."""
    name: str = request.param
    return name


class Saver:
    """Runs the hook for one overlay and one method, and compares.

    Attributes:
        archive: where the archive is asked for.
        success: where its success marker is.
    """

    def __init__(self, overlay: overlays.Overlay, method: str, directory: Path) -> None:
        self.overlay = overlay
        self.method = method
        self._directory = directory
        self._out = directory / "out"
        self._out.mkdir()
        self.archive = self._out / "archive"
        self.success = directory / "success"

    def run(self, *arguments: str, **keys: object) -> hooks.Result:
        """Run the hook, with the annotations that every archive has and some more.

        Args:
            arguments: the command line.
            keys: more annotations, or others, of the archive, with underscores for dashes.
        """
        asked = {
            "mount_point": "/data",
            "archive_to": self.archive,
            "success": self.success,
            "method": self.method,
            **keys,
        }
        bundle = hooks.Bundle(
            self._directory / "bundle",
            mounts=[self.overlay.spec_mount()],
            annotations=hooks.annotations("data", **asked),
        )
        return self.overlay.inside(lambda: hooks.run_hook(bundle, *arguments))

    @cached_property
    def extracted(self) -> Path:
        """The archive as a directory: itself, or what GNU tar makes of it."""
        if self.method == "copy":
            return self.archive
        directory = self._directory / "extracted"
        directory.mkdir()
        self.overlay.inside(lambda: extract(self.archive, directory))
        return directory

    def expect_the_same(self) -> None:
        """Save, restack on the same lower layers, and compare with what the container left."""
        result = self.run()
        assert result.status == 0, result.stderr
        assert self.success.read_bytes() == b""
        assert os.listdir(self._out) == ["archive"], "debris beside the archive"
        left = self.overlay.view()
        if self.method == "tar.gz":
            left = trees.without(left, "socket")
        flavours = [self.overlay.flavour]
        if self.overlay.flavour.program and len(self.overlay.lowers) == 1:
            # What a program served restacks under the kernel too, unless it made lower layers of its own.
            flavours.append(overlays.NATIVE_ROOTLESS)
        for flavour in flavours:
            assert trees.differences(left, self.overlay.restacked(self.extracted, flavour)) == []


@pytest.fixture
def saver(overlay: overlays.Overlay, method: str, scratch: Path) -> Saver:
    """Save an overlay of each flavour by each method."""
    return Saver(overlay, method, scratch)


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
