"""Layouts and layers that were made to take memory or time, or to let the program wait: none of it is had."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.tar import headers
from tests.integration.conftest import Saver
from tests.support import history, hooks, image_layouts, peak, tools
from tests.support.history import file, layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Callable

    Tar = Iterable[bytes]

MIB = 2**20
# What no layer of a few megabytes may take.
MOST = 128 * MIB
END = bytes(2 * headers.BLOCK)


def entry(name: bytes, type_flag: bytes = headers.REGULAR, **more: Any) -> bytes:
    link = b"target" if type_flag == headers.SYMLINK else b""
    uid, gid = os.geteuid(), os.getegid()
    return headers.of_entry(
        name=name, type_flag=type_flag, mode=0o755, mtime_ns=0, link=link, uid=uid, gid=gid, **more
    )


def extended(body: bytes) -> bytes:
    header = headers.of_entry(name=b"x", type_flag=b"x", mode=0, uid=0, gid=0, mtime_ns=0, size=len(body))
    return header + body + bytes(-len(body) % headers.BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = next(n for n in range(rest, rest + 20) if n == rest + len(str(n)))
    return b"%d %b=%b\n" % (length, key, value)


@pytest.fixture(scope="module")
def usual() -> Iterator[int]:
    """Give what the program takes for a layer that is nothing special, of a few pieces."""
    with tempfile.TemporaryDirectory() as made:
        image_layouts.put_compressed(Path(made, "layout"), "latest", [entry(b"file"), *[bytes(MIB)] * 6])
        yield peak.of_command(Path(made), "diff", f"{made}/layout:latest")[1]


# Memory that layers take


def attributes_of_directories() -> Tar:
    """Make directories, one in the other, each with 15 MiB of attributes."""
    records = {b"SCHILY.xattr.trusted.overlay.%d" % number: bytes(65536) for number in range(240)}
    for depth in range(1, 8):
        yield entry(b"d/" * depth, headers.DIRECTORY, records=records)
    yield END


def extended_headers() -> Tar:
    """Make several extended headers for one entry, of which only the last one counts."""
    large = extended(record(b"SCHILY.xattr.trusted.overlay.a", bytes(15 * MIB)))
    return [large, large, large, extended(record(b"uid", b"%d" % os.geteuid())), entry(b"d/"), END]


LAYERS: dict[str, tuple[Callable[[], Tar], str | None]] = {
    "one path of 100,000 components": (
        lambda: [entry(b"d/" * 100_000 + b"f"), END],
        "more than 65536 directories",
    ),
    "one path of 10,000 components": (lambda: [entry(b"d/" * 10_000 + b"f"), END], ""),
    "one name of 3 MiB": (lambda: [entry(b"n" * 3 * MIB), END], "longer than 2097152 bytes"),
    "a name of 2 MiB, none of which prints": (
        lambda: [entry(b"\1" * (2 * MIB - 4) + "\U000e0001".encode()), END],
        None,
    ),
    "several extended headers": (extended_headers, ""),
    "attributes of directories": (attributes_of_directories, ""),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("command", ["diff", "extract"])
def test_no_layer_of_a_few_bytes_takes_much_memory(scratch: Path, command: str, name: str) -> None:
    make, complaint = LAYERS[name]
    size = image_layouts.put_compressed(scratch / "layout", "latest", make())
    assert size < MIB
    where = [f"{scratch}/layout:latest", *([str(scratch / "out")] if command == "extract" else [])]

    result, taken = peak.of_command(scratch, command, *where)

    assert taken < MOST
    if complaint is None:  # it can be shown, and no file system takes it
        complaint = "File name too long" if command == "extract" else ""
    assert result.status == (1 if complaint else 0), result.stderr
    assert complaint in result.stderr
    assert len(result.stderr) < 2000
    assert result.stderr.count("\n") <= 1


MANY: dict[str, Callable[[int], bytes]] = {
    "files": lambda n: entry(b"%d" % n),
    "directories": lambda n: entry(b"%d/" % n, headers.DIRECTORY),
    "symbolic links": lambda n: entry(b"%d" % n, headers.SYMLINK),
    "opaque directories": lambda n: entry(b"%d/.wh..wh..opq" % n),
}


def test_many_entries_take_few_bytes_each(scratch: Path, usual: int) -> None:
    """A layer can have a million of them for each few megabytes that it has."""
    number = 12_000
    for below, kind in enumerate(MANY):
        entries = (MANY[kind](each) for each in range(number))
        image_layouts.put_compressed(scratch / "layout", f"tag{below}", [*entries, END])

        result, taken = peak.of_command(scratch, "diff", f"{scratch}/layout:tag{below}")

        assert result.stdout.count("\n") == number
        assert taken - usual < 5 * MIB, kind  # a list of changes would have 10

    layers = [
        [*map(MANY["files"], range(number // 2)), END],
        [*(entry(b".wh.%d" % n) for n in range(number)), END],
    ]
    image_layouts.put_compressed(scratch / "layout", "deleted", *layers)
    result, taken = peak.of_command(
        scratch, "extract", "--no-fsync", f"{scratch}/layout:deleted", scratch / "out"
    )
    assert (result.status, os.listdir(scratch / "out")) == (0, [])
    assert taken - usual < 3 * MIB


def test_a_deep_tree_that_a_container_made_stays_readable(scratch: Path) -> None:
    """4,000 directories with names of 255 bytes, as the hook archives them."""
    deep = (b"n" * 255 + b"/") * 4000
    lower, upper = [entry(deep + b"f"), END], [entry(deep + b".wh.f"), entry(deep + b"g"), END]
    image_layouts.put_compressed(scratch / "layout", "latest", lower, upper)

    shown, taken = peak.of_command(scratch, "diff", "--json", f"{scratch}/layout:latest")
    assert taken < MOST
    assert [line["path"].encode() for line in json.loads(shown.stdout)] == [deep + b"f", deep + b"g"]

    done, taken = peak.of_command(scratch, "extract", "--no-fsync", scratch / "layout", scratch / "out")
    assert (done.status, done.stderr) == (0, "")
    assert taken < MOST
    found = subprocess.run(
        ["find", scratch / "out", "-type", "f", "-printf", "%d %f"], capture_output=True, check=True
    )
    assert found.stdout == b"4001 g"


def test_zstd_that_looks_back_further_than_any_layer_does(scratch: Path) -> None:
    tools.need("/usr/bin/zstd")
    tar = layer(file("a"))
    for window, status in ((27, 1), (26, 0)):
        packed = subprocess.run(
            ["/usr/bin/zstd", f"--long={window}"], input=tar, stdout=-1, check=True
        ).stdout
        (scratch / "tar").write_bytes(packed)

        result = history.run("diff", scratch / "tar")

        assert result.status == status, result.stderr
        assert result.stderr.count("\n") == status


# JSON


def with_json(layout: Path, *, index: str = "", manifest: str = "", config: str = "") -> Path:
    """Make a layout of one image, of which these files have more in them."""

    def filled(more: str, **usual: Any) -> bytes:
        return (json.dumps(usual)[:-1] + (f", {more}" if more else "") + "}").encode()

    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    stored = image_layouts.put_blob(layout, layer(file("a")))
    rootfs = {"type": "layers", "diff_ids": [stored["digest"]]}
    described = image_layouts.put_blob(layout, filled(config, rootfs=rootfs))
    described = image_layouts.put_blob(layout, filled(manifest, config=described, layers=[stored]))
    tagged = {**described, "annotations": {image_layouts.REF_NAME: "latest"}}
    (layout / "index.json").write_bytes(filled(index, manifests=[tagged]))
    return layout


def text(size: int) -> str:
    """Make a text that takes four times as much in memory as in the file."""
    return f'"text": "\U0001f600{"a" * size}"'


def values() -> str:
    """Make as many values as are read, each of which takes as much as it can."""
    return ",".join(f'"{number:x}":{{}}' for number in range(65_000))


# Each is made by its test: all of them at once would take more than 100 MB of every process that collects these tests.
HUGE: dict[str, tuple[Callable[[], dict[str, str]], str]] = {
    "an index of as much as is read": (lambda: {"index": f"{values()},{text(6 * MIB)}"}, ""),
    "a manifest and a config of as much": (
        lambda: dict.fromkeys(("manifest", "config"), f"{values()},{text(3 * MIB)}"),
        "",
    ),
    "an index of more bytes": (lambda: {"index": text(9 * MIB)}, "has more than 8388608 bytes"),
    "a manifest of more bytes": (lambda: {"manifest": text(5 * MIB)}, "has more than 4194304 bytes"),
    "a config of more bytes": (lambda: {"config": text(5 * MIB)}, "has more than 4194304 bytes"),
    "an index of more values": (lambda: {"index": f'"a": [{"[]," * 150_000}[]]'}, "or 131072 values"),
    "an index that is nested": (lambda: {"index": f'"a": {"[" * 100_000}{"]" * 100_000}'}, "not valid JSON"),
    "an index with a long number": (
        lambda: {"index": f'"a": {"9" * MIB}'},
        "is not a valid number",
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_no_json_of_a_layout_takes_much_memory(scratch: Path, name: str) -> None:
    make, complaint = HUGE[name]
    layout = with_json(scratch / "layout", **make())

    result, taken = peak.of_command(scratch, "log", layout)

    assert taken < MOST
    assert result.status == (1 if complaint else 0), result.stderr
    assert complaint in result.stderr
    assert len(result.stderr) < 2000


def test_a_layout_of_thousands_of_tags_and_revisions_is_read(scratch: Path) -> None:
    revisions, tags = 2000, 10_000
    layout = scratch / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    facts = {f"{hooks.PREFIX}.{key}": "data" * 5 for key in ("container", "archive", "mount-point")}
    stored = {"mediaType": image_layouts.LAYER_TYPE, **image_layouts.put_blob(layout, layer(file("a")))}
    config = {
        "rootfs": {"type": "layers", "diff_ids": [stored["digest"]] * revisions},
        "history": [{"created": "2020-01-02T03:04:05Z", "created_by": "x", "comment": "data" * 20}]
        * revisions,
    }
    layers = [{**stored, "annotations": facts}] * revisions
    image_layouts.put(layout, "latest", config=config, manifest={"layers": layers})
    index = json.loads((layout / "index.json").read_text())
    (tagged,) = index["manifests"]
    others = [{**tagged, "annotations": {image_layouts.REF_NAME: f"tag{number}"}} for number in range(tags)]
    (layout / "index.json").write_text(json.dumps({**index, "manifests": [*others, tagged]}))

    result, taken = peak.of_command(scratch, "log", layout)
    assert (result.status, result.stdout.count("\n")) == (0, revisions + 2 + 2 * tags)
    assert taken < MOST
    result, taken = peak.of_command(scratch, "log", "--json", f"{layout}:tag1")
    assert (result.status, len(json.loads(result.stdout))) == (0, revisions)
    assert taken < MOST
    complaint = history.complaint_of("log", f"{layout}:other")
    assert len(complaint) < 1000


@pytest.mark.parametrize("method", ["oci"])
def test_a_layout_does_not_become_larger_than_what_is_read(any_saver: Saver) -> None:
    layout = with_json(any_saver.archive, index=text(8 * MIB - 1000))
    index = (layout / "index.json").read_bytes()
    any_saver.overlay.change(lambda root: (root / "made").touch())

    result = any_saver.run(archive_to=f"{layout}:other{'r' * 1000}")

    assert result.status == 1
    assert "index.json of the image layout has more than 8388608 bytes" in result.only_error()
    assert (layout / "index.json").read_bytes() == index


def test_long_texts_make_no_wide_table(scratch: Path) -> None:
    """Each line has the width of the longest one: a megabyte for each of thousands of revisions."""
    long = "x" * MIB
    facts = {f"{hooks.PREFIX}.{key}": long for key in ("container", "archive", "mount-point")}
    layout = scratch / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    stored = {"mediaType": image_layouts.LAYER_TYPE, **image_layouts.put_blob(layout, layer(file("a")))}
    config = {
        "rootfs": {"type": "layers", "diff_ids": [stored["digest"]]},
        "history": [{"created": "2" * MIB}],
    }
    image_layouts.put(
        layout, "latest", config=config, manifest={"layers": [{**stored, "annotations": facts}]}
    )

    assert len(history.output_of("log", layout)) < 5000
    assert json.loads(history.output_of("log", "--json", layout))[0]["mount_point"] == long


# What is no file


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": make_fifo,
    "directory": lambda path: path.mkdir(),
    "socket": make_socket,
    "symbolic link": lambda path: path.symlink_to("/dev/zero"),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["oci-layout", "index.json", "manifest", "config", "layer"])
def test_what_is_no_file_is_refused_at_once(scratch: Path, which: str, kind: str) -> None:
    if kind == "device":
        tools.need_root()
    layout = with_json(scratch / "layout")
    (tagged,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = image_layouts.blob(layout, tagged)
    inner = json.loads(manifest.read_text())
    path = {
        "oci-layout": layout / "oci-layout",
        "index.json": layout / "index.json",
        "manifest": manifest,
        "config": image_layouts.blob(layout, inner["config"]),
        "layer": image_layouts.blob(layout, inner["layers"][0]),
    }[which]
    path.unlink()
    KINDS[kind](path)
    # Somebody who writes to a FIFO, and never does, lets a reader wait.
    writer = os.open(path, os.O_RDWR) if kind == "FIFO" else -1
    try:
        commands: list[tuple[str | Path, ...]] = [
            ("log", layout),
            ("diff", f"{layout}:latest"),
            ("extract", layout, scratch / "out"),
        ]
        # What is known of revisions is listed without looking at what they hold.
        for command in commands[which == "layer" :]:
            assert path.name in history.complaint_of(*command)
    finally:
        if writer >= 0:
            os.close(writer)
