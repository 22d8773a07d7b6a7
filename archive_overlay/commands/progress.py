"""A bar on the terminal, while much is read."""

from __future__ import annotations

import os
import time

from archive_overlay.commands import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_STDERR = 2
_BAR = 30
_SECONDS_BETWEEN = 0.1


class Progress:
    """A bar on the terminal, if standard error is one. It is gone at the end.

    Args:
        total: bytes that are going to be read.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._next = 0.0 if os.isatty(_STDERR) else float("inf")

    def __enter__(self) -> Progress:  # noqa: PYI034, Self is not in Python 3.9
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._next < float("inf"):
            self._write("\r\x1b[K")

    def expect(self, count: int) -> None:
        """Add to what is going to be read."""
        self._total += count

    def add(self, count: int) -> None:
        """Count what has been read."""
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN
        part = min(self._done / max(self._total, 1), 1)
        bar = ("#" * int(part * _BAR)).ljust(_BAR, ".")
        self._write(f"\r[{bar}] {part:4.0%} of {human_size(self._total)} ")

    def _write(self, text: str) -> None:
        try:
            os.write(_STDERR, text.encode())
        except OSError:
            self._next = float("inf")  # the terminal is gone; the work is not
