"""Containers that want something of the host archived that is not theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import hooks
from tests.support.engines import FUSE_OVERLAYFS, HERE, IMAGE_ROOT, Engine, wait_until

if TYPE_CHECKING:
    from tests.support.engines import Machine

FORGERS_IMAGE = "localhost/forger:1"

# A shell under the name of the program that serves overlays, with the command line that the program would have.
FORGER = """
    exec -a sh {program} -c 'echo > /ready; while :; do sleep 1000; done' \
        -o lowerdir=/x,upperdir={upper},workdir=/y {claims}
"""


@pytest.fixture
def secret(machine: Machine) -> str:
    """Make a directory of the host's that is no container's business."""
    path = f"{HERE}/secret"
    machine.outside(path).mkdir(exist_ok=True)
    (machine.outside(path) / "shadow").touch()
    return path


@pytest.fixture(params=["native", "fuse"])
def engine(request: pytest.FixtureRequest, machine: Machine) -> Engine:
    """Give a rootful podman with an image in which the program that serves overlays is another one."""
    made = Engine(machine, False, request.param, "runc")
    tar, program = f"{HERE}/forger.tar", f".{FUSE_OVERLAYFS}"
    if not machine.outside(tar).exists():
        machine.run(
            *("sh", "-ec"),
            f"""
                cp -r {IMAGE_ROOT} {HERE}/forger
                cd {HERE}/forger
                mkdir -p usr/bin
                cp bin/busybox {program}
                tar -cf {tar} .
            """,
        )
    made.podman("import", tar, FORGERS_IMAGE)
    return made


def forge(engine: Engine, name: str, *options: str, claims: str, upper: str) -> None:
    """Run a container whose program claims to serve a mount."""
    engine.run(
        name,
        *options,
        image=FORGERS_IMAGE,
        command=FORGER.format(program=FUSE_OVERLAYFS, upper=upper, claims=claims),
        annotations={},
        detach=True,
    )
    wait_until(
        lambda: engine.podman("exec", name, "test", "-e", "/ready", check=False).returncode == 0,
        "the forger does not begin",
    )


# What a container may be given; --pid=host puts it into the PID namespace of the hook.
OPTIONS = pytest.mark.parametrize("options", [(), ("--pid=host", "--privileged")], ids=["", "privileged"])


@OPTIONS
def test_no_container_has_a_directory_of_the_host_archived(
    engine: Engine, secret: str, options: tuple[str, ...]
) -> None:
    number = len(options)
    volume, out = (engine.new_directory(f"{name}-{number}") for name in ("forged", "forged-out"))
    forge(engine, f"forger-{number}", *options, claims=volume, upper=secret)

    engine.run(
        f"forger-other-{number}",
        f"--volume={volume}:/data",
        command="true",
        annotations=hooks.annotations("data", mount_point="/data", archive_to=f"{out}/data", method="copy"),
    )

    engine.podman("rm", "--force", "--time=0", f"forger-{number}")
    assert list(engine.machine.outside(out).iterdir()) == []


@OPTIONS
def test_no_container_has_something_else_archived_for_another_one(
    engine: Engine, secret: str, options: tuple[str, ...]
) -> None:
    number = len(options)
    volume, out = (engine.new_directory(f"{name}-{number}") for name in ("claimed", "claimed-out"))
    name = f"claimed-{number}"
    engine.run(
        name,
        f"--volume={volume}:/data:O",
        command="touch /data/made; while [ ! -e /data/end ]; do sleep 0.01; done; rm /data/end",
        annotations={
            **hooks.annotations("data", mount_point="/data", archive_to=f"{out}/data", method="copy"),
            **hooks.annotations("root", mount_point="/", archive_to=f"{out}/root", method="copy"),
        },
        detach=True,
    )
    spec = engine.spec(name)
    (claims,) = [mount["source"] for mount in spec["mounts"] if mount["destination"] == "/data"]
    forge(engine, f"claimer-{number}-data", *options, claims=claims, upper=secret)
    forge(engine, f"claimer-{number}-root", *options, claims=spec["root"]["path"], upper=secret)

    # It may end sooner than what is run in it, which is killed then.
    engine.podman("exec", name, "touch", "/data/end", check=False)
    engine.podman("wait", name)
    engine.podman("container", "cleanup", name, check=False)

    for each in ("data", "root"):
        engine.podman("rm", "--force", "--time=0", f"claimer-{number}-{each}")
    archives = engine.machine.outside(out)
    assert [entry.name for entry in (archives / "data").iterdir()] == ["made"]
    assert "shadow" not in [entry.name for entry in (archives / "root").iterdir()]
