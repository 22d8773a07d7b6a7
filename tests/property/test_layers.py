"""Layers that other programs may have made, in whatever order: composed they are what `extract` makes of all of them."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.tar import headers
from tests.property.conftest import EXAMPLES, SEED
from tests.property.layers import composed, extract, reverted, streaming
from tests.support import trees

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# In seconds since 1970. What layers say is earlier; what is later was made while the test ran.
_NOW = 1_500_000_000
_NOT_ALONE = "its layer does not have"


def test_layers_composed_are_layers_extracted(tmp_path: Path) -> None:
    spool = os.open(tmp_path, READ_DIRECTORY)
    tried = 0
    for number in range(4 * EXAMPLES):
        chance = random.Random(f"{SEED} layers {number}")
        layers = [some_layer(chance) for _ in range(chance.choice((2, 3, 4)))]
        directory = tmp_path / str(number)
        directory.mkdir()
        try:
            expected = extracted(layers, directory / "expected")
        except ArchiveError:
            with pytest.raises(ArchiveError):
                composed(layers, spool)
            continue
        try:
            whole = composed(layers, spool)
        except ArchiveError as error:
            # `extract` finds what a layer refers to in lower layers; composing has only the layer.
            if _NOT_ALONE not in error.message:
                raise
            continue
        tried += 1
        cut = chance.randrange(1, len(layers))
        with streaming():
            older, newer = composed(layers[:cut], spool), composed(layers[cut:], spool)
            again = composed([older, newer], spool)
            back = reverted(older, newer, spool)
        found = {
            "composed": [whole],
            "the older ones composed": [older, *layers[cut:]],
            "the newer ones composed": [*layers[:cut], newer],
            "composed twice": [again],
        }
        for how, made in found.items():
            faults = differences(expected, extracted(made, directory / how))
            assert not faults, f"example {number} of seed {SEED}, {how}: {faults}"
        was = extracted(layers[:cut], directory / "was")
        faults = differences(unlinked(was), unlinked(extracted([*layers, back], directory / "back")))
        assert not faults, f"example {number} of seed {SEED}, taken back after {cut}: {faults}"
    os.close(spool)
    assert tried > EXAMPLES


def some_layer(chance: random.Random) -> bytes:
    """Give a layer in no order, with marks of all kinds wherever they come."""
    careless = chance.random() < 0.6
    tar = bytearray()
    names = ["a"]
    for _ in range(chance.randrange(9)):
        path = some_path(chance)
        before = chance.choice(("./", "", "/")) if careless else "./"
        kind = chance.choice(KINDS)
        if kind is not WHITEOUT and path in ("a", "b", "a/a", "a/b", "b/a") and chance.random() < 0.8:
            kind = headers.DIRECTORY
        directory, _, name = path.rpartition("/")
        link, size, device = b"", 0, 0
        if kind is WHITEOUT:
            path = f"{directory}/.wh.{name}" if directory else f".wh.{name}"
        elif kind is OPAQUE:
            path = f"{path}/.wh..wh..opq"
        elif kind == headers.SYMLINK:
            link = chance.choice((b"a", b"/a", b"../b", b"c/d", b"nowhere"))
        elif kind == headers.HARD_LINK:
            link = f"./{chance.choice(names)}".encode()
        elif kind == headers.CHARACTER_DEVICE:
            device = chance.choice((0, os.makedev(1, 3)))
        elif kind == headers.REGULAR:
            size = chance.choice((0, 5, 5, 5, 700, 200_000))
        if kind not in (WHITEOUT, OPAQUE, headers.DIRECTORY):
            names.append(path)
        tar += headers.of_entry(
            name=f"{before}{path}".encode(),
            type_flag=headers.REGULAR if kind in (WHITEOUT, OPAQUE) else kind,
            mode=chance.choice((0o644, 0o755, 0o700)),
            uid=os.geteuid(),
            gid=os.getegid(),
            mtime_ns=chance.randrange(_NOW // 2) * 10**9 + chance.choice((0, 5)),
            size=size,
            link=link,
            device=device,
            records={b"SCHILY.xattr.user.note": b"%d" % chance.randrange(9)}
            if kind == headers.DIRECTORY and chance.random() < 0.3
            else None,
        )
        tar += bytes([chance.randrange(256)]) * size + bytes(-size % headers.BLOCK)
    if chance.random() < 0.2:
        tar += headers.of_entry(
            name=b"./", type_flag=headers.DIRECTORY, mode=0o700, uid=0, gid=0, mtime_ns=10**15
        )
    return bytes(tar) + bytes(2 * headers.BLOCK)


WHITEOUT = b"whiteout"
OPAQUE = b"opaque"
KINDS = (
    *3 * (WHITEOUT,),
    OPAQUE,
    *5 * (headers.DIRECTORY,),
    *2 * (headers.SYMLINK,),
    *3 * (headers.HARD_LINK,),
    headers.FIFO,
    headers.CHARACTER_DEVICE,
    *5 * (headers.REGULAR,),
)


def some_path(chance: random.Random) -> str:
    above = [chance.choice("aaaaabbbc") for _ in range(chance.choice((0, 0, 1, 1, 2)))]
    return "/".join([*above, chance.choice("aaabbccddee")])


def extracted(layers: Sequence[bytes], directory: Path) -> trees.View:
    """Give what `extract` makes of layers."""
    extract(layers, directory)
    return trees.view(directory)


def differences(expected: trees.View, found: trees.View) -> list[str]:
    """Compare trees, but not the times of directories that no layer lists."""
    unlisted = {
        path
        for path, entry in expected.entries.items()
        if entry.kind == "directory" and entry.mtime_ns > _NOW * 10**9
    }
    timeless = [
        trees.View(
            {
                path: replace(entry, mtime_ns=0) if path in unlisted else entry
                for path, entry in view.entries.items()
            },
            view.links,
        )
        for view in (expected, found)
    ]
    return trees.differences(*timeless)


def unlinked(seen: trees.View) -> trees.View:
    return trees.View(seen.entries, frozenset())
