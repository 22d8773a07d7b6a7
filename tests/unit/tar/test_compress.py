"""One ordinary gzip member, the same bytes for the same input."""

from __future__ import annotations

import errno
import gzip
import os
import random
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from archive_overlay.tar.compress import ZSTD_PROGRAM, FileSink, GzipWriter, ZstdProgram
from tests.support import hooks, tools

BLOCK = 128 * 1024
# A user who has no other process.
NOBODY_ELSE = 54321


def compressed(path: Path, data: bytes, *, jobs: int = 1, level: int = 6, piece: int = 10_000) -> bytes:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        writer = GzipWriter(FileSink(fd), level=level, jobs=jobs)
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
        writer.finish()
    finally:
        os.close(fd)
    return path.read_bytes()


def text(size: int) -> bytes:
    words = [b"overlay", b"whiteout", b"opaque", b"upperdir", b"\0\0\0\0", b"container", b"\n"]
    chosen = random.Random(size).choices(words, k=size // 4 + 1)
    return b" ".join(chosen)[:size]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 10 * BLOCK + 17])
def test_what_was_written_comes_out_again(tmp_path: Path, size: int) -> None:
    data = text(size)
    assert gzip.decompress(compressed(tmp_path / "out", data, jobs=3)) == data


def test_the_bytes_depend_on_the_input_alone(tmp_path: Path) -> None:
    data = text(20 * BLOCK + 5)
    variants = {
        compressed(tmp_path / "out", data, jobs=jobs, piece=piece)
        for jobs in (1, 2, 8)
        for piece in (999, BLOCK, len(data))
    }
    assert len(variants) == 1


def test_it_is_one_member_that_gzip_reads(tmp_path: Path) -> None:
    data = text(5 * BLOCK)
    whole = compressed(tmp_path / "out.gz", data, jobs=2)
    assert whole.count(b"\x1f\x8b\x08\0\0\0\0\0\0\x03") == 1
    unpacked = subprocess.run(["gzip", "-dc", tmp_path / "out.gz"], capture_output=True, check=True)
    assert (unpacked.stdout, unpacked.stderr) == (data, b"")


def test_cutting_into_blocks_costs_less_than_one_in_a_hundred(tmp_path: Path) -> None:
    data = text(40 * BLOCK)
    assert len(compressed(tmp_path / "out", data, jobs=2)) < 1.01 * len(gzip.compress(data, 6))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_is_an_error(jobs: int) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = GzipWriter(FileSink(fd), level=6, jobs=jobs)
        with pytest.raises(OSError, match="No space") as caught:
            write_much(writer)
        writer.close()
    finally:
        os.close(fd)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("possible", [0, 1])
def test_as_many_threads_work_as_there_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, possible: int
) -> None:
    data = text(20 * BLOCK + 5)
    expected = compressed(tmp_path / "out", data, jobs=1)
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_a_few(thread: threading.Thread) -> None:
        if len(started) == possible:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_a_few)

    assert compressed(tmp_path / "out", data, jobs=4) == expected
    assert len(started) == possible


def write_much(writer: GzipWriter) -> None:
    for _ in range(100):
        writer.write(os.urandom(BLOCK))


def test_zstd_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    tools.need(ZSTD_PROGRAM)
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        writer = ZstdProgram(FileSink(fd), level=3, jobs=1)
        os.write(tell, b"%d" % writer._process.pid)
        signal.pause()
    number = int(os.read(told, 100))
    zstd = os.pidfd_open(number)
    # As long as its input has not ended, it has a reason to live on.
    with open(f"/proc/{number}/fd/0", "wb"):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ended, _, _ = select.select([zstd], [], [], 20)
    for fd in (told, tell, zstd):
        os.close(fd)
    assert ended


_AS_A_USER_OF_THREE_PROCESSES = f"""
import os, resource
os.setgroups([])
os.setresgid(*[{NOBODY_ELSE}] * 3)
os.setresuid(*[{NOBODY_ELSE}] * 3)
resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
writer = compress.ZstdProgram(compress.FileSink(os.open("/dev/null", os.O_WRONLY)), level=3, jobs=2)
try:
    writer.write(os.urandom(1 << 20))
    writer.finish()
except OSError as error:
    print(error)
"""


def test_zstd_that_cannot_start_its_threads_names_the_limits() -> None:
    tools.need(ZSTD_PROGRAM)
    tools.need_root()

    said = subprocess.run(
        [sys.executable, "-c", f"from archive_overlay.tar import compress{_AS_A_USER_OF_THREE_PROCESSES}"],
        cwd=hooks.TOP,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "allow more processes (ulimit -u, TasksMax=" in said
