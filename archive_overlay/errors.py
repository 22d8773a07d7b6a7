"""The ways in which the hook's work cannot be done."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Of a path or a name in a message. The kernel takes none that is longer.
_LONGEST_SHOWN = 4096
_SHOWN_PART = 100
OUT_OF_MEMORY = "out of memory; raise the limit of the process (ulimit -v, MemoryMax= of its systemd unit), or free memory, and try again"


class HookError(Exception):
    """The whole run cannot be done: the state, the bundle or the spec is unusable.

    Args:
        message: what is wrong, with the object in it.
        hint: what the user can do about it; empty where nothing is to be done.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class ArchiveError(HookError):
    """One request cannot be done; the others still can."""


class StaleError(ArchiveError):
    """Something has changed since it was judged. Judged anew, the same may be possible."""


class Interrupted(BaseException):
    """A signal asks the program to end.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"interrupted by signal {self.number}"


def interruption(error: BaseException | None) -> Interrupted | None:
    """Give the interruption that an error came in the way of, as it may while something is cleaned up.

    Args:
        error: what was raised.
    """
    while error:
        if isinstance(error, Interrupted):
            return error
        error = error.__context__
    return None


def fail(action: str, error: OSError, *, hint: str = "") -> NoReturn:
    """Turn a system call's failure into an `ArchiveError`.

    Args:
        action: what was tried, with the path: "cannot read /srv/x".
        error: what the system said.
        hint: what the user can do about it.

    Raises:
        ArchiveError: always, from `error`.
    """
    raise ArchiveError(f"{action}: {error.strerror or error}", hint=hint) from error


def brief(text: str) -> str:
    """Give a text of others for a message: one that is long without what is in its middle."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_SHOWN_PART]}...{text[-_SHOWN_PART:]}"


def internal_error(error: BaseException) -> str:
    """Say what an exception was that nobody expected, and where it was raised."""
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    return f"internal error: {type(error).__name__}: {error}{where}; please report it"
