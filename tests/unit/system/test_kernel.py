"""Renaming that takes nobody's place, and exchanging, with the kernel's help and without."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.system import kernel, signals
from tests.support import tools

TOP = Path(__file__).resolve().parents[3]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["renameat2", "without"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rename with the kernel's help, or on a file system that has none to give."""
    if request.param == "without":
        monkeypatch.setattr(kernel, "_renameat2", failing(errno.EINVAL))


def failing(number: int) -> Callable[..., None]:
    """Give a call that fails."""

    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


each_kind = pytest.mark.parametrize("makes", ["directory", "file", "link"])


def put(path: Path, makes: str) -> None:
    if makes == "directory":
        path.mkdir()
        (path / path.name).touch()
    elif makes == "file":
        path.write_text(path.name)
    else:
        path.symlink_to(path.name)


@each_kind
@pytest.mark.usefixtures("either_way")
def test_a_new_name_is_given(tmp_path: Path, directory: int, makes: str) -> None:
    put(tmp_path / "a", makes)
    inode = (tmp_path / "a").lstat().st_ino

    kernel.rename_new("a", directory, "b", directory)

    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").lstat().st_ino == inode


@each_kind
@pytest.mark.parametrize("taken", ["directory", "file", "link"])
@pytest.mark.usefixtures("either_way")
def test_a_name_that_is_taken_stays_what_it_is(
    tmp_path: Path, directory: int, makes: str, taken: str
) -> None:
    put(tmp_path / "a", makes)
    put(tmp_path / "b", taken)
    inode = (tmp_path / "b").lstat().st_ino

    with pytest.raises(FileExistsError):
        kernel.rename_new("a", directory, "b", directory)

    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "b").lstat().st_ino == inode


@pytest.mark.usefixtures("either_way")
def test_an_empty_directory_is_somebody_s_too(tmp_path: Path, directory: int) -> None:
    put(tmp_path / "a", "directory")
    (tmp_path / "b").mkdir()

    with pytest.raises(FileExistsError):
        kernel.rename_new("a", directory, "b", directory)


@pytest.mark.usefixtures("either_way")
def test_what_is_not_there_gets_no_name(tmp_path: Path, directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        kernel.rename_new("a", directory, "b", directory)

    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_renamed_leaves_no_other(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a", "directory")
    monkeypatch.setattr(kernel, "_renameat2", failing(errno.ENOSYS))
    monkeypatch.setattr(os, "rename", failing(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        kernel.rename_new("a", directory, "b", directory)

    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EIO])
def test_another_file_system_is_no_want_of_help(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    put(tmp_path / "a", "file")
    monkeypatch.setattr(kernel, "_renameat2", failing(number))

    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        kernel.rename_new("a", directory, "b", directory)

    assert raised.value.errno == number
    assert os.listdir(tmp_path) == ["a"]


@each_kind
@pytest.mark.parametrize("other", ["directory", "file", "link"])
def test_two_names_take_each_other_s_place(tmp_path: Path, directory: int, makes: str, other: str) -> None:
    put(tmp_path / "a", makes)
    put(tmp_path / "b", other)
    a, b = ((tmp_path / name).lstat().st_ino for name in "ab")

    kernel.exchange("a", directory, "b", directory)

    assert [(tmp_path / name).lstat().st_ino for name in "ab"] == [b, a]


@pytest.fixture(params=["EPERM", "ENOTSUP", "ENOSYS"])
def no_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have neither names that are only given if they are free, nor hard links, nor renaming onto directories."""
    refused = getattr(errno, request.param)
    rename = os.rename

    def rename_to_absent(name: str, new_name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        try:
            os.lstat(new_name, dir_fd=dst_dir_fd)
        except FileNotFoundError:
            rename(name, new_name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            return
        failing(errno.ENOTEMPTY)()

    monkeypatch.setattr(kernel, "_renameat2", failing(errno.EINVAL))
    monkeypatch.setattr(os, "link", failing(refused))
    monkeypatch.setattr(os, "rename", rename_to_absent)


@each_kind
@pytest.mark.usefixtures("no_way")
def test_where_there_is_no_other_way_a_name_that_is_free_is_given(
    tmp_path: Path, directory: int, makes: str
) -> None:
    put(tmp_path / "a", makes)
    inode = (tmp_path / "a").lstat().st_ino
    said: list[str] = []

    kernel.rename_new("a", directory, "b", directory, said.append)

    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").lstat().st_ino == inode
    (warning,) = said
    assert warning.endswith("what another program puts there at the same moment is lost")


@each_kind
@pytest.mark.parametrize("taken", ["directory", "file", "link"])
@pytest.mark.usefixtures("no_way")
def test_there_too_a_name_that_is_taken_stays_what_it_is(
    tmp_path: Path, directory: int, makes: str, taken: str
) -> None:
    put(tmp_path / "a", makes)
    put(tmp_path / "b", taken)
    inode = (tmp_path / "b").lstat().st_ino
    said: list[str] = []

    with pytest.raises(FileExistsError):
        kernel.rename_new("a", directory, "b", directory, said.append)

    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "b").lstat().st_ino == inode
    assert said == []


@each_kind
@pytest.mark.usefixtures("no_way")
def test_who_cannot_be_warned_gets_an_error(tmp_path: Path, directory: int, makes: str) -> None:
    put(tmp_path / "a", makes)

    with pytest.raises(OSError):  # noqa: PT011, it is the system's
        kernel.rename_new("a", directory, "b", directory)

    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV])
def test_where_names_cannot_be_exchanged_that_is_said(
    directory: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(kernel, "_renameat2", failing(number))

    with pytest.raises(kernel.CannotExchangeError) as raised:
        kernel.exchange("a", directory, "b", directory)

    assert raised.value.errno == number


def test_a_name_that_is_missing_is_another_matter(tmp_path: Path, directory: int) -> None:
    put(tmp_path / "a", "file")

    with pytest.raises(FileNotFoundError):
        kernel.exchange("a", directory, "b", directory)


def test_what_cannot_be_flushed_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.sync_file_system(-1)


def test_a_process_ends_with_the_one_that_started_it() -> None:
    script = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from archive_overlay.system import kernel
ready, tell = os.pipe()
if os.fork():
    os.read(ready, 1)
    os._exit(0)
kernel.end_with_parent()
os.write(tell, b"x")
time.sleep(60)
"""
    # It has this pipe open until it ends.
    subprocess.run([sys.executable, "-ISc", script, TOP], stdout=subprocess.PIPE, timeout=20, check=True)


def test_where_no_process_can_end_with_another_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "KILL", 1000)

    with pytest.raises(OSError, match="Invalid argument"):
        kernel.end_with_parent()


# Telling files apart


@each_kind
def test_an_entry_is_the_same_one_under_any_name(tmp_path: Path, directory: int, makes: str) -> None:
    put(tmp_path / "a", makes)
    before = kernel.identity("a", directory)
    assert before.partition(".")[0] == str((tmp_path / "a").lstat().st_ino)

    (tmp_path / "a").rename(tmp_path / "b")
    put(tmp_path / "a", makes)

    assert kernel.identity("b", directory) == before
    assert kernel.identity("a", directory) != before


def test_files_that_have_one_inode_number_after_the_other_are_told_apart(
    tmp_path: Path, directory: int
) -> None:
    # Which number a new file gets is the file system's business: some reuse them at once.
    seen: dict[str, set[str]] = {}
    for _ in range(20):
        (tmp_path / "a").touch()
        inode, _, digest = kernel.identity("a", directory).partition(".")
        if not digest:
            tools.cannot_run("the file system says no more of a file than its inode number")
        assert digest not in seen.setdefault(inode, set())
        seen[inode].add(digest)
        (tmp_path / "a").unlink()


def test_what_is_not_there_has_no_identity(directory: int) -> None:
    assert kernel.identity("a", directory) == ""


def test_where_a_file_system_says_no_more_the_inode_number_has_to_do(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        def name_to_handle_at(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(kernel, "_libc", Libc())
    (tmp_path / "a").touch()

    assert kernel.identity("a", directory) == f"{(tmp_path / 'a').stat().st_ino}."
