"""A layer in any order as a tree: its entries in the order of their names.

The rules are those by which `unpack` makes entries in a directory, one after the other. If an entry refers to the
contents of lower layers (a hard link to a file of theirs, a symbolic link to their directories), the layer cannot be
composed, because these are unknown here.

Source: OCI image specification, layer.md.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.overlay.change import TOP, TreePath
from archive_overlay.tar import headers
from archive_overlay.tar.changes import split_link, split_path, whiteout_of
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Union

    from archive_overlay.history.spool import Entries, Spool, Stored

    # A directory, or the number of what was kept aside.
    Node = Union["_Directory", int]

# As in `unpack`.
_MOST_FOLLOWED = 256
_IMPLICIT = -1


class Item:
    """One entry of a layer, in order.

    Attributes:
        depth: of the directory that it is in; -1 for the root.
        directory: path of the directory that it is in.
        name: its name there; "" for the root.
        entry: what it is; None: the name was deleted.
        stored: where it was kept aside; None: it was not, and is the tar's present one.
        opaque: of a directory: it hides what lies below.
        implicit: a directory that the layer has no entry for.
        file: a number of the file's own if it has several names in the layer; 0 otherwise.
    """

    __slots__ = ("depth", "directory", "entry", "file", "implicit", "name", "opaque", "stored")

    def __init__(
        self,
        depth: int,
        directory: TreePath,
        name: str,
        entry: Entry | None,
        *,
        stored: Stored | None = None,
        opaque: bool = False,
        implicit: bool = False,
        file: int = 0,
    ) -> None:
        self.depth = depth
        self.directory = directory
        self.name = name
        self.entry = entry
        self.stored = stored
        self.opaque = opaque
        self.implicit = implicit
        self.file = file


class _Directory:
    """A directory of the tree.

    Attributes:
        children: what is in it, by name.
        deleted: names that are deleted in lower layers; None: there are none.
        opaque: whether it hides what lies below.
        number: of its own entry; _IMPLICIT: it has none.
        mtime_ns: of an entry in it, if it has none of its own.
    """

    __slots__ = ("children", "deleted", "mtime_ns", "number", "opaque")

    def __init__(self, number: int, mtime_ns: int, *, opaque: bool = False) -> None:
        self.children: dict[str, Node] = {}
        self.deleted: set[str] | None = None
        self.opaque = opaque
        self.number = number
        self.mtime_ns = mtime_ns

    def delete(self, name: str) -> None:
        if self.deleted is None:
            self.deleted = set()
        self.deleted.add(name)


class LayerTree:
    """The tree of a layer.

    Args:
        spool: takes its entries.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._root = _Directory(_IMPLICIT, 0)
        self._files: dict[int, int] = {}  # those with several names: numbers from 1 on

    def add(self, tar: Entries) -> None:
        """Add all entries of the layer.

        Raises:
            ArchiveError: it is damaged, or says what cannot be said of one layer alone.
            OSError: it cannot be read.
        """
        for entry in tar.entries():
            parts = split_path(entry.name)
            if not parts:
                if entry.type != headers.DIRECTORY:
                    raise ArchiveError("the image's root is not a directory")
                self._root.number = self._spool.add(entry, tar)
                continue
            name = parts.pop()
            if name.startswith(WHITEOUT_PREFIX):
                self._mark(entry, parts, name)
                continue
            directory = self._open(parts, entry, make=True)
            there = directory.children.get(name)
            if entry.type == headers.DIRECTORY:
                number = self._spool.add(entry, tar)
                if isinstance(there, _Directory):
                    there.number = number
                else:
                    # What was created there before hid what lower layers have.
                    directory.children[name] = _Directory(number, 0, opaque=there is not None)
            elif entry.type == headers.HARD_LINK:
                if there is not None and self._find(entry) == there:
                    continue  # it is one to itself
                directory.children.pop(name, None)
                number = self._linked(entry)
                self._files.setdefault(number, len(self._files) + 1)
                directory.children[name] = number
            elif entry.type == headers.CHARACTER_DEVICE and not entry.device:
                # A layer on disk takes it for a deletion, and what lower layers have under the name is gone.
                directory.children.pop(name, None)
                directory.delete(name)
            else:
                if entry.type == headers.SYMLINK and "\0" in entry.link:
                    raise ArchiveError(
                        f"{brief(entry.name)} points to {brief(entry.link)!r}, which is not a path"
                    )
                directory.children[name] = self._spool.add(entry, tar)

    def items(self) -> Iterator[Item]:
        """Yield what the layer says, depth first, names in the order of their code points.

        Raises:
            ArchiveError: what was kept aside cannot be read.
        """
        yield self._directory_item(-1, TOP, "", self._root)
        levels = [(self._root, TOP, iter(_names(self._root)))]
        while levels:
            node, path, names = levels[-1]
            name = next(names, None)
            if name is None:
                levels.pop()
                path.forget()
                continue
            depth = len(levels) - 1
            child = node.children.get(name)
            if child is None:
                yield Item(depth, path, name, None)
            elif isinstance(child, _Directory):
                remade = node.deleted is not None and name in node.deleted
                yield self._directory_item(depth, path, name, child, remade=remade)
                levels.append((child, TreePath(path, name), iter(_names(child))))
            else:
                stored = self._spool.get(child)
                yield Item(depth, path, name, stored.entry, stored=stored, file=self._files.get(child, 0))

    def _directory_item(
        self, depth: int, path: TreePath, name: str, node: _Directory, *, remade: bool = False
    ) -> Item:
        """Return a directory; remade: it takes the place of what lower layers have, which is deleted."""
        implicit = node.number == _IMPLICIT
        entry = implicit_directory(node.mtime_ns) if implicit else self._spool.get(node.number).entry
        return Item(depth, path, name, entry, opaque=node.opaque or remade, implicit=implicit and not remade)

    def _mark(self, entry: Entry, parts: list[str], mark: str) -> None:
        """Note a mark, unless it stands in something that the layer has and that is not a directory."""
        directory = self._root
        for position, part in enumerate(parts):
            there = directory.children.get(part)
            if there is None:
                there = self._make(directory, part, entry)
            elif not isinstance(there, _Directory):
                if self._target(there) is not None:
                    raise ArchiveError(
                        f"{brief('/'.join(parts))} leads through a symbolic link of its layer, but something is"
                        " deleted there"
                    )
                if position < len(parts) - 1:
                    raise _not_a_directory(parts[: position + 1])
                return
            directory = there
        if mark == OPAQUE_MARKER:
            directory.opaque = True
            return
        name = whiteout_of(mark, entry.name)
        if not name.startswith(WHITEOUT_PREFIX):  # no layer has such names
            directory.delete(name)

    def _linked(self, entry: Entry) -> int:
        """Return the number of what an entry is a hard link to."""
        there = self._find(entry)
        if there is None:
            raise ArchiveError(
                f"{brief(entry.name)} is a hard link to {brief(entry.link)}, which its layer does not have"
            )
        if isinstance(there, _Directory):
            raise ArchiveError(f"{brief(entry.name)} is a hard link to a directory")
        return there

    def _find(self, entry: Entry) -> Node | None:
        """Find what an entry is a hard link to; None: it is not in the layer."""
        parts = split_link(entry.link)
        if not parts:
            return self._root
        *above, name = parts
        return self._open(above, entry, make=False).children.get(name)

    def _open(self, parts: list[str], entry: Entry, *, make: bool) -> _Directory:
        """Return the directory that an entry is in, or that a hard link leads to.

        A symbolic link of the layer is followed within the layer.
        """
        way = [self._root]
        pending = parts[::-1]
        followed = 0
        while pending:
            part = pending.pop()
            if part.startswith(WHITEOUT_PREFIX):
                raise ArchiveError(
                    f"{brief(entry.name)} is in a directory whose name stands for a deletion: {brief(part)}"
                )
            if part == "..":
                if len(way) > 1:
                    way.pop()
                continue
            there = way[-1].children.get(part)
            if isinstance(there, _Directory):
                way.append(there)
            elif there is None:
                if not make or followed:
                    raise ArchiveError(f"{brief(entry.name)} leads to what its layer does not have")
                way.append(self._make(way[-1], part, entry))
            else:
                target = self._target(there)
                if target is None:
                    raise ArchiveError(
                        f"{brief(part)} is not a directory, but {brief(entry.name)} leads through it"
                    )
                followed += 1 + target.count("/")
                if followed > _MOST_FOLLOWED:
                    raise ArchiveError(f"{brief(entry.name)} leads through too many symbolic links")
                if target.startswith("/"):
                    del way[1:]
                pending += [each for each in reversed(target.split("/")) if each not in ("", ".")]
        return way[-1]

    def _make(self, directory: _Directory, name: str, entry: Entry) -> _Directory:
        if name.startswith(WHITEOUT_PREFIX):
            raise ArchiveError(
                f"{brief(entry.name)} is in a directory whose name stands for a deletion: {brief(name)}"
            )
        made = _Directory(_IMPLICIT, entry.mtime_ns)
        directory.children[name] = made
        return made

    def _target(self, number: int) -> str | None:
        """Return what a symbolic link points to; None: it is something else."""
        entry = self._spool.get(number).entry
        return entry.link if entry.type == headers.SYMLINK else None


def implicit_directory(mtime_ns: int) -> Entry:
    """Return the metadata of a directory that no layer lists; see `unpack`."""
    return Entry(headers.DIRECTORY, "", mode=0o755, mtime_ns=mtime_ns)


def _names(directory: _Directory) -> list[str]:
    return sorted(directory.children.keys() | (directory.deleted or ()))


def _not_a_directory(parts: list[str]) -> ArchiveError:
    return ArchiveError(f"{brief('/'.join(parts))} is not a directory, but there is an entry in it")
