"""One example of the law of composition: containers whose change sets are composed, and what stacking them shows.

All of an example runs in one process inside the namespace of its mounts, on a tmpfs that goes with it.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import ARCHIVE, Staging
from archive_overlay.log import Log
from archive_overlay.methods import Target, copy
from archive_overlay.overlay import dialect
from archive_overlay.overlay.compose import compose
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.upper import UpperReader
from archive_overlay.system.flush import Never
from tests.property import containers, layers, stacks
from tests.support import hooks, overlays, stacking, trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Callable

    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source
    from tests.property.containers import Operation

# Who makes the change sets. Under `moving` they refer to lower layers, so reading one is more than reading its upperdir.
MOUNTS = {
    "trusted": overlays.NATIVE,
    "moving": overlays.Flavour("moving", options=("metacopy=on", "redirect_dir=on")),
    "userxattr": overlays.NATIVE_ROOTLESS,
    "fuse": overlays.FUSE,
    "fuse-rootless": overlays.FUSE_ROOTLESS,
}


@dataclass(frozen=True)
class Container:
    """What one of the containers does.

    Attributes:
        on_top: whether it sees what those before it left, or the base alone.
        changes: what it does.
    """

    on_top: bool
    changes: Sequence[Operation]


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        mount: a name of `MOUNTS`.
        base: what is done to the lowest layer.
        containers: two or more, the oldest first.
    """

    mount: str
    base: Sequence[Operation]
    containers: Sequence[Container]


def faults_of(example: Example, namespace: overlays.Namespace, directory: Path) -> list[str]:
    """Run an example, and say in a line each how composing differs from stacking.

    Args:
        example: what to do.
        namespace: where to mount.
        directory: an empty directory; nothing stays in it.
    """
    return stacks.on_tmpfs(namespace, directory, lambda: _faults(example, namespace.rootless, directory))


def _faults(example: Example, rootless: bool, directory: Path) -> Iterator[str]:
    flavour = MOUNTS[example.mount]
    here = stacks.Here(rootless=rootless)
    base = directory / "base"
    base.mkdir()
    containers.run(base, example.base)
    if flavour.program:
        stacks.leave_one_name(base)
    mounts: list[OverlayMount] = []
    for number, container in enumerate(example.containers):
        before = [mount.upper for mount in reversed(mounts)] if container.on_top else []
        overlay = Stacked(flavour, directory / f"container{number}", here, [*map(type(base), before), base])
        for operations in stacks.sessions(container.changes):
            if overlay.is_served:
                overlay.unmount()
            overlay.change(partial(containers.run, operations=operations))
        if overlay.is_served:
            # The next container may have this one below it.
            overlay.unmount()
            stacks.leave_one_name(overlay.upper)
            overlay.change(os.listdir)
        mounts.append(_mount(overlay))
        _merge(overlay, directory)
        if overlay.is_served:
            overlay.unmount()

    views = Stacked(flavour, directory / "views", here, [base])
    composed = _Composer(directory, mounts)
    together = composed.write("together", lambda sources: compose(sources))
    reader = layers_of = flavour.standing_alone
    if all(container.on_top for container in example.containers[1:]) and not flavour.program:
        stack = [mount.upper for mount in reversed(mounts)]
        layers_of = flavour
    else:
        # Each change set stands alone. An upperdir does so only over the layers that its container had.
        stack = [str(composed.write_one(number)) for number in reversed(range(len(mounts)))]
        if flavour.program:
            # fuse-overlayfs cannot list some directories that are over a symbolic link of a lower layer.
            reader = layers_of = stacks.USERXATTR_ROOTFUL
    names = trees.names(together)
    stacked = views.of([*stack, str(base)], layers_of).linked_among(names)
    shown = views.of([str(together), str(base)], reader).linked_among(names)
    yield from (f"composed: {fault}" for fault in trees.differences(stacked, shown))

    if shown.entries.keys() != stacking.shown([trees.view(together), trees.view(base)]):
        yield "the model of tests/support/stacking.py shows something else"

    expected = _essential(together)
    yield from _otherwise("merged in place", expected, directory / "merged")
    if len(mounts) > 2:
        left = composed.write("left", lambda sources: compose([compose(sources[:2]), *sources[2:]]))
        yield from _otherwise("the older ones first", expected, left)
        right = composed.write("right", lambda sources: compose([sources[0], compose(sources[1:])]))
        yield from _otherwise("the newer ones first", expected, right)
    yield from layers.faults_of(
        [OverlayMount(upper=str(base), lowers=(), dialect=mounts[0].dialect), *mounts], directory
    )


def _otherwise(how: str, expected: trees.View, archive: Path) -> Iterator[str]:
    yield from (f"{how}: {fault}" for fault in trees.differences(expected, _essential(archive)))


def shrunk(example: Example, fails: Callable[[Example], bool]) -> Example:
    """Give an example that fails as well and has no operation that it could do without.

    Args:
        example: one that fails.
        fails: tries one.
    """
    parts = [[*example.base], *([*each.changes] for each in example.containers)]
    positions = [(part, index) for part, operations in enumerate(parts) for index in range(len(operations))]
    for part, index in reversed(positions):
        less = [[*operations] for operations in parts]
        del less[part][index]
        made = [replace(each, changes=less[number + 1]) for number, each in enumerate(example.containers)]
        smaller = replace(example, base=less[0], containers=made)
        if fails(smaller):
            example, parts = smaller, less
    return example


class Stacked(overlays.Overlay):
    """An overlay over layers that are there already."""

    def __init__(
        self, flavour: overlays.Flavour, directory: Path, here: overlays.Namespace, lowers: Sequence[Path]
    ) -> None:
        directory.mkdir()
        super().__init__(flavour, directory, here)
        self.lowers = list(lowers)

    def of(self, layers: Sequence[str], flavour: overlays.Flavour) -> trees.View:
        """Give the view of layers, the topmost first."""
        return self._view(flavour, self._layers(flavour, lowers=[type(self.upper)(each) for each in layers]))


def _mount(overlay: overlays.Overlay) -> OverlayMount:
    kind = dialect.NATIVE
    if overlay.flavour.program:
        kind = dialect.FUSE_OVERLAYFS
    elif "userxattr" in overlay.flavour.options:
        kind = dialect.NATIVE_USERXATTR
    return OverlayMount(upper=str(overlay.upper), lowers=tuple(map(str, overlay.lowers)), dialect=kind)


def _merge(overlay: overlays.Overlay, directory: Path) -> None:
    """Run the hook as at this container's stop, with one destination for all of them."""
    mount = overlay.spec_mount()
    if not overlay.flavour.program:
        mount["options"] = list(dict.fromkeys([*mount["options"], *overlay.flavour.options]))
    asked = hooks.annotations("data", mount_point="/data", archive_to=directory / "merged", method="copy")
    bundle = hooks.Bundle(directory / "bundle", mounts=[mount], annotations=asked)
    arguments = ["--log-level=warning", "--no-fsync", "--bundle", str(bundle.directory)]
    status, _, stderr = hooks.keep_warm().run(
        arguments, b"", cwd=overlay.directory, environment={}, here=True, timeout=containers.LONGEST
    )
    assert status == 0, stderr


class _Composer:
    """Writes what change sets come to."""

    def __init__(self, directory: Path, mounts: Sequence[OverlayMount]) -> None:
        self._directory = directory
        self._mounts = mounts
        self._log = Log("panic", [])

    def write(self, name: str, composed: Callable[[Sequence[Source]], Source]) -> Path:
        readers = [UpperReader(mount, self._log) for mount in self._mounts]
        try:
            return self._write(name, composed(readers))
        finally:
            for reader in readers:
                reader.close()

    def write_one(self, number: int) -> Path:
        """Write one of the change sets as it is."""
        with closing(UpperReader(self._mounts[number], self._log)) as reader:
            return self._write(f"alone{number}", reader)

    def _write(self, name: str, source: Source) -> Path:
        with Staging(str(self._directory), name, paths=Paths(), flush=Never(), log=self._log) as staging:
            target = Target(staging=staging, overlay=self._mounts[0], flush=Never())
            copy.write(_changes(source), target, self._log)
            os.rename(ARCHIVE, name, src_dir_fd=staging.directory, dst_dir_fd=staging.parent)
        return self._directory / name


def _changes(source: Source) -> Iterator[Change]:
    while source.ahead() is not None:
        change = source.take()
        if change is not None:
            yield change


def _essential(archive: Path) -> trees.View:
    """Give an archive without marks that mean nothing, because a directory further up hides all that lies below."""
    seen = trees.view(archive)
    opaque = {path for path, entry in seen.entries.items() if stacking.is_opaque(entry)}
    entries = {
        path: _without_mark(entry)
        if stacking.is_opaque(entry) and not opaque.isdisjoint(_above(path))
        else entry
        for path, entry in seen.entries.items()
    }
    return trees.View(entries, seen.links)


def _without_mark(entry: trees.Entry) -> trees.Entry:
    return replace(
        entry,
        attributes=tuple(pair for pair in entry.attributes if pair[0] not in stacking.OPAQUE_ATTRIBUTES),
    )


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:length]) for length in range(1, len(parts))]
