"""Mount options and mount tables, in all their escapes."""

from __future__ import annotations

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.dialect import FUSE_OVERLAYFS, NATIVE, NATIVE_USERXATTR
from archive_overlay.overlay.options import from_options, split
from archive_overlay.system.mountinfo import MountTable


def test_directories_come_from_the_options_as_podman_writes_them() -> None:
    overlay = from_options(["lowerdir=/l1:/l2", "upperdir=/u", "workdir=/w", "private"], None, "the mount")
    assert (overlay.upper, overlay.lowers, overlay.dialect) == ("/u", ("/l1", "/l2"), NATIVE)


def test_userxattr_says_which_attributes_are_the_overlays() -> None:
    assert from_options(["upperdir=/u", "userxattr"], None, "x").dialect is NATIVE_USERXATTR
    assert from_options(["upperdir=/u", "userxattr"], FUSE_OVERLAYFS, "x").dialect is FUSE_OVERLAYFS


def test_escaped_commas_colons_and_backslashes_are_parts_of_names() -> None:
    # podman splits at every comma, escaped or not.
    overlay = from_options(["lowerdir=/l\\:1:/l\\", "2", "upperdir=/a b\\", "c\\\\", "workdir=/w"], None, "x")
    assert overlay.lowers == ("/l:1", "/l,2")
    assert overlay.upper == "/a b,c\\"


def test_lowers_of_newer_mounts_are_listed_one_by_one() -> None:
    overlay = from_options(["lowerdir+=/l:1", "lowerdir+=/l2", "datadir+=/d", "upperdir=/u"], None, "x")
    assert (overlay.lowers, overlay.data_lowers) == (("/l:1", "/l2"), ("/d",))


def test_data_only_lowers_come_after_two_colons() -> None:
    overlay = from_options(["lowerdir=/l1:/l2::/d\\:1::/d2", "upperdir=/u"], None, "x")
    assert (overlay.lowers, overlay.data_lowers) == (("/l1", "/l2"), ("/d:1", "/d2"))


def test_an_overlay_without_an_upperdir_is_read_only() -> None:
    with pytest.raises(ArchiveError, match="read-only"):
        from_options(["lowerdir=/l1:/l2"], None, "the mount at /data")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("a:b", ["a", "b"]),
        ("a\\:b:c", ["a\\:b", "c"]),
        ("a\\\\:b", ["a\\\\", "b"]),
        ("a\\", ["a\\"]),
    ],
)
def test_a_backslash_protects_a_separator(text: str, parts: list[str]) -> None:
    assert split(text, ":") == parts


def test_the_mount_table_undoes_the_kernels_escapes() -> None:
    line = (
        rb"44 30 0:39 / /mnt/a\040b rw,relatime shared:1 - overlay over\040lay"
        rb" rw,lowerdir=/l\0401,upperdir=/u\134\054x,workdir=/w,uuid=on"
    )
    mounted = MountTable([line + b"\n"]).at("/mnt/a b")
    assert mounted is not None
    assert (mounted.type, mounted.root) == ("overlay", "/")
    assert from_options(mounted.options, None, "x").upper == "/u,x"


def test_the_last_mount_at_a_place_is_the_one_that_is_seen() -> None:
    lines = [b"1 0 0:1 / /m rw - ext4 d rw\n", b"2 0 0:2 / /m rw master:1 - overlay o rw,upperdir=/u\n"]
    mounted = MountTable(lines).at("/m")
    assert mounted is not None
    assert mounted.type == "overlay"
    assert MountTable(lines).at("/m/inside") is None
