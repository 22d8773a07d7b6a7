"""One example of the oracle, from empty directories to the comparison.

All of an example runs in one process inside the namespace of its mounts, on a tmpfs that goes with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from archive_overlay.log import escape
from archive_overlay.methods import METHODS
from tests.integration.conftest import extract
from tests.property import containers
from tests.support import hooks, image_layouts, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Callable, TypeVar

    from tests.property.containers import Operation

    T = TypeVar("T")

# All methods but `move`, which takes the upperdir away and so comes last. One of the tars does: which
# one changes nothing but its compression, and is the example's choice.
_TARS = tuple(method.name for method in METHODS.values() if method.makes == "file")
_OTHERS = tuple(method for method in METHODS if method not in (*_TARS, "move"))


MARKS = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "security.fuseoverlayfs.")


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
        tar: which of the methods that make a tar.
    """

    stack: str
    base: Sequence[Operation]
    lowers: Sequence[tuple[int, Sequence[Operation]]]
    changes: Sequence[Operation]
    tar: int

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods whose archives are compared."""
        return (*_OTHERS, _TARS[self.tar % len(_TARS)])


class Here(overlays.Namespace):
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
    return on_tmpfs(namespace, directory, lambda: _faults(example, namespace.rootless, directory))


def on_tmpfs(
    namespace: overlays.Namespace, directory: Path, faults: Callable[[], Iterable[str]]
) -> list[str]:
    """Give faults that are found in a namespace, where a directory is a file system of its own that goes with it."""

    def run() -> list[str]:
        overlays.mount_tmpfs(directory, "mode=755")
        try:
            return list(faults())
        finally:
            overlays.detach(directory)

    return namespace.inside(run)


def _faults(example: Example, rootless: bool, directory: Path) -> Iterator[str]:
    stack = STACKS[example.stack]
    (directory / "overlay").mkdir()
    overlay = overlays.Overlay(stack.flavour, directory / "overlay", Here(rootless=rootless))
    overlay.layer(partial(containers.run, operations=example.base))
    makers = [stack.lowers[number % len(stack.lowers)] for number, _ in example.lowers]
    for maker, (_, operations) in zip(makers, example.lowers):
        overlay.layer(partial(containers.run, operations=operations), maker)
    if stack.flavour.program:
        for layer in overlay.lowers:
            leave_one_name(layer)
    for operations in sessions(example.changes):
        if overlay.is_served:
            overlay.unmount()
        overlay.change(partial(containers.run, operations=operations))

    before = trees.traces(overlay.upper)
    failures = run_hook(overlay, directory, example.methods)
    after = trees.traces(overlay.upper)
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            yield f"{path!r} in the upperdir was not only read: {before.get(path)} != {after.get(path)}"
    yield from _faults_of_refusals(stack, overlay, failures)
    left = overlay.whole_view()
    if stack.indexed and not failures and (elsewhere := _names_elsewhere(overlay, left)):
        yield f"saved, although the change set lacks names: {elsewhere}"
        return
    readers = [stack.reader(makers), *_agreeing(stack, overlay)]
    for method in example.methods:
        if method not in failures:
            yield from _faults_of_archive(method, overlay, left, readers)
    if stack.flavour.program:
        overlay.mount()
    failures = run_hook(overlay, directory, ["move"])
    if overlay.is_served:
        overlay.unmount()
    yield from _faults_of_refusals(stack, overlay, failures)
    if not failures:
        yield from _faults_of_archive("move", overlay, left, readers)


def leave_one_name(layer: Path) -> None:
    """Take all names but one from each file of a layer.

    When fuse-overlayfs changes a file that has several in a lower layer, nobody can say what is right: see
    test_regressions.py. Numbers of inodes do not tell such files under a mount: after a while it shows others.
    """
    for group in trees.view(layer).links:
        for path in sorted(group)[1:]:
            (layer / os.fsdecode(path)).unlink()


def _faults_of_archive(
    method: str, overlay: overlays.Overlay, left: trees.View, readers: Sequence[overlays.Flavour]
) -> Iterator[str]:
    is_layer = METHODS[method].makes == "layout"
    if is_layer and trees.names(overlay.upper) == {trees.TOP}:
        return  # no layer says that nothing changed
    archive = _extracted(method, overlay)
    if method != "move":
        yield from (f"{method}: {fault}" for fault in _marks(archive, overlay.flavour))
    # A tar has no sockets; what is below one then shows.
    gone = () if METHODS[method].makes == "directory" else sockets(left)
    names = trees.names(archive)
    # Nor has a layer what a reader could take for marks of its own overlay.
    without = MARKS if is_layer else ()
    expected = less(left, gone, without).linked_among(names)
    for flavour in readers:
        found = less(overlay.whole_restacked(archive, flavour), gone, without).linked_among(names)
        for fault in trees.differences(expected, found):
            yield f"{method} stacked again as {flavour.name}: {fault}"


def _extracted(method: str, overlay: overlays.Overlay) -> Path:
    """Give an archive as a directory that can be a layer."""
    archive = overlay.directory.parent / method
    if METHODS[method].makes == "directory":
        return archive
    directory = overlay.directory.parent / f"{method} extracted"
    directory.mkdir()
    if METHODS[method].makes == "file":
        extract(archive, directory)
        return directory
    for layer in image_layouts.read(archive).layers:
        image_layouts.extract(layer, directory, space(overlay.flavour) + "opaque")
    return directory


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


def sockets(seen: trees.View) -> tuple[bytes, ...]:
    return tuple(path for path, entry in seen.entries.items() if entry.kind == "socket")


def less(seen: trees.View, gone: tuple[bytes, ...], attributes: tuple[str, ...]) -> trees.View:
    """Give the view without some names, all that is below them, and attributes with some prefixes."""
    below = tuple(path + b"/" for path in gone)
    entries = {}
    for path, entry in seen.entries.items():
        if path not in gone and not path.startswith(below):
            kept = tuple(pair for pair in entry.attributes if not pair[0].startswith(attributes))
            entries[path] = replace(entry, attributes=kept)
    return trees.View(entries, seen.links)


def sessions(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Split what a container does where it is remounted."""
    sessions: list[list[Operation]] = [[]]
    for operation in operations:
        if operation == containers.REMOUNT:
            sessions.append([])
        else:
            sessions[-1].append(operation)
    return sessions


def run_hook(overlay: overlays.Overlay, directory: Path, methods: Iterable[str]) -> dict[str, str]:
    """Run the program in a process of its own, with no start of an interpreter.

    Returns:
        The errors of the methods that failed.
    """
    asked: dict[str, str] = {}
    # An archive's name has no dots.
    names = {method.replace(".", "-"): method for method in methods}
    for name, method in names.items():
        asked |= hooks.annotations(name, mount_point="/data", method=method, archive_to=directory / method)
    mount = overlay.spec_mount()
    if not overlay.flavour.program:
        mount["options"] = list(dict.fromkeys([*mount["options"], *overlay.flavour.options]))
    bundle = hooks.Bundle(overlay.directory, mounts=[mount], annotations=asked)
    arguments = ["--log-level=warning", "--no-fsync", "--bundle", str(bundle.directory)]
    status, _, stderr = hooks.keep_warm().run(
        arguments, b"", cwd=Path("/"), environment={}, here=True, timeout=containers.LONGEST
    )
    failures = {}
    for line in hooks.parse_log(os.fsdecode(stderr)):
        if line.level == "error":
            name = line.message.split(":")[0].split(" ")[-1]
            failures[names[name]] = line.message
    assert status == (1 if failures else 0), f"exit status {status}: {failures}"
    return failures


def _faults_of_refusals(
    stack: Stack, overlay: overlays.Overlay, failures: Mapping[str, str]
) -> Iterator[str]:
    """Complain of failures, but for the two that have to be, and then say of what."""
    lacking = _linked_elsewhere(overlay) if stack.indexed else []
    unspeakable = list(_unspeakable(overlay))
    for method, error in failures.items():
        archive = overlay.directory.parent / method
        if os.path.lexists(archive) and not (archive.is_dir() and not os.listdir(archive)):
            yield f"{method} failed, but there is an archive"
        names = [*lacking, *(unspeakable if METHODS[method].makes == "layout" else ())]
        if not any(escape(name) in error for name in names):
            yield f"{method} failed: {error}"


def _unspeakable(overlay: overlays.Overlay) -> Iterator[str]:
    """Give, as errors have them, the names and attributes for which a layer of an image has no form."""
    for name, entry in trees.view(overlay.upper).entries.items():
        path = os.fsdecode(name)
        if os.path.basename(path).startswith(".wh."):
            yield f"{path} cannot be stored"
        yield from (f"the attribute {key} of {path}" for key, _ in entry.attributes if "=" in key)


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


def _marks(archive: Path, flavour: overlays.Flavour) -> Iterator[str]:
    """Complain of attributes in an archive that would mean something to an overlay."""
    for path, entry in trees.view(archive).entries.items():
        for name, value in entry.attributes:
            space = next((space for space in flavour.bookkeeping if name.startswith(space)), None)
            if space and name[len(space) :] != "opaque" and not name.startswith(f"{space}overlay."):
                yield f"{path!r} has {name}={value!r}"


def space(flavour: overlays.Flavour) -> str:
    """Give the prefix of the attributes by which an archive speaks to an overlay."""
    return "user.overlay." if flavour.program or "userxattr" in flavour.options else "trusted.overlay."
