"""Find and open the blobs of an OCI image layout, and check their sizes.

A blob is identified by its digest, wherever it is. Where layouts share a store, `blobs`, `blobs/sha256` or single blobs
are symbolic links. They are followed for reading, by the rules of `system/resolve.py`: none that another user may have
made, and none into the kernel's file systems. Only regular files are opened.

Source: OCI image specification, image-layout.md, "Blobs"; descriptor.md.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.system.open_flags import LOOK, READ, READ_DIRECTORY, STEP
from archive_overlay.system.resolve import Resolved, Resolver, open_resolved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

BLOBS = "blobs/sha256"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Blobs:
    """The blobs of a layout. Use it as a context manager.

    Args:
        layout: file descriptor of the layout's directory.

    Raises:
        ArchiveError: there are none.
        OSError: they are behind a link that is not followed, or cannot be read.
    """

    def __init__(self, layout: int) -> None:
        self._layout = layout
        self._resolver = Resolver()
        try:
            self._directory = self._open_directory()
        except FileNotFoundError:
            raise damaged(f"{BLOBS} is missing") from None
        except OSError as error:
            raise OSError(error.errno, f"{BLOBS}: {error.strerror}") from error

    def __enter__(self) -> Blobs:  # noqa: PYI034, Self is not in Python 3.9
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._directory)

    def open(self, descriptor: Mapping[str, Any]) -> int:
        """Open a blob.

        Returns:
            A file descriptor, for the caller to close. It is a regular file, of the right size.

        Raises:
            ArchiveError: it is missing, or something else.
            OSError: it cannot be opened.
        """
        name = blob_path(descriptor)
        try:
            fd = self._open(name)
        except FileNotFoundError:
            raise damaged(f"{name} is missing") from None
        except OSError as error:  # a link that is not followed, a socket, or a device that is not there
            raise OSError(error.errno, f"{name}: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise damaged(f"{name} is not a regular file")
        if not is_size(descriptor.get("size"), status.st_size):
            os.close(fd)
            raise damaged(f"{name} does not have the size that the image says")
        return fd

    def expect(self, descriptor: Mapping[str, Any]) -> None:
        """Check that a blob exists as a regular file of the right size.

        Raises:
            ArchiveError: it is missing, or something else.
            OSError: it cannot be looked at.
        """
        name = blob_path(descriptor)
        try:
            status = os.stat(os.path.basename(name), dir_fd=self._directory, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                status = self._found(name)[1]
        except FileNotFoundError:
            raise damaged(f"{name} is missing") from None
        except OSError as error:
            raise OSError(error.errno, f"{name}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode) or not is_size(descriptor.get("size"), status.st_size):
            raise damaged(f"{name} does not match the manifest")

    def has(self, descriptor: Mapping[str, Any]) -> bool:
        """Return whether a blob exists as a regular file of the right size."""
        try:
            self.expect(descriptor)
        except (ArchiveError, OSError):
            return False
        return True

    def lacks(self, descriptor: Mapping[str, Any]) -> bool:
        """Return whether a blob does not exist at all, not even damaged.

        Raises:
            ArchiveError: the descriptor has no digest that is known.
            OSError: it cannot be looked at.
        """
        try:
            self.status(os.path.basename(blob_path(descriptor)))
        except FileNotFoundError:
            return True
        return False

    def names(self) -> list[str]:
        """Return the names of all that is there."""
        fd = os.open(".", READ_DIRECTORY, dir_fd=self._directory)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def status(self, name: str) -> os.stat_result:
        """Look at something there by its name; links are not followed."""
        return os.stat(name, dir_fd=self._directory, follow_symlinks=False)

    def delete(self, digest: str) -> None:
        """Delete a blob if it is a file of its own. A link leads to a blob that other layouts may share.

        Raises:
            ArchiveError: it is not a digest.
            OSError: it cannot be deleted.
        """
        name = os.path.basename(blob_path({"digest": digest}))
        try:
            if stat.S_ISREG(os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            pass

    def _open_directory(self) -> int:
        try:
            directory = os.open("blobs", STEP, dir_fd=self._layout)
            try:
                return os.open("sha256", STEP, dir_fd=directory)
            finally:
                os.close(directory)
        except NotADirectoryError:
            return open_resolved(self._found(BLOBS)[0], STEP)

    def _open(self, name: str) -> int:
        try:
            return os.open(os.path.basename(name), READ, dir_fd=self._directory)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        found, status = self._found(name)
        # Opening a device may have any effect, whatever the flags.
        return open_resolved(found, READ if stat.S_ISREG(status.st_mode) else LOOK)

    def _found(self, name: str) -> tuple[Resolved, os.stat_result]:
        """Follow the links on the way to something in the layout, and its own; FileNotFoundError: they lead nowhere."""
        # The path of a directory that is open has no link in it.
        place = os.readlink(f"/proc/self/fd/{self._layout}")
        found = self._resolver.resolve(f"{place}/{name}")
        if found.status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found, found.status


def blob_path(descriptor: Mapping[str, Any]) -> str:
    """Return the path of a blob in its layout.

    Raises:
        ArchiveError: the descriptor has no digest that is known.
    """
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not match:
        raise damaged(f"{brief(repr(digest))} is not a digest that this program knows")
    return f"{BLOBS}/{match[1]}"


def is_size(value: object, size: int) -> bool:
    """Return whether a descriptor's size is that of a file."""
    return type(value) is int and value == size


def damaged(reason: str) -> ArchiveError:
    """Return the error for an invalid layout."""
    return ArchiveError(f"the image layout is damaged: {reason}")
