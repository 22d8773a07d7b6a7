"""`archive_overlay extract`: a revision of an image as a plain directory."""

from __future__ import annotations

import os
import stat
from contextlib import closing

from archive_overlay.commands.progress import Progress
from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import ARCHIVE, Staging
from archive_overlay.errors import ArchiveError, brief, fail
from archive_overlay.history.lookup import look_up
from archive_overlay.history.revisions import open_revision
from archive_overlay.history.selection import PathSet
from archive_overlay.history.state_entries import StateEntries
from archive_overlay.history.states import States
from archive_overlay.history.unpack import Unpacker
from archive_overlay.log import Repeated
from archive_overlay.system import tree
from archive_overlay.system.flush import Never, ToDisk
from archive_overlay.system.open_flags import READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from archive_overlay.history.missing import Missing
    from archive_overlay.history.revisions import Image, Revision
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.log import Log
    from archive_overlay.system.flush import Flush


def run(options: argparse.Namespace, log: Log) -> None:
    """Make the directory: whole, or not at all.

    Args:
        options: `revision`, LAYOUT:TAG or LAYOUT:TAG@N; `directory`, which must be absent or empty; `paths`, all that is
            wanted of the revision, or nothing for the whole; `fsync`; `force`: diff IDs may be wrong.
        log: takes a warning of what could not be kept, and of each wrong diff ID.

    Raises:
        ArchiveError: there is no such revision, it is damaged, or the directory cannot be made.
    """
    paths = Paths()
    directory = paths.resolve(os.path.abspath(options.directory), "the directory")
    _judge(directory)
    flush: Flush = ToDisk(log.warning) if options.fsync else Never()
    parent, name = os.path.split(directory)
    image, last = open_revision(options.revision)
    with image, Staging(parent, name, paths=paths, flush=flush, log=log) as staging:
        wrong: dict[int, str] | None = {} if options.force else None
        try:
            os.mkdir(ARCHIVE, stat.S_IRWXU, dir_fd=staging.directory)
            top = os.open(ARCHIVE, READ_DIRECTORY, dir_fd=staging.directory)
        except OSError as error:
            fail(f"cannot make {staging.path}", error)
        try:
            if options.paths:
                missing = _unpack_parts(image, last, options.paths, top, wrong)
            else:
                missing = image.use(
                    lambda: image.state(last), lambda pieces: _unpack(image, pieces, top, wrong)
                )
            try:
                flush.file_system(staging.directory)
                _put(staging, top)
                flush.file(staging.parent)
            except OSError as error:
                fail(f"cannot put the revision at {directory}", error)
        finally:
            os.close(top)
    warnings = Repeated(log)
    for number, fault in (wrong or {}).items():
        warnings.warning(
            "revisions with a wrong diff ID", f"revision {number} of {image.name} was used anyway: {fault}"
        )
    warnings.finish()
    if missing:
        why = "; overlays would act on some of it, so that is never restored" if missing.marks else ""
        if "the owner" in missing and os.geteuid() != 0:
            why += "; for owners of rootless containers, run this command under podman unshare"
        log.warning(f"{directory} differs from what the container left: it lacks {missing}{why}")


def _judge(directory: str) -> None:
    """Refuse what is there already, unless it is an empty directory that can be replaced."""
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        fail(f"cannot look at {directory}", error)
    if not stat.S_ISDIR(status.st_mode):
        raise ArchiveError(f"{directory} exists and is not a directory")
    try:
        if os.listdir(directory):
            raise ArchiveError(f"{directory} is not empty", hint="name one that does not exist")
    except OSError as error:
        fail(f"cannot read {directory}", error)
    if os.path.ismount(directory):
        raise ArchiveError(
            f"{directory} is a mount point, which cannot be replaced", hint="name something inside it"
        )


def _unpack(image: Image, pieces: list[Piece], top: int, wrong: dict[int, str] | None) -> Missing:
    """Apply the layers to what is going to be the directory; give what was not given to entries."""
    tree.empty(top)  # of an attempt with layers that were damaged
    if wrong:
        wrong.clear()
    # All but the lowest are read twice.
    total = 2 * sum(piece.size for piece in pieces) - pieces[0].size
    with Progress(total), closing(Unpacker(top)) as unpacker:
        for piece in pieces:
            if piece is not pieces[0]:
                with image.read(piece, wrong_diff_ids=wrong) as tar:
                    unpacker.hide(tar)
            with image.read(piece, wrong_diff_ids=wrong) as tar:
                unpacker.apply(tar)
        unpacker.finish()
        return unpacker.missing


def _unpack_parts(
    image: Image, revision: Revision, wanted: list[str], top: int, wrong: dict[int, str] | None
) -> Missing:
    """Make only certain paths of a revision; give what was not given to entries."""
    paths = [_checked(image, revision, path) for path in wanted]
    selection = PathSet()
    for path in paths:
        selection.add(path, tree=True)
    with Progress(), States(wrong).opened(image, image.state(revision), paths=selection) as state:
        assert state is not None  # a revision has a piece
        entries = StateEntries(state, paths)
        with closing(Unpacker(top)) as unpacker:
            unpacker.apply(entries)
            unpacker.finish()
    for path, text in zip(paths, wanted):
        if path not in entries.found:
            # Links on the way are not followed: what is extracted is at the path that was asked for.
            there = look_up(image, revision, path, States(wrong), follow=False)
            raise ArchiveError(
                f"{brief(text)} leads through a symbolic link", hint=f"write {brief(there.path)}"
            )
    return unpacker.missing


def _checked(image: Image, revision: Revision, path: str) -> str:
    """Give a path of the image as it is without dots, and without a slash at the start or the end."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise ArchiveError(f"{brief(path)} is not a path in revision {revision.number} of {image.name}")
    return "/".join(parts)


def _put(staging: Staging, top: int) -> None:
    """Give the directory its name. It takes the place of nothing but an empty directory."""

    def rename() -> None:
        os.rename(ARCHIVE, staging.name, src_dir_fd=staging.directory, dst_dir_fd=staging.parent)

    try:
        rename()
    except PermissionError:
        # A directory that changes its parent must be writable to who moves it, unless that is root.
        status = os.fstat(top)
        if status.st_mode & stat.S_IWUSR or status.st_uid != os.geteuid():
            raise
        os.fchmod(top, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        rename()
        os.fchmod(top, stat.S_IMODE(status.st_mode))
