"""The ways in which a container under podman comes to its end, and to another start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import Entry, read_tar
from tests.support import hooks
from tests.support.engines import IMAGE, Engine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Machine


@dataclass(frozen=True)
class Box:
    """A container to be, whose image mount at /data is to be saved.

    Attributes:
        engine: where it runs.
        name: the container's, and that of the directory of its archive.
    """

    engine: Engine
    name: str

    def podman(self, verb: str, *options: str) -> None:
        self.engine.podman(verb, *options, self.name)

    def run(self, *options: str, command: str) -> None:
        """Run it to its end."""
        self._run(*options, command=command, detach=False)

    def start(self) -> None:
        """Run it for the first time, to do something in it later on."""
        self._run(command="exec sleep infinity", detach=True)

    def _run(self, *options: str, command: str, detach: bool) -> None:
        self.engine.run(
            self.name,
            *("--mount", f"type=image,source={IMAGE},destination=/data,rw=true", *options),
            command=command,
            detach=detach,
            annotations=hooks.annotations(
                "data",
                mount_point="/data",
                archive_to=f"{self.engine.home}/{self.name}/data.tar.gz",
                success=f"{self.engine.home}/{self.name}/success",
                method="tar.gz",
            ),
        )

    def do(self, command: str) -> None:
        """Run a command in it, to the command's end."""
        self.engine.podman("exec", self.name, "sh", "-ec", command)

    @property
    def exists(self) -> bool:
        return self.engine.podman("container", "exists", self.name, check=False).returncode == 0

    @property
    def directory(self) -> Path:
        return self.engine.machine.outside(f"{self.engine.home}/{self.name}")

    def archive(self) -> dict[str, Entry]:
        """Read its archive, which has to be complete and alone with its marker."""
        assert sorted(path.name for path in self.directory.iterdir()) == ["data.tar.gz", "success"]
        return read_tar(self.directory / "data.tar.gz")


@pytest.fixture(
    params=[
        pytest.param((False, "native", "crun"), id="rootful-native-crun"),
        pytest.param((False, "fuse", "runc"), id="rootful-fuse-runc"),
        pytest.param((True, "native", "runc"), id="rootless-native-runc"),
        pytest.param((True, "fuse", "crun"), id="rootless-fuse-crun"),
    ]
)
def box(request: pytest.FixtureRequest, machine: Machine) -> Box:
    """A container to be, on each store of each user."""
    made = Box(Engine(machine, *request.param), request.function.__name__)
    made.engine.new_directory(made.name)
    return made


def test_a_container_that_podman_removes_at_its_end_is_saved(box: Box) -> None:
    box.run("--rm", command="echo kept > /data/made")
    assert not box.exists
    assert box.archive()["made"].content == b"kept\n"


def test_the_removal_of_a_stopped_container_leaves_its_archive_alone(box: Box) -> None:
    box.run(command="echo kept > /data/made")
    assert box.archive()["made"].content == b"kept\n"
    before = [path.stat() for path in sorted(box.directory.iterdir())]
    box.podman("rm")
    assert not box.exists
    assert [path.stat() for path in sorted(box.directory.iterdir())] == before


def test_each_start_ends_in_an_archive_of_its_own_changes(box: Box) -> None:
    box.start()
    box.do("rm /data/tree/kept; echo 1 > /data/first")
    box.podman("stop", "--time=0")
    first = box.archive()
    assert sorted(first) == [".", "first", "tree", "tree/kept"]
    assert first["tree/kept"].is_whiteout

    box.podman("start")
    box.do("cat /data/tree/kept && echo 2 > /data/second")
    box.podman("stop", "--time=0")
    assert sorted(box.archive()) == [".", "second"]


def test_a_running_container_that_is_removed_by_force_is_saved(box: Box) -> None:
    box.start()
    box.do("echo kept > /data/made")
    box.podman("rm", "--force", "--time=0")
    assert not box.exists
    assert box.archive()["made"].content == b"kept\n"
