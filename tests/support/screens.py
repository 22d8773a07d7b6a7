"""Commands on a terminal that is looked at: what it shows meanwhile, and in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

from tests.support import hooks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Runs a command that shows the bar at once, and draws it all the time.
AT_ONCE = (
    f"import sys; sys.path.insert(0, {str(hooks.TOP)!r})\n"
    "from archive_overlay.commands import progress\n"
    "progress._SECONDS_BEFORE, progress._SECONDS_BETWEEN = 0, 0.001\n"
    "from archive_overlay.cli import main\n"
    "sys.exit(main())"
)
BAR = re.compile(r"\[#*\.*\] \d+% of \S+")


class Terminal:
    """A terminal that is read from the other side.

    Args:
        width: in columns.
    """

    def __init__(self, width: int = 80) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def resize(self, width: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def read(self) -> Iterator[str]:
        """Give what is written to it, until nobody has it open."""
        os.close(self.slave)
        try:
            while part := os.read(self.master, 65536):
                yield part.decode()
        except OSError:
            pass  # EIO: that was the last of it
        os.close(self.master)


def screen(shown: str) -> list[str]:
    """Give the lines that are seen in the end."""
    lines, column = [""], 0
    for part in re.split(r"(\r\n|\r|\x1b\[K)", shown):
        if part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif part.startswith("\r"):
            column = 0
            lines += [""] * (part == "\r\n")
        else:
            lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
            column += len(part)
    return lines


def run_at_once(*arguments: str | Path, term: str = "xterm", pipe: bool = False) -> tuple[str, str]:
    """Run a command; give what it wrote to its terminal, and to a pipe that is its standard error instead."""
    terminal = Terminal()
    with subprocess.Popen(
        [sys.executable, "-ISXutf8", "-c", AT_ONCE, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=terminal.slave,
        stderr=subprocess.PIPE if pipe else terminal.slave,
        env={"TERM": term} if term else {},
    ) as process:
        shown = "".join(terminal.read())
        said = process.stderr.read().decode() if process.stderr else ""
    assert process.returncode == 0, shown + said
    return shown, said
