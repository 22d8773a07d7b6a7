"""What a person runs, at a shell: `archive_overlay log`, `diff` and so on, as `parsers` has them.

Nothing of it is imported when the program runs as a hook.
"""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.log import Log, escape
from archive_overlay.tar.compress import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager
    from typing import Callable, Protocol

    from archive_overlay.log import Sink

    class Command(Protocol):
        """What each command's room has."""

        def run(self, options: argparse.Namespace, log: Log) -> int | None:
            """Do it.

            Returns:
                The exit status; None for 0.

            Raises:
                ArchiveError: it cannot be done.
                BrokenPipeError: nobody reads the output any more.
            """


# What shells run; no help mentions it.
COMPLETE = "__complete"
# The rooms that are not called as their command is.
_ROOMS = {
    "log": "revision_log",
    "check": "check.report",
    "apply": "apply.command",
    "recover": "recover.command",
    "snapshot": "snapshot.command",
    COMPLETE: "complete",
}
_STDOUT = 1
_STDERR = 2
# Makes room for what is written to the terminal, where something else may be shown: a context. See `progress`.
making_room: Callable[[], AbstractContextManager[object]] = nullcontext
# Lines are gathered up to this size before they go on.
_GATHERED = 64 * 1024
# Smaller sizes have no unit.
_LEAST_HUMAN = 1000


def run(options: argparse.Namespace) -> int:
    """Run a command.

    Args:
        options: the command line, as `cli.build_parser` reads it.

    Returns:
        The exit status: the command's own (0 for most), or 1 if it could not be done. If nobody reads the
        output any more, 128 plus the number of SIGPIPE.
    """
    log = Log("info", [_Messages()])
    try:
        room = _ROOMS.get(options.command, options.command)
        command: Command = __import__(f"{__name__}.{room}", fromlist=["run"])
        return command.run(options, log) or 0
    except ArchiveError as error:
        log.error(str(error))
        return 1
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


class Output:
    """Lines on standard output.

    Attributes:
        terminal: whether a person reads along.
    """

    def __init__(self) -> None:
        self.terminal = os.isatty(_STDOUT)
        self._gathered: list[str] = []
        self._size = 0

    def line(self, text: str) -> None:
        """Write a line; it is gathered with others.

        Raises:
            BrokenPipeError: nobody reads it any more.
            ArchiveError: it cannot be written.
        """
        self._gathered.append(text)
        self._size += len(text)
        if self._size > _GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered. Raises as `line` does."""
        data = "".join([f"{text}\n" for text in self._gathered]).encode()
        self._gathered.clear()
        self._size = 0
        write_bytes(data)


def write_bytes(data: bytes) -> None:
    """Write to standard output at once.

    Raises:
        BrokenPipeError: nobody reads it any more.
        ArchiveError: it cannot be written.
    """
    try:
        with making_room():
            write_all(_STDOUT, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail("cannot write to standard output", error)


def human_size(size: int) -> str:
    """Give a size as people read it, as 999, 1.2K or 34M, with 1024 for a step."""
    if size < _LEAST_HUMAN:
        return str(size)
    value = float(size)
    for unit in "KMGTPE":
        value /= 1024
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 999.5:
            return f"{value:.0f}{unit}"
    return f"{value:.0f}E"


def size_in_words(size: int, *, human: bool) -> str:
    """Give a size in a sentence, as 999 bytes or 1.2K."""
    return human_size(size) if human and size >= _LEAST_HUMAN else f"{size} byte{'s' if size != 1 else ''}"


def shown(text: str) -> str:
    """Give a text so that it is harmless on a terminal, and one word or more of one line."""
    return escape(text) if text else "-"


class _Messages:
    """Messages for a person, on standard error."""

    def write(self, level: str, message: str) -> None:
        prefix = "" if level == "error" else f"{level}: "
        try:
            with making_room():
                os.write(_STDERR, f"archive_overlay: {prefix}{message}\n".encode())
        except OSError:
            pass


if TYPE_CHECKING:
    _: Sink = _Messages()
