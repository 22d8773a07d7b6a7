"""A process that serves a container's overlays, killed while the container runs: by the kernel, if memory is short."""

from __future__ import annotations

import stat

import pytest

from tests.support import hooks
from tests.support.engines import FUSE_OVERLAYFS, Engine, Machine, wait_until


def kill_server(engine: Engine, mount_point: str) -> None:
    """Kill the process that serves a mount point."""
    for process in engine.machine.outside("/proc").iterdir():
        if process.name.isdecimal():
            try:
                arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it has ended
            if arguments[0] == FUSE_OVERLAYFS and mount_point in arguments:
                engine.machine.run("busybox", "kill", "-KILL", process.name)
                return
    raise AssertionError(f"no process serves {mount_point}")


@pytest.mark.parametrize("rootless", [False, True], ids=["rootful", "rootless"])
def test_what_was_changed_is_saved(machine: Machine, rootless: bool) -> None:
    engine = Engine(machine, rootless, "fuse", "crun")
    name = "killed"
    volume, out = (engine.new_directory(f"killed-{each}") for each in ("volume", "out"))
    engine.run(
        name,
        f"--volume={volume}:/data:O",
        command="echo made > /data/made; rm /tree/deleted; echo made > /tree/made; while :; do sleep 1000; done",
        annotations={
            **hooks.annotations("data", mount_point="/data", archive_to=f"{out}/data", method="copy"),
            **hooks.annotations("root", mount_point="/", archive_to=f"{out}/root", method="copy"),
        },
        detach=True,
    )
    wait_until(
        lambda: engine.podman("exec", name, "test", "-e", "/tree/made", check=False).returncode == 0,
        "the container does not begin",
    )
    spec = engine.spec(name)
    (merged,) = [mount["source"] for mount in spec["mounts"] if mount["destination"] == "/data"]

    for mount_point in (merged, spec["root"]["path"]):
        kill_server(engine, mount_point)
    engine.podman("kill", name, check=False)
    engine.podman("container", "cleanup", name, check=False)

    saved = machine.outside(out)
    assert [entry.name for entry in (saved / "data").iterdir()] == ["made"]
    assert (saved / "root/tree/made").read_text() == "made\n"
    assert stat.S_ISCHR((saved / "root/tree/deleted").lstat().st_mode)
