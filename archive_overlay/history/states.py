"""What pieces of a history come to, read as one change set: all of them, or what they say of certain paths.

The state of a revision is that of all its pieces. It takes no extraction: of large layers only what is wanted is kept aside,
in a file without a name.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager

from archive_overlay.errors import fail
from archive_overlay.history.layer_source import LayerSource
from archive_overlay.history.selection import selected
from archive_overlay.overlay.compose import compose
from archive_overlay.system.activity import NOW
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from archive_overlay.history.layer_source import Opener
    from archive_overlay.history.revisions import Image
    from archive_overlay.history.selection import PathSet
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.overlay.compose import Source

# Where files without a name are made: on disk, for they may be as large as an image.
_SPOOL = "/var/tmp"


class States:
    """Reads pieces of images.

    Args:
        wrong_diff_ids: gets what is wrong with the diff IDs of pieces, by their last revision; None: that is an error.
    """

    def __init__(self, wrong_diff_ids: dict[int, str] | None = None) -> None:
        self._wrong_diff_ids = wrong_diff_ids

    def opener(self, image: Image, piece: Piece) -> Opener:
        """Give what opens a piece as a tar."""
        return lambda: image.read(piece, wrong_diff_ids=self._wrong_diff_ids)

    @contextmanager
    def opened(
        self, image: Image, pieces: Sequence[Piece], *, paths: PathSet | None = None, data: bool = True
    ) -> Generator[Source | None, None, None]:
        """Compose pieces. All of them have been verified before anything is given.

        Args:
            image: it has them.
            pieces: the oldest first.
            paths: those that are wanted, which become more where links lead elsewhere; None: all.
            data: whether the data of files are wanted; without paths they always come.

        Returns:
            What they come to; None: there are no pieces.

        Raises:
            ArchiveError: one of them is damaged, or cannot be composed.
        """
        NOW.expected += sum(piece.size for piece in pieces)
        with ExitStack() as stack:
            spool = stack.enter_context(spool_directory()) if pieces else -1
            sources: list[Source] = []
            # From the top down: what links lead to is wanted of all below, too, if it is not there.
            for piece in reversed(pieces):
                opener = self.opener(image, piece)
                if paths is None:
                    sources.append(stack.enter_context(LayerSource(opener, spool)))
                else:
                    sources.append(stack.enter_context(selected(opener, spool, paths, data=data)))
            sources.reverse()
            yield compose(sources) if sources else None


def begins_with_its_base(image: Image) -> bool:
    """Say whether nothing lies below an image's lowest piece: a container's change set always lies on something."""
    return image.stored.first <= 1 and bool(image.revisions) and image.revisions[0].provenance is None


@contextmanager
def spool_directory() -> Generator[int, None, None]:
    """Open the directory in which files without a name are made.

    Raises:
        ArchiveError: it cannot be opened.
    """
    path = _SPOOL
    try:
        fd = os.open(path, READ_TOP_DIRECTORY)
    except OSError as error:
        fail(f"cannot open {path}, where files without a name are made", error)
    try:
        yield fd
    finally:
        os.close(fd)
