"""Comparison of change sets and states, held against what two directories show that are walked one after the other."""

from __future__ import annotations

import os
import random
import stat
from typing import TYPE_CHECKING

import pytest

from archive_overlay.commands import diff
from archive_overlay.commands.archives import plain_tree
from archive_overlay.history.comparison import (
    ADDED,
    DELETED,
    METADATA,
    MODIFIED,
    OPAQUE,
    STATES,
    UNCHANGED,
    compare,
)
from archive_overlay.history.revisions import open_image
from archive_overlay.history.states import States
from archive_overlay.history.unpack import Unpacker
from tests.support import history, image_layouts

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from archive_overlay.history.comparison import Difference
    from archive_overlay.history.revisions import Image

    # What a directory has at each path: type, what is in it, and metadata.
    View = dict[str, tuple[int, bytes, tuple[int, ...]]]
    # What a layer says of each path; None: it was deleted.
    Entries = dict[str, "tuple[tarfile.TarInfo, bytes] | None"]

NAMES = "abc"
MTIMES = (1_000_000_000, 1_000_000_001)


def view(top: Path) -> View:
    found: View = {}
    for directory, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            data = b""
            if kind == stat.S_IFLNK:
                data = os.fsencode(os.readlink(path))
            elif kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    data = file.read()
            found[os.path.relpath(path, top)] = kind, data, (status.st_mode, status.st_mtime_ns)
    return found


def letters(old: View, new: View) -> dict[str, str]:
    """Give the letter of each path at which two directories differ."""
    found = {}
    for path in old.keys() | new.keys():
        if path not in new:
            found[path] = DELETED
        elif path not in old:
            found[path] = ADDED
        elif old[path][:2] != new[path][:2]:
            found[path] = MODIFIED
        elif old[path] != new[path]:
            found[path] = METADATA
    return found


def brief(found: dict[str, str], old: View, new: View) -> dict[str, str]:
    """Leave out what was in deleted directories, and times of directories in which something is different."""
    listed = dict(found)
    for path, letter in found.items():
        above = [path[:end] for end, character in enumerate(path) if character == "/"]
        if letter is DELETED and any(each not in new or new[each][0] != stat.S_IFDIR for each in above):
            del listed[path]
    for path in sorted(listed, reverse=True):
        is_time = (
            listed[path] is METADATA and new[path][0] == stat.S_IFDIR and old[path][2][0] == new[path][2][0]
        )
        if is_time and any(each.startswith(f"{path}/") for each in listed):
            del listed[path]
    return listed


def given(differences: Iterable[Difference]) -> dict[str, str]:
    found = {}
    for each in differences:
        assert each.change.path not in found
        if each.change.name and each.letter is not UNCHANGED:
            found[each.change.path] = each.letter
    return found


def random_layers(chance: random.Random) -> Iterator[bytes]:
    """Make layers of an image, each in one of the orders that programs write."""
    there: set[str] = set()  # directories of the layers so far
    for _ in range(chance.randint(2, 4)):
        entries: Entries = {}
        marks: list[str] = []
        files: list[str] = []

        for _ in range(chance.randint(1, 6)):
            path = "/".join(chance.choices(NAMES, k=chance.randint(1, 3)))
            others = [
                each for each in entries if path.startswith(f"{each}/") and not _is_directory(entries[each])
            ]
            if path in entries or others or any(each.startswith(f"{path}/") for each in [*entries, *marks]):
                continue
            kind = chance.choice(["file", "file", "file", "directory", "symlink", "link", "delete", "opaque"])
            _make_above(path, entries, there, chance)
            if kind != "directory":
                there.difference_update([each for each in there if f"{each}/".startswith(f"{path}/")])
            facts = {"mtime": chance.choice(MTIMES), "mode": chance.choice([0o644, 0o755])}
            if kind == "file":
                data = chance.choice([b"", b"x", b"y", bytes(100_000), b"x" * 200_000])
                entries[path] = history.file(path, data, **facts)
                files.append(path)
            elif kind in ("directory", "opaque"):
                entries[path] = history.directory(path, **facts)
                there.add(path)
                if kind == "opaque":
                    marks.append(f"{path}/.wh..wh..opq")
            elif kind == "symlink":
                entries[path] = history.symlink(path, chance.choice("xy"), mtime=facts["mtime"], mode=0o777)
            elif kind == "link" and files:
                entries[path] = history.link(path, chance.choice(files))
            elif kind == "delete":
                above, _, name = path.rpartition("/")
                marks.append(f"{above}/.wh.{name}" if above else f".wh.{name}")
                entries[path] = None
        listed = [(path, entry) for path, entry in entries.items() if entry]
        if chance.random() < 0.5 and not any(entry.islnk() for _, (entry, _) in listed):
            listed.sort()
        made = [entry for _, entry in listed]
        yield history.layer(*made, *(history.file(mark) for mark in marks))


def _make_above(path: str, entries: Entries, there: set[str], chance: random.Random) -> None:
    above = path.rpartition("/")[0]
    if above and above not in entries:
        _make_above(above, entries, there, chance)
        if above not in there or chance.random() < 0.7:
            entries[above] = history.directory(above, mtime=chance.choice(MTIMES))
        there.add(above)


def _is_directory(entry: tuple[tarfile.TarInfo, bytes] | None) -> bool:
    return entry is not None and entry[0].isdir()


def unpacked(image: Image, number: int, directory: Path) -> View:
    directory.mkdir()
    top = os.open(directory, os.O_RDONLY)
    unpacker = Unpacker(top)
    for piece in image.state(image.numbered(number)):
        with image.read(piece) as tar:
            unpacker.hide(tar)
        with image.read(piece) as tar:
            unpacker.apply(tar)
    unpacker.finish()
    unpacker.close()
    os.close(top)
    return view(directory)


@pytest.mark.parametrize("seed", range(25))
def test_revisions_differ_as_directories_do(tmp_path: Path, seed: int) -> None:
    layers = [*random_layers(random.Random(seed))]
    image_layouts.put(tmp_path / "layout", "main", layers=layers)
    with open_image(f"{tmp_path}/layout:main") as image:
        views = [unpacked(image, number + 1, tmp_path / str(number)) for number in range(len(layers))]
        for number, (old, new) in enumerate(zip([{}, *views], views), 1):
            expected = letters(old, new)
            for everything, wanted in ((True, expected), (False, brief(expected, old, new))):
                with diff.revision_differences(
                    image, image.numbered(number), States(), everything=everything
                ) as differences:
                    found = given(differences)
                hiding = {path for path, letter in found.items() if letter is OPAQUE}
                assert all(old[path][0] == new[path][0] == stat.S_IFDIR for path in hiding)
                assert {path: letter for path, letter in found.items() if path not in hiding} == {
                    path: letter for path, letter in wanted.items() if path not in hiding
                }, f"revision {number}, everything: {everything}"
        for older in range(len(layers)):
            for newer in range(len(layers)):
                one, other = (diff.State(image, image.numbered(each + 1)) for each in (older, newer))
                with diff.two_revisions(one, other, States(), everything=True) as differences:
                    found = given(differences)
                expected = letters(views[older], views[newer])
                hiding = {path for path, letter in found.items() if letter is OPAQUE}
                assert {path: letter for path, letter in found.items() if path not in hiding} == {
                    path: letter for path, letter in expected.items() if path not in hiding
                }, f"from {older + 1} to {newer + 1}"


@pytest.mark.parametrize("seed", range(8))
def test_a_directory_differs_from_a_revision_as_from_its_extraction(tmp_path: Path, seed: int) -> None:
    layers = [*random_layers(random.Random(seed))]
    image_layouts.put(tmp_path / "layout", "main", layers=layers)
    with open_image(f"{tmp_path}/layout:main") as image:
        last = image.numbered(0)
        old, new = unpacked(image, 1, tmp_path / "old"), unpacked(image, last.number, tmp_path / "new")
        with (
            States().opened(image, image.state(last)) as state,
            plain_tree(str(tmp_path / "old")).source() as reader,
        ):
            assert state
            assert given(compare(state, reader, STATES, everything=True)) == letters(old, new)
