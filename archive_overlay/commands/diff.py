"""`archive_overlay diff`: what a change set holds, whatever form it is stored in, or how two things differ."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack, contextmanager

from archive_overlay.commands import archives
from archive_overlay.commands.archives import Directory, Tar, open_archive, plain_tree
from archive_overlay.commands.differences import show
from archive_overlay.commands.progress import progress_beside_output
from archive_overlay.errors import ArchiveError
from archive_overlay.history.comparison import (
    ADDED,
    CHANGE_SETS,
    CHANGED,
    DELETED,
    LIES_ON,
    LIES_ON_UNKNOWN,
    OPAQUE,
    STATES,
    UNCHANGED,
    Difference,
    compare,
)
from archive_overlay.history.revisions import open_revision
from archive_overlay.history.selection import ROOT, PathSet, number_of
from archive_overlay.history.states import States, begins_with_its_base
from archive_overlay.log import Repeated
from archive_overlay.overlay.change import DIRECTORY, WHITEOUT
from archive_overlay.overlay.compose import changes_of
from archive_overlay.tar.changes import LAYER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterator, Sequence
    from typing import Union

    from archive_overlay.history.revisions import Image, Revision
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source

    Thing = Union[Directory, Tar, "State"]


def run(options: argparse.Namespace, log: Log) -> None:
    """Write how something differs from what it lies on, or one thing from another, to standard output.

    Two revisions, or a revision and a directory, are compared as states: as what they show. Directories and tars are
    compared as they stand, with their deletions.

    Args:
        options: `what`; `other` or None; `kind` (one of `cli.KINDS`) and `marks`, or None; `everything`, whether
            directories that are there only for what is in them are listed, and what was in deleted ones; `stat`,
            `json`, and how it is shown; perhaps `force`: diff IDs may be wrong.
        log: takes a warning if marks may be there that this process does not see, and of each wrong diff ID.

    Raises:
        ArchiveError: there is no such thing, it cannot be read, or the two cannot be compared.
    """
    wrong: dict[int, str] | None = {} if getattr(options, "force", False) else None
    states = States(wrong)
    everything = getattr(options, "all", False)
    with progress_beside_output():
        if getattr(options, "other", None) is None:
            with _one(options, states, log, everything=everything) as (differences, known):
                show(differences, options, known=known)
        else:
            with _two(options, states, log, everything=everything) as differences:
                show(differences, options, known=True)
    warnings = Repeated(log)
    for number, fault in (wrong or {}).items():
        warnings.warning("revisions with a wrong diff ID", f"revision {number} was taken: {fault}")
    warnings.finish()


def as_they_are(
    changes: Iterator[Change], *, everything: bool, on_nothing: bool = False
) -> Iterator[Difference]:
    """Give changes that are not compared with anything, in their order, as differences.

    Args:
        changes: a directory that may be there only for what is in it is `implicit`.
        everything: give such ones, too.
        on_nothing: they lie on nothing; otherwise, it is not known on what.
    """
    for change in changes:
        if on_nothing:
            if change.kind is not WHITEOUT and (change.name or change.kind is not DIRECTORY):
                yield Difference(ADDED, change)
        elif change.kind is WHITEOUT:
            yield Difference(DELETED, change)
        elif change.opaque:
            yield Difference(OPAQUE, change)
        elif change.kind is not DIRECTORY or (change.name and not change.implicit):
            yield Difference(CHANGED, change)
        elif change.name and everything:
            yield Difference(UNCHANGED, change)


@contextmanager
def revision_differences(
    image: Image, revision: Revision, states: States, log: Log, *, everything: bool = False
) -> Generator[tuple[Iterator[Difference], bool], None, None]:
    """Compare a revision with the one before it.

    Where that cannot be read, what the revision changed is still shown.

    Args:
        image, revision: which one.
        states: opens pieces.
        log: takes a warning if the one before it cannot be read.
        everything: see `compare`.

    Returns:
        The differences, and whether it is known what was there before.

    Raises:
        ArchiveError: the revision's own change set is missing or damaged.
    """
    newer = image.change_set(revision)
    layer = Tar(archives.LAYOUT, LAYER, states.opener(image, newer[0]), newer[0].size)
    if not revision.previous and len(newer) == 1:
        # There is nothing to compare it with, so it need not be sorted.
        known = begins_with_its_base(image)
        yield as_they_are(layer.changes(), everything=everything, on_nothing=known), known
        return
    with ExitStack() as stack:
        try:
            previous = image.between(0, revision.previous)
            opened = _on_top(image, newer, previous, states, everything=everything)
            differences = stack.enter_context(opened)
        except ArchiveError as error:
            if len(newer) > 1:
                raise
            changes = layer.changes()
            first = next(changes, None)  # then it is known that it is not damaged itself
            log.warning(f"added and changed entries are not told apart: {error}")
            rest = changes if first is None else itertools.chain((first,), changes)
            yield as_they_are(rest, everything=everything), False
            return
        yield differences, begins_with_its_base(image)


class State:
    """A revision, as what it shows.

    Attributes:
        image, revision: which one.
    """

    kind = archives.LAYOUT

    def __init__(self, image: Image, revision: Revision) -> None:
        self.image = image
        self.revision = revision


@contextmanager
def _one(
    options: argparse.Namespace, states: States, log: Log, *, everything: bool
) -> Generator[tuple[Iterator[Difference], bool], None, None]:
    """Give what one thing changes, and whether it is known of what."""
    what, kind, marks = options.what, options.kind, options.marks
    if kind is None and what != archives.STDIN:
        kind = archives.kind_of(what, marks)
    if kind == archives.LAYOUT and marks in (None, "oci"):
        image, revision = open_revision(what)
        with image, revision_differences(image, revision, states, log, everything=everything) as found:
            yield found
        return
    with open_archive(what, log, kind=kind, marks=marks) as archive:
        if isinstance(archive, Tar):
            yield as_they_are(archive.changes(), everything=everything), False
            return
        with archive.source() as reader:
            yield (
                compare(
                    reader,
                    None,
                    LIES_ON_UNKNOWN,
                    everything=everything,
                    renamed_from=lambda _: reader.renamed_from(),
                ),
                False,
            )


@contextmanager
def _two(
    options: argparse.Namespace, states: States, log: Log, *, everything: bool
) -> Generator[Iterator[Difference], None, None]:
    if options.what == options.other == archives.STDIN:
        raise ArchiveError("standard input is one tar, and cannot be compared with itself")
    with ExitStack() as stack:
        older, newer = (
            stack.enter_context(_thing(what, options, log)) for what in (options.what, options.other)
        )
        if isinstance(older, State) and isinstance(newer, State):
            between = two_revisions(older, newer, states, everything=everything)
            yield stack.enter_context(between)
            return
        for thing, other, name in ((older, newer, options.other), (newer, older, options.what)):
            if isinstance(thing, State) and isinstance(other, Tar):
                raise ArchiveError(
                    f"{name} is a tar of changes, and a revision of an image is a whole state: they cannot be compared",
                    hint="apply the tar to a directory, and compare that with the revision",
                )
        whole = isinstance(older, State) or isinstance(newer, State)
        sources = []
        for thing, name in ((older, options.what), (newer, options.other)):
            if isinstance(thing, State):
                opened = states.opened(thing.image, thing.image.state(thing.revision))
            elif whole:
                opened = plain_tree(name).source()
            else:
                opened = thing.source()
            sources.append(stack.enter_context(opened))
        yield compare(_there(sources[1]), sources[0], STATES if whole else CHANGE_SETS, everything=everything)


@contextmanager
def _thing(what: str, options: argparse.Namespace, log: Log) -> Generator[Thing, None, None]:
    """Open one of two things. What `--as` says is for those of which it cannot be seen."""
    kind = archives.TAR
    if what != archives.STDIN:
        try:
            kind = archives.kind_of(what, options.marks)
        except ArchiveError:
            if options.kind is None or (options.kind != archives.LAYOUT and not os.path.exists(what)):
                raise
            kind = options.kind
    if kind == archives.LAYOUT:
        image, revision = open_revision(what)
        with image:
            yield State(image, revision)
    else:
        with open_archive(what, log, kind=kind, marks=options.marks) as archive:
            yield archive


@contextmanager
def two_revisions(
    older: State, newer: State, states: States, *, everything: bool
) -> Generator[Iterator[Difference], None, None]:
    """Compare two revisions: what both are made of is left out, and little is read of what lies below the rest."""
    one, other = older.image, newer.image
    same = (one.path, one.tag) == (other.path, other.tag)
    if same and older.revision.number <= newer.revision.number:
        below = one.state(older.revision)
        if older.revision.number == newer.revision.number:
            yield iter(())
            return
        changes = one.between(older.revision.number, newer.revision.number)
        with _on_top(one, changes, below, states, everything=everything) as differences:
            yield differences
        return
    sides = [(one, one.state(older.revision)), (other, other.state(newer.revision))]
    if same:
        # What came after the newer one: no other path differs.
        touched = [(one, one.between(newer.revision.number, older.revision.number))]
    else:
        common = 0
        while all(len(pieces) > common for _, pieces in sides) and (
            sides[0][1][common].digest == sides[1][1][common].digest
        ):
            common += 1
        touched = [(image, pieces[common:]) for image, pieces in sides] if common else []
    paths = _paths_of(touched, states, whole=True) if touched else None
    while True:
        count = paths.count if paths else 0
        with ExitStack() as stack:
            sources = [
                stack.enter_context(states.opened(image, pieces, paths=paths)) for image, pieces in sides
            ]
            # Where links lead to more paths, both have to be read with those.
            if paths and paths.count != count:
                continue
            yield compare(_there(sources[1]), sources[0], STATES, everything=everything)
            return


@contextmanager
def _on_top(
    image: Image, changes: Sequence[Piece], below: Sequence[Piece], states: States, *, everything: bool
) -> Generator[Iterator[Difference], None, None]:
    """Compare a change set with the state that it lies on."""
    paths = _paths_of([(image, changes)], states, whole=everything) if below else None
    sides = LIES_ON.replace(older_is_whole=begins_with_its_base(image))
    with states.opened(image, below, paths=paths) as older, states.opened(image, changes) as newer:
        yield compare(_there(newer), older, sides, everything=everything)


def _paths_of(touched: Sequence[tuple[Image, Sequence[Piece]]], states: States, *, whole: bool) -> PathSet:
    """Give the paths that change sets have something of.

    Args:
        touched: the change sets, as pieces of images.
        states: opens them.
        whole: whether all that is in directories that they delete is wanted.
    """
    paths = PathSet()
    for image, pieces in touched:
        with states.opened(image, pieces) as source:
            numbers: list[int] = []  # of the directories that the present change is in
            for change in changes_of(source) if source else ():
                directory = change.kind is DIRECTORY
                depth = change.directory.depth if change.name else -1
                del numbers[depth + 1 :]
                number = number_of(numbers[-1], change.name) if change.name else ROOT
                paths.add_number(number, tree=change.opaque if directory else whole)
                if directory:
                    numbers.append(number)
    return paths


def _there(source: Source | None) -> Source:
    assert source is not None  # a revision has a piece
    return source
