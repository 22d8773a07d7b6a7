"""A container that means harm: what it wrote is read, and never followed, believed or waited for."""

from __future__ import annotations

import os
import resource
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import debris, overlays, trees

DEPTH = 2000
rootful_kernel = pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def dig(root: Path) -> None:
    """Make a tree so deep that the paths of its lower half are longer than any system call takes."""
    fd = os.open(root, os.O_DIRECTORY)
    for level in range(DEPTH):
        os.mkdir("deep", dir_fd=fd)
        if level % 500 == 499:
            os.mkfifo("fifo", dir_fd=fd)
            os.symlink("target", "symlink", dir_fd=fd)
            with os.fdopen(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
                file.write(b"%d" % level)
            os.link("file", "link", src_dir_fd=fd, dst_dir_fd=fd)
            os.setxattr(f"/proc/self/fd/{fd}", "user.level", b"%d" % level)
        below = os.open("deep", os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_deep_tree_needs_few_descriptors_and_no_long_paths(any_saver: Saver) -> None:
    saver = any_saver
    saver.overlay.change(dig)

    result = saver.run(before=few_descriptors)

    assert result.status == 0, result.stderr
    assert saver.success.exists()
    assert os.listdir(saver.out) == ["archive"]
    written = saver.overlay.inside(
        lambda: trees.view(saver.overlay.upper, bookkeeping=saver.overlay.flavour.bookkeeping)
    )
    assert len(written.entries) == DEPTH + 1 + 4 * (DEPTH // 500)
    if saver.method == "copy":
        expect_equal(written, saver.overlay.inside(lambda: trees.view(saver.archive)))
    else:
        with tarfile.open(saver.archive) as tar:
            found = {os.fsencode(member.name).replace(b"./", b"", 1): member for member in tar}
        assert found.keys() == written.entries.keys()
        deepest = b"/".join([b"deep"] * (DEPTH - 1))
        assert found[deepest + b"/link"].linkname == os.fsdecode(b"./" + deepest + b"/file")
        assert found[deepest].pax_headers["SCHILY.xattr.user.level"] == str(DEPTH - 1)


@pytest.mark.parametrize("method", ["copy"])
@pytest.mark.parametrize("if_exists", ["merge", "replace"])
def test_a_deep_archive_is_merged_and_replaced_like_any_other(any_saver: Saver, if_exists: str) -> None:
    saver = any_saver
    saver.overlay.change(dig)
    assert saver.run().status == 0

    result = saver.run(if_exists=if_exists, before=few_descriptors)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.out) == ["archive"]
    written = saver.overlay.inside(
        lambda: trees.view(saver.overlay.upper, bookkeeping=saver.overlay.flavour.bookkeeping)
    )
    expect_equal(written, saver.overlay.inside(lambda: trees.view(saver.archive)))


def test_a_wide_directory_needs_few_descriptors(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        for number in range(300):
            (root / f"{number}").mkdir()
            (root / f"{number}" / "file").touch()

    any_saver.overlay.change(change)

    result = any_saver.run(before=few_descriptors)

    assert result.status == 0, result.stderr
    assert len(trees.names(any_saver.extracted)) == 601


def test_symlinks_are_never_followed(any_saver: Saver) -> None:
    saver = any_saver
    victim = saver.directory / "victim"
    victim.mkdir(mode=0o750)
    (victim / "secret").write_text("secret")
    before = trees.view(victim)

    def change(root: Path) -> None:
        os.symlink(victim, root / "directory")
        os.symlink(victim / "secret", root / "file")
        os.symlink("/proc/self/environ", root / "environ")
        os.symlink("/dev/zero", root / "endless")

    saver.overlay.change(change)
    result = saver.run()

    assert result.status == 0, result.stderr
    for name in ("directory", "file", "environ", "endless"):
        assert (saver.extracted / name).is_symlink()
    assert trees.view(victim) == before


def test_nobody_has_to_write_to_a_fifo(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        for number in range(20):
            os.mkfifo(root / f"{number}")

    any_saver.overlay.change(change)

    result = any_saver.run()

    assert result.status == 0, result.stderr
    assert len(os.listdir(any_saver.extracted)) == 20


def below(root: Path) -> None:
    (root / "directory").mkdir()
    (root / "directory" / "old").touch()


# What the container sets on the merged directory is escaped by the kernel; here it is as an image or an
# older kernel leaves it in the upperdir, and in the namespace that the mount does not read.
@pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.FUSE, overlays.FUSE_ROOTLESS], indirect=True)
def test_a_forged_opaque_attribute_hides_nothing(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "directory" / "new").touch()

    def forge() -> None:
        os.setxattr(saver.overlay.upper / "directory", "user.overlay.opaque", b"y")

    saver.overlay.layer(below)
    saver.overlay.change(change)
    saver.overlay.inside(forge)
    result = saver.run()

    assert result.status == 0, result.stderr
    restacked = saver.overlay.restacked(saver.extracted)
    assert {b"directory/old", b"directory/new"} <= restacked.entries.keys()


@rootful_kernel
@pytest.mark.parametrize("name", ["user.overlay.redirect", "user.overlay.metacopy"])
def test_a_redirect_of_the_other_namespace_is_an_attribute_like_any_other(saver: Saver, name: str) -> None:
    def change(root: Path) -> None:
        (root / "made").write_text("data")
        os.setxattr(root / "made", name, b"/etc/shadow")

    saver.overlay.change(change)

    saver.expect_the_same()


@pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.NATIVE_ROOTLESS], indirect=True)
def test_attributes_of_an_overlay_within_the_overlay_are_kept(saver: Saver) -> None:
    def change(root: Path) -> None:
        namespace = "user" if saver.overlay.flavour.rootless else "trusted"
        os.setxattr(root / "directory", f"{namespace}.overlay.opaque", b"y")
        os.setxattr(root / "directory", f"{namespace}.overlay.redirect", b"/elsewhere")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_names_of_other_formats_whiteouts_are_names_like_any_other(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / ".wh.file").touch()
        (root / "directory" / ".wh.old").touch()
        (root / "directory" / ".wh..wh..opq").touch()

    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)

    any_saver.expect_the_same()


def test_names_like_those_of_the_hook_itself(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "archive").touch()
        (root / ".archive.archive_overlay-0123456789ab").mkdir()
        (root / "archive.~1~").touch()

    any_saver.overlay.change(change)

    any_saver.expect_the_same()


@pytest.mark.parametrize("method", ["copy"])
def test_an_older_archive_full_of_symlinks_leads_a_merge_nowhere(any_saver: Saver) -> None:
    saver = any_saver
    victim = saver.directory / "victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "file").write_text("precious")
    before = trees.view(victim)

    def traps(root: Path) -> None:
        os.symlink(victim, root / "a")
        os.symlink(victim / "file", root / "b")
        os.symlink("..", root / "c")
        (root / "d").mkdir()
        os.symlink(victim / "inner", root / "d" / "e")

    def prey(root: Path) -> None:
        for name in ("a", "b", "c"):
            (root / name).unlink()
            (root / name).mkdir()
            (root / name / "file").write_text("x")
        (root / "d" / "e").unlink()
        (root / "d" / "e").mkdir(mode=0o777)
        (root / "d" / "e" / "file").write_text("x")

    saver.overlay.change(traps)
    assert saver.run().status == 0
    saver.overlay.change(prey)

    result = saver.run(if_exists="merge")

    assert result.status == 0, result.stderr
    assert trees.view(victim) == before
    written = saver.overlay.inside(
        lambda: trees.view(saver.overlay.upper, bookkeeping=saver.overlay.flavour.bookkeeping)
    )
    found = saver.overlay.inside(lambda: trees.view(saver.archive))
    without = dict(found.entries)
    # The links hid what lies below, and so do the directories that took their place.
    for name in (b"a", b"b", b"c", b"d/e"):
        assert found.entries[name].attributes == (("trusted.overlay.opaque", b"y"),)
        without[name] = replace(found.entries[name], attributes=())
    expect_equal(written, replace(found, entries=without))


def test_a_symlink_in_place_of_staging_is_not_taken(small: Saver) -> None:
    victim = small.directory / "victim"
    victim.mkdir()
    (victim / "file").touch()
    trap = small.out / ".archive.archive_overlay-0123456789ab"
    trap.symlink_to(victim)

    result = small.run()

    assert result.status == 0, result.stderr
    assert os.listdir(victim) == ["file"]


def test_debris_of_a_killed_run_is_cleared_away(small: Saver) -> None:
    dead = debris.put(small.out, "archive")
    (dead / "archive" / "inner").mkdir(parents=True)

    result = small.run()

    assert result.status == 0, result.stderr
    assert os.listdir(small.out) == ["archive"]


def test_an_upperdir_that_vanishes_under_the_walk_is_an_error(any_saver: Saver) -> None:
    upper = any_saver.overlay.upper
    any_saver.overlay.change(lambda root: (root / "made").touch())
    shutil.rmtree(upper)
    upper.symlink_to(any_saver.directory / "nowhere")

    result = any_saver.run()

    assert result.status == 1
    assert str(any_saver.directory / "nowhere") in result.only_error()
