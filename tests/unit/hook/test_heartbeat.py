"""What the log gets while the hook works for long, here for more than milliseconds."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING

import pytest

from archive_overlay.hook import heartbeat
from archive_overlay.methods import writer_process
from archive_overlay.settings import TransferSettings
from archive_overlay.system import kernel
from archive_overlay.system.activity import Activity, SoFar
from tests.unit.hook.test_archive_one import Container

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable

BEAT = 0.001


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    monkeypatch.setattr(heartbeat, "_SECONDS", BEAT)
    return Container(tmp_path)


def heard(container: Container, said: str, then: Callable[[], object] = lambda: None) -> threading.Event:
    """Give what is set when a line has begun so, after something else was done."""
    event = threading.Event()

    def listen(message: str) -> None:
        if message.startswith(said) and not event.is_set():
            then()
            event.set()

    container.listen = listen
    return event


def program(directory: Path, *, status: int) -> tuple[str, Callable[[], None]]:
    """Make a program that ends when it is told to; give its path, and what tells it."""
    sign = directory / "sign"
    path = directory / "program"
    path.write_text(f"#!/bin/sh\nuntil [ -e {sign} ]; do sleep 0.01; done\nexit {status}\n")
    path.chmod(0o755)
    return str(path), sign.touch


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("method", ["copy", "tar.gz", "oci"])
def test_it_says_how_much_has_been_written(
    container: Container, monkeypatch: pytest.MonkeyPatch, method: str, jobs: int
) -> None:
    monkeypatch.setattr(writer_process, "_LONG", -1.0)
    for number in range(1500):
        (container.upper / f"{number}").write_bytes(b"1234567890")
    (container.upper / "x").write_bytes(bytes(5_000_000))
    event = heard(container, "archive data: still writing: ")

    assert container.run(bundle=container.bundle("data", method=method), jobs=jobs, fsync=False) == 0

    assert event.is_set()
    lines = [line for line in container.said if " still writing: " in line]
    assert all(line.startswith("info: archive data: still writing: ") for line in lines)
    entries = [int(line.split()[5]) for line in lines]
    assert entries == sorted(entries)
    assert entries[-1] <= 1504


def test_a_large_file_counts_as_far_as_it_has_been_read(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_process, "_LARGE", 1_000_000)
    (container.upper / "x").write_bytes(os.urandom(4_000_000))

    for jobs in (1, 2):
        container.said.clear()
        bundle = container.bundle(f"data{jobs}", method="tar.gz")
        assert container.run(bundle=bundle, jobs=jobs, fsync=False) == 0

        lines = [line for line in container.said if " still writing: " in line]
        sizes = {line.partition(" and ")[2].partition(" in ")[0] for line in lines}
        assert len(sizes) > 3, lines


def test_it_says_that_it_waits_for_a_lock(container: Container) -> None:
    layout = container.directory / "data"
    assert container.run(bundle=container.bundle("data", method="oci"), fsync=False) == 0
    other = os.open(layout, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    (container.upper / "new").touch()
    said = f"archive data: still waiting for the lock of the image layout {layout}, for 0 s"
    event = heard(container, said, lambda: os.close(other))

    assert container.run(bundle=container.bundle("data", method="oci"), fsync=False) == 0

    assert event.is_set()


def test_it_says_that_it_flushes(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    event = heard(container, "archive data: still flushing to disk, for 0 s")
    monkeypatch.setattr(kernel, "sync_file_system", lambda fd: event.wait())  # a slow disk

    assert container.stop("data", fsync=True) == 0

    assert event.is_set()


def test_it_says_that_a_program_is_told_of_archives(container: Container) -> None:
    path, end = program(container.directory, status=0)
    event = heard(container, f"still waiting for {path}, for 0 s", end)

    assert container.stop("data", on_success=path, fsync=False) == 0

    assert event.is_set()


def test_it_says_that_it_pushes(container: Container) -> None:
    path, end = program(container.directory, status=1)
    event = heard(container, "archive data: still pushing it, for 0 s", end)
    to = "docker://localhost:1/data"
    bundle = container.bundle("data", method="oci", **{"push-to": to})

    container.run(bundle=bundle, fsync=False, transfer=TransferSettings(skopeo=path, push_prefixes=(to,)))

    assert event.is_set()


def test_it_says_nothing_below_the_level_that_is_asked_for(container: Container) -> None:
    for number in range(1000):
        (container.upper / f"{number}").touch()

    container.stop("data", level="warning")

    assert container.said == []


def test_a_stop_that_takes_less_than_a_minute_says_nothing_of_it(tmp_path: Path) -> None:
    container = Container(tmp_path)

    container.stop("data")

    assert len(container.said) == 1


@pytest.mark.parametrize(
    ("so_far", "read", "line"),
    [
        (
            SoFar(12_300_000_000, entries=12345),
            0,
            "archive data: still writing: 12345 entries and 12 GB in 3 min 10 s, 3.9 GB/min",
        ),
        (SoFar(0, entries=1), 0, "archive data: still writing: 1 entry and 0 bytes in 3 min 10 s"),
        (
            SoFar(1_200_000_000, total=3_000_000_000),
            0,
            "archive data: still writing: 1.2 GB of 3.0 GB in 3 min 10 s, 379 MB/min",
        ),
        (None, 5_000_000, "archive data: still writing: 5.0 MB read in 3 min 10 s, 1.6 MB/min"),
        (None, 0, "archive data: still writing, for 3 min 10 s"),
    ],
)
def test_lines(so_far: SoFar | None, read: int, line: str) -> None:
    now = Activity()
    now.subject, now.what, now.since, now.read = "archive data", "writing", 1000.0, read
    now.so_far = (lambda: so_far) if so_far else None

    assert heartbeat.sentence(now, 1190.0) == line


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert heartbeat.duration(seconds) == text
