"""Write to an OCI image layout: blobs first, flushed; index.json last, in one step; then delete superfluous blobs.

Whoever writes has the lock of the layout (see `lock`). Not every program takes it. So index.json is exchanged, and what comes
out is compared with what was read: if it is something else, the exchange is taken back, and the caller begins again with
what is there now.

What a publication makes superfluous stays until the next one, because somebody may be reading it.

Source: OCI image specification, image-layout.md.
"""

from __future__ import annotations

import hashlib
import json
import os

from archive_overlay.destination.names import is_staging_name
from archive_overlay.errors import ArchiveError
from archive_overlay.layout.blobs import BLOBS, Blobs
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.reachable import UnknownError, reachable
from archive_overlay.layout.read import (
    INDEX_FILE,
    INDEX_TYPE,
    REF_NAME,
    VERSION_FILE,
    check_json,
    has_manifest,
    is_history,
    is_tagged,
    lost_index,
    parse_index,
    read_index,
    read_index_file,
)
from archive_overlay.system import kernel
from archive_overlay.system.open_flags import READ, READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from typing import Any, Callable, TypeVar

    from archive_overlay.destination.staging import Staging

    Done = TypeVar("Done")

# Before something is deleted, all manifests are read. Beyond this many, it is left to `archive_overlay gc`.
_MOST_READ = 200
# Programs without the lock may be faster again and again, but not for ever.
_MOST_ATTEMPTS = 20


class MovedError(Exception):
    """Another program has changed the layout's index in the meantime."""


class Edit:
    """What is to be written to a layout. Its files are written elsewhere, so what fails there leaves nothing in it.

    Args:
        layout: file descriptor of the layout's directory, which this process has locked.
        staging: where files are written.

    Attributes:
        is_new: whether there is no layout yet.
        index: as it was read.

    Raises:
        ArchiveError: the layout is damaged, or something else.
        OSError: it cannot be read.
    """

    def __init__(self, layout: int, staging: Staging) -> None:
        self._layout = layout
        self._staging = staging
        self._flush = staging.flush
        self._placed: set[str] = set()
        self._staged: set[str] = set()  # blobs that were written in staging, whatever has become of them
        self._read_layout()

    def begin(self) -> None:
        """Begin again, after a `MovedError`: what was to be written is forgotten. Raises as the class."""
        for name in (VERSION_FILE, INDEX_FILE):
            try:
                os.unlink(name, dir_fd=self._staging.directory)
            except FileNotFoundError:
                pass
        self._read_layout()

    def _read_layout(self) -> None:
        self.is_new = is_new(self._layout)
        self._blobs: dict[str, str] = {}  # names in staging, by those in the layout
        self._discarded: set[str] = set()
        self._read = b""
        self.index: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
        if not self.is_new:
            read_index(self._layout)  # is it a layout?
            self._read = read_index_file(self._layout)
            self.index = parse_index(self._read)
        self._manifests: list[dict[str, Any]] = list(self.index["manifests"])

    def add_file(self, name: str, digest: str) -> None:
        """Add a file that was written in staging as a blob."""
        blob = digest.partition(":")[2]
        if blob in self._placed:
            return
        fd = os.open(name, READ, dir_fd=self._staging.directory)
        try:
            self._flush.file(fd)
        finally:
            os.close(fd)
        self._blobs[blob] = name

    def staged(self) -> dict[str, str]:
        """Return the names in staging of the blobs that are going to be published, by digest."""
        return {f"sha256:{blob}": name for blob, name in self._blobs.items()}

    def read_staged(self, name: str) -> bytes:
        """Return what is in a small file that was written in staging."""
        with open(os.open(name, READ, dir_fd=self._staging.directory), "rb") as file:
            return file.read()

    def add_blob(self, data: bytes) -> dict[str, Any]:
        """Add a blob, and give its digest and size."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._placed and digest not in self._blobs:
            if digest not in self._staged:
                self._write(digest, data)
                self._staged.add(digest)
            self._blobs[digest] = digest
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def add_json(self, value: object) -> dict[str, Any]:
        """Add a value as a blob, and give its digest and size.

        Raises:
            ArchiveError: it is larger than what this program reads.
        """
        data = _dump(value)
        check_json(data, f"{BLOBS}/{hashlib.sha256(data).hexdigest()}")  # what is written must be read again
        return self.add_blob(data)

    def set_tag(self, tag: str, descriptor: Mapping[str, Any], annotations: Mapping[str, str] = {}) -> None:
        """Give a tag to an image, perhaps in place of another one, whose other annotations it keeps.

        Args:
            tag: it.
            descriptor: of the image.
            annotations: of the tag, besides those that it has.
        """
        before: dict[str, Any] = {}
        for each in self._manifests:
            if is_tagged(each, tag):
                before = {**each["annotations"], **before}
        self.remove_tag(tag)
        self._manifests.append({**descriptor, "annotations": {**before, **annotations, REF_NAME: tag}})

    def annotate_tag(self, tag: str, annotations: Mapping[str, str]) -> None:
        """Say more of a tag that is there."""
        for position, each in enumerate(self._manifests):
            if is_tagged(each, tag):
                said = {**each["annotations"], **annotations}
                self._manifests[position] = {**each, "annotations": said}

    def remove_tag(self, tag: str) -> None:
        """Take a tag away; the image it names is not listed any more."""
        self._manifests = [each for each in self._manifests if not is_tagged(each, tag)]

    def list_unnamed(self, descriptor: dict[str, Any]) -> None:
        """List a blob that is no image, so that programs that collect garbage leave it alone."""
        if all(each.get("digest") != descriptor["digest"] for each in self._manifests):
            self._manifests.append(descriptor)

    def discard(self, digests: Iterable[str]) -> None:
        """Delete blobs after the publication, those that nothing refers to by then."""
        self._discarded.update(digests)

    def drop_histories(self, digests: Collection[str]) -> None:
        """List histories no longer that nothing needs."""
        self._manifests = [
            each for each in self._manifests if not (is_history(each) and each.get("digest") in digests)
        ]

    def collect(self) -> None:
        """Delete what is to be discarded. The caller knows that nothing refers to it, by the index that was read.

        Raises:
            MovedError: another program has changed the index: it may need some of it.
            OSError: something cannot be written or deleted.
        """
        if self._manifests != self.index["manifests"]:
            self._write(INDEX_FILE, _dump({**self.index, "manifests": self._manifests}))
            self._publish_index()
            self._flush.file(self._layout)
        else:
            self._expect_unmoved()
        self._delete(self._discarded)

    def publish(self) -> None:
        """Make it visible: blobs first, and the index when all of them are there.

        Raises:
            MovedError: another program has changed the index. Call `begin`, and add everything again.
            ArchiveError: the index has become too large.
            OSError: it cannot be written.
        """
        self._expect_unmoved()
        if self.is_new:
            self._begin_layout()
        unneeded = self._drop_unneeded()
        index = _dump({**self.index, "manifests": self._manifests})
        check_json(index, INDEX_FILE)
        self._write(INDEX_FILE, index)
        if self._blobs:
            self._publish_blobs()
        self._flush.file(self._layout)
        self._publish_index()
        self._flush.file(self._layout)
        self._delete(unneeded)

    def _begin_layout(self) -> None:
        """Make a layout without images, before it has a blob: so an index that is lost later shows."""
        self._read = _dump(self.index)
        self._write(VERSION_FILE, b'{"imageLayoutVersion": "1.0.0"}\n')
        self._write(INDEX_FILE, self._read)
        # Every layout has them, one without images too.
        directories: list[int] = []
        try:
            self._open_blob_directories(directories)
        finally:
            for directory in directories:
                os.close(directory)
        self._replace(VERSION_FILE)
        self._replace(INDEX_FILE)
        self._flush.file(self._layout)
        self.is_new = False

    def _drop_unneeded(self) -> set[str]:
        """Take histories that nothing needs out of the index; give the digests of what can be deleted."""
        if not self._discarded:
            return set()
        images = [each for each in self._manifests if not is_history(each)]
        # What is about to be published is in staging: it needs what it needs, whatever it is.
        written = {f"sha256:{name}" for name in self._blobs}
        try:
            with Blobs(self._layout) as blobs:
                old = [each for each in images if each.get("digest") not in written]
                needed = reachable(blobs, old, at_most=_MOST_READ)
                needed |= self._needed_by_new(blobs, written)
        except (ArchiveError, UnknownError, OSError):
            return set()  # unknown: nothing is deleted
        self._manifests = [
            each
            for each in self._manifests
            if not (is_history(each) and each.get("digest") in self._discarded - needed)
        ]
        return self._discarded - needed - written

    def _needed_by_new(self, blobs: Blobs, written: set[str]) -> set[str]:
        """Return the digests that documents in staging have in them: any that they name."""
        found: set[str] = set()
        for blob, name in self._blobs.items():
            if name != blob:
                continue  # a layer
            data = self.read_staged(name)
            found |= _digests_in(data)
            packs = _packs_in(data)
            found |= reachable(
                blobs, [each for each in packs if each.get("digest") not in written], at_most=_MOST_READ
            )
        # Of what they name, histories name more.
        for each in self._manifests:
            if is_history(each) and each.get("digest") in found - written:
                found |= reachable(blobs, [each], at_most=_MOST_READ)
        return found

    def _publish_blobs(self) -> None:
        directories: list[int] = []
        try:
            self._open_blob_directories(directories)
            for blob, name in self._blobs.items():
                os.rename(name, blob, src_dir_fd=self._staging.directory, dst_dir_fd=directories[-1])
                self._placed.add(blob)
            for directory in reversed(directories):
                self._flush.file(directory)
        finally:
            for directory in directories:
                os.close(directory)

    def _open_blob_directories(self, opened: list[int]) -> None:
        """Open the directories of blobs, the outer one first, and make those that are missing.

        Args:
            opened: gets them, to be closed by the caller.
        """
        above = self._layout
        for name in BLOBS.split("/"):
            try:
                os.mkdir(name, 0o755, dir_fd=above)
            except FileExistsError:
                pass
            above = os.open(name, READ_DIRECTORY, dir_fd=above)
            opened.append(above)

    def _publish_index(self) -> None:
        self._expect_unmoved()
        here, there = self._staging.directory, self._layout
        try:
            kernel.exchange(INDEX_FILE, here, INDEX_FILE, there)
        except kernel.CannotExchangeError:
            self._replace(INDEX_FILE)
            return
        if read_index_file(here) != self._read:
            kernel.exchange(INDEX_FILE, here, INDEX_FILE, there)
            raise MovedError

    def _expect_unmoved(self) -> None:
        if is_new(self._layout) != self.is_new:
            raise MovedError
        if not self.is_new and read_index_file(self._layout) != self._read:
            raise MovedError

    def _delete(self, digests: Iterable[str]) -> None:
        if not digests:
            return
        # What was published stays published, whatever an annotation named; and `gc` deletes what is left.
        try:
            with Blobs(self._layout) as blobs:
                for digest in digests:
                    try:
                        blobs.delete(digest)
                    except (ArchiveError, OSError):
                        pass
        except (ArchiveError, OSError):
            pass

    def _replace(self, name: str) -> None:
        os.rename(name, name, src_dir_fd=self._staging.directory, dst_dir_fd=self._layout)

    def _write(self, name: str, data: bytes) -> None:
        fd = self._staging.create_file(name)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            self._flush.file(fd)


def until_published(edit: Edit, path: str, work: Callable[[], Done]) -> Done:
    """Do work that ends in a publication, and repeat it as long as another program is faster.

    Args:
        edit: is published by the work.
        path: of the layout, for messages.
        work: looks at `edit.index`, adds to `edit`, and publishes it.

    Returns:
        What the work gives.

    Raises:
        ArchiveError: other programs change the index all the time; or as the work.
        OSError: as the work.
    """
    for _ in range(_MOST_ATTEMPTS):
        try:
            return work()
        except MovedError:
            edit.begin()
    raise ArchiveError(
        f"the image layout {path} was changed by another program {_MOST_ATTEMPTS} times while this one tried to write to it",
        hint=f"let it take the lock: flock {quoted(path)} PROGRAM ...",
    )


def is_new(layout: int) -> bool:
    """Return whether a directory is to become a layout: it is empty but for what killed runs left.

    An index comes before the first blob, so where there are manifests and no index, that is lost.

    Raises:
        ArchiveError: there is something else in it, or a layout without its index.
    """
    names = {name for name in os.listdir(layout) if not is_staging_name(name, "")}
    if INDEX_FILE in names:
        return False
    if names - {"blobs", VERSION_FILE}:
        raise ArchiveError(
            f"archive-to names a directory with other contents, not an image layout: it has no {INDEX_FILE}",
            hint="name a directory that is empty or does not exist yet",
        )
    if "blobs" in names and has_manifest(layout):
        raise lost_index()
    return True


def _digests_in(data: bytes) -> set[str]:
    import re

    return {match.decode() for match in re.findall(rb"sha256:[0-9a-f]{64}", data)}


def _packs_in(data: bytes) -> list[dict[str, Any]]:
    """Return the descriptors of packs in a document; none if it is no history index."""
    if b'"manifests":[' not in data:
        return []
    listed = json.loads(data).get("manifests")
    return listed if isinstance(listed, list) else []


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
