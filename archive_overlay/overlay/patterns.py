"""Patterns of paths, as in .dockerignore: read, and compiled name by name.

Source: the format is that of Docker's .dockerignore ("Dockerfile reference", ".dockerignore files"), whose names are
matched by the rules of Go's path/filepath.Match.
"""

from __future__ import annotations

import os
import re
from itertools import count

from archive_overlay.errors import ArchiveError, brief

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Union

    # A name, an expression for one, or any number of directories.
    Part = Union[str, re.Pattern[str], None]

# Both separate patterns: podman 4.3 splits annotations at commas.
_SEPARATORS = ",;"
_MOST_PATTERNS = 1000
_LONGEST = 4096
# Of all patterns of a list: what a directory costs grows with this.
_MOST_CHARACTERS = 64 * 1024
# How many ways to read a pattern: each ** inside of a name has two.
_MOST_WAYS = 16
_ANY = "*"  # as a token; an asterisk that is meant has a backslash before it
_DIRECTORIES: list[list[str]] = [[], []]  # of a name that has two asterisks and nothing else
_numbers = count()


class Pattern:
    """One pattern.

    Attributes:
        excepts: whether it begins with an exclamation mark: what it matches is none of the list's after all.
        ways: what it may mean, each as the parts of a path.
    """

    __slots__ = ("excepts", "ways")

    def __init__(self, ways: tuple[tuple[Part, ...], ...], *, excepts: bool) -> None:
        self.ways = ways
        self.excepts = excepts


def parse_patterns(text: str, key: str) -> tuple[Pattern, ...]:
    """Read the patterns of an annotation.

    Args:
        text: patterns, separated by commas or semicolons. A backslash takes the meaning from the character after it.
        key: of the annotation, for messages.

    Returns:
        The patterns, in order; none for a text that has none.

    Raises:
        ArchiveError: one is not valid, and is named; or they are too many, or too long.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ArchiveError(f"{key} has {len(text)} characters: at most {_MOST_CHARACTERS} are possible")
    patterns = []
    for each in _split(text):
        excepts = each.startswith("!")
        stripped = each[1:].strip() if excepts else each
        if excepts and not stripped:
            raise ArchiveError(f"the {key} pattern '!' has nothing after the exclamation mark")
        try:
            ways = _ways(stripped)
        except _InvalidError as error:
            raise ArchiveError(f"the {key} pattern {brief(each)!r} is not valid: {error}") from None
        if ways:
            patterns.append(Pattern(ways, excepts=excepts))
    if len(patterns) > _MOST_PATTERNS:
        raise ArchiveError(f"{key} has {len(patterns)} patterns: at most {_MOST_PATTERNS} are possible")
    return tuple(patterns)


class _InvalidError(Exception):
    """What is wrong with a pattern."""


def _split(text: str) -> Iterator[str]:
    """Give the patterns of a text, without the spaces around them."""
    start = place = 0
    while place < len(text):
        if text[place] == "\\":
            place += 1
        elif text[place] in _SEPARATORS:
            if pattern := _stripped(text[start:place]):
                yield pattern
            start = place + 1
        place += 1
    if pattern := _stripped(text[start:]):
        yield pattern


def _stripped(text: str) -> str:
    """Take away the spaces around a pattern, but for one that a backslash protects."""
    stripped = text.strip()
    slashes = len(stripped) - len(stripped.rstrip("\\"))
    begin = text.find(stripped) + len(stripped)
    return stripped + text[begin : begin + slashes % 2]


def _ways(text: str) -> tuple[tuple[Part, ...], ...]:
    """Give what a pattern may mean.

    Returns:
        The parts of a path for each; () if it means nothing.

    Raises:
        _InvalidError: it is not valid.
    """
    if len(text) > _LONGEST:
        raise _InvalidError(f"it has {len(text)} characters: at most {_LONGEST} are possible")
    try:
        if b"\0" in os.fsencode(text):
            raise _InvalidError("no name has a NUL character")
    except UnicodeEncodeError:
        raise _InvalidError("it is not valid text") from None
    names: list[str] = []
    for name in text.split("/"):
        if name == "..":
            if names:
                names.pop()
            elif not text.startswith("/"):
                raise _InvalidError("it leads out of the mount")
        elif name not in ("", "."):
            names.append(name)
    ways: list[list[Part]] = [[]]
    waiting: list[list[str]] = [[]]
    for name in names:
        pieces = _pieces(name)
        pieces[0] = [*waiting.pop(), *pieces[0]]
        pieces = [*waiting, *pieces]
        waiting = [[]]
        if name is not names[-1] and len(pieces) > 1 and not pieces[-1] and pieces != _DIRECTORIES:
            waiting = pieces  # as in .dockerignore, "a**/b" is "a**b"
            continue
        read = _read_name(pieces)
        if len(ways) * len(read) > _MOST_WAYS:
            raise _InvalidError("it has ** within too many names")
        ways = [[*way, *parts] for way in ways for parts in read]
    return tuple([_in_order(way) for way in ways]) if names else ()


def _in_order(way: list[Part]) -> tuple[Part, ...]:
    """Give the parts of a path so that the last one is a name, and no two that stand for directories follow one another."""
    parts = [part for part, before in zip(way, ["", *way]) if part is not None or before is not None]
    if parts[-1] is None:
        parts[-1] = _compiled([_ANY])  # what is in what matches does so, too
    return tuple(parts)


def _pieces(name: str) -> list[list[str]]:
    """Read a name of a pattern: what is between two asterisks, character by character."""
    pieces: list[list[str]] = [[]]
    place = 0
    while place < len(name):
        if name.startswith("**", place):
            pieces.append([])
            place += 2
            continue
        token, place = _token(name, place)
        pieces[-1].append(token)
    return pieces


def _read_name(pieces: list[list[str]]) -> list[list[Part]]:
    """Give what a name of a pattern may mean: parts of a path each.

    Two asterisks stand for any number of directories, which end there: "a**b" is "ab", or "a*/b" with any
    directories in between.

    Args:
        pieces: see `_pieces`.
    """
    if pieces == _DIRECTORIES:
        return [[None]]
    if len(pieces) > 1 and not pieces[-1]:
        # At the end, they stand for anything.
        pieces = [*pieces[:-2], [*pieces[-2], _ANY]]
    if len(pieces) > 1 and not pieces[0]:
        # A path begins here, so there is nothing that the directories could begin with.
        return [[None, *way] for way in _joined(pieces[1:])]
    return list(_joined(pieces))


def _joined(pieces: Sequence[list[str]]) -> list[list[Part]]:
    ways: list[tuple[list[Part], list[str]]] = [([], pieces[0])]
    for piece in pieces[1:]:
        if len(ways) > _MOST_WAYS:
            break  # and it is refused
        ways = [
            way
            for before, open_ in ways
            for way in ((before, [*open_, *piece]), ([*before, _compiled([*open_, _ANY]), None], piece))
        ]
    return [[*before, _compiled(open_)] for before, open_ in ways]


def _token(name: str, place: int) -> tuple[str, int]:
    """Read one character of a pattern: `_ANY`, or an expression for one character. Give the place after it, too."""
    character = name[place]
    if character == "*":
        return _ANY, place + 1
    if character == "?":
        return "(?s:.)", place + 1
    if character == "\\":
        if place + 1 == len(name):
            raise _InvalidError("there is nothing after the last backslash")
        return re.escape(name[place + 1]), place + 2
    if character == "[":
        return _class(name, place + 1)
    return re.escape(character), place + 1


def _class(name: str, place: int) -> tuple[str, int]:
    """Read the characters in brackets."""
    start = "["
    if name.startswith("^", place):
        start, place = "[^", place + 1
    ranges: list[str] = []
    while True:
        if place < len(name) and name[place] == "]" and ranges:
            return f"{start}{''.join(ranges)}]", place + 1
        low, place = _member(name, place)
        high = low
        if name.startswith("-", place):
            high, place = _member(name, place + 1)
        if high < low:
            raise _InvalidError(f"the range {low}-{high} is empty")
        ranges.append(f"{re.escape(low)}-{re.escape(high)}")


def _member(name: str, place: int) -> tuple[str, int]:
    if name.startswith("\\", place):
        place += 1
    elif place < len(name) and name[place] in "-]":
        raise _InvalidError(f"in brackets, {name[place]} needs a backslash before it")
    if place >= len(name):
        raise _InvalidError("a bracket is not closed (in brackets, a comma needs a backslash before it)")
    return name[place], place + 1


def _compiled(tokens: Sequence[str]) -> Part:
    """Make an expression for a whole name.

    The first match of what is between two asterisks is as good as any later one, so nothing is tried again: no name takes
    time that grows with a power of its length.
    """
    if all(len(token) <= len("\\.") and token != _ANY for token in tokens):
        return "".join([token[-1] for token in tokens])
    runs: list[list[str]] = [[]]
    for token in tokens:
        if token == _ANY:
            runs.append([])
        else:
            runs[-1].append(token)
    first, *middle = ("".join(run) for run in runs)
    if not middle:
        return re.compile(first)
    *middle, last = middle
    text = first
    for run in filter(None, middle):
        # Any two expressions may become parts of one.
        group = f"g{next(_numbers)}"
        text += f"(?=(?P<{group}>(?s:.*?){run}))(?P={group})"
    return re.compile(f"{text}(?s:.*){last}")
