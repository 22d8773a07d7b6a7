"""Which paths of a mount are archived: patterns as in .dockerignore.

A pattern is compiled once, and matched a name at a time, as the walk goes down: in each directory it is known what of the
patterns can still match there. So no path is ever put together, nothing is matched twice, and a directory in which nothing
can be saved is not entered. What a name costs is bounded by its length and the number of patterns, whatever both are.

Source: the format is that of Docker's .dockerignore ("Dockerfile reference", ".dockerignore files"), whose names are
matched by the rules of Go's path/filepath.Match.
"""

from __future__ import annotations

import os
import re
from itertools import count

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.overlay.caches import TAG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Callable, Union

    from archive_overlay.log import Log

    # A name, an expression for one, or any number of directories.
    Part = Union[str, re.Pattern[str], None]

# Both separate patterns: podman 4.3 splits annotations at commas.
_SEPARATORS = ",;"
_MOST_PATTERNS = 1000
_LONGEST = 4096
# How many ways to read a pattern: each ** inside of a name has two.
_MOST_WAYS = 16
_MOST_NODES = 1024
_ANY = "*"  # as a token; an asterisk that is meant has a backslash before it
_DIRECTORIES: list[list[str]] = [[], []]  # of a name that has two asterisks and nothing else
_numbers = count()

# How many directories are listed of which something is left out.
_LISTED_DIRECTORIES = 100


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
        ArchiveError: one is not valid, or there are too many. It is named.
    """
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


class Selection:
    """What of a mount is archived.

    Args:
        include: only what these match is, and the directories that lead there; (): everything.
        exclude: what these match is not.
        caches: whether what is in a directory with a valid CACHEDIR.TAG is archived.
    """

    def __init__(
        self, *, include: tuple[Pattern, ...] = (), exclude: tuple[Pattern, ...] = (), caches: bool = True
    ) -> None:
        self.caches = caches
        self._include = _List(include) if include else None
        self._exclude = _List(exclude) if exclude else None

    def tag_alone(self, outer: Selected | None) -> Selected:
        """Say what is selected in a directory of a cache: the tag that says so.

        Args:
            outer: what would be selected there otherwise; None: everything.
        """
        return _TagAlone(outer)

    @property
    def has_top(self) -> bool:
        """Whether the mount's top directory is selected itself."""
        return self._include is None

    @property
    def top(self) -> Selected:
        """What is selected in the mount's top directory."""
        return Selected(
            self._include.top if self._include else None, self._exclude.top if self._exclude else None
        )


class Selected:
    """What is selected in one directory.

    Args:
        include: what of the paths to include can match here; None: everything is included.
        exclude: the same of those to exclude; None: nothing is excluded.

    Attributes:
        nothing: whether nothing here is selected, however deep.
        everything: whether all that is here is selected, however deep.
        may_lead: whether something may be selected that is in what is not.
    """

    __slots__ = ("_exclude", "_include", "everything", "may_lead", "nothing")

    def __init__(self, include: _Node | None, exclude: _Node | None) -> None:
        self._include = include
        self._exclude = exclude
        self.nothing: bool = bool((include and not include.may_match) or (exclude and not exclude.may_except))
        self.everything: bool = not ((include and include.may_except) or (exclude and exclude.may_match))
        self.may_lead = bool(include or (exclude and exclude.has_exceptions))

    def has(self, name: str) -> bool:
        """Say whether what has a name here is selected itself."""
        exclude = self._exclude
        if exclude is not None and exclude.matches(name):
            return False
        return self._include is None or self._include.matches(name)

    def inside(self, name: str) -> Selected:
        """Say what is selected in a directory that has a name here."""
        return Selected(
            self._include.inside(name) if self._include else None,
            self._exclude.inside(name) if self._exclude else None,
        )

    def leads(self, name: str) -> bool:
        """Say whether something in a directory of a name here may be selected, though it is not itself."""
        return self.may_lead and not self.has(name) and not self.inside(name).nothing


NOTHING = Selected(None, None)
NOTHING.nothing = True
NOTHING.everything = False


class _TagAlone(Selected):
    __slots__ = ("_outer",)

    def __init__(self, outer: Selected | None) -> None:
        self._outer = outer
        self.nothing = self.everything = self.may_lead = False

    def has(self, name: str) -> bool:
        """See `Selected`."""
        return name == TAG and (self._outer is None or self._outer.has(name))

    def inside(self, name: str) -> Selected:
        """See `Selected`."""
        return NOTHING


class LeftOut:
    """What was not saved because it is not selected: counted, and listed at debug level, a line for each directory.

    Args:
        log: takes these lines; of many directories those of the first ones.

    Attributes:
        count: entries of the upperdir. What is in a directory that was left out whole is not counted.
    """

    def __init__(self, log: Log) -> None:
        self.count = 0
        self._log = log
        self._listed = 0
        self._directories = 0
        self._wanted = log.wants("debug")

    def add(self, some: Sequence[str], count: int, shown: Callable[[], str]) -> None:
        """Count names of a directory.

        Args:
            some: a few of them.
            count: how many there are.
            shown: gives the directory's path, for messages.
        """
        self.count += count
        self._directories += 1
        if not self._wanted or self._directories > _LISTED_DIRECTORIES:
            return
        some = sorted(some)
        more = count - len(some)
        self._log.debug(f"{shown()}: left out: {', '.join(some)}{f' and {more} more' if more else ''}")

    def finish(self) -> None:
        """Say how many directories were not listed."""
        more = self._directories - _LISTED_DIRECTORIES
        if self._wanted and more > 0:
            self._log.debug(f"entries were left out of {more} more directories, not listed here")


class _InvalidError(Exception):
    """What is wrong with a pattern."""


class _List:
    """The patterns of one annotation, and what is known of the places in the tree so far."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.ways: list[tuple[Part, ...]] = []
        self.number: list[int] = []  # of its pattern
        self.excepts = [pattern.excepts for pattern in patterns]
        for number, pattern in enumerate(patterns):
            self.ways += pattern.ways
            self.number += [number] * len(pattern.ways)
        self._nodes: dict[tuple[object, ...], _Node] = {}
        self.top = self.node([(way, 0) for way in range(len(self.ways))], -1)

    def node(self, places: Sequence[tuple[int, int]], last: int) -> _Node:
        """Give what can match in a directory.

        Args:
            places: number of a way, and of its part that is to match next.
            last: number of the last pattern that matches the directory itself, or one above; -1 for none.
        """
        # An earlier pattern changes nothing any more, and neither does a later one that says the same.
        matched = last >= 0 and not self.excepts[last]
        relevant = sorted({place for place in places if self.number[place[0]] > last})
        if all(self.excepts[self.number[way]] != matched for way, _ in relevant):
            relevant = []
        key = (last if relevant else matched, *relevant)
        node = self._nodes.get(key)
        if node is None:
            if len(self._nodes) >= _MOST_NODES:
                self._nodes.clear()
            node = self._nodes[key] = _Node(self, relevant, last, matched=matched)
        return node


class _Node:
    """What of a list can match in a directory.

    Attributes:
        matched: whether the directory itself is the list's, so that what is in it is, unless a later pattern matches.
        may_match: whether something in it may be the list's, however deep.
        may_except: whether something in it may not be.
        has_exceptions: whether something in it may match an exception.
    """

    __slots__ = (
        "_any",
        "_ends",
        "_goes_on",
        "_last",
        "_list",
        "_names",
        "has_exceptions",
        "matched",
        "may_except",
        "may_match",
    )

    def __init__(self, of: _List, places: Sequence[tuple[int, int]], last: int, *, matched: bool) -> None:
        self._list = of
        self._last = last
        self.matched = matched
        kinds = {of.excepts[of.number[way]] for way, _ in places}
        self.may_match = matched or False in kinds
        self.has_exceptions = True in kinds
        self.may_except = not matched or self.has_exceptions
        # By the number of the pattern that matches then; of several, the last one counts.
        self._names: dict[str, int] = {}
        self._ends: list[tuple[int, re.Pattern[str]]] = []
        self._goes_on: list[tuple[int, int, Part]] = []
        for way, place in places:
            parts = of.ways[way]
            number = of.number[way]
            if parts[place] is None:
                self._goes_on.append((way, place, None))
                place += 1
            part = parts[place]
            assert part is not None  # two in a row are one, and none is the last
            if place + 1 < len(parts):
                self._goes_on.append((way, place, part))
            elif isinstance(part, str):
                self._names[part] = max(number, self._names.get(part, -1))
            else:
                self._ends.append((number, part))
        self._ends.sort(key=lambda end: -end[0])
        # Nearly no name matches, and that is known by one expression.
        self._any = (
            re.compile("|".join([part.pattern for _, part in self._ends])).fullmatch if self._ends else None
        )

    def matches(self, name: str) -> bool:
        """Say whether what has a name here is the list's."""
        names, anything = self._names, self._any
        if name not in names and (anything is None or anything(name) is None):
            return self.matched
        return not self._list.excepts[self._number(name)]

    def inside(self, name: str) -> _Node:
        """Give what can match in a directory that has a name here."""
        if not (self._goes_on or self._names or self._ends):
            return self
        places = []
        for way, place, part in self._goes_on:
            if part is None:
                places.append((way, place))
            elif part == name if isinstance(part, str) else part.fullmatch(name):
                places.append((way, place + 1))
        return self._list.node(places, self._number(name))

    def _number(self, name: str) -> int:
        """Give the number of the last pattern that matches a name here, or a directory above."""
        number = max(self._last, self._names.get(name, -1))
        if self._any is not None and self._any(name) is not None:
            for end, part in self._ends:
                if end <= number:
                    break
                if part.fullmatch(name):
                    return end
        return number


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
