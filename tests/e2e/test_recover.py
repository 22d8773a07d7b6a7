"""A host that loses power, and a conmon that is killed: what containers had changed is saved before podman deletes it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import read_directory
from tests.support import hooks
from tests.support.engines import HOOK, HOOKS_DIR, IMAGE, USER, Engine, wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.support.engines import Machine

FLAVOURS = [(False, "native"), (False, "fuse"), (True, "native"), (True, "fuse")]
IDS = ["rootful-native", "rootful-fuse", "rootless-native", "rootless-fuse"]

COMMAND = """
    echo made >/vol/made
    rm -f /img/tree/deleted
    echo made >/img/tree/made
    echo made >/tree/made
    touch /ready
    while :; do sleep 1000; done
"""


@pytest.fixture(autouse=True)
def alone(machine: Machine) -> None:
    """Leave nothing in the stores: what other tests have left would be recovered, too."""
    for rootless, store in FLAVOURS:
        Engine(machine, rootless, store, "crun").podman("rm", "--all", "--force", "--time=0")


class Lost:
    """A container with changes in an image, a volume and its root file system, which runs.

    Args:
        engine: runs it.
        name: of the container.
        image: annotations of the archive of the image.
    """

    def __init__(self, engine: Engine, name: str, **image: str) -> None:
        self.engine = engine
        self.name = name
        self.out, volume = (engine.new_directory(f"{name}-{each}") for each in ("out", "volume"))
        places = {"vol": "/vol", "img": "/img", "root": "/"}
        annotations: dict[str, str] = {}
        for archive, place in places.items():
            annotations.update(
                hooks.annotations(
                    archive,
                    mount_point=place,
                    archive_to=f"{self.out}/{archive}",
                    success=f"{self.out}/{archive}.success",
                    **(image if archive == "img" and image else {"if_exists": "backup", "method": "copy"}),
                )
            )
        engine.run(
            name,
            f"--volume={volume}:/vol:O",
            f"--mount=type=image,source={IMAGE},destination=/img,rw=true",
            command=COMMAND,
            annotations=annotations,
            detach=True,
        )
        self.wait_until_ready()
        self.id = engine.inspect(name, "Id")
        self._config = engine.machine.outside(engine.inspect(name, "OCIConfigPath"))
        self.process = engine.inspect(name, "State.Pid")

    def wait_until_ready(self) -> None:
        wait_until(
            lambda: (
                self.engine.podman("exec", self.name, "test", "-e", "/ready", check=False).returncode == 0
            ),
            "the container does not begin",
        )

    def saved(self) -> list[str]:
        return sorted(os.listdir(self.engine.machine.outside(self.out)))

    def expect_everything(self) -> None:
        """See that all three archives are there, once, and what is in them."""
        assert self.saved() == ["img", "img.success", "root", "root.success", "vol", "vol.success"]
        image = read_directory(self.engine, f"{self.out}/img")
        assert sorted(name for name in image if name.startswith("tree/")) == ["tree/deleted", "tree/made"]
        assert image["tree/deleted"].is_whiteout
        assert image["tree/made"].content == b"made\n"
        outside = self.engine.machine.outside(self.out)
        assert (outside / "vol/made").read_text() == "made\n"
        assert (outside / "root/tree/made").read_text() == "made\n"
        assert stat.S_ISREG((outside / "root/ready").lstat().st_mode)

    def long_ago(self) -> None:
        """Have it started an hour ago: recover waits if a container may be starting."""
        status = self._config.stat()
        os.utime(self._config, (status.st_atime - 3600, status.st_mtime - 3600))

    def kill(self, *programs: str) -> None:
        """Kill processes that belong to it, by what their programs are called, and wait until they are gone."""
        found = processes(self.engine.machine, *programs)
        ours = [number for number, text in found.items() if self.id in text or self.engine.home in text]
        kill(self.engine.machine, *ours)


def processes(machine: Machine, *programs: str) -> dict[str, str]:
    """Give the processes of some programs: their command lines, by their ids."""
    found = {}
    for process in machine.outside("/proc").iterdir():
        if process.name.isdecimal():
            try:
                text = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended
            if os.path.basename(text.partition("\0")[0]) in programs:
                found[process.name] = text
    return found


def in_user_namespaces(machine: Machine) -> list[str]:
    """Give the processes of the user that keep the namespaces in which everything is mounted."""
    found = []
    for process in machine.outside("/proc").iterdir():
        if process.name.isdecimal():
            try:
                namespace = os.readlink(process / "ns/user")
                if process.stat().st_uid == USER and namespace != os.readlink("/proc/self/ns/user"):
                    found.append(process.name)
            except OSError:
                continue  # it has ended
    return found


def kill(machine: Machine, *numbers: str) -> None:
    for number in numbers:
        machine.run("busybox", "kill", "-KILL", number, check=False)
    left = [machine.outside(f"/proc/{number}") for number in numbers]
    wait_until(lambda: not any(process.exists() for process in left), "a process does not end")


def power_off(*lost: Lost) -> None:
    """Leave of some containers of one engine what a reboot leaves."""
    engine = lost[0].engine
    machine = engine.machine
    for each in lost:
        each.kill("conmon")
        kill(machine, each.process)
        each.kill("fuse-overlayfs")
    if engine.rootless:
        kill(machine, *in_user_namespaces(machine))
    table = machine.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    for place in reversed([line.split()[4] for line in table]):
        if place.startswith(f"{engine.home}/storage"):
            machine.run("umount", "-l", place)
    for each in lost:
        machine.run("rm", "-rf", f"/run/crun/{each.id}")
    owner = str(USER if engine.rootless else 0)
    machine.run("rm", "-rf", f"{engine.home}/run")
    machine.run("install", "-d", "-m", "0700", "-o", owner, "-g", owner, f"{engine.home}/run")


def recover(engine: Engine, *options: str, unshare: bool = False) -> subprocess.CompletedProcess[str]:
    command = (HOOK, "recover", f"--hooks-dir={HOOKS_DIR}", *engine.places, *options)
    if unshare:
        return engine.podman("unshare", *command, check=False)
    return engine.machine.run(
        *command, user=USER if engine.rootless else 0, environment=engine.environment, check=False
    )


@pytest.mark.parametrize(("rootless", "store"), FLAVOURS, ids=IDS)
def test_after_a_power_failure_everything_is_saved_once(machine: Machine, rootless: bool, store: str) -> None:
    engine = Engine(machine, rootless, store, "crun")
    lost, stopped = Lost(engine, "lost"), Lost(engine, "stopped")
    engine.podman("stop", "--time=0", stopped.name)
    engine.podman("container", "cleanup", stopped.name, check=False)
    stopped.expect_everything()
    lost.long_ago()
    power_off(lost)

    listed = recover(engine, "--dry-run")
    assert lost.saved() == []
    done = recover(engine)
    again = recover(engine)

    assert (listed.returncode, done.returncode, again.returncode) == (0, 0, 0), done.stderr
    assert len(listed.stdout.splitlines()) == len(done.stdout.splitlines()) == 3
    assert again.stdout == "Nothing is left to recover.\n"
    lost.expect_everything()
    stopped.expect_everything()

    # The container can be started again, and its next stop is a stop like any other.
    engine.podman("start", lost.name)
    lost.wait_until_ready()
    engine.podman("stop", "--time=0", lost.name)
    engine.podman("container", "cleanup", lost.name, check=False)
    assert "img.~1~" in lost.saved()
    engine.podman("rm", lost.name, stopped.name)


@pytest.mark.parametrize("rootless", [False, True], ids=["rootful", "rootless"])
def test_the_next_container_finds_what_was_recovered(machine: Machine, rootless: bool) -> None:
    engine = Engine(machine, rootless, "native", "crun")
    lost = Lost(engine, "circle", load_as="localhost/circle:main", method="oci")
    lost.long_ago()
    power_off(lost)

    done = recover(engine)

    assert done.returncode == 0, done.stderr
    options = (
        "--rm",
        "--cgroups=disabled",
        "--mount=type=image,source=localhost/circle:main,destination=/img",
    )
    shown = engine.podman("run", *options, IMAGE, "cat", "/img/tree/made", "/img/tree/kept").stdout
    assert shown == "made\nkept of the image\n"
    engine.podman("rm", lost.name)


def test_what_was_deleted_since_a_snapshot_does_not_come_back(machine: Machine) -> None:
    # Where nobody can say any more which image it was.
    engine = Engine(machine, True, "fuse", "crun")
    lost = Lost(engine, "snapshot", method="oci")
    lost.long_ago()
    snapshot = (HOOK, "snapshot", "--no-pause", f"--hooks-dir={HOOKS_DIR}", *engine.places, lost.name, "img")
    engine.podman("unshare", *snapshot)
    engine.podman("exec", lost.name, "rm", "/img/tree/made")
    power_off(lost)

    done = recover(engine)

    assert done.returncode == 0, done.stderr
    shown = machine.run(HOOK, "diff", f"{lost.out}/img:latest").stdout.split()
    assert shown == ["D", "-", "tree/made"]
    engine.podman("rm", lost.name)


@pytest.mark.parametrize(("rootless", "store"), FLAVOURS[::3], ids=IDS[::3])
def test_a_container_without_its_monitor_is_saved_when_it_has_ended(
    machine: Machine, rootless: bool, store: str
) -> None:
    engine = Engine(machine, rootless, store, "crun")
    lost = Lost(engine, "alone")
    lost.long_ago()
    lost.kill("conmon")

    runs = recover(engine, unshare=rootless)
    assert (runs.returncode, runs.stdout, lost.saved()) == (0, "Nothing is left to recover.\n", [])

    kill(machine, lost.process)
    if rootless:
        outside = recover(engine)
        assert outside.returncode == 1
        assert "podman unshare archive_overlay recover" in outside.stderr
    done = recover(engine, unshare=rootless)

    assert done.returncode == 0, done.stderr
    lost.expect_everything()
    # podman 5.4 complains the first time that there is no conmon.
    engine.podman("rm", "--force", "--time=0", lost.name, check=False)
    engine.podman("rm", "--force", "--ignore", "--time=0", lost.name)
