"""The revisions of an image in an OCI image layout: each of its layers, and what is known of it.

Source: OCI image specification, config.md, "history" and "rootfs.diff_ids"; manifest.md, "layers".
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from archive_overlay.errors import ArchiveError, brief, fail
from archive_overlay.history.references import find_image
from archive_overlay.layout import read
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.provenance import read_provenance
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.system.record import Record
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType
    from typing import Any, Callable

    from archive_overlay.history.references import Found
    from archive_overlay.layout.provenance import Provenance


class Revision(Record):
    """A layer of an image.

    Attributes:
        number: 1 is the lowest layer.
        digest, diff_id: of the layer as it is stored, and as a tar.
        size: of the layer as it is stored, in bytes.
        created: when, as RFC 3339 has it; "" if that is not known.
        created_by, comment: from the image's history; "" if there is nothing.
        provenance: where it comes from; None if this program did not make it.
        descriptor: as in the manifest.
    """

    number: int
    digest: str
    diff_id: str
    size: int
    created: str
    created_by: str
    comment: str
    provenance: Provenance | None
    descriptor: Mapping[str, Any]


class Image:
    """An image of a layout, open for reading. Use it as a context manager.

    Attributes:
        name: the path of the layout, and the tag of the image there.
        revisions: all of them, the lowest layer first.
    """

    def __init__(self, path: str, tag: str, layout: int, revisions: list[Revision]) -> None:
        self.name = f"{path}:{tag}" if tag else path
        self.revisions = revisions
        self._layout = layout

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
        there = len(self.revisions)
        if not there:
            raise ArchiveError(f"{self.name} is an image without a layer, so it has no revision")
        if number > there:
            only = "only revision 1" if there == 1 else f"only revisions 1 to {there}"
            raise ArchiveError(f"{self.name} has no revision {number}, {only}")
        return self.revisions[number - 1]

    @contextmanager
    def layer(
        self,
        revision: Revision,
        *,
        progress: Callable[[int], None] | None = None,
        wrong_diff_ids: dict[int, str] | None = None,
    ) -> Generator[TarReader, None, None]:
        """Read a revision's layer, and in the end verify that it is what the image says.

        What fails meanwhile is an `ArchiveError` that names the revision.

        Args:
            revision: which one.
            progress: called with the number of bytes that were read from the layer, again and again.
            wrong_diff_ids: gets what is wrong with the diff ID, by the revision's number; None: that is an error.
        """
        try:
            with Blobs(self._layout) as blobs:
                fd = blobs.open(revision.descriptor)
            reader = Reader(fd, digests=True, progress=progress)
            try:
                yield TarReader(reader)
                reader.finish()
                _verify(reader, revision, wrong_diff_ids)
            finally:
                reader.close()
        except OSError as error:
            fail(f"cannot read revision {revision.number} of {self.name}", error)
        except ArchiveError as error:
            message = f"revision {revision.number} of {self.name}: {error.message}"
            raise ArchiveError(message, hint=error.hint) from error


def open_image(text: str) -> Image:
    """Open an image.

    Args:
        text: LAYOUT or LAYOUT:TAG; see `references.find_image`.

    Raises:
        ArchiveError: there is no such image, or the layout is damaged.
    """
    return _open(find_image(text, numbered=False))


def open_revision(text: str) -> tuple[Image, Revision]:
    """Open an image, and find a revision of it: the last one if there is no number.

    Args:
        text: LAYOUT, LAYOUT:TAG or LAYOUT:TAG@N; see `references.find_image`.

    Raises:
        ArchiveError: there is no such image or revision, or the layout is damaged.
    """
    found = find_image(text, numbered=True)
    image = _open(found)
    try:
        return image, image.numbered(found.number)
    except ArchiveError:
        image.close()
        raise


def _open(found: Found) -> Image:
    path = found.path
    try:
        layout = os.open(path, READ_TOP_DIRECTORY)
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    try:
        return Image(path, found.name, layout, _revisions(*read.read_image(layout, found.descriptor)))
    except OSError as error:
        os.close(layout)
        fail(f"cannot read the image layout {path}", error)
    except ArchiveError as error:
        os.close(layout)
        raise ArchiveError(f"cannot read {path}: {error.message}", hint=error.hint) from error
    except BaseException:
        os.close(layout)
        raise


def _verify(reader: Reader, revision: Revision, wrong_diff_ids: dict[int, str] | None) -> None:
    if fault := _difference("digest", reader.digest(), revision.digest):
        raise ArchiveError(f"it is damaged: {fault}")
    if fault := _difference("diff ID", reader.data_digest(), revision.diff_id):
        # podman 4.3 and skopeo 1.9 leave the zeros at the end of a tar out when they compress it for zstd:chunked, and
        # keep the diff ID of the whole.
        if wrong_diff_ids is None:
            raise ArchiveError(
                f"it is damaged, or compressed for zstd:chunked: {fault}",
                hint="its digest is right, so extract --force takes it as it is",
            )
        wrong_diff_ids[revision.number] = fault


def _difference(what: str, found: str, said: str) -> str:
    return f"its {what} is {found}, but the image says {brief(said) or 'none'}" if found != said else ""


def _revisions(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> list[Revision]:
    layers = manifest["layers"]
    history = [
        each
        for each in config.get("history", [])
        if isinstance(each, dict) and each.get("empty_layer") is not True
    ]
    if len(history) != len(layers):
        history = [{} for _ in layers]  # nobody knows which entry is of which layer
    diff_ids = config["rootfs"]["diff_ids"]
    return [_revision(i + 1, layers[i], diff_ids[i], history[i]) for i in range(len(layers))]


def _revision(
    number: int, descriptor: Mapping[str, Any], diff_id: object, history: Mapping[str, Any]
) -> Revision:
    annotations = descriptor.get("annotations")
    known = annotations if isinstance(annotations, dict) else {}
    return Revision(
        number=number,
        digest=_text(descriptor, "digest"),
        diff_id=diff_id if isinstance(diff_id, str) else "",
        size=descriptor["size"],
        created=_text(known, read.CREATED) or _text(history, "created"),
        created_by=_text(history, "created_by"),
        comment=_text(history, "comment"),
        provenance=read_provenance(known, history),
        descriptor=descriptor,
    )


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""
