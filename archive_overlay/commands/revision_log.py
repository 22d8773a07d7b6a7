"""`archive_overlay log`: the revisions of an image, or of all images of a layout, newest first."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager

from archive_overlay.commands import Output
from archive_overlay.commands.graph import children_first, draw
from archive_overlay.commands.revision_table import Listed, format_table, tag_heading
from archive_overlay.commands.terminal import find_screen
from archive_overlay.commands.touching import touches
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.references import find_images
from archive_overlay.history.revisions import Image
from archive_overlay.layout.provenance import Provenance
from archive_overlay.layout.stored import open_stored
from archive_overlay.log import escape
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.tar.changes import split_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Hashable, Iterator, Sequence
    from typing import Any

    from archive_overlay.commands.terminal import Screen
    from archive_overlay.history.references import Found
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.log import Log

    Key = tuple[int, Hashable]

# How much of the width what is drawn before each line may take while all lines begin at the same column.
_WIDEST_GRAPH = 16
_UNKNOWN = Provenance(container="", archive="", mount_point="")


def run(options: argparse.Namespace, log: Log) -> int:
    """Write the revisions to standard output.

    Args:
        options: `layout`, LAYOUT or LAYOUT:TAG; `paths`, of which a revision must touch one; `graph`; `json`; how it is shown.
        log: takes what cannot be read, if there is more than one image.

    Returns:
        1 if something could not be read.

    Raises:
        ArchiveError: there is no such image or layout, or it is damaged.
    """
    if options.graph and options.json:
        options.refuse("--graph draws for people; --json has the parent of each revision")
    paths = ["/".join(split_path(path)) for path in options.paths]
    images, whole = find_images(options.layout)
    reading = _Reading(paths, log, whole=len(images) > 1)
    output = Output()
    if options.json:
        _write_json(images, reading, output)
    else:
        screen = find_screen(options)
        if not images:
            output.line(f"{escape(options.layout)} (no images)")
        elif options.graph:
            _write_graph(images, reading, output, screen)
        else:
            _write_tables(images, reading, output, screen, headings=whole)
    output.flush()
    return 1 if reading.failed else 0


class _Reading:
    """The revisions of images, read as the command line says.

    Args:
        paths: revisions must touch one of these; all are taken if there are none.
        log: takes what cannot be read.
        whole: whether there may be other images, so that one that cannot be read is not the end.

    Attributes:
        failed: whether something could not be read.
    """

    def __init__(self, paths: Sequence[str], log: Log, *, whole: bool) -> None:
        self.failed = False
        self.paths = paths
        self._log = log
        self._whole = whole

    def revisions(self, found: Found) -> list[Listed] | None:
        """Give the revisions of an image, newest first; None: it cannot be read.

        Raises:
            ArchiveError: it cannot be read, and is the only one.
        """
        try:
            with _opened(found) as image:
                rows = listed(image, self.paths)
        except ArchiveError as error:
            if not self._whole:
                raise
            self._log.error(str(error))
            self.failed = True
            return None
        for fault in image.lost:
            self._log.error(f"{image.name}: {fault}")
        self.failed |= bool(image.lost) or any(row.fault for row in rows)
        return rows


def listed(image: Image, paths: Sequence[str] = ()) -> list[Listed]:
    """Give the revisions of an image that touch one of some paths, newest first; all of them if there are no paths.

    What cannot be read is listed: it may touch them.
    """
    rows = []
    for revision in reversed(image.revisions):
        pieces: list[Piece] = []
        fault: str | None = ""
        try:
            pieces = image.change_set(revision)
        except ArchiveError as error:
            fault = str(error)
        if paths and pieces:
            fault = _fault_or_none(image, pieces, paths)
        if fault is not None:
            lacks_base = image.lacks_base and not revision.previous
            rows.append(
                Listed(tag=image.tag, revision=revision, pieces=pieces, lacks_base=lacks_base, fault=fault)
            )
    return rows


@contextmanager
def _opened(found: Found) -> Iterator[Image]:
    """Open an image that is found already: an index may have thousands."""
    try:
        layout = os.open(found.path, READ_TOP_DIRECTORY)
        try:
            image = Image(found.path, found.name, layout, open_stored(layout, found.descriptor, whole=False))
        except BaseException:
            os.close(layout)
            raise
    except OSError as error:
        fail(f"cannot read the image layout {found.path}", error)
    except ArchiveError as error:
        raise ArchiveError(f"cannot read {_name(found)}: {error.message}", hint=error.hint) from error
    with image:
        yield image


def _fault_or_none(image: Image, pieces: Sequence[Piece], paths: Sequence[str]) -> str | None:
    """Say why it is not known whether a change set touches a path, or "" if it does; None: it does not."""
    try:
        touched = False
        for piece in pieces:
            with image.read(piece) as layer:
                touched = touched or touches(layer, paths)
    except ArchiveError as error:
        return f"it may be listed wrongly: {error}"
    return "" if touched else None


def _write_tables(
    images: Sequence[Found],
    reading: _Reading,
    output: Output,
    screen: Screen,
    *,
    headings: bool,
) -> None:
    # What branches share is listed once, or a few megabytes of a layout could be gigabytes here.
    read: dict[str, tuple[str, int | None]] = {}
    seen: dict[Key, str] = {}
    for found in images:
        digest = str(found.descriptor.get("digest"))
        if digest in read:
            first, count = read[digest]
            output.line(f"\n{tag_heading(_name(found), count, screen)}, as {escape(first)}")
            continue
        rows = reading.revisions(found)
        read[digest] = found.name or found.path, None if rows is None else len(rows)
        if headings:
            if found is not images[0]:
                output.line("")
            output.line(tag_heading(_name(found), read[digest][1], screen))
        if rows is None or not (rows or not (headings or reading.paths)):
            continue
        keys = [_key(row) for row in rows] if len(images) > 1 else []
        own = next((position for position, key in enumerate(keys) if key in seen), len(rows))
        if own or not rows:
            columns, lines = format_table(rows[:own], screen)
            output.line(columns)
            for each in lines:
                for line in each:
                    output.line(line)
        if own < len(rows):
            output.line(f"{keys[own][0]:>3}  and older: as in {escape(seen[keys[own]])}")
        seen.update(dict.fromkeys(keys[:own], found.name or found.path))


def _write_graph(images: Sequence[Found], reading: _Reading, output: Output, screen: Screen) -> None:
    nodes: dict[Key, Listed] = {}
    parents: dict[Key, Key | None] = {}
    tags: dict[Key, list[str]] = {}
    tops: dict[str, Key] = {}
    for found in images:
        digest = str(found.descriptor.get("digest"))
        if digest in tops:
            tags[tops[digest]].append(found.name)
            continue
        rows = reading.revisions(found) or []
        keys = [_key(row) for row in rows]
        for key, row, below in zip(keys, rows, [*keys[1:], None]):
            nodes.setdefault(key, row)
            known = parents.setdefault(key, below)
            # What is pruned in one branch may be there in another.
            if below and (known is None or known[0] < below[0]):
                parents[key] = below
        if keys:
            tags.setdefault(keys[0], []).append(found.name)
            tops[digest] = keys[0]
    inner = {*parents.values()}
    tips = sorted(
        (key for key in nodes if key not in inner),
        key=lambda key: (nodes[key].revision.created, key[0]),
        reverse=True,
    )
    order = children_first(parents, tips)
    drawn = [*draw(order, parents)]
    indent = min(_WIDEST_GRAPH, max((len(node) for _, _, node, _ in drawn), default=0)) + 1
    rows = [nodes[key].replace(tags=[*filter(None, tags.get(key, ()))]) for key in order]
    columns, lines = format_table(rows, screen, indent=indent)
    output.line(f"{' ' * indent}{columns}")
    for (_, before, node, after), each in zip(drawn, lines):
        for line in before:
            output.line(line)
        for line, prefix in zip(each, [node, *[after] * len(each)]):
            output.line(f"{prefix.ljust(indent - 1)} {line}")


def _key(row: Listed) -> Key:
    """Give what is the same for a revision in all branches that have it: its number, and what else is known of it."""
    revision = row.revision
    if revision.provenance:
        return revision.number, (revision.created, revision.provenance)
    diff_id = row.pieces[0].diff_id if len(row.pieces) == 1 else ""
    return revision.number, (revision.created, revision.created_by, diff_id)


def _write_json(images: Sequence[Found], reading: _Reading, output: Output) -> None:
    # One at a time: what all of them become is several times as large as what they are.
    waiting = ""
    for found in images:
        for row in reading.revisions(found) or []:
            output.line(f"{waiting}," if waiting else "[")
            waiting = "\n".join([f"  {line}" for line in json.dumps(_object(row), indent=2).split("\n")])
    output.line(f"{waiting}\n]" if waiting else "[]")


def _object(row: Listed) -> dict[str, Any]:
    revision = row.revision
    origin = revision.provenance or _UNKNOWN
    alone = row.pieces[0] if len(row.pieces) == 1 else None
    return {
        "tag": row.tag or None,
        "revision": revision.number,
        "parent": revision.previous or None,
        "branched_from": origin.parent or None,
        "base": origin.base or None,
        "digest": alone.digest if alone else None,
        "diff_id": (alone.diff_id or None) if alone else None,
        "created": revision.created or None,
        "container": origin.container or None,
        "container_name": origin.container_name or None,
        "image": origin.image or None,
        "archive": origin.archive or None,
        "mount_point": origin.mount_point or None,
        "message": origin.message or None,
        "entries": origin.entries,
        "deletions": origin.deletions,
        "bytes": origin.bytes,
        "excluded": origin.excluded,
        "size": row.size,
        "created_by": revision.created_by or None,
        "comment": revision.comment or None,
        "pieces": [
            {
                "first": piece.first,
                "last": piece.last,
                "digest": piece.digest,
                "size": piece.size,
                "in_image": piece.in_image,
            }
            for piece in row.pieces
        ],
        "fault": row.fault or None,
    }


def _name(found: Found) -> str:
    return f"{found.path}:{found.name}" if found.name else found.path
