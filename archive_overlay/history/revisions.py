"""The revisions of an image in an OCI image layout, what is known of each, and the change sets that they are made of.

Source: OCI image specification, config.md, "history" and "rootfs.diff_ids"; manifest.md, "layers".
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import contextmanager

from archive_overlay.errors import ArchiveError, brief, fail
from archive_overlay.history.references import find_image
from archive_overlay.layout import read
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.packs import read_shared
from archive_overlay.layout.provenance import read_provenance
from archive_overlay.layout.stored import chains_in, open_stored
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.system.record import Record
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Mapping
    from types import TracebackType
    from typing import Any, BinaryIO, Callable, TypeVar

    from archive_overlay.destination.paths import Paths
    from archive_overlay.history.references import Found
    from archive_overlay.layout.packs import Kept
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.layout.provenance import Provenance
    from archive_overlay.layout.stored import StoredImage

    Result = TypeVar("Result")

_BLOCK = 1 << 20


class Revision(Record):
    """A revision.

    Attributes:
        number: its number. Numbers grow, and may have gaps where revisions were pruned.
        previous: number of the revision before it; 0 if there is none.
        created: when, as RFC 3339 has it; "" if that is not known.
        created_by, comment: from the image's history; "" if there is nothing.
        provenance: where it comes from; None if this program did not make it.
        chains: ids that the top layer of an image ending in it has had in stores.
    """

    number: int
    previous: int
    created: str
    created_by: str
    comment: str
    provenance: Provenance | None
    chains: tuple[str, ...] = ()


class Image:
    """An image of a layout, open for reading. Use it as a context manager.

    Attributes:
        path: of the layout.
        tag: of the image there; "" if it has none.
        name: both.
        stored: the image as it is stored.
        revisions: all of them, the lowest number first.
        damaged: what is wrong with pieces that are known not to be what the image says, by their places. They are not used.
    """

    def __init__(self, path: str, tag: str, layout: int, stored: StoredImage) -> None:
        self.path = path
        self.tag = tag
        self.name = f"{path}:{tag}" if tag else path
        self.stored = stored
        self.revisions = _revisions(stored)
        self.damaged: dict[tuple[str, int], str] = {}
        self._layout = layout

    @property
    def lacks_base(self) -> bool:
        """Whether what the history began with is not in the layout."""
        stored = self.stored
        lowest = self.revisions[0].provenance if self.revisions else None
        return stored.first > 1 or (lowest is not None and lowest.base.startswith("absent"))

    @property
    def lost(self) -> list[str]:
        """What cannot be read of the history, a line for each."""
        return self.stored.lost

    def __enter__(self) -> Image:  # noqa: PYI034, Self is not in Python 3.9
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the layout."""
        os.close(self._layout)

    def numbered(self, number: int) -> Revision:
        """Give a revision; 0 is the last one.

        Raises:
            ArchiveError: there is no such revision.
        """
        if not self.revisions:
            raise ArchiveError(f"{self.name} is an image without a layer, so it has no revision")
        if not number:
            return self.revisions[-1]
        for revision in self.revisions:
            if revision.number == number:
                return revision
        last = self.revisions[-1].number
        if number < last:
            raise ArchiveError(
                f"{self.name} has no revision {number}: it was pruned, or is not in this layout",
                hint=f"archive_overlay log {self.name} lists its revisions",
            )
        only = "only revision 1" if last == 1 else f"only revisions 1 to {last}"
        raise ArchiveError(f"{self.name} has no revision {number}, {only}")

    def state(self, revision: Revision, *, without: Collection[tuple[str, int]] = ()) -> list[Piece]:
        """Give the pieces that, one on top of the other, are what a revision left: the oldest first.

        Args:
            revision: which one.
            without: places of pieces that are not to be used, besides those that are known to be damaged.

        Raises:
            ArchiveError: there are not enough.
        """
        return self._cover(self.stored.first, revision.number, without)

    def change_set(self, revision: Revision, *, without: Collection[tuple[str, int]] = ()) -> list[Piece]:
        """Give the pieces that are what a revision changed. See `state`."""
        return self.between(revision.previous, revision.number, without=without)

    def between(self, older: int, newer: int, *, without: Collection[tuple[str, int]] = ()) -> list[Piece]:
        """Give the pieces that are what the revisions after one, up to another one, changed. See `state`.

        Args:
            older, newer: numbers of the two; 0 for the older one is the state before the first.
        """
        return self._cover(max(older + 1, self.stored.first), newer, without)

    def usable(self, choose: Callable[[], list[Piece]]) -> list[Piece]:
        """Choose pieces that are there, and as large as the image says. Nothing of them is read.

        Args:
            choose: `state`, `change_set` or `between` of this image, called again if a piece is not there: a layer that was
                composed is in packs, too, as the change sets that it was made of.

        Raises:
            ArchiveError: there are not enough.
        """
        first = ""
        while True:
            try:
                pieces = choose()
            except ArchiveError as error:
                raise ArchiveError(first or error.message, hint=error.hint) from error
            faults = [(piece, fault) for piece in pieces if (fault := self.fault(piece))]
            if not faults:
                return pieces
            self.damaged.update((piece.place, fault) for piece, fault in faults)
            first = first or f"{faults[0][0].label} of {self.name}: {faults[0][1]}"

    def use(self, choose: Callable[[], list[Piece]], use: Callable[[list[Piece]], Result]) -> Result:
        """Use pieces; if they turn out to be damaged, use others in their place.

        Args:
            choose: see `usable`.
            use: what is done with them. It may be called again after it has failed.

        Raises:
            ArchiveError: it failed, and no pieces were damaged or there are no others.
        """
        failed: ArchiveError | None = None
        while True:
            try:
                pieces = self.usable(choose)
            except ArchiveError as error:
                raise failed or error from error
            try:
                return use(pieces)
            except ArchiveError as error:
                if not self._find_damage(pieces):
                    raise
                failed = error

    def fault(self, piece: Piece) -> str:
        """Say what is wrong with a piece, as far as can be said without reading it; "" if it is there, and large enough."""
        try:
            with Blobs(self._layout) as blobs:
                blobs.expect(piece.blob)
        except (ArchiveError, OSError) as error:
            return str(error)
        if piece.offset is not None and piece.offset + piece.size > piece.blob["size"]:
            return "the image layout is damaged: a blob of change sets ends too early"
        return ""

    def _find_damage(self, pieces: Iterable[Piece]) -> bool:
        """Compare the digests of pieces that are stored; say whether one was wrong of which that was not known."""
        known = len(self.damaged)
        for piece in pieces:
            try:
                with self._open_piece(piece) as file:
                    digest = hashlib.sha256()
                    while data := file.read(_BLOCK):
                        digest.update(data)
                fault = _difference("digest", f"sha256:{digest.hexdigest()}", piece.digest)
            except (ArchiveError, OSError) as error:
                fault = str(error)
            if fault:
                self.damaged[piece.place] = fault
        return len(self.damaged) > known

    def _open_piece(self, piece: Piece) -> BinaryIO:
        """Open a piece as it is stored."""
        with Blobs(self._layout) as blobs:
            if piece.offset is None:
                return open(blobs.open(piece.blob), "rb")
            ((_, data),) = read_shared(blobs, [piece])
            return io.BytesIO(data)

    def _cover(self, first: int, last: int, without: Collection[tuple[str, int]]) -> list[Piece]:
        found = self.stored.cover(first, last, without={*without, *self.damaged})
        if found is None:
            raise ArchiveError(
                f"{self.name}: the change sets of revisions {first} to {last} are not all in the layout",
                hint=f"archive_overlay verify {self.path} says what is missing",
            )
        return found

    @contextmanager
    def read(
        self,
        piece: Piece,
        *,
        wrong_diff_ids: dict[int, str] | None = None,
    ) -> Generator[TarReader, None, None]:
        """Read a piece, and in the end verify that it is what the image says.

        What fails meanwhile is an `ArchiveError` that names its revisions.

        Args:
            piece: which one.
            wrong_diff_ids: gets what is wrong with the diff ID, by the piece's last revision; None: that is an error.
        """
        try:
            with Blobs(self._layout) as blobs:
                if piece.offset is None:
                    fd = blobs.open(piece.blob)
                else:
                    ((_, data),) = read_shared(blobs, [piece])
                    fd = os.memfd_create("change set")
                    os.write(fd, data)
                    os.lseek(fd, 0, os.SEEK_SET)
            reader = Reader(fd, digests=True)
            try:
                yield TarReader(reader)
                reader.finish()
                _verify(reader, piece, wrong_diff_ids)
            finally:
                reader.close()
        except OSError as error:
            fail(f"cannot read {piece.label} of {self.name}", error)
        except ArchiveError as error:
            message = f"{piece.label} of {self.name}: {error.message}"
            raise ArchiveError(message, hint=error.hint) from error


@contextmanager
def opened_layout(path: str, paths: Paths) -> Generator[int, None, None]:
    """Open a layout to write to it; give its file descriptor. An OSError becomes an error that names it.

    Args:
        path: of the layout, resolved.
        paths: how to get there.
    """
    try:
        layout = paths.open(path)
        try:
            yield layout
        finally:
            os.close(layout)
    except OSError as error:
        fail(f"cannot write to the image layout {path}", error)


def open_image(text: str) -> Image:
    """Open an image.

    Args:
        text: LAYOUT or LAYOUT:TAG; see `references.find_image`.

    Raises:
        ArchiveError: there is no such image, or the layout is damaged.
    """
    return _open(text, numbered=False)[0]


def open_revision(text: str) -> tuple[Image, Revision]:
    """Open an image, and find a revision of it: the last one if there is no number.

    Args:
        text: LAYOUT, LAYOUT:TAG or LAYOUT:TAG@N; see `references.find_image`.

    Raises:
        ArchiveError: there is no such image or revision, or the layout is damaged.
    """
    image, number = _open(text, numbered=True)
    try:
        return image, image.numbered(number)
    except ArchiveError:
        image.close()
        raise


def _open(text: str, *, numbered: bool) -> tuple[Image, int]:
    """Open an image, and give the number of the revision that is meant.

    Revisions may be added meanwhile, and what those made superfluous deleted: then it is looked for again.
    """
    found = find_image(text, numbered=numbered)
    while True:
        try:
            return _open_found(found), found.number
        except ArchiveError:
            again = find_image(text, numbered=numbered)
            if again == found:
                raise
            found = again


def _open_found(found: Found) -> Image:
    path = found.path
    try:
        layout = os.open(path, READ_TOP_DIRECTORY)
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    try:
        return Image(path, found.name, layout, open_stored(layout, found.descriptor, whole=False))
    except OSError as error:
        os.close(layout)
        fail(f"cannot read the image layout {path}", error)
    except ArchiveError as error:
        os.close(layout)
        raise ArchiveError(f"cannot read {path}: {error.message}", hint=error.hint) from error
    except BaseException:
        os.close(layout)
        raise


def _verify(reader: Reader, piece: Piece, wrong_diff_ids: dict[int, str] | None) -> None:
    if fault := _difference("digest", reader.digest(), piece.digest):
        raise ArchiveError(f"it is damaged: {fault}")
    if fault := _difference("diff ID", reader.data_digest(), piece.diff_id):
        # podman 4.3 and skopeo 1.9 leave the zeros at the end of a tar out when they compress it for zstd:chunked, and
        # keep the diff ID of the whole.
        if wrong_diff_ids is None:
            raise ArchiveError(
                f"it is damaged, or compressed for zstd:chunked: {fault}",
                hint="its digest is right, so extract --force takes it as it is",
            )
        wrong_diff_ids[piece.last] = fault


def _difference(what: str, found: str, said: str) -> str:
    return f"its {what} is {found}, but the image says {brief(said) or 'none'}" if found != said else ""


def _revisions(stored: StoredImage) -> list[Revision]:
    found: list[Revision] = []
    for kept in stored.kept():
        found.append(_revision(kept, found[-1].number if found else 0))
    return found


def _revision(kept: Kept, previous: int) -> Revision:
    history = {"created_by": kept.created_by, "comment": kept.comment}
    return Revision(
        number=kept.number,
        previous=previous,
        created=_text(kept.annotations, read.CREATED) or kept.created,
        created_by=kept.created_by,
        comment=kept.comment,
        provenance=read_provenance(kept.annotations, history),
        chains=tuple(chains_in(kept.annotations)),
    )


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""
