"""The terminal that a person looks at: its width, whether it shows colours, and how much of a text fits.

Only this module reads the environment: COLUMNS, NO_COLOR and TERM. No hook imports it.

Source: no-color.org; environ(7).
"""

from __future__ import annotations

import os
import unicodedata

from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

COLOURS = ("auto", "always", "never")
BYTES, HUMAN = "bytes", "human"  # how sizes are shown

RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN = range(31, 37)

_USUAL_WIDTH = 80
_LEAST_WIDTH = 40
# Longer lines are hard to read.
_WIDEST_HELP = 100
_STDOUT = 1
# Marks that stand above or below another character, and what is not seen at all.
_NO_WIDTH = ("Mn", "Me", "Cf")
_DOUBLE_WIDTH = ("W", "F")
_DOTS = "..."


class Screen(Record):
    """Where a command's output is shown.

    Attributes:
        width: in columns.
        fixed: whether what is longer must be cut or wrapped. Programs get it whole.
        colours: whether it has colours.
        human: whether sizes are for people.
    """

    width: int = _USUAL_WIDTH
    fixed: bool = False
    colours: bool = False
    human: bool = False


def find_screen(options: argparse.Namespace) -> Screen:
    """Find out where standard output is shown.

    Args:
        options: `color`, one of `COLOURS`; `sizes`, `BYTES`, `HUMAN` or None. A command may lack either.
    """
    terminal = os.isatty(_STDOUT)
    sizes = getattr(options, "sizes", None)
    return Screen(
        width=_width(),
        fixed=terminal,
        colours=_has_colours(getattr(options, "color", "never")),
        human=terminal if sizes is None else sizes == HUMAN,
    )


def is_capable(fd: int) -> bool:
    """Say whether a file descriptor is a terminal that does what escape sequences say."""
    return os.isatty(fd) and os.environ.get("TERM", "dumb") != "dumb"


def help_width() -> int:
    """Give the width of help, in columns."""
    return min(_width(), _WIDEST_HELP)


def coloured(text: str, colour: int, screen: Screen) -> str:
    """Give a text in a colour, if there are colours."""
    return f"\x1b[{colour}m{text}\x1b[0m" if screen.colours else text


def columns(text: str) -> int:
    """Give how many columns a text takes, which has no control characters."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def cut(text: str, width: int) -> str:
    """Give a text, or the beginning of it with dots, so that it takes no more than some columns."""
    if columns(text) <= width:
        return text
    return _beginning(text, width - len(_DOTS)) + _DOTS


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Give a text with blanks after it, or before it, so that it takes at least some columns."""
    blanks = " " * (width - columns(text))
    return blanks + text if right else text + blanks


def wrapped(text: str, width: int, *, margin: str = "", cuts_words: bool = True) -> list[str]:
    """Break a text into lines between words.

    Args:
        text: one line.
        width: of the lines, in columns.
        margin: what each line begins with.
        cuts_words: whether words that are longer than a line are cut, too.
    """
    return [margin + line for line in _lines(text, max(width - columns(margin), 1), cuts_words)]


def _lines(text: str, width: int, cuts_words: bool) -> Iterator[str]:
    line, used = "", 0
    for word in text.split():
        length = columns(word)
        if line and used + 1 + length > width:
            yield line
            line, used = "", 0
        while cuts_words and not line and length > width:
            beginning = _beginning(word, width) or word[0]
            yield beginning
            word = word[len(beginning) :]
            length = columns(word)
        line, used = (f"{line} {word}", used + 1 + length) if line else (word, length)
    if line:
        yield line


def _beginning(text: str, width: int) -> str:
    used = 0
    for position, character in enumerate(text):
        used += _columns(character)
        if used > width:
            return text[:position]
    return text


def _columns(character: str) -> int:
    if unicodedata.category(character) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in _DOUBLE_WIDTH else 1


def _width() -> int:
    text = os.environ.get("COLUMNS", "")
    width = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not width:
        try:
            width = os.get_terminal_size(_STDOUT).columns
        except OSError:
            pass
    return max(width, _LEAST_WIDTH) if width else _USUAL_WIDTH


def _has_colours(asked: str) -> bool:
    if asked != "auto":
        return asked == "always"
    return is_capable(_STDOUT) and not os.environ.get("NO_COLOR")
