"""One tree over another: each entry whole, what is not named stays, and nothing is left open."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.destination import merge
from archive_overlay.system import kernel, tree
from tests.support import tools
from tests.support.flushing import open_files

if TYPE_CHECKING:
    from typing import Any

MARKS = merge.OverlayMarks(attribute="user.overlay.opaque")
TIME = 1_000_000_000 * 10**9


class Trees:
    """Two trees with an obstacle of each kind.

    Attributes:
        top: the directory that both are in.
        new: the one that is moved.
        old: the one that it is moved into.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.new = top / "new"
        self.old = top / "old"
        for root in (self.new, self.old):
            for directory in (root, root / "both", root / "both" / "deep"):
                directory.mkdir()
                (directory / f"of {root.name}").touch()
                (directory / "file").write_text(root.name)
        (self.new / "file on directory").touch()
        (self.old / "file on directory" / "deep").mkdir(parents=True)
        (self.new / "directory on file" / "deep").mkdir(parents=True)
        (self.old / "directory on file").touch()
        (self.new / "directory on link").mkdir()
        (self.old / "directory on link").symlink_to(top)
        (self.new / "only new" / "deep").mkdir(parents=True)
        for number, directory in enumerate((self.new / "both" / "deep", self.new / "both", self.new)):
            directory.chmod(0o710 + number)
            os.setxattr(directory, "user.new", b"yes")
            os.utime(directory, ns=(TIME, TIME + number))
        for directory in (self.old / "both" / "deep", self.old / "both", self.old):
            os.setxattr(directory, "user.old", b"yes")

    def merge(self) -> None:
        fd = os.open(self.top, os.O_RDONLY)
        try:
            merge.merge("new", fd, "old", fd, MARKS)
        finally:
            os.close(fd)

    def names(self) -> set[str]:
        return {str(path.relative_to(self.old)) for path in self.old.rglob("*")}


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


NAMES = {
    *("both", "both/deep", "file", "both/file", "both/deep/file"),
    *("of new", "both/of new", "both/deep/of new", "of old", "both/of old", "both/deep/of old"),
    *("file on directory", "directory on file", "directory on file/deep", "directory on link"),
    *("only new", "only new/deep"),
}


def expect_merged(trees: Trees) -> None:
    assert trees.names() == NAMES
    assert (trees.old / "file on directory").is_file()
    assert not (trees.old / "directory on link").is_symlink()
    for number, directory in enumerate((trees.old / "both" / "deep", trees.old / "both", trees.old)):
        assert (directory / "file").read_text() == "new"
        status = directory.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o710 + number, TIME + number)
        assert os.listxattr(directory) == ["user.new"]
    assert open_files(trees.top) == []


def test_each_entry_of_the_new_tree_is_there_whole_and_the_others_stay(trees: Trees) -> None:
    trees.merge()

    expect_merged(trees)


def test_where_names_cannot_be_exchanged_it_is_the_same(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(*_: object) -> None:
        raise kernel.CannotExchangeError(errno.EINVAL, "not here")

    monkeypatch.setattr(kernel, "exchange", exchange)

    trees.merge()

    expect_merged(trees)


def test_a_directory_is_never_missing_while_it_is_replaced(trees: Trees) -> None:
    # It takes one step: what was there is then in the new tree, which is going to be removed.
    trees.merge()

    assert (trees.new / "file on directory" / "deep").is_dir()
    assert (trees.new / "directory on file").is_file()


def test_entries_are_moved_in_the_order_of_their_names_up_to_one_that_cannot_be(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def fail(name: str, *arguments: object, **more: int) -> None:
        if name == "of new" and (trees.new / "both" / "deep" / "of new").exists():
            raise OSError(errno.EIO, "in the middle")
        rename(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", fail)

    with pytest.raises(OSError, match="in the middle"):
        trees.merge()

    # Depth first: the deepest directory was the first that had something to move by this name.
    assert (trees.old / "both" / "deep" / "file").read_text() == "new"
    assert (trees.old / "file").read_text() == "old"
    assert not (trees.old / "only new").exists()
    assert open_files(trees.top) == []


@pytest.mark.parametrize("missing", ["new", "old"])
def test_a_tree_that_is_missing_is_an_error_and_leaves_nothing_open(trees: Trees, missing: str) -> None:
    (trees.top / missing).rename(trees.top / "elsewhere")

    with pytest.raises(FileNotFoundError):
        trees.merge()

    assert open_files(trees.top) == []


def test_metadata_that_cannot_be_given_leave_nothing_open(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "no attributes here")

    monkeypatch.setattr("archive_overlay.system.metadata.replace", replace)

    with pytest.raises(OSError, match="no attributes here"):
        trees.merge()

    assert open_files(trees.top) == []


class Stacks:
    """An archive and the change set that is merged into it, with the kernel's marks of ordinary users.

    A 0:0 device stands for a whiteout, and the attribute makes a directory opaque.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.older = top / "older"
        self.newer = top / "newer"
        self.older.mkdir()
        self.newer.mkdir()

    def whiteout(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(path, stat.S_IFCHR)

    def opaque(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        os.setxattr(path, MARKS.attribute, b"y")

    def file(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def merge(self) -> bool:
        fd = os.open(self.top, os.O_RDONLY)
        try:
            return merge.merge("newer", fd, "older", fd, MARKS)
        finally:
            os.close(fd)

    def result(self) -> list[str]:
        """Give all that is there, in the words of composition."""
        found = []
        for path in sorted(self.older.rglob("*")):
            name = str(path.relative_to(self.older))
            status = path.lstat()
            if MARKS.is_whiteout(path.name, -1, status):
                name = f"deleted {name}"
            elif stat.S_ISDIR(status.st_mode):
                opaque = MARKS.attribute in os.listxattr(path)
                name = f"{'opaque' if opaque else 'plain'} {name}"
            found.append(name)
        return found


@pytest.fixture
def stacks(tmp_path: Path) -> Stacks:
    return Stacks(tmp_path)


def test_a_directory_on_a_whiteout_is_opaque(stacks: Stacks) -> None:
    stacks.whiteout(stacks.older / "d")
    stacks.file(stacks.newer / "d" / "b")

    assert stacks.merge()

    assert stacks.result() == ["opaque d", "d/b"]


def test_an_opaque_directory_stays_opaque(stacks: Stacks) -> None:
    stacks.opaque(stacks.older / "d")
    stacks.file(stacks.older / "d" / "a")
    stacks.file(stacks.newer / "d" / "b")

    assert stacks.merge()

    assert stacks.result() == ["opaque d", "d/a", "d/b"]


def test_an_opaque_directory_hides_what_the_older_one_has_in_it(stacks: Stacks) -> None:
    stacks.file(stacks.older / "d" / "inner" / "a")
    stacks.opaque(stacks.newer / "d")
    stacks.file(stacks.newer / "d" / "b")

    assert stacks.merge()

    assert stacks.result() == ["opaque d", "d/b"]


def test_whiteouts_stay_where_the_newer_one_says_nothing(stacks: Stacks) -> None:
    stacks.whiteout(stacks.older / "a")
    stacks.whiteout(stacks.older / "d" / "a")
    stacks.file(stacks.newer / "d" / "b")

    assert stacks.merge()

    assert stacks.result() == ["deleted a", "plain d", "deleted d/a", "d/b"]


@pytest.mark.parametrize("deep", ["", "inner/"])
def test_nothing_is_deleted_twice_below_an_opaque_directory(stacks: Stacks, deep: str) -> None:
    stacks.opaque(stacks.older / "d")
    stacks.file(stacks.older / f"d/{deep}file")
    stacks.file(stacks.older / f"d/{deep}directory" / "file")
    for name in ("file", "directory", "never there"):
        stacks.whiteout(stacks.newer / f"d/{deep}{name}")

    assert stacks.merge()

    assert stacks.result() == ["opaque d", *(["plain d/inner"] if deep else [])]


def test_what_becomes_opaque_or_is_covered_keeps_no_whiteouts(stacks: Stacks) -> None:
    stacks.whiteout(stacks.older / "a")
    stacks.opaque(stacks.older / "b")
    for name in ("a", "b/new"):
        stacks.file(stacks.newer / name / "deep" / "file")
        stacks.whiteout(stacks.newer / name / "gone")
        stacks.whiteout(stacks.newer / name / "deep" / "gone")
        os.utime(stacks.newer / name / "deep", ns=(TIME, TIME))

    assert stacks.merge()

    assert stacks.result() == [
        *("opaque a", "plain a/deep", "a/deep/file"),
        *("opaque b", "plain b/new", "plain b/new/deep", "b/new/deep/file"),
    ]
    for name in ("a", "b/new"):
        assert (stacks.older / name / "deep").stat().st_mtime_ns == TIME


def test_the_marks_of_another_kind_of_overlay_are_kept_as_they_are(stacks: Stacks) -> None:
    tools.need_root()
    stacks.file(stacks.older / "d" / "a")
    os.setxattr(stacks.older / "d", "trusted.overlay.opaque", b"y")
    stacks.file(stacks.newer / "d" / "b")
    stacks.whiteout(stacks.newer / "d" / "a")

    assert stacks.merge()

    assert sorted(os.listdir(stacks.older / "d")) == ["b"]
    assert os.listxattr(stacks.older / "d") == ["trusted.overlay.opaque"]


def test_links_in_the_older_one_lead_nowhere(stacks: Stacks) -> None:
    victim = stacks.top / "victim"
    stacks.file(victim / "precious")
    for name in ("a", "b", "c"):
        (stacks.older / name).symlink_to(victim)
    stacks.file(stacks.newer / "a" / "precious")
    stacks.whiteout(stacks.newer / "b")
    stacks.opaque(stacks.newer / "c")

    assert stacks.merge()

    assert os.listdir(victim) == ["precious"]
    assert os.listxattr(victim) == []
    assert stacks.result() == ["opaque a", "a/precious", "deleted b", "opaque c"]


def test_files_of_the_newer_one_stay_one_file_wherever_they_are_placed(stacks: Stacks) -> None:
    stacks.whiteout(stacks.older / "exchanged")
    stacks.file(stacks.older / "merged" / "a")
    stacks.file(stacks.newer / "exchanged" / "one")
    for name in ("merged/two", "new/three", "four"):
        (stacks.newer / name).parent.mkdir(exist_ok=True)
        os.link(stacks.newer / "exchanged" / "one", stacks.newer / name)

    assert stacks.merge()

    names = ("exchanged/one", "merged/two", "new/three", "four")
    assert len({(stacks.older / name).stat().st_ino for name in names}) == 1


@pytest.mark.parametrize("forger", ["older", "newer"])
def test_marks_that_a_container_of_root_s_can_forge_hide_nothing(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch, forger: str
) -> None:
    """A method `move` has them in the archive. Believed, they would have what was deleted below them come back."""
    trusted = "user.for-root-alone.opaque"
    monkeypatch.setattr(merge, "TRUSTED_OPAQUE", trusted)
    stacks.whiteout((stacks.newer if forger == "older" else stacks.older) / "d" / "gone")
    stacks.file(stacks.older / "d" / "a")
    stacks.file(stacks.newer / "d" / "b")
    os.setxattr(stacks.top / forger / "d", "user.overlay.opaque", b"y")
    fd = os.open(stacks.top, os.O_RDONLY)
    try:
        assert merge.merge("newer", fd, "older", fd, merge.OverlayMarks(attribute=trusted))
    finally:
        os.close(fd)

    assert stacks.result() == ["opaque d", "d/a", "d/b", "deleted d/gone"]
    assert trusted not in os.listxattr(stacks.older / "d")


def test_where_names_cannot_be_exchanged_two_steps_do_the_same(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise kernel.CannotExchangeError

    monkeypatch.setattr("archive_overlay.system.kernel.exchange", refuse)
    for name in ("a", "b"):
        stacks.whiteout(stacks.older / name)
        stacks.file(stacks.newer / name / "file")
    stacks.file(stacks.older / "c" / "file")
    stacks.whiteout(stacks.newer / "c")

    assert not stacks.merge()

    assert stacks.result() == ["opaque a", "a/file", "opaque b", "b/file", "deleted c"]


def test_a_top_that_hides_what_lies_below_hides_the_older_one(stacks: Stacks) -> None:
    stacks.opaque(stacks.newer)
    stacks.file(stacks.newer / "both" / "b")
    stacks.file(stacks.newer / "file")
    stacks.whiteout(stacks.newer / "gone")
    for name in ("both/a", "file/a", "gone/a", "other/a"):
        stacks.file(stacks.older / name)

    assert stacks.merge()

    assert stacks.result() == ["plain both", "both/b", "file"]
    assert MARKS.attribute in os.listxattr(stacks.older)


@pytest.mark.parametrize("directory", ["older", "newer"])
def test_what_cannot_be_placed_where_names_cannot_be_exchanged_is_put_back(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    """Nobody else would know that something was hidden there."""

    def refuse(*_: object) -> None:
        raise kernel.CannotExchangeError

    rename = os.rename

    def fail(name: str, new: str, **more: int) -> None:
        if os.path.samestat(os.fstat(more["src_dir_fd"]), stacks.newer.stat()):
            raise OSError(errno.EIO, "in the middle")
        rename(name, new, **more)

    stacks.whiteout(stacks.older / "d") if directory == "newer" else stacks.file(stacks.older / "d" / "a")
    stacks.file(stacks.newer / "d" / "b") if directory == "newer" else stacks.whiteout(stacks.newer / "d")
    before = stacks.result()
    monkeypatch.setattr("archive_overlay.system.kernel.exchange", refuse)
    monkeypatch.setattr(os, "rename", fail)

    with pytest.raises(OSError, match="in the middle"):
        stacks.merge()

    assert stacks.result() == before


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "replaced"])
def test_the_mode_of_nothing_else_is_changed_if_a_link_takes_a_directory_s_name(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, *, removed: bool
) -> None:
    """Somebody else may write where an ordinary user's archive is, or an ordinary user applies something."""
    victim = trees.top / "victim"
    victim.mkdir(mode=0o750)
    name = "removed" if removed else "directory"
    (trees.old / name).mkdir(mode=0o077)
    (trees.old / name).chmod(0o077)
    (trees.new / "directory").touch()
    chmod = os.chmod

    def chmod_late(*arguments: Any, **more: Any) -> None:
        if isinstance(arguments[0], str) and (trees.old / name).is_dir():
            (trees.old / name).rename(trees.top / "aside")
            (trees.old / name).symlink_to(victim)
        chmod(*arguments, **more)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chmod", chmod_late)
    fd = os.open(trees.old, os.O_RDONLY)
    try:
        tree.remove(name, fd) if removed else trees.merge()
    except OSError:
        pass  # what is there is no directory any more
    finally:
        os.close(fd)

    assert (trees.old / name).is_symlink() or not removed
    assert stat.S_IMODE(victim.stat().st_mode) == 0o750
