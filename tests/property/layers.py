"""Change sets as stored layers: composed, they are what the upperdirs composed are; and there is a way back.

Layers have no form for sockets and some names and attributes, so these are left out on both sides.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from archive_overlay.history import layer_source
from archive_overlay.history.composing import compose_layers
from archive_overlay.history.layer_source import LayerSource
from archive_overlay.history.revert import changes_back
from archive_overlay.history.unpack import Unpacker
from archive_overlay.layout.layer import write_layer
from archive_overlay.log import Log
from archive_overlay.overlay.change import DIRECTORY, FILE, SOCKET, WHITEOUT
from archive_overlay.overlay.compose import changes_of, compose
from archive_overlay.overlay.upper import UpperReader
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader
from tests.support import image_layouts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from archive_overlay.history.layer_source import Opener
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.compose import Source
    from archive_overlay.overlay.mount import OverlayMount

_LOG = Log("panic", [])
_MARKS = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "security.fuseoverlayfs.")
_ESCAPED = ("trusted.overlay.overlay.", "user.overlay.overlay.")


class Seen(NamedTuple):
    """What a change says.

    Attributes:
        facts: all of it but what follows.
        opaque: whether it hides what lies below.
        link: path of the first name of the same file; None: it has the data itself.
    """

    facts: tuple[object, ...]
    opaque: bool
    link: str | None


def opener(tar: bytes) -> Opener:
    """Give what opens a layer that is in memory."""

    @contextmanager
    def opened() -> Iterator[TarReader]:
        fd = os.memfd_create("layer")
        os.write(fd, tar)
        os.lseek(fd, 0, os.SEEK_SET)
        with closing(Reader(fd)) as reader:
            yield TarReader(reader)
            reader.finish()

    return opened


def written(changes: Iterable[Change]) -> bytes:
    """Write changes as a layer."""
    fd = os.memfd_create("layer")
    try:
        write_layer(changes, fd, where="memory", compression="none", level=0, jobs=1, log=_LOG)
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def composed(layers: Sequence[bytes], spool: int) -> bytes:
    """Compose layers as the program does it."""
    return composed_of([opener(layer) for layer in layers], spool)


def composed_of(layers: Sequence[Opener], spool: int) -> bytes:
    """Compose what is opened."""
    fd = os.memfd_create("layer")
    try:
        compose_layers(
            layers,
            fd,
            directory=spool,
            where="memory",
            compression="gzip",
            level=1,
            jobs=1,
            log=_LOG,
        )
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def reverted(state: bytes, since: bytes, spool: int) -> bytes:
    """Write the layer that goes back to a state."""
    with LayerSource(opener(state), spool) as before, LayerSource(opener(since), spool) as after:
        return written(changes_back(before, after))


def extract(layers: Sequence[bytes], directory: Path) -> None:
    """Do what `extract` does with layers, one after the other."""
    directory.mkdir()
    top = os.open(directory, READ_DIRECTORY)
    unpacker = Unpacker(top)
    try:
        for layer in layers:
            with opener(layer)() as tar:
                unpacker.hide(tar)
            with opener(layer)() as tar:
                unpacker.apply(tar)
        unpacker.finish()
    finally:
        unpacker.close()
        os.close(top)


@contextmanager
def streaming() -> Iterator[None]:
    """Let no layer be kept in memory because it is small."""
    small = layer_source._SMALL_LAYER
    layer_source._SMALL_LAYER = -1
    try:
        yield
    finally:
        layer_source._SMALL_LAYER = small


def faults_of(mounts: Sequence[OverlayMount], directory: Path) -> Iterator[str]:
    """Say in a line each what is wrong with layers of change sets, of which the first one is the base."""
    spool = os.open(directory, READ_DIRECTORY)
    try:
        with ExitStack() as stack:
            sources = [_speakable(mount, stack) for mount in mounts]
            expected = seen(compose(sources))
        with ExitStack() as stack:
            layers = [written(changes_of(_speakable(mount, stack, deletions_first=True))) for mount in mounts]
        yield from _differences("layers, kept", expected, seen_in(composed(layers, spool), spool))
        with streaming():
            whole = composed(layers, spool)
            yield from image_layouts.Layer({}, gzip.decompress(whole)).faults()
            yield from _differences("layers, streaming", expected, seen_in(whole, spool))
            older, newer = composed(layers[:2], spool), composed(layers[2:] or layers[1:], spool)
            there = layers[:2] if layers[2:] else layers[:1]
            state = composed(there, spool)
            back = composed([state, newer, reverted(state, newer, spool)], spool)
        yield from _differences(
            "layers, the older ones first", expected, seen_in(composed([older, *layers[2:]], spool), spool)
        )
        yield from _differences("taken back", _shown(seen_in(state, spool)), _shown(seen_in(back, spool)))
    finally:
        os.close(spool)


def seen_in(layer: bytes, spool: int) -> dict[str, Seen]:
    with LayerSource(opener(layer), spool) as source:
        return seen(source)


def seen(source: Source) -> dict[str, Seen]:
    """Give what is in a change set, by path."""
    return {change.path: _seen(change) for change in changes_of(source)}


def _shown(seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """Give what shows over nothing, but not which names are one file."""
    return {
        path: each._replace(facts=seen[each.link].facts if each.link is not None else each.facts)._replace(
            opaque=False, link=None
        )
        for path, each in seen.items()
        if each.facts[0] != WHITEOUT
    }


def _seen(change: Change) -> Seen:
    link = change.link_to.text if change.link_to else None
    if change.kind is WHITEOUT or link is not None:
        return Seen((change.kind,), opaque=False, link=link)
    facts = (
        change.kind,
        *(change.mode, change.uid, change.gid, change.mtime_ns),
        *(change.rdev, change.target, change.implicit),
        sorted(change.attributes.items()),
        _data(change) if change.kind is FILE else None,
    )
    return Seen(facts, opaque=change.kind is DIRECTORY and change.opaque, link=None)


def _data(change: Change) -> tuple[int, str]:
    data = bytearray(change.size)
    if change.pieces is not None:
        for offset, piece in change.pieces:
            data[offset : offset + len(piece)] = piece
    elif change.data is not None:
        data[:] = change.data
    else:
        data[:] = os.pread(change.fd, change.size, 0)
    return len(data), hashlib.sha256(data).hexdigest()


def _differences(what: str, expected: dict[str, Seen], found: dict[str, Seen]) -> Iterator[str]:
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            yield f"{what}: {path!r} is {found.get(path)}, not {expected.get(path)}"


def _speakable(mount: OverlayMount, stack: ExitStack, *, deletions_first: bool = False) -> Source:
    reader = UpperReader(mount, _LOG, deletions_first=deletions_first)
    stack.callback(reader.close)
    return _Speakable(reader)


class _Speakable:
    """A change set without what layers have no form for."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def ahead(self) -> tuple[int, str] | None:
        while (place := self._source.ahead()) is not None and place[1].startswith(".wh."):
            self._source.skip()
        return place

    def is_directory(self) -> bool:
        return self._source.is_directory()

    def skip(self) -> None:
        self._source.skip()

    def take(self) -> Change | None:
        change = self._source.take()
        if change is None or change.kind is SOCKET:
            return None
        change.attributes = {
            name: value
            for name, value in change.attributes.items()
            if "=" not in name and (name.startswith(_ESCAPED) or not name.startswith(_MARKS))
        }
        return change
