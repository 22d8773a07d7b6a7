"""The bar on a terminal while a command takes long, and that it is nowhere else."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tarfile
import termios
from typing import TYPE_CHECKING

import pytest

from tests.support import history, hooks, image_layouts
from tests.support.history import file, layer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Runs a command that shows the bar at once, and draws it all the time.
_AT_ONCE = (
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
        [sys.executable, "-ISXutf8", "-c", _AT_ONCE, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=terminal.slave,
        stderr=subprocess.PIPE if pipe else terminal.slave,
        env={"TERM": term} if term else {},
    ) as process:
        shown = "".join(terminal.read())
        said = process.stderr.read().decode() if process.stderr else ""
    assert process.returncode == 0, shown + said
    return shown, said


@pytest.fixture
def layout(scratch: Path) -> Path:
    """Give a layout with two revisions of some megabytes."""
    layers = [layer(*(file(f"{part}{n}", os.urandom(1_000_000)) for n in range(4))) for part in "ab"]
    image_layouts.put(scratch / "layout", "latest", layers=layers)
    return scratch / "layout"


@pytest.mark.parametrize("command", ["extract", "verify", "squash", "apply", "apply --reverse", "diff"])
def test_a_bar_is_shown_and_is_gone_at_the_end(layout: Path, scratch: Path, command: str) -> None:
    (scratch / "to").mkdir()
    revision, to = f"{layout}:latest@2", scratch / "to"
    arguments: dict[str, list[str | Path]] = {
        "extract": ["extract", layout, scratch / "out"],
        "verify": ["verify", "--read-data", layout],
        "squash": ["squash", f"{layout}:latest@1..2"],
        "apply": ["apply", revision, to],
        "apply --reverse": ["apply", "--reverse", scratch / "back.tar", revision, to],
        "diff": ["diff", revision],
    }

    shown, _ = run_at_once(*arguments[command])

    assert BAR.search(shown)
    assert not any(BAR.search(line) for line in screen(shown))
    assert screen(shown)[-1] == ""


def test_a_part_of_a_revision_has_a_bar_too(layout: Path, scratch: Path) -> None:
    shown, _ = run_at_once("extract", layout, scratch / "out", "a1")

    assert BAR.search(shown)
    assert screen(shown) == [""]


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_redraw_a_line_shows_none(layout: Path, scratch: Path, term: str) -> None:
    shown, _ = run_at_once("extract", layout, scratch / "out", term=term)

    assert shown == ""


def test_a_pipe_gets_none(layout: Path, scratch: Path) -> None:
    assert run_at_once("extract", layout, scratch / "out", pipe=True) == ("", "")


def test_what_takes_less_than_a_second_shows_none(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a"))])

    shown = history.shown_on_terminal("extract", scratch / "layout", scratch / "out", TERM="xterm")

    assert shown == ""


def test_messages_stand_on_lines_of_their_own(layout: Path, scratch: Path) -> None:
    layers = [layer(file("a", os.urandom(4_000_000))), layer(file("b", b"2")), layer(file("c", b"3"))]
    image_layouts.put(scratch / "wrong", "latest", layers=layers)
    shown, _ = run_at_once("verify", "--read-data", scratch / "wrong")

    (said, last) = screen(shown)
    assert said.endswith("wrong is whole: 1 image with 3 revisions")
    assert last == ""


def test_it_follows_the_width_of_the_window_and_goes_on_while_it_waits(scratch: Path) -> None:
    with tarfile.open(scratch / "a.tar", "w") as tar:
        info, data = file("a", bytes(300_000))
        tar.addfile(info, io.BytesIO(data))
    data = (scratch / "a.tar").read_bytes()
    terminal = Terminal()
    shown = ""
    with subprocess.Popen(
        [sys.executable, "-ISXutf8", "-c", _AT_ONCE, "diff", "-"],
        stdin=subprocess.PIPE,
        stdout=terminal.slave,
        stderr=terminal.slave,
        env={"TERM": "xterm"},
    ) as process:
        assert process.stdin
        process.stdin.write(data[:200_000])
        process.stdin.flush()
        narrow = False
        for part in terminal.read():
            shown += part
            if not narrow and "/s" in shown:
                terminal.resize(8)
                narrow = True
            elif narrow and not process.stdin.closed and re.search(r"\r195K\x1b\[K", shown):
                process.stdin.write(data[200_000:])
                process.stdin.close()

    assert process.returncode == 0
    assert screen(shown)[-1] == ""
    assert "300000 a" in screen(shown)[-2]
