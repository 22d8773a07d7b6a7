"""Owners of what a container in a user namespace changed: archives have those that the container saw."""

from __future__ import annotations

import os
import stat
import struct
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver
from tests.support import overlays, tools

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import NewOverlay

FIRST = 3000
COUNT = 1000


def user_namespace(first: int = FIRST, count: int = COUNT) -> dict[str, Any]:
    """Give what the spec of a container in a user namespace has under `linux`."""
    ranges = [{"containerID": 0, "hostID": first, "size": count}]
    return {
        "namespaces": [{"type": "mount"}, {"type": "user"}],
        "uidMappings": ranges,
        "gidMappings": ranges,
    }


def acl(user: int, group: int) -> bytes:
    nobody = 2**32 - 1
    entries = ((1, nobody), (2, user), (4, nobody), (8, group), (16, nobody), (32, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 6, number) for tag, number in entries)


def capability(root: int) -> bytes:
    sets = struct.pack("<IIII", 1 << 10, 0, 0, 0)
    if root == 0:
        return struct.pack("<I", 0x02000001) + sets
    return struct.pack("<I", 0x03000001) + sets + struct.pack("<I", root)


def change(root: Path) -> None:
    """Do what a container does whose root user is FIRST here."""
    for path in (root, root / "directory", root / "below"):
        path.mkdir(exist_ok=True)
        os.chown(path, FIRST, FIRST)
    for name, owner in (("plain", 0), ("of-5", 5), ("setid", 0), ("capable", 0), ("acl", 7)):
        (root / "directory" / name).write_text(name)
        os.chown(root / "directory" / name, FIRST + owner, FIRST + owner)
    os.link(root / "directory/of-5", root / "hard-link")
    os.symlink("nowhere", root / "symlink")
    os.chown(root / "symlink", FIRST + 3, FIRST + 4, follow_symlinks=False)
    os.chmod(root / "directory/setid", 0o6755)
    os.setxattr(root / "directory/capable", "security.capability", capability(FIRST))
    os.setxattr(root / "directory/acl", "system.posix_acl_access", acl(FIRST + 8, FIRST + 9))
    os.unlink(root / "gone")


@pytest.fixture(params=[overlays.NATIVE, overlays.FUSE])
def mapped(request: pytest.FixtureRequest, new_overlay: NewOverlay, method: str, scratch: Path) -> Saver:
    """Save what a container in a user namespace changed, by each method."""
    tools.need_root()
    saver = Saver(new_overlay(request.param), method, scratch)
    saver.overlay.layer(lambda root: (root / "gone").touch())
    saver.overlay.change(change)
    return saver


def owners(directory: Path) -> dict[str, tuple[int, int]]:
    found = {".": directory.lstat(), **{path.name: path.lstat() for path in directory.rglob("*")}}
    return {name: (status.st_uid, status.st_gid) for name, status in found.items()}


SEEN = {
    **dict.fromkeys((".", "directory", "below", "plain", "setid", "capable"), (0, 0)),
    "of-5": (5, 5),
    "hard-link": (5, 5),
    "acl": (7, 7),
    "symlink": (3, 4),
    "gone": (0, 0),
}


def test_they_are_those_of_the_container(mapped: Saver) -> None:
    result = mapped.run(linux=user_namespace())

    assert result.status == 0, result.stderr
    assert owners(mapped.extracted) == SEEN
    directory = mapped.extracted / "directory"
    assert os.getxattr(directory / "acl", "system.posix_acl_access") == acl(8, 9)
    assert stat.S_ISCHR((mapped.extracted / "gone").lstat().st_mode)


def test_a_directory_on_the_host_has_no_rights_of_other_users(mapped: Saver) -> None:
    result = mapped.run(linux=user_namespace())

    assert result.status == 0, result.stderr
    directory = mapped.extracted / "directory"
    mode = (directory / "setid").stat().st_mode & 0o7777
    has_capabilities = "security.capability" in os.listxattr(directory / "capable")
    warnings = "\n".join(result.messages("warning"))
    if mapped.method == "copy":
        assert (mode, has_capabilities) == (0o755, False)
        assert "directory/setid: set-user-ID and set-group-ID are left out" in warnings
        assert "directory/capable: its file capabilities are left out" in warnings
    else:
        assert mode == 0o6755
        assert os.getxattr(directory / "capable", "security.capability") == capability(0)
        assert not warnings


def test_with_owners_host_they_are_as_on_disk(mapped: Saver) -> None:
    result = mapped.run(linux=user_namespace(), owners="host")

    assert result.status == 0, result.stderr
    directory = mapped.extracted / "directory"
    found = owners(mapped.extracted)
    del found["gone"]
    assert found == {
        name: (user + FIRST, group + FIRST) for name, (user, group) in SEEN.items() if name != "gone"
    }
    assert (directory / "setid").stat().st_mode & 0o7777 == 0o6755
    assert os.getxattr(directory / "capable", "security.capability") == capability(FIRST)
    assert os.getxattr(directory / "acl", "system.posix_acl_access") == acl(FIRST + 8, FIRST + 9)


@pytest.mark.parametrize("count", [4, 8])
def test_who_has_no_number_in_the_container_fails_by_name(mapped: Saver, count: int) -> None:
    result = mapped.run(linux=user_namespace(count=count))

    assert result.status == 1
    assert os.listdir(mapped.out) == []
    assert not mapped.success.exists()
    (said,) = result.messages("error")
    if count == 4:  # so there are no users 4, 5 and 7
        assert f"belongs to user {FIRST + 7}, who has no number in the container's user namespace" in said
    else:
        assert f"directory/acl names user {FIRST + 8}, who has no number" in said
    assert "owners=host" in said


@pytest.mark.parametrize("method", ["tar.gz"])
def test_tar_content_owner_takes_their_place(mapped: Saver) -> None:
    mapped.overlay.inside(lambda: os.chown(mapped.overlay.upper / "directory/plain", 9, 9))

    result = mapped.run(linux=user_namespace(), tar_content_owner="12:34")

    assert result.status == 0, result.stderr
    assert set(owners(mapped.extracted).values()) == {(12, 34)}


def test_a_mount_that_is_mapped_for_the_container_has_them_on_disk_already(mapped: Saver) -> None:
    mount = mapped.overlay.spec_mount()

    result = mapped.run(
        mounts=[{**mount, "options": [*mount.get("options", []), "idmap"]}], linux=user_namespace()
    )

    assert result.status == 0, result.stderr
    assert owners(mapped.extracted)["directory"] == (FIRST, FIRST)


@pytest.mark.parametrize("method", ["move"])
@pytest.mark.parametrize(
    ("linux", "owners", "renames"),
    [
        (user_namespace(), "container", False),
        (user_namespace(), "host", True),
        (user_namespace(first=0, count=65536), "container", True),
    ],
    ids=["mapped", "host", "identity"],
)
def test_what_is_moved_is_copied_where_owners_change(
    new_overlay: NewOverlay, method: str, scratch: Path, linux: dict[str, Any], owners: str, renames: bool
) -> None:
    tools.need_root()
    plain = overlays.Flavour("plain", options=("redirect_dir=off", "metacopy=off", "index=off"))
    saver = Saver(new_overlay(plain), method, scratch)
    saver.overlay.layer(lambda root: (root / "gone").touch())
    saver.overlay.change(change)
    inode = saver.overlay.upper.stat().st_ino

    result = saver.run(linux=linux, owners=owners)

    assert result.status == 0, result.stderr
    assert (saver.archive.stat().st_ino == inode) is renames
    copied = f"the upperdir {saver.overlay.upper} is copied, not moved: its files get the owners"
    assert any(copied in said for said in result.messages("info")) is not renames
    assert (saver.archive / "directory/plain").stat().st_uid == (FIRST if renames else 0)


@pytest.mark.parametrize("method", ["copy", "tar"])
def test_in_a_user_namespace_a_directory_has_only_owners_that_are_there(
    new_overlay: NewOverlay, method: str, scratch: Path
) -> None:
    tools.need_root()
    saver = Saver(new_overlay(overlays.NATIVE_ROOTLESS), method, scratch)
    saver.overlay.change(lambda root: (root / "made").touch())
    ranges = [{"containerID": 1_234_567, "hostID": 0, "size": 1}]

    result = saver.run(linux={"uidMappings": ranges, "gidMappings": ranges})

    if method == "tar":
        assert result.status == 0, result.stderr
        with tarfile.open(saver.archive) as tar:
            assert {(member.uid, member.gid) for member in tar} == {(1_234_567, 1_234_567)}
    else:
        (said,) = result.messages("error")
        assert (
            "belongs to user 1234567 of the container, whom this hook's user namespace does not have" in said
        )
        assert os.listdir(saver.out) == []


@pytest.mark.parametrize("method", ["copy", "tar"])
def test_without_privileges_a_directory_belongs_to_the_hook_s_user(
    new_overlay: NewOverlay, method: str, scratch: Path
) -> None:
    tools.need_root()
    saver = Saver(new_overlay(overlays.NATIVE_ROOTLESS), method, scratch)
    saver.overlay.change(lambda root: (root / "made").touch())
    user = 1234
    for path in (scratch, *scratch.rglob("*")):
        os.chown(path, user, user)
    ranges = [{"containerID": 0, "hostID": user, "size": 1}]

    def drop() -> None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)

    linux = {"uidMappings": ranges, "gidMappings": ranges}
    result = saver.overlay.inside(lambda: saver.run_here(linux=linux, before=drop))

    assert result.status == 0, result.stderr
    said = f"archive data: everything belongs to user {user}, because without privileges"
    assert any(message.startswith(said) for message in result.messages("info")) is (method == "copy")
    if method == "tar":
        with tarfile.open(saver.archive) as tar:
            assert {(member.uid, member.gid) for member in tar} == {(0, 0)}
    else:
        assert (saver.archive / "made").stat().st_uid == user
