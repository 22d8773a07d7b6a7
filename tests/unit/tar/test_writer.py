"""What a tar takes: everything that can be read again, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from archive_overlay.overlay.change import DIRECTORY, FILE, TOP, Change, LargeAttributes, TreePath
from archive_overlay.tar import headers
from archive_overlay.tar import writer as tar_writer
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY_STATUS = Path("/").stat()


class Written:
    """A tar in memory, and the largest piece of it that was written at once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.largest = 0

    def write(self, data: bytes | bytearray) -> None:
        self.data += data
        self.largest = max(self.largest, len(data))

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def writer(written: Written) -> tar_writer.TarWriter:
    return tar_writer.TarWriter(
        written, opaque_attribute="trusted.overlay.opaque", owner=None, log=Log("panic", [])
    )


def deep(levels: int, name: str) -> TreePath:
    path = TOP
    for _ in range(levels):
        path = TreePath(path, name)
    return path


@pytest.mark.parametrize(("levels", "name"), [(4095, "d" * 255), (4095, "\udcff" * 255), (400_000, "d")])
def test_a_path_of_a_mebibyte_is_stored(levels: int, name: str) -> None:
    written = Written()
    tar = writer(written)

    tar.add(Change(DIRECTORY, deep(levels, name), "d" * 200, DIRECTORY_STATUS, {}))
    tar.finish()

    assert len(written.data) > levels * (len(name) + 1)


@pytest.mark.parametrize("levels", [4096, 100_000])
def test_a_longer_path_fails_in_a_short_line(levels: int) -> None:
    with pytest.raises(
        ArchiveError, match="cannot be stored in a tar: its path has more than 1048576 bytes"
    ) as error:
        writer(Written()).add(Change(DIRECTORY, deep(levels, "d" * 255), "d" * 255, DIRECTORY_STATUS, {}))

    assert "/[...]/" in error.value.message
    assert len(error.value.message) < 32 * 1024
    assert "copy" in error.value.hint


@pytest.fixture
def decorated(tmp_path: Path) -> Iterator[Change]:
    """Give a file with three attributes of which the sizes are what a test says: no value is ever read."""
    file = tmp_path / "file"
    file.touch()
    for name in ("user.a", "user.b", "user.c"):
        os.setxattr(file, name, name.encode() * 100)
    fd = os.open(file, os.O_RDONLY)
    large = LargeAttributes(fd, dict.fromkeys(("user.a", "user.b", "user.c"), 600), {}, TreePath(TOP, "file"))
    yield Change(FILE, TOP, "file", os.fstat(fd), large, fd=fd)
    os.close(fd)


def test_large_attributes_are_written_one_by_one(
    decorated: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_writer, "_GATHERED", 1024)
    written = Written()
    tar = writer(written)
    decorated.mtime_ns = 1_500_000_000_123_456_789

    tar.add(decorated)
    largest = written.largest
    tar.finish()

    (tmp_path / "tar").write_bytes(written.data)
    reader = Reader(os.open(tmp_path / "tar", os.O_RDONLY))
    (entry,) = TarReader(reader).entries()
    reader.close()
    assert (entry.name, entry.mtime_ns) == ("./file", decorated.mtime_ns)
    assert entry.attributes == {name: name.encode() * 100 for name in ("user.a", "user.b", "user.c")}
    assert largest < 2500


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"user.a": headers.LARGEST_EXTENDED}, "its 1 extended attributes take 16777"),
        ({f"user.{number}": 1 for number in range(headers.MOST_RECORDS)}, "its 16384 extended attributes"),
    ],
    ids=["bytes", "records"],
)
def test_a_header_that_nobody_can_read_is_not_written(
    decorated: Change, sizes: dict[str, int], says: str
) -> None:
    assert isinstance(decorated.attributes, LargeAttributes)
    decorated.attributes.sizes = sizes
    written = Written()

    with pytest.raises(ArchiveError, match=f"file cannot be stored in a tar: {says}") as error:
        writer(written).add(decorated)

    assert "copy" in error.value.hint
    assert not written.data


@pytest.mark.parametrize("opaque_attribute", ["", "trusted.overlay.opaque"])
@pytest.mark.parametrize("over", [0, 1])
def test_a_layer_takes_no_header_that_programs_in_go_do_not_read(
    decorated: Change, over: int, opaque_attribute: str
) -> None:
    assert isinstance(decorated.attributes, LargeAttributes)
    decorated.mtime_ns = 10**18
    # Two records of the same size and one that fills up, which are never read.
    key = b"SCHILY.xattr.user.a"
    size = headers.LARGEST_EXTENDED_OF_LAYER + over
    left = size - 2 * headers.record_size(key, 400_000)
    last = next(value for value in range(left, 0, -1) if headers.record_size(key, value) == left)
    decorated.attributes.sizes = {"user.a": 400_000, "user.b": 400_000, "user.c": last}
    decorated.attributes.replaced = {name: bytes(value) for name, value in decorated.attributes.sizes.items()}
    written = Written()
    tar = tar_writer.TarWriter(written, opaque_attribute=opaque_attribute, owner=None, log=Log("panic", []))

    if over and not opaque_attribute:
        with pytest.raises(
            ArchiveError, match=f"^file cannot be stored in a layer: its 3 extended attributes take {size} "
        ) as error:
            tar.add(decorated)
        assert error.value.hint.startswith("method copy can hold it, and so can tar")
        assert not written.data
    else:
        tar.add(decorated)
        tar.finish()
        assert b"%011o" % size == bytes(written.data[124:135])


@pytest.mark.parametrize(("length", "fits"), [(4094, True), (4095, False)])
def test_a_layer_takes_no_path_that_the_kernel_does_not_take(length: int, fits: bool) -> None:
    written = Written()
    tar = tar_writer.TarWriter(written, opaque_attribute="", owner=None, log=Log("panic", []))
    directory = deep(15, "d" * 255)
    change = Change(DIRECTORY, directory, "n" * (length - directory.length), DIRECTORY_STATUS, {})

    if fits:
        tar.add(change)
        return
    with pytest.raises(ArchiveError, match="cannot be stored in a layer: its path has 4095 bytes") as error:
        tar.add(change)
    assert "copy" in error.value.hint


def test_bytes_of_a_path_count_and_not_characters() -> None:
    tar = tar_writer.TarWriter(Written(), opaque_attribute="", owner=None, log=Log("panic", []))

    with pytest.raises(ArchiveError, match="its path has 4096 bytes"):
        tar.add(Change(DIRECTORY, deep(16, "\u00e9" * 127), "e" * 16, DIRECTORY_STATUS, {}))


@pytest.mark.parametrize("large", [False, True])
def test_an_attribute_that_readers_of_layers_lose_is_named(decorated: Change, large: bool) -> None:
    log = Said()
    change = decorated
    if large:
        assert isinstance(change.attributes, LargeAttributes)
        change.attributes.sizes["user.b"] = 0
        change.attributes.replaced["user.b"] = b""
    else:
        change.attributes = {"user.a": b"a", "user.b": b""}
    for opaque_attribute in ("", "trusted.overlay.opaque"):
        tar = tar_writer.TarWriter(
            Written(), opaque_attribute=opaque_attribute, owner=None, log=Log("info", [log])
        )
        tar.add(change)

    assert [line for line in log.lines if "user.a" in line] == []
    (line,) = log.lines
    assert line.startswith("file: the attribute user.b has no value, and podman, umoci and others leave")


class Said:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: str, message: str) -> None:
        self.lines.append(message)


@pytest.mark.parametrize(
    ("opaque_attribute", "marks"),
    [("trusted.overlay.opaque", "trusted"), ("user.overlay.opaque", "user"), ("", "oci")],
)
def test_a_tar_says_which_marks_are_in_it(tmp_path: Path, opaque_attribute: str, marks: str) -> None:
    written = Written()
    tar = tar_writer.TarWriter(written, opaque_attribute=opaque_attribute, owner=None, log=Log("panic", []))
    # What a container can do: names and values that look like the record.
    forged = b"\n39 comment=archive_overlay marks=other\n"
    forging: dict[str, bytes] = {"user.comment": forged, f"user.{forged.decode().replace('=', '')}": forged}
    tar.add(Change(DIRECTORY, TOP, "", DIRECTORY_STATUS, forging))
    tar.add(Change(DIRECTORY, TOP, "comment", DIRECTORY_STATUS, forging))
    tar.finish()

    (tmp_path / "tar").write_bytes(written.data)
    reader = Reader(os.open(tmp_path / "tar", os.O_RDONLY))
    opened = TarReader(reader)
    assert [(entry.name, opened.marks) for entry in opened.entries()] == [
        (".", marks),
        ("./comment", marks),
    ]
    reader.close()
    assert written.data.count(f"comment=archive_overlay marks={marks}\n".encode()) == 1


def test_a_file_with_more_segments_than_anybody_reads_is_stored_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "MOST_SEGMENTS", 2)
    with (tmp_path / "file").open("wb") as file:
        for number in range(3):
            file.seek(number * 1024 * 1024)
            file.write(b"data")
        file.truncate(4 * 1024 * 1024)
    written = Written()
    tar = writer(written)
    with (tmp_path / "file").open("rb") as file:
        tar.add(Change(FILE, TOP, "file", os.fstat(file.fileno()), {}, fd=file.fileno()))
    tar.finish()

    (tmp_path / "tar").write_bytes(written.data)
    reader = Reader(os.open(tmp_path / "tar", os.O_RDONLY))
    (entry,) = TarReader(reader).entries()
    reader.close()
    assert entry.size == 4 * 1024 * 1024
    assert len(written.data) > entry.size


def add_hole(writer: tar_writer.TarWriter, directory: Path, name: str, size: int) -> None:
    """Add a file that is nothing but a hole."""
    path = directory / name
    path.touch()
    os.truncate(path, size)
    fd = os.open(path, os.O_RDONLY)
    try:
        writer.add(Change(FILE, TOP, name, os.fstat(fd), {}, fd=fd))
    finally:
        os.close(fd)


def test_the_zeros_of_all_files_of_a_layer_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_writer, "_MOST_ZEROS", 1 << 20)
    output = Written()
    writer = tar_writer.TarWriter(output, opaque_attribute="", owner=None, log=Log("panic", []))
    for number in range(4):
        add_hole(writer, tmp_path, f"{number}", 1 << 18)

    with pytest.raises(
        ArchiveError, match=r"^one more cannot be stored: with it the archive has 1310720 bytes of holes"
    ):
        add_hole(writer, tmp_path, "one more", 1 << 18)

    assert len(output.data) < (1 << 20) + (1 << 18)


def test_what_is_too_large_is_refused_before_its_first_byte_is_written(tmp_path: Path) -> None:
    output = Written()
    writer = tar_writer.TarWriter(
        output, opaque_attribute="", owner=None, max_bytes=1 << 20, log=Log("panic", [])
    )

    with pytest.raises(
        ArchiveError, match="the archive has more than 1048576 bytes, the most that is allowed"
    ):
        add_hole(writer, tmp_path, "hole", 1 << 20 | 1)

    assert len(output.data) == 0
