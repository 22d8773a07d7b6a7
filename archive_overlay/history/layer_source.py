"""Read a stored layer as a change set to compose: with its data, in the order that composing needs.

A layer is read for the first time to see what it needs, and to verify it before any of it is believed. There are three
kinds:

- A small one is kept in memory, and not read again.
- A large one in order (depth first, names in the order of their code points, as this program writes them) is read once more,
  while it is composed. Of it no more is held than of an upperdir, and 8 bytes for each entry. Deletions may come first in
  each directory.
- Any other is kept aside, whole, in a file without a name: see `layer_tree`.

A caller that can start over may read large layers without this first look: most are in order, and that halves the time.
"""

from __future__ import annotations

from array import array

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.layer_order import NotInOrderError, in_order, look
from archive_overlay.history.layer_tree import LayerTree
from archive_overlay.history.spool import Spool
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    TOP,
    WHITEOUT,
    Change,
    TreePath,
)
from archive_overlay.tar import headers
from archive_overlay.tar.changes import split_link
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Callable, NoReturn

    from archive_overlay.history.layer_tree import Item
    from archive_overlay.tar.reader import TarReader

    # Opens a layer at its start. At the end of the context it is verified: ArchiveError, if it is damaged.
    Opener = Callable[[], AbstractContextManager[TarReader]]

# A layer up to this size is kept in memory; each entry counts as so many bytes besides its contents.
_SMALL_LAYER = 64 * 1024
_ENTRY = 512
# Names of a layer with hard links that may be remembered without a first look.
_MOST_FOUND = 250_000
# A file up to this size is held whole.
_SMALL_FILE = 128 * 1024
_DELETION = Entry(headers.REGULAR, "")
_KINDS = {
    headers.REGULAR: FILE,
    headers.SYMLINK: SYMLINK,
    headers.CHARACTER_DEVICE: CHARACTER_DEVICE,
    headers.BLOCK_DEVICE: BLOCK_DEVICE,
    headers.DIRECTORY: DIRECTORY,
    headers.FIFO: FIFO,
}


class LayerSource:
    """A layer as a `compose.Source`. Use it as a context manager: at its end, what was read has been verified twice.

    Large files come in pieces (`Change.pieces`), which have to be taken before anything else of this source.

    Args:
        open_layer: opens it. It is called once or twice.
        spool: file descriptor of a directory in which files without a name may be made.
        look_first: whether a large layer is looked at before it is read. Otherwise it is verified only at the end,
            and everything can raise NotInOrderError.
    """

    def __init__(self, open_layer: Opener, spool: int, *, look_first: bool = True) -> None:
        self._open_layer = open_layer
        self._spool = Spool(spool)
        self._opened: AbstractContextManager[TarReader] | None = None
        self._tar: TarReader | _Beginning | None = None
        self._look_first = look_first
        self._taken = array("q")  # hashes of names that have been taken, without a first look
        self._found: set[int] | None = None  # the same, once there is a hard link
        self._items: Iterator[Item] = iter(())
        self._item: Item | None = None
        self._begun = False
        # Whether the directories from the root to the present one hide what lies below.
        self._covered: list[bool] = []
        self._files: dict[int, _File] = {}

    def __enter__(self) -> LayerSource:  # noqa: PYI034, Self is not in Python 3.9
        """Look at the layer.

        Raises:
            ArchiveError: it is damaged, or cannot be composed.
        """
        try:
            self._items = self._open()
        except BaseException:
            self._abandon()
            self._spool.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._abandon()
            elif self._opened is not None:
                opened, self._opened = self._opened, None
                opened.__exit__(None, None, None)
        finally:
            self._spool.close()

    def ahead(self) -> tuple[int, str] | None:
        """See `compose.Source`."""
        item = self._look()
        return None if item is None else (item.depth, item.name)

    def is_directory(self) -> bool:
        """See `compose.Source`."""
        item = self._look()
        return item is not None and item.entry is not None and item.entry.type == headers.DIRECTORY

    def skip(self) -> None:
        """See `compose.Source`."""
        passed = self._look()
        assert passed
        self._pass_over(passed)
        while (item := self._look()) is not None and item.depth > passed.depth:
            self._pass_over(item)

    def take(self) -> Change | None:
        """See `compose.Source`."""
        item = self._look()
        assert item
        self._begun = False
        covered = self._covered
        del covered[item.depth + 1 :]
        hidden = bool(covered) and covered[-1]
        entry = item.entry
        if entry is None:
            return None if hidden else _change(item, WHITEOUT, _DELETION)
        if entry.type == headers.DIRECTORY:
            change = _change(item, DIRECTORY, entry)
            change.opaque = item.opaque
            change.implicit = item.implicit and not hidden
            covered.append(hidden or item.opaque)
            return change
        if item.file:
            return self._one_of_several(item, entry)
        if self._opened is not None and not self._look_first:
            if entry.type == headers.HARD_LINK:
                return self._link_to_taken(item, entry)
            self._note(hash(item.directory.prefix + item.name))
        change = _change(item, _KINDS[entry.type], entry)
        if entry.type == headers.REGULAR:
            self._add_data(change, item)
        return change

    def _one_of_several(self, item: Item, entry: Entry) -> Change:
        """Give one of several names of a file: the first one that is taken has the data."""
        file = self._files.get(item.file)
        if file is None:
            file = self._files[item.file] = _File(entry)
        elif entry.type == headers.HARD_LINK:
            entry = file.entry
            if file.kept is not None:
                item.stored = self._spool.get(file.kept)
                entry = item.stored.entry
        change = _change(item, _KINDS[entry.type], entry)
        change.shared = item.file
        if file.first is not None:
            change.link_to = file.first
            change.attributes = {}
            return change
        file.first = TreePath(item.directory, item.name)
        file.kept = None
        file.forget_attributes()
        if entry.type == headers.REGULAR:
            self._add_data(change, item)
        return change

    def _note(self, name: int) -> None:
        if self._found is None:
            self._taken.append(name)
        else:
            self._found.add(name)

    def _link_to_taken(self, item: Item, entry: Entry) -> Change:
        """Return a hard link, if what it leads to has been taken."""
        target = "/".join(split_link(entry.link))
        if self._found is None:
            if len(self._taken) > _MOST_FOUND:
                raise NotInOrderError
            self._found = set(self._taken)
        if hash(target) not in self._found:
            raise NotInOrderError
        change = _change(item, FILE, entry)
        change.link_to = TreePath(TOP, target)
        change.attributes = {}
        return change

    def _pass_over(self, item: Item) -> None:
        """Skip an entry, but keep what other names of the same file may need."""
        self._begun = False
        if not item.file or item.stored is not None or item.file in self._files:
            return
        assert item.entry
        assert self._tar
        file = self._files[item.file] = _File(item.entry)
        try:
            file.kept = self._spool.add(item.entry, self._tar)
        except (ArchiveError, OSError) as error:
            self._give_up(error)
        file.forget_attributes()

    def _look(self) -> Item | None:
        """Return the next item."""
        if not self._begun:
            try:
                self._item = next(self._items, None)
            except (ArchiveError, OSError) as error:
                self._give_up(error)
            self._begun = True
        return self._item

    def _add_data(self, change: Change, item: Item) -> None:
        """Give a file its data."""
        if change.size > _SMALL_FILE:
            change.pieces = self._pieces(item)
            return
        if item.stored is None:
            assert self._tar
            try:
                change.data = self._tar.whole_data()
            except (ArchiveError, OSError) as error:
                self._give_up(error)
        if change.data is None:
            data = bytearray(change.size)
            for offset, piece in self._pieces(item):
                data[offset : offset + len(piece)] = piece
            change.data = bytes(data)

    def _pieces(self, item: Item) -> Iterator[tuple[int, bytes]]:
        if item.stored is not None:
            yield from self._spool.data(item.stored)
            return
        assert self._tar
        try:
            yield from self._tar.data()
        except (ArchiveError, OSError) as error:
            self._give_up(error)

    def _open(self) -> Iterator[Item]:
        """Read the layer for the first time, as far as necessary, and choose how to get its items."""
        if not self._look_first:
            self._opened = self._open_layer()
            self._tar = beginning = _Beginning(self._opened.__enter__())
            try:
                beginning.read()
                items = self._sorted(beginning) if beginning.is_all else in_order(beginning, {})
            except (ArchiveError, OSError) as error:
                self._give_up(error)
            if beginning.is_all:
                opened, self._opened = self._opened, None
                opened.__exit__(None, None, None)
            return items
        with self._open_layer() as tar:
            beginning = _Beginning(tar)
            beginning.read()
            if beginning.is_all:
                return self._sorted(beginning)
            linked = look(beginning)
        if linked is None:
            with self._open_layer() as tar:
                return self._sorted(tar)
        self._opened = self._open_layer()
        self._tar = self._opened.__enter__()
        return in_order(self._tar, linked)

    def _sorted(self, tar: TarReader | _Beginning) -> Iterator[Item]:
        tree = LayerTree(self._spool)
        tree.add(tar)
        return tree.items()

    def _give_up(self, error: ArchiveError | OSError) -> NoReturn:
        """Raise an error of the layer, as whoever opened it puts it."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(type(error), error, error.__traceback__)
        if isinstance(error, OSError):
            fail("cannot read a layer", error)
        raise error

    def _abandon(self) -> None:
        """Close the layer before its end."""
        opened, self._opened = self._opened, None
        if opened is not None:
            abandoned = _Abandoned()
            try:
                opened.__exit__(_Abandoned, abandoned, None)
            except _Abandoned:
                pass


class _Abandoned(BaseException):
    """Ends the context of a layer that is not at fault."""


class _File:
    """A file with several names.

    Attributes:
        entry: what it is.
        first: the name that has been taken first; None: none has.
        kept: where it was kept aside when its first name was passed over; None: it was not.
    """

    __slots__ = ("entry", "first", "kept")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.first: TreePath | None = None
        self.kept: int | None = None

    def forget_attributes(self) -> None:
        """Let go of what may be large."""
        entry = self.entry
        self.entry = Entry(
            entry.type,
            "",
            link=entry.link,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            size=entry.size,
            device=entry.device,
        )


class _Beginning:
    """A tar of which the beginning is held in memory, to be read as a tar is.

    Attributes:
        is_all: whether that is all of it.
    """

    def __init__(self, tar: TarReader) -> None:
        self.is_all = True
        self._tar = tar
        self._entries = tar.entries()
        self._held: list[tuple[Entry, list[tuple[int, bytes]]]] = []
        self._next: Entry | None = None  # the first one whose data are not held
        self._data: list[tuple[int, bytes]] | None = None  # of the present one, if they are

    def read(self) -> None:
        """Read as much as is to be held.

        Raises:
            ArchiveError, OSError: see `TarReader.entries`.
        """
        size = 0
        for entry in self._entries:
            size += _ENTRY + len(entry.name) + len(entry.link) + sum(map(len, entry.attributes.values()))
            if entry.type == headers.REGULAR:
                size += entry.size
            if size > _SMALL_LAYER:
                self._next = entry
                self.is_all = False
                return
            self._held.append((entry, [*self._tar.data()] if entry.type == headers.REGULAR else []))

    def entries(self) -> Iterator[Entry]:
        for entry, data in self._held:
            self._data = data
            yield entry
        self._held.clear()
        self._data = None
        if self._next is not None:
            yield self._next
            yield from self._entries

    def data(self) -> Iterator[tuple[int, bytes]]:
        return self._tar.data() if self._data is None else iter(self._data)

    def whole_data(self) -> bytes | None:
        return self._tar.whole_data() if self._data is None else None


def _change(item: Item, kind: str, entry: Entry) -> Change:
    change = Change.__new__(Change)
    change.kind = kind
    change.directory = item.directory
    change.name = item.name
    change.mode = entry.mode
    change.uid = entry.uid
    change.gid = entry.gid
    change.atime_ns = change.mtime_ns = entry.mtime_ns
    change.size = entry.size
    change.rdev = entry.device
    change.attributes = entry.attributes
    change.target = entry.link if kind is SYMLINK else ""
    change.opaque = change.implicit = change.sparse = False
    change.shared = 0
    change.link_to = change.data = change.pieces = change.selected = None
    change.fd = -1
    return change
