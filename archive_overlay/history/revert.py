"""Make the change set that goes back to an earlier revision."""

from __future__ import annotations

from archive_overlay.overlay.change import DIRECTORY, WHITEOUT
from archive_overlay.overlay.compose import comes_first

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source


def changes_back(
    state: Source, since: Source, *, unknown: Callable[[Change], None] | None = None
) -> Iterator[Change]:
    """Yield the changes that undo a change set.

    Each entry of it becomes what the state has there, or is deleted. Directories that it lists only for their contents
    are yielded, too. If only some names of a file were touched, these become a file of their own: a layer cannot link
    to lower layers.

    Args:
        state: what was there, all of it composed. It lies on nothing: what it does not have was not there.
        since: what came after, composed.
        unknown: for a state whose base is missing: called with each change of `since` that may concern the base. It may
            raise an error. If it does not, nothing is assumed to have been there.

    Returns:
        Changes, depth first, each valid until the next one is taken.

    Raises:
        ArchiveError: one of them cannot be read.
    """
    covered: list[bool] = []  # of the directories down to here: whether the state hides there what it lies on
    while (place := since.ahead()) is not None:
        del covered[place[0] + 1 :]
        hidden = unknown is None or (bool(covered) and covered[-1])
        while (there := state.ahead()) is not None and there != place and comes_first(there, place):
            state.skip()
        is_directory = since.is_directory()
        if there != place:
            touched = since.take()
            if touched is not None and not hidden:
                assert unknown
                unknown(touched)
            if touched is not None and not touched.name:
                yield touched  # nothing was there, and a change set has a root
            elif touched is not None and touched.kind is not WHITEOUT:
                if is_directory:
                    _pass_over(since, place[0])
                yield _deletion(touched)
            continue
        was_directory = state.is_directory()
        touched = since.take()
        if touched is None:
            state.skip()
            continue
        merged = is_directory and was_directory and not touched.opaque
        if is_directory and not merged:
            _pass_over(since, place[0])
        was = state.take()
        if was is not None and was.kind is DIRECTORY:
            gone = not merged and not was.opaque
            if not hidden and (gone or (was.implicit and not touched.implicit)):
                assert unknown
                unknown(touched)
            covered.append(hidden or was.opaque)
        if was is None or was.kind is WHITEOUT:
            if touched.kind is not WHITEOUT:
                yield _deletion(touched)
            continue
        was.implicit = False
        if was.kind is DIRECTORY:
            # A whole directory hides what is there now. Any other must not: it does not list what was not touched.
            was.opaque = not merged
        yield was
        if was_directory and not merged:
            yield from _whole(state, place[0])


def _whole(source: Source, depth: int) -> Iterator[Change]:
    """Yield all that is in a directory which is in one of some depth. It is opaque, so without deletions."""
    while (place := source.ahead()) is not None and place[0] > depth:
        change = source.take()
        if change is not None and change.kind is not WHITEOUT:
            change.implicit = False
            yield change


def _pass_over(source: Source, depth: int) -> None:
    """Leave out what is in a directory which is in one of some depth."""
    while (place := source.ahead()) is not None and place[0] > depth:
        source.skip()


def _deletion(change: Change) -> Change:
    """Make a change that deletes the name of another one."""
    change.kind = WHITEOUT
    change.attributes = {}
    change.link_to = change.data = change.pieces = None
    change.opaque = change.implicit = False
    change.size = 0
    return change
