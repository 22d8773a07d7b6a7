"""Names of staging directories, and numbers of backups."""

from __future__ import annotations

import os
from pathlib import Path

from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import Staging, staging_prefix
from archive_overlay.log import Log
from archive_overlay.system.flush import Never


def test_staging_names_say_what_they_belong_to() -> None:
    assert staging_prefix("data") == ".data.archive_overlay-"


def test_names_of_any_length_can_be_staged_and_stay_apart(tmp_path: Path) -> None:
    long = "n" * 254
    assert staging_prefix(long + "a") != staging_prefix(long + "b")
    for name in (long + "a", os.fsdecode(b"\xff" * 255), "é" * 127):
        with staged(tmp_path, name) as staging:
            (made,) = os.listdir(tmp_path)
            assert made.startswith(staging_prefix(name))
            assert os.path.samestat(os.fstat(staging.directory), os.stat(tmp_path / made))
        assert os.listdir(tmp_path) == []


def test_backups_are_numbered_after_the_highest_there_is(tmp_path: Path) -> None:
    for name in ("a.~1~", "a.~9~", "a.~x~", "b.~20~"):
        (tmp_path / name).touch()
    taken: list[str] = []
    with staged(tmp_path, "a") as staging:
        assert staging.take_backup_name(taken.append) == "a.~10~"
    assert taken == ["a.~10~"]


def test_staging_of_a_living_run_is_left_alone_and_of_a_dead_one_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".a.archive_overlay-0123456789ab"
    (dead / "archive" / "deep").mkdir(parents=True)
    with staged(tmp_path, "a") as first:
        assert not dead.exists()
        with staged(tmp_path, "a"):
            assert os.fstat(first.directory).st_nlink > 0
            assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


def test_an_old_archive_that_was_exchanged_by_a_killed_run_gets_its_backup_name(tmp_path: Path) -> None:
    dead = tmp_path / ".a.archive_overlay-0123456789ab"
    archive = dead / "archive"
    archive.mkdir(parents=True)
    (archive / "old").touch()
    (dead / f"keep-{archive.stat().st_ino}").mkdir()
    with staged(tmp_path, "a"):
        pass
    assert os.listdir(tmp_path) == ["a.~1~"]
    assert os.listdir(tmp_path / "a.~1~") == ["old"]


def test_an_archive_that_was_never_published_is_debris(tmp_path: Path) -> None:
    dead = tmp_path / ".a.archive_overlay-0123456789ab"
    (dead / "archive").mkdir(parents=True)
    (dead / "keep-1").mkdir()
    with staged(tmp_path, "a"):
        pass
    assert os.listdir(tmp_path) == []


def staged(parent: Path, name: str) -> Staging:
    return Staging(str(parent), name, paths=Paths(), flush=Never(), log=Log("info", []))
