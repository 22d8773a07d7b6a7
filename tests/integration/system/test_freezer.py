"""Real control groups: what is paused goes on, whatever becomes of who has paused it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from archive_overlay.system import freezer, mountinfo
from archive_overlay.system.freezer import Group, Pause
from tests.support import tools
from tests.support.engines import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINER = secrets.token_hex(32)
PAUSE = """
import sys, time
from archive_overlay.system.freezer import Group, Pause
with Pause(Group(directory=sys.argv[1], unified=sys.argv[2] == "True")):
    print(flush=True)
    time.sleep(1000)
"""


def _hierarchy(unified: bool) -> str:
    mounts = mountinfo.read()
    if unified:
        found = mounts.of_type("cgroup2")
    else:
        found = [mount for mount in mounts.of_type("cgroup") if "freezer" in mount.options]
    return found[0].mount_point if found else ""


@pytest.fixture(params=[True, False], ids=["v2", "v1"])
def group(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the directory of a control group that is called after a container and has a process."""
    tools.need_root()
    directory = f"{_hierarchy(request.param) or _hierarchy(not request.param)}/libpod-{CONTAINER}.scope"
    try:
        os.makedirs(f"{directory}/inner")
    except OSError as error:
        tools.cannot_run(f"cannot make the control group {directory}: {error}")
    process = subprocess.Popen(["sleep", "1000"])
    try:
        with open(f"{directory}/inner/cgroup.procs", "w") as file:
            file.write(str(process.pid))
        yield directory
    finally:
        process.kill()
        for switch, thaw in (("cgroup.freeze", "0"), ("freezer.state", "THAWED")):
            if os.path.exists(f"{directory}/{switch}"):  # a test that fails must not leave it paused
                with open(f"{directory}/{switch}", "w") as file:
                    file.write(thaw)
        process.wait()
        for path in (f"{directory}/inner", directory):
            wait_until(partial(_removed, path), "the control group stays")


def _removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


def found() -> Group:
    group = freezer.group_of(CONTAINER)
    assert group
    return group


def test_the_topmost_group_that_is_called_after_a_container_is_found(group: str) -> None:
    assert found().directory == group
    assert freezer.group_of(secrets.token_hex(32)) is None


def test_processes_are_paused_and_go_on(group: str) -> None:
    with Pause(found()) as pause:
        assert found().has_stopped()
        pause.end()
        assert not found().is_asked()
    assert not found().is_asked()


def test_what_somebody_has_paused_stays_paused(group: str) -> None:
    with Pause(found()):
        with Pause(found()):
            pass
        assert found().has_stopped()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_go_on_when_who_has_paused_them_is_killed(group: str, end: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PAUSE, found().directory, str(found().unified)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as pausing:
        assert pausing.stdout
        assert pausing.stdout.readline() == b"\n"
        assert found().has_stopped()
        os.killpg(pausing.pid, end)
    wait_until(lambda: not found().is_asked(), "they stay paused")
