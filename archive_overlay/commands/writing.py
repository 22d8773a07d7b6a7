"""How commands write to an image layout.

What takes long is done first, without the layout's lock, for containers that stop wait for it. Under the lock it is done
again with what is there by then, which is quick where nothing has changed: what was composed is not composed again.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager

from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import Staging
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.compaction import Composer, Form
from archive_overlay.history.misnamed import without_transport
from archive_overlay.history.references import find_image, looks_like_layout
from archive_overlay.history.revisions import Image
from archive_overlay.history.tending import make_room
from archive_overlay.layout.add_layer import expect_own_blobs
from archive_overlay.layout.edit import Edit, is_new, until_published
from archive_overlay.layout.lock import lock
from archive_overlay.layout.read import INDEX_FILE, only_untagged, read_index, tagged
from archive_overlay.layout.stored import open_stored
from archive_overlay.system.flush import Never, ToDisk
from archive_overlay.system.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import Any, Callable, TypeVar

    from archive_overlay.history.references import Found
    from archive_overlay.log import Log
    from archive_overlay.system.flush import Flush

    Done = TypeVar("Done")

_MODES = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH
_DEFAULT_ACL = "system.posix_acl_default"


class Layout:
    """A layout that a command writes to.

    Attributes:
        path: resolved.
        paths, patience, log: how to get there, how long to wait for others, and who is told.
        fd: file descriptor of its directory.
        staging: in it.
        index: as it is.
        edit: takes what is written; None: the lock is not taken yet.
    """

    def __init__(self, path: str, paths: Paths, fd: int, staging: Staging, log: Log) -> None:
        self.path = path
        self.paths = paths
        self.patience = Patience()
        self.log = log
        self.fd = fd
        self.staging = staging
        self.edit: Edit | None = None
        self._composer: Composer | None = None

    @property
    def index(self) -> Mapping[str, Any]:
        return self.edit.index if self.edit else read_index(self.fd)

    def descriptor(self, name: str) -> Mapping[str, Any]:
        """Find an image.

        Args:
            name: its tag; "" for the only image, which has none.

        Raises:
            ArchiveError: there is none any more.
        """
        found = tagged(self.index, name) if name else only_untagged(self.index)
        if found is None:
            raise ArchiveError(f"the image layout {self.path} has no tag {name} any more")
        return found

    def open(self, name: str) -> Image:
        """Open an image; see `descriptor`."""
        return Image(self.path, name, os.dup(self.fd), open_stored(self.fd, self.descriptor(name)))

    def composer(self, image: Image) -> Composer:
        """Give what composes pieces of an image; it remembers what it has composed."""
        if self._composer is None:
            self._composer = Composer(image, self.staging, Form(), self.log)
        self._composer.image = image
        return self._composer

    def write(self, name: str, work: Callable[[Edit | None], Done]) -> Done:
        """Do some work twice: without the lock, and then with it.

        Args:
            name: of the image that it is about; see `descriptor`.
            work: is called with None, or with what takes what is written and publishes it.

        Returns:
            What the work gives the second time.
        """
        before = self.descriptor(name)
        try:
            work(None)
        except ArchiveError:
            if self.descriptor(name) == before:
                raise
            # Others have deleted what they made superfluous meanwhile.
        return self.write_at_once(lambda edit: work(edit))

    def write_at_once(self, work: Callable[[Edit], Done]) -> Done:
        """Do some work with the lock."""
        lock(self.fd, self.path, self.patience, self.log)
        edit = self.edit = Edit(self.fd, self.staging)
        return until_published(edit, self.path, lambda: work(edit))


@contextmanager
def open_layout(path: str, *, fsync: bool, log: Log, make: bool = False) -> Generator[Layout, None, None]:
    """Open a layout to write to it.

    Args:
        path: of the layout.
        fsync: whether what is written is on disk in the end.
        log: is told for whom it waits.
        make: whether there need not be one yet. Then its directory is made, if need be.

    Raises:
        ArchiveError: it cannot be written to. What fails in the context is named as well.
    """
    paths = Paths()
    resolved = paths.resolve(os.path.abspath(path), "the image layout")
    flush: Flush = ToDisk(log.warning) if fsync else Never()
    try:
        fd = paths.make(resolved, flush) if make else paths.open(resolved)
        try:
            expect_own_blobs(fd, resolved)
            if not (make and is_new(fd)):
                read_index(fd)
            with Staging(
                resolved, "", paths=paths, flush=flush, log=log, file_mode=_mode(fd), owner=_owner(fd)
            ) as staging:
                yield Layout(resolved, paths, fd, staging, log)
        finally:
            os.close(fd)
    except OSError as error:
        fail(f"cannot write to the image layout {resolved}", error)


def find_tagged(text: str, *, numbered: bool) -> Found:
    """Find the image that a text names, and that is going to be another one under the same tag.

    Raises:
        ArchiveError: there is none, or it has no tag.
    """
    found = find_image(text, numbered=numbered)
    if not found.name:
        raise ArchiveError(
            f"the image of {found.path} has no tag",
            hint=f"archive_overlay tag {found.path} latest gives it one",
        )
    return found


def find_layout_or_image(text: str) -> tuple[str, str]:
    """Find what LAYOUT or LAYOUT:TAG names: give the path of the layout, and the tag; "" if none is named.

    Raises:
        ArchiveError: there is no such image.
    """
    text = without_transport(text)
    if looks_like_layout(text):
        return text, ""
    found = find_tagged(text, numbered=False)
    return found.path, found.name


def make_room_in(path: str, tag: str, most: int, *, fsync: bool, log: Log) -> None:
    """Compose layers of an image that has more than it may have.

    Raises:
        ArchiveError: that is not possible. What was done before stays.
    """
    with open_layout(path, fsync=fsync, log=log) as layout:
        make_room(
            layout.path,
            tag,
            layout.staging,
            most=most + 1,
            form=Form(),
            paths=layout.paths,
            patience=layout.patience,
            log=log,
        )


def _mode(fd: int) -> int | None:
    """Give the mode that files of a layout have; None: what its default ACL says, or the mode of what is private."""
    try:
        os.getxattr(fd, _DEFAULT_ACL)
    except OSError:
        try:
            return os.stat(INDEX_FILE, dir_fd=fd, follow_symlinks=False).st_mode & _MODES
        except FileNotFoundError:  # there is no layout yet
            pass
    return None


def _owner(fd: int) -> tuple[int, int] | None:
    """Give whom root makes files of a layout for: its owner must be able to read them, and may have containers to archive."""
    try:
        status = os.stat(INDEX_FILE, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:  # there is no layout yet
        status = os.fstat(fd)
    return (status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid else None
