"""The private place of an archive: its names and numbers, who may see it, and what becomes of what is in it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import Staging, staging_prefix, take_free_name
from archive_overlay.errors import ArchiveError, Interrupted
from archive_overlay.log import Log
from archive_overlay.system import kernel
from archive_overlay.system.flush import Never
from tests.support import tools
from tests.support.flushing import Flushed, open_files

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable


def test_staging_names_say_what_they_belong_to() -> None:
    assert staging_prefix("data") == ".data.archive_overlay-"


def test_a_name_is_cut_only_if_it_has_to_be_and_no_more(tmp_path: Path) -> None:
    longest = "n" * (255 - len("..archive_overlay-0123456789ab"))

    assert staging_prefix(longest) == f".{longest}.archive_overlay-"
    assert staging_prefix(longest + "n").startswith(f".{longest[:-9]}-")
    for name in (longest, longest + "n"):
        assert len(staging_prefix(name)) == 255 - len("0123456789ab")


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


@pytest.mark.parametrize(
    "other",
    ["a.~~", "a.~7", "a.7~", "a~7~", "a.~-7~", "a.~7~~", "a.~7~.txt", "ba.~7~", "a.~\u0667~", "a.~\xb2~"],
)
def test_what_is_no_backup_does_not_count(tmp_path: Path, other: str) -> None:
    (tmp_path / other).touch()
    with staged(tmp_path, "a") as staging:
        assert staging.take_backup_name(lambda _: None) == "a.~1~"


def test_a_number_that_was_taken_meanwhile_is_not_taken_again(tmp_path: Path) -> None:
    (tmp_path / "a.~2~").touch()
    tried: list[str] = []

    def take(name: str) -> None:
        tried.append(name)
        if len(tried) < 3:
            raise FileExistsError

    with staged(tmp_path, "a") as staging:
        assert staging.take_backup_name(take) == "a.~5~"
    assert tried == ["a.~3~", "a.~4~", "a.~5~"]


def test_a_free_name_is_the_first_one_or_a_numbered_one() -> None:
    taken: list[str] = []

    def take(name: str) -> None:
        if name in taken:
            raise FileExistsError
        taken.append(name)

    assert [take_free_name("a", take) for _ in range(3)] == ["a", "a.~1~", "a.~2~"]


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


# Who may see it, and where it may be


def test_staging_is_private_whatever_the_directory_hands_down(tmp_path: Path) -> None:
    # linux/posix_acl_xattr.h: version 2; owner, a user, group, mask and others, each with all rights.
    entries = [(0x01, 7, -1), (0x02, 7, 7), (0x04, 7, -1), (0x10, 7, -1), (0x20, 7, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(tmp_path, "system.posix_acl_default", acl)
    tmp_path.chmod(0o2777)

    with staged(tmp_path, "a") as staging:
        assert stat.S_IMODE(os.fstat(staging.directory).st_mode) == 0o700
        assert os.listxattr(staging.directory) == []


def test_attributes_that_cannot_be_removed_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "removexattr", failing(errno.EIO))

    with pytest.raises(
        ArchiveError, match=f"cannot write into {tmp_path}, where the archive is made: Input/"
    ):
        staged(tmp_path, "a").__enter__()

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENODATA, errno.ENOTSUP])
def test_attributes_that_are_not_there_need_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "removexattr", failing(number))

    with staged(tmp_path, "a"):
        pass


def test_staging_in_the_destination_itself_has_no_name_but_a_path(tmp_path: Path) -> None:
    with staged(tmp_path, "") as staging:
        assert (staging.path, staging.name) == (str(tmp_path), "")
        assert os.listdir(tmp_path)[0].startswith(".archive_overlay-")
    with staged(tmp_path, "a") as staging:
        assert (staging.path, staging.name) == (str(tmp_path / "a"), "a")


def test_missing_parents_are_made_and_flushed(tmp_path: Path) -> None:
    flushed = Flushed(tmp_path)
    parent = tmp_path / "one" / "two"
    with Staging(str(parent), "a", paths=Paths(), flush=flushed, log=Log("info", [])) as staging:
        assert staging.flush is flushed
        assert os.path.samestat(os.fstat(staging.parent), parent.stat())
    assert flushed.steps == ["file .", "file one"]
    assert open_files(tmp_path) == []


def test_a_place_that_takes_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = Said()
    with pytest.raises(
        ArchiveError, match=f"cannot write into {tmp_path}/file, where the archive is made: Not a"
    ):
        staged(tmp_path / "file", "a", said).__enter__()
    assert said == []


def test_an_interruption_at_the_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(os, "removexattr", interrupt)

    with pytest.raises(Interrupted):
        staged(tmp_path, "a").__enter__()

    assert os.listdir(tmp_path) == []


# Debris, and what is none


def debris(parent: Path) -> Path:
    made = parent / ".a.archive_overlay-0123456789ab"
    (made / "archive").mkdir(parents=True)
    return made


def test_what_is_removed_of_a_killed_run_is_said_to_who_wants_to_know(tmp_path: Path) -> None:
    debris(tmp_path)
    said = Said()
    with staged(tmp_path, "a", said):
        pass
    assert said == [
        f"debug: removing .a.archive_overlay-0123456789ab in {tmp_path}, left by a run that was killed"
    ]


def test_all_debris_is_removed_whatever_is_beside_it(tmp_path: Path) -> None:
    # In which order a directory is listed nobody knows.
    for number in range(20):
        (tmp_path / f"other{number}").touch()
        (tmp_path / f".a.archive_overlay-{number:012x}").mkdir()
        (tmp_path / f".a.archive_overlay-file{number}").touch()
    with staged(tmp_path, "a"):
        pass
    assert sorted({name.rstrip("0123456789") for name in os.listdir(tmp_path)}) == [
        ".a.archive_overlay-file",
        "other",
    ]


@pytest.mark.parametrize("name", ["b.archive_overlay-0123456789ab", ".b.archive_overlay-0123456789ab", ".a"])
def test_debris_of_others_is_theirs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with staged(tmp_path, "a"):
        pass
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_only_has_the_name_of_debris_stays(tmp_path: Path, kind: str) -> None:
    name = tmp_path / ".a.archive_overlay-0123456789ab"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    name.touch() if kind == "file" else name.symlink_to("precious")
    with staged(tmp_path, "a"):
        pass
    assert name.exists()
    assert (tmp_path / "precious" / "file").exists()


def test_what_another_user_made_stays(tmp_path: Path) -> None:
    tools.need_root()
    os.chown(debris(tmp_path), 1, 1)
    with staged(tmp_path, "a"):
        pass
    assert len(os.listdir(tmp_path)) == 1


def test_where_there_are_no_locks_nobody_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = debris(tmp_path)
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOTSUP))
    with staged(tmp_path, "a"):
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == [other.name]


def test_debris_that_cannot_be_removed_is_said_and_in_nobody_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = debris(tmp_path)
    rmdir = os.rmdir

    def fail_for_debris(name: str, *, dir_fd: int | None = None) -> None:
        if name == other.name:
            failing(errno.EBUSY)()
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", fail_for_debris)
    said = Said()
    with staged(tmp_path, "a", said):
        pass
    assert said[-1] == (
        f"warning: cannot remove the staging directory {other}: Device or resource busy; the next run to the same"
        " destination tries again"
    )
    assert open_files(tmp_path) == []


def test_staging_that_cannot_be_removed_is_said_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said()
    with staged(tmp_path, "a", said):
        (name,) = os.listdir(tmp_path)
        monkeypatch.setattr(os, "rmdir", failing(errno.EBUSY))
    assert said == [
        f"warning: cannot remove the staging directory {tmp_path / name}: Device or resource busy; the next run to"
        " the same destination tries again"
    ]
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("what", ["removed", "locked", "replaced"])
def test_who_takes_a_new_staging_directory_for_debris_only_delays_its_maker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    mkdir = os.mkdir
    locks: list[int] = []
    struck: list[str] = []

    def strike(name: str, mode: int, *, dir_fd: int | None = None) -> None:
        struck.append(name)
        monkeypatch.setattr(os, "mkdir", mkdir)
        mkdir(name, mode, dir_fd=dir_fd)
        if what == "locked":
            locks.append(os.open(name, os.O_RDONLY, dir_fd=dir_fd))
            fcntl.flock(locks[-1], fcntl.LOCK_EX)
        elif what == "removed":
            os.rmdir(name, dir_fd=dir_fd)
        else:
            flock = fcntl.flock

            def replace(fd: int, how: int) -> None:
                monkeypatch.setattr(fcntl, "flock", flock)
                flock(fd, how)
                os.rename(name, "elsewhere", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

            monkeypatch.setattr(fcntl, "flock", replace)

    monkeypatch.setattr(os, "mkdir", strike)

    with staged(tmp_path, "a") as staging:
        mine = os.path.basename(os.readlink(f"/proc/self/fd/{staging.directory}"))
        assert mine.startswith(".a.archive_overlay-")
        assert mine not in struck
        assert os.listdir(staging.directory) == []
        locks.append(os.open(tmp_path / mine, os.O_RDONLY))
        with pytest.raises(BlockingIOError):
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    for fd in locks:
        os.close(fd)
    assert open_files(tmp_path) == []


# An upperdir that is taken, and comes back


class Upper:
    """An upperdir that is going to be the archive."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.out = directory / "out"
        self.path = self.store / "upper"
        for made in (self.store, self.out, self.path):
            made.mkdir()
        (self.path / "made").touch()
        self.fd = os.open(self.store, os.O_RDONLY)

    def take(self, staging: Staging) -> None:
        staging.take("upper", self.fd)

    def is_back(self) -> bool:
        return os.listdir(self.path) == ["made"] and os.listdir(self.out) == []


@pytest.fixture
def upper(tmp_path: Path) -> Upper:
    return Upper(tmp_path)


def test_an_upperdir_that_was_taken_goes_back(upper: Upper) -> None:
    with staged(upper.out, "a") as staging:
        assert not staging.took_upper
        upper.take(staging)
        assert staging.took_upper
        assert os.listdir(upper.store) == []
    os.close(upper.fd)

    assert upper.is_back()
    assert open_files(upper.store.parent) == []


def test_an_upperdir_goes_back_to_where_its_twin_is(upper: Upper) -> None:
    with staged(upper.out, "a") as staging:
        upper.take(staging)
        upper.path.mkdir()
    os.close(upper.fd)

    assert upper.is_back()


def test_an_upperdir_goes_back_from_a_backup_name_too(upper: Upper) -> None:
    with staged(upper.out, "a") as staging:
        upper.take(staging)
        assert staging.pass_by_backup_name() == "a.~1~"
    os.close(upper.fd)

    assert upper.is_back()


def test_an_upperdir_that_was_published_stays_there(upper: Upper) -> None:
    with staged(upper.out, "a") as staging:
        upper.take(staging)
        kernel.rename_new("archive", staging.directory, "a", staging.parent)
    os.close(upper.fd)

    assert os.listdir(upper.out) == ["a"]
    assert os.listdir(upper.store) == []
    assert open_files(upper.store.parent) == []


def test_an_upperdir_that_was_exchanged_for_an_old_archive_stays(upper: Upper) -> None:
    (upper.out / "a").mkdir()
    with staged(upper.out, "a") as staging:
        upper.take(staging)
        kernel.exchange("archive", staging.directory, "a", staging.parent)
    os.close(upper.fd)

    assert os.listdir(upper.out / "a") == ["made"]
    assert (os.listdir(upper.out), os.listdir(upper.store)) == (["a"], [])


def test_an_upperdir_that_cannot_be_taken_stays(upper: Upper, monkeypatch: pytest.MonkeyPatch) -> None:
    with staged(upper.out, "a") as staging:
        monkeypatch.setattr(os, "rename", failing(errno.EXDEV))
        with pytest.raises(OSError, match="Invalid cross-device link"):
            upper.take(staging)
        assert os.listdir(staging.directory) == []
    os.close(upper.fd)

    assert upper.is_back()


def test_an_upperdir_that_a_killed_run_took_is_kept_by_the_next(upper: Upper) -> None:
    dead = debris(upper.out)
    (dead / "archive").rmdir()
    upper.path.rename(dead / "archive")
    (dead / f"keep-{(dead / 'archive').stat().st_ino}").mkdir()
    (dead / "keep-1").mkdir()
    os.close(upper.fd)

    with staged(upper.out, "a"):
        pass

    assert os.listdir(upper.out) == ["a.~1~"]
    assert os.listdir(upper.out / "a.~1~") == ["made"]


# An archive on its way through a backup name


def test_an_archive_comes_back_from_its_backup_name(tmp_path: Path) -> None:
    with staged(tmp_path, "a") as staging:
        put_archive(staging)
        assert staging.pass_by_backup_name() == "a.~1~"
        assert (tmp_path / "a.~1~").read_text() == "new"
        staging.recall()
        assert os.listdir(staging.directory) == ["archive"]
        staging.recall()
    assert os.listdir(tmp_path) == []


def test_an_archive_under_a_backup_name_is_no_backup(tmp_path: Path) -> None:
    (tmp_path / "a.~1~").write_text("old")
    with staged(tmp_path, "a") as staging:
        put_archive(staging)
        assert staging.pass_by_backup_name() == "a.~2~"
    assert os.listdir(tmp_path) == ["a.~1~"]
    assert (tmp_path / "a.~1~").read_text() == "old"


def test_an_archive_that_has_passed_is_not_called_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with staged(tmp_path, "a") as staging:
        put_archive(staging)
        backup = staging.pass_by_backup_name()
        kernel.exchange(backup, staging.parent, "a", staging.parent)
        staging.passed()
        assert os.listdir(staging.directory) == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "a.~1~": "old"}


def test_an_archive_that_a_killed_run_left_under_a_backup_name_is_removed(tmp_path: Path) -> None:
    dead = debris(tmp_path)
    for name in ("a.~1~", "a.~2~"):
        (tmp_path / name).write_text(name)
    (dead / f"passing-{(tmp_path / 'a.~2~').stat().st_ino}").mkdir()
    for number in range(20):
        (dead / f"keep-{number}").mkdir()

    (dead / "archive").rmdir()
    with staged(tmp_path, "a"):
        pass

    assert os.listdir(tmp_path) == ["a.~1~"]


def test_the_times_that_are_to_be_kept_are_those_of_then(tmp_path: Path) -> None:
    with staged(tmp_path, "") as staging:
        os.utime(tmp_path, ns=(10**9, 2 * 10**9))
        staging.keep_times()
    status = tmp_path.stat()
    assert status.st_mtime_ns == 2 * 10**9


def put_archive(staging: Staging) -> None:
    with open(os.open("archive", os.O_WRONLY | os.O_CREAT, dir_fd=staging.directory), "w") as file:
        file.write("new")


class Said(list[str]):
    """A log sink that keeps what it is given."""

    def write(self, level: str, message: str) -> None:
        self.append(f"{level}: {message}")


def failing(number: int) -> Callable[..., None]:
    """Give a call that fails."""

    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def staged(parent: Path, name: str, said: Said | None = None) -> Staging:
    log = Log("debug", [Said() if said is None else said])
    return Staging(str(parent), name, paths=Paths(), flush=Never(), log=log)
