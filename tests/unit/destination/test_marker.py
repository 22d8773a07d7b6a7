"""The success marker: where it may be, and that it never lies."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.destination.marker import Marker
from archive_overlay.destination.paths import Paths
from archive_overlay.errors import ArchiveError, Interrupted
from tests.support.flushing import Flushed, open_files

if TYPE_CHECKING:
    from typing import Callable


class Place:
    """Where an archive and its marker go.

    Attributes:
        out: a directory with nothing in it.
        flushed: what would be flushed.
    """

    def __init__(self, directory: Path) -> None:
        self.upper = directory / "upper"
        self.out = directory / "out"
        self.flushed = Flushed(directory)
        for made in (self.upper, self.out):
            made.mkdir()

    def marker(
        self, success: Path | str, archive: Path | str = "archive", paths: Paths | None = None
    ) -> Marker:
        return Marker(
            str(self.out / success),
            archive_to=str(self.out / archive),
            upper=str(self.upper),
            paths=paths or Paths(),
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# Where it may be


@pytest.mark.parametrize(
    ("success", "archive"),
    [("archive", "archive"), ("one", "one/archive"), ("one", "one/two/archive")],
    ids=["it", "its parent", "above its parent"],
)
def test_a_marker_does_not_take_the_archive_s_place(place: Place, success: str, archive: str) -> None:
    # None of it is there yet: whoever comes first would be in the other's way.
    with pytest.raises(
        ArchiveError, match=f"success {place.out / success} is where the archive goes; give the"
    ):
        place.marker(success, archive)


@pytest.mark.parametrize("success", ["archive/done", "archive/deep/done"])
def test_a_marker_is_not_in_the_archive(place: Place, success: str) -> None:
    with pytest.raises(
        ArchiveError, match=f"{success} is in the archive {place.out / 'archive'}; give the marker"
    ):
        place.marker(success)


@pytest.mark.parametrize("success", ["archive/way/done", "archive/way/deep/done"])
def test_a_marker_is_not_led_out_of_the_archive(place: Place, success: str) -> None:
    (place.out / "archive").mkdir()
    (place.out / "elsewhere").mkdir()
    (place.out / "archive" / "way").symlink_to(place.out / "elsewhere")
    with pytest.raises(ArchiveError, match="is in the archive"):
        place.marker(success)


@pytest.mark.parametrize("success", ["archive2", "archive.done", "on", "other/done"])
def test_a_name_like_the_archive_s_is_another_one(place: Place, success: str) -> None:
    place.marker(success).create(place.flushed)
    place.marker(success, "one/two").create(place.flushed)

    assert (place.out / success).read_bytes() == b""


def test_a_marker_is_not_in_the_upperdir(place: Place) -> None:
    with pytest.raises(ArchiveError, match=r"success .* is the upperdir .* or in it"):
        place.marker(place.upper / "done")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_a_marker_takes_the_place_of_a_file_only(place: Place, make: Callable[[Path], object]) -> None:
    make(place.out / "done")
    with pytest.raises(
        ArchiveError, match=f"success {place.out / 'done'} exists and is not a regular file; give the"
    ):
        place.marker("done")


def test_a_marker_is_where_markers_may_be(place: Place) -> None:
    with pytest.raises(ArchiveError, match=r"success .* is not allowed"):
        place.marker("done", paths=Paths((str(place.upper),)))


def test_a_marker_that_cannot_be_looked_at_is_an_error(place: Place) -> None:
    with pytest.raises(ArchiveError, match=r"cannot look at success .*: File name too long"):
        place.marker("n" * 256)


# Taking back what an earlier run said


def test_an_old_marker_is_removed_for_good(place: Place) -> None:
    (place.out / "done").write_text("of an earlier run")

    place.marker("done").remove(place.flushed)

    assert os.listdir(place.out) == []
    assert place.flushed.steps == ["file out"]
    assert open_files(place.upper.parent) == []


@pytest.mark.parametrize("success", ["done", "one/two/done", "file/done"])
def test_a_marker_that_is_not_there_need_not_be_removed(place: Place, success: str) -> None:
    (place.out / "file").touch()
    marker = place.marker(success) if "file" not in success else late_marker(place)

    marker.remove(place.flushed)

    assert os.listdir(place.out) == ["file"]


def late_marker(place: Place) -> Marker:
    """Give a marker of which the parent has become a file."""
    (place.out / "file").unlink()
    marker = place.marker("file/done")
    (place.out / "file").touch()
    return marker


def test_a_marker_that_cannot_be_removed_is_an_error(place: Place) -> None:
    marker = place.marker("done")
    (place.out / "done").mkdir()

    with pytest.raises(
        ArchiveError, match=f"cannot remove the success marker {place.out}/done of an earlier"
    ):
        marker.remove(place.flushed)

    assert open_files(place.upper.parent) == []


def test_a_removal_that_is_not_on_disk_is_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.out / "done").touch()
    monkeypatch.setattr(place.flushed, "file", failing)

    with pytest.raises(ArchiveError, match=r"cannot remove the success marker .*: Input/output error"):
        place.marker("done").remove(place.flushed)


def failing(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# Saying that all is well


def test_a_marker_is_an_empty_file_that_all_may_see(place: Place) -> None:
    place.marker("one/two/done").create(place.flushed)

    status = (place.out / "one" / "two" / "done").stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (0, 0o644)
    assert stat.S_IMODE((place.out / "one").stat().st_mode) == 0o755
    assert place.flushed.steps == ["file out", "file out/one", "file out/one/two"]
    assert open_files(place.upper.parent) == []


def test_another_run_s_marker_is_as_good(place: Place) -> None:
    marker = place.marker("done")
    (place.out / "done").touch()

    marker.create(place.flushed)

    assert os.listdir(place.out) == ["done"]
    assert place.flushed.steps == ["file out"]


def test_a_marker_that_another_run_removed_just_now_is_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = place.marker("done")
    (place.out / "done").touch()
    lstat = os.lstat

    def remove_first(path: str, *, dir_fd: int | None = None) -> os.stat_result:
        if path == "done":
            monkeypatch.setattr(os, "lstat", lstat)
            (place.out / "done").unlink()
        return lstat(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "lstat", remove_first)

    marker.create(place.flushed)

    assert os.listdir(place.out) == ["done"]


@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda path: path.symlink_to("/dev/null")], ids=["directory", "link"]
)
def test_what_was_put_in_the_marker_s_place_is_none(place: Place, make: Callable[[Path], object]) -> None:
    marker = place.marker("done")
    make(place.out / "done")

    with pytest.raises(
        ArchiveError,
        match=f"the archive is complete, but its success marker {place.out}/done cannot be created: File exists",
    ):
        marker.create(place.flushed)

    assert place.flushed.steps == []


def fail(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def interrupt(_: int) -> None:
    raise Interrupted(15)


@pytest.mark.parametrize(("flush", "error"), [(fail, ArchiveError), (interrupt, Interrupted)])
def test_who_says_that_it_failed_leaves_no_marker(
    place: Place, monkeypatch: pytest.MonkeyPatch, flush: Callable[[int], None], error: type[BaseException]
) -> None:
    monkeypatch.setattr(place.flushed, "file", flush)

    with pytest.raises(error):
        place.marker("done").create(place.flushed)

    assert os.listdir(place.out) == []
    assert open_files(place.upper.parent) == []


def test_a_marker_that_went_away_with_the_failure_is_not_missed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_and_fail(fd: int) -> None:
        (place.out / "done").unlink()
        fail(fd)

    monkeypatch.setattr(place.flushed, "file", remove_and_fail)

    with pytest.raises(ArchiveError, match="Input/output error"):
        place.marker("done").create(place.flushed)
