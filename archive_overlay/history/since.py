"""Find what an upperdir has changed since an earlier revision of it. Only that goes into the next one.

An upperdir may be archived more than once: by a snapshot while its container runs, at the stop, and, for a root file
system, at the next stop after the container is started again. The upperdir is cumulative, and the earlier revisions say
what it held:

    before    what those revisions have, composed: the change set of the upperdir at that time
    changes   what the upperdir holds now
    since     over any lower layers:  since  over  before  shows what  changes  shows

Both are read once, side by side, in the order that `compose.Source` has. What is remembered grows with the depth of the tree,
and by one small record for each file that has several names.
"""

from __future__ import annotations

import os

from archive_overlay.history.comparison import Facts, metadata_of, same_attributes, same_data
from archive_overlay.marks import FUSE_SECURITY, FUSE_USER, TRUSTED, USER
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FILE,
    SOCKET,
    SYMLINK,
    WHITEOUT,
    Change,
    LargeAttributes,
)
from archive_overlay.overlay.compose import comes_first
from archive_overlay.system.metadata import SELINUX_LABEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import Callable

    from archive_overlay.overlay.change import Selected, TreePath
    from archive_overlay.overlay.compose import Source

    Both = tuple[Iterator[Change], Source]

# Attributes of directories that wait for something to be different in them.
_MOST_HELD = 1 << 20
_SET_USER_ID = 0o4000
_SET_GROUP_ID = 0o2000
# What layers do not have: marks of overlays, but for those of an overlay within the container; see `tar.writer`.
_MARKS = (TRUSTED, USER, FUSE_USER, FUSE_SECURITY)
_ESCAPED_MARKS = (f"{TRUSTED}overlay.", f"{USER}overlay.")


def changes_since(
    changes: Iterator[Change],
    before: Source,
    *,
    again: Callable[[], AbstractContextManager[Both]],
    lies_below: Callable[[TreePath, str], bool] | None = None,
    owner: tuple[int, int] | None = None,
    leave_out: Callable[[Change], None] = lambda change: None,
) -> Iterator[Change]:
    """Return what has changed: entries that are not the same as before, and deletions of those that are gone.

    Directories with changed contents are yielded, too. If a file with several names is not the same under all of them,
    all are yielded: a layer cannot link to lower layers.

    Args:
        changes: all that the upperdir holds now, in the order of `compose.Source`.
        before: what the earlier revisions have of it.
        again: gives both once more, from the start. It is asked if a file has several names.
        lies_below: says of a name in a directory whether the lower layers of the upperdir have it. It is asked if `before` has
            what was there before the upperdir as well. None: it has not.
        owner: user and group id that everything has in the revisions; None: the true owners.
        leave_out: is told of each socket that cannot be in a layer.

    Returns:
        Changes, depth first, the root first of all, each valid until the next one is taken.

    Raises:
        ArchiveError: one of both cannot be read.
    """
    return _Since(before, again, lies_below, owner, leave_out).run(changes)


class _Level:
    """A directory that both have, or only the newer one.

    Attributes:
        number: of its path; see `_number_of`.
        merged: whether what it has before counts: otherwise all that is in it now is given.
        hidden: whether what was before hides what lies below here.
        whole: whether what is in it now is all that there is: it hides what lies below, or is in such a directory.
        held: the directory itself, if it is to be given only if something in it is.
        selected: what is archived of it now; None: all of it.
    """

    __slots__ = ("held", "hidden", "merged", "number", "selected", "whole")

    def __init__(
        self, number: int, *, merged: bool, hidden: bool, whole: bool, selected: Selected | None = None
    ) -> None:
        self.number = number
        self.merged = merged
        self.hidden = hidden
        self.whole = whole
        self.selected = selected
        self.held: Change | None = None


class _Links:
    """What is known of files with several names once all of them have been seen.

    Attributes:
        seen: numbers of the first names of those in the upperdir.
        differ: those of them that are not the same as before, under one of their names at least.
        alone: those of them that had one name before. Another name may be nowhere in the upperdir: it counts all the same.
        taken: for each file with several names that was there before, the number of the first name of what it is now.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.differ: set[int] = set()
        self.alone: set[int] = set()
        self.taken: dict[int, int] = {}


class _Since:
    """Two change sets that are being compared: the position in both, and what must be remembered on the way."""

    def __init__(
        self,
        before: Source,
        again: Callable[[], AbstractContextManager[Both]] | None,
        lies_below: Callable[[TreePath, str], bool] | None,
        owner: tuple[int, int] | None,
        leave_out: Callable[[Change], None],
    ) -> None:
        self._before = before
        self._again = again
        self._lies_below = lies_below
        self._owner = owner
        self._leave_out = leave_out
        # The directories from the root to the present one: what is in it has its position as depth.
        self._levels: list[_Level] = []
        self._held: list[int] = []  # positions of those that are held
        self._holding = 0  # bytes of their attributes
        self._links = _Links()
        self._learns = again is None
        self._known = False
        self._first_names: dict[int, int] = {}  # of files with several names, by their own numbers
        self._facts: dict[int, Facts] = {}
        self._old_facts: dict[int, Facts] = {}

    def run(self, changes: Iterator[Change]) -> Iterator[Change]:
        before = self._before
        levels = self._levels
        for change in changes:
            depth = change.directory.depth if change.name else -1
            place = depth, change.name
            while (there := before.ahead()) is not None and there != place and comes_first(there, place):
                yield from self._gone(there[0])
            self._leave(depth)
            level = levels[depth] if depth >= 0 else None
            number = _number_of(level, change.name)
            if level is None or level.merged:
                found = self._at_one_name(change, level, number, depth, known=there == place)
            else:
                found = self._new(change, number)
            if found is not None:
                if found.fd >= 0:
                    os.lseek(found.fd, 0, os.SEEK_SET)  # where its data are was looked up
                yield from self._with_directories(found)
        while (there := before.ahead()) is not None:
            yield from self._gone(there[0])

    def learn(self, changes: Iterator[Change]) -> _Links:
        """Read everything, to find which files with several names are the same."""
        for _ in self.run(changes):
            pass
        return self._links

    def _at_one_name(
        self, change: Change, level: _Level | None, number: int, depth: int, *, known: bool
    ) -> Change | None:
        """Judge what there is at a name in a directory that counts; None: nothing of it is given now."""
        before = self._before
        old = before.take() if known else None
        if old is not None and old.shared and old.link_to is None:
            self._old_facts[old.shared] = Facts(old, names=_attributes_of)
        if change.kind is DIRECTORY:
            if old is not None and old.kind is DIRECTORY:
                return self._both_directories(change, old, level, number, depth)
            if level is not None and (old is not None or level.hidden) and _only_leads(change, level):
                # Nothing is there that what has been deleted in it could be in.
                inside = _Level(number, merged=True, hidden=True, whole=False, selected=change.selected)
                self._levels.append(inside)
                return self._hold(change, inside, depth)
            return self._new(change, number)
        if old is not None and old.kind is DIRECTORY:
            self._pass_over(depth)
        if old is None:
            if change.kind is WHITEOUT and level is not None and level.hidden:
                return None  # nothing is there that it could delete
            if change.kind is SOCKET:
                self._leave_out(change)
                return None
            return self._new(change, number)
        if change.kind is SOCKET:
            self._leave_out(change)
            return None if old.kind is WHITEOUT else _deletion(old)
        if change.shared:
            same = self._same_links(change, old, number)
            return None if same else change
        if change.kind is not old.kind:
            return change
        if change.kind is WHITEOUT:
            return None
        if old.shared:
            facts = self._old_facts.get(old.shared)
            same = facts is not None and self._same(change, old, None, facts) and self._takes(old, number)
        else:
            same = not self._learns and self._same(change, old, None, None)
        return None if same else change

    def _new(self, change: Change, number: int) -> Change:
        """Return what was not there before, or was something else."""
        if change.kind is DIRECTORY:
            self._levels.append(_Level(number, merged=False, hidden=False, whole=False))
        elif change.shared:
            first = self._first_name(change, number)
            self._links.differ.add(first)
        return change

    def _both_directories(
        self, change: Change, old: Change, level: _Level | None, number: int, depth: int
    ) -> Change | None:
        whole = level is not None and level.whole
        hidden = level is not None and level.hidden
        if change.opaque and not (old.opaque or hidden):
            self._pass_over(depth)
            return self._new(change, number)
        inside = _Level(
            number,
            merged=True,
            hidden=hidden or old.opaque,
            whole=whole or change.opaque,
            selected=change.selected,
        )
        self._levels.append(inside)
        # What hides what lies below is below, and must itself show.
        change.opaque = False
        if level is None:
            return change  # a change set has a root
        if old.implicit or not self._same_facts(change, old):
            return change
        if isinstance(change.attributes, LargeAttributes):
            return change  # they are gone when they are needed
        return self._hold(change, inside, depth)

    def _gone(self, depth: int) -> Iterator[Change]:
        """Judge what was there before in a directory, and is not there now."""
        self._leave(depth)
        if depth < 0:
            self._before.skip()
            return
        level = self._levels[depth]
        if not level.merged:
            self._before.skip()
            return
        gone = self._before.take()
        if gone is None or gone.kind is WHITEOUT:
            return
        selected = level.selected
        if selected is not None and not selected.has(gone.name):
            if gone.kind is DIRECTORY and selected.leads(gone.name):
                if (found := self._lead(gone, level, depth)) is not None:
                    yield from self._with_directories(found)
            elif gone.kind is DIRECTORY:
                self._pass_over(depth)
            return
        if gone.kind is DIRECTORY:
            self._pass_over(depth)
        elif gone.shared and gone.link_to is None:
            self._old_facts[gone.shared] = Facts(gone, names=_attributes_of)
        # If the lower layers have it, the upperdir never had anything under this name.
        if level.whole or not self._lies_below or not self._lies_below(gone.directory, gone.name):
            yield from self._with_directories(_deletion(gone))

    def _lead(self, gone: Change, level: _Level, depth: int) -> Change | None:
        """Enter a directory that is not archived now and was there before: what is archived of it is gone. See `_hold`."""
        assert level.selected is not None
        inside = _Level(
            _number_of(level, gone.name),
            merged=True,
            hidden=level.hidden or gone.opaque,
            whole=level.whole,
            selected=level.selected.inside(gone.name),
        )
        gone.opaque = False
        self._levels.append(inside)
        return self._hold(gone, inside, depth)

    def _hold(self, directory: Change, inside: _Level, depth: int) -> Change | None:
        """Hold a directory that is only to be given if something in it is; give it if it is too large for that."""
        size = _size_of(directory)
        if size and self._holding + size > _MOST_HELD:
            return directory
        self._holding += size
        self._held.append(depth + 1)
        inside.held = _copy(directory)
        return None

    def _pass_over(self, depth: int) -> None:
        """Pass over what was in a directory that has been taken, and is in one at a depth."""
        before = self._before
        while (there := before.ahead()) is not None and there[0] > depth:
            before.skip()

    def _leave(self, depth: int) -> None:
        """Leave the directories that something at a depth is not in."""
        held = self._held
        while held and held[-1] > depth:
            self._let_go(held.pop())
        del self._levels[depth + 1 :]

    def _let_go(self, position: int) -> Change:
        level = self._levels[position]
        held, level.held = level.held, None
        assert held
        self._holding -= _size_of(held)
        return held

    def _with_directories(self, change: Change) -> Iterator[Change]:
        """Yield a change after the directories that it is in."""
        if self._held:
            positions, self._held = self._held, []
            for position in positions:
                yield self._let_go(position)
        yield change

    def _first_name(self, change: Change, number: int) -> int:
        """Return the number of the first name of a file with several."""
        first = self._first_names.setdefault(change.shared, number)
        self._links.seen.add(first)
        return first

    def _same_links(self, change: Change, old: Change, number: int) -> bool:
        """Return whether a file with several names is the same as before, under all of them."""
        first = self._first_name(change, number)
        if not self._learns:
            if not self._known:
                self._known = True
                assert self._again
                with self._again() as (changes, before):
                    self._links = _Since(
                        before, None, self._lies_below, self._owner, lambda change: None
                    ).learn(changes)
            return first in self._links.seen and first not in self._links.differ
        facts = self._facts.get(first)
        if facts is None and change.link_to is None:
            facts = self._facts[first] = self._facts_of(change)
        old_facts = self._old_facts.get(old.shared)
        if not old.shared and change.link_to is None:
            old_facts = Facts(old, names=_attributes_of)
            self._links.alone.add(first)
        elif first in self._links.alone:
            self._links.differ.add(first)
        if (
            change.kind is not old.kind
            or facts is None
            or old_facts is None
            or not self._same(change, old, facts, old_facts)
            or not (first in self._links.alone or self._takes(old, first))
        ):
            self._links.differ.add(first)
        return False

    def _takes(self, old: Change, first: int) -> bool:
        """Return whether names that are one file now were one file before."""
        return self._links.taken.setdefault(old.shared, first) == first

    def _same(self, change: Change, old: Change, facts: Facts | None, old_facts: Facts | None) -> bool:
        """Return whether two entries of one kind, not directories, are the same."""
        kind = change.kind
        if kind is SYMLINK and change.target != old.target:
            return False
        if kind in (BLOCK_DEVICE, CHARACTER_DEVICE) and change.rdev != old.rdev:
            return False
        if old_facts is not None:
            return (facts or self._facts_of(change)).equals(old_facts)
        if facts is not None or not self._same_facts(change, old):
            return False
        return kind is not FILE or same_data(change, old)

    def _facts_of(self, change: Change) -> Facts:
        return Facts(change, metadata=self._metadata(change), names=_attributes_of)

    def _same_facts(self, change: Change, old: Change) -> bool:
        """Return whether metadata and attributes of two entries are the same."""
        return self._metadata(change) == metadata_of(old) and same_attributes(
            change, old, names_of=_attributes_of
        )

    def _metadata(self, change: Change) -> tuple[int, int, int, int]:
        """Return owner, mode and time as the revision is to have them."""
        mode, uid, gid, mtime_ns = metadata_of(change)
        if self._owner is not None:
            if change.kind is FILE:
                mode &= ~(_SET_USER_ID if uid != self._owner[0] else 0)
                mode &= ~(_SET_GROUP_ID if gid != self._owner[1] else 0)
            uid, gid = self._owner
        return mode, uid, gid, mtime_ns


def _attributes_of(change: Change) -> list[str]:
    """Return the names of the attributes that a layer has of an entry, but for the host's label."""
    return [
        name
        for name in change.attributes
        if name != SELINUX_LABEL and (not name.startswith(_MARKS) or name.startswith(_ESCAPED_MARKS))
    ]


def _only_leads(change: Change, level: _Level) -> bool:
    """Say whether a directory is not archived itself, and only leads to what may be."""
    if level.selected is None or isinstance(change.attributes, LargeAttributes):
        return False
    return not level.selected.has(change.name)


def _number_of(level: _Level | None, name: str) -> int:
    """Return a number for a path: deep trees take no square of their depth."""
    # Of a text, Python's own hash has a key that nobody can know.
    return hash((level.number if level is not None else 0, name))


def _copy(change: Change) -> Change:
    """Return a copy of a directory's change that outlives the next one."""
    copied = Change.__new__(Change)
    copied.__dict__.update(change.__dict__)
    copied.attributes = dict(change.attributes.items())
    return copied


def _size_of(change: Change) -> int:
    return sum(len(value) for _, value in change.attributes.items())


def _deletion(gone: Change) -> Change:
    """Return a change that deletes an entry's name."""
    gone.kind = WHITEOUT
    gone.mode = gone.uid = gone.gid = gone.size = gone.rdev = gone.shared = 0
    gone.attributes = {}
    gone.link_to = gone.data = gone.pieces = None
    gone.fd = -1
    gone.target = ""
    gone.opaque = gone.implicit = gone.sparse = False
    return gone
