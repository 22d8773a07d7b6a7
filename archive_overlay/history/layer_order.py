"""A layer that is in order, read as it stands: depth first, names in the order of their code points.

In each directory deletions may come before everything else, or among the other names. The mark that a directory is opaque
comes right after its entry. Directories need not be listed. So are the layers that this program writes, and those that
it composes.
"""

from __future__ import annotations

from array import array
from collections import deque

from archive_overlay.history.layer_tree import Item, implicit_directory
from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.overlay.change import TOP, TreePath
from archive_overlay.tar import headers
from archive_overlay.tar.changes import split_link, split_path, whiteout_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from typing import Protocol

    from archive_overlay.tar.reader import Entry

    class Tar(Protocol):
        """What is needed of a `TarReader`."""

        def entries(self) -> Iterator[Entry]: ...


_NO_NAMES = ("", ".", "..")


class NotInOrderError(Exception):
    """The layer is not in order, or refers to something skipped. It can be read after a first look."""


def look(tar: Tar) -> dict[int, int] | None:
    """Look at a layer; return what `in_order` needs to read it, or None if it cannot."""
    hashes = array("q")  # of what is neither a directory nor a hard link
    links: dict[int, int] = {}  # where hard links lead: how many of these were there before
    try:
        for item in in_order(tar, {}):
            entry = item.entry
            if entry is None or entry.type == headers.DIRECTORY:
                continue
            if entry.type == headers.HARD_LINK:
                links.setdefault(hash("/".join(split_link(entry.link))), len(hashes))
            else:
                hashes.append(hash(item.directory.prefix + item.name))
    except NotInOrderError:
        return None
    if not links:
        return {}
    linked = {
        each: number for number, each in enumerate(hashes, 1) if each in links and number <= links[each]
    }
    return linked if len(linked) == len(links) else None


def in_order(tar: Tar, linked: Mapping[int, int]) -> Generator[Item, None, None]:
    """Yield what a layer says that is in order. Of the last item that was given, the data can be read from the tar.

    Args:
        tar: the layer.
        linked: hashes of the paths of files that hard links lead to, and a number for each.

    Raises:
        NotInOrderError: the layer is not in order, or nothing says so in advance.
        ArchiveError, OSError: see `TarReader.entries`.
    """
    levels: list[_Level] = []
    held: Item | None = None  # a directory: a mark that it is opaque may come next
    for entry in tar.entries():
        directory, _, name = entry.name.rpartition("/")
        if not levels or directory != levels[-1].raw or name in _NO_NAMES or "\0" in name:
            parts = split_path(entry.name)
            if not parts:
                if levels or entry.type != headers.DIRECTORY:
                    raise NotInOrderError
                held = Item(-1, TOP, "", entry)
                levels.append(_Level(TOP, entry.name))
                continue
            name = parts.pop()
            common = _common(levels, parts)
            if held is not None and not common == len(levels) == len(parts) + 1:
                yield held
                held = None
            while len(levels) > common:
                yield from _deletions(levels)
                levels.pop().path.forget()
            while len(levels) <= len(parts):
                if held is not None:
                    yield held
                held = yield from _enter(levels, parts, entry)
            levels[-1].raw = directory
        level = levels[-1]
        if name == OPAQUE_MARKER:
            if held is None:
                raise NotInOrderError
            held.opaque = True
            yield held
            held = None
            continue
        if held is not None:
            yield held
            held = None
        if name.startswith(WHITEOUT_PREFIX):
            deleted = whiteout_of(name, entry.name)
            if deleted.startswith(WHITEOUT_PREFIX):  # no layer has such names
                continue
            if level.last:
                yield from _come_to(levels, deleted)
                yield Item(len(levels) - 1, level.path, deleted, None)
            elif level.deletions and deleted <= level.deletions[-1]:
                raise NotInOrderError
            else:
                level.deletions.append(deleted)
            continue
        yield from _come_to(levels, name)
        kind = entry.type
        if kind == headers.DIRECTORY:
            held = Item(len(levels) - 1, level.path, name, entry)
            levels.append(_Level(TreePath(level.path, name), entry.name))
        elif kind == headers.CHARACTER_DEVICE and not entry.device:
            yield Item(len(levels) - 1, level.path, name, None)  # see `LayerTree.add`
        elif kind == headers.SYMLINK and "\0" in entry.link:
            raise NotInOrderError  # `LayerTree.add` has the complaint
        else:
            item = Item(len(levels) - 1, level.path, name, entry)
            if linked:
                path = (
                    "/".join(split_link(entry.link))
                    if kind == headers.HARD_LINK
                    else level.path.prefix + name
                )
                item.file = linked.get(hash(path), 0)
            yield item
    if held is not None:
        yield held
    while levels:
        yield from _deletions(levels)
        levels.pop().path.forget()


def _common(levels: list[_Level], parts: list[str]) -> int:
    """Return how many levels are a directory or above it."""
    common = min(len(levels), 1)
    for level, part in zip(levels[1:], parts):
        if level.path.name != part:
            break
        common += 1
    return common


def _enter(levels: list[_Level], parts: list[str], entry: Entry) -> Generator[Item, None, Item]:
    """Enter the next directory on the way to an entry, if it was not listed before; return its item."""
    made = implicit_directory(entry.mtime_ns)
    if not levels:
        levels.append(_Level(TOP, None))
        return Item(-1, TOP, "", made, implicit=True)
    name = parts[len(levels) - 1]
    if name.startswith(WHITEOUT_PREFIX):
        raise NotInOrderError
    yield from _come_to(levels, name)
    above = levels[-1].path
    item = Item(len(levels) - 1, above, name, made, implicit=True)
    levels.append(_Level(TreePath(above, name), None))
    return item


def _come_to(levels: list[_Level], name: str) -> Iterator[Item]:
    """Yield what comes before a name in the last level."""
    level = levels[-1]
    if name <= level.last:
        raise NotInOrderError
    level.last = name
    deletions = level.deletions
    while deletions and deletions[0] <= name:
        if deletions[0] == name:
            raise NotInOrderError
        yield Item(len(levels) - 1, level.path, deletions.popleft(), None)


def _deletions(levels: list[_Level]) -> Iterator[Item]:
    """Yield the deletions that are still to come in the last level."""
    level = levels[-1]
    while level.deletions:
        yield Item(len(levels) - 1, level.path, level.deletions.popleft(), None)


class _Level:
    """A directory that is being read.

    Attributes:
        path: its path.
        raw: the same as the tar has it; None: that is not known.
        last: the name of the last entry in it.
        deletions: names that were deleted before its first entry, as far as they are still to come.
    """

    __slots__ = ("deletions", "last", "path", "raw")

    def __init__(self, path: TreePath, raw: str | None) -> None:
        self.path = path
        self.raw = raw
        self.last = ""
        self.deletions: deque[str] = deque()
