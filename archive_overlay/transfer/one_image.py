"""A layout in staging that has one image, and of that only what is to be sent.

So what is read is what was judged, whatever becomes of the tag and of the blobs meanwhile. And nothing leaves the host
that is not what its digest says: skopeo compares digests, but sends first.

Source: OCI image specification, image-layout.md; linkat(2); open(2), "O_TMPFILE", for links by way of /proc.
"""

from __future__ import annotations

import hashlib
import json
import os

from archive_overlay.layout.blobs import BLOBS, Blobs, blob_path, damaged
from archive_overlay.layout.read import INDEX_FILE, REF_NAME, VERSION_FILE
from archive_overlay.system import tree
from archive_overlay.system.activity import NOW
from archive_overlay.system.open_flags import CREATE, READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import TracebackType
    from typing import Any

    from archive_overlay.destination.staging import Staging
    from archive_overlay.layout.stored import StoredImage

_DIRECTORY = "image"
_TAG = "image"
_BLOCK = 1 << 20


class OneImage:
    """The layout. Use it as a context manager.

    Args:
        layout: file descriptor of the directory of the layout that has the image.
        image: it.
        staging: where it is made.

    Attributes:
        path: of its directory.
        reference: its name, as skopeo takes it.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, layout: int, image: StoredImage, staging: Staging) -> None:
        self._layout = layout
        self._image = image
        self._staging = staging
        self._lent: set[str] = set()
        # The path of a directory that is open has no link in it.
        self.path = f"{os.readlink(f'/proc/self/fd/{staging.directory}')}/{_DIRECTORY}"
        self.reference = f"oci:{self.path}:{_TAG}"

    def __enter__(self) -> OneImage:  # noqa: PYI034, Self is not in Python 3.9
        for name in (_DIRECTORY, f"{_DIRECTORY}/blobs", f"{_DIRECTORY}/{BLOBS}"):
            os.mkdir(name, 0o700, dir_fd=self._staging.directory)
        descriptor = {key: self._image.descriptor[key] for key in ("mediaType", "digest", "size")}
        index = {"schemaVersion": 2, "manifests": [{**descriptor, "annotations": {REF_NAME: _TAG}}]}
        self._write(VERSION_FILE, b'{"imageLayoutVersion": "1.0.0"}\n')
        self._write(INDEX_FILE, json.dumps(index).encode())
        self._blobs = os.open(f"{_DIRECTORY}/{BLOBS}", READ_DIRECTORY, dir_fd=self._staging.directory)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._blobs)
        tree.remove(_DIRECTORY, self._staging.directory)

    def lend(self, *, without: Collection[str]) -> bool:
        """Let it have the blobs of the image that it does not have yet.

        Args:
            without: digests of those that need not be read.

        Returns:
            Whether it has all of them then.

        Raises:
            ArchiveError: one is missing, or is not what its digest says.
            OSError: one cannot be read, or the disk is full.
        """
        whole = True
        manifest = self._image.manifest
        with Blobs(self._layout) as blobs:
            for descriptor in (self._image.descriptor, manifest["config"], *manifest["layers"]):
                digest = descriptor["digest"]
                if digest in self._lent:
                    continue
                if digest in without and descriptor in manifest["layers"]:
                    whole = False
                    continue
                self._lend(blobs, descriptor)
                self._lent.add(digest)
        return whole

    def _lend(self, blobs: Blobs, descriptor: Mapping[str, Any]) -> None:
        name = os.path.basename(blob_path(descriptor))
        fd = blobs.open(descriptor)
        with open(fd, "rb", buffering=0) as file:
            digest = hashlib.sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
                NOW.read += len(block)
            if digest.hexdigest() != name:
                raise damaged(f"{BLOBS}/{name} is not what its name says")
            try:
                # The very file that was read, by whatever name it was found.
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=self._blobs)
            except OSError:  # it is on another file system, or another user's
                file.seek(0)
                self._copy(file.fileno(), name)

    def _copy(self, source: int, name: str) -> None:
        with open(os.open(name, CREATE, 0o600, dir_fd=self._blobs), "wb") as copy:
            while block := os.read(source, _BLOCK):
                copy.write(block)

    def _write(self, name: str, data: bytes) -> None:
        path = f"{_DIRECTORY}/{name}"
        with open(os.open(path, CREATE, 0o600, dir_fd=self._staging.directory), "wb") as file:
            file.write(data)
