"""Volumes whose upperdir the user named: podman keeps it, and the next start goes on with what is in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks
from tests.support.engines import HOOK, Engine

if TYPE_CHECKING:
    from tests.support.engines import Machine


class Box:
    """A container with a volume at /data over a directory, and an upperdir that is the user's.

    Attributes:
        engine: whose container it is.
        home: the user's directory, a path on the machine.
        outside: the same for this process.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        self.home = engine.new_directory(name)
        for made in ("lower", "upper", "work", "hooks"):
            engine.new_directory(f"{name}/{made}")
        self.outside = engine.machine.outside(self.home)
        configuration = {
            "version": "1.0.0",
            "hook": {
                "path": HOOK,
                "args": [
                    "archive_overlay",
                    "--rescue-dir",
                    f"{self.home}/rescue",
                    "--log-file",
                    f"{self.home}/log",
                ],
            },
            "when": {"always": True},
            "stages": ["poststop"],
        }
        (self.outside / "hooks" / "persistent.json").write_text(json.dumps(configuration))

    def start(self, **keys: object) -> str:
        """Start it once: each start adds a line to a file of the volume. Gives the file, as the container then saw it."""
        asked = {"mount_point": "/data", "archive_to": f"{self.home}/archive", **keys}
        done = self.engine.run(
            self.name,
            "--rm",
            "--volume",
            f"{self.home}/lower:/data:O,upperdir={self.home}/upper,workdir={self.home}/work",
            command="echo start >> /data/starts; cat /data/starts",
            annotations=hooks.annotations("data", **asked),
            podman_options=("--hooks-dir", f"{self.home}/hooks"),
        )
        return done.stdout

    def log(self) -> list[hooks.Line]:
        return hooks.parse_log((self.outside / "log").read_text())


@pytest.fixture(params=["rootful-native", "rootful-fuse", "rootless-native"])
def engine(request: pytest.FixtureRequest, machine: Machine) -> Engine:
    user, _, store = request.param.partition("-")
    return Engine(machine, user == "rootless", store, "crun")


def test_a_move_copies_it(engine: Engine) -> None:
    box = Box(engine, "persistent-moved")

    assert box.start(method="move") == "start\n"
    assert box.start(method="move") == "start\n" * 2

    assert (box.outside / "archive" / "starts").read_text() == "start\n" * 2
    assert (box.outside / "upper" / "starts").read_text() == "start\n" * 2
    copied = [line.message for line in box.log() if "is copied, not moved" in line.message]
    assert len(copied) == 2
    assert all(f"the upperdir {box.home}/upper is copied" in message for message in copied)


def test_a_rescue_leaves_it_where_it_is(engine: Engine) -> None:
    box = Box(engine, "persistent-rescued")

    assert box.start(archive_to="relative") == "start\n"
    assert box.start(archive_to="relative") == "start\n" * 2

    errors = [line.message for line in box.log() if line.level == "error"]
    assert len(errors) == 2
    said = f"; its changes stay in {box.home}/upper, which the engine does not delete"
    assert all(error.endswith(said) for error in errors)
    assert not (box.outside / "rescue").exists()
