"""What becomes of something that is at the destination already, for each value of if-exists."""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import trees

copy_only = pytest.mark.parametrize("method", ["copy"])


def put_old(saver: Saver) -> None:
    """Put an archive of an earlier run at the destination, of the kind that the method makes."""
    if saver.method == "copy":
        saver.archive.mkdir()
        (saver.archive / "old").write_text("old")
    else:
        with tarfile.open(saver.archive, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("./old"))


def contents(saver: Saver, archive: Path | None = None) -> set[str]:
    """Give the names at the top of an archive."""
    archive = archive or saver.archive
    if saver.method == "copy":
        return set(os.listdir(archive))
    with tarfile.open(archive) as tar:
        return {name[2:] for name in tar.getnames() if name != "."}


def test_replace_leaves_nothing_of_the_old_archive(small: Saver) -> None:
    put_old(small)

    result = small.run(if_exists="replace")

    assert (result.status, contents(small)) == (0, {"made"}), result.stderr
    assert os.listdir(small.out) == ["archive"]


def test_the_default_is_merge_for_a_copy_and_replace_for_a_tar(small: Saver) -> None:
    put_old(small)

    result = small.run()

    expected = {"made", "old"} if small.method == "copy" else {"made"}
    assert (result.status, contents(small)) == (0, expected), result.stderr
    assert os.listdir(small.out) == ["archive"]


def test_backup_keeps_each_old_archive_under_a_number(small: Saver) -> None:
    put_old(small)

    first, second = small.run(if_exists="backup"), small.run(if_exists="backup")

    assert (first.status, second.status) == (0, 0), first.stderr + second.stderr
    assert sorted(os.listdir(small.out)) == ["archive", "archive.~1~", "archive.~2~"]
    assert contents(small) == {"made"}
    assert contents(small, small.out / "archive.~1~") == {"old"}
    assert contents(small, small.out / "archive.~2~") == {"made"}


def test_backup_counts_on_from_the_highest_number(small: Saver) -> None:
    put_old(small)
    (small.out / "archive.~7~").touch()

    result = small.run(if_exists="backup")

    assert result.status == 0, result.stderr
    assert contents(small, small.out / "archive.~8~") == {"old"}


def test_fail_touches_nothing(small: Saver) -> None:
    put_old(small)
    small.success.write_text("")
    before = trees.view(small.out), small.success.stat()

    result = small.run(if_exists="fail")

    assert result.status == 1
    assert str(small.archive) in result.only_error()
    assert (trees.view(small.out), small.success.stat()) == before


@pytest.mark.parametrize("if_exists", ["replace", "backup", "fail"])
def test_nothing_at_the_destination_suits_every_value(small: Saver, if_exists: str) -> None:
    result = small.run(if_exists=if_exists)

    assert (result.status, contents(small)) == (0, {"made"}), result.stderr


@pytest.mark.parametrize("if_exists", ["replace", "backup", "fail"])
def test_an_empty_directory_counts_as_nothing(small: Saver, if_exists: str) -> None:
    small.archive.mkdir()

    result = small.run(if_exists=if_exists)

    assert (result.status, contents(small)) == (0, {"made"}), result.stderr
    assert os.listdir(small.out) == ["archive"]


@copy_only
def test_a_merge_into_an_empty_directory_is_the_archive(small: Saver) -> None:
    small.archive.mkdir(mode=0o700)

    result = small.run(if_exists="merge")

    assert result.status == 0, result.stderr
    left = small.overlay.inside(
        lambda: trees.view(small.overlay.upper, bookkeeping=small.overlay.flavour.bookkeeping)
    )
    expect_equal(left, small.overlay.inside(lambda: trees.view(small.archive)))


@pytest.mark.parametrize("method", ["tar.gz"])
def test_a_tar_cannot_be_merged(small: Saver) -> None:
    put_old(small)
    before = small.archive.read_bytes()

    result = small.run(if_exists="merge")

    assert result.status == 1
    assert "merge" in result.only_error()
    assert "replace" in result.only_error(), "the values that there are"
    assert small.archive.read_bytes() == before


@pytest.mark.parametrize("if_exists", ["Replace", "overwrite", "replace "])
def test_an_unknown_value_is_refused(small: Saver, if_exists: str) -> None:
    put_old(small)
    before = trees.view(small.out)

    result = small.run(if_exists=if_exists)

    assert result.status == 1
    error = result.only_error()
    assert if_exists in error
    assert all(value in error for value in ("replace", "merge", "backup", "fail"))
    assert trees.view(small.out) == before


@pytest.mark.parametrize("if_exists", [None, "replace", "backup", "fail"])
def test_something_of_the_wrong_type_stays(small: Saver, if_exists: str | None) -> None:
    if small.method == "copy":
        small.archive.write_text("a file")
    else:
        small.archive.mkdir()
        (small.archive / "inner").touch()
    before = trees.view(small.out)

    result = small.run(if_exists=if_exists)

    assert result.status == 1
    assert str(small.archive) in result.only_error()
    assert trees.view(small.out) == before
    assert not small.success.exists()


@pytest.mark.parametrize("made_by", [os.mkfifo, lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)])
def test_a_special_file_stays(small: Saver, made_by: object) -> None:
    assert callable(made_by)
    made_by(small.archive)
    before = trees.view(small.out)

    result = small.run()

    assert result.status == 1
    assert str(small.archive) in result.only_error()
    assert trees.view(small.out) == before


def test_missing_parents_are_made_for_all_to_enter(small: Saver) -> None:
    archive = small.out / "one" / "two" / "archive"
    success = small.out / "three" / "four" / "success"

    result = small.run(archive_to=archive, success=success)

    assert result.status == 0, result.stderr
    assert contents(small, archive) == {"made"}
    for made in (archive.parent, archive.parent.parent, success.parent, success.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o755


def test_the_umask_of_the_runtime_does_not_count(small: Saver) -> None:
    small.overlay.change(lambda root: (root / "made").chmod(0o666))

    result = small.run(archive_to=small.out / "one" / "archive", before=lambda: mask(0o077))

    assert result.status == 0, result.stderr
    assert stat.S_IMODE((small.out / "one").stat().st_mode) == 0o755
    if small.method == "copy":
        assert stat.S_IMODE((small.out / "one" / "archive" / "made").stat().st_mode) == 0o666


def mask(value: int) -> None:
    os.umask(value)


def below(root: Path) -> None:
    for name in ("gone file", "gone directory", "stays away"):
        (root / name).write_text("below")


def layered(root: Path) -> None:
    """Make one entry for each thing that a merge may find in its way."""
    (root / "file on nothing").write_text("new")
    (root / "file on file").write_text("new")
    (root / "file on directory").write_text("new")
    (root / "file on symlink").write_text("new")
    (root / "directory on nothing" / "inner").mkdir(parents=True)
    (root / "directory on directory").mkdir()
    (root / "directory on directory" / "new").write_text("new")
    (root / "directory on directory" / "both").write_text("new")
    (root / "directory on directory").chmod(0o710)
    (root / "directory on file").mkdir()
    (root / "directory on file" / "new").write_text("new")
    (root / "directory on symlink").mkdir()
    (root / "directory on symlink" / "new").write_text("new")
    os.symlink("new", root / "symlink on file")
    os.symlink("new", root / "symlink on directory")
    (root / "link one").write_text("linked")
    os.link(root / "link one", root / "link two")
    (root / "gone file").unlink()
    (root / "gone directory").unlink()


def obstacles(archive: Path, victim: Path) -> None:
    for directory in (
        "file on directory",
        "directory on directory",
        "symlink on directory",
        "gone directory",
        "untouched",
    ):
        (archive / directory / "old").mkdir(parents=True)
        (archive / directory / "old" / "old").write_text("old")
    (archive / "directory on directory" / "both").write_text("old")
    for file in ("file on file", "directory on file", "symlink on file", "gone file", "link two"):
        (archive / file).write_text("old")
    os.symlink(victim / "file", archive / "file on symlink")
    os.symlink(victim, archive / "directory on symlink")


@copy_only
def test_a_merge_stacks_each_entry_whole_on_what_is_there(any_saver: Saver) -> None:
    saver = any_saver
    saver.overlay.layer(below)
    saver.overlay.change(layered)
    victim = saver.directory / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    obstacles(saver.archive, victim)
    untouched = trees.view(saver.archive / "untouched")
    victims = trees.view(victim)

    result = saver.run()

    assert result.status == 0, result.stderr
    left = saver.overlay.inside(
        lambda: trees.view(saver.overlay.upper, bookkeeping=saver.overlay.flavour.bookkeeping)
    )
    merged = saver.overlay.inside(lambda: trees.view(saver.archive))
    named = {path: merged.entries[path] for path in left.entries}
    # A file or a link hid what lies below, and so does the directory that takes its place.
    opaque = (("trusted.overlay.opaque", b"y"),)
    for name in (b"directory on file", b"directory on symlink"):
        assert named[name].attributes == opaque
        named[name] = replace(named[name], attributes=())
    expect_equal(left, trees.View(named, merged.links))
    assert merged.entries.keys() - left.entries.keys() == {
        b"directory on directory/old",
        b"directory on directory/old/old",
        b"untouched",
        b"untouched/old",
        b"untouched/old/old",
    }
    assert trees.view(saver.archive / "untouched") == untouched
    assert trees.view(victim) == victims
    assert os.listdir(saver.out) == ["archive"]


@copy_only
def test_a_merge_does_not_write_into_a_file_that_has_another_name(small: Saver) -> None:
    small.archive.mkdir()
    elsewhere = small.directory / "elsewhere"
    elsewhere.write_text("precious")
    os.link(elsewhere, small.archive / "made")

    result = small.run()

    assert result.status == 0, result.stderr
    assert elsewhere.read_text() == "precious"
    assert (small.archive / "made").read_text() == "by a container"


@copy_only
def test_a_merge_repeated_changes_nothing(any_saver: Saver) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(layered)
    assert any_saver.run().status == 0
    first = trees.view(any_saver.archive)

    result = any_saver.run()

    assert result.status == 0, result.stderr
    expect_equal(first, trees.view(any_saver.archive))


def test_a_destination_that_is_a_symlink_is_the_place_it_points_to(small: Saver) -> None:
    put_old(small)
    small.archive.rename(small.directory / "real")
    small.archive.symlink_to(small.directory / "real")

    result = small.run(if_exists="replace")

    assert result.status == 0, result.stderr
    assert small.archive.is_symlink()
    assert contents(small, small.directory / "real") == {"made"}


@copy_only
def test_a_tag_of_a_layout_is_no_place_for_another_method(small: Saver) -> None:
    layout = small.out / "repo"
    first = small.run(archive_to=f"{layout}:main")
    assert (first.status, (small.out / "repo:main" / "made").exists()) == (0, True)
    assert "add method=oci" in "".join(first.messages("warning"))
    assert small.run(archive_to=f"{small.out}/12:30").messages("warning") == []
    assert small.run(archive_to=layout, method="oci").status == 0

    result = small.run(archive_to=f"{layout}:other")

    assert result.status == 1
    assert f"is the tag other of the image layout {layout}, which needs method oci" in result.only_error()
    assert small.run(archive_to=f"{layout}:main").status == 0  # an archive of 2.0.4, perhaps
