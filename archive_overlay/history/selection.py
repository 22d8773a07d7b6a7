"""Select certain paths of a layer, as a tar: to look up a few paths of large layers."""

from __future__ import annotations

from array import array
from contextlib import closing, contextmanager
from functools import partial

from archive_overlay.history.layer_source import LayerSource
from archive_overlay.history.spool import Spool
from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.tar import headers
from archive_overlay.tar.changes import Marks, split_link, split_path
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Any

    from archive_overlay.history.layer_source import Opener
    from archive_overlay.history.spool import Stored
    from archive_overlay.tar.reader import TarReader

# The number of the root's path.
ROOT = 1
_PATH = 1
_ENTRIES = 2  # what is in it is wanted too
_TREE = 4  # and what is in that
_SYMLINK = 1
_GIVEN = 2


class PathSet:
    """The wanted paths. Each takes 30 bytes: a number made of its directory's number and its name.

    So nothing grows with the square of the depth. `ROOT` is the root's number.
    """

    def __init__(self) -> None:
        self._marks = Marks()
        self._marks.add(ROOT, _PATH)

    @property
    def count(self) -> int:
        """How many paths there are."""
        return self._marks.count

    def add(self, path: str, *, entries: bool = False, tree: bool = False) -> None:
        """Add a path, with all that it is in.

        Args:
            path: from the root, without a slash at the start or the end.
            entries: what is in it is wanted too, but nothing in that.
            tree: all that is in it is wanted too, however deep.
        """
        number = ROOT
        for part in path.split("/") if path else ():
            number = number_of(number, part)
            self._marks.add(number, _PATH)
        self.add_number(number, entries=entries, tree=tree)

    def add_number(self, number: int, *, entries: bool = False, tree: bool = False) -> None:
        """Add a path by its number. The one that it is in has been added."""
        self._marks.add(number, _PATH | (_ENTRIES if entries else 0) | (_TREE if tree else 0))

    def has(self, number: int) -> bool:
        """Return whether a path is wanted by itself."""
        return self._marks.has(number, _PATH)

    def has_entries(self, number: int) -> bool:
        """Return whether what is in a directory is wanted, whatever it is."""
        return self._marks.has(number, _ENTRIES | _TREE)

    def has_tree(self, number: int) -> bool:
        """Return whether what is in a directory is wanted, however deep."""
        return self._marks.has(number, _TREE)


def number_of(directory: int, name: str) -> int:
    """Return the number of a path, by its directory's number and its name."""
    # Python's own hash of a text has a secret key.
    return hash((directory, name))


@contextmanager
def selected(
    open_layer: Opener, spool: int, paths: PathSet, *, data: bool = True
) -> Generator[LayerSource, None, None]:
    """Give a layer as a `compose.Source` that has only certain paths. The layer is read once, or twice if links need it.

    It has the layer's metadata of wanted directories, even of those that the layer lists only by their contents, and
    the targets of links. It may have more.

    Args:
        open_layer: opens it.
        spool: file descriptor of a directory in which files without a name may be made.
        paths: those that are wanted; what links lead to is added.
        data: whether the data of files are wanted.

    Raises:
        ArchiveError: the layer is damaged, or says what cannot be said of one layer alone.
    """
    everything = False
    while True:
        with closing(Spool(spool)) as kept:
            with open_layer() as tar:
                selection = _Selection(tar, paths, data=data, everything=everything)
                numbers = array("q", (kept.add(entry, selection) for entry in selection.entries()))
            if selection.missing or selection.leads_through:
                for path in selection.missing:
                    paths.add(path)
                everything = selection.leads_through
                continue
            with LayerSource(partial(_Kept.opened, kept, numbers), spool) as source:
                yield source
            return


class _Selection:
    """The entries of a tar that are wanted.

    Attributes:
        missing: what hard links lead to and was not wanted.
        leads_through: whether an entry's path leads through a symbolic link of the layer, so that it is not known without
            the other ones which path is meant.
    """

    def __init__(self, tar: TarReader, paths: PathSet, *, data: bool, everything: bool) -> None:
        self.missing: set[str] = set()
        self.leads_through = False
        self._tar = tar
        self._paths = paths
        self._with_data = data
        self._everything = everything
        self._seen = Marks()
        tree = paths.has_tree(ROOT)
        root = _Level(
            "",
            ROOT,
            wanted=True,
            entries=tree or paths.has_entries(ROOT),
            tree=tree,
            given=True,
            leads_through=False,
        )
        self._levels = [root]  # from the root to the position

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Return the data of the present entry, if they are wanted."""
        return self._tar.data() if self._with_data else iter(())

    def entries(self) -> Iterator[Entry]:
        """Yield the entries that are wanted; see `TarReader.entries`."""
        if self._everything:
            yield from self._tar.entries()
            return
        paths = self._paths
        for entry in self._tar.entries():
            parts = split_path(entry.name)
            if not parts:
                yield entry
                continue
            name = parts.pop()
            level = self._go_to(parts)
            self.leads_through = self.leads_through or level.leads_through
            mark = name.startswith(WHITEOUT_PREFIX)
            if mark and name == OPAQUE_MARKER:
                chosen = level.wanted or level.entries
            else:
                meant = name[len(WHITEOUT_PREFIX) :] if mark else name
                number = number_of(level.number, meant)
                chosen = level.entries or paths.has(number)
                if entry.type == headers.SYMLINK:
                    self._seen.add(number, _SYMLINK)
            if chosen:
                if not mark and entry.type == headers.HARD_LINK:
                    self._expect(entry)
                yield entry
            elif not level.given:
                made = self._directory(parts, name)
                if made is not None:
                    yield made

    def _go_to(self, parts: list[str]) -> _Level:
        """Return what is known of a directory."""
        levels = self._levels
        common = 1
        for level, part in zip(levels[1:], parts):
            if level.name != part:
                break
            common += 1
        del levels[common:]
        for part in parts[common - 1 :]:
            levels.append(self._enter(levels[-1], part))
        return levels[-1]

    def _enter(self, above: _Level, name: str) -> _Level:
        number = number_of(above.number, name)
        tree = above.tree or self._paths.has_tree(number)
        return _Level(
            name,
            number,
            wanted=above.entries or self._paths.has(number),
            entries=tree or self._paths.has_entries(number),
            tree=tree,
            given=self._seen.has(number, _GIVEN),
            leads_through=above.leads_through or self._seen.has(number, _SYMLINK),
        )

    def _directory(self, parts: list[str], name: str) -> Entry | None:
        """Return an entry that shows that the deepest wanted directory here exists, once.

        A directory need not be listed. The name in it that the entry mentions is not wanted.
        """
        for depth in range(len(self._levels) - 1, -1, -1):
            level = self._levels[depth]
            if level.given:
                break
            level.given = True
            self._seen.add(level.number, _GIVEN)
            if level.wanted and depth:
                inside = parts[depth] if depth < len(parts) else name.lstrip(".") or "x"
                return Entry(headers.REGULAR, "/".join([*parts[:depth], f"{WHITEOUT_PREFIX}{inside}"]))
        return None

    def _expect(self, entry: Entry) -> None:
        """Note what a hard link leads to, if it is not wanted yet."""
        parts = split_link(entry.link)
        number, tree, entries, wanted = ROOT, self._paths.has_tree(ROOT), self._paths.has_entries(ROOT), True
        for position, part in enumerate(parts):
            wanted = entries or tree
            number = number_of(number, part)
            tree = tree or self._paths.has_tree(number)
            entries = self._paths.has_entries(number)
            if position < len(parts) - 1 and self._seen.has(number, _SYMLINK):
                self.leads_through = True
        if parts and not wanted and not self._paths.has(number):
            self.missing.add("/".join(parts))


class _Level:
    """A directory that the tar's position is in.

    Attributes:
        name: its name.
        number: of its path.
        wanted: whether it is wanted by itself.
        entries: whether what is in it is wanted.
        tree: whether what is in that is wanted, too.
        given: whether an entry says that it is there.
        leads_through: whether it is a symbolic link, or in one.
    """

    __slots__ = ("entries", "given", "leads_through", "name", "number", "tree", "wanted")

    def __init__(
        self,
        name: str,
        number: int,
        *,
        wanted: bool,
        entries: bool,
        tree: bool,
        given: bool,
        leads_through: bool,
    ) -> None:
        self.name = name
        self.number = number
        self.wanted = wanted
        self.entries = entries
        self.tree = tree
        self.given = given
        self.leads_through = leads_through


class _Kept:
    """Entries that were kept aside, as a tar."""

    def __init__(self, spool: Spool, numbers: array[int]) -> None:
        self._spool = spool
        self._numbers = numbers
        self._present: Stored | None = None

    @classmethod
    @contextmanager
    def opened(cls, spool: Spool, numbers: array[int]) -> Generator[Any, None, None]:
        """Give them from the start. They have been verified."""
        yield cls(spool, numbers)

    def entries(self) -> Iterator[Entry]:
        for number in self._numbers:
            self._present = self._spool.get(number)
            yield self._present.entry

    def data(self) -> Iterator[tuple[int, bytes]]:
        assert self._present
        return self._spool.data(self._present)

    def whole_data(self) -> bytes | None:
        return None  # there may be holes
