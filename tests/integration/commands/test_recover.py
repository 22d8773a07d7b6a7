"""What containers asked for whose hook never ran is saved, once, and nothing else is touched."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.commands.check.hook_files import HookFile
from archive_overlay.commands.recover import command
from archive_overlay.commands.recover.configuration import Configuration
from archive_overlay.commands.recover.running import Running
from archive_overlay.commands.recover.stores import Store
from archive_overlay.hook.saved import Saved
from archive_overlay.log import Log
from archive_overlay.settings import Settings
from tests.support import hooks, tools

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ID = "ab12" * 16
OTHER = "cd34" * 16


class Messages:
    """A sink of log messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def write(self, level: str, message: str) -> None:
        """Keep one."""
        self.said.append(message)


class Containers:
    """A store of containers that were running when the host lost power: nothing is mounted, and nobody runs.

    Args:
        directory: an empty one.
    """

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.archives = directory / "archives"
        self.path = self.store / "overlay-containers"
        for made in (self.path, self.store / "overlay", self.archives):
            made.mkdir(parents=True)
        self.path.chmod(0o700)
        self.messages = Messages()
        self.settings = Settings(fsync=False)
        self._records: list[dict[str, Any]] = []

    def userdata(self, container: str = ID) -> Path:
        return self.path / container / "userdata"

    def upper(self, archive: str, container: str = ID) -> Path:
        return self.userdata(container) / "overlay" / archive / "upper"

    def add(self, *archives: str, container: str = ID, **keys: object) -> None:
        """Add a container with an archive of each of some mounts; in each upperdir is a file with its name."""
        self.userdata(container).mkdir(parents=True)
        self._records.append({"id": container, "layer": container})
        (self.path / "containers.json").write_text(json.dumps(self._records))
        self.start(*archives, container=container, **keys)

    def start(self, *archives: str, container: str = ID, **keys: object) -> None:
        """Do what the engine does when it starts a container: its spec and its upperdirs are new."""
        mounts: list[Mapping[str, Any]] = []
        annotations: dict[str, str] = {}
        for archive in archives:
            upper = self.upper(archive, container)
            upper.mkdir(parents=True)
            (upper / archive).write_text("made\n")
            mounts.append(
                hooks.overlay_mount(
                    f"/{archive}", upper=upper, lowers=[self.store / "overlay"], userxattr=True
                )
            )
            said = {"mount_point": f"/{archive}", "archive_to": self.archives / f"{container[:4]}-{archive}"}
            annotations.update(hooks.annotations(archive, **{**said, **keys}))
        hooks.Bundle(self.userdata(container), mounts=mounts, annotations=annotations)
        self.date(container, time.time() - 3600)

    def date(self, container: str, seconds: float) -> None:
        os.utime(self.userdata(container) / "config.json", (seconds, seconds))

    def recover(self, *, dry_run: bool = False, when: Mapping[str, Any] = {}) -> int:
        """Run the command, and give its exit status."""
        hook = HookFile(path="/hook.json", program="/usr/bin/archive_overlay", when=when)
        return command.recover(
            Store(root=str(self.store)),
            [Configuration(path=hook.path, settings=self.settings, hook=hook)],
            Log("info", [self.messages]),
            dry_run=dry_run,
        )

    def saved(self) -> dict[str, list[str]]:
        """Give the archives that there are, and what is in them."""
        return {path.name: sorted(os.listdir(path)) for path in sorted(self.archives.iterdir())}


@pytest.fixture
def containers(tmp_path: Path) -> Containers:
    """An empty store."""
    return Containers(tmp_path)


def test_all_that_is_left_is_saved_once(containers: Containers, capfd: pytest.CaptureFixture[str]) -> None:
    containers.add("data", "more")
    containers.add("data", container=OTHER)

    assert containers.recover() == 0
    assert containers.saved() == {"ab12-data": ["data"], "ab12-more": ["more"], "cd34-data": ["data"]}
    assert capfd.readouterr().out.splitlines() == [
        "container ab12ab12ab12: archive data of /data saved",
        "container ab12ab12ab12: archive more of /more saved",
        "container cd34cd34cd34: archive data of /data saved",
    ]

    (containers.archives / "ab12-data/data").unlink()
    assert containers.recover() == 0
    assert containers.saved()["ab12-data"] == []
    assert capfd.readouterr().out == "Nothing is left to recover.\n"


def test_a_dry_run_says_what_would_be_saved_and_does_nothing(
    containers: Containers, capfd: pytest.CaptureFixture[str]
) -> None:
    containers.add("data")

    assert containers.recover(dry_run=True) == 0

    assert containers.saved() == {}
    assert (
        capfd.readouterr().out
        == f"container ab12ab12ab12: archive data of /data would be saved to {containers.archives}/ab12-data\n"
    )
    containers.recover()
    assert list(containers.saved()) == ["ab12-data"]


def test_what_the_hook_has_saved_is_not_saved_again(containers: Containers) -> None:
    containers.add("data", "more")
    assert hooks.run_hook(b"", f"--bundle={containers.userdata()}").status == 0
    (containers.archives / "ab12-data/data").unlink()

    containers.recover()

    assert containers.saved()["ab12-data"] == []


def test_of_a_hook_that_was_killed_the_rest_is_saved(containers: Containers) -> None:
    containers.add("data", "more")
    mark = Saved(str(containers.userdata()))
    mark.add("data")
    mark.close()

    containers.recover()

    assert containers.saved() == {"ab12-more": ["more"]}


def test_what_was_saved_of_an_earlier_start_says_nothing_of_this_one(containers: Containers) -> None:
    containers.add("data")
    containers.recover()
    containers.userdata().joinpath("config.json").unlink()
    containers.upper("data").joinpath("data").rename(containers.upper("data") / "second")
    containers.start("more")
    containers.date(ID, time.time() - 1800)

    containers.recover()

    assert containers.saved() == {"ab12-data": ["data"], "ab12-more": ["more"]}


def test_a_failure_costs_the_others_nothing_and_the_next_run_tries_again(containers: Containers) -> None:
    containers.add("data", "more")
    containers.add("data", container=OTHER)
    target = containers.archives / "ab12-data"
    target.write_text("in the way")

    assert containers.recover() == 1
    assert sorted(os.listdir(containers.archives)) == ["ab12-data", "ab12-more", "cd34-data"]

    target.unlink()
    assert containers.recover() == 0
    assert containers.saved()["ab12-data"] == ["data"]


def test_a_damaged_spec_is_said_and_costs_the_others_nothing(containers: Containers) -> None:
    containers.add("data")
    containers.add("data", container=OTHER)
    (containers.userdata() / "config.json").write_bytes(b"")

    assert containers.recover() == 1

    assert list(containers.saved()) == ["cd34-data"]
    assert any("ab12" in said and "not valid JSON" in said for said in containers.messages.said)


def test_containers_that_never_started_or_ask_for_nothing_are_passed_over(containers: Containers) -> None:
    containers.add("data")
    containers.add(container=OTHER)
    (containers.userdata() / "config.json").unlink()

    assert containers.recover() == 0

    assert containers.saved() == {}
    assert containers.messages.said == []


def test_a_container_whose_upperdir_the_engine_has_deleted_is_passed_over(containers: Containers) -> None:
    containers.add("data")
    (containers.upper("data") / "data").unlink()
    containers.upper("data").rmdir()

    assert containers.recover() == 0

    assert (containers.saved(), containers.messages.said) == ({}, [])


def test_containers_for_which_no_configuration_is_are_passed_over(containers: Containers) -> None:
    containers.add("data")

    containers.recover(when={"annotations": {r"\.other\.mount-point$": ".*"}})
    assert containers.saved() == {}

    containers.recover(when={"annotations": {r"\.data\.mount-point$": "^/data$", "method|archive-to": ""}})
    assert list(containers.saved()) == ["ab12-data"]


def test_the_policy_of_the_configuration_holds(containers: Containers, tmp_path: Path) -> None:
    containers.add("data")
    containers.settings = Settings(fsync=False, allowed=(str(tmp_path / "elsewhere"),))

    assert containers.recover() == 1

    assert containers.saved() == {}


def test_what_fails_is_kept_once_in_the_rescue_directory(containers: Containers, tmp_path: Path) -> None:
    containers.add("data")
    (containers.archives / "ab12-data").write_text("in the way")
    containers.settings = Settings(fsync=False, rescue_dir=str(tmp_path / "rescue"))

    assert containers.recover() == 1
    assert containers.recover() == 0

    assert sorted(os.listdir(tmp_path / "rescue" / ID)) == ["data", "data.json"]


@pytest.mark.parametrize("method", ["move", "copy"])
def test_the_root_file_system_stays_for_the_next_start(
    containers: Containers, tmp_path: Path, method: str
) -> None:
    tools.need_root()
    layer, lower = containers.store / "overlay" / ID, containers.store / "overlay" / OTHER
    for directory in (layer / "diff/made", lower / "diff", containers.store / "overlay/l"):
        directory.mkdir(parents=True)
    (containers.store / "overlay/l/A").symlink_to(f"../{OTHER}/diff")
    (layer / "lower").write_text("l/A")
    containers.add()
    hooks.Bundle(
        containers.userdata(),
        annotations=hooks.annotations(
            "root", mount_point="/", archive_to=containers.archives / "root", method=method
        ),
        root=layer / "merged",
    )
    containers.date(ID, time.time() - 3600)
    containers.settings = Settings(fsync=False, rescue_dir=str(tmp_path / "rescue"))

    if method == "copy":
        (containers.archives / "root").write_text("in the way")
        assert containers.recover() == 1
        assert os.listdir(tmp_path / "rescue" / ID / "root") == ["made"]
    else:
        assert containers.recover() == 0
        assert containers.saved() == {"root": ["made"]}

    assert os.listdir(layer / "diff") == ["made"]


def test_an_upperdir_into_which_another_container_writes_is_left_alone(
    containers: Containers,
) -> None:
    tools.need_root()
    containers.add("data", "more")
    upper = containers.upper("data")
    options = f"lowerdir={containers.store}/overlay,upperdir={upper},workdir={upper.with_name('work')}"
    upper.with_name("work").mkdir()
    # It lasts as long as its standard input.
    script = 'mount -t overlay -o "$0" overlay "$1" && echo && exec cat'
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, options, containers.archives],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"\n"

        assert containers.recover() == 1
        other.communicate()

    assert containers.saved() == {"ab12-more": ["more"]}
    assert "is still in use" in containers.messages.said[0]
    assert containers.recover() == 0
    assert list(containers.saved()) == ["ab12-data", "ab12-more"]


def test_nothing_is_saved_while_the_hook_is_at_work(containers: Containers) -> None:
    containers.add("data")
    directory = os.open(containers.userdata(), os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)

    assert containers.recover() == 0

    os.close(directory)
    assert containers.saved() == {}


def test_the_hook_waits_for_a_recovery_and_does_not_save_it_again(containers: Containers) -> None:
    containers.add("data", "more")
    mark = Saved(str(containers.userdata()))
    assert mark.lock()
    found: list[hooks.Result] = []
    hooks.keep_warm()
    hook = threading.Thread(
        target=lambda: found.append(hooks.run_hook(b"", f"--bundle={containers.userdata()}"))
    )

    hook.start()
    time.sleep(0.2)
    before = containers.saved()
    mark.add("data")
    mark.close()
    hook.join()

    assert before == {}
    assert found[0].status == 0
    assert containers.saved() == {"ab12-more": ["more"]}


def test_nobody_makes_the_hook_wait_by_locking_a_bundle_that_is_in_no_store(
    containers: Containers, tmp_path: Path
) -> None:
    containers.add("data")
    elsewhere = tmp_path / "bundle"
    elsewhere.mkdir()
    containers.userdata().joinpath("config.json").rename(elsewhere / "config.json")
    directory = os.open(elsewhere, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)

    done = hooks.run_hook(b"", f"--bundle={elsewhere}")

    os.close(directory)
    assert (done.status, list(containers.saved())) == (0, ["ab12-data"])
    assert not any("waiting" in line.message for line in done.lines())


def test_a_container_that_just_starts_is_looked_at_again(
    containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    containers.add("data")
    containers.date(ID, time.time())
    # The engine goes on meanwhile.
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        containers.date(ID, time.time() + 1)

    monkeypatch.setattr("archive_overlay.commands.recover.command.time.sleep", nap)

    assert containers.recover() == 0

    assert len(naps) == 1
    assert containers.saved() == {}


@pytest.mark.parametrize("happens", ["started again", "removed"])
def test_nothing_is_published_of_a_container_that_was_started_or_removed_meanwhile(
    containers: Containers, happens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    containers.add("data", method="tar")
    from archive_overlay.methods import tar

    write = tar.write

    def written_meanwhile(*arguments: Any) -> object:
        result = write(*arguments)
        spec = containers.userdata() / "config.json"
        if happens == "removed":
            spec.unlink()
        else:
            containers.date(ID, time.time())
        return result

    monkeypatch.setattr(tar, "write", written_meanwhile)

    assert containers.recover() == 1

    assert containers.saved() == {}


def test_a_store_into_which_others_write_is_refused(containers: Containers) -> None:
    containers.add("data")
    containers.path.chmod(0o777)

    with pytest.raises(Exception, match="others can write to"):
        containers.recover()

    assert containers.saved() == {}


class Processes:
    """A /proc with made-up processes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.add("self", namespace="1")

    def add(
        self, name: str, *, command: str = "", cgroup: str = "0::/", namespace: str = "1", table: str = ""
    ) -> None:
        process = self.path / name
        (process / "ns").mkdir(parents=True)
        (process / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (process / "cmdline").write_text(command.replace(" ", "\0"))
        (process / "cgroup").write_text(f"{cgroup}\n")
        (process / "mountinfo").write_text(f"{table}\n")


LAYER = "ef56" * 16


@pytest.mark.parametrize(
    ("shown", "runs"),
    [
        ({"command": f"/usr/bin/conmon --api-version 1 -c {ID} -u {ID}"}, True),
        ({"command": f"/usr/bin/podman --root /s container cleanup {ID}"}, True),
        ({"command": f"/usr/bin/tail -f /s/overlay-containers/{ID}/userdata/ctr.log"}, False),
        ({"command": f"/usr/bin/conmon -c {OTHER}"}, False),
        ({"cgroup": f"0::/machine.slice/libpod-{ID}.scope/container"}, True),
        (
            {
                "namespace": "2",
                "table": f"9 8 0:27 /c/overlay-containers/{ID}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw",
            },
            True,
        ),
        (
            {
                "namespace": "2",
                "table": f"9 8 0:50 / / rw - overlay overlay rw,lowerdir=/s/l/A,upperdir=/s/overlay/{LAYER}/diff,workdir=/w",
            },
            True,
        ),
        # A namespace that was copied from the engine's while the container ran.
        (
            {
                "namespace": "2",
                "table": f"9 8 0:50 / /s/overlay/{LAYER}/merged rw - overlay overlay rw,upperdir=/s/overlay/{LAYER}/diff\n"
                f"10 8 0:51 / /s/overlay-containers/{ID}/userdata/shm rw - tmpfs shm rw",
            },
            False,
        ),
    ],
    ids=["conmon", "cleanup", "log", "other", "cgroup", "file", "root", "copy"],
)
def test_processes_show_whether_a_container_runs(tmp_path: Path, shown: dict[str, str], runs: bool) -> None:
    processes = Processes(tmp_path)
    processes.add("12", **shown)

    assert Running(str(tmp_path)).has(ID, LAYER) == runs
