"""`archive_overlay diff`: what a change set holds, whatever form it is stored in."""

from __future__ import annotations

import json
import os
import stat
from contextlib import contextmanager

from archive_overlay.commands import Output, human_size
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.revisions import looks_like_layout, open_revision
from archive_overlay.log import Log, escape
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
from archive_overlay.overlay.change import DIRECTORY, FILE, SYMLINK, WHITEOUT
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.system.tree import Descent
from archive_overlay.tar import changes
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterable, Iterator
    from typing import Any

    from archive_overlay.history.revisions import Image, Revision
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.dialect import Dialect

_LAYOUT = "layout"
_DIRECTORY = "directory"
_TAR = "tar"

_ADDED = "A"
_DELETED = "D"
_OPAQUE = "O"

_MEANINGS = {_ADDED: "changed", _DELETED: "deleted", _OPAQUE: "opaque"}
_COLOURS = {_ADDED: 32, _DELETED: 31, _OPAQUE: 35}
_SIZE_WIDTH = 12
_HUMAN_WIDTH = 5
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

_OPAQUE_ATTRIBUTES = {
    "trusted": (TRUSTED_OPAQUE,),
    "user": (USER_OPAQUE,),
    "fuse": (TRUSTED_OPAQUE, FUSE_OPAQUE),
    "oci": (),
}


def run(options: argparse.Namespace, log: Log) -> None:
    """Write the change set to standard output.

    Args:
        options: `what`; `kind` (one of `cli.KINDS`) and `marks`, or None; `stat`, `json`, `human`.
        log: takes nothing.

    Raises:
        ArchiveError: there is no such change set, or it cannot be read.
    """
    output = Output()
    with _changes(options.what, options.kind, options.marks) as found:
        # The top is in every change set, as a directory.
        shown = (change for change in found if change.name or change.opaque or change.kind is not DIRECTORY)
        if options.stat:
            _write_totals(shown, output, options)
        elif options.json:
            _write_json(shown, output)
        else:
            for change in shown:
                output.line(_text(change, terminal=output.terminal, human=options.human))
    output.flush()


def _letter(change: Change) -> str:
    if change.kind is WHITEOUT:
        return _DELETED
    return _OPAQUE if change.opaque else _ADDED


def _size(change: Change) -> int | None:
    """Give the size of a file, once: not at its further names."""
    return change.size if change.kind is FILE and change.link_to is None else None


def _write_totals(shown: Iterable[Change], output: Output, options: argparse.Namespace) -> None:
    counts = dict.fromkeys(_MEANINGS, 0)
    size = 0
    for change in shown:
        counts[_letter(change)] += 1
        size += _size(change) or 0
    totals = {
        "entries": counts[_ADDED] + counts[_OPAQUE],
        "deletions": counts[_DELETED],
        "opaque": counts[_OPAQUE],
        "size": size,
    }
    if options.json:
        output.line(json.dumps(totals))
        return
    opaque = f" ({totals['opaque']} opaque)" if totals["opaque"] else ""
    entries = "1 entry" if totals["entries"] == 1 else f"{totals['entries']} entries"
    deletions = "1 deletion" if totals["deletions"] == 1 else f"{totals['deletions']} deletions"
    output.line(f"{entries}{opaque}, {deletions}, {human_size(size) if options.human else f'{size} bytes'}")


def _write_json(shown: Iterable[Change], output: Output) -> None:
    before = "["
    for change in shown:
        output.line(f"{before}{json.dumps(_object(change))}")
        before = ","
    output.line("]" if before == "," else "[]")


def _object(change: Change) -> dict[str, Any]:
    known: dict[str, Any] = {"path": change.path or ".", "change": _MEANINGS[_letter(change)]}
    if change.kind is WHITEOUT:
        return known
    known.update(type=change.kind, mode=f"{change.mode:04o}", uid=change.uid, gid=change.gid)
    size = _size(change)
    if size is not None:
        known["size"] = size
    if change.link_to is not None:
        known["link_to"] = change.link_to.text
    elif change.kind is SYMLINK:
        known["target"] = change.target
    return known


def _text(change: Change, *, terminal: bool, human: bool) -> str:
    letter = _letter(change)
    path = escape(change.path or ".")
    if change.kind is DIRECTORY:
        path += "/"
    elif change.link_to is not None:
        path += f" => {escape(change.link_to.text)}"
    elif change.kind is SYMLINK:
        path += f" -> {escape(change.target)}"
    size = _size(change)
    column = "-" if size is None else human_size(size) if human else str(size)
    before, after = (f"\x1b[{_COLOURS[letter]}m", "\x1b[0m") if terminal else ("", "")
    return f"{before}{letter} {column.rjust(_HUMAN_WIDTH if human else _SIZE_WIDTH)} {path}{after}"


@contextmanager
def _changes(what: str, asked: str | None, marks: str | None) -> Generator[Iterable[Change], None, None]:
    """Open whatever it is, and give what it holds."""
    kind = asked or _kind(what, marks)
    if kind == _LAYOUT:
        image, revision = open_revision(what)
        with image:
            yield _of_layer(image, revision, _form(marks or "oci"))
    elif kind == _DIRECTORY:
        yield _of_directory(os.path.abspath(what), marks)
    else:
        yield _of_tar(what, _form(marks))


def _kind(what: str, marks: str | None) -> str:
    """Say what is to be shown, as far as that is settled by what no container can have made.

    Raises:
        ArchiveError: it may be one thing or another, or is neither.
    """
    layout, colon, _ = what.rpartition(":")
    names_image = bool(colon) and "/" not in what[len(layout) :]
    try:
        status = os.stat(what)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not names_image:
            fail(f"cannot read {what}", error)
        return _LAYOUT
    except (OSError, ValueError) as error:
        raise ArchiveError(f"cannot read {what}: {error}") from error
    kinds = {stat.S_IFREG: _TAR, stat.S_IFDIR: _DIRECTORY}
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise ArchiveError(f"{what} is neither a directory nor a regular file")
    hint = f"say which: --as layout {what}, or --as {kind} {what}"
    if names_image and looks_like_layout(layout):
        raise ArchiveError(f"{what} is there, and an image of {layout} may have that name too", hint=hint)
    # What is in a directory archive or an upperdir, a container made: files with the names of a layout's among it.
    if kind == _DIRECTORY and marks is None and looks_like_layout(what):
        raise ArchiveError(
            f"{what} may be an image layout, or a directory that a container made look like one", hint=hint
        )
    return kind


def _of_layer(image: Image, revision: Revision, form: changes.Form) -> Iterator[Change]:
    """Give what a layer holds. It is read twice: nothing is shown of one that is damaged."""
    with image.layer(revision) as tar:
        marks = changes.read_marks(tar, form)
    with image.layer(revision) as tar:
        yield from changes.read_changes(tar, form, marks)


def _of_tar(path: str, form: changes.Form) -> Iterator[Change]:
    """Give what a tar holds, which is read twice as well."""
    try:
        fd = os.open(path, _READ)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ArchiveError("it is not a regular file")
            with _opened_tar(fd) as tar:
                marks = changes.read_marks(tar, form)
            with _opened_tar(fd) as tar:
                yield from changes.read_changes(tar, form, marks)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise ArchiveError(f"cannot read {path}: {getattr(error, 'strerror', '') or error}") from error
    except ArchiveError as error:
        raise ArchiveError(f"cannot read {path}: {error.message}", hint=error.hint) from error


@contextmanager
def _opened_tar(fd: int) -> Generator[TarReader, None, None]:
    """Give the tar that a file is, from its start; in the end, see that the rest is what was compressed."""
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(os.dup(fd))
    try:
        yield TarReader(reader)
        reader.finish()
    finally:
        reader.close()


def _form(marks: str | None) -> changes.Form:
    """Give the marks to believe in a tar; all, if it is not known who made it."""
    if marks == "oci":
        return changes.LAYER
    return changes.Form(
        whiteout_files=marks is None,
        whiteout_devices=True,
        opaque_attributes=_OPAQUE_ATTRIBUTES[marks] if marks else (TRUSTED_OPAQUE, USER_OPAQUE),
    )


def _of_directory(path: str, marks: str | None) -> Iterator[Change]:
    """Give what an upperdir or an archive that is a directory holds."""
    overlay = OverlayMount(upper=path, lowers=(), dialect=_dialect(marks or _guess_marks(path)))
    stream = upper.read_changes(overlay, Log("panic", []))
    try:
        yield from stream
    finally:
        stream.close()


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


def _guess_marks(path: str) -> str:
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
    return "trusted" if os.geteuid() == 0 else "user"


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
