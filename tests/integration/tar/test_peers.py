"""Layers as anybody may have made them, read by this program, GNU tar, umoci and podman: a table of who reads what alike.

What all of them read alike this program reads, and what all refuse it refuses. Where they differ, the table says with
whom it goes, and a comment why. Tried with GNU tar 1.34, umoci 0.4.7 and podman 4.3.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.tar import headers
from tests.property import layers
from tests.support import history, image_layouts, overlays, tools, trees
from tests.support.history import directory, file, layer, link, symlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Callable

# What a peer makes of a layer.
ALIKE = "the same tree"
REFUSES = "nothing, and a complaint"
OTHERWISE = "another tree"
READS = "a tree, where this program has a complaint"
NOT_ASKED = "whatever it is"

# What is in the layer below, and what an extraction of that has.
BELOW = layer(
    directory("d"),
    file("d/f", b"low f"),
    file("x", b"low x"),
    file("y", b"low y"),
    symlink("s", "d"),
    directory("e"),
    symlink("e/up", "../d"),
)
LOWER = {"d": "/", "d/f": "low f", "x": "low x", "y": "low y", "s": "-> d", "e": "/", "e/up": "-> ../d"}
END = bytes(2 * headers.BLOCK)


@dataclass(frozen=True)
class Input:
    """A layer, and who reads it how.

    Attributes:
        stored: the layer as it is stored.
        tar: what that is when it is not compressed; None: the same.
        compression: what its media type ends with.
        changes: what each path is that is not as in the layer below: a text, "-> TARGET", "/" for a directory, or None
            if it is gone.
        refused: what this program says instead, if it refuses the layer.
        gnu, umoci, podman: what they make of it.
        alone: why this program does what no other does.
    """

    stored: bytes
    tar: bytes | None = None
    compression: str = ""
    changes: Mapping[str, str | None] = field(default_factory=dict)
    refused: str = ""
    gnu: str = ALIKE
    umoci: str = ALIKE
    podman: str = ALIKE
    alone: str = ""

    @property
    def tree(self) -> dict[str, str]:
        """What an extraction has, as `contents` gives it."""
        return {path: what for path, what in {**LOWER, **self.changes}.items() if what is not None}


def entry(name: str, data: bytes = b"", *, type_flag: bytes = headers.REGULAR, **fields: Any) -> bytes:
    """Make an entry that may have what tarfile does not write."""
    usual = {"mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 10**18, **fields}
    header = headers.of_entry(name=name.encode(), type_flag=type_flag, size=len(data), **usual)
    return header + data + bytes(-len(data) % headers.BLOCK)


def in_zstd(
    *frames: bytes,
    tar: bytes | None = None,
    changes: Mapping[str, str] | None = None,
    others: str = ALIKE,
    alone: str = "",
) -> Input:
    """Make a layer of these frames."""
    return Input(
        b"".join(frames),
        NEW if tar is None else tar,
        "+zstd",
        HAS_NEW if changes is None else changes,
        gnu=others,
        podman=others,
        umoci=NOT_ASKED,
        alone=alone,
    )


def link_to(name: str, target: str) -> bytes:
    """Make a hard link."""
    return entry(name, type_flag=headers.HARD_LINK, link=target.encode())


def link_with(name: str, target: str) -> bytes:
    """Make a symbolic link."""
    return entry(name, type_flag=headers.SYMLINK, link=target.encode())


def tree_of(name: str) -> bytes:
    """Make a directory."""
    return entry(f"{name}/", type_flag=headers.DIRECTORY, mode=0o755)


def records(type_flag: bytes, *given: tuple[str, str]) -> bytes:
    """Make an extended header: `x` for the next entry, `g` for all."""
    body = b"".join(headers.record(key.encode(), value.encode()) for key, value in given)
    return entry("records", body, type_flag=type_flag)


def with_number(made: bytes, offset: int, size: int, number: int) -> bytes:
    """Put a number of GNU's form into the header of an entry."""
    value = (
        number.to_bytes(size, "big", signed=True)
        if number < 0
        else b"\x80" + number.to_bytes(size - 1, "big")
    )
    header = bytearray(made)
    header[offset : offset + size] = value
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 0x20 + sum(header[156 : headers.BLOCK]))
    return bytes(header)


def whole_blocks(tar: bytes) -> bytes:
    """Leave out the end of a tar."""
    tar = tar.rstrip(b"\0")
    return tar + bytes(-len(tar) % headers.BLOCK)


def attributes_of(size: int) -> bytes:
    """Make a file whose extended header has just so many bytes."""
    given: dict[bytes, bytes] = {}
    while size:
        key = b"SCHILY.xattr.user.%03d" % len(given)
        most = min(size, 60_000) if size > 120_000 else size if size < 60_000 else size // 2
        value = next(n for n in range(most, 0, -1) if headers.record_size(key, n) <= most)
        value -= headers.record_size(key, value) != most and size == most
        given[key] = bytes([0x61]) * value
        size -= headers.record_size(key, value)
    return entry("n", b"new", records=given)


def packed_across(boundary: int, before: int) -> bytes:
    """Pack a tar into two gzip members, of which the second begins just before a boundary."""
    for size in range(boundary - 200, boundary):
        packer = zlib.compressobj(0, zlib.DEFLATED, 31)
        first = packer.compress(RANDOM[:size]) + packer.flush()
        if len(first) == boundary - before:
            return first + gzip.compress(RANDOM[size:], mtime=0)
    raise AssertionError("no such size")


def zstd(data: bytes) -> bytes:
    """Make a frame of what is not compressed: RFC 8878, "Frame_Header" and "Raw_Block"."""
    block = (len(data) << 3 | 1).to_bytes(3, "little") + data
    return b"\x28\xb5\x2f\xfd\xa0" + len(data).to_bytes(4, "little") + block


def gz(*pieces: bytes) -> bytes:
    """Compress each piece into a gzip member of its own."""
    return b"".join(gzip.compress(piece, mtime=0) for piece in pieces)


NEW = layer(file("n", b"new"))
CUT = whole_blocks(NEW)
HAS_NEW = {"n": "new"}
COMPOSED = layers.composed(
    [
        layer(directory("d"), file("d/e", b"old"), file(".wh.x"), file("o/old", b"old")),
        layer(
            directory("d/e"),
            file("d/e/new", b"new"),
            file("d/.wh.f"),
            file("o/.wh..wh..opq"),
            file("o/n", b"new"),
        ),
        layer(file("n", b"new")),
    ],
    -1,  # so few entries are kept in memory
)
RANDOM = layer(file("n", random.Random(1).randbytes(200_000)))
HAS_RANDOM = {"n": hashlib.sha256(RANDOM[512 : 512 + 200_000]).hexdigest()}
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"to be"
N = entry("n", b"new", uid=5, gid=6)
PLAIN = entry("n", b"new")

INPUTS = {
    # Ends
    "no end": Input(CUT, changes=HAS_NEW),
    "one block of zeros": Input(CUT + bytes(512), changes=HAS_NEW),
    "goes on after one block of zeros": Input(
        CUT + bytes(512) + NEW, refused="after its end it goes on", gnu=READS, umoci=REFUSES, podman=REFUSES
    ),
    "goes on after the end": Input(CUT + END + layer(file("more")), changes=HAS_NEW),
    "a part of a block of zeros": Input(
        CUT + bytes(100), refused="it ends too early", gnu=READS, umoci=REFUSES, podman=REFUSES
    ),
    # `umoci insert` writes such ones.
    "no end and no padding": Input(CUT[:515], changes=HAS_NEW, gnu=REFUSES),
    "an end in the padding": Input(
        CUT[:600], refused="it ends too early", gnu=REFUSES, umoci=NOT_ASKED, podman=NOT_ASKED
    ),
    "an end in the data": Input(
        CUT[:514], refused="it ends too early", gnu=REFUSES, umoci=NOT_ASKED, podman=NOT_ASKED
    ),
    # GNU tar takes only what is compressed for a tar then.
    "no bytes": Input(b"", gnu=REFUSES),
    "no bytes, gzip": Input(gz(b""), tar=b"", compression="+gzip"),
    "zeros alone": Input(bytes(512)),
    # Compression
    "gzip of several members": Input(
        gz(CUT[:512], b"", CUT[512:], END), tar=CUT + END, compression="+gzip", changes=HAS_NEW
    ),
    **{
        f"a gzip member that begins {before} bytes before 128 KiB": Input(
            packed_across(128 * 1024, before), tar=RANDOM, compression="+gzip", changes=HAS_RANDOM
        )
        for before in (0, 1, 9, 10, 11)
    },
    "gzip with zeros after it": Input(  # as some tapes have
        gz(NEW) + bytes(300), tar=NEW, compression="+gzip", changes=HAS_NEW, umoci=REFUSES, podman=REFUSES
    ),
    "gzip with something after it": Input(
        gz(NEW) + b"something",
        tar=NEW,
        compression="+gzip",
        refused="not valid gzip",
        gnu=REFUSES,
        umoci=REFUSES,
        podman=REFUSES,
    ),
    # umoci 0.4 reads no zstd.
    "zstd": in_zstd(zstd(NEW)),
    "zstd, skippable frames": in_zstd(zstd(NEW[:600]), SKIPPABLE, zstd(NEW[600:]), SKIPPABLE),
    "zstd, empty frames": in_zstd(zstd(b""), zstd(NEW[:600]), zstd(b""), zstd(NEW[600:]), zstd(b"")),
    "zstd, nothing": in_zstd(zstd(b""), tar=b"", changes={}),
    "zstd, a skippable frame first": in_zstd(
        SKIPPABLE,
        zstd(NEW),
        others=REFUSES,
        alone="it is valid, and pzstd writes it; others look for the other first bytes",
    ),
    # Deletions. GNU tar knows none: what it extracts is read as they are.
    "a whiteout that is a link of a whiteout": Input(
        layer(file(".wh.x"), link(".wh.y", ".wh.x")), changes={"x": None, "y": None}
    ),
    "an opaque mark that is a link of a whiteout": Input(
        layer(directory("d"), file(".wh.x"), link("d/.wh..wh..opq", ".wh.x")),
        changes={"x": None, "d/f": None},
    ),
    "a whiteout that is a directory": Input(layer(directory(".wh.x")), changes={"x": None}),
    "a whiteout that is a symbolic link": Input(layer(symlink(".wh.x", "y")), changes={"x": None}),
    "a whiteout that is a link of a file": Input(
        layer(file("n", b"new"), link(".wh.x", "n")), changes={**HAS_NEW, "x": None}
    ),
    "a link of a whiteout": Input(
        layer(file(".wh.x"), link("n", ".wh.x")),
        refused="cannot make n, a hard link to .wh.x",
        gnu=NOT_ASKED,
        umoci=REFUSES,
        podman=REFUSES,
    ),
    "a whiteout below a file of its layer": Input(
        layer(file("n", b"new"), file("n/.wh.a")), changes=HAS_NEW, gnu=REFUSES
    ),
    "a whiteout below a file of its layer, before it": Input(
        layer(file("n/.wh.a"), file("n", b"new")), changes=HAS_NEW, gnu=REFUSES
    ),
    "an opaque mark below a file of its layer": Input(
        layer(file("n", b"new"), file("n/.wh..wh..opq")), changes=HAS_NEW, gnu=REFUSES
    ),
    # As an overlay has it: a directory hides a file. podman's has names in it that are not there.
    "a whiteout below a lower file": Input(
        layer(file("x/.wh.a")), changes={"x": "/"}, gnu=REFUSES, umoci=OTHERWISE
    ),
    # What is composed has them where their names belong.
    "whiteouts after other entries": Input(
        layer(directory("d"), file("d/e", b"new"), file("d/.wh.f"), file("n", b"new"), file(".wh.x")),
        changes={**HAS_NEW, "d/e": "new", "d/f": None, "x": None},
    ),
    "what composing makes": Input(
        COMPOSED,
        tar=gzip.decompress(COMPOSED),
        compression="+gzip",
        changes={**HAS_NEW, "d/e": "/", "d/e/new": "new", "d/f": None, "o": "/", "o/n": "new", "x": None},
        gnu=NOT_ASKED,  # what is in opaque directories goes with what was there
    ),
    "a whiteout of nothing": Input(
        layer(file(".wh.")),
        refused=".wh. is a whiteout without a valid name",
        gnu=NOT_ASKED,
        umoci=REFUSES,
        podman=REFUSES,
    ),
    "a whiteout of its directory": Input(
        layer(file("d/.wh..")),
        refused="d/.wh.. is a whiteout without a valid name",
        gnu=NOT_ASKED,
        umoci=REFUSES,
        podman=REFUSES,
    ),
    # Where the link leads to is not known when lower layers are deleted from. umoci looks, and podman at its own layer.
    "a whiteout through a symbolic link of its layer": Input(
        layer(symlink("l", "d"), file("l/.wh.f")),
        refused="l leads through a symbolic link of its layer",
        gnu=NOT_ASKED,
        umoci=READS,
        podman=REFUSES,
    ),
    "a directory with the name of a whiteout": Input(
        layer(directory(".wh.n"), file(".wh.n/a")),
        refused=".wh.n is a directory, but its name stands for a deletion",
        gnu=NOT_ASKED,
        umoci=READS,
        podman=READS,
        alone="no later layer could delete it",
    ),
    # Records without a value: GNU tar takes only empty attributes.
    **{
        f"an empty {key} record": Input(
            records(b"x", (key, "")) + N + END, changes=HAS_NEW, gnu=ALIKE if key == "comment" else REFUSES
        )
        for key in ("path", "mtime", "uid", "gid", "size", "comment")
    },
    "an empty linkpath record": Input(
        records(b"x", ("linkpath", "")) + link_with("n", "d") + END, changes={"n": "-> d"}, gnu=REFUSES
    ),
    "a record that is deleted by a later one": Input(
        records(b"x", ("uid", "7"), ("uid", "")) + N + END, changes=HAS_NEW, gnu=REFUSES
    ),
    # GNU tar has the attribute, and so has what this program writes. Readers in Go take it for deleted.
    "an empty attribute": Input(
        records(b"x", ("SCHILY.xattr.user.a", "")) + N + END,
        changes=HAS_NEW,
        umoci=OTHERWISE,
        podman=OTHERWISE,
    ),
    "two values of one key": Input(records(b"x", ("uid", "7"), ("uid", "8")) + N + END, changes=HAS_NEW),
    "two extended headers": Input(
        records(b"x", ("uid", "7")) + records(b"x", ("gid", "8")) + N + END, changes=HAS_NEW
    ),
    # Global headers: umoci takes none, and podman believes none.
    "a global record": Input(
        records(b"g", ("uid", "7")) + N + END, changes=HAS_NEW, umoci=REFUSES, podman=OTHERWISE
    ),
    "a global record that does not apply": Input(
        records(b"g", ("uid", "7")) + records(b"x", ("uid", "")) + N + END,
        changes=HAS_NEW,
        gnu=REFUSES,
        umoci=REFUSES,
    ),
    "a global comment": Input(records(b"g", ("comment", "text")) + N + END, changes=HAS_NEW, umoci=REFUSES),
    # Numbers
    "a large owner in base 256": Input(with_number(N, 108, 8, 3_000_000) + END, changes=HAS_NEW),
    "a negative user in base 256": Input(with_number(N, 108, 8, -2) + END, changes=HAS_NEW, gnu=REFUSES),
    "a negative group in base 256": Input(with_number(N, 116, 8, -2) + END, changes=HAS_NEW, gnu=REFUSES),
    "a negative user in a record": Input(
        records(b"x", ("uid", "-2")) + N + END, changes=HAS_NEW, gnu=REFUSES
    ),
    "a negative mode in base 256": Input(with_number(N, 100, 8, -1) + END, changes=HAS_NEW),
    # To chown(2) it means nobody in particular, so whose the file becomes depends on who extracts it.
    "the user -1": Input(
        with_number(N, 108, 8, -1) + END,
        refused="n has an impossible owner",
        gnu=REFUSES,
        umoci=NOT_ASKED,
        podman=NOT_ASKED,
    ),
    "a user beyond 32 bits": Input(
        records(b"x", ("uid", str(2**32 + 5))) + N + END,
        refused="n has an impossible owner",
        gnu=REFUSES,
        umoci=NOT_ASKED,
        podman=NOT_ASKED,
    ),
    "a time before 1970": Input(with_number(N, 136, 12, -5) + END, changes=HAS_NEW, podman=OTHERWISE),
    "a negative size": Input(
        with_number(N, 124, 12, -1) + END,
        refused="n has a negative number",
        gnu=REFUSES,
        umoci=REFUSES,
        podman=REFUSES,
    ),
    # Paths
    "a parent that is not there": Input(entry("gone/../n", b"new") + END, changes=HAS_NEW, gnu=REFUSES),
    "a parent that is a link": Input(entry("e/up/../n", b"new") + END, changes={"e/n": "new"}, gnu=REFUSES),
    "a whiteout with a parent": Input(entry("d/../.wh.x") + END, changes={"x": None}, gnu=REFUSES),
    # Others stay in the directory; but who writes that means harm.
    "a parent beyond the root": Input(
        entry("d/../../n", b"new") + END,
        refused="'d/../../n' leads out",
        gnu=REFUSES,
        umoci=READS,
        podman=READS,
    ),
    "an absolute path": Input(entry("/n", b"new") + END, changes=HAS_NEW),
    "a hard link with a parent": Input(
        PLAIN + link_to("m", "gone/../n") + END, changes={**HAS_NEW, "m": "new"}
    ),
    "a hard link beyond the root": Input(PLAIN + link_to("m", "../n") + END, changes={**HAS_NEW, "m": "new"}),
    "an absolute hard link": Input(PLAIN + link_to("m", "/n") + END, changes={**HAS_NEW, "m": "new"}),
    "a hard link named through a link": Input(
        tree_of("q") + entry("q/n", b"new") + link_with("l", "q") + link_to("m", "l/n") + END,
        changes={"q": "/", "q/n": "new", "l": "-> q", "m": "new"},
    ),
    "a hard link named through an absolute link": Input(
        tree_of("q") + entry("q/n", b"new") + link_with("l", "/q") + link_to("m", "l/n") + END,
        changes={"q": "/", "q/n": "new", "l": "-> /q", "m": "new"},
        gnu=REFUSES,  # that is the machine's
    ),
    "a hard link below a link": Input(
        PLAIN + tree_of("q") + link_with("l", "q") + link_to("l/m", "n") + END,
        changes={**HAS_NEW, "q": "/", "l": "-> q", "q/m": "new"},
    ),
    "a file below a link": Input(
        tree_of("q") + tree_of("q/r") + link_with("l", "q/r/..") + entry("l/n", b"new") + END,
        changes={"q": "/", "q/r": "/", "q/n": "new", "l": "-> q/r/.."},
        gnu=REFUSES,  # links with a parent in them it makes last of all
    ),
    "a file below a link to nothing": Input(
        link_with("l", "gone") + entry("l/n", b"new") + END,
        refused="cannot make l/n",
        gnu=REFUSES,
        umoci=READS,
        podman=REFUSES,
    ),
    "a file below a link to itself": Input(
        link_with("l", "l") + entry("l/n", b"new") + END,
        refused="cannot make l/n",
        gnu=REFUSES,
        umoci=REFUSES,
        podman=REFUSES,
    ),
    "a link of a symbolic link": Input(
        link_with("l", "d") + link_to("m", "l") + END, changes={"l": "-> d", "m": "-> d"}
    ),
    # podman applies each layer by itself, so nothing of another is there.
    "a hard link to a lower file": Input(link_to("m", "d/f") + END, changes={"m": "low f"}, podman=REFUSES),
    "a hard link through a lower link": Input(
        link_to("m", "s/f") + END, changes={"m": "low f"}, podman=REFUSES
    ),
    # As in an overlay, a directory hides the link.
    "a file below a lower link": Input(
        entry("s/n", b"new") + END, changes={"s": "/", "s/n": "new"}, gnu=OTHERWISE, umoci=OTHERWISE
    ),
    "a hard link to nothing": Input(
        link_to("m", "n") + N + END,
        refused="cannot make m, a hard link to n",
        gnu=REFUSES,
        umoci=REFUSES,
        podman=REFUSES,
    ),
    "one name twice": Input(entry("n", b"old") + entry("n", b"new") + END, changes=HAS_NEW, podman=REFUSES),
    # Limits of Go's archive/tar, which `oci` keeps to. Older layers of this program may be larger.
    "an extended header of 1 MiB": Input(attributes_of(1 << 20) + END, changes=HAS_NEW),
    "an extended header of more than 1 MiB": Input(
        attributes_of((1 << 20) + 1) + END, changes=HAS_NEW, umoci=REFUSES, podman=REFUSES
    ),
    "a comment on the root directory": Input(
        records(b"x", ("comment", "archive_overlay marks=oci")) + tree_of(".") + N + END, changes=HAS_NEW
    ),
}


@pytest.fixture(scope="module")
def peers() -> Iterator[overlays.Namespace]:
    """Give a mount namespace with a /dev/shm of its own, for all that they write."""
    tools.need_root()
    tools.need("podman", "tar", "umoci", "zstd")
    namespace = overlays.Namespace(rootless=False)
    try:
        namespace.inside(lambda: overlays.mount_tmpfs(HERE, "mode=755"))
        yield namespace
    finally:
        namespace.close()


HERE = Path("/dev/shm")


@pytest.fixture(scope="module")
def in_podman(peers: overlays.Namespace, request: pytest.FixtureRequest) -> Mapping[str, Path]:
    """Put all images into their layouts, and give where podman has mounted those that it takes.

    It takes all of them at once: to start it costs more than an image.
    """
    asked = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    return peers.inside(
        lambda: pull_and_mount({name: put(place_of(INPUTS[name]), INPUTS[name]) for name in asked})
    )


@pytest.mark.parametrize("name", INPUTS)
def test_what_others_read_alike_is_read_and_what_they_refuse_is_refused(
    peers: overlays.Namespace, in_podman: Mapping[str, Path], name: str
) -> None:
    given = INPUTS[name]
    others = {given.gnu, given.umoci, given.podman} - {NOT_ASKED}
    assert bool(given.alone) == (others == {READS if given.refused else REFUSES})
    peers.inside(lambda: compare(given, in_podman.get(name)))


def compare(given: Input, in_podman: Path | None) -> None:
    """Let everybody read a layer on top of `BELOW`, and compare."""
    here = place_of(given)

    done = history.run("extract", f"{here}/layout:it", here / "ours")
    if given.refused:
        assert done.status == 1, done
        assert given.refused in done.stderr
        assert done.stderr.count("\n") == 1
    else:
        assert (done.status, done.stderr) == (0, "")
        assert contents(here / "ours") == given.tree

    assert by_composing(here, given) == (None if given.refused else given.tree)

    ours = None if given.refused else seen(here / "ours")
    peers: tuple[tuple[str, str, Callable[[], Seen | None]], ...] = (
        ("GNU tar", given.gnu, lambda: by_gnu_tar(here, given)),
        ("umoci", given.umoci, lambda: by_umoci(here)),
        ("podman", given.podman, lambda: seen(in_podman) if in_podman else None),
    )
    for peer, expected, read in peers:
        if expected != NOT_ASKED:
            found = read()
            verdict = REFUSES if found is None else READS if ours is None else ALIKE
            if found and ours and found != ours:
                verdict = OTHERWISE
            assert verdict == expected, f"{peer} has {found}, and this program {ours}"


def place_of(given: Input) -> Path:
    """Give the directory for all that is made of a layer."""
    return HERE / hashlib.sha256(given.stored).hexdigest()[:16]


def by_composing(here: Path, given: Input) -> dict[str, str] | None:
    """Compose both layers, and extract the result; None: there is a complaint.

    What leads out of the layer itself, composing cannot know.
    """
    spool = os.open(here, os.O_RDONLY)
    try:
        made = layers.composed([BELOW, given.stored], spool)
    except ArchiveError as error:
        return given.tree if "its layer does not have" in error.message and not given.refused else None
    finally:
        os.close(spool)
    layers.extract([made], here / "composed")
    return contents(here / "composed")


def put(here: Path, given: Input) -> str:
    """Put an image of both layers into a layout; give the digest by which podman calls it."""
    layout = here / "layout"
    layout.joinpath("blobs/sha256").mkdir(parents=True)
    tars = [BELOW, given.stored if given.tar is None else given.tar]
    stored = [
        {"mediaType": image_layouts.LAYER_TYPE + form, **image_layouts.put_blob(layout, blob)}
        for form, blob in (("", BELOW), (given.compression, given.stored))
    ]
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
    entry = image_layouts.put(
        layout,
        "it",
        config={
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            # No two images have the same name, also if they hold the same.
            "history": [{"created_by": "below"}, {"created_by": here.name}],
        },
        manifest={"layers": stored},
    )
    manifest = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_text())
    digest: str = manifest["config"]["digest"]
    return digest.partition(":")[2]


def by_gnu_tar(here: Path, given: Input) -> Seen | None:
    """Extract both layers with GNU tar, and do what is to be deleted; None: it complains."""
    top = here / "gnu"
    top.mkdir()
    for number, blob in enumerate((BELOW, given.stored)):
        (here / f"{number}.tar").write_bytes(blob)
        command: list[str | Path] = [
            "tar",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "-xpf",
            here / f"{number}.tar",
        ]
        if subprocess.run([*command, "-C", top], capture_output=True, check=False).returncode:
            return None
    for path in sorted(top.rglob(".wh.*")):
        deleted = path.with_name(path.name[len(".wh.") :])
        for each in path.parent.iterdir() if path.name == ".wh..wh..opq" else [path, deleted]:
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink(missing_ok=True)
    return seen(top)


def by_umoci(here: Path) -> Seen | None:
    """Unpack the image with umoci; None: it complains."""
    command: list[str | Path] = ["umoci", "unpack", "--image", f"{here}/layout:it", here / "umoci"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    return seen(here / "umoci/rootfs")


def pull_and_mount(digests: Mapping[str, str]) -> dict[str, Path]:
    """Pull images with podman, and mount those about which it does not complain.

    Args:
        digests: what podman calls each image, by its name in `INPUTS`.
    """
    store = HERE / "podman"
    environment = {"PATH": os.environ["PATH"], "HOME": f"{store}/home", "CONTAINERS_CONF": "/dev/null"}
    podman = [
        *("podman", "--root", f"{store}/root", "--runroot", f"{store}/run", "--tmpdir", f"{store}/tmp"),
        *("--storage-driver", "overlay"),
    ]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*podman, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    pulled = run("pull", "--quiet", *(f"oci:{place_of(INPUTS[name])}/layout:it" for name in digests))
    taken = pulled.stdout.split()
    assert {*taken} <= {*digests.values()}, pulled
    assert (pulled.returncode == 0) == (len(taken) == len(digests)), pulled
    if not taken:
        return {}
    mounted = run("image", "mount", "--format", "json", *taken)
    assert mounted.returncode == 0, mounted.stderr
    places = {each["id"]: Path(each["mountpoint"]) for each in json.loads(mounted.stdout)}
    return {name: places[digest] for name, digest in digests.items() if digest in taken}


@dataclass(frozen=True)
class Seen:
    """What counts of a tree here: not its root, times of directories, and what overlays and hosts add.

    Attributes:
        entries: what there is under each path.
        links: the groups of paths that are one file.
    """

    entries: Mapping[bytes, trees.Entry]
    links: frozenset[frozenset[bytes]]


def seen(top: Path) -> Seen:
    """Read a tree."""
    found = trees.view(top, bookkeeping=("trusted.",))
    entries = {
        path: replace(entry, mtime_ns=0) if entry.kind == "directory" else entry
        for path, entry in found.entries.items()
        if path != trees.TOP
    }
    return Seen(entries, found.links)


def contents(tree: Path) -> dict[str, str]:
    """Give what each path of a tree is: a text or its digest, "-> TARGET", or "/" for a directory."""
    found = {}
    for path in tree.rglob("*"):
        if path.is_symlink():
            what = f"-> {os.readlink(path)}"
        elif path.is_dir():
            what = "/"
        else:
            data = path.read_bytes()
            what = data.decode() if len(data) < 100 else hashlib.sha256(data).hexdigest()
        found[str(path.relative_to(tree))] = what
    return found
