"""Making archives visible at their final path: whole, durable, and only then with a marker."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from archive_overlay.destination import merge
from archive_overlay.destination.apart import keep_apart
from archive_overlay.destination.staging import ARCHIVE, Staging
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.system import kernel, mountinfo
from archive_overlay.system.activity import doing
from archive_overlay.system.open_flags import READ, READ_DIRECTORY
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.system.flush import Flush
    from archive_overlay.system.patience import Patience

_TAKEN_HINT = "if-exists says to fail then"
_GONE_FOR_A_MOMENT = "its file system cannot exchange two names, so for a moment nothing was there; the old archive had a backup name meanwhile"
_CHANGED_BY_OTHERS = "another program has changed something in it meanwhile"
# How often the destination may turn out to be something else than a moment ago.
_ATTEMPTS = 100


class Destination(Record):
    """Where an archive is to be visible.

    Attributes:
        path: absolute; symbolic links are resolved.
        makes: "directory" or "file": what is to be there.
        if_exists: one of `methods.IF_EXISTS`.
        mount_point: the path is one, so it cannot be renamed: its contents are merged into it.
        paths: how to get there.
        patience: how long a merge may wait for others into the same directory; None: not at all.
    """

    path: str
    makes: str
    if_exists: str
    mount_point: bool
    paths: Paths
    patience: Patience | None = None

    def stage(self, flush: Flush, log: Log, file_mode: int | None = None) -> Staging:
        """Give the place beside it (or inside it, if it is a mount point) to make the archive in."""
        parent, name = (self.path, "") if self.mount_point else os.path.split(self.path)
        return Staging(parent, name, paths=self.paths, flush=flush, log=log, file_mode=file_mode)

    def publish(self, staging: Staging, result: object) -> str:
        """Make the archive durable, and then visible as `if-exists` says.

        Args:
            staging: has the archive. What it replaced may be in there afterwards.
            result: of the method that wrote it: of a directory, the attribute that makes directories in it opaque.

        Returns:
            What was done, for the summary: nothing to add.

        Raises:
            ArchiveError: that was not possible; the destination has what it had (with merge: each entry
                the old one or the new one).
        """
        flush = staging.flush
        try:
            _flush_archive(staging, self, flush)
            _place(staging, self, str(result))
            if self.if_exists == "merge" or self.mount_point:
                flush.file_system(staging.parent)  # many directories may have new entries
            else:
                flush.file(staging.parent)
        except OSError as error:
            fail(f"cannot put the archive at {self.path}", error)
        return ""


def judge_destination(
    archive_to: str,
    *,
    makes: str,
    if_exists: str,
    upper: str,
    paths: Paths,
    patience: Patience | None = None,
) -> Destination:
    """Refuse all that can be refused before anything is written.

    Args:
        archive_to: absolute path of the archive.
        makes: "directory" or "file".
        if_exists: one of `methods.IF_EXISTS`.
        upper: the upperdir that is archived.
        paths: where it may be.
        patience: see `Destination`.

    Raises:
        ArchiveError: the destination is of the wrong type, is taken, overlaps with the upperdir, or is not
            allowed.
    """
    path = paths.resolve(archive_to, "archive-to")
    if path == "/":
        raise ArchiveError("archive-to is the root directory", hint="name something inside it")
    keep_apart("archive-to", path, upper)
    found = _status(path)
    if found is None:
        return Destination(
            path=path, makes=makes, if_exists=if_exists, mount_point=False, paths=paths, patience=patience
        )
    is_directory = stat.S_ISDIR(found.st_mode)
    empty = is_directory and not os.listdir(path)
    if makes == "directory" and not is_directory:
        raise ArchiveError(f"archive-to {path} is no directory, but the archive is to be one")
    if makes == "file" and not stat.S_ISREG(found.st_mode) and not empty:
        raise ArchiveError(f"archive-to {path} is no regular file, but the archive is to be one")
    if if_exists == "fail" and not empty:
        raise ArchiveError(f"archive-to {path} exists", hint=_TAKEN_HINT)
    mount_point = is_directory and _is_mount_point(path, found)
    replaces = makes == "file" or (not empty and if_exists != "merge")
    if mount_point and replaces:
        raise ArchiveError(
            f"archive-to {path} is a mount point, which cannot be replaced", hint="name something inside it"
        )
    return Destination(
        path=path, makes=makes, if_exists=if_exists, mount_point=mount_point, paths=paths, patience=patience
    )


def _flush_archive(staging: Staging, destination: Destination, flush: Flush) -> None:
    if destination.makes == "directory":
        flush.file_system(staging.directory)
        return
    fd = os.open(ARCHIVE, READ, dir_fd=staging.directory)
    try:
        flush.file(fd)
    finally:
        os.close(fd)


def _place(staging: Staging, destination: Destination, opaque: str) -> None:
    if destination.mount_point:
        _merge(staging, ".", destination, opaque)
        staging.keep_times()
        return
    # Another run may publish to the same destination at the same time: then look again.
    for _ in range(_ATTEMPTS):
        try:
            _place_once(staging, destination, opaque)
            return
        except (FileExistsError, FileNotFoundError):
            continue
    raise ArchiveError(f"archive-to {destination.path} is being changed by others all the time")


def _place_once(staging: Staging, destination: Destination, opaque: str) -> None:
    found = _status(staging.name, staging.parent)
    if found is not None and stat.S_ISDIR(found.st_mode) and _remove_if_empty(staging):
        found = None
    if found is None:
        kernel.rename_new(ARCHIVE, staging.directory, staging.name, staging.parent, staging.less_safe)
    elif stat.S_ISDIR(found.st_mode) != (destination.makes == "directory"):
        raise ArchiveError(
            f"archive-to {destination.path} has become something that is no {destination.makes}"
        )
    elif destination.if_exists == "fail":
        raise ArchiveError(f"archive-to {destination.path} exists", hint=_TAKEN_HINT)
    elif destination.if_exists == "merge":
        _merge(staging, staging.name, destination, opaque)
    elif destination.if_exists == "backup":
        _back_up_and_place(staging, found)
    elif destination.makes == "directory":
        _exchange(staging)
    else:
        os.rename(ARCHIVE, staging.name, src_dir_fd=staging.directory, dst_dir_fd=staging.parent)


def _merge(staging: Staging, onto: str, destination: Destination, opaque: str) -> None:
    lock = os.open(onto, READ_DIRECTORY, dir_fd=staging.parent)
    try:
        _wait_for_others(lock, destination, staging.log)
        # Who had the lock may have put another directory in its place, and somebody else may have the lock on that.
        if not os.path.samestat(os.fstat(lock), os.lstat(onto, dir_fd=staging.parent)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), onto)
        try:
            in_one_step = merge.merge(
                ARCHIVE, staging.directory, ".", lock, merge.OverlayMarks(attribute=opaque)
            )
        except (FileExistsError, FileNotFoundError) as error:
            # Staging has by now what was replaced: another attempt would put that back.
            fail(f"cannot put all of the archive at {destination.path}", error, hint=_CHANGED_BY_OTHERS)
    finally:
        os.close(lock)
    if not in_one_step:
        staging.log.warning(
            f"archive-to {destination.path}: entries that changed type were replaced in two steps, because this file system cannot"
            " exchange two names"
        )


def _wait_for_others(directory: int, destination: Destination, log: Log) -> None:
    """Take turns with other runs: what two merges at once come to is not what one after the other comes to.

    Anybody who may read the directory can lock it. So this run goes on when it has waited long enough.
    """
    with doing(f"waiting for the lock of {destination.path}", slow=False):
        waiting = False
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            except OSError:
                return  # this file system has no locks, or none for directories
            if not waiting:
                log.info(f"archive-to {destination.path} is locked by another program: waiting for it")
                waiting = True
            if destination.patience is None or not destination.patience.nap():
                log.warning(
                    f"archive-to {destination.path} is still locked by another program; merging into it all the same"
                )
                return


def _back_up_and_place(staging: Staging, old: os.stat_result) -> None:
    # The old archive is at the destination until it is under its backup name, in one step.
    backup = staging.pass_by_backup_name()
    try:
        kernel.exchange(backup, staging.parent, staging.name, staging.parent)
    except kernel.CannotExchangeError:
        staging.recall()
    except BaseException:
        staging.recall()
        raise
    else:
        staging.passed()
        return
    if stat.S_ISDIR(old.st_mode):
        _set_aside_and_place(staging)
    else:
        staging.take_backup_name(lambda backup: _copy_name(staging, backup))
        os.rename(ARCHIVE, staging.name, src_dir_fd=staging.directory, dst_dir_fd=staging.parent)


def _copy_name(staging: Staging, backup: str) -> None:
    try:
        os.link(
            staging.name,
            backup,
            src_dir_fd=staging.parent,
            dst_dir_fd=staging.parent,
            follow_symlinks=False,
        )
    except OSError as error:
        if error.errno not in kernel.NO_LINKS:
            raise
        kernel.rename_new(staging.name, staging.parent, backup, staging.parent, staging.less_safe)
        staging.less_safe(_GONE_FOR_A_MOMENT)


def _exchange(staging: Staging) -> None:
    """Put the archive at the destination, and what was there into the staging directory."""
    try:
        kernel.exchange(ARCHIVE, staging.directory, staging.name, staging.parent)
    except kernel.CannotExchangeError:
        aside = _set_aside_and_place(staging)
        os.rename(aside, ARCHIVE, src_dir_fd=staging.parent, dst_dir_fd=staging.directory)


def _set_aside_and_place(staging: Staging) -> str:
    # For a moment nothing is at the destination, but the old archive has a name that nobody takes for
    # debris.
    aside = staging.take_backup_name(
        lambda backup: kernel.rename_new(
            staging.name, staging.parent, backup, staging.parent, staging.less_safe
        )
    )
    staging.less_safe(_GONE_FOR_A_MOMENT)
    try:
        kernel.rename_new(ARCHIVE, staging.directory, staging.name, staging.parent, staging.less_safe)
    except OSError:
        kernel.rename_new(aside, staging.parent, staging.name, staging.parent, staging.less_safe)
        raise
    return aside


def _remove_if_empty(staging: Staging) -> bool:
    try:
        os.rmdir(staging.name, dir_fd=staging.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _status(path: str, directory: int | None = None) -> os.stat_result | None:
    try:
        return os.lstat(path, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_mount_point(path: str, found: os.stat_result) -> bool:
    if found.st_dev != os.stat(os.path.dirname(path)).st_dev:
        return True
    try:
        return mountinfo.read().at(path) is not None  # a bind mount within one file system
    except OSError:
        return False
