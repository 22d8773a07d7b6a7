"""The tests' own eyes: a comparison that overlooks something would pass every wrong archive."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from tests.support import tools, trees

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable


def plant(tree: Path) -> None:
    """Make a small tree with something of most kinds."""
    (tree / "directory").mkdir(parents=True)
    (tree / "file").write_text("text")
    (tree / "other").write_text("text")
    os.link(tree / "file", tree / "directory" / "link")
    os.symlink("file", tree / "symlink")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "gone", stat.S_IFCHR, os.makedev(0, 0))
    for path in (tree / "directory" / "link", *tree.iterdir(), tree):
        os.utime(path, ns=(0, 10**18 + 1), follow_symlinks=False)


@pytest.fixture
def pair(scratch: Path) -> tuple[Path, Path]:
    """Give two trees that are the same."""
    plant(scratch / "one")
    plant(scratch / "two")
    return scratch / "one", scratch / "two"


def test_equal_trees_do_not_differ(pair: tuple[Path, Path]) -> None:
    assert trees.differences(trees.view(pair[0]), trees.view(pair[1])) == []


def replace_by_directory(tree: Path) -> None:
    (tree / "other").unlink()
    (tree / "other").mkdir()


def retarget(tree: Path) -> None:
    (tree / "symlink").unlink()
    os.symlink("elsewhere", tree / "symlink")
    os.utime(tree / "symlink", ns=(0, 10**18 + 1), follow_symlinks=False)
    os.utime(tree, ns=(0, 10**18 + 1))


def split(tree: Path) -> None:
    (tree / "directory" / "link").unlink()
    shutil.copy2(tree / "file", tree / "directory" / "link")
    os.utime(tree / "directory", ns=(0, 10**18 + 1))


def join(tree: Path) -> None:
    (tree / "other").unlink()
    os.link(tree / "file", tree / "other")
    os.utime(tree, ns=(0, 10**18 + 1))


def reveal(tree: Path) -> None:
    (tree / "gone").unlink()
    os.mkfifo(tree / "gone")


def rewrite(tree: Path) -> None:
    (tree / "other").write_text("next")
    os.utime(tree / "other", ns=(0, 10**18 + 1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tree: (tree / "fifo").unlink(), "b'fifo': only in the first tree"),
        (lambda tree: (tree / "new").touch(), "b'new': only in the second tree"),
        (replace_by_directory, "b'other': file != directory"),
        (lambda tree: (tree / "other").chmod(0o4755), "b'other': mode 0o644 != 0o4755"),
        (lambda tree: tree.chmod(0o700), "b'.': mode 0o755 != 0o700"),
        (reveal, "b'gone': whiteout != FIFO"),
        (
            lambda tree: os.utime(tree / "symlink", ns=(0, 10**18 + 2), follow_symlinks=False),
            f"b'symlink': mtime {10**18 + 1} ns != {10**18 + 2} ns",
        ),
        (
            lambda tree: os.utime(tree / "directory", ns=(0, -1)),
            f"b'directory': mtime {10**18 + 1} ns != -1 ns",
        ),
        (rewrite, "b'other': content b'4 bytes "),
        (retarget, "b'symlink': target b'file' != b'elsewhere'"),
        (
            lambda tree: os.setxattr(tree / "other", "user.a", b"\0"),
            r"b'other': attribute user.a: None != b'\x00'",
        ),
        (
            lambda tree: os.setxattr(tree / "directory", "user.a", b""),
            "b'directory': attribute user.a: None != b''",
        ),
        (split, "one file in the first tree only: [b'directory/link', b'file']"),
        (join, "one file in the second tree only: [b'directory/link', b'file', b'other']"),
    ],
)
def test_each_difference_is_found(
    pair: tuple[Path, Path], change: Callable[[Path], object], expected: str
) -> None:
    change(pair[1])

    found = trees.differences(trees.view(pair[0]), trees.view(pair[1]))

    assert any(line.startswith(expected) for line in found), found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda tree: os.lchown(tree / "symlink", 1, 2),
            "b'symlink': owner 0:0 != 1:2",
        ),
        (
            lambda tree: os.setxattr(tree / "fifo", "trusted.a", b"x"),
            "b'fifo': attribute trusted.a: None != b'x'",
        ),
        (
            lambda tree: os.setxattr(tree / "symlink", "trusted.a", b"x", follow_symlinks=False),
            "b'symlink': attribute trusted.a: None != b'x'",
        ),
        (
            lambda tree: os.setxattr(
                tree / "other", "security.capability", struct.pack("<5I", 0x02000001, 1, 0, 0, 0)
            ),
            "b'other': attribute security.capability: None",
        ),
    ],
)
def test_each_difference_that_only_root_can_make_is_found(
    pair: tuple[Path, Path], change: Callable[[Path], object], expected: str
) -> None:
    tools.need_root()
    change(pair[1])

    found = trees.differences(trees.view(pair[0]), trees.view(pair[1]))

    assert any(line.startswith(expected) for line in found), found


def test_device_numbers_are_compared(pair: tuple[Path, Path]) -> None:
    tools.need_root()
    for tree, minor in zip(pair, (3, 5)):
        os.mknod(tree / "device", stat.S_IFCHR, os.makedev(1, minor))

    found = trees.differences(trees.view(pair[0]), trees.view(pair[1]))

    assert "b'device': device (1, 3) != (1, 5)" in found


def test_of_a_whiteout_nothing_but_its_name_counts(pair: tuple[Path, Path]) -> None:
    for tree in pair:
        os.mknod(tree / "gone too", stat.S_IFCHR, os.makedev(0, 0))
        os.utime(tree, ns=(0, 0))
    (pair[0] / "gone").chmod(0o600)
    (pair[1] / "gone").unlink()
    os.link(pair[1] / "gone too", pair[1] / "gone")
    os.utime(pair[1], ns=(0, 0))

    assert trees.differences(trees.view(pair[0]), trees.view(pair[1])) == []


def test_links_count_only_among_the_names_of_the_change_set(pair: tuple[Path, Path]) -> None:
    seen = trees.view(pair[0], linkable={b"file"})

    assert seen.links == frozenset()


def test_bookkeeping_is_left_out(pair: tuple[Path, Path]) -> None:
    os.setxattr(pair[0] / "other", "user.overlay.origin", b"")

    seen = trees.view(pair[0], bookkeeping=("user.overlay.",))

    assert trees.differences(seen, trees.view(pair[1])) == []


def test_a_view_without_sockets_lacks_their_links_too(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = scratch / "tree"
    tree.mkdir()
    monkeypatch.chdir(tree)  # the whole path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    os.link(tree / "socket", tree / "again")

    seen = trees.without(trees.view(tree), "socket")

    assert (set(seen.entries), seen.links) == ({trees.TOP}, frozenset())


def test_a_tree_deeper_than_any_path_is_seen_whole(scratch: Path) -> None:
    tree = scratch / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_DIRECTORY)
    for _ in range(2000):
        os.mkdir("dddd", dir_fd=fd)
        below = os.open("dddd", os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)

    seen = trees.view(tree)

    assert seen.entries[b"/".join([b"dddd"] * 2000 + [b"leaf"])].kind == "file"


def test_looking_leaves_no_trace(pair: tuple[Path, Path]) -> None:
    before = trees.traces(pair[0])
    trees.view(pair[0])

    assert before[b"file"][0] == before[b"directory"][0] == 0
    assert trees.traces(pair[0]) == before
