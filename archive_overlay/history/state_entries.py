"""Parts of a state as entries to unpack."""

from __future__ import annotations

from archive_overlay.history.comparison import data_of
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    WHITEOUT,
)
from archive_overlay.tar import headers
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source

_TYPES = {
    DIRECTORY: headers.DIRECTORY,
    FILE: headers.REGULAR,
    SYMLINK: headers.SYMLINK,
    FIFO: headers.FIFO,
    CHARACTER_DEVICE: headers.CHARACTER_DEVICE,
    BLOCK_DEVICE: headers.BLOCK_DEVICE,
}


class StateEntries:
    """Entries for `unpack.Unpacker`, once.

    Args:
        state: all of it, or at least what is wanted.
        paths: those that are wanted, with what is below them and the directories above them.

    Attributes:
        found: which of them there were.
    """

    def __init__(self, state: Source, paths: Sequence[str]) -> None:
        self.found: set[str] = set()
        self._state = state
        self._paths = frozenset(paths)
        self._above = {""}
        for path in paths:
            while path:
                path = path.rpartition("/")[0]
                self._above.add(path)
        self._change: Change | None = None

    def entries(self) -> Iterator[Entry]:
        """Yield what is wanted, depth first.

        Raises:
            ArchiveError: the state cannot be read.
        """
        state = self._state
        names: list[str] = []  # of the directories from the top down
        below: int | None = None  # deeper than this, all is wanted
        while (place := state.ahead()) is not None:
            depth, name = place
            del names[max(depth, 0) :]
            path = "/".join([*names, name])
            if path in self._paths:
                self.found.add(path)
            if below is None or depth <= below:
                below = None
                if path in self._paths:
                    below = depth
                elif path not in self._above or not state.is_directory():
                    state.skip()  # perhaps another name of a file that is wanted, which is one by itself then
                    continue
            change = self._change = state.take()
            if change is None or change.kind is WHITEOUT:
                self.found.discard(path)
                if below == depth:
                    below = None
                continue
            if change.kind is DIRECTORY and name:
                names.append(name)
            yield _entry(change, path)

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Return the data of the present entry."""
        assert self._change
        return data_of(self._change)

    def whole_data(self) -> bytes | None:
        """Return all data of the present entry, if they are at hand."""
        assert self._change
        return self._change.data


def _entry(change: Change, path: str) -> Entry:
    entry = Entry(_TYPES[change.kind], path or ".")
    if change.link_to is not None:
        entry.type = headers.HARD_LINK
        entry.link = change.link_to.text
    elif change.kind is SYMLINK:
        entry.link = change.target
    entry.mode = change.mode
    entry.uid, entry.gid = change.uid, change.gid
    entry.mtime_ns = change.mtime_ns
    entry.size = change.size
    entry.device = change.rdev
    entry.attributes = dict(change.attributes.items())
    return entry
