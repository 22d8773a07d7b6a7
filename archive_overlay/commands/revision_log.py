"""`archive_overlay log`: the revisions of an image, newest first."""

from __future__ import annotations

import itertools
import json
import re

from archive_overlay.commands import Output, human_size, shown
from archive_overlay.history.revisions import open_image
from archive_overlay.layout.provenance import Provenance

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from archive_overlay.history.revisions import Revision
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.log import Log

_HEADINGS = ("REVISION", "DIGEST", "WHEN", "CONTAINER", "MOUNT POINT", "ENTRIES", "DELETIONS", "SIZE", "BY")
_NUMBERS = (0, 5, 6, 7)  # columns that are set to the right
_DIGEST_LENGTH = 12  # as the container tools cut it
_CONTAINER_ID = re.compile("[0-9a-f]{64}")
_FRACTION = re.compile(r"\.\d+(?=Z|[+-])")
_LONGEST_NOTE = 60
_LONGEST_CELL = 255
_UNKNOWN = Provenance(container="", archive="", mount_point="")


def run(options: argparse.Namespace, log: Log) -> None:
    """Write the revisions to standard output.

    Args:
        options: `layout`, LAYOUT or LAYOUT:TAG; `json`; `human`.
        log: takes nothing.

    Raises:
        ArchiveError: there is no such image, or the layout is damaged.
    """
    with open_image(options.layout) as image:
        revisions = [(revision, image.change_set(revision)) for revision in image.revisions[::-1]]
    output = Output()
    if options.json:
        _write_json(revisions, output)
    else:
        _write_table(revisions, output, human=options.human)
    output.flush()


def _write_json(revisions: list[tuple[Revision, list[Piece]]], output: Output) -> None:
    # One at a time: what all of them become is several times as large as what they are.
    output.line("[" if revisions else "[]")
    for revision in revisions:
        lines = json.dumps(_object(revision), indent=2).split("\n")
        output.line(
            "\n".join([f"  {line}" for line in lines]) + ("," if revision is not revisions[-1] else "")
        )
    if revisions:
        output.line("]")


def _write_table(revisions: list[tuple[Revision, list[Piece]]], output: Output, *, human: bool) -> None:
    widths = [len(heading) for heading in _HEADINGS]
    for revision in revisions:
        widths = [max(width, len(text)) for width, text in zip(widths, _row(revision, human=human))]
    for row in itertools.chain([_HEADINGS], (_row(revision, human=human) for revision in revisions)):
        cells = [
            text.rjust(width) if i in _NUMBERS else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths))
        ]
        output.line("  ".join(cells).rstrip())


def _row(listed: tuple[Revision, list[Piece]], *, human: bool) -> tuple[str, ...]:
    revision, pieces = listed
    origin = revision.provenance or _UNKNOWN
    container = origin.container
    if _CONTAINER_ID.fullmatch(container):
        container = container[:_DIGEST_LENGTH]
    return (
        str(revision.number),
        pieces[-1].digest.partition(":")[2][:_DIGEST_LENGTH],
        _cell(_FRACTION.sub("", revision.created[:_LONGEST_CELL])),
        _cell(container),
        _cell(origin.mount_point),
        "-" if origin.entries is None else str(origin.entries),
        "-" if origin.deletions is None else str(origin.deletions),
        human_size(_size(pieces)) if human else str(_size(pieces)),
        _maker(revision),
    )


def _maker(revision: Revision) -> str:
    """Say in a few words who made a revision, as far as that is known."""
    if revision.provenance:
        return _cell(f"archive {revision.provenance.archive}")
    return _cell(revision.created_by or revision.comment, _LONGEST_NOTE)


def _cell(text: str, most: int = _LONGEST_CELL) -> str:
    """Show a text in a column of at most so many characters: all lines get the width of the longest one."""
    text = shown(text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def _size(pieces: list[Piece]) -> int:
    return sum(piece.size for piece in pieces)


def _object(listed: tuple[Revision, list[Piece]]) -> dict[str, Any]:
    revision, pieces = listed
    origin = revision.provenance or _UNKNOWN
    return {
        "revision": revision.number,
        "digest": pieces[-1].digest,
        "diff_id": pieces[-1].diff_id or None,
        "created": revision.created or None,
        "container": origin.container or None,
        "archive": origin.archive or None,
        "mount_point": origin.mount_point or None,
        "entries": origin.entries,
        "deletions": origin.deletions,
        "size": _size(pieces),
        "created_by": revision.created_by or None,
        "comment": revision.comment or None,
    }
