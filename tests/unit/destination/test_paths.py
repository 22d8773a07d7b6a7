"""Where archives may be, and how to get there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from archive_overlay.destination.paths import Paths
from archive_overlay.errors import ArchiveError
from archive_overlay.system.flush import Never


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    directory = tmp_path / "allowed"
    directory.mkdir()
    return directory


def opened(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_missing_parents_are_made_for_all_to_enter(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert opened(Paths().make(str(path), Never())) == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_file_is_no_directory_to_make(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Paths().make(str(tmp_path / "file" / "x"), Never())


def test_a_link_on_the_way_is_resolved_once_and_not_followed_after(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = Paths().resolve(str(tmp_path / "link" / "x"), "archive-to")
    assert path == str(tmp_path / "real" / "x")
    with pytest.raises(NotADirectoryError):
        Paths().open(str(tmp_path / "link"))


@pytest.mark.parametrize("name", ["", "/", "/../x", "/../allowed-not/x"])
def test_what_is_not_inside_is_refused(allowed: Path, name: str) -> None:
    paths = Paths((str(allowed),))
    with pytest.raises(ArchiveError, match="not allowed"):
        paths.resolve(f"{allowed}{name}", "archive-to")


def test_a_link_does_not_lead_out(allowed: Path) -> None:
    (allowed / "out").symlink_to("/etc")
    paths = Paths((str(allowed),))
    with pytest.raises(ArchiveError, match=r"which is /etc/cron\.d/x, is not allowed"):
        paths.resolve(f"{allowed}/out/cron.d/x", "archive-to")
    with pytest.raises(ArchiveError, match="not allowed"):
        paths.resolve_parent(f"{allowed}/out/x", "success")


def test_a_link_may_lead_in_and_an_allowed_directory_may_be_one(allowed: Path) -> None:
    (allowed.parent / "in").symlink_to(allowed)
    paths = Paths((str(allowed.parent / "in"),))
    assert paths.resolve(f"{allowed.parent}/in/x", "archive-to") == str(allowed / "x")


@pytest.mark.parametrize(
    "path", ["/proc", "/proc/self/exe", "/proc/self/cwd/x", "/proc/none/x", "/sys/kernel/x", "/dev/fd/0"]
)
@pytest.mark.parametrize("restricted", [False, True])
def test_what_leads_through_files_of_the_kernel_is_refused(
    allowed: Path, path: str, restricted: bool
) -> None:
    paths = Paths((str(allowed),) if restricted else ())
    (allowed / "link").symlink_to(path)
    for asked in (path, str(allowed / "link"), f"{allowed}/link/x"):
        with pytest.raises(ArchiveError, match=r"it leads through /(proc|sys), which belongs to the kernel"):
            paths.resolve(asked, "archive-to")
    with pytest.raises(ArchiveError, match=r"cannot look at success .*/link/x: it leads through"):
        paths.resolve_parent(f"{allowed}/link/x", "success")


def test_names_like_those_of_the_kernel_s_are_names_elsewhere(allowed: Path) -> None:
    path = f"{allowed}/proc/sys/x"
    assert Paths().resolve(path, "archive-to") == path
    assert Paths().resolve_parent(path, "success") == path


def test_a_component_that_becomes_a_link_after_it_was_judged_leads_nowhere(allowed: Path) -> None:
    (allowed / "a").mkdir()
    paths = Paths((str(allowed),))
    path = paths.resolve(f"{allowed}/a/b", "archive-to")
    (allowed / "a").rmdir()
    (allowed / "a").symlink_to(allowed.parent)
    with pytest.raises(NotADirectoryError):
        paths.make(path, Never())
    assert not (allowed.parent / "b").exists()


def test_an_allowed_directory_itself_can_be_opened(allowed: Path) -> None:
    paths = Paths((str(allowed),))
    assert opened(paths.make(str(allowed), Never())) == str(allowed)
    assert opened(paths.make(f"{allowed}/x/y", Never())) == f"{allowed}/x/y"


def test_an_allowed_directory_is_never_made(allowed: Path) -> None:
    paths = Paths((f"{allowed}/missing",))
    path = paths.resolve(f"{allowed}/missing/x", "archive-to")
    with pytest.raises(FileNotFoundError):
        paths.make(path, Never())
    assert os.listdir(allowed) == []


def test_a_directory_above_an_allowed_one_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a" / "allowed").mkdir(parents=True)
    paths = Paths((f"{tmp_path}/a/allowed",))
    path = paths.resolve(f"{tmp_path}/a/allowed/x", "archive-to")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(NotADirectoryError):
        paths.make(path, Never())
    assert os.listdir(tmp_path / "b" / "allowed") == []


def test_one_of_several_directories_is_enough(allowed: Path, tmp_path: Path) -> None:
    paths = Paths((str(tmp_path / "other"), str(allowed)))
    assert paths.resolve(f"{allowed}/x", "archive-to") == f"{allowed}/x"


@pytest.mark.parametrize(
    ("links", "path", "resolved"),
    [
        ({}, "a/./b//c/", "a/b/c"),
        ({}, "directory/../x", "x"),
        ({"l": "directory"}, "l/x", "directory/x"),
        ({"l": "directory/inner/.."}, "l/x", "directory/x"),
        ({"l": "nowhere/y"}, "l/z", "nowhere/y/z"),
        ({"directory/l": "../m", "m": "./directory/inner"}, "directory/l/x", "directory/inner/x"),
        ({"l": "l2", "l2": "l3", "l3": "directory"}, "l/../x", "x"),
    ],
)
def test_links_lead_where_the_system_says(
    tmp_path: Path, links: dict[str, str], path: str, resolved: str
) -> None:
    (tmp_path / "directory" / "inner").mkdir(parents=True)
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)

    found = Paths().resolve(f"{tmp_path}/{path}", "archive-to")

    assert found == f"{tmp_path}/{resolved}" == os.path.realpath(f"{tmp_path}/{path}")


@pytest.mark.parametrize(
    "target", ["nowhere/../x", "nowhere/../../sys/x", "directory/nowhere/./..", "directory/x/.."]
)
def test_nobody_leaves_a_directory_that_does_not_exist(tmp_path: Path, target: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "l").symlink_to(target)
    for path in (f"{tmp_path}/l", f"{tmp_path}/l/y", f"{tmp_path}/{target}"):
        with pytest.raises(
            ArchiveError, match=f"cannot look at archive-to {path}: No such file or directory"
        ):
            Paths().resolve(path, "archive-to")


def test_an_absolute_link_begins_at_the_top(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to(f"{tmp_path}/../{tmp_path.name}/x")
    assert Paths().resolve(f"{tmp_path}/l", "archive-to") == f"{tmp_path}/x"
    assert Paths().resolve("/", "archive-to") == "/"


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("l")
    with pytest.raises(ArchiveError, match="Too many levels"):
        Paths().resolve(f"{tmp_path}/l/x", "archive-to")


def test_resolving_keeps_no_file_descriptor(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("/")
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    before = os.listdir("/proc/self/fd")
    for name in ("l/nowhere", "file", "l"):
        Paths().resolve(f"{tmp_path}/{name}", "archive-to")
    for name in ("file/x", "circle"):
        with pytest.raises(ArchiveError):
            Paths().resolve(f"{tmp_path}/{name}", "archive-to")
    assert os.listdir("/proc/self/fd") == before
