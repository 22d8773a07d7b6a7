"""Paths of revisions, looked up and extracted, held against the whole that is unpacked."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.history.lookup import data_at, last_changed, look_up
from archive_overlay.history.revisions import open_image
from archive_overlay.history.selection import PathSet
from archive_overlay.history.state_entries import StateEntries
from archive_overlay.history.states import States
from archive_overlay.history.unpack import Unpacker
from archive_overlay.overlay.change import DIRECTORY, FILE, SYMLINK
from tests.support import image_layouts
from tests.support.history import directory, file, layer, link, symlink
from tests.support.random_images import NAMES, random_layers, unpacked, view

KINDS = {stat.S_IFDIR: DIRECTORY, stat.S_IFREG: FILE, stat.S_IFLNK: SYMLINK}
STATES = States()


@pytest.mark.parametrize("seed", range(25))
def test_each_path_is_what_unpacking_makes_of_it(tmp_path: Path, seed: int) -> None:
    image_layouts.put(tmp_path / "layout", "main", layers=[*random_layers(random.Random(seed))])
    with open_image(f"{tmp_path}/layout:main") as image:
        last = image.numbered(0)
        whole = unpacked(image, last.number, tmp_path / "whole")
        tried = {*whole, *NAMES, *(f"{one}/{other}" for one in NAMES for other in NAMES)}
        for path in tried:
            if path not in whole:
                with pytest.raises(ArchiveError):
                    look_up(image, last, path, STATES, follow=False)
                continue
            if any(whole[str(above)][0] == stat.S_IFLNK for above in [*Path(path).parents][:-1]):
                continue
            looked = look_up(image, last, path, STATES, follow=False)
            kind, contents, (mode, mtime_ns) = whole[path]
            assert looked.fact.kind == KINDS[kind]
            if kind == stat.S_IFDIR:
                inside = {each.rpartition("/")[2] for each in whole if os.path.dirname(each) == path}
                assert set(looked.entries) == inside
            elif kind == stat.S_IFREG:
                data = bytearray(looked.fact.size)
                for offset, piece in data_at(image, looked, STATES):
                    data[offset : offset + len(piece)] = piece
                assert data == contents
            else:
                assert os.fsencode(looked.fact.target) == contents
            if not looked.fact.implicit:
                assert looked.fact.mtime_ns == mtime_ns
                assert kind == stat.S_IFLNK or looked.fact.mode == stat.S_IMODE(mode)


@pytest.mark.parametrize("seed", range(25))
def test_parts_are_as_in_the_whole(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    image_layouts.put(tmp_path / "layout", "main", layers=[*random_layers(chance)])
    with open_image(f"{tmp_path}/layout:main") as image:
        last = image.numbered(0)
        whole = unpacked(image, last.number, tmp_path / "whole")
        if not whole:
            return
        paths = chance.sample(sorted(whole), min(2, len(whole)))
        (tmp_path / "parts").mkdir()
        wanted = PathSet()
        for path in paths:
            wanted.add(path, tree=True)
        top = os.open(tmp_path / "parts", os.O_RDONLY)
        unpacker = Unpacker(top)
        with STATES.opened(image, image.state(last), paths=wanted) as state:
            assert state
            entries = StateEntries(state, paths)
            unpacker.apply(entries)
        unpacker.finish()
        unpacker.close()
        os.close(top)
    assert entries.found == set(paths)
    assert view(tmp_path / "parts") == {
        path: entry
        for path, entry in whole.items()
        if any(f"{path}/".startswith(f"{each}/") or each.startswith(f"{path}/") for each in paths)
    }


def test_links_are_followed_within_the_image(tmp_path: Path) -> None:
    below = layer(
        directory("usr"),
        directory("usr/lib"),
        file("usr/lib/a", b"a"),
        symlink("lib", "/usr/lib"),
        file("b", b"b"),
    )
    above = layer(
        file("usr/d", b"d"),
        link("usr/lib/c", "usr/d"),
        symlink("out", "../../../usr"),
        symlink("loop", "loop"),
    )
    image_layouts.put(tmp_path / "layout", "main", layers=[below, above])
    with open_image(f"{tmp_path}/layout:main") as image:
        last = image.numbered(0)

        def contents(path: str) -> bytes:
            looked = look_up(image, last, path, STATES, follow=True)
            return b"".join(piece for _, piece in data_at(image, looked, STATES))

        assert contents("lib/a") == b"a"
        assert contents("out/lib/../../lib/a") == b"a"
        assert contents("lib/../../b") == b"b"
        assert contents("lib/c") == contents("usr/d") == b"d"
        assert last_changed(image, look_up(image, last, "lib/a", STATES, follow=False), STATES) == (1, 1)
        assert look_up(image, last, "lib", STATES, follow=False).fact.kind is SYMLINK
        for path, said in (
            ("loop", "too many symbolic links"),
            ("b/c", "not a directory"),
            ("lib/x", "has no lib/x"),
        ):
            with pytest.raises(ArchiveError, match=said):
                contents(path)


def test_a_piece_is_not_read_below_what_hides_it(tmp_path: Path) -> None:
    below = layer(directory("d"), file("d/a", b"old"), file("b"))
    above = layer(directory("d"), file("d/.wh..wh..opq"), file("d/n", b"new"), file(".wh.b"), file("c"))
    layout = tmp_path / "layout"
    image_layouts.put(layout, "main", layers=[below, above])
    (layout / "blobs/sha256" / image_layouts.read(layout, "main").digests[0].partition(":")[2]).unlink()
    with open_image(f"{layout}:main") as image:
        last = image.numbered(0)
        assert [*look_up(image, last, "d", STATES, follow=False).entries] == ["n"]
        assert look_up(image, last, "c", STATES, follow=False).fact.kind is FILE
        for path in ("d/a", "b"):
            with pytest.raises(ArchiveError, match=f"has no {path}"):
                look_up(image, last, path, STATES, follow=False)
