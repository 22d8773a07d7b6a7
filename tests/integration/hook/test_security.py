"""What docs/security.md says that nobody can do, tried on whole runs of the hook."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.integration.methods.test_oci import contents
from tests.property.test_limits import run_and_change
from tests.support import history, hooks, image_layouts, overlays, tools, trees

if TYPE_CHECKING:
    from typing import Callable

ALL_METHODS = ["copy", "move", "tar.gz", "oci"]
OF_ANOTHER_USER = 12345

as_root = pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)


@pytest.fixture
def victim(scratch: Path) -> Path:
    """Give a directory that is somebody else's business."""
    directory = scratch / "victim"
    directory.mkdir()
    (directory / "file").write_text("precious")
    return directory


# Whoever is in the container


EVIL_NAMES = (
    'x\ntime="2026-01-01T00:00:00+00:00" level=error msg="forged"',
    "\x1b[2J\x1b]0;title\x07",
    "return\rto the start",
    "right\u202eto left",
    "c1\x9b31m",
    'quote" level=panic msg="',
    os.fsdecode(b"no\xff utf-8\xc3"),
)


def evil_names(root: Path) -> None:
    for name in EVIL_NAMES:
        (root / name).mkdir()
        with socket.socket(socket.AF_UNIX) as unix:
            # Their paths are too long for an address.
            directory = os.open(root / name, os.O_RDONLY)
            unix.bind(f"/proc/self/fd/{directory}/s")
            os.close(directory)


def expect_harmless(shown: str) -> None:
    """Hold that text moves no cursor and forges no line, once the colours are taken out."""
    plain = re.sub(r"^\x1b\[\d\dm([A-Z]+)\x1b\[0m", r"\1", shown, flags=re.MULTILINE)
    assert not [line for line in plain.split("\n") if not line.isprintable()]
    assert "forged" in plain


def test_names_write_no_second_line_into_a_log(any_saver: Saver) -> None:
    any_saver.overlay.change(evil_names)

    result = any_saver.run("--log-level=trace")

    assert result.status == 0, result.stderr
    assert {line.level for line in result.lines()} <= {"trace", "debug", "info", "warning"}
    expect_harmless(result.stderr)


def test_names_write_nothing_to_a_terminal(any_saver: Saver) -> None:
    any_saver.overlay.change(evil_names)
    bundle = hooks.Bundle(
        any_saver.directory / "bundle", mounts=[any_saver.overlay.spec_mount()], annotations=any_saver.asks()
    )

    result = any_saver.overlay.inside(lambda: hooks.run_on_terminal(bundle.state(), "--log-level=trace"))

    assert result.status == 0, result.stderr
    expect_harmless(result.stderr)


def test_a_log_file_gets_no_second_line_either(any_saver: Saver) -> None:
    any_saver.overlay.change(evil_names)
    log = any_saver.directory / "log"

    assert any_saver.run("--log-level=trace", "--log-file", log).status == 0

    assert {line.level for line in hooks.parse_log(log.read_text())} <= {"trace", "debug", "info", "warning"}
    expect_harmless(log.read_text())


def little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (96 << 20, 96 << 20))


@pytest.mark.parametrize("method", ["copy", "tar.gz", "oci"])
def test_a_file_larger_than_the_memory_is_saved(any_saver: Saver, method: str) -> None:
    def change(root: Path) -> None:
        with open(root / "large", "wb") as file:
            for _ in range(128):
                file.write(b"large" * (1 << 18))

    any_saver.overlay.change(change)

    result = any_saver.run("--jobs=1", before=little_memory)

    assert result.status == 0, result.stderr


@as_root
@pytest.mark.parametrize("method", ["copy"])
def test_programs_that_are_set_user_id_are_out_of_reach_until_they_have_their_owner(saver: Saver) -> None:
    def change(root: Path) -> None:
        # Small files are read before there is a copy.
        (root / "program").write_text("#!/bin/sh\n" * 20_000)
        os.chown(root / "program", OF_ANOTHER_USER, OF_ANOTHER_USER)
        (root / "program").chmod(0o6755)

    saver.overlay.change(change)
    seen: list[tuple[int, int]] = []

    def look() -> None:
        (staging,) = saver.out.iterdir()
        program = (staging / "archive" / "program").stat()
        seen.append((stat.S_IMODE(staging.stat().st_mode), stat.S_IMODE(program.st_mode)))
        assert program.st_uid == OF_ANOTHER_USER or not program.st_mode & 0o6000

    # While its data are copied, the copy has a name and not yet an owner.
    result = run_and_change(
        saver,
        stop_at=("copy_file_range", "sendfile", "read", "pread64"),
        path=saver.overlay.upper / "program",
        change=look,
    )

    assert result.status == 0, result.stderr
    assert [staging for staging, _ in seen] == [0o700]
    status = (saver.archive / "program").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (OF_ANOTHER_USER, 0o6755)


@as_root
@pytest.mark.parametrize("method", ["copy"])
def test_links_in_one_archive_lead_another_one_no_further_than_archives_may_go(
    saver: Saver, victim: Path
) -> None:
    before = trees.view(victim)
    saver.overlay.change(lambda root: (root / "way").symlink_to(victim))
    assert saver.run("--allow-archive-to", saver.directory).status == 0

    result = saver.run("--allow-archive-to", saver.out, archive_to=saver.archive / "way" / "x", success=None)

    assert result.status == 1
    assert "is not allowed" in result.only_error()
    expect_equal(before, trees.view(victim))


# Whoever chooses the annotations


@pytest.mark.parametrize(
    "name", ["a\0b", "\ud800", "/", "//", "a\nb", " ", "n" * 5000, "\u00fc" * 300, "%00"]
)
def test_any_name_of_an_archive_can_be_rescued(small: Saver, name: str) -> None:
    also = hooks.annotations(name, mount_point="/data", archive_to="relative")

    result = small.run("--rescue-dir", small.directory / "rescue", also=also)

    assert result.status == 1
    kept = result.only_error().rpartition("its changes are kept in ")[2]
    assert os.path.dirname(kept) == str(small.directory / "rescue" / "c1")
    files = {path.name: path for path in (small.directory / "rescue" / "c1").iterdir()}
    assert sorted(path.is_dir() for path in files.values()) == [False, True]
    assert small.archive.exists(), "another archive had to pay for it"


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/proc/x",
            "/proc/self/x",
            "/proc/self/fd/0",
            "/dev/fd/0",
            "/dev/stdin",
            "/sys/x",
            "/sys/kernel/x/y",
        ),
        *("/dev/null/x", "/proc/self/environ/x", "/" + "d/" * 3000 + "x", "/" + "n" * 100_000),
    ],
    ids=lambda path: path[:25],
)
def test_a_path_where_nothing_can_be_made_is_refused_in_one_line(
    small: Saver, method: str, path: str
) -> None:
    result = small.run(archive_to=path, success=None)

    assert result.status == 1
    assert "internal error" not in result.only_error()
    assert len(result.lines()) == 1
    assert os.listdir(small.overlay.upper) == ["made"]


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("way", ["/proc/self/cwd", "link"])
@pytest.mark.parametrize("key", ["archive_to", "success"])
def test_no_path_leads_through_links_of_proc(
    small: Saver, scratch: Path, method: str, way: str, key: str
) -> None:
    (scratch / "link").symlink_to("/proc/self/cwd")
    path = f"{scratch / way}/found"
    small.success.touch()
    paths = {"archive_to": str(small.archive), "success": str(small.success), key: path}

    result = small.run(method=method, archive_to=paths["archive_to"], success=paths["success"])

    assert result.status == 1
    assert f"{path}: it leads through /proc, which belongs to the kernel" in result.only_error()
    assert os.listdir(small.out) == []
    assert small.success.exists(), "something was touched before it was judged"
    # By way of the link it would have been made in the working directory.
    assert sorted(os.listdir(scratch / "bundle")) == ["config.json", "overlay0"]


SPECIAL: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7)),
}


@as_root
@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("key", ["archive_to", "success"])
def test_what_is_no_file_is_neither_opened_nor_replaced(
    saver: Saver, method: str, kind: str, key: str, scratch: Path
) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    special = scratch / "special"
    SPECIAL[kind](special)
    before = special.lstat()

    keys: dict[str, Any] = {key: special}
    result = saver.run(**keys)

    assert result.status == 1
    assert str(special) in result.only_error()
    assert os.path.samestat(before, special.lstat())


@as_root
@pytest.mark.parametrize("method", ["copy", "oci"])
@pytest.mark.parametrize("key", ["archive_to", "success"])
def test_no_path_leads_through_another_mount_of_proc(saver: Saver, key: str) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    place = saver.directory / "place"
    place.mkdir()
    path = f"{place}/self/cwd/found"
    keys: dict[str, Any] = {key: path}

    def run() -> hooks.Result:
        subprocess.run(["mount", "-t", "proc", "proc", place], check=True)
        result = saver.run_here(**keys)
        overlays.unmount(place)
        return result

    result = saver.overlay.inside(run)

    assert result.status == 1
    assert f"{path}: it leads through {place}, which belongs to the kernel" in result.only_error()
    assert sorted(os.listdir(saver.directory / "bundle")) == ["config.json", "overlay0"]


@pytest.mark.parametrize("method", ["copy"])
def test_no_path_leads_out_of_what_does_not_exist(small: Saver, victim: Path) -> None:
    before = trees.view(victim)
    (small.out / "link").symlink_to(f"nowhere/../../{victim.name}")

    result = small.run(archive_to=small.out / "link" / "file", success=None)

    assert result.status == 1
    assert "No such file or directory" in result.only_error()
    expect_equal(before, trees.view(victim))


def test_a_hundred_thousand_annotations_that_mean_nothing_cost_no_archive(small: Saver) -> None:
    half = {f"{hooks.PREFIX}.half{number}.archive-to": "/x" for number in range(50_000)}
    unknown = {f"{hooks.PREFIX}.data.unknown{number}": "x" for number in range(50_000)}

    result = small.run(also={**half, **unknown})

    assert result.status == 0
    warnings = result.messages("warning")
    assert len(warnings) == 2 * 11
    assert "annotations ignored with an unknown key: 49990 more, not named here" in warnings
    assert warnings[-1] == "archives ignored that are only half asked for: 49990 more, not named here"
    assert small.success.exists()


def test_annotations_write_no_second_line_into_a_log(small: Saver) -> None:
    also = {f"{hooks.PREFIX}.{name}.{name}": name for name in EVIL_NAMES}
    also |= hooks.annotations(EVIL_NAMES[0], mount_point=EVIL_NAMES[0], archive_to=f"/{EVIL_NAMES[1]}")

    result = small.run("--log-level=trace", also=also)

    assert result.status == 1
    assert len(result.messages("error")) == 1
    expect_harmless(result.stderr)


@pytest.mark.parametrize("way", ["..", "a/../..", "./../x/.."])
def test_no_parent_directory_leads_out_of_where_archives_may_go(small: Saver, way: str) -> None:
    allowed = small.directory / "allowed"
    allowed.mkdir()

    result = small.run("--allow-archive-to", allowed, archive_to=f"{allowed}/{way}/out/archive", success=None)

    assert result.status == 1
    assert "is not allowed" in result.only_error()
    assert os.listdir(small.out) == os.listdir(allowed) == []


# Other users of the host


@as_root
@pytest.mark.parametrize("method", ["copy", "tar.gz"])
@pytest.mark.parametrize("with_marker", [False, True], ids=["archive", "archive and marker"])
def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(
    saver: Saver, victim: Path, with_marker: bool
) -> None:
    saver.overlay.change(lambda root: (root / "file").write_text("by a container"))
    if with_marker:
        saver.success = saver.out / "success"
    before = trees.view(victim)
    moved = saver.directory / "moved"

    def swap() -> None:
        saver.out.rename(moved)
        saver.out.symlink_to(victim)

    result = run_and_change(saver, stop_at=("close",), path=saver.overlay.upper, change=swap)

    assert result.status == with_marker, result.stderr
    assert os.listdir(moved) == ["archive"]
    expect_equal(before, trees.view(victim))


@as_root
@pytest.mark.parametrize("method", ["copy", "tar.gz"])
def test_a_staging_directory_that_is_exchanged_for_a_link_leads_nowhere(saver: Saver, victim: Path) -> None:
    saver.overlay.change(lambda root: (root / "file").write_text("by a container"))
    before = trees.view(victim)

    def swap() -> None:
        (staging,) = saver.out.iterdir()
        staging.rename(saver.out / "elsewhere")
        staging.symlink_to(victim)

    result = run_and_change(saver, stop_at=("close",), path=saver.overlay.upper, change=swap)

    assert result.status == 0, result.stderr
    assert saver.archive.exists()
    expect_equal(before, trees.view(victim))


@as_root
@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("key", ["archive_to", "success"])
def test_no_link_of_another_user_is_followed_in_a_directory_like_tmp(
    saver: Saver, method: str, key: str, victim: Path
) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    shared = saver.directory / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(victim)
    os.lchown(shared / "link", OF_ANOTHER_USER, OF_ANOTHER_USER)
    before = trees.view(victim)
    keys: dict[str, Any] = {key: shared / "link" / "file"}

    result = saver.run(**keys)

    assert result.status == 1
    assert f"{shared}/link" in result.only_error()
    expect_equal(before, trees.view(victim))


@as_root
@pytest.mark.parametrize(
    ("method", "key"),
    [("copy", "archive_to"), ("oci", "archive_to"), ("copy", "success"), ("oci", "success")],
)
def test_no_link_is_followed_in_a_directory_that_another_user_made_in_one_like_tmp(
    saver: Saver, key: str, victim: Path
) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    backups = saver.directory / "shared" / "backups"
    backups.mkdir(parents=True)
    backups.parent.chmod(0o1777)
    (backups / "data").symlink_to(victim)
    os.chown(backups, OF_ANOTHER_USER, OF_ANOTHER_USER)
    before = trees.view(victim)

    for path in (backups / "data", backups / "data" / "file"):
        if key == "success" and path.name == "data":
            continue  # a marker takes the place of a link
        keys: dict[str, Any] = {key: path}
        result = saver.run(**keys)
        assert result.status == 1
        assert f"{backups}/data is a symbolic link that another user may have made" in result.only_error()

    expect_equal(before, trees.view(victim))
    keys = {key: backups / "elsewhere" / "data"}
    assert saver.run(**keys).status == 0, "without a link it is the place that was named"


@pytest.mark.parametrize("overlay", [overlays.NATIVE_ROOTLESS], indirect=True)
@pytest.mark.parametrize("method", ["copy", "tar.gz"])
def test_no_link_of_another_user_is_followed_in_a_user_namespace(saver: Saver, victim: Path) -> None:
    tools.need_root()
    saver.overlay.change(lambda root: (root / "made").touch())
    shared = saver.directory / "shared"
    shared.mkdir()
    (shared / "data").symlink_to(victim / ("file" if saver.method == "tar.gz" else ""))
    # Neither has an id in there, so both are shown as the same.
    os.chown(shared, 70_000, 70_000)
    os.lchown(shared / "data", 80_000, 80_000)
    shared.chmod(0o1777)
    before = trees.view(victim)

    result = saver.run(archive_to=shared / "data")

    assert result.status == 1
    assert f"{shared}/data is a symbolic link that another user may have made" in result.only_error()
    expect_equal(before, trees.view(victim))


@as_root
@pytest.mark.parametrize("method", ["copy"])
def test_no_link_of_another_user_says_where_archives_may_go(saver: Saver, victim: Path) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    shared = saver.directory / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "archives").symlink_to(victim)
    os.lchown(shared / "archives", OF_ANOTHER_USER, OF_ANOTHER_USER)
    before = trees.view(victim)

    result = saver.run("--allow-archive-to", shared / "archives", archive_to=victim / "x", success=None)

    assert result.status == 1
    assert f"is not allowed; it must be in {shared}/archives" in result.only_error()
    expect_equal(before, trees.view(victim))


@as_root
@pytest.mark.parametrize("method", ["copy"])
def test_a_log_file_that_another_user_put_there_costs_no_archive_and_gets_no_line(
    saver: Saver, victim: Path
) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    shared = saver.directory / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "log").symlink_to(victim / "file")
    os.lchown(shared / "log", OF_ANOTHER_USER, OF_ANOTHER_USER)

    result = saver.run("--log-file", shared / "log")

    assert result.status == 0
    assert result.messages("warning") == [
        f"cannot open the log file {shared}/log: {shared}/log is a symbolic link that another user may have made;"
        " going on without it"
    ]
    assert saver.archive.exists()
    assert (victim / "file").read_text() == "precious"


@as_root
@pytest.mark.parametrize("method", ["copy"])
def test_what_is_kept_goes_into_no_directory_of_another_user(saver: Saver) -> None:
    saver.overlay.change(lambda root: (root / "secret").write_text("by a container"))
    theirs = saver.directory / "rescue" / "c1"
    theirs.mkdir(parents=True)
    theirs.parent.chmod(0o1777)
    os.chown(theirs, OF_ANOTHER_USER, OF_ANOTHER_USER)

    result = saver.run("--rescue-dir", theirs.parent, archive_to="relative", success=None)

    kept = Path(result.only_error().rpartition("its changes are kept in ")[2])
    assert kept == theirs.parent / "c1.~1~" / "data"
    assert (kept / "secret").read_text() == "by a container"
    assert os.listdir(theirs) == []
    status = kept.parent.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)


@as_root
@pytest.mark.parametrize("method", ["copy"])
def test_no_link_of_another_user_says_where_changes_are_kept(saver: Saver, victim: Path) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    shared = saver.directory / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "rescue").symlink_to(victim)
    os.lchown(shared / "rescue", OF_ANOTHER_USER, OF_ANOTHER_USER)
    before = trees.view(victim)

    result = saver.run("--rescue-dir", shared / "rescue", archive_to="relative", success=None)

    assert (
        f"its changes are in {saver.overlay.upper} until the engine deletes them, and could not be kept: cannot look"
        f" at --rescue-dir {shared}/rescue: {shared}/rescue is a symbolic link that another user may have made"
    ) in result.only_error()
    expect_equal(before, trees.view(victim))


@as_root
@pytest.mark.parametrize("method", ALL_METHODS)
def test_links_of_whom_the_directory_belongs_to_are_followed_anywhere(saver: Saver, method: str) -> None:
    saver.overlay.change(lambda root: (root / "made").touch())
    shared = saver.directory / "shared"
    shared.mkdir()
    os.chown(shared, OF_ANOTHER_USER, OF_ANOTHER_USER)
    shared.chmod(0o1777)
    (shared / "link").symlink_to(saver.out)
    os.lchown(shared / "link", OF_ANOTHER_USER, OF_ANOTHER_USER)

    result = saver.run(archive_to=shared / "link" / "archive")

    assert result.status == 0, result.stderr
    assert saver.archive.exists()


@pytest.mark.parametrize("method", ["copy", "tar.gz"])
def test_what_is_replaced_is_never_written_into(small: Saver, victim: Path) -> None:
    if small.method == "copy":
        small.archive.mkdir()
        os.link(victim / "file", small.archive / "made")
    else:
        os.link(victim / "file", small.archive)

    assert small.run().status == 0

    assert (victim / "file").read_text() == "precious"
    assert (victim / "file").stat().st_nlink == 1


@as_root
@pytest.mark.parametrize("method", ["oci"])
@pytest.mark.parametrize("alone", [False, True], ids=["", "in-a-pid-namespace"])
def test_whoever_locks_a_layout_makes_the_hook_wait_five_minutes_and_no_more(
    saver: Saver, alone: bool
) -> None:
    tools.need("strace")
    saver.overlay.change(lambda root: (root / "made").touch())
    assert saver.run().status == 0
    before = contents(saver.archive)
    lock = os.open(saver.archive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    more = hooks.annotations("more", mount_point="/data", archive_to=f"{saver.archive}:more", method="oci")
    bundle = hooks.Bundle(
        saver.directory / "bundle",
        mounts=[saver.overlay.spec_mount()],
        annotations={**saver.asks(success=None), **more},
    )
    calls = saver.directory / "calls"

    # Every nap ends at once, and is on record.
    naps = "clock_nanosleep,select,pselect6"
    done = subprocess.run(
        [
            *(
                "strace",
                "-f",
                "-qq",
                "-o",
                str(calls),
                "-e",
                f"trace={naps}",
                "-e",
                f"inject={naps}:retval=0",
            ),
            *(("/usr/bin/unshare", "--mount", "--pid", "--fork", "--mount-proc") if alone else ()),
            *(*hooks.command(), "--bundle", str(bundle.directory)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={},
        check=False,
    )
    os.close(lock)

    result = hooks.Result(done.returncode, done.stdout, done.stderr)
    name = Path("/proc/self/comm").read_text().strip()
    who = "another program" if alone else f"another program (pid {os.getpid()}, {name})"
    assert result.status == 1
    assert result.messages("info") == [
        f"waiting for {who}, which holds the lock of the image layout {saver.archive}, for at most 300 s"
    ]
    errors = result.messages("error")
    assert [error.partition(":")[0] for error in errors] == ["archive data", "archive more"]
    assert all(
        f"is locked by {who}, and this run has already waited for locks for 300 s" in error
        for error in errors
    )
    assert calls.read_text().count("(INJECTED)") == 300 * 20, "both together"
    expect_equal(before, contents(saver.archive))


# Whoever made an image layout


def link_instead(layout: Path, name: str, victim: Path) -> None:
    """Let another directory, which looks like the one it takes the place of, be in a layout by a link."""
    (layout / name).rename(victim / "moved")
    (layout / name).symlink_to(victim / "moved")


@pytest.mark.parametrize("method", ["copy"])
@pytest.mark.parametrize("name", ["", "blobs", "blobs/sha256", "oci-layout", "index.json"])
def test_a_directory_archive_that_a_container_made_look_like_a_layout_leads_nowhere(
    any_saver: Saver, victim: Path, name: str
) -> None:
    def forge(root: Path) -> None:
        image_layouts.put(root, "latest", layers=[history.layer(history.file("forged"))])
        if name:
            shutil.move(root / name, victim / "moved")
            (root / name).symlink_to(victim / "moved")

    any_saver.overlay.change(forge)
    assert any_saver.run().status == 0
    before = trees.view(victim)

    result = any_saver.run(method="oci", success=None)

    expect_equal(before, trees.view(victim))
    if not name:
        # It is a layout as any other, and nobody can tell. What is in its image may be anything, as in any other.
        assert result.status == 0, result.stderr
        assert len(image_layouts.read(any_saver.archive).layers) == 2
        assert not (any_saver.archive / "forged").exists()
        return
    assert result.status == 1
    assert str(any_saver.archive) in result.only_error()


@pytest.mark.parametrize("method", ["oci"])
@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_nothing_is_written_through_a_link_in_a_layout(small: Saver, victim: Path, name: str) -> None:
    assert small.run().status == 0
    link_instead(small.archive, name, victim)
    small.overlay.change(lambda root: (root / "more").touch())
    before = trees.view(victim), contents(small.archive)

    result = small.run()

    assert result.status == 1
    assert str(small.archive) in result.only_error()
    expect_equal(before[0], trees.view(victim))
    expect_equal(before[1], contents(small.archive))


@pytest.mark.parametrize("method", ["oci"])
@pytest.mark.parametrize("name", ["blobs", "oci-layout", "index.json"])
def test_nothing_is_written_through_a_link_in_what_is_to_be_a_layout(
    small: Saver, victim: Path, name: str
) -> None:
    small.archive.mkdir()
    (small.archive / name).symlink_to(victim / ("file" if "." in name or "-" in name else ""))
    before = trees.view(victim)

    small.run()

    expect_equal(before, trees.view(victim))


@pytest.mark.parametrize("method", ["oci"])
@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
def test_a_file_of_a_layout_is_not_read_beyond_what_any_has(small: Saver, name: str) -> None:
    assert small.run().status == 0
    os.truncate(small.archive / name, 1 << 40)

    result = small.run(before=lambda: resource.setrlimit(resource.RLIMIT_AS, (128 << 20, 128 << 20)))

    assert result.status == 1
    assert f"{name} of the image layout has more than " in result.only_error()


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha256:" + "A" * 64, "../x:" + "0" * 64, "", 7]
)
def test_a_digest_is_no_path(scratch: Path, digest: Any) -> None:
    layout = scratch / "layout"
    image_layouts.put(layout, "latest", layers=[history.layer(history.file("a"))])
    described = {"mediaType": image_layouts.LAYER_TYPE, "digest": digest, "size": 10}
    image_layouts.put(layout, "bad", layers=[b"x"], manifest={"layers": [described]})

    complaint = history.complaint_of("extract", f"{layout}:bad", scratch / "out")

    assert "is not a digest that this program knows" in complaint
    assert not (scratch / "out").exists()
