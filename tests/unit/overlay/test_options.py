"""Mount options and mount tables, in all their escapes."""

from __future__ import annotations

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.dialect import FUSE_OVERLAYFS, NATIVE, NATIVE_USERXATTR
from archive_overlay.overlay.options import from_command_line, from_mount_table, from_spec, split, upperdirs
from archive_overlay.system.mountinfo import MountTable


def test_directories_come_from_the_options_as_podman_writes_them() -> None:
    overlay = from_spec(["lowerdir=/l1:/l2", "upperdir=/u", "workdir=/w", "private"], "the mount")
    assert (overlay.upper, overlay.lowers, overlay.dialect) == ("/u", ("/l1", "/l2"), NATIVE)


def test_userxattr_says_which_attributes_are_the_overlays() -> None:
    assert from_spec(["upperdir=/u", "userxattr"], "x").dialect is NATIVE_USERXATTR
    assert from_command_line(["upperdir=/u,userxattr"], "x").dialect is FUSE_OVERLAYFS


def test_escaped_commas_colons_and_backslashes_are_parts_of_names() -> None:
    # podman splits at every comma, escaped or not.
    overlay = from_spec(["lowerdir=/l\\:1:/l\\", "2", "upperdir=/a b\\", "c\\\\", "workdir=/w"], "x")
    assert overlay.lowers == ("/l:1", "/l,2")
    assert overlay.upper == "/a b,c\\"


def test_lowers_of_newer_mounts_are_listed_one_by_one() -> None:
    overlay = from_spec(["lowerdir+=/l:1", "lowerdir+=/l2", "datadir+=/d", "upperdir=/u"], "x")
    assert (overlay.lowers, overlay.data_lowers) == (("/l:1", "/l2"), ("/d",))


def test_data_only_lowers_come_after_two_colons() -> None:
    overlay = from_spec(["lowerdir=/l1:/l2::/d\\:1::/d2", "upperdir=/u"], "x")
    assert (overlay.lowers, overlay.data_lowers) == (("/l1", "/l2"), ("/d:1", "/d2"))


def test_what_is_appended_has_no_escapes_of_its_own() -> None:
    overlay = from_spec([r"lowerdir+=/l\:1", "datadir+=/d\\", "2", "upperdir=/u"], "x")
    assert (overlay.lowers, overlay.data_lowers) == ((r"/l\:1",), (r"/d\,2",))


@pytest.mark.parametrize(
    ("shown", "readings"),
    [
        ("/u", ["/u"]),
        ("/u,x", ["/u,x"]),
        ("/u:x", ["/u:x"]),
        (r"/u\054p", ["/u054p", r"/u\054p"]),
        (r"/u\,x", ["/u,x", r"/u\,x"]),
        (r"/u\\x", [r"/u\x", r"/u\\x"]),
    ],
)
def test_only_a_backslash_in_the_mount_table_can_be_read_in_two_ways(shown: str, readings: list[str]) -> None:
    assert upperdirs(["rw", f"upperdir={shown}"]) == readings


def test_a_comma_in_the_mount_table_does_not_separate() -> None:
    overlay = from_mount_table(["lowerdir+=/l,1", "datadir+=/d\\", "upperdir=/u,x"], "x", upper="/u,x")
    assert (overlay.upper, overlay.lowers, overlay.data_lowers) == ("/u,x", ("/l,1",), ("/d\\",))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"/u\,x", "/u,x"),
        (r"/u\\x", r"/u\x"),
        (r"/u\x", "/ux"),
        (r"/u\054x", "/u,x"),
        (r"/u\134x", r"/u\x"),
        (r"/u\\054x", r"/u\054x"),
        (r"/u\303\274", "/u\u00fc"),
        (r"/u\400", "/u400"),
        (r"/u\05", "/u05"),
        ("/u\\", "/u\\"),
        ("/u x", "/u x"),
    ],
)
def test_libfuse_s_escapes_are_undone_once(written: str, meant: str) -> None:
    overlay = from_command_line(["lowerdir=/l", f"xattr_permissions=0,upperdir={written}"], "x")
    assert overlay.upper == meant


def test_a_colon_in_a_lower_layer_of_fuse_overlayfs_has_no_escape() -> None:
    assert from_command_line([r"lowerdir=/l\:1:/l\0722", "upperdir=/u"], "x").lowers == ("/l", "1", "/l", "2")


def test_an_escape_at_the_end_of_one_argument_is_not_for_the_next_one() -> None:
    overlay = from_command_line(["upperdir=/u\\", "lowerdir=/l"], "x")
    assert (overlay.upper, overlay.lowers) == ("/u\\", ("/l",))


def test_an_overlay_without_an_upperdir_is_read_only() -> None:
    with pytest.raises(ArchiveError, match="read-only"):
        from_spec(["lowerdir=/l1:/l2"], "the mount at /data")


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
    assert upperdirs(mounted.options) == ["/u,x", "/u\\,x"]
    assert from_mount_table(mounted.options, "x", upper="/u,x").lowers == ("/l 1",)


def test_the_last_mount_at_a_place_is_the_one_that_is_seen() -> None:
    lines = [b"1 0 0:1 / /m rw - ext4 d rw\n", b"2 0 0:2 / /m rw master:1 - overlay o rw,upperdir=/u\n"]
    mounted = MountTable(lines).at("/m")
    assert mounted is not None
    assert mounted.type == "overlay"
    assert MountTable(lines).at("/m/inside") is None
