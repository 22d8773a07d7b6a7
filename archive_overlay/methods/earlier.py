"""What an upperdir holds, without what an earlier revision of a layout has of it."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager

from archive_overlay.errors import ArchiveError
from archive_overlay.history.layer_source import LayerSource
from archive_overlay.history.revisions import Image
from archive_overlay.history.since import changes_since
from archive_overlay.layout.stored import open_stored
from archive_overlay.log import Log, Repeated
from archive_overlay.overlay.change import TOP
from archive_overlay.overlay.compose import compose
from archive_overlay.overlay.lowers import Directory, Lowers
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from contextlib import AbstractContextManager
    from typing import Callable

    from archive_overlay.destination.staging import Staging
    from archive_overlay.layout.add_layer import LayoutDestination
    from archive_overlay.layout.lineage import Earlier
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.overlay.change import Change, TreePath
    from archive_overlay.overlay.compose import Source
    from archive_overlay.overlay.mount import OverlayMount

    Read = Callable[[Log], AbstractContextManager[Iterator[Change]]]


@contextmanager
def compared(
    layout: LayoutDestination,
    overlay: OverlayMount,
    owner: tuple[int, int] | None,
    read: Read,
    staging: Staging,
    log: Log,
) -> Generator[Iterator[Change], None, None]:
    """Give what the layer of a new revision has: what is not the same in the layout's earlier one of the same upperdir.

    If that cannot be read, the new revision has all that the upperdir holds, and lies where it would without an earlier one.

    Args:
        layout: it has the earlier one.
        overlay: the upperdir's.
        owner: user and group id of everything in the layer; None: the true owners.
        read: gives all that the upperdir holds, from the start, in the order of names. It may be called twice.
        staging: in the layout: files without a name may be made there.
        log: takes warnings.

    Raises:
        ArchiveError: what the upperdir holds cannot be read.
    """
    with ExitStack() as stack:
        changes = stack.enter_context(read(log))
        try:
            before = stack.enter_context(_Before(layout, overlay, staging))
            source = stack.enter_context(before.composed())
        except (ArchiveError, OSError) as error:
            assert layout.earlier
            log.warning(
                f"the revision has everything that the container changed, not only what it changed since {layout.earlier.name}:"
                f" {error}"
            )
            layout.forget_earlier()
            yield changes
            return
        warnings = Repeated(log)

        @contextmanager
        def again() -> Generator[tuple[Iterator[Change], Source], None, None]:
            with read(Log("panic", [])) as changes, before.composed() as source:
                yield changes, source

        yield changes_since(
            changes,
            source,
            again=again,
            lies_below=before.lies_below,
            owner=owner,
            leave_out=lambda change: warnings.warning(
                "sockets left out",
                " is left out: it is a socket, which a tar cannot hold",
                path=lambda: change.shown,
            ),
        )
        warnings.finish()


class _Before:
    """The pieces of a history that hold what an upperdir held at an earlier revision. Use it as a context manager.

    Their blobs stay open: other stops may delete them meanwhile.

    Attributes:
        lies_below: see `since.changes_since`.
    """

    def __init__(self, layout: LayoutDestination, overlay: OverlayMount, staging: Staging) -> None:
        self._layout = layout
        self._overlay = overlay
        self._staging = staging
        self._stack = ExitStack()
        self.lies_below: Callable[[TreePath, str], bool] | None = None

    def __enter__(self) -> _Before:  # noqa: PYI034, Self is not in Python 3.9
        earlier = self._layout.earlier
        assert earlier
        with ExitStack() as stack:
            fd = self._layout.paths.open(self._layout.path)
            try:
                stored = open_stored(fd, earlier.descriptor, whole=False)
            except BaseException:
                os.close(fd)
                raise
            self._image = stack.enter_context(Image(self._layout.path, earlier.tag, fd, stored))
            self._pieces, exact = _pieces(self._image, earlier)
            if not exact:
                if self._overlay.lowers_unknown:
                    raise ArchiveError(
                        f"its change set is composed with earlier ones, and {self._overlay.lowers_unknown}"
                    )
                lowers = Lowers(self._overlay)
                stack.callback(lowers.close)
                self.lies_below = _Below(lowers).has
            self._spool = os.open(self._staging.path, READ_TOP_DIRECTORY)
            stack.callback(os.close, self._spool)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def composed(self) -> Generator[Source, None, None]:
        """Give what they come to, once more from the start. All of them have been verified before anything is given."""
        with ExitStack() as stack:
            yield compose(
                [
                    stack.enter_context(LayerSource(lambda piece=piece: self._image.read(piece), self._spool))  # type: ignore[misc]
                    for piece in self._pieces
                ]
            )


def _pieces(image: Image, earlier: Earlier) -> tuple[list[Piece], bool]:
    """Choose the pieces of an upperdir's revisions, and say whether they hold nothing else.

    The revision before the first one may have been pruned, and a piece then has changes of both.
    """
    stored = image.stored
    firsts = {piece.first for piece in stored.pieces(stored.first, earlier.number)}
    for first in sorted({earlier.first, *firsts}, reverse=True):
        if first > earlier.first:
            continue
        pieces = stored.cover(first, earlier.number)
        if pieces is not None and not any(image.fault(piece) for piece in pieces):
            return pieces, first == earlier.first
    raise ArchiveError(f"the change sets up to {earlier.name} are not all in the layout")


class _Below:
    """Look-up of names in lower layers, in directories that hide nothing of them."""

    def __init__(self, lowers: Lowers) -> None:
        self._lowers = lowers
        # From the root to the directory that was asked for last.
        self._way: list[tuple[TreePath, Directory]] = [(TOP, Directory(None, ""))]

    def has(self, directory: TreePath, name: str) -> bool:
        """Return whether the lower layers have a name in a directory.

        Raises:
            ArchiveError: they cannot be read.
        """
        paths = []
        path: TreePath | None = directory
        while path is not None and path.parent is not None:
            paths.append(path)
            path = path.parent
        way = self._way
        del way[len(paths) + 1 :]
        for depth, each in enumerate(reversed(paths), 1):
            if depth < len(way) and way[depth][0].name == each.name:
                continue
            del way[depth:]
            way.append((each, Directory(way[-1][1], each.name)))
        return bool(self._lowers.find(way[-1][1], name).places)
