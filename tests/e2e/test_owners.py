"""Owners of what containers in user namespaces have changed: those that the container saw, and the next one sees."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import Entry, read_directory, read_tar
from tests.support import hooks
from tests.support.engines import IMAGE, Engine, Machine, wait_until

if TYPE_CHECKING:
    from pathlib import Path

KEEP_ID = ("--userns=keep-id", "--user=0:0")
UIDMAP = ("--uidmap=0:1000:62000",)

# What belongs to user 1 or group 1 in an image is no part of this: with --userns=keep-id on a native store, podman 4.3
# and 5.4 show it as that of user 0. With --uidmap on a fuse store, podman 4.3 maps all owners of an image twice.
# podman 4.3 and 5.4 start no container with --uidmap and a volume that is a native overlay.
MAPPED = [
    pytest.param(False, "native", UIDMAP, id="rootful-native-uidmap"),
    pytest.param(False, "fuse", UIDMAP, id="rootful-fuse-uidmap"),
    pytest.param(True, "native", KEEP_ID, id="rootless-native-keep-id"),
    pytest.param(True, "fuse", KEEP_ID, id="rootless-fuse-keep-id"),
]
VOLUMES = MAPPED[1:]

MAKE = """
    for owner in 0:0 7:8 61234:61234; do
        touch $1/of-$owner
        chown $owner $1/of-$owner
    done
    mkdir $1/directory
    chown 3:4 $1/directory
    ln -s nowhere $1/link
    chown -h 5:6 $1/link
"""
MADE = {
    "of-0:0": (0, 0),
    "of-7:8": (7, 8),
    "of-61234:61234": (61234, 61234),
    "directory": (3, 4),
    "link": (5, 6),
}


def making(directory: str) -> str:
    return f"set -- {directory}\n{MAKE}"


def seen(
    engine: Engine, name: str, *options: str, image: str = IMAGE, directory: str = "/tree"
) -> dict[str, tuple[int, int]]:
    """Give what a container takes for the owners of what was made in a directory."""
    said = engine.run(
        name, *options, command=f"stat -c '%n %u %g' {directory}/*", annotations={}, image=image
    ).stdout
    owners = {}
    for line in said.splitlines():
        path, user, group = line.split()
        owners[path.rpartition("/")[2]] = int(user), int(group)
    return {made: owners[made] for made in MADE}


@pytest.mark.parametrize(("rootless", "store", "mapping"), MAPPED)
def test_the_next_container_sees_the_same_owners_with_the_same_map_and_with_none(
    machine: Machine, rootless: bool, store: str, mapping: tuple[str, ...]
) -> None:
    engine = Engine(machine, rootless, store, "crun")
    layout = f"{engine.new_directory('owners')}/layout:main"
    engine.podman("push", "--quiet", IMAGE, f"oci:{layout}")

    engine.run(
        "owners",
        *mapping,
        command=making("/tree"),
        annotations=hooks.annotations("root", mount_point="/", archive_to=layout, method="oci"),
    )

    image = engine.podman("pull", "--quiet", f"oci:{layout}").stdout.strip()
    assert seen(engine, "owners-none", image=image) == MADE
    if (rootless, store) != (False, "fuse"):
        assert seen(engine, "owners-same", *mapping, image=image) == MADE


@pytest.mark.parametrize(("rootless", "store", "mapping"), VOLUMES)
def test_of_a_volume_they_are_those_of_the_container_or_of_the_host_as_is_asked_for(
    machine: Machine, rootless: bool, store: str, mapping: tuple[str, ...]
) -> None:
    engine = Engine(machine, rootless, store, "crun")
    out, volume = engine.new_directory("volume-out"), engine.new_directory("volume")
    if not rootless:
        os.chown(machine.outside(volume), 1000, 1000)

    engine.run(
        "volume",
        *mapping,
        f"--volume={volume}:/data:O",
        command=making("/data"),
        annotations={
            **hooks.annotations("tar", mount_point="/data", archive_to=f"{out}/data.tar", method="tar"),
            **hooks.annotations("container", mount_point="/data", archive_to=f"{out}/container"),
            **hooks.annotations("host", mount_point="/data", archive_to=f"{out}/host", owners="host"),
        },
    )

    assert_made(read_tar(machine.outside(f"{out}/data.tar")))
    assert_made(read_directory(engine, f"{out}/container"))
    # The next container that mounts it has the same user namespace, which maps what is on the host once more.
    same = f"--volume={out}/host:/data:O"
    assert seen(engine, "volume-same", *mapping, same, directory="/data") == MADE


def assert_made(entries: dict[str, Entry]) -> None:
    assert {name: entries[name].owner for name in MADE} == MADE


# Who is named in there are user 7 and group 8.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, 6, number)
    for tag, number in ((1, 2**32 - 1), (2, 7), (4, 2**32 - 1), (8, 8), (16, 2**32 - 1), (32, 2**32 - 1))
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.mark.parametrize("store", ["native", "fuse"])
def test_acls_and_capabilities_name_those_of_the_container(machine: Machine, store: str) -> None:
    engine = Engine(machine, False, store, "crun")
    archive = f"{engine.new_directory('acls')}/root.tar"
    engine.run(
        "acls",
        *UIDMAP,
        command="touch /tree/acl /tree/program /ready; while [ -e /ready ]; do sleep 0.1; done",
        annotations=hooks.annotations("root", mount_point="/", archive_to=archive, method="tar"),
        detach=True,
    )

    def give(root: Path) -> bool:
        if not (root / "ready").exists():
            return False
        os.setxattr(root / "tree/acl", "system.posix_acl_access", ACL)
        os.setxattr(root / "tree/program", "security.capability", CAPABILITY)
        (root / "ready").unlink()
        return True

    wait_until(lambda: engine.inside("acls", give), "the container does not start")
    wait_until(machine.outside(archive).exists, "there is no archive")

    saved = read_tar(machine.outside(archive))
    attributes = {**saved["tree/acl"].attributes, **saved["tree/program"].attributes}
    assert {name: value.encode("utf-8", "surrogateescape") for name, value in attributes.items()} == {
        "system.posix_acl_access": ACL,
        "security.capability": CAPABILITY,
    }
