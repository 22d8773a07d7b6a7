"""Log lines in the style of the container tools, on stderr, in a file and in syslog.

The standard library's logging costs 5 ms of every container stop; this room needs two functions of it.
A message may hold anything that a container wrote: every line is one line, and harmless on a terminal.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Callable, Protocol

    class Sink(Protocol):
        """Somewhere that log lines go."""

        def write(self, level: str, message: str) -> None:
            """Write one message; never raise."""


# From the most to the least talkative; the number is what levels are compared by. The names are
# those of the container tools (and of 2.0.4).
LEVELS = {"trace": 0, "debug": 1, "info": 2, "warning": 3, "error": 4, "fatal": 5, "panic": 6}
LEVEL_NAMES = ("trace", "debug", "info", "warn", "warning", "error", "fatal", "panic")

# A path that a container made can be as long as there are directories in it.
_LONGEST = 16 * 1024
# How many warnings of a kind.
_WRITTEN = 10
_PIECE = 4096

_COLOURS = {"trace": 37, "debug": 37, "info": 36, "warning": 33, "error": 31, "fatal": 31, "panic": 31}
_PRIORITIES = {
    "trace": "LOG_DEBUG",
    "debug": "LOG_DEBUG",
    "info": "LOG_INFO",
    "warning": "LOG_WARNING",
    "error": "LOG_ERR",
    "fatal": "LOG_CRIT",
    "panic": "LOG_CRIT",
}


class Log:
    """Where messages of one run go, and from which level on.

    Args:
        level: the least level that is written, one of `LEVEL_NAMES`.
        sinks: where messages are written, in this order.

    Attributes:
        about: what each message begins with, before a colon; "" for nothing. It may become longer when more is known.
    """

    def __init__(self, level: str, sinks: list[Sink]) -> None:
        self._threshold = LEVELS[canonical_level(level)]
        self._sinks = sinks
        self.about = ""

    def named(self, about: str) -> Log:
        """Give a log that writes to the same places, and begins each message with what it is about."""
        log = Log.__new__(Log)
        log._threshold, log._sinks, log.about = self._threshold, self._sinks, about
        return log

    def wants(self, level: str) -> bool:
        """Say whether messages of a level are written: for messages that cost something to make."""
        return LEVELS[level] >= self._threshold

    def trace(self, message: str) -> None:
        """Say something about a single entry of a change set."""
        self._write("trace", message)

    def debug(self, message: str) -> None:
        """Say how a decision came about."""
        self._write("debug", message)

    def info(self, message: str) -> None:
        """Say what was done."""
        self._write("info", message)

    def warning(self, message: str) -> None:
        """Say what was ignored or left out."""
        self._write("warning", message)

    def error(self, message: str) -> None:
        """Say what could not be done."""
        self._write("error", message)

    def _write(self, level: str, message: str) -> None:
        if LEVELS[level] < self._threshold:
            return
        line = escape(message if len(message) <= _LONGEST else _shortened(message))
        if self.about:
            line = f"{escape(self.about)}: {line}"
        for sink in self._sinks:
            sink.write(level, line)


class Repeated:
    """Warnings of which a container can cause any number: the first of each kind are written, the others counted.

    Args:
        log: takes them.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._counts: dict[str, int] = {}

    def warning(self, kind: str, message: str, *, path: Callable[[], str] | None = None) -> None:
        """Say what was left out.

        Args:
            kind: what is counted, as "sockets left out".
            message: names this one.
            path: gives what the message begins with. To make a path takes a step for each directory on its way, of
                which there may be thousands: it is asked for only if the message is written.
        """
        count = self._counts.get(kind, 0)
        self._counts[kind] = count + 1
        if count < _WRITTEN:
            self._log.warning(f"{path()}{message}" if path else message)

    def finish(self) -> None:
        """Say how many more there were."""
        for kind, count in self._counts.items():
            if count > _WRITTEN:
                self._log.warning(f"{kind}: {count - _WRITTEN} more, not named here")
        self._counts.clear()


def open_log(level: str, *, path: str | None, syslog: bool) -> Log:
    """Open the log of a run of the hook: standard error, and what its command line says.

    Args:
        level: see `Log`.
        path: of a file to append to; None: to none.
        syslog: whether messages go to the system log too.
    """
    sinks: list[Sink] = [StreamSink(2, terminal=os.isatty(2))]
    if syslog:
        sinks.append(SyslogSink())
    failure = None
    if path:
        try:
            from archive_overlay.system.resolve import open_log_file

            sinks.append(StreamSink(open_log_file(path), terminal=False))
        except (OSError, ValueError) as error:
            failure = error
    log = Log(level, sinks)
    if failure:
        reason = getattr(failure, "strerror", None) or failure
        log.warning(f"cannot open the log file {path}: {reason}; going on without it")
    return log


class StreamSink:
    """Log lines on an open file descriptor: logfmt, or colours and no time on a terminal.

    A line that cannot be written is lost: no log may stop an archive.

    Args:
        fd: the file descriptor; it stays open.
        terminal: whether a person reads along.
    """

    def __init__(self, fd: int, *, terminal: bool) -> None:
        self._fd = fd
        self._format: Callable[[str, str], str] = _terminal_line if terminal else _logfmt_line

    def write(self, level: str, message: str) -> None:
        """Write one line in one system call, so that lines of concurrent hooks stay whole."""
        try:
            os.write(self._fd, self._format(level, message).encode())
        except OSError:
            pass  # a full disk or a closed pipe on the other side


class SyslogSink:
    """Messages to the system log: ident archive_overlay, pid, facility daemon.

    Where no daemon listens, the C library drops them in silence.
    """

    def __init__(self) -> None:
        import syslog

        self._syslog: ModuleType = syslog
        syslog.openlog("archive_overlay", syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(self, level: str, message: str) -> None:
        """Send one message at the priority that matches its level."""
        self._syslog.syslog(getattr(self._syslog, _PRIORITIES[level]), message)


def canonical_level(name: str) -> str:
    """Give a level's one name: `warn` is `warning`, and case does not count.

    Raises:
        ValueError: no level is called that.
    """
    lowered = name.lower()
    if lowered not in LEVEL_NAMES:
        raise ValueError(f"unknown log level {name!r}")
    return "warning" if lowered == "warn" else lowered


def escape(text: str) -> str:
    r"""Make text safe for one line of a log or a terminal: what does not print becomes \n, \x1b, \u202e.

    Bytes that are no UTF-8 (surrogate escapes) become \xNN. A backslash is doubled only where there
    is something to escape: an ordinary message stays as it is.
    """
    if text.isprintable():
        return text
    # Some at a time: a text for each character takes sixty times the memory.
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return "".join(["".join([_shown(char) for char in piece]) for piece in pieces])


def _shown(char: str) -> str:
    return char if char.isprintable() and char != "\\" else _escaped(char)


def _shortened(message: str) -> str:
    """Leave the middle of a message out: what happened is at its beginning, and why at its end."""
    half = _LONGEST // 2
    return f"{message[:half]} [... {len(message) - 2 * half} characters ...] {message[-half:]}"


def _escaped(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _logfmt_line(level: str, message: str) -> str:
    quoted = message.replace("\\", "\\\\").replace('"', '\\"')
    return f'time="{_now()}" level={level} msg="{quoted}"\n'


def _terminal_line(level: str, message: str) -> str:
    return f"\x1b[{_COLOURS[level]}m{level.upper()[:4]}\x1b[0m {message}\n"


def _now() -> str:
    # RFC 3339 with the local offset, as the container tools write it.
    now = time.localtime()
    offset = time.strftime("%z", now)
    return time.strftime("%Y-%m-%dT%H:%M:%S", now) + f"{offset[:3]}:{offset[3:]}"
