"""The form of tar.gz archives: what other programs read, and that the same input gives the same bytes."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Saver
from tests.support import overlays, tools, trees

pytestmark = [pytest.mark.on_disk, pytest.mark.parametrize("method", ["tar.gz"])]


def below(root: Path) -> None:
    for name in ("gone1", "gone2", "gone3"):
        (root / name).write_text("x")
    (root / "directory").mkdir()
    (root / "directory" / "old").write_text("x")


def change(root: Path) -> None:
    for name in ("gone1", "gone2", "gone3"):
        (root / name).unlink()
    shutil.rmtree(root / "directory")
    (root / "directory").mkdir()
    (root / "directory" / "link").write_text("data")
    os.link(root / "directory" / "link", root / "z link")
    os.link(root / "directory" / "link", root / "a link")
    (root / "directory-with-a-longer-name").touch()
    (root / "directory.sorts between").touch()
    (root / ("long " * 40)).mkdir()
    (root / ("long " * 40) / ("long " * 40)).write_text("x")
    os.setxattr(root / "z link", "user.lines", b"one\ntwo\0")
    os.symlink("t" * 200, root / "symlink")


@pytest.fixture
def archived(any_saver: Saver) -> Saver:
    """Give the saved archive of a small tree with something of most kinds."""
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)
    result = any_saver.run()
    assert result.status == 0, result.stderr
    return any_saver


def members(archive: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(archive) as opened:
        return opened.getmembers()


def listed(archive: Path) -> list[str]:
    """Give the names as they are stored: tarfile takes the slash off a directory's."""
    done = subprocess.run(["tar", "-tzf", archive], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_names_begin_with_the_top_and_directories_end_in_a_slash(archived: Saver) -> None:
    assert listed(archived.archive) == [
        "./",
        "./a link",
        "./directory/",
        "./directory/link",
        "./directory-with-a-longer-name",
        "./directory.sorts between",
        "./gone1",
        "./gone2",
        "./gone3",
        f"./{'long ' * 40}/",
        f"./{'long ' * 40}/{'long ' * 40}",
        "./symlink",
        "./z link",
    ]


def test_owners_are_numbers_alone(archived: Saver) -> None:
    assert {(member.uname, member.gname) for member in members(archived.archive)} == {("", "")}


def test_whiteouts_are_devices_each_of_its_own(archived: Saver) -> None:
    gone = [member for member in members(archived.archive) if "gone" in member.name]

    assert [(member.type, member.devmajor, member.devminor) for member in gone] == [
        (tarfile.CHRTYPE, 0, 0)
    ] * 3


def test_hard_links_point_to_the_earlier_member(archived: Saver) -> None:
    found = {member.name: member for member in members(archived.archive)}

    assert found["./a link"].isreg()
    assert found["./a link"].size == 4
    for name in ("./directory/link", "./z link"):
        assert (found[name].type, found[name].linkname) == (tarfile.LNKTYPE, "./a link")
        assert found[name].size == 0


def test_attributes_are_pax_records(archived: Saver) -> None:
    found = {member.name: member for member in members(archived.archive)}

    assert found["./a link"].pax_headers["SCHILY.xattr.user.lines"] == "one\ntwo\0"
    namespace = "trusted" if os.geteuid() == 0 else "user"
    assert found["./directory"].pax_headers[f"SCHILY.xattr.{namespace}.overlay.opaque"] == "y"


def test_bookkeeping_of_the_overlay_is_left_out(archived: Saver) -> None:
    attributes = {
        key
        for member in members(archived.archive)
        for key in member.pax_headers
        if ".overlay." in key and not key.endswith(".overlay.opaque")
    }

    assert attributes == set()


def test_every_header_is_pax(archived: Saver) -> None:
    data = gzip.decompress(archived.archive.read_bytes())
    with tarfile.open(archived.archive) as opened:
        offsets = [member.offset for member in opened]

    # "ustar" and a NUL, then the version: the format of POSIX, not GNU's.
    assert {data[offset + 257 : offset + 265] for offset in offsets} == {b"ustar\x0000"}
    assert data.endswith(bytes(1024))
    assert len(data) % 512 == 0


def test_gzip_finds_the_file_whole(archived: Saver) -> None:
    subprocess.run(["gzip", "--test", archived.archive], check=True)


def test_the_header_of_gzip_says_nothing_of_time_and_place(archived: Saver) -> None:
    magic_method_flags_time = archived.archive.read_bytes()[:8]

    assert magic_method_flags_time == b"\x1f\x8b\x08\0\0\0\0\0"


def test_bsdtar_and_gnu_tar_extract_the_same(archived: Saver) -> None:
    tools.need("bsdtar")
    directory = archived.directory / "by bsdtar"
    directory.mkdir()

    archived.overlay.inside(
        lambda: subprocess.run(
            ["bsdtar", "-x", "-p", "--xattrs", "--numeric-owner", "-f", archived.archive],
            cwd=directory,
            check=True,
        )
    )

    by_bsdtar = archived.overlay.inside(lambda: trees.view(directory))
    extracted = archived.extracted
    by_gnu_tar = archived.overlay.inside(lambda: trees.view(extracted))
    found = trees.differences(by_gnu_tar, by_bsdtar)
    # bsdtar leaves the directory that it extracts into with the time of the extraction.
    assert [line for line in found if not line.startswith("b'.': mtime")] == []


def test_python_extracts_files_and_links(archived: Saver) -> None:
    directory = archived.directory / "by Python"
    # Python 3.12 and later ask for a filter, and the oldest do not know of any.
    trusting: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    with tarfile.open(archived.archive) as opened:
        for name in ("./a link", "./directory/link", "./z link"):
            opened.extract(name, directory, **trusting)

    assert (directory / "z link").read_text() == "data"
    assert (directory / "z link").samefile(directory / "directory" / "link")


def test_the_same_input_gives_the_same_bytes(archived: Saver) -> None:
    first = archived.archive.read_bytes()
    again = archived.run()

    assert again.status == 0, again.stderr
    assert archived.archive.read_bytes() == first


def test_the_order_of_the_file_system_does_not_count(archived: Saver) -> None:
    other = archived.directory / "other"
    other.mkdir()
    names = sorted(os.listdir(archived.overlay.upper), reverse=True)

    def copy() -> None:
        for name in names:
            subprocess.run(["cp", "-a", "--", archived.overlay.upper / name, other], check=True)
        # The links were copied apart from one another.
        for name in ("directory/link", "z link"):
            (other / name).unlink()
            os.link(other / "a link", other / name)
        for name in ("directory", "."):
            status = os.stat(archived.overlay.upper / name)
            os.utime(other / name, ns=(status.st_atime_ns, status.st_mtime_ns))

    archived.overlay.inside(copy)
    first = archived.archive.read_bytes()
    mount = archived.overlay.spec_mount()
    mount["options"] = [
        f"upperdir={other}" if option.startswith("upperdir=") else option for option in mount["options"]
    ]
    again = archived.run(mounts=[mount])

    assert again.status == 0, again.stderr
    assert archived.archive.read_bytes() == first


def owners(archive: Path) -> set[tuple[int, int]]:
    return {(member.uid, member.gid) for member in members(archive)}


@pytest.mark.parametrize(("asked", "expected"), [("2000", (2000, 0)), ("2000:3000", (2000, 3000))])
def test_the_owner_of_the_content_is_replaced(
    any_saver: Saver, asked: str, expected: tuple[int, int]
) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)

    result = any_saver.run(tar_content_owner=asked)

    assert (result.status, result.messages("warning")) == (0, [])
    assert owners(any_saver.archive) == {expected}


@pytest.mark.parametrize(
    "asked", ["root", "root:root", "-1", "2000:-1", "1:2:3", ":", "2000:", ":3000", "1.5", "1_000"]
)
def test_an_owner_that_is_none_is_ignored_with_a_warning(small: Saver, asked: str) -> None:
    result = small.run(tar_content_owner=asked)

    assert result.status == 0
    (warning,) = result.messages("warning")
    assert "tar-content-owner" in warning
    assert owners(small.archive) == {(0, 0)}


def test_set_user_id_does_not_go_to_another_owner(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        for mode in (0o4755, 0o2755, 0o6755, 0o1755):
            (root / f"{mode:o}").touch()
            (root / f"{mode:o}").chmod(mode)

    any_saver.overlay.change(change)
    result = any_saver.run(tar_content_owner="2000:3000")

    assert result.status == 0, result.stderr
    modes = {member.name: member.mode for member in members(any_saver.archive) if member.isreg()}
    assert modes == {"./4755": 0o755, "./2755": 0o755, "./6755": 0o755, "./1755": 0o1755}


def test_a_copy_keeps_its_owners_and_says_so(small: Saver) -> None:
    result = small.run(tar_content_owner="2000", method="copy")

    assert result.status == 0
    (warning,) = result.messages("warning")
    assert "tar-content-owner" in warning
    assert (small.archive / "made").stat().st_uid == os.geteuid()


@pytest.mark.parametrize("overlay", [overlays.FUSE, overlays.FUSE_ROOTLESS], indirect=True)
def test_marks_of_fuse_overlayfs_become_the_kernel_s(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    result = saver.run()

    assert result.status == 0, result.stderr
    found = {member.name: member for member in members(saver.archive)}
    assert found["./directory"].pax_headers["SCHILY.xattr.user.overlay.opaque"] == "y"
    assert [name for name in found if ".wh." in name] == []
