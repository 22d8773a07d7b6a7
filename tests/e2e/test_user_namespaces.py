"""Containers whose root user is nobody on the host.

podman 5 mounts their root file system in a second place, which the spec names, in a mount namespace that its hooks
may or may not run in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.archives import Entry, read_tar
from tests.support import hooks
from tests.support.engines import HOOK, Engine, Machine

UIDMAP = "--uidmap=0:1000:2000"
AUTO = "--userns=auto"

# How often what a race decides is tried.
TRIES = 3

# podman 4.3 lets fuse-overlayfs show other owners than those with which it starts a container of --userns=auto.
KINDS = [
    pytest.param(rootless, store, option, id=f"{name}-{store}-{option[2:8]}")
    for name, rootless, store, options in (
        ("rootful", False, "native", (UIDMAP, AUTO)),
        ("rootful", False, "fuse", (UIDMAP,)),
        ("rootless", True, "native", (UIDMAP,)),
        ("rootless", True, "fuse", (UIDMAP,)),
    )
    for option in options
]


def run(engine: Engine, name: str, *options: str, command: str, podman_options: tuple[str, ...] = ()) -> str:
    """Run a container whose changes are to be saved.

    Returns:
        Where its archive is to be.
    """
    archive = f"{engine.new_directory(name)}/root.tar.gz"
    engine.run(
        name,
        *options,
        command=command,
        podman_options=podman_options,
        annotations=hooks.annotations("root", mount_point="/", archive_to=archive, method="tar.gz"),
    )
    return archive


def read(engine: Engine, archive: str) -> dict[str, Entry]:
    return read_tar(engine.machine.outside(archive))


@pytest.mark.parametrize("rm", [(), ("--rm",)], ids=["", "rm"])
@pytest.mark.parametrize(("rootless", "store", "option"), KINDS)
def test_the_root_file_system_is_saved(
    machine: Machine, rootless: bool, store: str, option: str, rm: tuple[str, ...]
) -> None:
    engine = Engine(machine, rootless, store, "crun")

    for number in range(TRIES):
        name = f"user-{option[2:8]}{len(rm)}-{number}"
        archive = run(engine, name, option, *rm, command="echo made > /tree/made; rm /tree/deleted")
        assert machine.outside(archive).exists(), machine.syslog()[-20:]
        saved = read(engine, archive)
        assert saved["tree/made"].content == b"made\n"
        assert saved["tree/made"].owner == (0, 0)
        assert saved["tree/deleted"].is_whiteout


def test_it_can_be_saved_by_hand_after_podman_has_unmounted_it(machine: Machine) -> None:
    engine = Engine(machine, False, "native", "crun")
    archive = run(engine, "user-by-hand", UIDMAP, command="echo made > /tree/made")
    machine.outside(archive).unlink()
    bundle = Path(engine.inspect("user-by-hand", "OCIConfigPath")).parent

    machine.run(HOOK, f"--bundle={bundle}", environment=engine.environment)

    assert read(engine, archive)["tree/made"].content == b"made\n"


@pytest.mark.parametrize("option", [UIDMAP, AUTO])
def test_what_lies_below_a_renamed_directory_has_the_owner_of_the_container(
    machine: Machine, option: str
) -> None:
    engine = Engine(machine, False, "native", "crun")

    archive = run(
        engine,
        f"user-renamed-{option[2:8]}",
        option,
        command="touch /tree/made; mv /tree/replaced /tree/renamed; chmod 600 /tree/kept",
        podman_options=("--storage-opt=overlay.mountopt=nodev,metacopy=on",),
    )

    saved = read(engine, archive)
    assert saved["tree/kept"].content == b"kept of the image\n"
    assert saved["tree/renamed/old/file"].content == b"replaced/old/file of the image\n"
    owners = {saved[f"tree/{name}"].owner for name in ("made", "kept", "renamed", "renamed/old/file")}
    assert owners == {(0, 0)}
