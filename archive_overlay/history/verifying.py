"""Whether a layout is whole: all that its images refer to is there, and each revision can be had.

Nothing is believed to be good because something else is: each image is looked at by itself, and damage of one leaves the
others verified. The lock is not taken. So what seems to be damaged is looked at again if somebody wrote meanwhile.

Source: OCI image specification, image-layout.md; image-index.md; manifest.md; descriptor.md.
"""

from __future__ import annotations

import hashlib
import os

from archive_overlay.errors import ArchiveError
from archive_overlay.history.revisions import Image
from archive_overlay.layout import read
from archive_overlay.layout.blobs import Blobs
from archive_overlay.layout.collect import unneeded_blobs
from archive_overlay.layout.packs import history_of
from archive_overlay.layout.reachable import INDEXES, MANIFESTS, UnknownError
from archive_overlay.layout.stored import REVISION, open_stored
from archive_overlay.system.activity import NOW
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from archive_overlay.layout.collect import Unneeded
    from archive_overlay.layout.packs import PackEntry
    from archive_overlay.layout.pieces import Piece

# Of so many damaged pieces of an image each is told which revisions it takes with it.
_MOST_BLAMED = 100
_MOST_ATTEMPTS = 20
# Of indexes in indexes.
_DEEPEST = 8
# What programs are about to refer to, or were done with just now, is not called garbage.
_OLD = 3600
_BLOCK = 1 << 20


class Finding(Record):
    """Something that is damaged.

    Attributes:
        image: the tag; "" if it has none, or it is of no image.
        digest: of the blob; "" if it is none.
        message: what is wrong.
        extract: numbers of the revisions that cannot be extracted because of it, as runs of first and last.
        changes: numbers of the revisions of which is lost what they changed.
        is_spare: whether it is known that no revision needs it.
    """

    image: str
    digest: str
    message: str
    extract: Sequence[tuple[int, int]] = ()
    changes: Sequence[tuple[int, int]] = ()
    is_spare: bool = False


class Verified(Record):
    """What is known of an image.

    Attributes:
        tag: its tag; "" if it has none.
        revisions: how many there are.
        lost_count: how many of them cannot be had, state and changes.
        usable, lost: numbers of those that can be had, and of the others, as runs of first and last.
    """

    tag: str
    revisions: int
    lost_count: int
    usable: Sequence[tuple[int, int]]
    lost: Sequence[tuple[int, int]]


class Report(Record):
    """What has been found.

    Attributes:
        findings: what is damaged.
        images: of those whose manifest and config could be read.
        notes: what could not be looked at, because this program does not know it.
        unneeded: old blobs that nothing refers to; None: that cannot be told.
    """

    findings: Sequence[Finding]
    images: Sequence[Verified]
    notes: Sequence[str]
    unneeded: Unneeded | None


def verify(
    path: str,
    layout: int,
    *,
    read_data: bool,
) -> Report:
    """Look at all that is in a layout.

    Args:
        path: of the layout, for messages.
        layout: file descriptor of its directory.
        read_data: whether digests and diff IDs of all data are compared, too.

    Raises:
        ArchiveError: its index is damaged.
        OSError: it cannot be read.
    """
    good: set[object] = set()
    for _ in range(_MOST_ATTEMPTS):
        before = read.read_index_file(layout)
        run = _Run(path, layout, good, read_data=read_data)
        report = run.report(read.read_index(layout))
        if not report.findings or read.read_index_file(layout) == before:
            break
    return report


class _Run:
    """One look at a layout.

    Args:
        good: places of pieces and digests of blobs that have been read, and are what they should be.
    """

    def __init__(
        self,
        path: str,
        layout: int,
        good: set[object],
        *,
        read_data: bool,
    ) -> None:
        self._path = path
        self._layout = layout
        self._good = good
        self._read_data = read_data
        self._findings: list[Finding] = []
        self._images: list[Verified] = []
        self._notes: list[str] = []
        self._histories: set[str] = set()
        self._bad: dict[tuple[str, int], str] = {}  # pieces, by their places

    def report(self, index: Mapping[str, Any]) -> Report:
        listed = [each for each in index["manifests"] if read.is_history(each)]
        self._histories = {str(each.get("digest")) for each in listed}
        by_tag: dict[str, object] = {}
        for descriptor in read.images(index):
            tag = read.tag_of(descriptor)
            if tag and by_tag.setdefault(tag, descriptor.get("digest")) != descriptor.get("digest"):
                self._find(tag, "", "the tag names several images")
            self._look_at(descriptor, tag)
        unneeded = None
        if not self._findings and not self._notes:
            try:
                unneeded = unneeded_blobs(self._layout, index, older=_OLD)
            except (ArchiveError, OSError, UnknownError) as error:
                self._find("", "", str(error))
        return Report(findings=self._findings, images=self._images, notes=self._notes, unneeded=unneeded)

    def _find(self, tag: str, digest: str, message: str, **lost: Any) -> None:
        message = message.replace("the image layout is damaged: ", "")
        self._findings.append(Finding(image=tag, digest=digest, message=message, **lost))

    def _look_at(self, descriptor: Mapping[str, Any], tag: str, depth: int = 0) -> None:
        """Look at an entry of an index, and all that it leads to."""
        media_type = descriptor.get("mediaType", read.MANIFEST_TYPE)
        digest = str(descriptor.get("digest"))
        try:
            if media_type == read.MANIFEST_TYPE and self._is_image(descriptor):
                self._look_at_image(descriptor, tag)
            elif media_type in INDEXES and depth < _DEEPEST:
                with Blobs(self._layout) as blobs:
                    listed = read.read_json_blob(blobs, descriptor).get("manifests")
                for each in listed if isinstance(listed, list) else ():
                    if isinstance(each, dict):
                        self._look_at(each, tag, depth + 1)
            elif media_type in MANIFESTS:
                self._look_at_blobs(descriptor, tag)
            else:
                self._notes.append(
                    f"{tag or digest} is of type {media_type}, which this program does not know: it was not verified"
                )
        except (ArchiveError, OSError) as error:
            message = error.message if isinstance(error, ArchiveError) else str(error)
            self._find(tag, digest, message)

    def _is_image(self, descriptor: Mapping[str, Any]) -> bool:
        """Say whether a manifest is that of an image, and not of something else that has blobs."""
        with Blobs(self._layout) as blobs:
            config = read.read_json_blob(blobs, descriptor).get("config")
        media_type = config.get("mediaType", "") if isinstance(config, dict) else ""
        return not media_type or "image" in str(media_type) or "container" in str(media_type)

    def _look_at_blobs(self, descriptor: Mapping[str, Any], tag: str) -> None:
        """Look at what a manifest refers to that is no image of OCI: blobs, whatever they are."""
        with Blobs(self._layout) as blobs:
            manifest = read.read_json_blob(blobs, descriptor)
        layers = manifest.get("layers")
        for part in (manifest.get("config"), *(layers if isinstance(layers, list) else ())):
            if isinstance(part, dict) and (fault := self._fault_of_blob(part)):
                self._find(tag, str(part.get("digest")), fault)

    def _look_at_image(self, descriptor: Mapping[str, Any], tag: str) -> None:
        stored = open_stored(self._layout, descriptor, whole=False)
        with Image(self._path, tag, os.dup(self._layout), stored) as image:
            if history := history_of(stored.manifest["annotations"]):
                self._look_at_history(image, history)
            for piece, layer in zip(stored.layers, stored.manifest["layers"]):
                said = (layer.get("annotations") or {}).get(REVISION)
                ours = f"{piece.first}-{piece.last}" if piece.first < piece.last else str(piece.first)
                if said is not None and said != ours:
                    self._find(
                        tag,
                        piece.digest,
                        f"a layer says that it has the revisions {str(said)[:100]!r}, but by its place it has {ours}",
                    )
            pieces = stored.pieces(stored.first, stored.last)
            if self._read_data:
                NOW.expected += sum(each.size for each in pieces if each.place not in self._good)
            bad = {}
            for piece in pieces:
                if fault := self._fault_of_piece(image, piece):
                    bad[piece.place] = fault
            self._look_at_revisions(image, pieces, bad)

    def _look_at_history(self, image: Image, history: Mapping[str, Any]) -> None:
        """Look at the packs of an image."""
        stored, tag = image.stored, image.tag
        digest = str(history["digest"])
        packs = stored.packs
        if not stored.lost and digest not in self._histories:
            self._find(
                tag,
                digest,
                "index.json does not list the history, so other programs may remove it as garbage",
            )
        for entry in packs:
            self._look_at_pack(image, entry)
        for line in stored.lost:
            self._find(tag, digest, f"revisions are lost: {line}")

    def _look_at_pack(self, image: Image, entry: PackEntry) -> None:
        try:
            revisions, contained = image.stored.content(entry)
        except (ArchiveError, OSError):
            return  # the image knows that it is lost
        numbers = [each.number for each in revisions]
        ends = [*numbers, *(piece.first for piece in contained), *(piece.last for piece in contained)]
        digest = str(entry.descriptor.get("digest"))
        if ends and not entry.first <= min(ends) <= max(ends) <= entry.last:
            self._find(
                image.tag,
                digest,
                f"a pack of revisions {entry.first} to {entry.last} has others: {min(ends)} to {max(ends)}",
            )
        if numbers != sorted(set(numbers)):
            self._find(image.tag, digest, "the revisions of a pack are not in order")
        if self._read_data:
            # A blob of many pieces has its own digest.
            shared = {str(each.blob["digest"]): each.blob for each in contained if each.offset is not None}
            for name, blob in shared.items():
                if fault := self._fault_of_data(blob):
                    self._find(image.tag, name, fault)

    def _look_at_revisions(
        self, image: Image, pieces: Sequence[Piece], bad: Mapping[tuple[str, int], str]
    ) -> None:
        """Say which revisions can be had without pieces that are damaged."""
        known = _Known(image, pieces)
        lost = known.lost(bad)
        numbers = [each.number for each in image.revisions]
        for position, (place, fault) in enumerate(bad.items()):
            alone = known.lost({place}) if position < _MOST_BLAMED else ((), ())
            piece = next(each for each in pieces if each.place == place)
            self._find(
                image.tag,
                piece.digest,
                f"{piece.label}: {fault}",
                extract=runs(alone[0], numbers),
                changes=runs(alone[1], numbers),
                is_spare=position < _MOST_BLAMED and not any(alone),
            )
        gone = {*lost[0], *lost[1]}
        if gone and not bad:
            self._find(
                image.tag,
                str(image.stored.descriptor.get("digest")),
                "change sets are missing that revisions are made of",
                extract=runs(lost[0], numbers),
                changes=runs(lost[1], numbers),
            )
        self._images.append(
            Verified(
                tag=image.tag,
                revisions=len(numbers),
                lost_count=len(gone),
                usable=runs([each for each in numbers if each not in gone], numbers),
                lost=runs([each for each in numbers if each in gone], numbers),
            )
        )

    def _fault_of_piece(self, image: Image, piece: Piece) -> str:
        """Say what is wrong with a piece; "" for nothing."""
        if piece.place in self._bad:
            return self._bad[piece.place]
        fault = image.fault(piece)
        if not fault and self._read_data and piece.place not in self._good:
            try:
                with image.read(piece) as tar:
                    for _ in tar.entries():
                        pass
                self._good.add(piece.place)
            except ArchiveError as error:
                fault = error.message.replace(f"{piece.label} of {image.name}: ", "", 1)
        if fault:
            self._bad[piece.place] = fault
        return fault

    def _fault_of_blob(self, descriptor: Mapping[str, Any]) -> str:
        try:
            with Blobs(self._layout) as blobs:
                blobs.expect(descriptor)
        except (ArchiveError, OSError) as error:
            return str(error)
        return self._fault_of_data(descriptor) if self._read_data else ""

    def _fault_of_data(self, descriptor: Mapping[str, Any]) -> str:
        """Compare the digest of a blob that is there."""
        said = str(descriptor["digest"])
        if said in self._good:
            return ""
        digest = hashlib.sha256()
        try:
            with Blobs(self._layout) as blobs:
                fd = blobs.open(descriptor)
            NOW.expected += os.fstat(fd).st_size
            with open(fd, "rb") as file:
                while data := file.read(_BLOCK):
                    digest.update(data)
                    NOW.read += len(data)
        except (ArchiveError, OSError) as error:
            return str(error)
        if f"sha256:{digest.hexdigest()}" != said:
            return f"its digest is sha256:{digest.hexdigest()}"
        self._good.add(said)
        return ""


class _Known:
    """The pieces of an image, and which of its revisions can be had with some of them."""

    def __init__(self, image: Image, pieces: Iterable[Piece]) -> None:
        self._revisions = image.revisions
        self._first = image.stored.first
        self._by_first: dict[int, list[tuple[int, tuple[str, int]]]] = {}
        for piece in pieces:
            self._by_first.setdefault(piece.first, []).append((piece.last, piece.place))

    def lost(self, bad: Collection[tuple[str, int]]) -> tuple[Sequence[int], Sequence[int]]:
        """Give the revisions whose state cannot be had without some pieces, and those whose changes cannot."""
        reached = self._reached(self._first, None, bad)
        states = [each.number for each in self._revisions if each.number not in reached]
        changes = []
        for each in self._revisions:
            first = max(each.previous + 1, self._first)
            if each.number not in self._reached(first, each.number, bad):
                changes.append(each.number)
        return states, changes

    def _reached(self, first: int, last: int | None, bad: Collection[tuple[str, int]]) -> set[int]:
        """Give the numbers up to which pieces are there, one after the other from a first number on."""
        pending, reached = [first - 1], {first - 1}
        while pending:
            for end, place in self._by_first.get(pending.pop() + 1, ()):
                if end not in reached and place not in bad and (last is None or end <= last):
                    reached.add(end)
                    pending.append(end)
        return reached


def runs(numbers: Iterable[int], among: Sequence[int]) -> list[tuple[int, int]]:
    """Give numbers as runs of first and last; those that are not among some others do not part a run.

    Args:
        numbers: in order.
        among: in order, and all of these numbers are in there.
    """
    found: list[tuple[int, int]] = []
    followers = dict(zip(among, among[1:]))
    for number in numbers:
        if found and followers.get(found[-1][1]) == number:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
