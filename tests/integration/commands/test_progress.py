"""The bar on a terminal while a command takes long, and that it is nowhere else."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.support import history, image_layouts
from tests.support.history import file, layer
from tests.support.screens import AT_ONCE, BAR, Terminal, run_at_once, screen

if TYPE_CHECKING:
    from pathlib import Path


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
    shown, _ = run_at_once("verify", "--read-data", "--color=never", scratch / "wrong")

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
        [sys.executable, "-ISXutf8", "-c", AT_ONCE, "diff", "-"],
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
    assert "A  293K a" in screen(shown)[-2]
