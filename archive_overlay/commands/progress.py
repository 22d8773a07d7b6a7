"""A bar on the terminal while something takes long: how much is done, how fast, and how long the rest will take.

    [#########............] 42% of 12G  180M/s  0:38 left

It is the last line of standard error, if that is a terminal, and never anything else of it: it makes room for messages, and
is gone at the end. A second thread draws it, so it goes on while another program does the work, and the work pays with
nothing but counting.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from contextlib import contextmanager, nullcontext

from archive_overlay import commands
from archive_overlay.commands import human_size
from archive_overlay.commands.terminal import is_capable
from archive_overlay.system.activity import NOW
from archive_overlay.system.ticker import Ticker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Callable

_STDOUT = 1
_STDERR = 2
_ERASE = "\r\x1b[K"
# What takes no longer shows nothing.
_SECONDS_BEFORE = 1.0
_SECONDS_BETWEEN = 0.2
# What rates are of; and what the time that is left is estimated by, which is not to jump about.
_RECENT = 5.0
_LASTING = 20.0
_LONGEST_BAR = 30
_SHORTEST_BAR = 10
_USUAL_WIDTH = 80
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class Progress:
    """A context with such a bar, if it can be shown.

    Args:
        total: bytes that there are in all; 0: nobody knows. What is added to `NOW.expected` in the context counts as well.
        done: gives how many of them are done; None: those that were read in the context, by `NOW.read`.
    """

    def __init__(self, total: int = 0, *, done: Callable[[], int] | None = None) -> None:
        self._total = total
        self._done = done
        self._ticker = Ticker(_SECONDS_BETWEEN, self._draw) if is_capable(_STDERR) else None

    def __enter__(self) -> None:
        if not self._ticker:
            return
        import _thread

        self._read, self._expected = NOW.read, NOW.expected
        self._meter = Meter(time.monotonic())
        self._line = ""
        # Whoever writes to the terminal has it.
        self._writing = _thread.allocate_lock()
        self._outer = commands.making_room
        commands.making_room = self._made_room
        NOW.look_away, NOW.watch = self._ticker.stop, self._ticker.start
        self._ticker.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ticker:
            NOW.look_away = NOW.watch = None
            self._ticker.stop()
            commands.making_room = self._outer
            self._erase()

    def _draw(self) -> None:
        done = self._done() if self._done else NOW.read - self._read
        now = time.monotonic()
        self._meter.add(now, done)
        if now - self._meter.begun < _SECONDS_BEFORE or not _is_in_foreground():
            return
        total = self._total + NOW.expected - self._expected
        line = self._meter.line(total, _width() - 1, then=NOW.what)
        with self._writing:
            if line != self._line:
                self._line = line
                os.write(_STDERR, f"\r{line}\x1b[K".encode())

    @contextmanager
    def _made_room(self) -> Generator[None, None, None]:
        with self._writing:
            self._erase()
            yield

    def _erase(self) -> None:
        if self._line:
            self._line = ""
            try:
                os.write(_STDERR, _ERASE.encode())
            except OSError:
                pass  # the terminal is gone; the work is not


def progress_beside_output() -> AbstractContextManager[object]:
    """Give such a context for what writes much to standard output: no bar is drawn over what a pager shows."""
    try:
        piped = stat.S_ISFIFO(os.fstat(_STDOUT).st_mode)
    except OSError:
        piped = False
    return nullcontext() if piped else Progress()


class Meter:
    """How fast something goes on.

    Args:
        begun: when it began, in seconds.
    """

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self._seen = deque([(begun, 0)])

    def add(self, now: float, done: int) -> None:
        """Note how many bytes are done, and when."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _LASTING:
            self._seen.popleft()

    def line(self, total: int, width: int, *, then: str = "") -> str:
        """Say how far it is.

        Args:
            total: bytes there are in all, as far as that is known; 0: it is not.
            width: how many columns there are. On few, the line says less.
            then: what goes on when all is done.
        """
        done = self._seen[-1][1]
        rate = f"{human_size(round(self._rate(_RECENT)))}/s"
        if not total:
            return _longest_of(width, f"{human_size(done)}  {rate}", human_size(done))
        percent = f"{min(done * 100 // total, 100)}%"
        left = f"  {_clock(seconds)} left" if (seconds := self._seconds_left(total - done)) else ""
        words = f"{percent} of {human_size(total)}  {then if then and done >= total else f'{rate}{left}'}"
        room = min(width - len(words) - len("[] "), _LONGEST_BAR)
        if room >= _SHORTEST_BAR:
            return f"[{'#' * min(done * room // total, room):.<{room}}] {words}"
        return _longest_of(width, words, f"{percent}{left}", percent)

    def _rate(self, seconds: float) -> float:
        """Give the bytes of a second, in the last seconds."""
        now, done = self._seen[-1]
        earlier = (each for each in reversed(self._seen) if each[0] <= now - seconds)
        then, before = next(earlier, self._seen[0])
        return (done - before) / (now - then) if now > then else 0.0

    def _seconds_left(self, rest: int) -> int:
        """Estimate how long the rest takes; 0: nobody knows."""
        rate = self._rate(_LASTING)
        return max(round(rest / rate), 1) if rest > 0 and rate > 0 else 0


def _longest_of(width: int, *lines: str) -> str:
    """Give the first line that fits; none may."""
    return next((line for line in lines if len(line) <= width), "")


def _clock(seconds: int) -> str:
    if seconds < _HOUR:
        return f"{seconds // _MINUTE}:{seconds % _MINUTE:02}"
    if seconds < _DAY:
        return f"{seconds // _HOUR}:{seconds % _HOUR // _MINUTE:02}:{seconds % _MINUTE:02}"
    return f"{seconds // _DAY} d {seconds % _DAY // _HOUR} h"


def _width() -> int:
    # Asked each time: people make windows wider and narrower.
    try:
        return os.get_terminal_size(_STDERR).columns or _USUAL_WIDTH
    except OSError:
        return _USUAL_WIDTH


def _is_in_foreground() -> bool:
    """Say whether the terminal is this program's now: a shell has it while a job is in the background."""
    try:
        return os.tcgetpgrp(_STDERR) == os.getpgrp()
    except OSError:
        return True  # it controls no session, so no shell either
