"""One example of the oracle, from empty directories to the comparison.

All of an example runs in one process inside the namespace of its mounts, on a tmpfs that goes with it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from archive_overlay import cli
from archive_overlay.log import escape
from archive_overlay.methods import METHODS
from tests.integration.conftest import extract
from tests.property import containers
from tests.support import hooks, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Callable, TypeVar

    from tests.property.containers import Operation

    T = TypeVar("T")

ARCHIVED = ("copy", "tar.gz")


@dataclass(frozen=True)
class Stack:
    """Who makes the layers of an example, and who reads its archives.

    Attributes:
        flavour: the container's mount.
        lowers: mounts of which one makes each lower layer above the lowest.
        again: what the archive is stacked again with besides the container's flavour, if it reads the
            lower layers as that does: fuse-overlayfs believes marks in them that the kernel does not.
    """

    flavour: overlays.Flavour
    lowers: tuple[overlays.Flavour, ...]
    again: tuple[overlays.Flavour, ...] = ()

    @property
    def indexed(self) -> bool:
        """Whether names of a file that are not in the upperdir show what is written to it."""
        return "index=on" in self.flavour.options

    def reader(self, makers: Sequence[overlays.Flavour]) -> overlays.Flavour:
        """Give the mount that the archive is stacked again with.

        It follows no redirect and looks for no data elsewhere, unless the lower layers alone cannot be
        read without.

        Args:
            makers: of the lower layers.
        """
        options = {option for maker in makers for option in maker.options}
        if "metacopy=on" in options:
            return overlays.Flavour("metacopy=on", options=("metacopy=on",))
        if "redirect_dir=on" in options:
            return overlays.Flavour("redirect_dir=follow", options=("redirect_dir=follow",))
        return self.flavour.standing_alone


PLAIN = overlays.NATIVE
METACOPY = overlays.Flavour("metacopy", options=("metacopy=on", "redirect_dir=on"))
REDIRECT = overlays.Flavour("redirect", options=("redirect_dir=on",))
INDEX = overlays.Flavour("index", options=("index=on",))
ALL = overlays.Flavour("all", options=("metacopy=on", "redirect_dir=on", "index=on"))
USERXATTR = overlays.NATIVE_ROOTLESS
# As root: what makes layers that fuse-overlayfs can read, and reads what it can.
USERXATTR_ROOTFUL = overlays.Flavour("userxattr", options=("userxattr",))

STACKS = {
    "plain": Stack(PLAIN, lowers=(PLAIN, REDIRECT)),
    "metacopy": Stack(METACOPY, lowers=(METACOPY, REDIRECT, PLAIN)),
    "redirect": Stack(REDIRECT, lowers=(REDIRECT, PLAIN)),
    "index": Stack(INDEX, lowers=(PLAIN, REDIRECT)),
    "all": Stack(ALL, lowers=(PLAIN, METACOPY)),
    "userxattr": Stack(USERXATTR, lowers=(USERXATTR,)),
    "fuse": Stack(overlays.FUSE, lowers=(USERXATTR_ROOTFUL,), again=(USERXATTR_ROOTFUL,)),
    "fuse-rootless": Stack(overlays.FUSE_ROOTLESS, lowers=(USERXATTR,), again=(USERXATTR,)),
}


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        stack: a name of `STACKS`.
        base: what is done to the lowest layer, an ordinary directory.
        lowers: what is done to each lower layer above it, and through which of the stack's mounts.
        changes: what the container does.
    """

    stack: str
    base: Sequence[Operation]
    lowers: Sequence[tuple[int, Sequence[Operation]]]
    changes: Sequence[Operation]


class _Here(overlays.Namespace):
    """The namespace that this process is in."""

    def __init__(self, *, rootless: bool) -> None:
        self.rootless = rootless

    def inside(self, function: Callable[[], T]) -> T:
        return function()

    def close(self) -> None:
        """Leave the namespace to those who made it."""


def faults_of(example: Example, namespace: overlays.Namespace, directory: Path) -> list[str]:
    """Run an example, and say in a line each what is wrong with the archives.

    Args:
        example: what to do.
        namespace: where to mount.
        directory: an empty directory; nothing stays in it.
    """

    def run() -> list[str]:
        overlays.mount_tmpfs(directory, "mode=755")
        try:
            return list(_faults(example, namespace.rootless, directory))
        finally:
            overlays.detach(directory)

    return namespace.inside(run)


def _faults(example: Example, rootless: bool, directory: Path) -> Iterator[str]:
    stack = STACKS[example.stack]
    (directory / "overlay").mkdir()
    overlay = overlays.Overlay(stack.flavour, directory / "overlay", _Here(rootless=rootless))
    overlay.layer(partial(containers.run, operations=example.base))
    makers = [stack.lowers[number % len(stack.lowers)] for number, _ in example.lowers]
    for maker, (_, operations) in zip(makers, example.lowers):
        overlay.layer(partial(containers.run, operations=operations), maker)
    for operations in _sessions(example.changes):
        if overlay.is_served:
            overlay.unmount()
        overlay.change(partial(containers.run, operations=operations))

    before = trees.traces(overlay.upper)
    status, log = _run_hook(overlay, directory)
    after = trees.traces(overlay.upper)
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            yield f"{path!r} in the upperdir was not only read: {before.get(path)} != {after.get(path)}"
    left = overlay.whole_view()
    if status != 0:
        yield from _faults_of_refusal(stack, overlay, log)
        return
    if stack.indexed and (elsewhere := _names_elsewhere(overlay, left)):
        yield f"saved, although the change set lacks names: {elsewhere}"
        return
    readers = [stack.reader(makers), *_agreeing(stack, overlay)]
    for method in ARCHIVED:
        archive = directory / method
        if METHODS[method].makes == "file":
            archive = directory / f"{method} extracted"
            archive.mkdir()
            extract(directory / method, archive)
        yield from (f"{method}: {fault}" for fault in _marks(archive, stack))
        # A tar has no sockets; what is below one then shows.
        gone = _sockets(left) if METHODS[method].makes == "file" else ()
        names = trees.names(archive)
        expected = _less(left, gone).linked_among(names)
        for flavour in readers:
            found = _less(overlay.whole_restacked(archive, flavour), gone).linked_among(names)
            for fault in trees.differences(expected, found):
                yield f"{method} stacked again as {flavour.name}: {fault}"


def _agreeing(stack: Stack, overlay: overlays.Overlay) -> list[overlays.Flavour]:
    """Give the other mounts that show the lower layers as the container's does."""
    if not stack.again:
        return []
    nothing = overlay.directory / "nothing"
    nothing.mkdir()
    expected = overlay.whole_restacked(nothing, stack.flavour)
    return [
        flavour
        for flavour in stack.again
        if not trees.differences(expected, overlay.whole_restacked(nothing, flavour))
    ]


def _sockets(seen: trees.View) -> tuple[bytes, ...]:
    return tuple(path for path, entry in seen.entries.items() if entry.kind == "socket")


def _less(seen: trees.View, gone: tuple[bytes, ...]) -> trees.View:
    """Give the view without some names and all that is below them."""
    below = tuple(path + b"/" for path in gone)
    return trees.View(
        {
            path: entry
            for path, entry in seen.entries.items()
            if path not in gone and not path.startswith(below)
        },
        seen.links,
    )


def _sessions(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Split what a container does where it is remounted."""
    sessions: list[list[Operation]] = [[]]
    for operation in operations:
        if operation == containers.REMOUNT:
            sessions.append([])
        else:
            sessions[-1].append(operation)
    return sessions


def _run_hook(overlay: overlays.Overlay, directory: Path) -> tuple[int, str]:
    """Run the program in a process of its own, with no start of an interpreter, and give its stderr."""
    asked: dict[str, str] = {}
    for number, method in enumerate(ARCHIVED):
        asked |= hooks.annotations(
            f"archive{number}", mount_point="/data", method=method, archive_to=directory / method
        )
    bundle = hooks.Bundle(directory / "bundle", mounts=[overlay.spec_mount()], annotations=asked)
    log = directory / "log"
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            signal.alarm(containers.LONGEST)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
            status = cli.main(["--log-level=warning", "--no-fsync", "--bundle", str(bundle.directory)])
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, log.read_text(errors="surrogateescape")


def _faults_of_refusal(stack: Stack, overlay: overlays.Overlay, log: str) -> Iterator[str]:
    """Nothing is refused but a change set that lacks names, and then the error says which file it is."""
    errors = [line.message for line in hooks.parse_log(log) if line.level == "error"]
    if len(errors) != len(ARCHIVED):
        yield f"{len(ARCHIVED)} requests and {len(errors)} errors: {log}"
    lacking = _linked_elsewhere(overlay) if stack.indexed else []
    for error in errors:
        if not any(escape(name) in error for name in lacking):
            yield f"refused: {error}"
    for method in ARCHIVED:
        if os.path.lexists(overlay.directory.parent / method):
            yield f"refused, but there is an archive by {method}"


def _linked_elsewhere(overlay: overlays.Overlay) -> list[str]:
    """Give the files that count names outside of the upperdir, be these visible or deleted in between.

    The count is what a file has more in the overlay than in the upper layer, where it has one more, the
    index entry: overlayfs.rst, "Index".
    """
    found = []
    for path, entry in trees.view(overlay.upper).entries.items():
        count = dict(entry.attributes).get("trusted.overlay.nlink", b"")
        if count.startswith(b"U+"):
            found.append(os.path.join(overlay.upper, os.fsdecode(path)))
    return found


def _names_elsewhere(overlay: overlays.Overlay, left: trees.View) -> list[list[bytes]]:
    """Give the files of which some names are in the upperdir and others are not."""
    inside = trees.names(overlay.upper)
    return [sorted(group) for group in left.links if group & inside and group - inside]


def _marks(archive: Path, stack: Stack) -> Iterator[str]:
    """Complain of attributes in an archive that would mean something to an overlay."""
    for path, entry in trees.view(archive).entries.items():
        for name, value in entry.attributes:
            space = next((space for space in stack.flavour.bookkeeping if name.startswith(space)), None)
            if space and name[len(space) :] != "opaque" and not name.startswith(f"{space}overlay."):
                yield f"{path!r} has {name}={value!r}"
