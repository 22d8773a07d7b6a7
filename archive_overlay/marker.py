"""The success marker: an empty file that is there only if the archive is whole and durable."""

from __future__ import annotations

import os
import stat

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.publish import keep_apart
from archive_overlay.staging import make_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.flush import Flush

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def judge(success: str, archive_to: str, upper: str) -> None:
    """Refuse a marker that cannot be.

    Args:
        success: absolute path of the marker.
        archive_to: absolute path of the archive.
        upper: the upperdir that is archived.

    Raises:
        ArchiveError: something that is no file is there, the archive is, or it is in the upperdir.
    """
    if success == archive_to or archive_to.startswith(success + "/"):
        raise ArchiveError(
            f"success {success} is where the archive goes", hint="give the marker a path of its own"
        )
    keep_apart("success", success, upper)
    try:
        mode = os.lstat(success).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        fail(f"cannot look at success {success}", error)
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise ArchiveError(
            f"success {success} is there and is no file", hint="give the marker a path of its own"
        )


def remove(success: str, flush: Flush) -> None:
    """Take back what an earlier run said, for good.

    Raises:
        ArchiveError: the marker cannot be removed.
    """
    try:
        os.unlink(success)
        flush.directories([os.path.dirname(success)])
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        fail(f"cannot remove the success marker {success} of an earlier archive", error)


def create(success: str, flush: Flush) -> None:
    """Say that the archive is whole and durable.

    Args:
        success: absolute path of the marker; missing parents are made (mode 0755).

    Raises:
        ArchiveError: the marker cannot be created.
    """
    parent = os.path.dirname(success)
    try:
        made = make_directories(parent)
        os.close(os.open(success, _CREATE, 0o644))
        flush.directories([parent, *made])
    except OSError as error:
        fail(f"the archive is complete, but its success marker {success} cannot be created", error)
