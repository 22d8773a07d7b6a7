"""What is selected is as the container left it, and all else as if the container had not touched it.

A reference that knows nothing but views of trees says what an archive has to show: it matches whole paths, and asks of the
upperdir only which directories were replaced.
"""

from __future__ import annotations

import os
import random
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import extract
from tests.property import containers, stacks
from tests.property.conftest import SEED, SOAKING
from tests.support import hooks, image_layouts, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

EXAMPLES = {"plain": 12, "metacopy": 15, "userxattr": 8, "fuse": 6}
HISTORIES = {"plain": 12, "metacopy": 8, "userxattr": 6}
PATTERNS = (
    *("a", "b", "c", "a/a", "a/b", "b/a", "a/c", "a/*", "*", "**", "b/**", "**/c", "**/a", "*/c", "?/?/c"),
    *("[b-d]", "**/[^a]", "a/a/a", "**/a/c", "a/**/c", "./b/../a", "/b/"),
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_selected_is_as_the_container_left_it(
    name: str, namespace: Callable[[bool], overlays.Namespace], scratch: Path
) -> None:
    stack = stacks.STACKS[name]
    overlays.need(stack.flavour)
    where = namespace(stack.flavour.rootless)
    for number in range(EXAMPLES[name] * (20 if SOAKING else 1)):
        seed = f"{SEED} {name} {number}"

        faults = stacks.on_tmpfs(where, scratch, partial(_faults, stack, seed, where.rootless, scratch))

        assert not faults, "\n".join([seed, *faults])


def _faults(stack: stacks.Stack, seed: str, rootless: bool, directory: Path) -> Iterator[str]:
    chance = random.Random(seed)
    (directory / "overlay").mkdir()
    overlay = overlays.Overlay(stack.flavour, directory / "overlay", stacks.Here(rootless=rootless))
    overlay.layer(partial(containers.run, operations=containers.furnished(chance)))
    makers = [chance.choice(stack.lowers) for _ in range(chance.choice((0, 0, 1, 2)))]
    for maker in makers:
        overlay.layer(partial(containers.run, operations=containers.turns(chance)), maker)
    if stack.flavour.program:
        for layer in overlay.lowers:
            stacks.leave_one_name(layer)
    for operations in stacks.sessions(containers.turns(chance)):
        if overlay.is_served:
            overlay.unmount()
        overlay.change(partial(containers.run, operations=operations))

    exclude = _patterns(chance, "!" if chance.random() < 0.6 else "") if chance.random() < 0.8 else []
    include = _patterns(chance, "!" if chance.random() < 0.2 else "") if chance.random() < 0.5 else []
    method = chance.choice(("copy", "copy", "tar"))
    asked = {"exclude": ",".join(exclude), "include": ";".join(include)}
    if not overlay.is_served and stack.flavour.program:
        overlay.mount()
    said = _save(overlay, directory, {"whole": ("copy", {}), "part": (method, asked)})
    left = overlay.whole_view()
    reader = stack.reader(makers)
    whole, part = directory / "whole", directory / "part"
    if method == "tar":
        part = directory / "extracted"
        part.mkdir()
        extract(directory / "part", part)
    nothing = directory / "nothing"
    nothing.mkdir()
    below = overlay.whole_restacked(nothing, reader)
    replaced = _opaque(whole, stack)
    names = trees.names(part)
    found = overlay.whole_restacked(part, reader).linked_among(names)
    reference = _Reference(left, below, replaced, include, exclude)
    expected = trees.View(reference.entries, left.linked_among(names).links)
    entries = dict(found.entries)
    for path in reference.leading:
        if entries.get(path) in (left.entries.get(path), below.entries.get(path)):
            entries[path] = reference.entries[path]
    faults = trees.differences(expected, trees.View(entries, found.links))
    yield from (f"{method} {asked}: {fault} ({said})" for fault in faults)


@pytest.mark.parametrize("name", HISTORIES)
def test_a_second_archive_of_an_upperdir_touches_only_what_is_selected_then(
    name: str, namespace: Callable[[bool], overlays.Namespace], scratch: Path
) -> None:
    stack = stacks.STACKS[name]
    overlays.need(stack.flavour)
    where = namespace(stack.flavour.rootless)
    for number in range(HISTORIES[name] * (20 if SOAKING else 1)):
        seed = f"{SEED} again {name} {number}"

        faults = stacks.on_tmpfs(
            where, scratch, partial(_faults_of_two, stack, seed, where.rootless, scratch)
        )

        assert not faults, "\n".join([seed, *faults])


def _faults_of_two(stack: stacks.Stack, seed: str, rootless: bool, directory: Path) -> Iterator[str]:
    chance = random.Random(seed)
    (directory / "overlay").mkdir()
    overlay = overlays.Overlay(stack.flavour, directory / "overlay", stacks.Here(rootless=rootless))
    overlay.layer(partial(containers.run, operations=containers.furnished(chance)))
    include: list[str] = []
    exclude: list[str] = []
    states: list[trees.View] = []
    revisions, said = [0], list[str]()
    for _ in range(2):
        for operations in stacks.sessions(containers.turns(chance)):
            overlay.change(partial(containers.run, operations=operations))
        if not states or chance.random() < 0.7:
            exclude = _patterns(chance, "!" if chance.random() < 0.6 else "") if chance.random() < 0.7 else []
            include = _patterns(chance, "") if chance.random() < 0.3 else []
        asked = {"exclude": ",".join(exclude), "include": ",".join(include)}
        said += _save(overlay, directory, {"layout": ("oci", asked)})
        layers = _layers(directory, stack)
        states.append(_shown(overlay, layers, directory, stack))
        revisions.append(len(layers))
    replaced = _opaque(layers[0], stack) if revisions[-1] > revisions[-2] else set()
    reference = _Reference(overlay.whole_view(), states[0], set(), include, exclude)
    replaced = {path for path in replaced if path == trees.TOP or reference.selects(os.fsdecode(path))}
    reference = _Reference(overlay.whole_view(), states[0], replaced, include, exclude)
    found = dict(states[1].entries)
    for path, entry in reference.entries.items():
        # Which of both revisions has the metadata of a directory that only leads somewhere does not matter.
        if entry.kind == "directory" and path in found and found[path].kind == "directory":
            found[path] = entry
    nothing: frozenset[frozenset[bytes]] = frozenset()
    faults = trees.differences(trees.View(reference.entries, nothing), trees.View(found, nothing))
    yield from (f"{asked}: {fault} ({said})" for fault in faults)


def _layers(directory: Path, stack: stacks.Stack) -> list[Path]:
    """Give the layers of a layout as directories, topmost first."""
    if not (directory / "layout/index.json").exists():
        return []
    made: list[Path] = []
    for number, layer in enumerate(image_layouts.read(directory / "layout").layers):
        made.insert(0, directory / f"layer{number}")
        if not made[0].exists():
            made[0].mkdir()
            image_layouts.extract(layer, made[0], f"{stacks.space(stack.flavour)}opaque")
    return made


def _shown(overlay: overlays.Overlay, layers: list[Path], directory: Path, stack: stacks.Stack) -> trees.View:
    """Give what layers on the lower layers of an overlay show."""
    nothing = directory / "nothing"
    nothing.mkdir(exist_ok=True)
    overlay.lowers[:0] = layers
    try:
        return overlay.whole_restacked(nothing, stack.reader([]))
    finally:
        del overlay.lowers[: len(layers)]


def _opaque(archive: Path, stack: stacks.Stack) -> set[bytes]:
    """Give the directories of an archive that hide what lies below."""
    mark = f"{stacks.space(stack.flavour)}opaque", b"y"
    return {path for path, entry in trees.view(archive).entries.items() if mark in entry.attributes}


def _patterns(chance: random.Random, exceptions: str) -> list[str]:
    return [
        chance.choice(("", exceptions)) + chance.choice(PATTERNS)
        for _ in range(chance.choice((1, 1, 2, 3, 5)))
    ]


def _save(
    overlay: overlays.Overlay, directory: Path, archives: dict[str, tuple[str, dict[str, str]]]
) -> list[str]:
    mount = overlay.spec_mount()
    if not overlay.flavour.program:
        mount["options"] = list(dict.fromkeys([*mount["options"], *overlay.flavour.options]))
    asked: dict[str, str] = {}
    for name, (method, keys) in archives.items():
        asked |= hooks.annotations(
            name, mount_point="/data", method=method, archive_to=directory / name, **keys
        )
    bundle = hooks.Bundle(overlay.directory, mounts=[mount], annotations=asked)
    os.utime(bundle.directory / "config.json", (1, 1))  # one and the same start
    status, _, stderr = hooks.keep_warm().run(
        ["--no-fsync", "--bundle", str(bundle.directory)],
        b"",
        cwd=Path("/"),
        environment={},
        here=True,
        timeout=containers.LONGEST,
    )
    said = [line.message for line in hooks.parse_log(os.fsdecode(stderr))]
    assert status == 0, said
    return said


class _Reference:
    """What an archive has to show.

    Args:
        left: what the container left.
        below: what it found.
        replaced: directories that hide what lies below.
        include, exclude: patterns.

    Attributes:
        entries: as in a view.
        leading: directories that are not selected, and may have the metadata of both.
    """

    def __init__(
        self,
        left: trees.View,
        below: trees.View,
        replaced: set[bytes],
        include: list[str],
        exclude: list[str],
    ) -> None:
        self._left, self._below, self._replaced = left.entries, below.entries, replaced
        self._include, self._exclude = include, exclude
        self.leading: set[bytes] = set()
        self.entries = {trees.TOP: left.entries[trees.TOP]}
        top = trees.TOP in replaced
        self._fill(b"", hidden=top and not include, new=top)

    def _fill(self, prefix: bytes, *, hidden: bool, new: bool) -> None:
        """Add what is in a directory.

        Args:
            prefix: its path, with a slash.
            hidden: whether it hides what lies below.
            new: whether it, or one above it, was replaced, so that a directory in it is a new one, too.
        """
        for path in self._within(prefix):
            left, below = self._left.get(path), None if hidden else self._below.get(path)
            replaced = new or path in self._replaced
            if self.selects(os.fsdecode(path)):
                if left:
                    self.entries[path] = left
                    if left.kind == "directory":
                        self._fill(path + b"/", hidden=hidden or replaced, new=replaced)
            elif below and below.kind == "directory":
                self.entries[path] = below
                self.leading.add(path)
                self._fill(path + b"/", hidden=hidden, new=replaced)
            else:
                if left and left.kind == "directory":
                    before = len(self.entries)
                    self._fill(path + b"/", hidden=hidden, new=replaced)
                    if len(self.entries) > before:
                        self.entries[path] = left
                        continue
                if below:
                    self.entries[path] = below

    def _within(self, prefix: bytes) -> list[bytes]:
        paths = {*self._left, *self._below} - {trees.TOP}
        return [path for path in paths if path.startswith(prefix) and b"/" not in path[len(prefix) :]]

    def selects(self, path: str) -> bool:
        """Say whether a path is selected."""
        return (not self._include or _matches(self._include, path)) and not _matches(self._exclude, path)


_MEANINGS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "[^": "[^/"}


def _matches(patterns: list[str], path: str) -> bool:
    parents = [path[: match.start()] for match in re.finditer("/", path)]
    result = False
    for pattern in patterns:
        plain = os.path.normpath(pattern.lstrip("!").lstrip("/"))
        expression = re.sub(r"\*\*/|\*\*|\*|\?|\[\^", lambda found: _MEANINGS[found[0]], plain)
        if any(re.fullmatch(expression, each, re.DOTALL) for each in (path, *parents)):
            result = not pattern.startswith("!")
    return result
