"""The upperdir is only ever read, and nothing but the archive is left anywhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import trees

# What an access leaves behind is a matter of the file system.
pytestmark = pytest.mark.on_disk

LONG_AGO = 10**18


def change(root: Path) -> None:
    (root / "gone").unlink()
    (root / "directory").mkdir()
    (root / "directory" / "file").write_text("data")
    (root / "empty").touch()
    os.link(root / "empty", root / "link")
    os.symlink("file", root / "symlink")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "directory" / "file", "user.mine", b"x")
    (root / "directory").chmod(0o500)


def age(tree: Path) -> None:
    """Set the access times to long ago: then every access that counts is noted."""
    for path in (*tree.rglob("*"), tree):
        if not path.is_symlink() and not stat.S_ISCHR(path.stat().st_mode):
            os.utime(path, ns=(LONG_AGO, path.stat().st_mtime_ns))


def test_saving_leaves_no_trace_in_the_upperdir(saver: Saver) -> None:
    upper = saver.overlay.upper
    saver.overlay.layer(lambda root: (root / "gone").touch())
    saver.overlay.change(change)
    saver.overlay.inside(lambda: age(upper))
    before = saver.overlay.inside(lambda: (trees.view(upper), trees.traces(upper)))

    result = saver.run()

    assert result.status == 0, result.stderr
    after = saver.overlay.inside(lambda: (trees.view(upper), trees.traces(upper)))
    expect_equal(before[0], after[0])
    assert after[1] == before[1]
    assert after[1][b"directory/file"][0] == LONG_AGO


def test_a_failure_leaves_no_trace_in_the_upperdir(small: Saver) -> None:
    upper = small.overlay.upper
    small.overlay.inside(lambda: age(upper))
    before = small.overlay.inside(lambda: (trees.view(upper), trees.traces(upper)))

    result = small.run(archive_to="/proc/no/archive")

    assert result.status == 1
    after = small.overlay.inside(lambda: (trees.view(upper), trees.traces(upper)))
    expect_equal(before[0], after[0])
    assert after[1] == before[1]


@pytest.mark.parametrize("if_exists", [None, "replace", "backup"])
def test_nothing_is_left_beside_the_archive(small: Saver, if_exists: str | None) -> None:
    runs = [small.run(if_exists=if_exists) for _ in range(2)]

    assert [run.status for run in runs] == [0, 0], runs[1].stderr
    expected = ["archive", "archive.~1~"] if if_exists == "backup" else ["archive"]
    assert sorted(os.listdir(small.out)) == expected


def test_nothing_is_left_in_the_bundle_and_in_the_working_directory(small: Saver) -> None:
    result = small.run()

    assert result.status == 0, result.stderr
    assert sorted(os.listdir(small.directory / "bundle")) == ["config.json", small.overlay.directory.name]


def test_an_upperdir_that_only_its_owner_may_enter(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: root.chmod(0o700))

    any_saver.expect_the_same()
