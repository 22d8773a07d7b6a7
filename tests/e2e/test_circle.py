"""From an image to a container, to a layer, to an image, to the next container: nothing is lost on the way.

podman, skopeo and umoci are the judges. What podman itself does not keep is left out of the comparison:
the metadata of an image's root directory, times before 1970, holes; without privileges also devices and
attributes of privileged namespaces.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from archive_overlay.layout.pulling import advice_on_pulling, takes_path, takes_tag
from tests.e2e.circles import Circle, write
from tests.support import image_layouts, tools, trees
from tests.support.engines import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Machine

BASE = "localhost/data:base"

# cap_net_raw=ep, and an ACL that lets user 7 read and write: as setcap(8) and setfacl(1) write them.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
ACL = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 1, 6, 0xFFFFFFFF, 2, 6, 7, 4, 4, 0xFFFFFFFF, 16, 6, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF),
)


def furnish(root: Path) -> None:
    """Make what the first image has."""
    for name in ("changed", "gone1", "gone2", "linked", "owned", "program", "to directory"):
        (root / name).write_text(f"{name} of the image\n")
    for name in ("kept/deep", "replaced/old", "to file", "removed/deep", "renamed"):
        (root / name).mkdir(parents=True)
        (root / name / "gone").write_text("below")
        (root / name / "stays").write_text("below")
    os.link(root / "linked", root / "linked in the image")
    for path in (*root.rglob("*"), root):
        os.utime(path, ns=(0, 10**18 + 123_456_789), follow_symlinks=False)


def change(root: Path) -> None:
    """Change something of each kind that every container can change, and more as root."""
    for name in ("gone1", "gone2", "kept/deep/gone"):
        (root / name).unlink()
    for name in ("replaced", "removed/deep", "to file"):
        shutil.rmtree(root / name)
    (root / "replaced").mkdir(0o711)
    write(root / "replaced/new", "new")
    (root / "removed/deep").symlink_to("../kept")
    write(root / "to file", "a file")
    (root / "to directory").unlink()
    (root / "to directory").mkdir()
    write(root / "to directory/in it")
    shutil.copytree(root / "renamed", root / "name", symlinks=True)
    shutil.rmtree(root / "renamed")
    write(root / "changed", "changed")
    os.link(root / "linked", root / "kept/another name")
    os.link(root / "linked", root / "a name that comes first")
    os.chown(root / "owned", 1234, 2345)
    (root / "program").chmod(0o6755)
    os.setxattr(root / "program", "security.capability", CAPABILITY)
    os.symlink("nowhere", root / "symlink")
    os.lchown(root / "symlink", 7, 8)
    os.link(root / "symlink", root / "symlink's other name", follow_symlinks=False)
    os.mkfifo(root / "pipe", 0o620)
    os.link(root / "pipe", root / "pipe's other name")
    write(root / "large", os.urandom(300_000))
    write(root / "sparse", "end")
    os.truncate(root / "sparse", 1 << 21)
    os.utime(root / "sparse", ns=(0, 7))
    (root / ("long " * 40)).mkdir()
    write(root / ("long " * 40) / ("long " * 40), "x")
    write(root / os.fsdecode(b"\xff not UTF-8 \n"), "x")
    os.setxattr(root / "changed", "user.lines", b"one\ntwo\0")
    os.setxattr(root / "kept", "user.colour", b"red")
    os.setxattr(root / "kept/deep/stays", "system.posix_acl_access", ACL)
    os.setxattr(root / "kept/deep", "system.posix_acl_default", ACL)
    os.utime(root / "changed", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "symlink", ns=(0, 1), follow_symlinks=False)


def change_as_root(root: Path) -> None:
    """Change what only a container with all privileges can change."""
    change(root)
    os.mknod(root / "device", stat.S_IFBLK | 0o640, os.makedev(7, 300))
    os.setxattr(root / "kept", "trusted.mine", b"\0x")


def change_again(root: Path) -> None:
    """Take back some of it: what comes after a deletion, a deletion of what a layer brought, and so on."""
    write(root / "gone1", "again")
    (root / "gone2").mkdir()
    write(root / "gone2/gone")
    shutil.rmtree(root / "kept")
    (root / "removed/deep").unlink()
    (root / "removed/deep").mkdir()
    (root / "to file").unlink()
    shutil.rmtree(root / "to directory")
    (root / "a name that comes first").unlink()
    shutil.rmtree(root / "name")
    os.removexattr(root / "changed", "user.lines")
    (root / "pipe").unlink()


def change_again_and_more(root: Path) -> None:
    """Do also what fuse-overlayfs 1.10 makes a mess of, whoever made the layers.

    What is deleted in an opaque directory brings back what that hides, and what is written to a file with
    several names goes to another one of them.
    """
    write(root / "linked", "one of several names")
    change_again(root)
    (root / "replaced/new").unlink()
    (root / "replaced/old").mkdir()
    write(root / "replaced/old/stays", "not that of the image")


@pytest.fixture(
    params=[
        pytest.param((False, "native", "crun", "push"), id="rootful-native-crun-push"),
        pytest.param((False, "fuse", "runc", "skopeo"), id="rootful-fuse-runc-skopeo"),
        pytest.param((True, "native", "runc", "skopeo"), id="rootless-native-runc-skopeo"),
        pytest.param((True, "fuse", "crun", "push"), id="rootless-fuse-crun-push"),
    ]
)
def circle(request: pytest.FixtureRequest, machine: Machine, tmp_path: Path) -> Circle:
    """Give a layout that has the first image with the tag main."""
    tools.need("skopeo", "umoci")
    *parts, way = request.param
    # podman takes the layout's path for a name, in which not everything may be.
    made = Circle(Engine(machine, *parts), re.sub("[^a-z0-9]+", "-", request.node.name).strip("-"))
    home = made.engine.new_directory(made.name)
    build(made.engine, tmp_path, home)
    if way == "push":
        made.engine.podman("push", "--quiet", BASE, f"oci:{made.layout}:main")
    else:
        made.as_container_root(
            "skopeo", "copy", "--quiet", f"containers-storage:{BASE}", f"oci:{made.layout}:main"
        )
    return made


def build(engine: Engine, scratch: Path, home: str) -> None:
    """Let podman build the first image."""
    tree = scratch / "tree"
    tree.mkdir(mode=0o755)
    furnish(tree)
    engine.machine.outside(f"{home}/data.tar").write_bytes(image_layouts.tar_of(tree))
    engine.machine.outside(f"{home}/Containerfile").write_text(
        'FROM scratch\nADD data.tar /\nENV COLOUR=red\nLABEL com.example.label=kept\nENTRYPOINT ["/bin/data"]\n'
    )
    engine.podman("build", "--quiet", "--tag", BASE, home)


natives = pytest.mark.parametrize(
    "circle",
    [
        pytest.param((False, "native", "crun", "skopeo"), id="rootful"),
        pytest.param((True, "native", "crun", "push"), id="rootless"),
    ],
    indirect=True,
)


def test_the_next_container_sees_what_the_last_one_left(circle: Circle) -> None:
    first = circle.turn("first", "main", change if circle.engine.rootless else change_as_root)

    fuse = circle.engine.store == "fuse"
    second = circle.turn("second", "main", change_again if fuse else change_again_and_more)

    first.expect_that_the_next_sees(second.found)
    second.expect_that_the_next_sees(circle.seen_by_the_next("third", "main"))
    image_layouts.expect_whole(circle.outside)


# Each container goes on where the one before it ended, or fails. The files of numbers that it counts are
# old and new, and those in the directory that it replaces are of the last one.
STEP = """
    cd /data
    touch /expected
    for number in $(seq {done}); do echo $number >> /expected; done
    ls kept/numbers 2>/dev/null | sort -n | cmp - /expected
    [ {done} = 0 ] || [ "$(ls replaced)" = {done} ]
    [ {done} = 0 ] || [ "$(cat counter)$(cat 'counter too')" = {done}{done} ]
    mkdir -p kept/numbers
    touch kept/numbers/{next}
    rm -r replaced
    mkdir replaced
    touch replaced/{next}
    echo {next} > counter
    ln -f counter 'counter too'
"""
REVISIONS = 10


def count_on(circle: Circle, done: int, tag: str, to: str) -> None:
    """Let a container that has a tag's data count from a number to the next one."""
    command = STEP.format(done=done, next=done + 1)
    circle.run(f"{to}-{done + 1}", circle.pull(tag), command, to=to, parent=tag)


@natives
def test_revisions_in_a_row_and_two_branches(circle: Circle) -> None:
    base = image_layouts.read(circle.outside, "main").digests
    for done in range(REVISIONS):
        count_on(circle, done, "main", "main")
    main = image_layouts.read(circle.outside, "main").digests

    for branch in ("left", "right"):
        count_on(circle, REVISIONS, "main", branch)
        count_on(circle, REVISIONS + 1, branch, branch)
    count_on(circle, REVISIONS, "main", "main")

    assert main[: len(base)] == base
    assert len(main) == len(base) + REVISIONS
    for branch, revisions in (("left", 2), ("right", 2), ("main", 1)):
        digests = image_layouts.read(circle.outside, branch).digests
        assert digests[: len(main)] == main
        assert len(digests) == len(main) + revisions
    image_layouts.expect_whole(circle.outside)


@natives
def test_other_programs_read_the_same(circle: Circle) -> None:
    reference = f"{circle.layout}:main"
    config = json.loads(circle.as_container_root("skopeo", "inspect", "--config", f"oci:{reference}"))
    turn = circle.turn("first", "main", change)
    image = image_layouts.read(circle.outside, "main")

    inspected = json.loads(circle.as_container_root("skopeo", "inspect", f"oci:{reference}"))
    assert inspected["Layers"] == image.digests
    now = json.loads(circle.as_container_root("skopeo", "inspect", "--config", f"oci:{reference}"))
    assert now["config"] == config["config"]
    assert "COLOUR=red" in now["config"]["Env"]
    assert now["config"]["Labels"]["com.example.label"] == "kept"
    assert now["history"][:-1] == config["history"]
    known = json.loads(circle.as_container_root("umoci", "stat", "--json", "--image", reference))
    assert [entry["created_by"] for entry in known["history"]][-1] == "archive_overlay"
    assert known["history"][-1]["layer"]["digest"] == image.digests[-1]

    bundle = f"{circle.engine.home}/{circle.name}/bundle"
    rootless = ["--rootless"] if circle.engine.rootless else []
    circle.as_container_root("umoci", "unpack", *rootless, "--image", reference, bundle)

    unpacked = trees.view(circle.engine.machine.outside(f"{bundle}/rootfs"))
    unpacked = trees.View(
        {path: entry for path, entry in unpacked.entries.items() if path != trees.TOP}, unpacked.links
    )
    if not circle.engine.rootless:
        turn.expect_that_the_next_sees(unpacked)
    # Without privileges umoci leaves owners and attributes out.
    assert {path: (entry.kind, entry.content) for path, entry in unpacked.entries.items()} == {
        path: (entry.kind, entry.content) for path, entry in turn.left.entries.items()
    }


@natives
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_podman_takes_every_compression(circle: Circle, compression: str) -> None:
    turn = circle.turn("first", "main", change, compression=compression)

    turn.expect_that_the_next_sees(circle.seen_by_the_next("second", "main"))


@natives
def test_podman_passes_a_revision_on(circle: Circle) -> None:
    circle.turn("first", "main", change)
    image = circle.pull("main")

    circle.engine.podman("push", "--quiet", image, f"oci:{circle.layout}:copy")
    circle.engine.podman("save", "--quiet", "--output", f"{circle.layout}/../saved.tar", image)

    diff_ids = image_layouts.read(circle.outside, "main").config["rootfs"]["diff_ids"]
    assert image_layouts.read(circle.outside, "copy").config["rootfs"]["diff_ids"] == diff_ids


@natives
def test_skopeo_copies_what_podman_does_not_pull(circle: Circle) -> None:
    version = circle.engine.podman("version", "--format={{.Client.Version}}").stdout.split(".")
    by_tag = (int(version[0]), int(version[1])) >= (4, 7)
    home = f"{circle.engine.home}/{circle.name}"
    for path, tag in [
        ("20261121T205533.123456Z", "main"),
        ("é + ~ it's", "main"),
        ("a..b", "main"),
        ("layout", "Main"),
        ("layout", "a+b"),
        ("layout", "0123456789abcdef" * 4),
        ("a-b_c.d", "e-f_g.h"),
    ]:
        image = f"oci:{home}/{path}:{tag}"
        circle.as_container_root("skopeo", "copy", "--quiet", f"oci:{circle.layout}:main", image)

        pulled = circle.engine.podman("pull", "--quiet", image, check=False)

        taken = takes_tag(tag) if by_tag else takes_path(f"{home}/{path}")
        assert (pulled.returncode == 0) == taken, (path, tag, pulled.stderr)
        if taken:
            continue
        line = advice_on_pulling(f"{home}/{path}", tag).rpartition("This always works: ")[2]
        circle.as_container_root("sh", "-c", line)
        circle.engine.podman("image", "exists", line.rpartition("containers-storage:")[2])
