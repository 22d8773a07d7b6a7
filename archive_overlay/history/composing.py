"""Layers composed into one, which shows what they show stacked.

In it, entries come depth first, names in the order of their code points, deletions among them. A reader of layers need not
know the order: no name is both there and deleted, an opaque directory has no deletions in it, and it says that it is
opaque before anything else that is in it. (What this program writes of an upperdir has deletions first in each directory,
from the time before there was composing.) Of links the first name has the data, as readers expect. Each directory is
listed before what is in it, unless none of the layers lists it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from archive_overlay.history.layer_order import NotInOrderError
from archive_overlay.history.layer_source import LayerSource
from archive_overlay.layout.layer import write_layer
from archive_overlay.overlay.compose import changes_of, compose
from archive_overlay.system.activity import NOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Callable

    from archive_overlay.history.layer_source import Opener
    from archive_overlay.layout.layer import Layer
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source


def compose_layers(
    layers: Sequence[Opener],
    fd: int,
    *,
    directory: int,
    where: str,
    compression: str,
    level: int,
    jobs: int,
    log: Log,
) -> Layer:
    """Compose layers, and write the result.

    Args:
        layers: each opens one of them, the oldest first.
        fd: an empty file, open for writing. The caller keeps it. What it has is worth nothing after an error.
        directory: file descriptor of a directory where files without a name may be made.
        where, compression, level, jobs, log: see `write_layer`.

    Raises:
        ArchiveError: one of them is damaged, or cannot be composed; or the result cannot be written.
    """

    return write_composed(
        [layers],
        lambda sources: changes_of(sources[0]),
        fd,
        directory=directory,
        where=where,
        compression=compression,
        level=level,
        jobs=jobs,
        log=log,
    )


def write_composed(
    groups: Sequence[Sequence[Opener]],
    changes: Callable[[Sequence[Source]], Iterator[Change]],
    fd: int,
    *,
    directory: int,
    where: str,
    compression: str,
    level: int,
    jobs: int,
    log: Log,
) -> Layer:
    """Compose several groups of layers, each by itself, and write what comes of that.

    Args:
        groups: of each, what opens its layers, the oldest first.
        changes: makes one change set of all of these. It may be called twice.
        fd, directory, where, compression, level, jobs, log: see `compose_layers`.

    Raises:
        ArchiveError: see `compose_layers`.
    """

    def write(*, look_first: bool) -> Layer:
        with ExitStack() as stack:
            sources = [
                compose(
                    [
                        stack.enter_context(LayerSource(each, directory, look_first=look_first))
                        for each in layers
                    ]
                )
                for layers in groups
            ]
            # At the end of the context, it is known that all that was read was what the layers should be.
            return write_layer(
                changes(sources),
                fd,
                where=where,
                compression=compression,
                level=level,
                jobs=jobs,
                log=log,
            )

    before = NOW.read
    try:
        return write(look_first=False)
    except NotInOrderError:
        NOW.expected += NOW.read - before
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        return write(look_first=True)
