"""`archive_overlay diff`: what a change set holds, whatever form it is stored in."""

from __future__ import annotations

import json

from archive_overlay.commands import Output, human_size
from archive_overlay.commands.archives import open_archive
from archive_overlay.log import escape
from archive_overlay.overlay.change import DIRECTORY, FILE, SYMLINK, WHITEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import Any

    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change

_ADDED = "A"
_DELETED = "D"
_OPAQUE = "O"

_MEANINGS = {_ADDED: "changed", _DELETED: "deleted", _OPAQUE: "opaque"}
_COLOURS = {_ADDED: 32, _DELETED: 31, _OPAQUE: 35}
_SIZE_WIDTH = 12
_HUMAN_WIDTH = 5


def run(options: argparse.Namespace, log: Log) -> None:
    """Write the change set to standard output.

    Args:
        options: `what`; `kind` (one of `cli.KINDS`) and `marks`, or None; `stat`, `json`, `human`.
        log: takes a warning if marks may be there that this process does not see.

    Raises:
        ArchiveError: there is no such change set, or it cannot be read.
    """
    with open_archive(options.what, log, kind=options.kind, marks=options.marks) as archive:
        show(archive.changes(), options)


def show(changes: Iterable[Change], options: argparse.Namespace) -> None:
    """Write changes to standard output.

    Args:
        changes: in any order.
        options: `stat`, `json`, `human`.

    Raises:
        ArchiveError: they cannot be read or written.
        BrokenPipeError: nobody reads the output any more.
    """
    output = Output()
    # The top is in every change set, as a directory.
    shown = (change for change in changes if change.name or change.opaque or change.kind is not DIRECTORY)
    if options.stat:
        _write_totals(shown, output, options)
    elif options.json:
        _write_json(shown, output)
    else:
        for change in shown:
            output.line(_text(change, terminal=output.terminal, human=options.human))
    output.flush()


def _letter(change: Change) -> str:
    if change.kind is WHITEOUT:
        return _DELETED
    return _OPAQUE if change.opaque else _ADDED


def _size(change: Change) -> int | None:
    """Give the size of a file, once: not at its further names."""
    return change.size if change.kind is FILE and change.link_to is None else None


def _write_totals(shown: Iterable[Change], output: Output, options: argparse.Namespace) -> None:
    counts = dict.fromkeys(_MEANINGS, 0)
    size = 0
    for change in shown:
        counts[_letter(change)] += 1
        size += _size(change) or 0
    totals = {
        "entries": counts[_ADDED] + counts[_OPAQUE],
        "deletions": counts[_DELETED],
        "opaque": counts[_OPAQUE],
        "size": size,
    }
    if options.json:
        output.line(json.dumps(totals))
        return
    opaque = f" ({totals['opaque']} opaque)" if totals["opaque"] else ""
    entries = "1 entry" if totals["entries"] == 1 else f"{totals['entries']} entries"
    deletions = "1 deletion" if totals["deletions"] == 1 else f"{totals['deletions']} deletions"
    output.line(f"{entries}{opaque}, {deletions}, {human_size(size) if options.human else f'{size} bytes'}")


def _write_json(shown: Iterable[Change], output: Output) -> None:
    before = "["
    for change in shown:
        output.line(f"{before}{json.dumps(_object(change))}")
        before = ","
    output.line("]" if before == "," else "[]")


def _object(change: Change) -> dict[str, Any]:
    known: dict[str, Any] = {"path": change.path or ".", "change": _MEANINGS[_letter(change)]}
    if change.kind is WHITEOUT:
        return known
    known.update(type=change.kind, mode=f"{change.mode:04o}", uid=change.uid, gid=change.gid)
    size = _size(change)
    if size is not None:
        known["size"] = size
    if change.link_to is not None:
        known["link_to"] = change.link_to.text
    elif change.kind is SYMLINK:
        known["target"] = change.target
    return known


def _text(change: Change, *, terminal: bool, human: bool) -> str:
    letter = _letter(change)
    path = escape(change.path or ".")
    if change.kind is DIRECTORY:
        path += "/"
    elif change.link_to is not None:
        path += f" => {escape(change.link_to.text)}"
    elif change.kind is SYMLINK:
        path += f" -> {escape(change.target)}"
    size = _size(change)
    column = "-" if size is None else human_size(size) if human else str(size)
    before, after = (f"\x1b[{_COLOURS[letter]}m", "\x1b[0m") if terminal else ("", "")
    return f"{before}{letter} {column.rjust(_HUMAN_WIDTH if human else _SIZE_WIDTH)} {path}{after}"
