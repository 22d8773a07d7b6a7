"""A part of a layer, as a tar that has nothing else: what is needed of large layers to know a few paths."""

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

_PATH = 1
_ENTRIES = 2  # what is in it is wanted too
_TREE = 4  # and what is in that
_SYMLINK = 1
_GIVEN = 2


class Wanted:
    """Wanted that are wanted. Of each, 30 bytes are remembered."""

    def __init__(self) -> None:
        self._marks = Marks()
        self._marks.add("", _PATH)

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
        self._marks.add(path, _PATH | (_ENTRIES if entries else 0) | (_TREE if tree else 0))
        while path:
            path = path.rpartition("/")[0]
            if self._marks.has(path, _PATH):
                break
            self._marks.add(path, _PATH)

    def has(self, path: str) -> bool:
        """Say whether a path is wanted by itself."""
        return self._marks.has(path, _PATH)

    def has_entries(self, path: str) -> bool:
        """Say whether all that is in a directory is wanted."""
        if self._marks.has(path, _ENTRIES):
            return True
        while not self._marks.has(path, _TREE):
            if not path:
                return False
            path = path.rpartition("/")[0]
        return True


@contextmanager
def selected(
    open_layer: Opener, spool: int, paths: Wanted, *, data: bool = True
) -> Generator[LayerSource, None, None]:
    """Give a layer as a `compose.Source` that has only certain paths. The layer is read once, or twice if links need it.

    Of directories that are wanted it has what the layer says of them, even if it does so only by what is in them. Of links
    it has what they lead to. It may have more.

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

    def __init__(self, tar: TarReader, paths: Wanted, *, data: bool, everything: bool) -> None:
        self.missing: set[str] = set()
        self.leads_through = False
        self._tar = tar
        self._paths = paths
        self._with_data = data
        self._everything = everything

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Give the data of the present entry, if they are wanted."""
        return self._tar.data() if self._with_data else iter(())

    def entries(self) -> Iterator[Entry]:
        """Give the entries that are wanted; see `TarReader.entries`."""
        if self._everything:
            yield from self._tar.entries()
            return
        paths = self._paths
        seen = Marks()
        last: str | None = None
        wanted = False
        for entry in self._tar.entries():
            parts = split_path(entry.name)
            if not parts:
                yield entry
                continue
            name = parts.pop()
            directory = "/".join(parts)
            if directory != last:
                last = directory
                self.leads_through = self.leads_through or _leads_through(seen, parts)
                wanted = paths.has_entries(directory)
            path = f"{directory}/{name}" if directory else name
            if entry.type == headers.SYMLINK:
                seen.add(path, _SYMLINK)
            mark = name.startswith(WHITEOUT_PREFIX)
            if mark and name == OPAQUE_MARKER:
                chosen = paths.has(directory) or wanted
            elif mark:
                deleted = name[len(WHITEOUT_PREFIX) :]
                chosen = wanted or paths.has(f"{directory}/{deleted}" if directory else deleted)
            else:
                chosen = wanted or paths.has(path)
            if chosen:
                if not mark and entry.type == headers.HARD_LINK:
                    self._expect(entry, seen)
                yield entry
                continue
            # A directory need not be listed.
            while parts and not seen.has(directory, _GIVEN):
                seen.add(directory, _GIVEN)
                above, _, last_name = directory.rpartition("/")
                if paths.has(directory) or paths.has_entries(above):
                    # What it says is not wanted, but that it is there.
                    yield Entry(headers.REGULAR, f"{directory}/{WHITEOUT_PREFIX}{name.lstrip('.') or 'x'}")
                    break
                directory, name = above, last_name
                if not directory:
                    break

    def _expect(self, entry: Entry, seen: Marks) -> None:
        parts = split_link(entry.link)
        self.leads_through = self.leads_through or _leads_through(seen, parts[:-1])
        path = "/".join(parts)
        if parts and not (self._paths.has(path) or self._paths.has_entries("/".join(parts[:-1]))):
            self.missing.add(path)


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


def _leads_through(seen: Marks, parts: list[str]) -> bool:
    """Say whether a directory's path leads through a symbolic link."""
    path = ""
    for part in parts:
        path = f"{path}/{part}" if path else part
        if seen.has(path, _SYMLINK):
            return True
    return False
