"""`archive_overlay show`: what is known of a revision and what it changed, or of a path in it."""

from __future__ import annotations

import json
import os
import stat
import time

from archive_overlay.commands import Output, human_size, shown
from archive_overlay.commands.diff import revision_differences
from archive_overlay.commands.differences import object_of, text_of
from archive_overlay.commands.terminal import find_screen, wrapped
from archive_overlay.history.lookup import last_changed, look_up
from archive_overlay.history.references import split_off_path
from archive_overlay.history.revisions import open_revision
from archive_overlay.history.states import States
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from archive_overlay.history.lookup import Fact, Looked
    from archive_overlay.history.revisions import Image, Revision
    from archive_overlay.log import Log

_TYPES = {
    DIRECTORY: stat.S_IFDIR,
    FILE: stat.S_IFREG,
    SYMLINK: stat.S_IFLNK,
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
    CHARACTER_DEVICE: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK,
}
_LABEL_WIDTH = 16
_DEVICES = (CHARACTER_DEVICE, BLOCK_DEVICE)


def run(options: argparse.Namespace, log: Log) -> None:
    """Write what is known to standard output.

    Args:
        options: `what`, LAYOUT:TAG or LAYOUT:TAG@N, perhaps with :PATH; `json`; how it is shown. Of symbolic links in the path all
            but the last component are followed, within the image.
        log: takes a warning if what was there before a revision cannot be read.

    Raises:
        ArchiveError: there is no such thing, or it cannot be read or written.
        BrokenPipeError: nobody reads the output any more.
    """
    text, path = split_off_path(options.what)
    states = States()
    output = Output()
    image, revision = open_revision(text)
    with image:
        if path is None:
            _show_revision(image, revision, states, output, options, log)
        else:
            looked = look_up(image, revision, path, states, follow=path.endswith("/"))
            if looked.fact.kind is DIRECTORY:
                _show_directory(looked, output, options)
            else:
                _show_entry(image, looked, states, output, options)
    output.flush()


def _show_revision(
    image: Image,
    revision: Revision,
    states: States,
    output: Output,
    options: argparse.Namespace,
    log: Log,
) -> None:
    facts = _facts(image, revision)
    with revision_differences(image, revision, states, log) as (differences, _):
        if options.json:
            known = json.dumps(facts)[:-1]
            output.line(f'{known}, "changes": [')
            before = " "
            for difference in differences:
                output.line(f"{before}{json.dumps(object_of(difference))}")
                before = ","
            output.line("]}")
            return
        screen = find_screen(options)
        for name, value in facts.items():
            if value is not None:
                label, text = f"{name.replace('_', ' ')}:".ljust(_LABEL_WIDTH), shown(str(value))
                if screen.fixed:
                    # The label takes the place of the first line's margin.
                    lines = wrapped(text, screen.width, margin=" " * _LABEL_WIDTH, cuts_words=False)
                    text = "\n".join(lines).lstrip(" ")
                output.line(f"{label}{text}")
        output.line("")
        for difference in differences:
            output.line(text_of(difference, screen))


def _facts(image: Image, revision: Revision) -> dict[str, Any]:
    origin = revision.provenance
    of_origin = (
        "message",
        "container",
        "container_name",
        "image",
        "archive",
        "mount_point",
        "entries",
        "deletions",
        "bytes",
        "excluded",
        "parent",
        "base",
    )
    known = {name: getattr(origin, name, None) for name in of_origin}
    parent = known.pop("parent") or revision.previous or None
    return {
        "revision": revision.number,
        "of": image.name,
        "parent": parent,
        "created": revision.created or None,
        **{name: None if value == "" else value for name, value in known.items()},
        "created_by": revision.created_by or None,
        "comment": revision.comment or None,
    }


def _show_directory(looked: Looked, output: Output, options: argparse.Namespace) -> None:
    if options.json:
        before = "["
        for name, fact in looked.entries.items():
            output.line(f"{before}{json.dumps({'name': name, **_object(fact)})}")
            before = ","
        output.line("]" if before == "," else "[]")
        return
    human = find_screen(options).human
    rows = [_row(fact, name, human=human) for name, fact in looked.entries.items()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for mode, uid, gid, size, when, name in rows:
        owner = f"{uid.rjust(widths[1])} {gid.rjust(widths[2])}"
        output.line(f"{mode} {owner} {size.rjust(widths[3])} {when} {name}")


def _show_entry(
    image: Image, looked: Looked, states: States, output: Output, options: argparse.Namespace
) -> None:
    first, last = last_changed(image, looked, states)
    if options.json:
        known = {"path": looked.path, **_object(looked.fact)}
        known["last_changed"] = last
        if first != last:
            known["last_changed_after"] = first - 1
        output.line(json.dumps(known))
        return
    fact = looked.fact
    mode, uid, gid, size, when, name = _row(fact, looked.path, human=find_screen(options).human)
    facts = {
        "path": name,
        "type": fact.kind,
        "mode": f"{fact.mode:04o} ({mode})",
        "owner": f"{uid} {gid}",
        "device" if fact.kind in _DEVICES else "size": size,
        "modified": when,
        "attributes": ", ".join(map(shown, fact.attributes)) or None,
        "link to": shown(fact.link_to) if fact.link_to else None,
        "last changed": f"revision {last}" if first == last else f"one of revisions {first} to {last}",
    }
    if fact.kind not in (FILE, *_DEVICES):
        del facts["size"]
    for label, value in facts.items():
        if value is not None:
            output.line(f"{label + ':':<{_LABEL_WIDTH}}{value}")


def _row(fact: Fact, name: str, *, human: bool) -> tuple[str, ...]:
    size = human_size(fact.size) if human else str(fact.size)
    if fact.kind in _DEVICES:
        size = f"{os.major(fact.rdev)}, {os.minor(fact.rdev)}"
    elif fact.kind is not FILE:
        size = "-"
    target = f" -> {shown(fact.target)}" if fact.kind is SYMLINK else ""
    return (
        stat.filemode(_TYPES[fact.kind] | (0o777 if fact.kind is SYMLINK else fact.mode)),
        str(fact.uid),
        str(fact.gid),
        size,
        _time(fact.mtime_ns),
        shown(name) + target,
    )


def _time(mtime_ns: int) -> str:
    """Give a time as people read it, in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mtime_ns // 10**9))
    except (OverflowError, ValueError, OSError):
        return f"{mtime_ns // 10**9} s".rjust(19)


def _object(fact: Fact) -> dict[str, Any]:
    known: dict[str, Any] = {
        "type": fact.kind,
        "mode": f"{fact.mode:04o}",
        "uid": fact.uid,
        "gid": fact.gid,
        "mtime_ns": fact.mtime_ns,
    }
    if fact.kind is FILE:
        known["size"] = fact.size
    if fact.kind is SYMLINK:
        known["target"] = fact.target
    if fact.kind in _DEVICES:
        known["device"] = [os.major(fact.rdev), os.minor(fact.rdev)]
    if fact.link_to:
        known["link_to"] = fact.link_to
    if fact.attributes:
        known["attributes"] = [*fact.attributes]
    return known
