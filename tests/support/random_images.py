"""Images of a few random layers, and what directories show that they were unpacked to."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from archive_overlay.history.unpack import Unpacker
from tests.support import history

if TYPE_CHECKING:
    import random
    import tarfile
    from collections.abc import Iterator
    from pathlib import Path

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
