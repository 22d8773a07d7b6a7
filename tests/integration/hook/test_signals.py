"""Signals that end programs: each is heard, said, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver
from tests.support import history, hooks, image_layouts, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDING = [
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGXCPU,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGRTMIN,
    signal.SIGRTMAX,
]
MOST = 256 * 1024  # bytes that a file may have


def ignore(number: int) -> None:
    """Ignore a signal, as nohup does before it starts a program."""
    signal.signal(number, signal.SIG_IGN)


@contextmanager
def waiting(
    saver: Saver, *options: str | Path, ignored: int = 0
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the hook until it waits, with all that it wrote in its staging directory.

    Args:
        saver: what it saves.
        options: more of its command line.
        ignored: a signal that its caller ignores.

    Yields:
        The hook, and the descriptor by whose lock it is kept waiting.
    """
    saver.archive.mkdir(exist_ok=True)
    lock = os.open(saver.archive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    mounts = [saver.overlay.spec_mount()]
    bundle = hooks.Bundle(saver.directory / "bundle", mounts=mounts, annotations=saver.asks())
    with subprocess.Popen(
        [
            *hooks.command(),
            "--bundle",
            bundle.directory,
            "--rescue-dir",
            saver.directory / "rescue",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={},
        preexec_fn=lambda: ignore(ignored) if ignored else None,
    ) as process:
        assert process.stderr
        try:
            assert b"waiting for" in process.stderr.readline()
            assert len(os.listdir(saver.archive)) == 1
            yield process, lock
        finally:
            process.kill()
            os.close(lock)


@pytest.mark.parametrize("method", ["oci"])
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_leaves_no_debris_and_what_was_to_be_saved_is_kept(
    small: Saver, number: signal.Signals
) -> None:
    def run() -> tuple[int, str]:
        with waiting(small) as (process, _):
            process.send_signal(number)
            said = process.communicate()[1].decode()
            return process.returncode, said

    status, said = small.overlay.inside(run)

    assert status == 128 + number
    result = hooks.Result(status, "", said)
    kept = small.directory / "rescue/bundle/data"
    assert result.only_error() == (
        f"archive data: interrupted by signal {number.value}; its changes are kept in {kept}"
    )
    assert (kept / "made").read_text() == "by a container"
    assert os.listdir(small.archive) == []
    assert not small.success.exists()


@pytest.mark.parametrize("method", ["oci"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "in-the-background"])
def test_a_signal_that_the_caller_ignores_ends_nothing(small: Saver, number: signal.Signals) -> None:
    def run() -> tuple[int, str]:
        with waiting(small, ignored=number) as (process, lock):
            process.send_signal(number)
            fcntl.flock(lock, fcntl.LOCK_UN)
            said = process.communicate()[1].decode()
            return process.returncode, said

    status, said = small.overlay.inside(run)

    assert status == 0, said
    assert small.success.exists()


@pytest.mark.parametrize("method", ["copy", "tar", "tar.gz", "tar.zst", "oci"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_file_that_may_not_be_that_large_is_an_error(any_saver: Saver, jobs: int) -> None:
    def change(root: Path) -> None:
        (root / "large").write_bytes(os.urandom(2 * MOST))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, MOST))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    any_saver.overlay.change(change)

    result = any_saver.run("--jobs", str(jobs), before=limit)

    assert result.status == 1
    assert "File too large" in result.only_error()
    assert not any_saver.success.exists()
    assert [name for name in os.listdir(any_saver.out) if name != "archive"] == []
    if any_saver.archive.exists():
        assert os.listdir(any_saver.archive) == []


@pytest.mark.parametrize("method", ["copy"])
def test_a_log_that_nobody_reads_any_more_ends_nothing(small: Saver) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    def close_log() -> None:
        os.dup2(writer, 2)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    result = small.run(before=close_log)

    os.close(writer)
    assert (result.status, result.stderr) == (0, "")
    assert small.success.exists()


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU], ids=lambda each: each.name
)
def test_a_command_of_a_person_cleans_up_too(scratch: Path, number: signal.Signals) -> None:
    tools.need("strace")
    files = [history.file(f"file{count}") for count in range(9)]
    image_layouts.put(scratch / "layout", "latest", layers=[history.layer(*files)])
    (scratch / "out").mkdir()
    inject = f"inject=utimensat:signal={number.name}:when=5"

    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", str(scratch / "calls"), "-e", "trace=utimensat", "-e", inject),
            *(*hooks.command(), "extract", str(scratch / "layout"), str(scratch / "out" / "now")),
        ],
        capture_output=True,
        env={},
        check=False,
    )

    assert done.returncode == 128 + number, done.stderr
    assert f"SIG{number.name[3:]}" in (scratch / "calls").read_text()
    assert os.listdir(scratch / "out") == []
