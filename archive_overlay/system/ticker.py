"""A thread that calls a function again and again, while the process is busy with something else.

It is made of `_thread`, which is built in: the module threading takes 2 ms to import. Starting it takes 40 µs.

Source: pthreads(7) and signal(7): a signal goes to any thread that does not block it, and HeldOff blocks in its own thread
alone.
"""

from __future__ import annotations

import _thread

from archive_overlay.system import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable


class Ticker:
    """Calls a function again and again.

    Args:
        seconds: between two calls, and before the first.
        tick: the function. What fails in it ends the calls, and nothing else.
    """

    def __init__(self, seconds: float, tick: Callable[[], object]) -> None:
        self._seconds = seconds
        self._tick = tick
        self._stop: _thread.LockType | None = None
        self._ended: _thread.LockType | None = None

    def start(self) -> None:
        """Begin, unless it has begun. Where no thread can be had, nothing is called."""
        if self._stop:
            return
        stop, ended = _thread.allocate_lock(), _thread.allocate_lock()
        stop.acquire()
        ended.acquire()
        # All signals go to the first thread, which knows when it must not be asked to end.
        with signals.HeldOff():
            try:
                _thread.start_new_thread(self._run, (stop, ended))
            except RuntimeError:  # their number is limited, or a filter of system calls refuses them
                return
            self._stop, self._ended = stop, ended

    def stop(self) -> None:
        """End, and wait until nothing is called any more."""
        stop, ended = self._stop, self._ended
        if stop and ended:
            self._stop = self._ended = None
            stop.release()
            ended.acquire()

    def _run(self, stop: _thread.LockType, ended: _thread.LockType) -> None:
        try:
            while not stop.acquire(timeout=self._seconds):
                self._tick()
        except Exception:
            pass
        finally:
            ended.release()
