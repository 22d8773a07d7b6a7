"""The private place of an archive: its names and numbers, who may see it, and what becomes of what is in it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Callable

import pytest

from archive_overlay.destination.names import staging_prefix
from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import Staging
from archive_overlay.errors import ArchiveError, Interrupted
from archive_overlay.log import Log
from archive_overlay.marks import TRUSTED, TRUSTED_STAGING, USER, USER_STAGING
from archive_overlay.system import kernel
from archive_overlay.system.flush import Never
from tests.support import debris, tools, trees
from tests.support.flushing import Flushed, open_files

if TYPE_CHECKING:
    from pathlib import Path


def test_names_of_any_length_can_be_staged_and_stay_apart(tmp_path: Path) -> None:
    long = "n" * 254
    assert staging_prefix(long + "a") != staging_prefix(long + "b")
    for name in (long + "a", os.fsdecode(b"\xff" * 255), "é" * 127):
        with staged(tmp_path, name) as staging:
            (made,) = os.listdir(tmp_path)
            assert made.startswith(staging_prefix(name))
            assert os.path.samestat(os.fstat(staging.directory), os.stat(tmp_path / made))
        assert os.listdir(tmp_path) == []


def test_staging_of_a_living_run_is_left_alone_and_of_a_dead_one_removed(tmp_path: Path) -> None:
    dead = debris.put(tmp_path, "a")
    (dead / "archive" / "deep").mkdir(parents=True)
    with staged(tmp_path, "a") as first:
        assert not dead.exists()
        with staged(tmp_path, "a"):
            assert os.fstat(first.directory).st_nlink > 0
            assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


def test_an_old_archive_that_was_exchanged_by_a_killed_run_gets_its_backup_name(tmp_path: Path) -> None:
    dead = debris.put(tmp_path, "a")
    archive = dead / "archive"
    archive.mkdir()
    (archive / "old").touch()
    (dead / f"keep-{archive.stat().st_ino}").mkdir()
    with staged(tmp_path, "a"):
        pass
    assert os.listdir(tmp_path) == ["a.~1~"]
    assert os.listdir(tmp_path / "a.~1~") == ["old"]


def test_an_archive_that_was_never_published_is_debris(tmp_path: Path) -> None:
    dead = debris.put(tmp_path, "a")
    (dead / "archive").mkdir()
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
        assert os.listxattr(staging.directory) == [staging.mark]


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


def killed(parent: Path) -> Path:
    """Give the staging directory of a run that was killed."""
    made = debris.put(parent, "a")
    (made / "archive").mkdir()
    return made


def test_what_is_removed_of_a_killed_run_is_said_to_who_wants_to_know(tmp_path: Path) -> None:
    dead = killed(tmp_path)
    said = Said()
    with staged(tmp_path, "a", said):
        pass
    assert said == [f"debug: removing {dead.name} in {tmp_path}, left by a run that was killed"]


def test_all_debris_is_removed_whatever_is_beside_it(tmp_path: Path) -> None:
    # In which order a directory is listed nobody knows.
    for number in range(20):
        (tmp_path / f"other{number}").touch()
        debris.put(tmp_path, "a")
        (tmp_path / f".a.archive_overlay-file{number}").touch()
    with staged(tmp_path, "a"):
        pass
    assert sorted({name.rstrip("0123456789") for name in os.listdir(tmp_path)}) == [
        ".a.archive_overlay-file",
        "other",
    ]


@pytest.mark.parametrize("other", ["b", "", "aa", ".a", "a.archive_overlay-0123456789ab"])
def test_debris_of_others_is_theirs(tmp_path: Path, other: str) -> None:
    name = debris.put(tmp_path, other).name
    said = Said()
    with staged(tmp_path, "a", said):
        pass
    assert (os.listdir(tmp_path), said) == ([name], [])


def look_alike(path: Path) -> None:
    """Make a directory that looks as if a run had been killed, and has something of somebody else in it."""
    (path / "archive").mkdir(parents=True)
    (path / "archive" / "file").write_text("precious")
    (path / "other").write_text("precious")
    path.chmod(0o700)


MARKS: dict[str, Callable[[bytes], dict[str, bytes]]] = {
    "none": lambda inode: {},
    "of another": lambda inode: {TRUSTED_STAGING: b"1", USER_STAGING: b"1"},
    "empty": lambda inode: {TRUSTED_STAGING: b"", USER_STAGING: b""},
    "escaped": lambda inode: {
        f"{TRUSTED}overlay.archive_overlay": inode,
        f"{USER}overlay.archive_overlay": inode,
    },
    "what a container can set": lambda inode: {USER_STAGING: inode},
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_directory_of_somebody_else_that_looks_like_debris_stays_as_it_is(
    tmp_path: Path, mark: str
) -> None:
    tools.need_root()
    path = tmp_path / ".a.archive_overlay-0123456789ab"
    look_alike(path)
    (path / f"keep-{(path / 'archive').stat().st_ino}").mkdir()
    for name, value in MARKS[mark](b"%d" % path.stat().st_ino).items():
        os.setxattr(path, name, value)
    before = trees.view(path), trees.traces(path)
    said = Said()

    with staged(tmp_path, "a", said):
        assert len(os.listdir(tmp_path)) == 2

    assert os.listdir(tmp_path) == [path.name]
    assert (trees.view(path), trees.traces(path)) == before
    assert said == [
        f"warning: {path} may be left from a killed run, or belong to somebody else: it has no mark of this program, so it"
        " stays; check it, and remove it yourself"
    ]
    assert open_files(tmp_path) == []


def test_any_number_of_look_alikes_costs_one_line(tmp_path: Path) -> None:
    for number in range(20):
        look_alike(tmp_path / f".a.archive_overlay-{number:012x}")
    said = Said()

    with staged(tmp_path, "a", said):
        pass

    assert len(os.listdir(tmp_path)) == 20
    assert [line.partition(" may be ")[0] for line in said] == [
        f"warning: {tmp_path}/.a.archive_overlay-000000000000 and 19 more"
    ]


def test_a_look_alike_that_is_gone_at_the_end_is_not_told_of(tmp_path: Path) -> None:
    path = tmp_path / ".a.archive_overlay-0123456789ab"
    path.mkdir()
    said = Said()

    with staged(tmp_path, "a", said):
        path.rmdir()

    assert said == []


def test_a_run_that_has_just_begun_is_not_told_of(tmp_path: Path) -> None:
    path = tmp_path / ".a.archive_overlay-0123456789ab"
    path.mkdir()
    said = Said()

    with staged(tmp_path, "a", said):
        lock = os.open(path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)

    assert (os.listdir(tmp_path), said) == ([path.name], [])
    os.close(lock)


def test_where_nothing_can_be_marked_debris_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setxattr", failing(errno.ENOTSUP))
    monkeypatch.setattr(os, "getxattr", failing(errno.ENOTSUP))
    dead = tmp_path / ".a.archive_overlay-0123456789ab"
    look_alike(dead)
    said, others = Said(), Said()

    with staged(tmp_path, "a", said) as staging:
        assert staging.mark == ""
        with staged(tmp_path, "a", others):
            assert len(os.listdir(tmp_path)) == 3

    assert os.listdir(tmp_path) == [dead.name]
    for lines in (said, others):
        assert len(lines) == 1, "and not of the run that is alive"
        assert str(dead) in lines[0]


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
    os.chown(killed(tmp_path), 1, 1)
    with staged(tmp_path, "a"):
        pass
    assert len(os.listdir(tmp_path)) == 1


def test_where_there_are_no_locks_nobody_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = killed(tmp_path)
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOTSUP))
    with staged(tmp_path, "a"):
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == [other.name]


def test_debris_that_cannot_be_removed_is_said_and_in_nobody_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = killed(tmp_path)
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


@pytest.mark.parametrize("marks", [True, False], ids=["", "no-marks"])
@pytest.mark.parametrize("what", ["removed", "locked", "replaced"])
def test_who_takes_a_new_staging_directory_for_debris_only_delays_its_maker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, marks: bool
) -> None:
    if not marks:
        monkeypatch.setattr(os, "setxattr", failing(errno.ENOTSUP))
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
        assert marks or struck[0] not in os.listdir(tmp_path), "nobody else removes it"
        locks.append(os.open(tmp_path / mine, os.O_RDONLY))
        with pytest.raises(BlockingIOError):
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    for fd in locks:
        os.close(fd)
    assert open_files(tmp_path) == []


# Somebody who may write to the directory that staging is in


def test_what_takes_the_place_of_staging_is_not_removed(tmp_path: Path) -> None:
    said = Said()
    with staged(tmp_path, "a", said) as staging:
        put_archive(staging)
        (name,) = os.listdir(tmp_path)
        (tmp_path / name).rename(tmp_path / "elsewhere")
        look_alike(tmp_path / name)
        before = trees.view(tmp_path / name)

    assert trees.view(tmp_path / name) == before
    assert os.listdir(tmp_path / "elsewhere") == [], (
        "what is in the staging directory is removed wherever that is"
    )
    assert [line.partition(":")[0] for line in said] == ["warning"]
    assert open_files(tmp_path) == []


def test_what_takes_the_place_of_a_new_staging_directory_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    look_alike(precious)
    before = trees.view(precious), trees.traces(precious)
    mkdir = os.mkdir

    def exchange(name: str, mode: int, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.rename("precious", name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", exchange)

    with pytest.raises(ArchiveError, match="a directory that had just been made was exchanged for another"):
        staged(tmp_path, "a").__enter__()

    (name,) = os.listdir(tmp_path)
    after = trees.view(tmp_path / name), trees.traces(tmp_path / name)
    assert after[0] == before[0]
    assert {path: time for path, time in after[1].items() if path != b"."} == {
        path: time for path, time in before[1].items() if path != b"."
    }
    assert os.listxattr(tmp_path / name) == []
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


def test_it_does_so_where_names_cannot_be_exchanged(upper: Upper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_renameat2", failing(errno.EPERM))
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
    dead = killed(upper.out)
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


@pytest.fixture
def passing(tmp_path: Path) -> Callable[[str], Path]:
    """Let a run be killed when its archive has a backup name, and give the note that it leaves."""

    def passing(backup: str) -> Path:
        dead = killed(tmp_path)
        (dead / "archive").rmdir()
        fd = os.open(tmp_path, os.O_RDONLY)
        note = dead / f"passing-{backup[len('a.~') : -1]}-{kernel.identity(backup, fd)}"
        os.close(fd)
        note.mkdir()
        for number in range(20):
            (dead / f"keep-{number}").mkdir()
        return note

    return passing


def test_an_archive_that_a_killed_run_left_under_a_backup_name_is_removed(
    tmp_path: Path, passing: Callable[[str], Path]
) -> None:
    for name in ("a.~1~", "a.~2~"):
        (tmp_path / name).write_text(name)
    passing("a.~2~")

    with staged(tmp_path, "a"):
        pass

    assert os.listdir(tmp_path) == ["a.~1~"]


def test_the_note_of_a_run_is_the_one_that_the_next_reads(
    tmp_path: Path, passing: Callable[[str], Path]
) -> None:
    with staged(tmp_path, "a") as staging:
        put_archive(staging)
        backup = staging.pass_by_backup_name()
        (note,) = os.listdir(staging.directory)
        assert note == passing(backup).name


def test_what_has_the_name_that_an_archive_had_is_not_taken_for_it(
    tmp_path: Path, passing: Callable[[str], Path]
) -> None:
    for name in ("a.~1~", "a.~2~"):
        (tmp_path / name).write_text(name)
    note = passing("a.~2~")
    # Somebody gave it another name, and its own to something else.
    (tmp_path / "a.~2~").rename(tmp_path / "a.~3~")
    (tmp_path / "a.~2~").write_text("another")

    with staged(tmp_path, "a"):
        pass

    assert not note.exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.~1~": "a.~1~",
        "a.~2~": "another",
        "a.~3~": "a.~2~",
    }


def test_a_file_that_has_got_the_inode_number_of_an_archive_is_not_taken_for_it(
    tmp_path: Path, passing: Callable[[str], Path]
) -> None:
    (tmp_path / "a.~1~").write_text("another")
    note = passing("a.~1~")
    inode, dot, digest = note.name.rpartition("-")[2].partition(".")
    assert (inode, dot) == (str((tmp_path / "a.~1~").stat().st_ino), ".")
    if not digest:
        tools.cannot_run("the file system does not tell files apart that have had one inode number")
    note.rename(note.with_name(f"passing-1-{inode}.{'0' * 8}"))

    with staged(tmp_path, "a"):
        pass

    assert (tmp_path / "a.~1~").read_text() == "another"


@pytest.mark.parametrize("note", ["passing-", "passing-1-", "passing--", "passing-1", "passing-1-1."])
def test_a_note_that_names_no_archive_moves_nothing(tmp_path: Path, note: str) -> None:
    (tmp_path / "a.~1~").write_text("old")
    dead = killed(tmp_path)
    (dead / note).mkdir()

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


# Files that are to be archives


ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", *entry)
    for entry in [(0x01, 6, -1), (0x02, 4, 7), (0x04, 0, -1), (0x10, 6, -1), (0x20, 0, -1)]
)


def made(parent: Path, name: str = "a", file_mode: int | None = None, mask: int = 0o022) -> tuple[int, bool]:
    """Give the mode of a file that is made, and whether it has an ACL."""
    said = Said()
    log = Log("debug", [said])
    old = os.umask(mask)
    try:
        with Staging(
            str(parent), name, paths=Paths(), flush=Never(), log=log, file_mode=file_mode
        ) as staging:
            fd = staging.create_file("archive")
            status, attributes = os.fstat(fd), os.listxattr(fd)
            os.close(fd)
            assert "system.posix_acl_default" not in os.listxattr(staging.directory)
            assert stat.S_IMODE(os.fstat(staging.directory).st_mode) == 0o700
    finally:
        os.umask(old)
    assert said == []
    return stat.S_IMODE(status.st_mode), attributes == ["system.posix_acl_access"]


each_mask = pytest.mark.parametrize("mask", [0, 0o022, 0o077])
each_place = pytest.mark.parametrize("name", ["a", ""])


@each_mask
@each_place
def test_a_file_is_for_its_owner_alone(tmp_path: Path, name: str, mask: int) -> None:
    assert made(tmp_path, name, mask=mask) == (0o600, False)


@each_mask
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_has_the_mode_that_the_administrator_gave(tmp_path: Path, mode: int, mask: int) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)

    assert made(tmp_path, file_mode=mode, mask=mask) == (mode, False)


@each_mask
@each_place
def test_a_file_inherits_what_it_would_inherit_beside_staging(tmp_path: Path, name: str, mask: int) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)

    assert made(tmp_path, name, mask=mask) == (0o660, True)


@pytest.mark.parametrize("call", ["getxattr", "setxattr"])
def test_an_acl_that_cannot_be_read_or_given_leaves_a_file_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    said = Said()
    with staged(tmp_path, "a", said) as staging:
        monkeypatch.setattr(os, call, failing(errno.EINVAL))
        fd = staging.create_file("archive")
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    os.close(fd)

    assert mode == 0o600
    assert said == [
        f"warning: {tmp_path}/a is accessible to its owner only: the default ACL of {tmp_path} cannot be used: Invalid argument"
    ]
