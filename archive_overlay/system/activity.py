"""What this process is doing, and how far it is: for a line in the log, or a bar on a terminal.

A process does one thing at a time, so there is one `NOW` for all of it. What works says what it does whether anybody looks
or not, so that costs next to nothing: no system call, and no clock but the kernel's page (vdso(7)).
"""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Callable


class SoFar:
    """How much is done.

    Attributes:
        size: bytes.
        entries: how many; None: it has none.
        total: bytes that there are in all; None: nobody knows.
    """

    __slots__ = ("entries", "size", "total")

    def __init__(self, size: int, *, entries: int | None = None, total: int | None = None) -> None:
        self.size = size
        self.entries = entries
        self.total = total


class Activity:
    """What is being done.

    Attributes:
        subject: what it is done for, as "archive data"; "" for nothing in particular.
        what: as a sentence has it after "still".
        since: when it began, by `time.monotonic`.
        so_far: gives how much is done; None: all that is known is what has been read since `begun_at`.
        read: bytes that were read of archives and images, since the process began.
        begun_at: how many those were when it began.
        expected: bytes that are going to be read, as far as that was known at some time.
        behind: gives how many bytes of what was handed to another process are not written yet; None: nothing was.
        watch: is called when something begins that may take long; None: nobody looks.
        look_away: is called before the process forks. It must have no thread then.
    """

    __slots__ = (
        "begun_at",
        "behind",
        "expected",
        "look_away",
        "read",
        "since",
        "so_far",
        "subject",
        "watch",
        "what",
    )

    def __init__(self) -> None:
        self.subject = self.what = ""
        self.since = 0.0
        self.so_far: Callable[[], SoFar] | None = None
        self.read = self.begun_at = self.expected = 0
        self.behind: Callable[[], int] | None = None
        self.watch: Callable[[], None] | None = None
        self.look_away: Callable[[], None] | None = None

    def takes_long(self) -> None:
        """Say that what is being done may take more than a moment."""
        if self.watch:
            self.watch()

    def fork_follows(self) -> None:
        """Have the process without a thread of whoever looks, until something takes long again."""
        if self.look_away:
            self.look_away()


NOW = Activity()


class doing:  # noqa: N801, it reads as a verb: with doing("composing layers")
    """A context in which something is being done.

    Args:
        what: see `Activity`.
        subject: the same; None: what was the subject before.
        so_far: the same.
        slow: whether it may take more than a moment; else `NOW.takes_long` says so when that shows.
    """

    __slots__ = ("_before", "_slow", "_so_far", "_subject", "_what")

    def __init__(
        self,
        what: str,
        *,
        subject: str | None = None,
        so_far: Callable[[], SoFar] | None = None,
        slow: bool = True,
    ) -> None:
        self._what = what
        self._subject = subject
        self._so_far = so_far
        self._slow = slow

    def __enter__(self) -> None:
        self._before = NOW.subject, NOW.what, NOW.since, NOW.begun_at, NOW.so_far
        if self._subject is not None:
            NOW.subject = self._subject
        NOW.what, NOW.since, NOW.begun_at, NOW.so_far = self._what, monotonic(), NOW.read, self._so_far
        if self._slow:
            NOW.takes_long()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        NOW.subject, NOW.what, NOW.since, NOW.begun_at, NOW.so_far = self._before
