"""A function called on a thread of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from archive_overlay.system.activity import NOW, doing
from archive_overlay.system.ticker import Ticker
from tests.conftest import TOP


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_it_is_called_until_it_is_stopped_and_leaves_no_thread() -> None:
    before = threads()
    called = threading.Semaphore(0)
    ticker = Ticker(0.001, called.release)

    ticker.start()
    ticker.start()
    assert threads() == before + 1
    for _ in range(3):
        called.acquire()
    ticker.stop()
    ticker.stop()

    while threads() > before:  # the kernel takes a moment for the last of it
        pass
    while called.acquire(blocking=False):
        pass
    assert not called.acquire(timeout=0.01)


def test_what_fails_ends_the_calls_alone() -> None:
    called = threading.Semaphore(0)

    def fail() -> None:
        called.release()
        raise OSError("nobody reads it")

    ticker = Ticker(0.001, fail)
    ticker.start()
    called.acquire()
    ticker.stop()

    assert not called.acquire(blocking=False)


# A process of its own: what runs tests has other threads, which would take the signal.
HELD_OFF = """\
import os, signal, threading
from archive_overlay.system import signals
from archive_overlay.system.ticker import Ticker

came = []
called = threading.Semaphore(0)
signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
ticker = Ticker(0.001, called.release)
ticker.start()
with signals.HeldOff():
    os.kill(os.getpid(), signal.SIGUSR1)
    for _ in range(3):
        called.acquire()
    assert came == [], came
assert came == [signal.SIGUSR1], came
ticker.stop()
"""


def test_signals_that_are_held_off_do_not_come_by_way_of_its_thread() -> None:
    subprocess.run([sys.executable, "-c", HELD_OFF], check=True, cwd=TOP)


def test_what_is_done_inside_of_something_is_said_as_long_as_it_is_done() -> None:
    with doing("writing", subject="archive data"):
        with doing("flushing to disk"):
            assert (NOW.subject, NOW.what) == ("archive data", "flushing to disk")
        assert NOW.what == "writing"
    assert (NOW.subject, NOW.what) == ("", "")
