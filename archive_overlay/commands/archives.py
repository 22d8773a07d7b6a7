"""A change set that is stored somewhere, opened by its name on a command line, whatever form it is stored in."""

from __future__ import annotations

import os
import stat
from contextlib import closing, contextmanager

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.composing import compose_layers
from archive_overlay.history.layer_source import LayerSource
from archive_overlay.history.references import layout_within, looks_like_layout
from archive_overlay.history.revisions import open_revision
from archive_overlay.history.spool import unnamed_file
from archive_overlay.history.states import spool_directory
from archive_overlay.log import Log
from archive_overlay.marks import (
    FUSE_OPAQUE,
    FUSE_SECURITY,
    FUSE_USER,
    TRUSTED,
    TRUSTED_OPAQUE,
    USER,
    USER_OPAQUE,
)
from archive_overlay.overlay import dialect, upper
from archive_overlay.overlay.change import DIRECTORY as DIRECTORY_ENTRY
from archive_overlay.overlay.change import TOP, TreePath
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.system.activity import NOW
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.system.tree import Descent
from archive_overlay.system.user_namespace import has_all_users, sees_trusted_attributes
from archive_overlay.tar import changes
from archive_overlay.tar.compress import write_all
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.layer_form import LayerForm, true_name
from archive_overlay.tar.reader import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Callable

    from archive_overlay.history.revisions import Image
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source
    from archive_overlay.overlay.dialect import Dialect

# The kinds of archives, by the names that `--as` has for them.
LAYOUT = "layout"
DIRECTORY = "directory"
TAR = "tar"

# What stands for a tar on standard input.
STDIN = "-"
_STDIN = 0
_PIECE = 1024 * 1024

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

_OPAQUE_ATTRIBUTES = {
    "trusted": (TRUSTED_OPAQUE,),
    "user": (USER_OPAQUE,),
    "fuse": (TRUSTED_OPAQUE, FUSE_OPAQUE),
    "oci": (),
}


class Tar:
    """A tar, or a layer of an image: each is read as a tar, and may be read several times.

    Attributes:
        kind: `TAR` or `LAYOUT`.
        form: the marks that count in it.
        open: gives a context manager, and that a `TarReader` at the start of the tar. What fails in it is an
            `ArchiveError` that names the archive. At the end of it the rest is read and verified, so nothing may be
            believed of what was read before that.
        size: bytes that are read each time.
    """

    def __init__(
        self,
        kind: str,
        form: changes.Form,
        opener: Callable[[], AbstractContextManager[TarReader]],
        size: int,
    ) -> None:
        self.kind = kind
        self.form = form
        self.open = opener
        self.size = size

    def changes(self) -> Iterator[Change]:
        """Give what it holds, without data and attributes (see `changes.read_changes`).

        It is read twice: nothing is given of one that is damaged. A directory that may be there only for what is in it is
        `implicit`.

        Raises:
            ArchiveError: it is damaged, or cannot be read.
        """
        NOW.expected += 2 * self.size
        with self.open() as tar:
            marks = changes.read_marks(tar, self.form)
        with self.open() as tar:
            for change in changes.read_changes(tar, self.form, marks):
                if change.kind is DIRECTORY_ENTRY and not change.opaque:
                    change.implicit = marks.is_only_on_the_way(change.path)
                yield change

    @contextmanager
    def source(self) -> Generator[Source, None, None]:
        """Give what it holds, with data and attributes.

        Raises:
            ArchiveError: it is damaged, cannot be read, or says something more than once in ways that contradict.
        """

        NOW.expected += self.size

        @contextmanager
        def translated() -> Generator[Any, None, None]:
            with self.open() as tar:
                yield LayerForm(tar, self.form)

        with spool_directory() as spool, LayerSource(translated, spool) as source:
            yield source if self.form.whiteout_files else _TrueNames(source)


class Directory:
    """An upperdir, or an archive that is a directory.

    Attributes:
        kind: `DIRECTORY`.
        overlay: to be read by `overlay.upper.read_changes`. It has no lower layers.
    """

    kind = DIRECTORY

    def __init__(self, overlay: OverlayMount) -> None:
        self.overlay = overlay

    def changes(self) -> Iterator[Change]:
        """Give what it holds, with data and attributes, which are valid until the next change is taken.

        Raises:
            ArchiveError: it cannot be read.
        """
        stream = upper.read_changes(self.overlay, Log("panic", []))
        try:
            yield from stream
        finally:
            stream.close()

    @contextmanager
    def source(self) -> Generator[upper.UpperReader, None, None]:
        """Give what it holds; see `changes`."""
        with closing(upper.UpperReader(self.overlay, Log("panic", []))) as reader:
            yield reader


class _TrueNames:
    """A source with the names that its tar has; see `LayerForm`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._directories: list[TreePath] = []
        self.is_directory = source.is_directory
        self.skip = source.skip

    def ahead(self) -> tuple[int, str] | None:
        place = self._source.ahead()
        return place and (place[0], true_name(place[1]))

    def take(self) -> Change | None:
        place = self._source.ahead()
        change = self._source.take()
        if change is not None and place is not None:
            depth = place[0]
            del self._directories[depth + 1 :]
            change.name = true_name(change.name)
            change.directory = self._directories[depth] if depth >= 0 else TOP
            if change.kind is DIRECTORY_ENTRY:
                self._directories.append(TreePath(change.directory, change.name) if change.name else TOP)
            if change.link_to is not None:
                parts = change.link_to.text.split("/")
                change.link_to = TreePath(TOP, "/".join(map(true_name, parts)))
        return change


@contextmanager
def open_archive(
    what: str, log: Log, *, kind: str | None = None, marks: str | None = None
) -> Generator[Tar | Directory, None, None]:
    """Open whatever it is.

    Args:
        what: path of a tar or directory, LAYOUT:TAG@N, or STDIN.
        log: takes a warning if marks may be there that this process does not see.
        kind: `LAYOUT`, `DIRECTORY` or `TAR`; None: found out from what is there, as far as that needs no guess.
        marks: the marks to believe, "trusted", "user", "fuse" or "oci"; None: those that are in it. What tars of this
            program say of that is believed, and layers are layers. A directory's are seen from what is in it
            (`_guess_marks`), and in a tar of anybody else all marks count.

    Raises:
        ArchiveError: there is no such archive, it may be one kind or another, or it cannot be read.
    """
    kind = kind or (TAR if what == STDIN else kind_of(what, marks))
    if kind == LAYOUT:
        image, revision = open_revision(what)
        with image:
            pieces = image.change_set(revision)
            if len(pieces) == 1:
                yield Tar(kind, _form(marks or "oci"), lambda: image.read(pieces[0]), pieces[0].size)
                return
            shown = f"revision {revision.number} of {image.name}"
            with _composed(image, pieces, shown, log) as fd:
                yield Tar(kind, _form(marks or "oci"), lambda: _opened_tar(shown, fd), os.fstat(fd).st_size)
    elif kind == DIRECTORY:
        path = os.path.abspath(what)
        yield Directory(
            OverlayMount(upper=path, lowers=(), dialect=_dialect(marks or _guess_marks(path, log)))
        )
    else:
        shown = "standard input" if what == STDIN else what
        with _standard_input() if what == STDIN else _opened_file(what) as fd:
            form = _form(marks or _said_marks(shown, fd))
            yield Tar(kind, form, lambda: _opened_tar(shown, fd), os.fstat(fd).st_size)


def plain_tree(path: str) -> Directory:
    """Give a directory in which nothing is a mark."""
    return Directory(OverlayMount(upper=os.path.abspath(path), lowers=(), dialect=dialect.RAW))


def kind_of(what: str, marks: str | None) -> str:
    """Say what it is, as far as that is settled by what no container can have made.

    Raises:
        ArchiveError: it may be one thing or another, or is neither.
    """
    layout = layout_within(what)
    try:
        status = os.stat(what)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not layout and ":" not in os.path.basename(what):
            fail(f"cannot read {what}", error)
        return LAYOUT
    except (OSError, ValueError) as error:
        raise ArchiveError(f"cannot read {what}: {error}") from error
    kinds = {stat.S_IFREG: TAR, stat.S_IFDIR: DIRECTORY}
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise ArchiveError(f"{what} is neither a directory nor a regular file")
    hint = f"say which: --as layout {what}, or --as {kind} {what}"
    if layout:
        raise ArchiveError(f"{what} exists, and {layout} may have an image of that name too", hint=hint)
    # What is in a directory archive or an upperdir, a container made: files with the names of a layout's among it.
    if kind == DIRECTORY and marks is None and looks_like_layout(what):
        raise ArchiveError(
            f"{what} may be an image layout, or a directory that a container made look like one", hint=hint
        )
    return kind


@contextmanager
def _composed(image: Image, pieces: Sequence[Piece], shown: str, log: Log) -> Generator[int, None, None]:
    """Compose what a revision changed, where it is stored in several parts, into a file without a name."""
    with spool_directory() as spool:
        try:
            fd = unnamed_file(spool)
        except OSError as error:
            fail(f"cannot keep {shown} aside", error)
        try:
            compose_layers(
                [lambda piece=piece: image.read(piece) for piece in pieces],  # type: ignore[misc]
                fd,
                directory=spool,
                where="a file without a name",
                compression="none",
                level=0,
                jobs=1,
                log=log,
            )
            yield fd
        finally:
            os.close(fd)


@contextmanager
def _standard_input() -> Generator[int, None, None]:
    """Give what is on standard input as a file that can be read several times."""
    fd = _keep_standard_input()
    try:
        yield fd
    finally:
        os.close(fd)


def _keep_standard_input() -> int:
    """Keep what is on standard input aside in a file without a name, unless it is a file itself."""
    with spool_directory() as spool:
        try:
            if stat.S_ISREG(os.fstat(_STDIN).st_mode):
                return os.dup(_STDIN)
            fd = unnamed_file(spool)
            try:
                while data := os.read(_STDIN, _PIECE):
                    NOW.read += len(data)
                    write_all(fd, data)
                NOW.expected += os.fstat(fd).st_size
                if not os.fstat(fd).st_size:
                    raise ArchiveError("standard input is empty, so it is not a tar")
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            fail("cannot keep aside what is on standard input", error)
    return fd


@contextmanager
def _opened_file(path: str) -> Generator[int, None, None]:
    try:
        fd = os.open(path, _READ)
    except (OSError, ValueError) as error:
        raise ArchiveError(f"cannot read {path}: {getattr(error, 'strerror', '') or error}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ArchiveError(f"cannot read {path}: it is not a regular file")
        if not os.fstat(fd).st_size:
            raise ArchiveError(f"cannot read {path}: it is empty, so it is not a tar")
        yield fd
    finally:
        os.close(fd)


def _said_marks(path: str, fd: int) -> str | None:
    """Give the marks that are in a tar, as it says itself; None: it says nothing."""
    with _read_tar(path, fd) as (tar, _):
        next(tar.entries(), None)
        return tar.marks or None


@contextmanager
def _opened_tar(path: str, fd: int) -> Generator[TarReader, None, None]:
    """Give the tar that a file is, from its start; in the end, see that the rest is what was compressed."""
    with _read_tar(path, fd) as (tar, reader):
        yield tar
        reader.finish()


@contextmanager
def _read_tar(path: str, fd: int) -> Generator[tuple[TarReader, Reader], None, None]:
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        reader = Reader(os.dup(fd))
        try:
            yield TarReader(reader), reader
        finally:
            reader.close()
    except OSError as error:
        fail(f"cannot read {path}", error)
    except ArchiveError as error:
        raise ArchiveError(f"cannot read {path}: {error.message}", hint=error.hint) from error


def _form(marks: str | None) -> changes.Form:
    """Give the marks to believe in a tar; all, if it is not known who made it."""
    if marks == "oci":
        return changes.LAYER
    return changes.Form(
        whiteout_files=marks is None,
        whiteout_devices=True,
        opaque_attributes=_OPAQUE_ATTRIBUTES[marks] if marks else (TRUSTED_OPAQUE, USER_OPAQUE),
    )


def _dialect(marks: str) -> Dialect:
    """Give the marks to believe.

    There are no lower layers, so nothing is looked up there; and nothing is going to be written, so no other
    mark must be left out.
    """
    attributes = _OPAQUE_ATTRIBUTES[marks]
    return dialect.Dialect(
        name=marks,
        namespaces=attributes,
        opaque_attributes=attributes,
        opaque_attribute="",
        whiteout_files=marks in ("fuse", "oci"),
        escapes=False,
        redirects=dialect.IGNORED,
    )


def _guess_marks(path: str, log: Log) -> str:
    """Say whose marks a directory has, by those that only one kind of overlay makes.

    The kernel's own bookkeeping settles it, because no container can write it. What is left could be
    made by a container that wants to be misread.
    """
    found: set[str] = set()
    try:
        descent = Descent(os.open(path, READ_TOP_DIRECTORY))
        try:
            pending = [_marks_here(descent.fd, found)]
            while pending and "kernel" not in found:
                if pending[-1]:
                    descent.enter(pending[-1].pop())
                    pending.append(_marks_here(descent.fd, found))
                else:
                    pending.pop()
                    if pending:
                        os.close(descent.leave())
        finally:
            descent.close()
    except OSError as error:
        fail(f"cannot read {path}", error)
    for marks in ("kernel", "fuse", "trusted", "user"):
        if marks in found:
            return "trusted" if marks == "kernel" else marks
    if sees_trusted_attributes():
        return "trusted" if os.geteuid() == 0 else "user"
    # What a rootless engine's containers made is marked otherwise.
    if os.stat(path).st_uid != os.geteuid() or (os.geteuid() == 0 and has_all_users()):
        log.warning(
            f"if root's containers made {path}, its opaque directories are taken for ordinary ones: what marks them can be seen"
            " only with CAP_SYS_ADMIN"
        )
    return "user"


def _marks_here(directory: int, found: set[str]) -> list[str]:
    """Add the marks of a directory to those that were found; give the directories in it."""
    for name in os.listxattr(directory):
        if name.startswith(TRUSTED):
            found.add("trusted" if name == TRUSTED_OPAQUE else "kernel")
        elif name.startswith((FUSE_USER, FUSE_SECURITY)):
            found.add("fuse")
        elif name.startswith(USER):
            found.add("user")
    with os.scandir(directory) as entries:
        names = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                names.append(entry.name)
            elif entry.name in dialect.OPAQUE_MARKERS:
                found.add("fuse")
    return names
