"""The success marker never lies, and one request's failure is its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import hooks, overlays, tools, trees


@pytest.fixture
def saved(small: Saver) -> Saver:
    """Give an archive and its marker, as an earlier run left them."""
    result = small.run()
    assert result.status == 0, result.stderr
    return small


def test_the_marker_is_an_empty_file(saved: Saver) -> None:
    assert saved.success.is_file()
    assert saved.success.stat().st_size == 0


def test_without_the_annotation_there_is_no_marker(small: Saver) -> None:
    result = small.run(success=None)

    assert result.status == 0, result.stderr
    assert sorted(os.listdir(small.directory)) == ["bundle", "out"]


def test_an_older_marker_with_something_in_it_becomes_an_empty_one(small: Saver) -> None:
    small.success.write_text("from another program")

    result = small.run()

    assert result.status == 0, result.stderr
    assert small.success.read_bytes() == b""


def test_the_marker_is_never_there_without_the_new_archive(saved: Saver) -> None:
    tools.need("strace")
    old = saved.archive.stat()
    bundle = hooks.Bundle(
        saved.directory / "bundle",
        mounts=[saved.overlay.spec_mount()],
        annotations=saved.asks(if_exists="replace"),
    )

    def watch() -> list[tuple[bool, bool]]:
        # The hook is stopped after each flush, so at the end of each step; strace says so and waits.
        seen = []
        with subprocess.Popen(
            [
                *("strace", "-f", "-e", "trace=fsync,fdatasync,syncfs,sync"),
                *("-e", "inject=fsync,fdatasync,syncfs,sync:signal=STOP", *hooks.command()),
                *("--log-file", saved.directory / "log"),
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin
            assert process.stderr
            process.stdin.write(bundle.state())
            process.stdin.close()
            for line in process.stderr:
                if b"stopped by SIGSTOP" in line:
                    is_old = os.path.samestat(old, saved.archive.stat())
                    seen.append((is_old, saved.success.exists()))
                    (hook,) = children(process.pid)
                    os.kill(hook, signal.SIGCONT)
        seen.append((False, process.returncode == 0))
        return seen

    seen = saved.overlay.inside(watch)

    assert (True, False) in seen, "the old archive is there, its marker is gone"
    assert (True, True) not in seen
    assert seen[-1] == (False, True)


def children(pid: int) -> list[int]:
    """Give the child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_second_run_without_the_upperdir_leaves_archive_and_marker_alone(saved: Saver) -> None:
    shutil.rmtree(saved.overlay.upper)
    before = trees.view(saved.out)
    marker = saved.success.stat()

    result = saved.run()

    assert result.status == 1
    assert str(saved.overlay.upper) in result.only_error()
    expect_equal(before, trees.view(saved.out))
    assert saved.success.stat().st_mtime_ns == marker.st_mtime_ns


@pytest.mark.parametrize(
    "keys",
    [
        {"if_exists": "fail"},
        {"if_exists": "no such value"},
        {"method": "no such method"},
        {"mount_point": "/nowhere"},
        {"archive_to": "relative"},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_a_refusal_leaves_archive_and_marker_alone(saved: Saver, keys: dict[str, Any]) -> None:
    before = trees.view(saved.out)
    marker = saved.success.stat()

    result = saved.run(**keys)

    assert result.status == 1
    assert result.only_error()
    expect_equal(before, trees.view(saved.out))
    assert saved.success.stat().st_mtime_ns == marker.st_mtime_ns


def test_a_failure_on_the_way_leaves_the_old_archive_and_no_marker(small: Saver) -> None:
    disk = small.directory / "disk"
    disk.mkdir()
    archive = disk / "archive"

    def fill_and_run() -> tuple[hooks.Result, hooks.Result, trees.View, trees.View, list[str]]:
        overlays.mount_tmpfs(disk, "size=256k")
        try:
            first = small.run_here(archive_to=archive, if_exists="replace")
            before = trees.view(archive) if small.method == "copy" else trees.view(disk)
            (small.overlay.upper / "large").write_bytes(os.urandom(2**20))
            second = small.run_here(archive_to=archive, if_exists="replace")
            after = trees.view(archive) if small.method == "copy" else trees.view(disk)
            return first, second, before, after, os.listdir(disk)
        finally:
            overlays.unmount(disk)

    first, second, before, after, names = small.overlay.inside(fill_and_run)

    assert (first.status, second.status) == (0, 1), first.stderr + second.stderr
    assert "No space left" in second.only_error()
    if small.method == "copy":
        expect_equal(before, after)
    else:
        assert after.entries[b"archive"] == before.entries[b"archive"]
    assert names == ["archive"], "debris beside the archive"
    assert not small.success.exists()


def test_a_marker_that_is_a_symlink_is_replaced_and_not_followed(small: Saver) -> None:
    victim = small.directory / "victim"
    victim.write_text("precious")
    small.success.symlink_to(victim)

    result = small.run()

    assert result.status == 0, result.stderr
    assert victim.read_text() == "precious"
    assert not small.success.is_symlink()
    assert small.success.read_bytes() == b""


def test_a_directory_where_the_marker_goes_is_refused(small: Saver) -> None:
    small.success.mkdir()

    result = small.run()

    assert result.status == 1
    assert str(small.success) in result.only_error()
    assert not small.archive.exists()
    assert small.success.is_dir()


def test_a_marker_in_the_archive_s_place_is_refused(small: Saver) -> None:
    result = small.run(success=small.archive)

    assert result.status == 1
    assert "success" in result.only_error()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("method", ["copy", "tar.gz", "move", "oci"])
@pytest.mark.parametrize("name", ["done", "made", "blobs/sha256/done"])
def test_a_marker_in_the_archive_is_refused(small: Saver, name: str) -> None:
    result = small.run(success=small.archive / name)

    assert result.status == 1
    assert f"success {small.archive / name} is in the archive {small.archive}" in result.only_error()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("method", ["copy"])
def test_no_link_in_an_older_archive_leads_a_marker_away(any_saver: Saver) -> None:
    saver = any_saver
    victim = saver.directory / "victim"
    victim.mkdir()
    (victim / "done").write_text("precious")
    saver.overlay.change(lambda root: (root / "way").symlink_to(victim))
    assert saver.run().status == 0

    result = saver.run(success=saver.archive / "way" / "done")

    assert result.status == 1
    assert "is in the archive" in result.only_error()
    assert (victim / "done").read_text() == "precious"


def test_a_marker_in_the_archive_by_way_of_a_symlink_is_refused(small: Saver) -> None:
    (small.directory / "link").symlink_to(small.archive)

    result = small.run(success=small.directory / "link" / "done")

    assert result.status == 1
    assert "is in the archive" in result.only_error()
    assert os.listdir(small.out) == []


def test_a_marker_in_the_upperdir_is_refused(small: Saver) -> None:
    result = small.run(success=small.overlay.upper / "success")

    assert result.status == 1
    assert "success" in result.only_error()
    assert os.listdir(small.overlay.upper) == ["made"]


def test_two_requests_for_one_mount_are_both_done(small: Saver) -> None:
    tar = small.out / "tar"
    success = small.out / "success"
    also = hooks.annotations("second", mount_point="/data", archive_to=tar, success=success, method="tar.gz")

    result = small.run(also=also)

    assert result.status == 0, result.stderr
    assert sorted(os.listdir(small.out)) == ["archive", "success", "tar"]
    with tarfile.open(tar) as opened:
        assert "./made" in opened.getnames()


@pytest.mark.parametrize("order", [("a failing", "b good"), ("b failing", "a good")])
def test_a_request_that_fails_does_not_cost_another(small: Saver, order: tuple[str, str]) -> None:
    failing, good = order
    blocker = small.out / "file"
    blocker.touch()
    asked = {"mount_point": "/data", "method": small.method}
    bundle = hooks.Bundle(
        small.directory / "bundle",
        mounts=[small.overlay.spec_mount()],
        annotations={
            **hooks.annotations(
                failing, archive_to=blocker / "archive", success=small.out / "failed", **asked
            ),
            **hooks.annotations(good, archive_to=small.archive, success=small.success, **asked),
        },
    )

    result = small.overlay.inside(lambda: hooks.run_hook(bundle))

    assert result.status == 1
    assert failing in result.only_error()
    assert small.archive.exists()
    assert small.success.exists()
    assert sorted(os.listdir(small.out)) == ["archive", "file"]
