"""Keeping an upperdir whose archive failed, before the engine deletes it.

RESCUE_DIR/CONTAINER_ID/ARCHIVE_NAME        the upperdir as it was, bookkeeping and all
RESCUE_DIR/CONTAINER_ID/ARCHIVE_NAME.json   what was asked for, and what went wrong

The container's directory is for the hook's user alone (0700). If something of another user has its name, the
directory is called CONTAINER_ID.~1~, and so on: what is to be kept is neither given to others nor lost to them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time

from archive_overlay.destination.names import take_free_name
from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import ARCHIVE, Staging, forget_inheritance, remove_empty
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.log import escape
from archive_overlay.marks import TRUSTED
from archive_overlay.methods import Target, copy
from archive_overlay.overlay import dialect
from archive_overlay.overlay.in_use import can_ask, is_mounted
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.upper import read_changes
from archive_overlay.system import kernel, metadata
from archive_overlay.system.flush import Never, ToDisk
from archive_overlay.system.open_flags import CREATE, READ_DIRECTORY, READ_TOP_DIRECTORY
from archive_overlay.system.user_namespace import overflow_owner, sees_trusted_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from archive_overlay.hook.policy import Policy
    from archive_overlay.log import Log

# What no file name holds, and % itself. JSON can have halves of characters; some of them stand for bytes.
_NOT_IN_NAMES = re.compile("[%/\0\ud800-\udc7f\udd00-\udfff]")
_LONGEST_NAME = 200  # leaves room for a backup number and .json
# How many names the container's directory may have, if others take them.
_ATTEMPTS = 20


class RescueDirectory:
    """A place for what could not be archived.

    Args:
        directory: absolute path; made when it is needed.
        container: id of the container.
        log: takes warnings.
        limits: of what may be copied; what is renamed takes no room that it does not have already. None: none.
        max_bytes: that may be written by copying; None: any number.

    Attributes:
        path: the directory, as it was given.
    """

    def __init__(
        self,
        directory: str,
        container: str,
        log: Log,
        *,
        limits: Policy | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.path = directory
        self._paths = Paths()
        self._container = _file_name(container or "unknown")
        self._log = log
        self._flush = ToDisk(log.warning)
        self._limits = limits
        self._max_bytes = max_bytes

    def keep(
        self,
        overlay: OverlayMount,
        archive: str,
        *,
        asked: Mapping[str, object],
        reason: str,
        may_rename: bool,
        hurry: bool,
    ) -> str:
        """Keep an upperdir: by renaming it, or by copying it where that is not possible.

        Args:
            overlay: whose upperdir it is. An empty twin takes its place if it is renamed.
            archive: the archive's name.
            asked: the annotations of the archive, by key.
            reason: why it failed.
            may_rename: whether nobody will look for the upperdir where it is.
            hurry: do not copy.

        Returns:
            Where it is now.

        Raises:
            ArchiveError: it cannot be kept.
        """
        place = self._paths.resolve(self.path, "--rescue-dir")
        try:
            above = self._paths.make(place, self._flush)
            try:
                container, parent = _own_directory(self._container, above)
            finally:
                os.close(above)
        except OSError as error:
            fail(f"cannot write into {os.path.join(place, self._container)}", error)
        directory = os.path.join(place, container)
        try:
            name = self._rename(overlay, _file_name(archive), parent) if may_rename else None
            if name is None:
                if hurry:
                    raise ArchiveError(f"{overlay.upper} cannot be renamed into {directory}")
                name = self._copy(overlay, _file_name(archive), directory, parent)
            kept = os.path.join(directory, name)
            try:
                self._describe(f"{name}.json", parent, overlay, archive, asked, reason)
                self._flush.file(parent)
            except (OSError, RecursionError) as error:
                why = error.strerror if isinstance(error, OSError) else "an annotation is nested too deeply"
                self._log.warning(f"cannot write {kept}.json, the notes on {kept}: {why}")
        except OSError as error:
            fail(f"cannot keep {overlay.upper} in {directory}", error)
        finally:
            os.close(parent)
        return kept

    def _rename(self, overlay: OverlayMount, name: str, parent: int) -> str | None:
        """Rename the upperdir, and give its new name; None: it is on another file system, or in use."""
        if overlay.dialect.whiteout_files or not _is_free(overlay):
            return None
        # The engine may have named it by a symbolic link, or with a slash at the end.
        directory, upper = os.path.split(os.path.realpath(overlay.upper))
        source = os.open(directory, READ_TOP_DIRECTORY)
        try:
            kept = take_free_name(
                name, parent, lambda new: self._rename_new(upper, source, new, parent), described_by=".json"
            )
            try:
                # The engine deletes what it made, and expects to find it.
                metadata.make_twin(kept, parent, upper, source)
            except OSError as error:
                self._log.warning(
                    f"cannot make an empty directory in place of {overlay.upper}: {error.strerror}"
                )
        except OSError as error:
            if error.errno == errno.EXDEV:
                return None
            raise
        finally:
            os.close(source)
        return kept

    def _copy(self, overlay: OverlayMount, name: str, directory: str, parent: int) -> str:
        if TRUSTED in overlay.dialect.namespaces and not sees_trusted_attributes():
            self._log.warning(
                f"{overlay.upper} is kept without the attributes trusted.*, which cannot be seen without CAP_SYS_ADMIN:"
                " directories that hide what lies below look like any other"
            )
        raw = OverlayMount(upper=overlay.upper, lowers=(), dialect=dialect.RAW)
        with Staging(directory, name, paths=self._paths, flush=self._flush, log=self._log) as staging:
            if not os.path.samestat(os.fstat(staging.parent), os.fstat(parent)):
                raise OSError(errno.EAGAIN, "the directory has just been replaced")
            stream = read_changes(raw, self._log)
            try:
                changes = self._limits.applied(stream) if self._limits else stream
                copy.write(
                    changes,
                    Target(staging=staging, overlay=raw, flush=Never(), max_bytes=self._max_bytes),
                    self._log,
                )
            except ArchiveError as error:
                raise ArchiveError(
                    f"{overlay.upper} cannot be renamed into {directory}, nor copied: {error}"
                ) from error
            finally:
                stream.close()
            self._flush.file_system(staging.directory)
            return take_free_name(
                name,
                staging.parent,
                lambda new: self._rename_new(ARCHIVE, staging.directory, new, staging.parent),
                described_by=".json",
            )

    def _rename_new(self, name: str, directory: int, new: str, new_directory: int) -> None:
        """Rename to a name that is not taken, neither for the upperdir nor for its description."""
        try:
            os.lstat(f"{new}.json", dir_fd=new_directory)
        except FileNotFoundError:
            kernel.rename_new(
                name, directory, new, new_directory, lambda why: self._log.warning(f"{self.path}: {why}")
            )
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{new}.json")

    def _describe(
        self,
        name: str,
        parent: int,
        overlay: OverlayMount,
        archive: str,
        asked: Mapping[str, object],
        reason: str,
    ) -> None:
        text = json.dumps(
            {
                "archive": archive,
                "annotations": asked,
                "reason": escape(reason),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "upperdir": overlay.upper,
                "lowerdirs": [*overlay.lowers, *overlay.data_lowers],
                "overlay": overlay.dialect.name,
            },
            indent=2,
        )
        fd = os.open(name, CREATE, 0o600, dir_fd=parent)
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text + "\n")
            file.flush()
            self._flush.file(fd)


def _is_free(overlay: OverlayMount) -> bool:
    """Say whether it is certain that no mounted overlay writes into an upperdir."""
    try:
        return can_ask() and not is_mounted(overlay)
    except OSError:
        return False


def _own_directory(name: str, directory: int) -> tuple[str, int]:
    """Open the directory with a name, or with the next one that others have not taken; make it if need be.

    Returns:
        Its name and its file descriptor. It is this user's, and nobody else gets in.
    """
    for attempt in range(_ATTEMPTS):
        # Others can take names that they can guess.
        suffix = attempt if attempt < _ATTEMPTS // 2 else os.urandom(8).hex()
        numbered = f"{name}.~{suffix}~" if attempt else name
        made = True
        try:
            os.mkdir(numbered, stat.S_IRWXU, dir_fd=directory)
        except FileExistsError:
            made = False
        try:
            fd = os.open(numbered, READ_DIRECTORY, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # a link or a file, or nothing any more
        try:
            # Who mounts something of his own there may say that it is whosever he likes.
            if os.fstat(fd).st_dev == os.fstat(directory).st_dev and _is_own(fd):
                forget_inheritance(fd)
                return numbered, fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if made:
            remove_empty(numbered, directory)
    raise FileExistsError(errno.EEXIST, "all possible names are taken by others")


def _is_own(directory: int) -> bool:
    """Say whether a directory is this user's."""
    owner = os.fstat(directory).st_uid
    if owner == overflow_owner():
        return False
    if owner == os.geteuid():
        return True
    # Network file systems and FUSE programs may have one owner for whatever this user makes, and then that is the
    # directory's. In a directory that another user made, what this one makes belongs to this one.
    probe = os.urandom(8).hex()
    try:
        fd = os.open(probe, CREATE, 0o600, dir_fd=directory)
        try:
            return os.fstat(fd).st_uid == owner
        finally:
            os.close(fd)
            os.unlink(probe, dir_fd=directory)
    except OSError:
        return False


def _file_name(text: str) -> str:
    """Make one file name of a container's id or an archive's name, which may hold anything."""
    name = _NOT_IN_NAMES.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if name in (".", ".."):
        name = name.replace(".", "%2E")
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])
