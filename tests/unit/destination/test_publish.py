"""Archives come to their place whole, whatever is there, and whatever others do there meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.destination import merge
from archive_overlay.destination.paths import Paths
from archive_overlay.destination.publish import judge_destination
from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from archive_overlay.system import kernel
from archive_overlay.system.patience import Patience
from tests.support.flushing import Flushed, open_files

if TYPE_CHECKING:
    from typing import Any, Callable

    from archive_overlay.destination.publish import Destination

TIME = 1_234_567_890 * 10**9


class Stop:
    """One stop of a container that has made an archive, and has only to publish it.

    Attributes:
        out: the directory of the archive; it has nothing else in it.
        archive: where the archive is to be.
        flushed: what would be flushed.
    """

    def __init__(self, directory: Path) -> None:
        self.upper = directory / "upper"
        self.out = directory / "out"
        self.archive = self.out / "archive"
        self.flushed = Flushed(directory)
        for made in (self.upper, self.out):
            made.mkdir()

    def judge(self, makes: str, if_exists: str, archive: Path | None = None) -> Destination:
        return judge_destination(
            str(archive or self.archive),
            makes=makes,
            if_exists=if_exists,
            upper=str(self.upper),
            paths=Paths(),
        )

    def publish(
        self, makes: str, if_exists: str, *, meanwhile: Callable[[], object] = lambda: None
    ) -> Destination:
        destination = self.judge(makes, if_exists)
        with destination.stage(self.flushed, Log("info", [])) as staging:
            put(Path(f"/proc/self/fd/{staging.directory}/archive"), makes, "new")
            meanwhile()
            assert destination.publish(staging, None) == ""
        return destination

    def found(self) -> dict[str, str]:
        """Give what is beside the archive and what each is: the text of a file, the one name in a directory."""
        return {path.name: what_is_at(path) for path in sorted(self.out.iterdir())}


def put(path: Path, makes: str, what: str) -> None:
    """Make an archive that can be told from others."""
    if makes == "file":
        path.write_text(what)
        return
    path.mkdir()
    (path / what).touch()
    os.utime(path, ns=(TIME, TIME))


def what_is_at(path: Path) -> str:
    return path.read_text() if path.is_file() else " ".join(sorted(os.listdir(path)))


@pytest.fixture
def stop(tmp_path: Path) -> Stop:
    return Stop(tmp_path)


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file system on which no two names can take each other's place."""

    def exchange(*_: object) -> None:
        raise kernel.CannotExchangeError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(kernel, "exchange", exchange)


def first(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, do: Callable[[], object]) -> None:
    """Let somebody else do something just before a function is called for the first time."""
    function = getattr(module, name)

    def called(*arguments: Any, **more: Any) -> object:
        monkeypatch.setattr(module, name, function)
        do()
        return function(*arguments, **more)

    monkeypatch.setattr(module, name, called)


each_kind = pytest.mark.parametrize("makes", ["directory", "file"])


# What is refused before anything is written


def test_the_root_directory_is_no_archive(stop: Stop) -> None:
    with pytest.raises(ArchiveError, match="archive-to is the root directory; name something inside it"):
        stop.judge("directory", "merge", Path("/"))


@each_kind
def test_no_archive_goes_into_the_upperdir(stop: Stop, makes: str) -> None:
    with pytest.raises(ArchiveError, match=r"archive-to .* is the upperdir .* or in it"):
        stop.judge(makes, "replace", stop.upper / "archive")


@pytest.mark.parametrize("if_exists", ["merge", "replace", "backup"])
def test_a_directory_takes_no_file_s_place(stop: Stop, if_exists: str) -> None:
    stop.archive.touch()
    with pytest.raises(ArchiveError, match="is not a directory, but the archive will be one"):
        stop.judge("directory", if_exists)


@pytest.mark.parametrize("if_exists", ["replace", "backup"])
@pytest.mark.parametrize(
    "there", [os.mkfifo, lambda path: put(path, "directory", "old")], ids=["fifo", "tree"]
)
def test_a_file_takes_the_place_of_nothing_but_a_file(
    stop: Stop, if_exists: str, there: Callable[[Path], object]
) -> None:
    there(stop.archive)
    with pytest.raises(ArchiveError, match="is not a regular file, but the archive will be one"):
        stop.judge("file", if_exists)


@each_kind
def test_what_is_there_is_taken_only_if_that_was_asked_for(stop: Stop, makes: str) -> None:
    put(stop.archive, makes, "old")
    with pytest.raises(ArchiveError, match="archive exists; if-exists=fail does not replace it"):
        stop.judge(makes, "fail")


@each_kind
@pytest.mark.parametrize("if_exists", ["fail", "replace", "backup"])
def test_an_empty_directory_is_nobody_s_archive(stop: Stop, makes: str, if_exists: str) -> None:
    stop.archive.mkdir()

    stop.publish(makes, if_exists)

    assert stop.found() == {"archive": "new"}
    assert stop.archive.is_dir() == (makes == "directory")


def test_where_mounts_cannot_be_read_a_directory_is_taken_for_none(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stop.archive, "directory", "old")

    def read() -> None:
        raise FileNotFoundError(errno.ENOENT, "/proc is not mounted")

    monkeypatch.setattr("archive_overlay.system.mountinfo.read", read)

    assert not stop.publish("directory", "replace").mount_point
    assert stop.found() == {"archive": "new"}


# What becomes of what is there


@each_kind
@pytest.mark.parametrize("if_exists", ["replace", "backup", "fail"])
def test_an_archive_comes_to_a_new_place(stop: Stop, makes: str, if_exists: str) -> None:
    stop.publish(makes, if_exists)

    assert stop.found() == {"archive": "new"}
    staging = "out/.archive.archive_overlay-"
    assert stop.flushed.steps == [
        f"file system {staging}" if makes == "directory" else f"file {staging}/archive",
        "file out",
    ]
    assert open_files(stop.out) == []


EXPECTED = {
    "replace": {"archive": "new"},
    "backup": {"archive": "new", "archive.~1~": "old"},
    "merge": {"archive": "new old"},
}


@each_kind
@pytest.mark.parametrize("if_exists", EXPECTED)
def test_an_old_archive_is_treated_as_asked(stop: Stop, makes: str, if_exists: str) -> None:
    if if_exists == "merge" and makes == "file":
        return
    put(stop.archive, makes, "old")

    stop.publish(makes, if_exists)

    assert stop.found() == EXPECTED[if_exists]
    # A merge has made entries in many directories.
    assert stop.flushed.steps[1:] == ["file system out" if if_exists == "merge" else "file out"]
    assert open_files(stop.out) == []


@each_kind
@pytest.mark.parametrize("if_exists", ["replace", "backup"])
@pytest.mark.usefixtures("no_exchange")
def test_where_names_cannot_be_exchanged_it_is_the_same(stop: Stop, makes: str, if_exists: str) -> None:
    put(stop.archive, makes, "old")

    stop.publish(makes, if_exists)

    assert stop.found() == EXPECTED[if_exists]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
@pytest.mark.usefixtures("no_exchange")
def test_where_there_are_no_hard_links_either_it_is_the_same(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    put(stop.archive, "file", "old")
    monkeypatch.setattr(os, "link", failing(number))

    stop.publish("file", "backup")

    assert stop.found() == EXPECTED["backup"]


@pytest.mark.usefixtures("no_exchange")
def test_a_backup_that_cannot_be_made_leaves_the_old_archive(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stop.archive, "file", "old")
    monkeypatch.setattr(os, "link", failing(errno.ENOSPC))

    with pytest.raises(ArchiveError, match=f"cannot put the archive at {stop.archive}: No space left"):
        stop.publish("file", "backup")

    assert stop.found() == {"archive": "old"}


@pytest.mark.usefixtures("no_exchange")
def test_a_symbolic_link_that_took_the_old_archive_s_place_is_backed_up_itself(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stop.archive, "file", "old")
    precious = stop.upper / "precious"
    precious.write_text("precious")

    def replace_by_link() -> None:
        stop.archive.unlink()
        stop.archive.symlink_to(precious)

    stop.publish("file", "backup", meanwhile=replace_by_link)

    assert (stop.out / "archive.~1~").is_symlink()
    assert precious.read_text() == "precious"
    assert stop.archive.read_text() == "new"


def failing(number: int) -> Callable[..., None]:
    """Give a call that fails."""

    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


# What others do meanwhile


@each_kind
def test_what_was_put_there_at_the_last_moment_is_not_lost(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, makes: str
) -> None:
    first(monkeypatch, kernel, "rename_new", lambda: put(stop.archive, makes, "other"))

    with pytest.raises(ArchiveError, match="archive exists; if-exists=fail does not replace it"):
        stop.publish(makes, "fail")

    assert stop.found() == {"archive": "other"}


@pytest.mark.parametrize(
    ("makes", "if_exists", "found"),
    [
        ("directory", "replace", {"archive": "new"}),
        ("directory", "merge", {"archive": "new other"}),
        ("directory", "backup", {"archive": "new", "archive.~1~": "other"}),
        ("file", "backup", {"archive": "new", "archive.~1~": "other"}),
    ],
)
def test_what_was_put_there_at_the_last_moment_is_treated_as_asked(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, makes: str, if_exists: str, found: dict[str, str]
) -> None:
    first(monkeypatch, kernel, "rename_new", lambda: put(stop.archive, makes, "other"))

    stop.publish(makes, if_exists)

    assert stop.found() == found


@each_kind
@pytest.mark.parametrize("if_exists", ["replace", "backup"])
def test_what_went_away_at_the_last_moment_is_not_missed(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, makes: str, if_exists: str
) -> None:
    put(stop.archive, makes, "old")
    first(monkeypatch, kernel, "exchange", lambda: stop.archive.rename(stop.upper / "elsewhere"))

    stop.publish(makes, if_exists)

    assert (stop.upper / "elsewhere").exists() == (makes == "directory" or if_exists == "backup")
    assert stop.found() == {"archive": "new"}


@each_kind
def test_who_changes_the_destination_all_the_time_does_not_keep_the_hook(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, makes: str
) -> None:
    monkeypatch.setattr(kernel, "rename_new", failing(errno.EEXIST))

    with pytest.raises(ArchiveError, match=f"other programs keep changing archive-to {stop.archive}"):
        stop.publish(makes, "replace")

    assert stop.found() == {}


def test_an_empty_directory_that_cannot_be_removed_is_said_to_be_so(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop.archive.mkdir()
    rmdir = os.rmdir

    def fail_at_the_destination(name: str, *, dir_fd: int | None = None) -> None:
        if name == "archive":
            failing(errno.EBUSY)()
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", fail_at_the_destination)

    with pytest.raises(
        ArchiveError, match=f"cannot put the archive at {stop.archive}: Device or resource busy"
    ):
        stop.publish("file", "replace")

    assert stop.found() == {"archive": ""}


@pytest.mark.parametrize("if_exists", ["merge", "replace", "backup"])
@pytest.mark.parametrize(("makes", "other"), [("directory", "file"), ("file", "directory")])
def test_what_has_become_something_else_stays(stop: Stop, makes: str, other: str, if_exists: str) -> None:
    with pytest.raises(ArchiveError, match=f"{stop.archive} is no longer a {makes}"):
        stop.publish(makes, if_exists, meanwhile=lambda: put(stop.archive, other, "other"))

    assert stop.found() == {"archive": "other"}


@each_kind
def test_an_archive_that_another_run_backs_up_at_once_is_not_taken_back(stop: Stop, makes: str) -> None:
    put(stop.archive, makes, "old")
    destination = stop.judge(makes, "backup")
    with destination.stage(stop.flushed, Log("info", [])) as staging:
        put(Path(f"/proc/self/fd/{staging.directory}/archive"), makes, "new")
        destination.publish(staging, None)
        stop.archive.rename(stop.out / "archive.~2~")

    assert stop.found() == {"archive.~1~": "old", "archive.~2~": "new"}


@each_kind
def test_an_exchange_that_fails_leaves_the_old_archive_and_no_backup(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, makes: str
) -> None:
    put(stop.archive, makes, "old")
    exchange = failing(errno.EIO)
    monkeypatch.setattr(kernel, "exchange", exchange)

    with pytest.raises(ArchiveError, match=f"cannot put the archive at {stop.archive}: Input/output error"):
        stop.publish(makes, "backup")

    assert stop.found() == {"archive": "old"}


@pytest.mark.parametrize("if_exists", ["replace", "backup"])
@pytest.mark.usefixtures("no_exchange")
def test_an_old_archive_that_was_set_aside_in_vain_comes_back(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, if_exists: str
) -> None:
    put(stop.archive, "directory", "old")
    rename_new = kernel.rename_new

    def fail_at_the_destination(name: str, directory: int, new_name: str, *more: Any) -> None:
        if (name, new_name) == ("archive", "archive"):
            failing(errno.EIO)()
        rename_new(name, directory, new_name, *more)

    monkeypatch.setattr(kernel, "rename_new", fail_at_the_destination)

    with pytest.raises(ArchiveError, match="Input/output error"):
        stop.publish("directory", if_exists)

    assert stop.found() == {"archive": "old"}


@each_kind
def test_a_flush_that_fails_publishes_nothing(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, makes: str
) -> None:
    monkeypatch.setattr(stop.flushed, "file_system", failing(errno.EIO))
    monkeypatch.setattr(stop.flushed, "file", failing(errno.EIO))

    with pytest.raises(ArchiveError, match=f"cannot put the archive at {stop.archive}: Input/output error"):
        stop.publish(makes, "replace")

    assert stop.found() == {}
    assert open_files(stop.out) == []


def test_an_archive_is_private_until_it_is_published(stop: Stop) -> None:
    destination = stop.judge("directory", "replace")
    with destination.stage(stop.flushed, Log("info", [])) as staging:
        assert stat.S_IMODE(os.fstat(staging.directory).st_mode) == 0o700


# Merging at once


class Turns(Patience):
    """Somebody else's lock, and how long this run waits for it.

    Args:
        directory: what is locked.
        after: the lock goes after so many naps.
        naps: how many there are.
    """

    def __init__(self, directory: Path, *, after: int, naps: int) -> None:
        self.left_over = naps
        self._directory = directory
        self._after = after
        self._lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def nap(self) -> bool:
        self._after -= 1
        self.left_over -= 1
        if self._after == 0:
            os.close(self._lock)
        return self.left_over >= 0


class Kept:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: str, message: str) -> None:
        self.lines.append(message)


@pytest.mark.parametrize(
    ("naps", "left_over", "said"),
    [(9, 6, ["waiting for it"]), (2, -1, ["waiting for it", "merging into it anyway"])],
    ids=["it-goes", "it-stays"],
)
def test_a_merge_waits_for_another_one_but_not_for_ever(
    stop: Stop, naps: int, left_over: int, said: list[str]
) -> None:
    put(stop.archive, "directory", "old")
    patience = Turns(stop.archive, after=3, naps=naps)
    sink = Kept()
    destination = stop.judge("directory", "merge").replace(patience=patience)

    with destination.stage(stop.flushed, Log("info", [sink])) as staging:
        put(Path(f"/proc/self/fd/{staging.directory}/archive"), "directory", "new")
        destination.publish(staging, "user.overlay.opaque")

    assert stop.found() == {"archive": "new old"}
    assert patience.left_over == left_over
    assert [line.rpartition(": ")[2].rpartition("; ")[2] for line in sink.lines] == said


def test_a_merge_does_without_locks_where_there_are_none(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "not for directories")

    put(stop.archive, "directory", "old")
    destination = stop.judge("directory", "merge")
    with destination.stage(stop.flushed, Log("info", [])) as staging:
        put(Path(f"/proc/self/fd/{staging.directory}/archive"), "directory", "new")
        monkeypatch.setattr(fcntl, "flock", refuse)
        destination.publish(staging, "user.overlay.opaque")
        monkeypatch.undo()

    assert stop.found() == {"archive": "new old"}


class Replaced(Turns):
    """Whoever has the lock replaces the directory before giving it up."""

    def nap(self) -> bool:
        if self._after == 1:
            self._directory.rename(self._directory.with_name("before"))
            put(self._directory, "directory", "newer")
        return super().nap()


def test_a_merge_has_the_lock_of_what_is_there_when_the_others_have_ended(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_alone = merge.merge

    def merge_locked(*arguments: Any) -> bool:
        with pytest.raises(BlockingIOError):
            Turns(stop.archive, after=1, naps=0)
        return merge_alone(*arguments)

    monkeypatch.setattr(merge, "merge", merge_locked)
    put(stop.archive, "directory", "old")
    destination = stop.judge("directory", "merge").replace(patience=Replaced(stop.archive, after=1, naps=1))

    with destination.stage(stop.flushed, Log("info", [])) as staging:
        put(Path(f"/proc/self/fd/{staging.directory}/archive"), "directory", "new")
        destination.publish(staging, "user.overlay.opaque")

    assert stop.found() == {"archive": "new newer", "before": "old"}


def test_what_was_replaced_does_not_come_back_when_others_change_the_archive(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When something is missing in the middle of a merge, what it has replaced by then is in staging."""
    exchange = kernel.exchange

    def exchange_or_miss(name: str, *where: Any) -> None:
        if name == "b":
            (stop.archive / "b").rmdir()
        exchange(name, *where)

    for name in "ab":
        (stop.archive / name).mkdir(parents=True)
    destination = stop.judge("directory", "merge")
    with destination.stage(stop.flushed, Log("info", [])) as staging:
        archive = Path(f"/proc/self/fd/{staging.directory}/archive")
        archive.mkdir()
        for name in "ab":
            (archive / name).touch()
        monkeypatch.setattr(kernel, "exchange", exchange_or_miss)
        with pytest.raises(ArchiveError, match="changed something in it meanwhile"):
            destination.publish(staging, "user.overlay.opaque")

    assert (stop.archive / "a").is_file()
