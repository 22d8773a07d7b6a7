"""Waiting for others, which is bounded for a whole run."""

from __future__ import annotations

import time

from archive_overlay.system.activity import NOW

_MOST_SECONDS = 300
_NAPS_PER_SECOND = 20


class Patience:
    """How long one run of the program still waits for others, all its archives together.

    Naps are counted, and no clock is read: what a run waited is what it slept.

    Attributes:
        seconds: how long that was in the beginning.
    """

    def __init__(self) -> None:
        self.seconds = _MOST_SECONDS
        self._naps = _MOST_SECONDS * _NAPS_PER_SECOND

    @property
    def left(self) -> int:
        """Seconds that are left, whole ones."""
        return self._naps // _NAPS_PER_SECOND

    def nap(self) -> bool:
        """Wait for a moment; False, at once: there is no time left for that."""
        if not self._naps:
            return False
        self._naps -= 1
        NOW.takes_long()
        time.sleep(1 / _NAPS_PER_SECOND)
        return True
