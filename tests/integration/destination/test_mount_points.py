"""A mount point cannot be replaced: what is mounted is seen, and only merged into."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from tests.support import overlays, tools
from tests.support.flushing import open_files
from tests.unit.destination.test_publish import TIME, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, Callable


@pytest.fixture
def stop(tmp_path: Path) -> Stop:
    return Stop(tmp_path)


@pytest.fixture
def inside() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Run a function where it may mount."""
    tools.need("unshare")
    namespace = overlays.Namespace(rootless=os.geteuid() != 0)
    yield namespace.inside
    namespace.close()


def refusal(stop: Stop, makes: str, if_exists: str) -> str:
    """Mount something at the destination, and say why it is refused."""
    overlays.mount_tmpfs(stop.archive, "size=1m")
    try:
        if if_exists:
            (stop.archive / "old").touch()
        stop.judge(makes, if_exists or "replace")
    except ArchiveError as error:
        return str(error)
    finally:
        overlays.unmount(stop.archive)
    return "no refusal"


@pytest.mark.parametrize(
    ("makes", "if_exists"), [("file", ""), ("directory", "replace"), ("directory", "backup")]
)
def test_a_mount_point_is_not_replaced(stop: Stop, inside: Any, makes: str, if_exists: str) -> None:
    stop.archive.mkdir()

    said = inside(lambda: refusal(stop, makes, if_exists))

    assert said == (
        f"archive-to {stop.archive} is a mount point, which cannot be replaced; name something inside it"
    )


def test_a_mount_point_of_another_file_system_is_seen_where_mounts_cannot_be_read(
    stop: Stop, inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> None:
        raise FileNotFoundError(2, "/proc is not mounted")

    monkeypatch.setattr("archive_overlay.system.mountinfo.read", read)
    stop.archive.mkdir()

    assert "is a mount point" in inside(lambda: refusal(stop, "directory", "replace"))


@pytest.mark.parametrize("bind", [False, True], ids=["another-file-system", "the-same"])
@pytest.mark.parametrize(("there", "if_exists"), [("", "replace"), ("", "fail"), ("old", "merge")])
def test_a_directory_is_merged_into_a_mount_point(
    stop: Stop, inside: Any, bind: bool, there: str, if_exists: str
) -> None:
    stop.archive.mkdir()
    source = stop.out / "source"
    source.mkdir()

    def publish() -> tuple[bool, list[str], int, list[str], list[str]]:
        if bind:
            overlays.bind(source, stop.archive)
        else:
            overlays.mount_tmpfs(stop.archive, "size=1m")
        try:
            if there:
                (stop.archive / there).touch()
            destination = stop.publish("directory", if_exists)
            return (
                destination.mount_point,
                sorted(os.listdir(stop.archive)),
                stop.archive.stat().st_mtime_ns,
                stop.flushed.steps,
                open_files(stop.out),
            )
        finally:
            overlays.unmount(stop.archive)

    mount_point, names, time, steps, left_open = inside(publish)

    assert mount_point
    assert names == sorted({"new", there} - {""})
    assert time == TIME, "what staging did to it does not show"
    assert steps == ["file system out/archive/.archive_overlay-", "file system out/archive"]
    assert left_open == []
