"""Handle the signals that ask the program to end, or hold them off for a moment.

Start-up imports only the built-in module `_signal`, which costs nothing. The full module `signal` takes 2 ms to turn
its numbers into enumerations.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Callable

TERMINATE: int = _signal.SIGTERM
INTERRUPT: int = _signal.SIGINT
KILL: int = _signal.SIGKILL
# All that end a process by default (signal(7)), but for KILL, those of a fault of the process itself, and the two that
# Python ignores, so that a system call fails instead: SIGPIPE (EPIPE) and SIGXFSZ (EFBIG). An alarm survives execve, so
# whoever starts the program may have set one.
_ENDING: tuple[int, ...] = (
    TERMINATE,
    INTERRUPT,
    _signal.SIGHUP,  # the terminal is gone
    _signal.SIGQUIT,
    _signal.SIGXCPU,  # RLIMIT_CPU; SIGKILL comes at the hard limit
    _signal.SIGALRM,
    _signal.SIGVTALRM,
    _signal.SIGPROF,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
    _signal.SIGIO,
    _signal.SIGPWR,
    *range(_signal.SIGRTMIN, _signal.SIGRTMAX + 1),
)


def on_end(handler: Callable[[int, FrameType | None], None]) -> None:
    """Call a function when the program is asked to end.

    Signals that the program's caller ignores stay ignored, as nohup(1) wants it.
    """
    for number in _ENDING:
        if _signal.getsignal(number) is not _signal.SIG_IGN:
            _signal.signal(number, handler)


def hear_of_children() -> None:
    """Have the kernel report how child processes end, even if this program's caller ignores SIGCHLD.

    Otherwise a failed program looks successful (signal(7), sigaction(2): an ignored SIGCHLD stays ignored across
    execve, and then there is nothing to wait for).
    """
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def ignore_end() -> None:
    """Go on when the program is asked to end."""
    for number in _ENDING:
        _signal.signal(number, _signal.SIG_IGN)


class HeldOff:
    """A context in which the program is not asked to end: that comes afterwards, or when it is let in."""

    def __enter__(self) -> HeldOff:  # noqa: PYI034, Self is not in Python 3.9
        self._before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ENDING)
        return self

    def __exit__(self, *exception: object) -> None:
        self.let_in()

    def let_in(self) -> None:
        """Let signals end the program from now on, and at once if one has come meanwhile."""
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)
