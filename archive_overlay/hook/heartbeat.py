"""A line in the log about once a minute while the hook works, so that nobody takes it for dead and kills it."""

from __future__ import annotations

import time

from archive_overlay.system import activity
from archive_overlay.system.ticker import Ticker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from archive_overlay.log import Log
    from archive_overlay.system.activity import Activity

_SECONDS = 60.0
_STEP = 1000
_UNITS = ("kB", "MB", "GB", "TB", "PB")


class Heartbeat:
    """A context in which the log gets such lines. The first comes when something has taken that long.

    Args:
        log: gets them.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._ticker = Ticker(_SECONDS, self._beat)

    def __enter__(self) -> None:
        if self._log.wants("info"):
            activity.NOW.watch, activity.NOW.look_away = self._ticker.start, self._ticker.stop

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        activity.NOW.watch = activity.NOW.look_away = None
        self._ticker.stop()

    def _beat(self) -> None:
        self._log.info(sentence(activity.NOW, time.monotonic()))


def sentence(now: Activity, seconds: float) -> str:
    """Say what is being done. The first thread may go on to something else meanwhile: then it was true a moment ago.

    Args:
        now: that.
        seconds: the time, by `time.monotonic`.
    """
    elapsed = seconds - now.since
    so_far = now.so_far
    done = so_far() if so_far else None
    size, much = (done.size, amount(done.size)) if done else (now.read - now.begun_at, "")
    if done is None:
        much = f"{amount(size)} read" if size else ""
    elif done.total is not None:
        much += f" of {amount(done.total)}"
    if done and done.entries is not None:
        much = f"{done.entries} {'entry' if done.entries == 1 else 'entries'} and {much}"
    subject = f"{now.subject}: " if now.subject else ""
    still = f"{subject}still {now.what or 'at work'}"
    if not much:
        return f"{still}, for {duration(elapsed)}"
    rate = f", {amount(round(size * 60 / elapsed))}/min" if size and elapsed >= 1 else ""
    return f"{still}: {much} in {duration(elapsed)}{rate}"


def amount(size: int) -> str:
    """Give a number of bytes as sentences have it: 12 GB, with 1000 for a step."""
    if size < _STEP:
        return f"{size} bytes"
    value = float(size)
    for unit in _UNITS:
        value /= _STEP
        if value < 9.95:
            return f"{value:.1f} {unit}"
        if value < 999.5:
            break
    return f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """Give a time as sentences have it: 40 s, 3 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
