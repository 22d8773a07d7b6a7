"""`archive_overlay diff`: what a change set holds, whatever form it is stored in."""

from __future__ import annotations

import json
import os
import stat
from contextlib import contextmanager

from archive_overlay.commands import Output, human_size
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.revisions import is_layout, open_revision
from archive_overlay.history.unpack import split_path
from archive_overlay.log import Log, escape
from archive_overlay.marks import (
    FUSE_OPAQUE,
    FUSE_SECURITY,
    FUSE_USER,
    OPAQUE_MARKER,
    TRUSTED,
    TRUSTED_OPAQUE,
    USER,
    USER_OPAQUE,
    WHITEOUT_PREFIX,
)
from archive_overlay.overlay import dialect
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    WHITEOUT,
)
from archive_overlay.overlay.locate import OverlayMount
from archive_overlay.overlay.upper import read_changes
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.system.tree import Descent
from archive_overlay.tar import headers
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterable, Iterator
    from typing import Any

    from archive_overlay.overlay.dialect import Dialect
    from archive_overlay.tar.reader import Entry

_ADDED = "A"
_DELETED = "D"
_OPAQUE = "O"

_MEANINGS = {_ADDED: "changed", _DELETED: "deleted", _OPAQUE: "opaque"}
_COLOURS = {_ADDED: 32, _DELETED: 31, _OPAQUE: 35}
_SIZE_WIDTH = 12
_HUMAN_WIDTH = 5
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

_TYPES = {
    headers.REGULAR: FILE,
    headers.SYMLINK: SYMLINK,
    headers.CHARACTER_DEVICE: CHARACTER_DEVICE,
    headers.BLOCK_DEVICE: BLOCK_DEVICE,
    headers.DIRECTORY: DIRECTORY,
    headers.FIFO: FIFO,
}
_OPAQUE_ATTRIBUTES = {
    "trusted": (TRUSTED_OPAQUE,),
    "user": (USER_OPAQUE,),
    "fuse": (TRUSTED_OPAQUE, FUSE_OPAQUE),
    "oci": (),
}


class Line:
    """One path of a change set.

    Attributes:
        letter: what became of it.
        path: relative to the top; "." is the top itself.
        kind: one of those of `overlay.changes`; "" of what was deleted.
        size: of a file that is no hard link, in bytes; None of everything else.
        target: of a symbolic link.
        link_to: of a hard link: the path that it is one with.
        mode, uid, gid: of what was not deleted.
    """

    __slots__ = ("gid", "kind", "letter", "link_to", "mode", "path", "size", "target", "uid")

    def __init__(
        self,
        letter: str,
        path: str,
        *,
        kind: str = "",
        size: int | None = None,
        target: str = "",
        link_to: str = "",
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        self.letter = letter
        self.path = path
        self.kind = kind
        self.size = size
        self.target = target
        self.link_to = link_to
        self.mode = mode
        self.uid = uid
        self.gid = gid


def run(options: argparse.Namespace, log: Log) -> None:
    """Write the change set to standard output.

    Args:
        options: `what`; `marks` or None; `stat`, `json`, `human`.
        log: takes nothing.

    Raises:
        ArchiveError: there is no such change set, or it cannot be read.
    """
    output = Output()
    with _lines(options.what, options.marks) as lines:
        if options.stat:
            _write_totals(lines, output, options)
        elif options.json:
            _write_json(lines, output)
        else:
            for line in lines:
                output.line(_text(line, terminal=output.terminal, human=options.human))
    output.flush()


def _write_totals(lines: Iterable[Line], output: Output, options: argparse.Namespace) -> None:
    counts = dict.fromkeys(_MEANINGS, 0)
    size = 0
    for line in lines:
        counts[line.letter] += 1
        size += line.size or 0
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


def _write_json(lines: Iterable[Line], output: Output) -> None:
    before = "["
    for line in lines:
        output.line(f"{before}{json.dumps(_object(line))}")
        before = ","
    output.line("]" if before == "," else "[]")


def _object(line: Line) -> dict[str, Any]:
    known: dict[str, Any] = {"path": line.path, "change": _MEANINGS[line.letter]}
    if line.letter != _DELETED:
        known.update(type=line.kind, mode=f"{line.mode:04o}", uid=line.uid, gid=line.gid)
    if line.size is not None:
        known["size"] = line.size
    if line.kind is SYMLINK and not line.link_to:
        known["target"] = line.target
    if line.link_to:
        known["link_to"] = line.link_to
    return known


def _text(line: Line, *, terminal: bool, human: bool) -> str:
    path = escape(line.path)
    if line.kind is DIRECTORY:
        path += "/"
    elif line.link_to:
        path += f" => {escape(line.link_to)}"
    elif line.kind is SYMLINK:
        path += f" -> {escape(line.target)}"
    size = "-"
    if line.size is not None:
        size = human_size(line.size) if human else str(line.size)
    before, after = (f"\x1b[{_COLOURS[line.letter]}m", "\x1b[0m") if terminal else ("", "")
    return f"{before}{line.letter} {size.rjust(_HUMAN_WIDTH if human else _SIZE_WIDTH)} {path}{after}"


@contextmanager
def _lines(what: str, marks: str | None) -> Generator[Iterable[Line], None, None]:
    """Open whatever it is, and give what it holds."""
    try:
        status = os.stat(what)
    except (FileNotFoundError, NotADirectoryError) as error:
        if ":" not in os.path.basename(what):
            fail(f"cannot read {what}", error)
        status = None
    except (OSError, ValueError) as error:
        raise ArchiveError(f"cannot read {what}: {error}") from error
    if status is None or (stat.S_ISDIR(status.st_mode) and marks is None and is_layout(what)):
        image, revision = open_revision(what)
        with image, image.layer(revision) as tar:
            lines = _of_tar(tar, marks or "oci")
        yield lines
    elif stat.S_ISDIR(status.st_mode):
        yield _of_directory(os.path.abspath(what), marks)
    elif stat.S_ISREG(status.st_mode):
        try:
            reader = Reader(os.open(what, _READ))
            try:
                lines = _of_tar(TarReader(reader), marks)
                reader.finish()
            finally:
                reader.close()
        except OSError as error:
            fail(f"cannot read {what}", error)
        except ArchiveError as error:
            raise ArchiveError(f"cannot read {what}: {error.message}", hint=error.hint) from error
        yield lines
    else:
        raise ArchiveError(f"{what} is neither a directory nor a regular file")


def _of_tar(tar: TarReader, marks: str | None) -> list[Line]:
    """Give what a tar holds, all of it: a mark may come after what it is about, and damage at the end."""
    lines: list[Line | None] = []
    opaque: set[str] = set()
    directories: dict[str, int] = {}  # where in `lines` they are
    attributes = _OPAQUE_ATTRIBUTES[marks] if marks else (TRUSTED_OPAQUE, USER_OPAQUE)
    for entry in tar.entries():
        parts = split_path(entry.name)
        name = parts[-1] if parts else ""
        if marks in (None, "oci") and name.startswith(WHITEOUT_PREFIX):
            directory = "/".join(parts[:-1])
            if name == OPAQUE_MARKER:
                opaque.add(directory or ".")
            elif entry.type == headers.REGULAR:
                parts[-1] = name[len(WHITEOUT_PREFIX) :]
                lines.append(Line(_DELETED, "/".join(parts)))
            continue
        path = "/".join(parts) or "."
        if entry.type == headers.CHARACTER_DEVICE and entry.device == 0 and marks != "oci":
            lines.append(Line(_DELETED, path))
            continue
        if entry.type == headers.DIRECTORY:
            directories[path] = len(lines)
            if any(entry.attributes.get(attribute) == b"y" for attribute in attributes):
                opaque.add(path)
        lines.append(_line_of_entry(entry, path))
    for path in sorted(opaque):
        line = lines[directories[path]] if path in directories else None
        if line:
            line.letter = _OPAQUE
        else:
            lines.append(Line(_OPAQUE, path, kind=DIRECTORY))
    top = directories.get(".")
    if top is not None and "." not in opaque:
        lines[top] = None  # it is in every change set
    return [line for line in lines if line]


def _line_of_entry(entry: Entry, path: str) -> Line:
    linked = entry.type == headers.HARD_LINK
    kind = FILE if linked else _TYPES[entry.type]
    return Line(
        _ADDED,
        path,
        kind=kind,
        size=entry.size if kind is FILE and not linked else None,
        target=entry.link if entry.type == headers.SYMLINK else "",
        link_to="/".join(split_path(entry.link)) if linked else "",
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
    )


def _of_directory(path: str, marks: str | None) -> Iterator[Line]:
    """Give what an upperdir or an archive that is a directory holds."""
    overlay = OverlayMount(upper=path, lowers=(), dialect=_dialect(marks or _guess_marks(path)))
    stream = read_changes(overlay, Log("panic", []))
    try:
        for change in stream:
            if change.kind is WHITEOUT:
                yield Line(_DELETED, change.path)
            elif change.name or change.opaque:
                yield Line(
                    _OPAQUE if change.opaque else _ADDED,
                    change.path or ".",
                    kind=change.kind,
                    size=change.size if change.kind is FILE and change.link_to is None else None,
                    target=change.target,
                    link_to=change.link_to or "",
                    mode=change.mode,
                    uid=change.uid,
                    gid=change.gid,
                )
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
