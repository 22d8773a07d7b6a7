"""Names of staging directories and of backups, which anybody may have given to something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from archive_overlay.destination.names import (
    is_marked,
    is_staging_name,
    new_staging_name,
    set_mark,
    staging_prefix,
    take_backup_name,
    take_free_name,
)
from archive_overlay.marks import TRUSTED_STAGING, USER_STAGING
from tests.support import overlays, tools


class Directory:
    """A directory, in which names are taken by making files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY)
        self.tried: list[str] = []

    def put(self, *names: str) -> None:
        for name in names:
            (self.path / name).touch()

    def take(self, name: str) -> None:
        self.tried.append(name)
        os.close(os.open(name, os.O_CREAT | os.O_EXCL, dir_fd=self.fd))

    def backup(self, name: str = "a") -> str:
        return take_backup_name(name, self.fd, self.take)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


# Staging


def test_staging_names_say_what_they_belong_to() -> None:
    assert staging_prefix("data") == ".data.archive_overlay-"


def test_a_name_is_cut_only_if_it_has_to_be_and_no_more() -> None:
    longest = "n" * (255 - len("..archive_overlay-0123456789ab"))

    assert staging_prefix(longest) == f".{longest}.archive_overlay-"
    assert staging_prefix(longest + "n").startswith(f".{longest[:-9]}-")
    for name in (longest, longest + "n"):
        assert len(staging_prefix(name)) == 255 - len("0123456789ab")


@pytest.mark.parametrize("name", ["", "data", "a.archive_overlay-0123456789ab", "n" * 255, "\udcff" * 255])
def test_names_that_were_given_are_known_again(name: str) -> None:
    assert is_staging_name(new_staging_name(name), name)
    assert is_staging_name(new_staging_name(name))
    assert not is_staging_name(new_staging_name(name), name + "x")


@pytest.mark.parametrize(
    "entry",
    [
        ".data.archive_overlay-0123456789a",
        ".data.archive_overlay-0123456789abc",
        ".data.archive_overlay-0123456789aB",
        ".data.archive_overlay-0123456789a\u0661",
        ".data.archive_overlay-0123456789ab~",
        ".data.archive-overlay-0123456789ab",
        "data.archive_overlay-0123456789ab",
        "archive_overlay-0123456789ab",
        "",
    ],
)
def test_what_is_called_otherwise_is_not_staging(entry: str) -> None:
    assert not is_staging_name(entry)
    assert not is_staging_name(entry, "data")


def test_staging_has_the_mark_that_its_maker_may_set(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert not is_marked(fd)

    name = set_mark(fd)

    assert name == (TRUSTED_STAGING if os.geteuid() == 0 else USER_STAGING)
    assert os.getxattr(fd, name) == b"%d" % tmp_path.stat().st_ino
    assert is_marked(fd)
    os.close(fd)


@pytest.mark.parametrize("value", [b"", b"1", b"y", b"0%d"])
def test_the_mark_of_another_directory_is_none(tmp_path: Path, value: bytes) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    name = set_mark(fd)
    value = value % tmp_path.stat().st_ino if b"%" in value else value

    os.setxattr(fd, name, value)

    assert not is_marked(fd)
    assert os.getxattr(fd, name) == value
    os.close(fd)


def test_who_may_set_the_trusted_mark_believes_no_other(tmp_path: Path) -> None:
    tools.need_root()
    fd = os.open(tmp_path, os.O_RDONLY)
    os.setxattr(fd, USER_STAGING, b"%d" % tmp_path.stat().st_ino)

    assert not is_marked(fd)

    assert os.listxattr(fd) == [USER_STAGING], "it was asked whether it could be set, and not set"
    os.close(fd)


def test_in_a_user_namespace_the_other_mark_is_believed(tmp_path: Path) -> None:
    # tmpfs takes user attributes only since Linux 6.6.
    tools.need("unshare")
    os.chmod(tmp_path, 0o777)
    namespace = overlays.Namespace(rootless=True)

    def mark() -> tuple[str, bool]:
        fd = os.open(tmp_path, os.O_RDONLY)
        return set_mark(fd), is_marked(fd)

    try:
        assert namespace.inside(mark) == (USER_STAGING, True)
    finally:
        namespace.close()


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_where_there_are_no_attributes_nothing_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no attributes")

    monkeypatch.setattr(os, "setxattr", fail)
    monkeypatch.setattr(os, "getxattr", fail)
    fd = os.open(tmp_path, os.O_RDONLY)

    assert set_mark(fd) == ""
    assert not is_marked(fd)
    os.close(fd)


def test_no_room_for_a_mark_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "setxattr", fail)
    fd = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(OSError, match="full"):
        set_mark(fd)
    os.close(fd)


# Backups


def test_backups_are_numbered_after_the_highest(directory: Directory) -> None:
    directory.put("a.~1~", "a.~9~", "a.~x~", "b.~20~")

    assert directory.backup() == "a.~10~"
    assert directory.tried == ["a.~10~"]


@pytest.mark.parametrize(
    "other",
    ["a.~~", "a.~7", "a.7~", "a~7~", "a.~-7~", "a.~7~~", "a.~7~.txt", "ba.~7~", "a.~\u0667~", "a.~\xb2~"],
)
def test_what_is_not_a_backup_does_not_count(directory: Directory, other: str) -> None:
    directory.put(other)

    assert directory.backup() == "a.~1~"


@pytest.mark.parametrize("digits", [10, 19, 100, 248, 251])
@pytest.mark.parametrize("digit", "19")
def test_a_number_that_nobody_counts_up_to_stops_no_backup(
    directory: Directory, digits: int, digit: str
) -> None:
    directory.put("a.~3~", f"a.~{digit * digits}~")

    assert [directory.backup() for _ in range(3)] == ["a.~4~", "a.~5~", "a.~6~"]
    assert len(directory.tried) == 3


def test_whoever_takes_the_last_numbers_stops_no_backup(directory: Directory) -> None:
    directory.put("a.~40~", "a.~41~", "a.~999999997~", "a.~999999999~")

    assert [directory.backup() for _ in range(3)] == ["a.~999999998~", "a.~42~", "a.~43~"]
    assert len(directory.tried) == 3


@pytest.mark.parametrize(
    ("name", "highest"), [("n" * 250, "n" * 250 + ".~99~"), ("n" * 251, "n" * 251 + ".~9~")]
)
def test_a_name_that_has_no_room_for_the_next_number_stops_no_backup(
    directory: Directory, name: str, highest: str
) -> None:
    directory.put(highest)

    assert directory.backup(name) == f"{name}.~1~"


@pytest.mark.parametrize("length", [251, 252, 255])
def test_where_no_number_fits_the_name_is_too_long(directory: Directory, length: int) -> None:
    name = "n" * length
    if length == 251:
        directory.put(*(f"{name}.~{number}~" for number in range(1, 10)))

    with pytest.raises(OSError, match="File name too long"):
        directory.backup(name)
    assert directory.tried == []


def test_any_number_of_names_that_are_taken_costs_one_attempt(directory: Directory) -> None:
    directory.put(*(f"a.~{number}~" for number in range(1, 2000)))
    directory.put("a", *(f"a.~{10**9 - number}~" for number in range(1, 200)))

    assert directory.backup() == "a.~2000~"
    assert take_free_name("a", directory.fd, directory.take) == "a.~2001~"
    assert directory.tried == ["a.~2000~", "a", "a.~2001~"]


def test_a_number_that_was_taken_meanwhile_is_not_taken_again(directory: Directory) -> None:
    directory.put("a.~2~")
    tried: list[str] = []

    def take(name: str) -> None:
        tried.append(name)
        if len(tried) < 3:
            raise FileExistsError

    assert take_backup_name("a", directory.fd, take) == "a.~5~"
    assert tried == ["a.~3~", "a.~4~", "a.~5~"]


def test_nobody_takes_every_name_for_ever(directory: Directory) -> None:
    tried: list[str] = []

    def take(name: str) -> None:
        tried.append(name)
        raise FileExistsError

    with pytest.raises(FileExistsError, match="File exists"):
        take_backup_name("a", directory.fd, take)
    assert len(tried) == len(set(tried)) == 100


def test_a_free_name_is_the_first_one_or_a_numbered_one(directory: Directory) -> None:
    free = [take_free_name("a", directory.fd, directory.take) for _ in range(3)]

    assert free == ["a", "a.~1~", "a.~2~"]


def test_what_describes_a_backup_takes_its_number(directory: Directory) -> None:
    directory.put("a", "a.~1~", "a.~7~.json", "a.~8~.txt")

    name = take_free_name("a", directory.fd, directory.take, described_by=".json")

    assert name == "a.~8~"
