"""What is large, long, many, old, or does not hold still."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver
from tests.support import hooks, image_layouts, notify, tools

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Callable

MIB = 2**20
GIB = 2**30
TIB = 2**40

# All of them when soaking; in one directory otherwise what a slow machine does in seconds.
MANY = 1_000_000 if "EXAMPLES" in os.environ else 50_000

tars = pytest.mark.parametrize("method", ["tar"])
all_forms = pytest.mark.parametrize("method", ["copy", "tar", "tar.gz"])


def run_patiently(saver: Saver, *prefix: str | Path, also: Mapping[str, str] | None = None) -> hooks.Result:
    """Run the hook, behind another command if one is given, for as long as it takes.

    Args:
        saver: what it saves.
        prefix: the other command.
        also: annotations of other archives.
    """

    def run() -> hooks.Result:
        bundle = hooks.Bundle(
            saver.directory / "bundle",
            mounts=[saver.overlay.spec_mount()],
            annotations={**saver.asks(), **(also or {})},
        )
        done = subprocess.run(
            [*prefix, *hooks.command()], input=bundle.state(), env={}, capture_output=True, check=False
        )
        return hooks.Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return saver.overlay.inside(run)


# Sparse files


def scatter(path: Path, size: int) -> None:
    """Make a file with a MiB of data in sixteen places, the last of which ends 100 bytes before a hole."""
    with path.open("wb") as file:
        for part in range(16):
            file.seek(size // 16 * part)
            file.write(bytes([part + 1]) * (64 * 1024 - 100))
        file.truncate(size)


def expect_scattered(path: Path, size: int) -> None:
    assert path.stat().st_size == size
    with path.open("rb") as file:
        for part in range(16):
            file.seek(size // 16 * part)
            assert file.read(64 * 1024) == bytes([part + 1]) * (64 * 1024 - 100) + bytes(100), part
        file.seek(size - 10)
        assert file.read() == bytes(10)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.on_disk
@all_forms
@pytest.mark.parametrize("size", [9 * GIB + 1, TIB], ids=["9-GiB", "1-TiB"])
def test_a_sparse_file_takes_no_more_than_its_data(any_saver: Saver, size: int) -> None:
    any_saver.overlay.change(lambda root: scatter(root / "holes", size))

    result = any_saver.run()

    assert result.status == 0, result.stderr
    if any_saver.method != "copy":
        assert any_saver.archive.stat().st_size < 2 * MIB
    extracted = any_saver.extracted / "holes"
    expect_scattered(extracted, size)
    assert allocated(extracted) < 4 * MIB


@pytest.mark.on_disk
@all_forms
def test_a_file_that_is_one_hole(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "hole").touch()
        os.truncate(root / "hole", TIB)

    any_saver.overlay.change(change)

    result = any_saver.run()

    assert result.status == 0, result.stderr
    extracted = any_saver.extracted / "hole"
    assert (extracted.stat().st_size, allocated(extracted)) == (TIB, 0)


@tars
@pytest.mark.parametrize("name", ["holes", "n" * 255, "ünïcödé", "holes\nand a line"])
def test_python_reads_sparse_files(any_saver: Saver, name: str) -> None:
    any_saver.overlay.change(lambda root: scatter(root / name, 9 * GIB))
    assert any_saver.run().status == 0

    with tarfile.open(any_saver.archive) as archive:
        (member,) = (member for member in archive if member.isfile())
        assert (member.name, member.size) == (f"./{name}", 9 * GIB)
        archive.extraction_filter = lambda member, _: member
        archive.extract(member, any_saver.directory)

    expect_scattered(any_saver.directory / name, 9 * GIB)


@tars
@pytest.mark.parametrize("name", ["holes", "n" * 255, "ünïcödé"])
def test_go_reads_sparse_files(any_saver: Saver, name: str) -> None:
    """Go's archive/tar reads layers for umoci and podman."""
    tools.need_root()
    tools.need("umoci")
    size = 64 * MIB
    any_saver.overlay.change(lambda root: scatter(root / name, size))
    assert any_saver.run().status == 0
    layout = any_saver.directory / "layout"
    image_layouts.put(layout, "latest", layers=[any_saver.archive.read_bytes()])

    unpacked = any_saver.directory / "unpacked"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:latest", unpacked], check=True, capture_output=True
    )

    expect_scattered(unpacked / "rootfs" / name, size)


@tars
def test_hard_links_to_a_sparse_file(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        scatter(root / "holes", 64 * MIB)
        os.link(root / "holes", root / "another name")

    any_saver.overlay.change(change)

    any_saver.expect_the_same()


@all_forms
def test_a_file_with_thousands_of_holes(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        with (root / "holes").open("wb") as file:
            for part in range(5000):
                file.seek(part * 16 * 1024)
                file.write(b"%d" % part)
            file.truncate(5000 * 16 * 1024)

    any_saver.overlay.change(change)

    any_saver.expect_the_same()


@pytest.mark.on_disk
@all_forms
def test_space_that_is_reserved_beyond_the_end(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "file").write_text("short")
        subprocess.run(["fallocate", "--keep-size", "--length", str(MIB), root / "file"], check=True)
        subprocess.run(["fallocate", "--length", str(MIB), root / "zeros"], check=True)

    any_saver.overlay.change(change)

    any_saver.expect_the_same()


# Names, numbers and times


@all_forms
def test_names_as_long_as_they_can_be(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        here = root
        for letter in "abcdefghij":
            here = here / (letter * 255)
            here.mkdir()
            (here / ("F" * 255)).write_text(letter)
        os.symlink("t" * 4095, root / ("s" * 255))
        os.link(here / ("F" * 255), here / ("L" * 255))
        (root / ("ü" * 127)).touch()
        (root / os.fsdecode(b"\xff" * 255)).touch()

    any_saver.overlay.change(change)

    any_saver.expect_the_same()


@pytest.mark.parametrize("method", ["copy"])
def test_many_entries_in_one_directory(any_saver: Saver) -> None:
    overlay = any_saver.overlay
    overlay.change(lambda root: (root / "many").mkdir())
    # Made where they end up, which is quicker than through the mount.
    directory = os.open(overlay.upper / "many", os.O_RDONLY)
    for number in range(MANY):
        os.mknod(f"entry {number}", 0o100600, dir_fd=directory)
    os.close(directory)

    tar = any_saver.directory / "tar"
    also = hooks.annotations("tar", mount_point="/data", archive_to=tar, method="tar.gz")

    result = run_patiently(any_saver, also=also)

    assert result.status == 0, result.stderr
    names = {f"entry {number}" for number in range(MANY)}
    assert set(os.listdir(any_saver.archive / "many")) == names
    listed = subprocess.run(["tar", "-tf", tar], capture_output=True, text=True, check=True)
    assert set(listed.stdout.splitlines()[2:]) == {f"./many/{name}" for name in names}


@all_forms
@pytest.mark.parametrize(
    "time_ns",
    [
        pytest.param(-1, id="a-nanosecond-before-1970"),
        pytest.param(-(10**9), id="a-second-before-1970"),
        pytest.param(-2_145_916_799_123_456_789, id="1902"),
        pytest.param(0, id="1970"),
        pytest.param(2**31 * 10**9 + 1, id="2038"),
        pytest.param(2**33 * 10**9 + 999_999_999, id="2242"),
    ],
)
def test_times_far_away(any_saver: Saver, time_ns: int) -> None:
    def change(root: Path) -> None:
        (root / "file").touch()
        (root / "directory").mkdir()
        os.mkfifo(root / "fifo")
        os.symlink("file", root / "symlink")
        for name in ("file", "directory", "fifo", "symlink", ""):
            os.utime(root / name, ns=(time_ns, time_ns), follow_symlinks=False)

    any_saver.overlay.change(change)

    assert any_saver.overlay.view().entries[b"file"].mtime_ns == time_ns
    any_saver.expect_the_same()


# What does not hold still


def run_and_change(
    saver: Saver, *, stop_at: tuple[str, ...], path: Path, change: Callable[[], object]
) -> hooks.Result:
    """Stop the hook at its first such system call for a path, change something, and let it go on.

    Args:
        saver: what to save.
        stop_at: names of system calls that take a descriptor; the hook stops when the call is done.
        path: of the file that the descriptor is of; of two descriptors, the one that is read from.
        change: called meanwhile.
    """
    tools.need_root()
    bundle = hooks.Bundle(
        saver.directory / "bundle", mounts=[saver.overlay.spec_mount()], annotations=saver.asks()
    )
    wanted = path.stat()
    changed = False
    # With two processes there could be two stops.
    run = hooks.keep_warm().start(
        ["--jobs=1"],
        bundle.state(),
        cwd=bundle.directory,
        environment={},
        supervised=notify.filter_of(stop_at),
    )
    assert run.listener is not None
    notify.hand_over(run.listener)
    try:
        while (status := run.wait()) is None:
            asked = notify.receive(run.listener)
            if not asked:
                continue
            if changed or not is_of(asked, wanted):
                asked.go_on()
                continue
            asked.signal(signal.SIGSTOP)
            while "\nState:\tT" not in Path(f"/proc/{asked.thread}/status").read_text():
                time.sleep(0.001)
            changed = True
            try:
                change()
            finally:
                os.kill(asked.thread, signal.SIGCONT)
        assert changed, "it did not stop"
        return hooks.Result(status, "", run.stderr.decode())
    finally:
        run.close()


def is_of(asked: notify.Notification, wanted: os.stat_result) -> bool:
    """Say whether a call is for a file."""
    descriptor = asked.arguments[1 if asked.name == "sendfile" else 0] & 0xFFFFFFFF
    try:
        found = os.stat(f"/proc/{asked.thread}/fd/{descriptor}")
    except OSError:
        return False  # it is none, or of nothing that has a name
    return os.path.samestat(found, wanted)


def expect_refused(saver: Saver, result: hooks.Result, *named: str) -> None:
    assert result.status == 1, result.stderr
    error = result.only_error()
    assert all(name in error for name in named), error
    assert os.listdir(saver.out) == []
    assert not saver.success.exists()


@all_forms
@pytest.mark.parametrize("size", [10, 300_000, 5 * MIB], ids=["small", "middle", "large"])
@pytest.mark.parametrize("sparse", [False, True], ids=["whole", "sparse"])
@pytest.mark.parametrize("factor", [0, 0.5, 2], ids=["emptied", "cut", "grown"])
def test_a_file_that_changes_its_size_while_it_is_read(
    any_saver: Saver, size: int, sparse: bool, factor: float
) -> None:
    def change(root: Path) -> None:
        (root / "directory").mkdir()
        file = root / "directory" / "file"
        file.write_bytes(os.urandom(size))
        if sparse:
            os.truncate(file, size + 10 * MIB)

    any_saver.overlay.change(change)
    file = any_saver.overlay.upper / "directory" / "file"

    result = run_and_change(
        any_saver,
        stop_at=("fstat", "newfstatat"),
        path=file,
        change=lambda: os.truncate(file, int(file.stat().st_size * factor)),
    )

    expect_refused(any_saver, result, "directory/file", "changed its size")


@all_forms
def test_a_file_that_vanishes_while_its_directory_is_read(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "directory").mkdir()
        (root / "directory" / "file").write_text("data")

    any_saver.overlay.change(change)
    directory = any_saver.overlay.upper / "directory"

    result = run_and_change(any_saver, stop_at=("close",), path=directory, change=(directory / "file").unlink)

    expect_refused(any_saver, result, str(directory / "file"))


@all_forms
@pytest.mark.parametrize("kind", ["symlink", "FIFO", "directory"])
def test_a_file_that_is_replaced_while_its_directory_is_read(any_saver: Saver, kind: str) -> None:
    def change(root: Path) -> None:
        (root / "directory").mkdir()
        (root / "directory" / "file").write_text("data")

    any_saver.overlay.change(change)
    directory = any_saver.overlay.upper / "directory"

    def swap() -> None:
        file = directory / "file"
        file.unlink()
        if kind == "symlink":
            file.symlink_to("/etc/passwd")
        elif kind == "FIFO":
            os.mkfifo(file)
        else:
            file.mkdir()

    result = run_and_change(any_saver, stop_at=("close",), path=directory, change=swap)

    expect_refused(any_saver, result, str(directory / "file"))


@all_forms
@pytest.mark.parametrize("target", ["/etc", "nowhere"])
def test_a_directory_that_is_swapped_for_a_symlink(any_saver: Saver, target: str) -> None:
    def change(root: Path) -> None:
        (root / "outer" / "inner").mkdir(parents=True)
        (root / "outer" / "inner" / "file").write_text("data")

    any_saver.overlay.change(change)
    outer = any_saver.overlay.upper / "outer"

    def swap() -> None:
        (outer / "inner").rename(outer / "moved")
        (outer / "inner").symlink_to(target)

    result = run_and_change(any_saver, stop_at=("close",), path=outer, change=swap)

    expect_refused(any_saver, result, str(outer / "inner"))


@all_forms
def test_a_directory_that_is_moved_out_from_under_the_walk(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "outer" / "inner").mkdir(parents=True)
        (root / "outer" / "inner" / "file").write_text("data")
        (root / "z").touch()

    any_saver.overlay.change(change)
    outer = any_saver.overlay.upper / "outer"
    elsewhere = any_saver.directory / "elsewhere"

    result = run_and_change(
        any_saver,
        stop_at=("close",),
        path=outer / "inner",
        change=lambda: (outer / "inner").rename(elsewhere),
    )

    expect_refused(any_saver, result, str(outer))
