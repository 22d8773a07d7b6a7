"""Archives of containers that run, and go on: what they have at that moment is saved, and at the next one what has changed."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_examples import EXAMPLES, PROGRAM, values
from tests.e2e.test_recover import FLAVOURS, IDS
from tests.support import hooks
from tests.support.engines import HOOK, HOOKS_DIR, IMAGE, Engine, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.engines import Machine

UNIT = EXAMPLES / "archive_overlay-snapshot@.service"

# Each line is in one file before it is in the other, and neither is ever closed.
COMMAND = """
    echo first >/img/tree/first
    echo gone >/img/tree/later
    rm -f /img/tree/deleted
    echo first >/tree/first
    echo first >/vol/first
    exec 3>/img/tree/one 4>/img/tree/two
    for i in 1 2 3; do echo >&3; echo >&4; done
    touch /tmp/ready
    while [ -e /img/tree/busy ]; do echo >&3; echo >&4; done
    while :; do sleep 1000; done
"""


class Running:
    """A container whose image, volume and root file system are to be saved.

    Args:
        engine: runs it.
        name: of the container.
        root: more annotations of the root file system's archive.
        keys: the same of the image's.
    """

    def __init__(self, engine: Engine, name: str, root: Mapping[str, str] = {}, **keys: str) -> None:
        self.engine = engine
        self.name = name
        self.out, volume = (engine.new_directory(f"{name}-{each}") for each in ("out", "volume"))
        annotations = hooks.annotations(
            "img", mount_point="/img", method="oci", archive_to=f"{self.out}/layout:img", **keys
        )
        annotations |= hooks.annotations(
            "root", mount_point="/", method="oci", archive_to=f"{self.out}/layout:root", **root
        )
        annotations |= hooks.annotations(
            "vol",
            mount_point="/vol",
            method="move",
            archive_to=f"{self.out}/vol",
            success=f"{self.out}/vol.success",
        )
        engine.run(
            name,
            f"--volume={volume}:/vol:O",
            f"--mount=type=image,source={IMAGE},destination=/img,rw=true",
            "--tmpfs=/tmp",
            command=f"{'' if engine.rootless else 'touch /img/tree/busy'}{COMMAND}",
            annotations=annotations,
            detach=True,
        )
        self.wait_until_ready()
        self.id = engine.inspect(name, "Id")

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.does("test -e /tmp/ready"), "the container does not begin")

    def does(self, command: str) -> bool:
        return self.engine.podman("exec", self.name, "sh", "-ec", command, check=False).returncode == 0

    def snapshot(self, *arguments: str, container: str = "") -> subprocess.CompletedProcess[str]:
        command = (
            HOOK,
            "snapshot",
            f"--hooks-dir={HOOKS_DIR}",
            *self.engine.places,
            container or self.name,
            *arguments,
        )
        if self.engine.rootless:
            return self.engine.podman("unshare", *command, check=False)
        return self.engine.machine.run(*command, environment=self.engine.environment, check=False)

    def stop(self) -> None:
        self.engine.podman("stop", "--time=0", self.name)
        self.engine.podman("container", "cleanup", self.name, check=False)

    def state(self, tag: str) -> Path:
        """Extract the last revision of a tag."""
        made = f"{self.out}/{tag}-{len(os.listdir(self.engine.machine.outside(self.out)))}"
        self.engine.machine.run(HOOK, "extract", f"{self.out}/layout:{tag}", made)
        return self.engine.machine.outside(made)

    def revisions(self, tag: str) -> int:
        listed = self.engine.machine.run(HOOK, "log", f"{self.out}/layout:{tag}").stdout
        return len([line for line in listed.splitlines()[1:] if line.split()[0].isdecimal()])


def of_the_timer(running: Running, key: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the unit that the example's timer starts."""
    (command,) = values(UNIT.read_text(), "Service", key)
    words = [word.replace("$$", "$").replace("%i", running.name) for word in shlex.split(command)]
    if words[0] == PROGRAM:
        words[:2] = [HOOK, "snapshot", f"--hooks-dir={HOOKS_DIR}", *running.engine.places]
    return running.engine.machine.run(*words, environment=running.engine.environment, check=False)


@pytest.mark.parametrize(("rootless", "store"), [*FLAVOURS[:2], FLAVOURS[3]], ids=[*IDS[:2], IDS[3]])
def test_snapshots_and_the_stop_after_them_each_save_what_has_changed(
    machine: Machine, rootless: bool, store: str
) -> None:
    engine = Engine(machine, rootless, store, "crun" if rootless else "runc")
    running = Running(engine, "snapped")
    how = ("--no-pause",) if rootless else ()
    archives = ("img", "root")

    written = int(engine.podman("exec", running.name, "stat", "-c", "%s", "/img/tree/two").stdout)
    first = running.snapshot(*how, *archives)
    assert first.returncode == 0, first.stderr
    state = running.state("img")
    one, two = ((state / f"tree/{name}").stat().st_size for name in ("one", "two"))
    assert two >= written, "what the kernel held back is missing"
    assert rootless or one - two in (0, 1), "it was not paused"
    assert (state / "tree/first").read_text() == "first\n"
    assert (running.state("root") / "tree/first").read_text() == "first\n"

    again = running.snapshot(*how, "root", container=running.id[:12])
    assert again.returncode == 0, again.stderr
    assert running.revisions("root") == 1, again.stderr
    assert "archive root has nothing new to save" in again.stdout

    assert running.does("rm /img/tree/later /tree/first; echo second >/img/tree/first")
    second = running.snapshot(*how, *archives)
    assert second.returncode == 0, second.stderr
    assert running.does("echo third >/img/tree/third; echo second >/tree/second")
    running.stop()

    state = running.state("img")
    assert (state / "tree/first").read_text() == "second\n"
    assert (state / "tree/third").read_text() == "third\n"
    assert not (state / "tree/later").exists()
    assert (running.revisions("img"), running.revisions("root")) == (3, 3)
    root = running.state("root")
    assert not (root / "tree/first").exists()
    assert (root / "tree/second").read_text() == "second\n"
    assert (machine.outside(running.out) / "vol/first").read_text() == "first\n"

    # The root file system goes on where it was, and so does its history.
    engine.podman("start", running.name)
    running.wait_until_ready()
    running.stop()
    assert running.revisions("root") == 4
    tags = machine.run(HOOK, "log", f"{running.out}/layout").stdout
    assert "root-" not in tags, tags
    engine.podman("rm", running.name)


def test_a_snapshot_takes_no_upperdir_away_and_pauses_nobody_for_good(machine: Machine) -> None:
    engine = Engine(machine, False, "native", "runc")
    running = Running(engine, "kept", root={"load_as": "localhost/kept:1"}, max_layers="nonsense")

    refused = running.snapshot()

    assert refused.returncode == 1
    assert "method move takes the upperdir away" in refused.stderr
    assert "max-layers" in refused.stderr
    assert running.does("test -e /vol/first && test -e /img/tree/first")
    assert running.revisions("root") > 0
    assert engine.podman("image", "exists", "localhost/kept:1", check=False).returncode == 1
    assert engine.inspect(running.name, "State.Status") == "running"
    assert of_the_timer(running, "ExecCondition").returncode == 0
    assert "max-layers" in of_the_timer(running, "ExecStart").stderr
    unknown = running.snapshot("nothing")
    assert "asks for no archive nothing" in unknown.stderr
    running.stop()
    # Nothing has changed since, but what the snapshot could not load is loaded.
    engine.podman("image", "exists", "localhost/kept:1")
    stopped = running.snapshot("root")
    assert stopped.returncode == 1
    assert "is not running" in stopped.stderr
    assert of_the_timer(running, "ExecCondition").returncode == 1
    engine.podman("rm", running.name)
    engine.podman("rmi", "localhost/kept:1")
