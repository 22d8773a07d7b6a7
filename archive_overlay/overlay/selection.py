"""Which paths of a mount are archived.

Patterns are matched a name at a time, as the walk goes down: in each directory it is known what of them can still match there.
So no path is ever put together, nothing is matched twice, and a directory in which nothing can be saved is not entered. What a
name costs is bounded by its length and the number of patterns, whatever both are.
"""

from __future__ import annotations

import re

from archive_overlay.overlay.caches import TAG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable

    from archive_overlay.log import Log
    from archive_overlay.overlay.patterns import Part, Pattern

# What is remembered of directories, and of the places of patterns in all of them.
_MOST_NODES = 1024
_MOST_PLACES = 64 * 1024
# One expression for several takes so long to make as to try them for some names, by its length.
_CHARACTERS_PER_NAME = 4
# How many directories are listed of which something is left out.
_LISTED_DIRECTORIES = 100


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
        self._places = 0
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
            if len(self._nodes) >= _MOST_NODES or self._places > _MOST_PLACES:
                self._nodes.clear()
                self._places = 0
            self._places += len(relevant)
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
        "_waits",
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
        self._any: Callable[[str], object] | None = None
        self._waits = sum(len(part.pattern) for _, part in self._ends) // _CHARACTERS_PER_NAME

    def matches(self, name: str) -> bool:
        """Say whether what has a name here is the list's."""
        number = max(self._names.get(name, -1), self._last_end(name))
        return self.matched if number < 0 else not self._list.excepts[max(self._last, number)]

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
        return max(self._last, self._names.get(name, -1), self._last_end(name))

    def _last_end(self, name: str) -> int:
        """Give the number of the last pattern that ends here with an expression for a name; -1: none."""
        if not self._ends:
            return -1
        if self._any is None and self._waits:
            self._waits -= 1
        else:
            # Nearly no name matches, and that is known by one expression. To make it is dear: few directories have many names.
            if self._any is None:
                self._any = re.compile("|".join([part.pattern for _, part in self._ends])).fullmatch
            if self._any(name) is None:
                return -1
        return next((number for number, part in self._ends if part.fullmatch(name)), -1)
