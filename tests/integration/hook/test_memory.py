"""Trees that a container makes to have the hook take memory: it takes none for them.

The trees are as small as shows what grows. An ordinary archive takes about 15 MiB.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import hooks, hostile, memory, overlays, trees

if TYPE_CHECKING:
    from typing import Callable

MIB = 1024 * 1024
LITTLE = 32  # MiB
# Attributes of trusted. are those that tmpfs takes any number of.
as_root = pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
in_any_form = pytest.mark.parametrize("method", ["copy", "tar"])
in_a_layer = pytest.mark.parametrize("method", ["oci"])
as_directory = pytest.mark.parametrize("method", ["copy"])


def measured(saver: Saver, *arguments: str | Path, **keys: object) -> tuple[hooks.Result, float]:
    """Run the hook for an archive; see `memory.measure`."""
    bundle = hooks.Bundle(
        saver.directory / "bundle",
        mounts=[saver.overlay.spec_mount()],
        annotations=saver.asks(**keys),
    )
    return saver.overlay.inside(lambda: memory.measure(bundle, saver.directory, *arguments))


def expect_little(saver: Saver, *arguments: str | Path, **keys: object) -> hooks.Result:
    """Run the hook for an archive that succeeds, and expect it to take little memory."""
    result, peak = measured(saver, *arguments, **keys)
    assert result.status == 0, result.stderr
    assert peak < LITTLE
    return result


def deep(root: Path) -> None:
    hostile.dig(root, 500, deepest="file")


def linked(root: Path) -> None:
    hostile.dig(root, 200, files=300)


def decorated(root: Path) -> None:
    (root / "file").touch()
    hostile.decorate(root / "file", 600)


def much_decorated(root: Path) -> None:
    """Make files with more attributes together than each has."""
    for number in range(16):
        (root / f"{number}").touch()
        hostile.decorate(root / f"{number}", 60)
    os.symlink("target", root / "link")
    hostile.decorate(root / "link", 60)
    (root / "directory").mkdir()
    hostile.decorate(root / "directory", 60)


def decorated_way(root: Path) -> None:
    hostile.dig(root, 350, attribute=hostile.LARGEST_ATTRIBUTE)


def tree(saver: Saver, of: Path) -> trees.View:
    return saver.overlay.inside(lambda: trees.view(of, bookkeeping=saver.overlay.flavour.bookkeeping))


@in_any_form
def test_no_depth_takes_memory(any_saver: Saver) -> None:
    any_saver.overlay.change(deep)

    expect_little(any_saver)

    if any_saver.method == "copy":
        expect_equal(tree(any_saver, any_saver.overlay.upper), tree(any_saver, any_saver.archive))
    elif any_saver.method == "tar":
        with tarfile.open(any_saver.archive) as tar:
            *_, last = tar
        assert last.name.count("/") == 501
        assert len(last.name) == 2 + 500 * 256 + len("file")


@as_directory
def test_no_depth_takes_memory_when_archives_are_merged(any_saver: Saver) -> None:
    any_saver.overlay.change(deep)
    assert any_saver.run("--no-fsync").status == 0

    expect_little(any_saver, if_exists="merge")

    expect_equal(tree(any_saver, any_saver.overlay.upper), tree(any_saver, any_saver.archive))


@pytest.mark.parametrize("method", ["move"])
def test_no_depth_takes_memory_where_a_move_has_to_copy(any_saver: Saver) -> None:
    any_saver.overlay.change(deep)

    result = expect_little(any_saver, "--no-setid")

    assert "copied, not moved" in result.stderr


@in_a_layer
def test_a_depth_that_no_reader_of_layers_takes_fails_by_name(any_saver: Saver) -> None:
    any_saver.overlay.change(deep)

    result, peak = measured(any_saver)

    assert result.status == 1
    assert "d cannot be stored in a layer: its path has 4095 bytes" in result.only_error()
    assert peak < LITTLE
    assert not any_saver.success.exists()


@pytest.mark.parametrize(("method", "levels"), [("copy", 200), ("tar", 200), ("oci", 15)])
def test_no_file_with_several_names_takes_the_memory_of_its_path(any_saver: Saver, levels: int) -> None:
    any_saver.overlay.change(lambda root: hostile.dig(root, levels, files=300))

    expect_little(any_saver)

    if any_saver.method == "copy":
        expect_equal(tree(any_saver, any_saver.overlay.upper), tree(any_saver, any_saver.archive))


@as_directory
def test_no_link_costs_a_step_for_each_directory_on_its_way(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: hostile.dig(root, 100, files=100))
    log = any_saver.directory / "strace"
    bundle = hooks.Bundle(
        any_saver.directory / "bundle", mounts=[any_saver.overlay.spec_mount()], annotations=any_saver.asks()
    )
    any_saver.overlay.inside(
        lambda: subprocess.run(
            [
                "strace",
                "-f",
                "-qq",
                "--seccomp-bpf",
                "-e",
                "trace=openat,linkat",
                "-o",
                log,
                *hooks.command(),
            ],
            input=bundle.state(),
            env={},
            check=True,
        )
    )

    calls = log.read_text()
    assert calls.count("linkat(") == 200, "one beside the archive and one in it"
    assert calls.count("openat(") < 2000, "and not one for each directory of each"


@as_root
@as_directory
def test_no_number_of_attributes_takes_memory_in_a_directory(saver: Saver) -> None:
    saver.overlay.change(decorated)

    expect_little(saver)

    expect_equal(tree(saver, saver.overlay.upper), tree(saver, saver.archive))


@as_root
@pytest.mark.parametrize("method", ["tar", "oci"])
def test_more_attributes_than_a_header_holds_fail_by_name(saver: Saver) -> None:
    saver.overlay.change(decorated)

    result, peak = measured(saver)

    assert result.status == 1
    assert "file cannot be stored in a tar: its 600 extended attributes take 39" in result.only_error()
    assert "method copy can hold them" in result.only_error()
    assert peak < LITTLE
    assert not saver.success.exists()


@as_root
@in_a_layer
def test_more_attributes_than_readers_of_layers_take_fail_by_name(saver: Saver) -> None:
    saver.overlay.change(much_decorated)

    result, peak = measured(saver)

    assert result.status == 1
    assert "cannot be stored in a layer: its 60 extended attributes take 39" in result.only_error()
    assert "method copy can hold it" in result.only_error()
    assert peak < LITTLE


@as_root
@in_any_form
def test_no_attributes_of_many_entries_are_held_together(saver: Saver) -> None:
    saver.overlay.change(much_decorated)

    expect_little(saver)

    if saver.method == "copy":
        expect_equal(tree(saver, saver.overlay.upper), tree(saver, saver.archive))
    if saver.method == "tar":
        with tarfile.open(saver.archive) as tar:
            for member in tar:
                found = {
                    name
                    for name in member.pax_headers
                    if name.startswith("SCHILY.xattr.trusted.") and "overlay" not in name
                }
                assert len(found) == (0 if member.name == "." else 60)
                assert all(len(member.pax_headers[name]) == 64 * 1024 for name in found)


@as_root
@pytest.mark.parametrize("method", ["copy", "tar"])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_large_attributes_arrive_in_one_process_and_in_two(saver: Saver, jobs: str) -> None:
    def change(root: Path) -> None:
        for name in ("file", "large"):
            (root / name).write_bytes(b"x" * (100_000 if name == "large" else 10))
            hostile.decorate(root / name, 3)
        for number in range(300):
            (root / f"{number}").write_text("small")
        os.link(root / "file", root / "link")
        os.mkfifo(root / "fifo")
        hostile.decorate(root / "fifo", 3)

    saver.overlay.change(change)

    saver.expect_the_same(f"--jobs={jobs}")


@as_root
@as_directory
def test_no_attributes_of_directories_are_held_while_they_are_filled(saver: Saver) -> None:
    saver.overlay.change(decorated_way)

    expect_little(saver)
    expect_little(saver, if_exists="merge")

    expect_equal(tree(saver, saver.overlay.upper), tree(saver, saver.archive))


@pytest.mark.parametrize(
    "overlay", [overlays.Flavour("redirect", options=("redirect_dir=on",))], indirect=True
)
@as_directory
def test_no_depth_of_what_lies_below_takes_memory(saver: Saver) -> None:
    for name in ("a", "b", "c"):
        saver.overlay.layer(partial(hostile.dig, levels=300, deepest=name))
    saver.overlay.change(lambda root: next(root.iterdir()).rename(root / "renamed"))

    expect_little(saver)

    expect_equal(saver.overlay.view(), saver.overlay.restacked(saver.archive))


@as_root
@as_directory
def test_what_is_rescued_takes_no_memory(saver: Saver) -> None:
    disk = saver.directory / "disk"
    disk.mkdir()

    def change(root: Path) -> None:
        deep(root)
        linked(root / "linked")
        decorated(root)

    saver.overlay.change(change)

    def rescue() -> tuple[hooks.Result, float]:
        overlays.mount_tmpfs(disk, "size=1g")
        bundle = hooks.Bundle(
            saver.directory / "bundle",
            mounts=[saver.overlay.spec_mount()],
            annotations=saver.asks(archive_to="/proc/self/no"),
        )
        found = memory.measure(bundle, saver.directory, "--rescue-dir", disk)
        kept = trees.view(disk / "c1" / "data", bookkeeping=())
        expect_equal(trees.view(saver.overlay.upper, bookkeeping=()), kept)
        return found

    result, peak = saver.overlay.inside(rescue)

    assert result.status == 1
    assert "its changes are kept in" in result.only_error()
    assert peak < LITTLE


@as_root
@as_directory
@pytest.mark.parametrize("change", [deep, linked, decorated], ids=lambda change: change.__name__)
def test_diff_of_a_directory_takes_no_memory(saver: Saver, change: Callable[[Path], object]) -> None:
    upper = saver.directory / "archive of a directory"
    upper.mkdir()
    change(upper)

    result, peak = memory.measure(b"", saver.directory, "diff", "--stat", upper)

    assert result.status == 0, result.stderr
    assert peak < LITTLE
