"""Differences on standard output: a line each, as JSON, or in total."""

from __future__ import annotations

import json

from archive_overlay.commands import Output, human_size, size_in_words
from archive_overlay.commands.terminal import BLUE, CYAN, GREEN, MAGENTA, RED, YELLOW, coloured, find_screen
from archive_overlay.history.comparison import (
    ADDED,
    CHANGED,
    DELETED,
    METADATA,
    MODIFIED,
    OPAQUE,
    RENAMED,
    UNCHANGED,
)
from archive_overlay.log import escape
from archive_overlay.overlay.change import DIRECTORY, FILE, SYMLINK, WHITEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import Any

    from archive_overlay.commands.terminal import Screen
    from archive_overlay.history.comparison import Difference
    from archive_overlay.overlay.change import Change

_MEANINGS = {
    ADDED: "added",
    CHANGED: "changed",
    MODIFIED: "modified",
    METADATA: "metadata",
    DELETED: "deleted",
    OPAQUE: "opaque",
    RENAMED: "renamed",
    UNCHANGED: "unchanged",
}
_LETTERS = {CHANGED: ADDED}
_COLOURS = {
    ADDED: GREEN,
    MODIFIED: YELLOW,
    METADATA: CYAN,
    DELETED: RED,
    OPAQUE: MAGENTA,
    RENAMED: BLUE,
}
_SIZE_WIDTH = 12
_HUMAN_WIDTH = 5
_DELETION = "deletion"  # a whiteout that is an entry itself


def show(
    differences: Iterable[Difference],
    options: argparse.Namespace,
    *,
    known: bool,
    output: Output | None = None,
) -> None:
    """Write differences to standard output.

    Args:
        differences: in any order.
        options: `stat`, `json`, and how it is shown.
        known: whether they say what was there before.
        output: takes them; None: a new one.

    Raises:
        ArchiveError: they cannot be read or written.
        BrokenPipeError: nobody reads the output any more.
    """
    output = output or Output()
    if options.stat:
        _write_totals(differences, output, options, known=known)
    elif options.json:
        _write_json(differences, output)
    else:
        screen = find_screen(options)
        for difference in differences:
            output.line(text_of(difference, screen))
    output.flush()


def size_of(change: Change) -> int | None:
    """Give the size of a file, once: not at its further names."""
    return change.size if change.kind is FILE and change.link_to is None else None


def named(change: Change) -> str:
    """Give the path of an entry, and where a link leads, harmless on a terminal."""
    path = escape(change.path or ".")
    if change.kind is DIRECTORY:
        return f"{path}/"
    if change.link_to is not None:
        return f"{path} => {escape(change.link_to.text)}"
    return f"{path} -> {escape(change.target)}" if change.kind is SYMLINK else path


def _write_totals(
    differences: Iterable[Difference], output: Output, options: argparse.Namespace, *, known: bool
) -> None:
    counts = dict.fromkeys(_MEANINGS, 0)
    size = 0
    for difference in differences:
        letter = difference.letter
        counts[letter] += 1
        if letter not in (DELETED, UNCHANGED):
            size += size_of(difference.change) or 0
    deleted = counts[DELETED]
    totals = {
        "entries": sum(counts.values()) - deleted - counts[UNCHANGED],
        "deletions": deleted,
        "opaque": counts[OPAQUE],
        "size": size,
    }
    if known:
        totals.update((_MEANINGS[letter], counts[letter]) for letter in (ADDED, MODIFIED, METADATA))
    if options.json:
        output.line(json.dumps(totals))
        return
    shown = size_in_words(size, human=find_screen(options).human)
    if known:
        parts = [
            f"{counts[ADDED] + counts[CHANGED]} added",
            f"{counts[MODIFIED]} modified",
            f"{counts[METADATA]} with other metadata",
            *([f"{counts[OPAQUE]} opaque"] if counts[OPAQUE] else []),
            f"{deleted} deleted",
        ]
        output.line(f"{', '.join(parts)}, {shown}")
        return
    more = ", ".join(
        f"{counts[letter]} {_MEANINGS[letter]}" for letter in (OPAQUE, RENAMED) if counts[letter]
    )
    entries = "1 entry" if totals["entries"] == 1 else f"{totals['entries']} entries"
    deletions = "1 deletion" if deleted == 1 else f"{deleted} deletions"
    output.line(f"{entries}{f' ({more})' if more else ''}, {deletions}, {shown}")


def _write_json(differences: Iterable[Difference], output: Output) -> None:
    before = "["
    for difference in differences:
        output.line(f"{before}{json.dumps(object_of(difference))}")
        before = ","
    output.line("]" if before == "," else "[]")


def object_of(difference: Difference) -> dict[str, Any]:
    """Give a difference for JSON."""
    change = difference.change
    letter = difference.letter
    known: dict[str, Any] = {"path": change.path or ".", "change": _MEANINGS[letter]}
    if change.kind is WHITEOUT:
        if letter is not DELETED:
            known["type"] = _DELETION
        return known
    known.update(type=change.kind, mode=f"{change.mode:04o}", uid=change.uid, gid=change.gid)
    size = size_of(change)
    if size is not None:
        known["size"] = size
    if change.link_to is not None:
        known["link_to"] = change.link_to.text
    elif change.kind is SYMLINK:
        known["target"] = change.target
    if difference.renamed_from:
        known["renamed_from"] = difference.renamed_from
    old = difference.old
    if old is not None and letter is not UNCHANGED:
        known["was"] = _was(change, old)
    return known


def _was(change: Change, old: Change) -> dict[str, Any]:
    """Give what an entry was, as far as it differs in what is said of it."""
    if old.kind is not change.kind:
        return {"type": _DELETION if old.kind is WHITEOUT else old.kind}
    was: dict[str, Any] = {}
    if old.kind is FILE and old.size != change.size:
        was["size"] = old.size
    if old.kind is SYMLINK and old.target != change.target:
        was["target"] = old.target
    if old.mode != change.mode and old.kind is not SYMLINK:
        was["mode"] = f"{old.mode:04o}"
    was.update(
        (name, getattr(old, name)) for name in ("uid", "gid") if getattr(old, name) != getattr(change, name)
    )
    return was


def text_of(difference: Difference, screen: Screen) -> str:
    """Give the line of a difference."""
    change = difference.change
    letter = _LETTERS.get(difference.letter, difference.letter)
    path = named(change)
    if change.kind is WHITEOUT and letter is not DELETED:
        path += f" ({_DELETION})"
    elif difference.renamed_from:
        path += f" (from {escape(difference.renamed_from)}/)"
    size = size_of(change) if letter is not DELETED else None
    column = "-" if size is None else human_size(size) if screen.human else str(size)
    line = f"{letter} {column.rjust(_HUMAN_WIDTH if screen.human else _SIZE_WIDTH)} {path}"
    return coloured(line, _COLOURS[letter], screen) if letter in _COLOURS else line
