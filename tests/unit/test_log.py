"""Log lines: one line each, harmless on a terminal, and in the form of the container tools."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from archive_overlay.log import LEVEL_NAMES, Log, Repeated, StreamSink, canonical_level, escape


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain", "plain"),
        ("naïve 文件", "naïve 文件"),
        ("C:\\x", "C:\\x"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("back\\slash\n", "back\\\\slash\\n"),
        ("not utf-8 \udcff", "not utf-8 \\xff"),
        ("right to left \u202e", "right to left \\u202e"),
        ("\x9b31m \x85 \u2028", "\\x9b31m \\x85 \\u2028"),
        ("lone \ud800", "lone \\ud800"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_a_line_is_logfmt_with_quotes_and_backslashes_escaped(pipe: tuple[int, int]) -> None:
    Log("info", [StreamSink(pipe[1], terminal=False)]).error('say "hi" \\ there')
    assert re.fullmatch(
        rb'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d" level=error msg="say \\"hi\\" \\\\ there"\n',
        os.read(pipe[0], 1000),
    )


def test_a_terminal_gets_colours_and_no_time(pipe: tuple[int, int]) -> None:
    Log("info", [StreamSink(pipe[1], terminal=True)]).warning("careful")
    assert os.read(pipe[0], 1000) == b"\x1b[33mWARN\x1b[0m careful\n"


def test_a_level_lets_through_what_is_at_least_as_bad(pipe: tuple[int, int]) -> None:
    log = Log("warn", [StreamSink(pipe[1], terminal=False)])
    for write in (log.trace, log.debug, log.info, log.warning, log.error):
        write("x")
    assert re.findall(rb"level=(\w+)", os.read(pipe[0], 1000)) == [b"warning", b"error"]


@pytest.mark.parametrize("name", LEVEL_NAMES)
def test_levels_are_known_in_any_case(name: str) -> None:
    assert canonical_level(name.upper()) == ("warning" if name == "warn" else name)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="verbose"):
        canonical_level("verbose")


def test_a_line_that_cannot_be_written_is_no_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        Log("info", [StreamSink(full, terminal=False)]).info("lost")
    finally:
        os.close(full)


class Said:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: str, message: str) -> None:
        self.lines.append(f"{level}: {message}")


def test_a_long_message_loses_its_middle() -> None:
    said = Said()
    log = Log("info", [said])

    log.error("e" * 16384)
    log.error(f"cannot read {'d/' * 500_000}: gone; try again")

    assert said.lines[0] == f"error: {'e' * 16384}"
    assert len(said.lines[1]) < 17_000
    assert said.lines[1].startswith("error: cannot read d/d/")
    assert " [... 983645 characters ...] " in said.lines[1]
    assert said.lines[1].endswith("d/: gone; try again")


def test_of_many_warnings_of_a_kind_the_first_are_written_and_the_others_counted() -> None:
    said = Said()
    warnings = Repeated(Log("info", [said]))
    for number in range(10):
        warnings.warning("letters left out", f"letter {number}")
    for number in range(1000):
        warnings.warning("sockets left out", f"socket {number}")
    warnings.finish()
    warnings.finish()

    assert said.lines == [
        *(f"warning: letter {number}" for number in range(10)),
        *(f"warning: socket {number}" for number in range(10)),
        "warning: sockets left out: 990 more, not named here",
    ]


def test_a_path_is_made_for_no_warning_that_is_only_counted() -> None:
    said = Said()
    warnings = Repeated(Log("info", [said]))
    asked = 0

    def path() -> str:
        nonlocal asked
        asked += 1
        return f"socket {asked}"

    for _ in range(1000):
        warnings.warning("sockets left out", " is left out", path=path)
    warnings.finish()

    assert asked == 10
    assert said.lines[9:] == [
        "warning: socket 10 is left out",
        "warning: sockets left out: 990 more, not named here",
    ]
