"""The success marker: an empty file that is there only if the archive is whole and durable."""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.destination.apart import keep_apart
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.system.open_flags import CREATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.destination.paths import Paths
    from archive_overlay.system.flush import Flush


class Marker:
    """A success marker.

    Args:
        success: absolute path.
        archive_to: absolute path of the archive.
        upper: the upperdir that is archived.
        paths: where it may be.

    Raises:
        ArchiveError: something that is no file is there, it is the archive or in it, it is in the upperdir,
            or that is no place for it.
    """

    def __init__(self, success: str, *, archive_to: str, upper: str, paths: Paths) -> None:
        self._path = path = paths.resolve_parent(success, "success")
        self._paths = paths
        if path == archive_to or archive_to.startswith(path + "/"):
            raise ArchiveError(
                f"success {path} is where the archive goes", hint="give the marker a path of its own"
            )
        # In there the container chooses what has the marker's name, and where links on the way to it lead.
        if path.startswith(archive_to + "/") or _leads_through(archive_to, os.path.dirname(success)):
            raise ArchiveError(
                f"success {success} is in the archive {archive_to}",
                hint="give the marker a path outside of it",
            )
        keep_apart("success", path, upper)
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            fail(f"cannot look at success {path}", error)
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise ArchiveError(
                f"success {path} exists and is not a regular file", hint="give the marker a path of its own"
            )

    def remove(self, flush: Flush) -> None:
        """Take back what an earlier run said, for good.

        Raises:
            ArchiveError: the marker cannot be removed.
        """
        directory, name = os.path.split(self._path)
        try:
            fd = self._paths.open(directory)
            try:
                os.unlink(name, dir_fd=fd)
                flush.file(fd)
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            # A file system that is read-only refuses before it looks whether there is a marker.
            if error.errno == errno.EROFS and not os.path.lexists(self._path):
                fail(
                    f"the success marker {self._path} could not be created, so no archive was made",
                    error,
                    hint="have its directory writable, or name another path",
                )
            fail(
                f"cannot remove the success marker {self._path} of an earlier archive, so no new one was made",
                error,
                hint="remove it, or name another path",
            )

    def create(self, flush: Flush) -> None:
        """Say that the archive is whole and durable. Missing parents are made (mode 0755).

        Raises:
            ArchiveError: the marker cannot be created.
        """
        directory, name = os.path.split(self._path)
        try:
            fd = self._paths.make(directory, flush)
            try:
                _create(name, fd, flush)
            finally:
                os.close(fd)
        except OSError as error:
            fail(
                f"the archive is complete, but its success marker {self._path} cannot be created",
                error,
                hint="programs that wait for the marker do not see the archive; create the marker yourself, as an empty file",
            )


def _leads_through(place: str, path: str) -> bool:
    while path != "/":
        if os.path.realpath(path) == place:
            return True
        path = os.path.dirname(path)
    return False


def _create(name: str, directory: int, flush: Flush) -> None:
    try:
        while not _created(name, directory):
            pass  # another run to the same destination has just created it and removed it again
        flush.file(directory)
    except BaseException:
        # What says that it failed, or was interrupted, leaves no marker.
        try:
            os.unlink(name, dir_fd=directory)
        except OSError:
            pass
        raise


def _created(name: str, directory: int) -> bool:
    try:
        os.close(os.open(name, CREATE, 0o644, dir_fd=directory))
    except FileExistsError:
        try:
            if not stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode):
                raise
        except FileNotFoundError:
            return False
    return True
