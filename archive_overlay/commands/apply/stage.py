"""A stored change set written into a staging directory, to be merged from there."""

from __future__ import annotations

import os
import stat

from archive_overlay.commands.apply.entries import ChangeEntries, Counts, Making
from archive_overlay.commands.apply.tar_entries import TarEntries, look_through
from archive_overlay.commands.archives import Directory
from archive_overlay.destination.names import is_staging_name
from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.unpack import Unpacker
from archive_overlay.marks import FUSE_OPAQUE, FUSE_USER, TRUSTED, USER
from archive_overlay.overlay import dialect, upper
from archive_overlay.system.activity import NOW
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.commands.apply.marks import PrivateMarks
    from archive_overlay.commands.archives import Tar
    from archive_overlay.destination.staging import Staging
    from archive_overlay.history.missing import Missing
    from archive_overlay.log import Log
    from archive_overlay.overlay.dialect import Dialect

# An upperdir that this program reads without the layers below must refer to none of them, so here the whole of each kind
# of marks counts. Of fuse-overlayfs' own, those that say who owns a file are left for `entries` to refuse.
_DIALECTS = {
    "trusted": dialect.NATIVE,
    "user": dialect.NATIVE_USERXATTR,
    "fuse": dialect.FUSE_OVERLAYFS.replace(
        namespaces=(TRUSTED, USER, FUSE_OPAQUE, f"{FUSE_USER}origin"),
    ),
}


class Staged(Record):
    """A change set in staging.

    Attributes:
        counts: how much it holds.
        missing: what could not be given to its entries.
    """

    counts: Counts
    missing: Missing


class _CannotMakeError(Exception):
    """An entry cannot be made, which is not the archive's fault."""


def stage(archive: Tar | Directory, staging: Staging, target: int, marks: PrivateMarks, log: Log) -> Staged:
    """Write a change set into a staging directory.

    Args:
        archive: where it is stored.
        staging: it is called `staging.ARCHIVE` in there afterwards.
        target: file descriptor of the directory that it is for.
        marks: by which it is said what is deleted.
        log: takes warnings of what is left out.

    Raises:
        ArchiveError: it is damaged, refers to what is not in it, or cannot be written.
    """
    try:
        os.mkdir(ARCHIVE, stat.S_IRWXU, dir_fd=staging.directory)
        top = os.open(ARCHIVE, READ_DIRECTORY, dir_fd=staging.directory)
    except OSError as error:
        fail(f"cannot write into {staging.path}", error)
    try:
        making = Making(marks.text, top, target)
        form = None if isinstance(archive, Directory) else archive.form
        unpacker = Unpacker(top, whiteout_names=form is not None and form.whiteout_files)
        making.missing = unpacker.missing
        try:
            if isinstance(archive, Directory):
                _stage_directory(archive, making, unpacker, log)
            else:
                _stage_tar(archive, making, unpacker)
            unpacker.finish()
        finally:
            unpacker.close()
        _spread(top, target, marks)
    except _CannotMakeError as error:
        raise ArchiveError(f"cannot write into {staging.path}: {error}") from error
    except OSError as error:
        fail(f"cannot write into {staging.path}", error)
    finally:
        os.close(top)
    return Staged(counts=making.counts, missing=unpacker.missing)


def true_dialect(archive: Directory) -> Dialect:
    """Give the marks of the overlay that wrote a directory, those too by which it refers to lower layers."""
    return _DIALECTS.get(archive.overlay.dialect.name, archive.overlay.dialect)


def _stage_directory(archive: Directory, making: Making, unpacker: Unpacker, log: Log) -> None:
    changes = upper.read_changes(archive.overlay.replace(dialect=true_dialect(archive)), log)
    try:
        unpacker.apply(ChangeEntries(changes, making))
    finally:
        changes.close()


def _stage_tar(archive: Tar, making: Making, unpacker: Unpacker) -> None:
    NOW.expected += 2 * archive.size
    with archive.open() as tar:
        known = look_through(tar, archive.form)
    with archive.open() as tar:
        try:
            unpacker.apply(TarEntries(tar, archive.form, known, making))
        except ArchiveError as error:
            if isinstance(error.__cause__, OSError):
                raise _CannotMakeError(str(error)) from error
            raise


def _spread(top: int, target: int, marks: PrivateMarks) -> None:
    """If the top is opaque, say so of all that is in the target: that itself stays what it is."""
    try:
        os.unlink(marks.text, dir_fd=top)
    except FileNotFoundError:
        return
    before = os.fstat(top)
    there = set(os.listdir(top))
    for name in os.listdir(target):
        if name not in there and not is_staging_name(name, ""):
            os.symlink(marks.text, name, dir_fd=top)
    with os.scandir(top) as entries:
        directories = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in directories:
        if marks.opaque(name, top):
            continue
        fd = os.open(name, READ_DIRECTORY, dir_fd=top)
        try:
            times = os.fstat(fd)
            os.symlink(marks.text, marks.text, dir_fd=fd)
            os.utime(fd, ns=(times.st_atime_ns, times.st_mtime_ns))
        finally:
            os.close(fd)
    os.utime(top, ns=(before.st_atime_ns, before.st_mtime_ns))
