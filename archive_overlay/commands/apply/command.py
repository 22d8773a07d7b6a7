"""`archive_overlay apply`: a change set becomes the new state of a plain directory."""

from __future__ import annotations

import fcntl
import os
import stat

from archive_overlay.commands import Output
from archive_overlay.commands.apply import reverse
from archive_overlay.commands.apply.marks import PrivateMarks
from archive_overlay.commands.apply.stage import stage, true_dialect
from archive_overlay.commands.archives import Directory, open_archive
from archive_overlay.commands.diff import as_they_are
from archive_overlay.commands.differences import show
from archive_overlay.commands.progress import Progress
from archive_overlay.destination import merge
from archive_overlay.destination.apart import keep_apart
from archive_overlay.destination.paths import Paths
from archive_overlay.destination.publish import Destination
from archive_overlay.destination.staging import ARCHIVE, Staging
from archive_overlay.errors import ArchiveError, Interrupted, fail
from archive_overlay.marks import TRUSTED_OPAQUE, USER_OPAQUE
from archive_overlay.methods import COMPRESSIONS, Target
from archive_overlay.methods.tar import write_tar
from archive_overlay.overlay import in_use, upper
from archive_overlay.overlay.change import DIRECTORY, WHITEOUT
from archive_overlay.overlay.dialect import RAW
from archive_overlay.overlay.layers_in_use import layer_in_use
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.system import kernel, mountinfo
from archive_overlay.system.flush import Never, ToDisk
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.record import Record
from archive_overlay.system.tree import open_beneath
from archive_overlay.system.user_namespace import has_all_users, overflow_owner
from archive_overlay.tar import compress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from archive_overlay.commands.apply.stage import Staged
    from archive_overlay.commands.archives import Tar
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.system.flush import Flush

_ENDINGS = {
    ".tar.zst": "zstd",
    ".tzst": "zstd",
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar": "none",
}
_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
_FINISH = "it may be changed in part: run the same command again, without --reverse, to finish"


def run(options: argparse.Namespace, log: Log) -> None:
    """Carry out a change set.

    Args:
        options: `archive` and `directory`; `kind` and `marks` as for `diff`; `dry_run`, and `json` and `sizes` for that;
            `reverse`, or None; `fsync`.
        log: takes warnings.

    Raises:
        ArchiveError: the directory cannot be changed or must not be, or there is no such change set, or it is damaged.
    """
    if (options.json or options.sizes) and not options.dry_run:
        raise ArchiveError(
            "--json, --bytes and --human-readable are for --dry-run", hint="add it, or leave them out"
        )
    paths = Paths()
    path = paths.resolve(os.path.abspath(options.directory), "DIR")
    if path == "/":
        raise ArchiveError("DIR is the root directory", hint="name something inside it")
    try:
        fd = paths.open(path)
    except OSError as error:
        fail(f"cannot open {path}", error, hint="DIR must be a directory that exists")
    try:
        flush = ToDisk(log.warning) if options.fsync else Never()
        target = _Directory(path=path, fd=fd, paths=paths, flush=flush)
        _judge(target, options.archive)
        kept = _judge_reverse(options.reverse, target, options.archive) if options.reverse else None
        with open_archive(options.archive, log, kind=options.kind, marks=options.marks) as archive:
            if isinstance(archive, Directory) and options.marks is None:
                _expect_visible_marks(archive.overlay.upper)
            if options.dry_run:
                _show(archive, target, options, log)
            else:
                with Progress():
                    _apply(archive, target, kept, log)
    finally:
        os.close(fd)


class _Directory(Record):
    """The directory that is changed.

    Attributes:
        path: absolute; symbolic links are resolved.
        fd: its file descriptor.
        paths: how to get there.
        flush: when something counts as written.
    """

    path: str
    fd: int
    paths: Paths
    flush: Flush


def _judge(target: _Directory, archive: str) -> None:
    """Refuse a directory that must not be changed.

    Raises:
        ArchiveError: it belongs to the archive, an overlay or an engine.
    """
    path = target.path
    source = archive if os.path.lexists(archive) else archive.rpartition(":")[0]
    if os.path.lexists(source):
        keep_apart("DIR", path, os.path.abspath(source), what="the archive")
    if store := _store_around(path):
        raise ArchiveError(
            f"{path} is in a layer of the engine's store {store}, whose images and containers would break",
            hint="name a directory of your own, or a volume",
        )
    try:
        layer = layer_in_use(target.fd)
        is_upper = layer is None and in_use.can_ask() and kernel.is_written_by_overlay(target.fd)
    except OSError as error:
        fail(f"cannot find out whether an overlay uses {path}", error)
    if layer:
        raise ArchiveError(
            f"{path} is in use: it is, contains or is inside {layer}",
            hint="stop the container that has it mounted, or unmount the overlay",
        )
    if is_upper:
        raise ArchiveError(f"{path} is in use: a mounted overlay writes into it", hint="unmount that first")


def _expect_visible_marks(upper: str) -> None:
    """Refuse a directory that may have marks that this user does not see: `trusted.*` is for root alone.

    Raises:
        ArchiveError: it belongs to somebody else.
    """
    owner = os.stat(upper).st_uid
    user = os.geteuid()
    if owner != user if user else (owner == overflow_owner() and not has_all_users()):
        raise ArchiveError(
            f"{upper} belongs to another user, so the marks of its opaque directories may be invisible to this one",
            hint="run this as that user; or, if it has no such marks, add --marks user",
        )


def _store_around(path: str) -> str:
    """Give the store of containers/storage in one of whose layers a path is; "" if it is in none."""
    while path != "/":
        layer = os.path.dirname(path)
        store = os.path.dirname(os.path.dirname(layer))
        if os.path.lexists(f"{layer}/link") and os.path.isdir(f"{store}/overlay-layers"):
            return store
        path = layer
    return ""


def _judge_reverse(file: str, target: _Directory, archive: str) -> Destination:
    """Refuse a place for what is overwritten.

    Raises:
        ArchiveError: it is not the name of a tar, exists, or is in what is read or changed.
    """
    if not any(file.endswith(ending) for ending in _ENDINGS):
        raise ArchiveError(
            f"--reverse {file} is not the name of a tar", hint=f"end it in one of {', '.join(_ENDINGS)}"
        )
    compress.require(_compression(file))
    path = target.paths.resolve_parent(os.path.abspath(file), "--reverse")
    if os.path.lexists(path):
        raise ArchiveError(
            f"--reverse {path} exists",
            hint="if apply was interrupted, run it again without --reverse: the file is still good; else name another file",
        )
    if not os.path.isdir(os.path.dirname(path)):
        raise ArchiveError(
            f"--reverse {path} is in a directory that does not exist", hint="create it, or name another file"
        )
    keep_apart("--reverse", path, target.path, what="the directory")
    if os.path.isdir(archive):
        keep_apart("--reverse", path, os.path.abspath(archive), what="the archive")
    return Destination(path=path, makes="file", if_exists="fail", mount_point=False, paths=target.paths)


def _compression(file: str) -> str:
    return next(compression for ending, compression in _ENDINGS.items() if file.endswith(ending))


def _apply(archive: Tar | Directory, target: _Directory, kept: Destination | None, log: Log) -> None:
    _lock(target)
    before = os.fstat(target.fd)
    _give_times(target, before)
    marks = PrivateMarks()
    staging = Staging(target.path, "", paths=target.paths, flush=target.flush, log=log)
    staging.keep_times(before)
    with staging:
        if not os.path.samestat(os.fstat(staging.parent), before):
            raise ArchiveError(f"{target.path} was replaced by another directory in the meantime")
        _give_times(target, before)  # that staging is in it is no change
        staged = stage(archive, staging, target.fd, marks, log)
        _refuse_mount_points(staging, target.path, marks)
        try:
            target.flush.file_system(staging.directory)
        except OSError as error:
            fail(f"cannot write into {target.path}", error)
        if kept:
            _keep(kept, staging, target, marks, log)
        _merge(staging, target, marks, log)
    _tell(staged, target, log)


def _lock(target: _Directory) -> None:
    """Keep other runs from changing the directory: the lock ends with this process.

    Raises:
        ArchiveError: another program has locked it.
    """
    try:
        fcntl.flock(target.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArchiveError(
            f"another program has locked {target.path}, perhaps another apply",
            hint="try again when that has finished",
        ) from None
    except OSError:
        pass  # there are no locks on this file system


def _give_times(target: _Directory, status: os.stat_result) -> None:
    """Give the directory the times that it had.

    Raises:
        ArchiveError: it belongs to somebody else, and all that comes later would fail too.
    """
    try:
        os.utime(target.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        fail(f"cannot change {target.path}", error, hint="only its owner and root can")


def _refuse_mount_points(staging: Staging, path: str, marks: PrivateMarks) -> None:
    """Refuse a change set that has something to say about what is mounted in the directory, or in what is mounted there.

    An overlay on the directory shows what is below the mounts, so a change set was not made with them.

    Raises:
        ArchiveError: it has.
    """
    try:
        mount_points = mountinfo.read().below(path)
    except OSError as error:
        fail("cannot read the mounts", error)
    top = os.open(ARCHIVE, READ_DIRECTORY, dir_fd=staging.directory)
    try:
        for mount_point in mount_points:
            parts = mount_point[len(path) + 1 :].split("/")
            if _touches(top, parts, marks):
                raise ArchiveError(
                    f"something is mounted at {mount_point}, where the change set has changes",
                    hint="unmount it first",
                )
    finally:
        os.close(top)


def _touches(top: int, parts: list[str], marks: PrivateMarks) -> bool:
    for length in range(1, len(parts) + 1):
        try:
            parent, name = open_beneath("/".join(parts[:length]), top)
        except OSError:
            return True  # something on the way is no directory
        try:
            status = os.lstat(name, dir_fd=parent)
            if not stat.S_ISDIR(status.st_mode) or marks.opaque(name, parent):
                return True
        except FileNotFoundError:
            return False
        finally:
            os.close(parent)
    return True


def _keep(kept: Destination, staging: Staging, target: _Directory, marks: PrivateMarks, log: Log) -> None:
    """Store what is going to be overwritten or deleted, before it is.

    Raises:
        ArchiveError: that is not possible.
    """
    opaque_attribute = TRUSTED_OPAQUE if os.geteuid() == 0 else USER_OPAQUE
    compression = _compression(kept.path)
    here = f"/proc/self/fd/{target.fd}"  # whatever has its path by now
    top = os.open(ARCHIVE, READ_DIRECTORY, dir_fd=staging.directory)
    try:
        with kept.stage(target.flush, log, _PRIVATE) as place:
            changes = reverse.read_reverse(top, here, marks, log)
            to = Target(
                staging=place,
                overlay=OverlayMount(upper=target.path, lowers=(), dialect=RAW),
                flush=target.flush,
                compression=compression,
                level=COMPRESSIONS[compression].default_level,
                jobs=0,
            )
            write_tar(changes, to, log, opaque_attribute=opaque_attribute)
            kept.publish(place, None)
    except ArchiveError as error:
        raise ArchiveError(error.message.replace(here, target.path), hint=error.hint) from error
    finally:
        os.close(top)


def _merge(staging: Staging, target: _Directory, marks: PrivateMarks, log: Log) -> None:
    try:
        in_one_step = merge.merge(ARCHIVE, staging.directory, ".", target.fd, marks, covered=True)
        staging.keep_times()
        target.flush.file_system(target.fd)
    except OSError as error:
        name = f" at {error.filename}" if isinstance(error.filename, str) else ""
        fail(f"cannot change {target.path}{name}", error, hint=_FINISH)
    except Interrupted:
        log.warning(f"{target.path}: {_FINISH}")
        raise
    if not in_one_step:
        log.warning(
            f"{target.path}: entries that changed type or were deleted were replaced in several steps, because this file system"
            " cannot exchange two names"
        )


def _tell(staged: Staged, target: _Directory, log: Log) -> None:
    counts = staged.counts
    entries = "1 entry" if counts.entries == 1 else f"{counts.entries} entries"
    deletions = "1 deletion" if counts.deletions == 1 else f"{counts.deletions} deletions"
    if staged.missing:
        why = "; overlays act on some of that, so it is never given" if staged.missing.marks else ""
        log.warning(f"{target.path} is not as the change set has it. It lacks {staged.missing}{why}")
    output = Output()
    output.line(f"applied to {target.path}: {entries}, {deletions}")
    output.flush()


def _show(archive: Tar | Directory, target: _Directory, options: argparse.Namespace, log: Log) -> None:
    """Say what would happen, and do nothing."""
    if isinstance(archive, Directory):
        changes: Iterator[Change] = upper.read_changes(
            archive.overlay.replace(dialect=true_dialect(archive)), log
        )
    else:
        changes = archive.changes()
    show(as_they_are(_effective(changes, target), everything=False), options, known=False)


def _effective(changes: Iterator[Change], target: _Directory) -> Iterator[Change]:
    """Give the changes that make a difference; a directory is opaque if it hides something that is there."""
    for change in changes:
        try:
            parent, name = open_beneath(change.path or ".", target.fd)
            try:
                found = os.lstat(name, dir_fd=parent)
                is_directory = stat.S_ISDIR(found.st_mode)
            finally:
                os.close(parent)
        except (FileNotFoundError, NotADirectoryError):
            if change.kind is not WHITEOUT:
                change.opaque = change.implicit = False
                yield change
            continue
        except OSError as error:
            fail(f"cannot look at {os.path.join(target.path, change.shown)}", error)
        if change.kind is DIRECTORY:
            change.opaque = change.opaque and is_directory
            change.implicit = False
        yield change
