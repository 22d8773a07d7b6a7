"""The table: for a terminal as it comes into being, and for the README."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MET, UNMET = "yes", "NO"

_HEADINGS = ("work", "tool", "seconds", "ours is", "CPU s", "ours is", "at most", "met", "peak MiB")
_WIDTHS = (0, 50, 9, 9, 8, 9, 21, 5, 10)
# The marks in the README.
_BEGIN, _END = "<!-- begin of the table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Row:
    """A row of the table; empty where there is nothing to say.

    Attributes:
        work: what is done.
        tool: what does it, or which property of it is judged.
        seconds: the median.
        ratio: ours, in times of this tool.
        cpu: the median of the seconds on processors.
        cpu_ratio: ours, in times of this tool.
        at_most: what a ratio, or the peak memory, has to be; "CPU" before the ratio of CPU times.
        met: `MET` or `UNMET`.
        memory: peak memory of its largest process.
    """

    work: str
    tool: str
    seconds: str = ""
    ratio: str = ""
    cpu: str = ""
    cpu_ratio: str = ""
    at_most: str = ""
    met: str = ""
    memory: str = ""


def judged(met: bool) -> str:
    """Say whether a limit is kept."""
    return MET if met else UNMET


def heading() -> str:
    """Give the heading as a line of text."""
    return _line(_HEADINGS)


def text(rows: Iterable[Row]) -> str:
    """Give rows as lines of text, each work's below its name."""
    lines = []
    for work, group in groupby(rows, key=lambda row: row.work):
        lines += ["", work, *(_line(astuple(row)) for row in group)]
    return "\n".join(lines)


def markdown(rows: Iterable[Row]) -> str:
    """Give all rows as a table in Markdown; a work is named in its first row."""
    lines = [_HEADINGS, ("---", "---", *["---:"] * (len(_HEADINGS) - 2))]
    for _, group in groupby(rows, key=lambda row: row.work):
        first, *others = (astuple(row) for row in group)
        lines += [first, *(("", *cells[1:]) for cells in others)]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def updated(page: str, part: str) -> str:
    """Give a page with something else between its marks."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {_BEGIN!r} and {_END!r}")
    return f"{before}{begin}\n\n{part.strip()}\n\n{end}{after}"


def _line(cells: Sequence[str]) -> str:
    tool, *numbers = zip(cells[1:], _WIDTHS[1:])
    line = f"  {tool[0]:{tool[1]}}" + "".join(f"{cell:>{width}}" for cell, width in numbers)
    return line.rstrip()
