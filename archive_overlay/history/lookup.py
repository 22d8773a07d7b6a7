"""Find one path of a revision in its pieces, from the top down, until something hides what is below.

Only that path of each piece is kept aside. Symbolic links are followed within the image.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.history.comparison import data_of
from archive_overlay.history.selection import PathSet
from archive_overlay.overlay.change import DIRECTORY, SYMLINK, WHITEOUT
from archive_overlay.overlay.compose import changes_of
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from archive_overlay.history.revisions import Image, Revision
    from archive_overlay.history.states import States
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.overlay.change import Change

_MOST_LINKS = 40  # as in the kernel


class Fact(Record):
    """What is known of an entry of a state.

    Attributes:
        kind, mode, uid, gid, size, mtime_ns, rdev, target, attributes: as in `Change`.
        link_to: path of another name of the same file; "" if its piece has none before it.
        piece: the piece that says so.
        implicit: a directory that no piece lists.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    target: str
    attributes: tuple[str, ...]
    link_to: str
    piece: Piece
    implicit: bool


class Looked(Record):
    """What was found.

    Attributes:
        path: the path without symbolic links on the way; "" for the root.
        fact: what is there.
        entries: of a directory: what is in it, by name.
    """

    path: str
    fact: Fact
    entries: dict[str, Fact]


def look_up(image: Image, revision: Revision, path: str, states: States, *, follow: bool) -> Looked:
    """Find a path.

    Args:
        image, revision: where.
        path: relative to the root, or absolute.
        states: opens pieces.
        follow: whether a symbolic link is followed if it is what the path names.

    Raises:
        ArchiveError: there is none, or a piece is missing or damaged.
    """
    pieces = image.state(revision)
    where = f"revision {revision.number} of {image.name}"
    parts: list[str] = []  # those that are known not to be links
    pending = _split(path)
    links = 0
    found: dict[str, Fact] = {}
    while True:
        # In the root, `..` is the root.
        end = pending.index("..") if ".." in pending else len(pending)
        way = [*parts, *pending[:end]]
        found = _find(image, pieces, "/".join(way), states)
        for length in range(len(parts), len(way) + 1):
            here = "/".join(way[:length])
            rest = [*way[length:], *pending[end:]]
            fact = found.get(here)
            if fact is None or fact.kind is WHITEOUT:
                raise ArchiveError(f"{where} has no {brief(path)}")
            if fact.kind is SYMLINK and (follow or rest):
                links += 1
                if links > _MOST_LINKS:
                    raise ArchiveError(f"{brief(path)} leads through too many symbolic links in {where}")
                parts = [] if fact.target.startswith("/") else way[: length - 1]
                pending = [*_split(fact.target), *rest]
                break
            if fact.kind is not DIRECTORY and rest:
                raise ArchiveError(f"{brief(here)} is not a directory in {where}")
        else:
            if end == len(pending):
                parts = way
                break
            parts, pending = way[:-1], pending[end + 1 :]
    whole = "/".join(parts)
    prefix = f"{whole}/" if whole else ""
    entries = {
        each[len(prefix) :]: fact
        for each, fact in found.items()
        if each != whole and each.startswith(prefix) and fact.kind is not WHITEOUT
    }
    return Looked(
        path=whole,
        fact=found[whole],
        entries={name: fact for name, fact in sorted(entries.items()) if "/" not in name},
    )


def data_at(image: Image, looked: Looked, states: States) -> Iterator[tuple[int, bytes]]:
    """Yield the data of a file: pieces in their order, and at which offset each belongs. What is in between is zeros.

    Raises:
        ArchiveError: they cannot be read.
    """
    path = looked.path
    while True:
        wanted = PathSet()
        wanted.add(path)
        with states.opened(image, [looked.fact.piece], paths=wanted) as source:
            for change in changes_of(source) if source else ():
                if change.path != path:
                    continue
                if change.link_to is None:
                    yield from data_of(change)
                    return
                path = change.link_to.text  # the first name has the data
                break
            else:
                raise ArchiveError(f"{brief(path)} is not where it was")


def last_changed(image: Image, looked: Looked, states: States) -> tuple[int, int]:
    """Return which revision changed an entry last, as a range: the first and the last one that it may be."""
    piece = looked.fact.piece
    numbers = [each.number for each in image.revisions if piece.first <= each.number <= piece.last]
    if piece.first == piece.last or len(numbers) < 2:
        return piece.last, piece.last
    for number in reversed(numbers):
        try:
            change_set = image.change_set(image.numbered(number))
        except ArchiveError:
            break
        if looked.path in _find(image, change_set, looked.path, states, listed=False):
            return number, number
    return piece.first, piece.last


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _find(
    image: Image, pieces: Sequence[Piece], path: str, states: States, *, listed: bool = True
) -> dict[str, Fact]:
    """Return the state that pieces make up at a path, at the paths above it, and in it if it is a directory.

    Args:
        image: has the pieces.
        pieces: the oldest first.
        path: the path.
        states: opens them.
        listed: whether what is in it is wanted.
    """
    found: dict[str, Fact] = {}
    closed: set[str] = set()  # hidden from lower pieces
    for piece in reversed(pieces):
        wanted = PathSet()
        wanted.add(path, entries=listed)
        hiding: list[str] = []
        with states.opened(image, [piece], paths=wanted, data=False) as source:
            for change in changes_of(source) if source else ():
                here = change.path
                on_the_way = here == path or f"{path}/".startswith(f"{here}/" if here else "")
                if not on_the_way and not (listed and change.directory.text == path):
                    continue
                if here in closed or any(above in closed for above in _above(here)):
                    continue
                _note(change, here, piece, found, closed)
                if change.kind is DIRECTORY and change.opaque:
                    hiding.append(here)
        closed.update(f"{each}/" if each else "/" for each in hiding)
        if path in closed or f"{path}/" in closed or any(above in closed for above in _above(path)):
            break
    return found


def _note(change: Change, path: str, piece: Piece, found: dict[str, Fact], closed: set[str]) -> None:
    known = found.get(path)
    if change.kind is not DIRECTORY:
        closed.add(path)
        if known is not None:
            closed.add(f"{path}/")
            return  # a directory hides it
    elif known is not None and not (known.implicit and known.kind is DIRECTORY):
        return
    found[path] = Fact(
        kind=change.kind,
        mode=change.mode,
        uid=change.uid,
        gid=change.gid,
        size=change.size,
        mtime_ns=change.mtime_ns,
        rdev=change.rdev,
        target=change.target,
        attributes=tuple(change.attributes),
        link_to="" if change.link_to is None else change.link_to.text,
        piece=piece,
        implicit=change.implicit,
    )


def _above(path: str) -> Iterator[str]:
    """Yield the marks in `closed` that say that nothing of a path counts any more: what is in directories above it."""
    yield "/"
    for position, character in enumerate(path):
        if character == "/":
            yield path[:position]
            yield path[: position + 1]
