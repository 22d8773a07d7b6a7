"""Revisions as a table for people: a line each, and further lines for what does not fit."""

from __future__ import annotations

import re

from archive_overlay.commands import human_size, shown
from archive_overlay.commands.terminal import CYAN, RED, YELLOW, coloured, columns, cut, padded, wrapped
from archive_overlay.history.dates import minute_text, seconds_of
from archive_overlay.layout.provenance import ABSENT, OTHER, UNKNOWN
from archive_overlay.log import escape
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from archive_overlay.commands.terminal import Screen
    from archive_overlay.history.revisions import Revision
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.layout.provenance import Provenance

_HEADINGS = ("REV", "WHEN (UTC)", "CONTAINER", "IMAGE", "+", "-", "SIZE", "MESSAGE")
_IMAGE = 3
_NAMES = (2, _IMAGE)
_TO_THE_RIGHT = (0, 4, 5, 6)
_GAP = "  "
_LEAST_CELL = 8
# Where there is no room for all columns.
_LEFT_OUT = (_IMAGE, 6, 5, 4, 2)
_LONGEST_CELL = 255
_LONGEST_CREATOR = 60
_ID_LENGTH = 12  # as the container tools cut them
_ID = re.compile("[0-9a-f]{64}")


class Listed(Record):
    """A revision to be shown.

    Attributes:
        tag: of the image that it is listed for; "" if that has none.
        revision: what is known of it.
        pieces: those that hold its change set; empty if some are not there.
        lacks_base: whether it is the first one, and what lies below it is not in the layout.
        fault: what is wrong with it; "" for nothing.
        tags: that are shown beside it.
    """

    tag: str
    revision: Revision
    pieces: Sequence[Piece]
    lacks_base: bool = False
    fault: str = ""
    tags: Sequence[str] = ()

    @property
    def size(self) -> int | None:
        """Size of its change set as it is stored, in bytes; None if that is not known."""
        return sum(piece.size for piece in self.pieces) if self.pieces else None


def format_table(
    rows: Sequence[Listed], screen: Screen, *, indent: int = 0
) -> tuple[str, Iterator[list[str]]]:
    """Format revisions.

    Args:
        rows: the revisions.
        screen: where they are shown.
        indent: how much of the width is taken by what the caller puts before each line.

    Returns:
        The headings, and for each revision its lines, of which there is at least one.
    """
    cells = [_cells(row, human=screen.human) for row in rows]
    widths = [
        max(columns(row[column]) for row in (_HEADINGS, *cells)) for column in range(len(_HEADINGS) - 1)
    ]
    if all(row[_IMAGE] == "-" for row in cells):
        widths[_IMAGE] = 0
    width = screen.width - indent
    if screen.fixed:
        _narrow(widths, width)
    headings = _line(_HEADINGS, widths)
    if columns(headings) > width:
        headings = _line(_HEADINGS[:-1], widths)
    return headings, (_format(row, each, widths, width, screen) for row, each in zip(rows, cells))


def tag_heading(name: str, revisions: int | None, screen: Screen) -> str:
    """Give the line that the revisions of an image come after; None: they cannot be read."""
    count = {None: "cannot be read", 0: "no revisions", 1: "1 revision"}.get(
        revisions, f"{revisions} revisions"
    )
    return f"{coloured(shown(name), CYAN, screen)} ({count})"


def _format(
    row: Listed, cells: Sequence[str], widths: Sequence[int], width: int, screen: Screen
) -> list[str]:
    line = _line(cells, widths)
    used = _used(widths) + len(_GAP)
    margin = " " * (widths[0] + len(_GAP))
    lines = [line]
    text = _text(row)
    if text and used + columns(text) <= width:
        lines = [padded(line, used) + text]
    elif text:
        lines += wrapped(text, width, margin=margin, cuts_words=screen.fixed)
    if row.fault:
        fault = shown(row.fault)
        faults = wrapped(fault, width, margin=margin) if screen.fixed else [margin + fault]
        lines += [coloured(each, RED, screen) for each in faults]
    lines[0] = coloured(lines[0][: widths[0]], YELLOW, screen) + lines[0][widths[0] :]
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    placed = [
        padded(cut(cell, width), width, right=column in _TO_THE_RIGHT)
        for column, (cell, width) in enumerate(zip(cells, widths))
        if width
    ]
    return _GAP.join([*placed, *cells[len(widths) :]]).rstrip()


def _narrow(widths: list[int], width: int) -> None:
    """Make the columns for names narrower, or leave columns out, so that all columns but the last have this width."""
    while _used(widths) > width:
        widest = max(_NAMES, key=lambda column: widths[column])
        if widths[widest] > _LEAST_CELL:
            widths[widest] -= 1
            continue
        column = next((column for column in _LEFT_OUT if widths[column]), None)
        if column is None:
            return
        widths[column] = 0


def _used(widths: Sequence[int]) -> int:
    return sum(each + len(_GAP) for each in widths if each) - len(_GAP)


def _cells(row: Listed, *, human: bool) -> tuple[str, ...]:
    revision, size = row.revision, row.size
    origin = revision.provenance
    seconds = seconds_of(revision.created)
    return (
        str(revision.number),
        minute_text(seconds) if seconds is not None else _cell(revision.created),
        _cell(_container(origin)) if origin else "-",
        _cell(_short_image(origin.image)) if origin else "-",
        _count(origin.entries if origin else None),
        _count(origin.deletions if origin else None),
        "-" if size is None else human_size(size) if human else str(size),
    )


def _container(origin: Provenance) -> str:
    if origin.container_name:
        return origin.container_name
    return origin.container[:_ID_LENGTH] if _ID.fullmatch(origin.container) else origin.container


def _short_image(name: str) -> str:
    """Give what people call an image: without the registry, and without a tag or digest that says nothing to them."""
    if _ID.fullmatch(name.rpartition(":")[2]):
        name, _, digest = name.rpartition("@")
        name = name or digest.rpartition(":")[2][:_ID_LENGTH]
    name = name.rpartition("/")[2]
    return name.removesuffix(":latest")


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _text(row: Listed) -> str:
    """Say in one line what there is no column for."""
    revision = row.revision
    origin = revision.provenance
    if origin:
        said, notes = origin.message, _notes(row, origin)
    else:
        said = revision.created_by or revision.comment
        said = said if len(said) <= _LONGEST_CREATOR else f"{said[: _LONGEST_CREATOR - 3]}..."
        notes = ["base not in here"] if row.lacks_base else []
    tags = f"({', '.join(map(shown, row.tags))})" if row.tags else ""
    noted = f"[{', '.join(notes)}]" if notes else ""
    return " ".join(filter(None, (tags, escape(said), noted)))


def _notes(row: Listed, origin: Provenance) -> list[str]:
    """Say what is unusual about the place of a revision in its history."""
    word, _, other = origin.base.partition(" ")
    notes = [f"on {_cell(origin.parent)}"] if origin.parent else []
    if word == UNKNOWN:
        notes.append("base unknown")
    elif word == ABSENT or row.lacks_base:
        notes.append("base not in here")
    elif word == OTHER:
        notes.append(f"container began with {_cell(other[:_ID_LENGTH] if _ID.fullmatch(other) else other)}")
    return notes


def _cell(text: str) -> str:
    """Show a text in a column: all lines get the width of the longest one."""
    text = shown(text[: _LONGEST_CELL + 1])
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 3]}..."
