"""Reading tars: those of other programs, and those that nobody should have made."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import Entry, TarReader
from tests.support import tools

if TYPE_CHECKING:
    from pathlib import Path


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    """Read a tar, and put each file together from its pieces."""
    fd = os.memfd_create("tar")
    with open(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(fd)
    try:
        tar = TarReader(reader)
        found = []
        for entry in tar.entries():
            whole = bytearray(min(entry.size, 1 << 24))
            for offset, piece in tar.data():
                whole[offset : offset + len(piece)] = piece
            found.append((entry, bytes(whole)))
        return found
    finally:
        reader.close()


def sparse_file(directory: Path) -> bytes:
    """Make a file with more segments than a header holds, and give its data."""
    with open(directory / "sparse", "wb") as file:
        for number in range(60):
            file.seek(number * 100_000)
            file.write(b"%d" % number)
        file.truncate(6_200_000)
    return (directory / "sparse").read_bytes()


@pytest.mark.parametrize(
    "form",
    [
        ("--format=oldgnu",),
        ("--format=gnu",),
        ("--format=posix", "--sparse-version=0.0"),
        ("--format=posix", "--sparse-version=0.1"),
        ("--format=posix", "--sparse-version=1.0"),
    ],
    ids=lambda form: "-".join(form),
)
def test_each_form_of_a_sparse_file(tmp_path: Path, form: tuple[str, ...]) -> None:
    tools.need("tar")
    data = sparse_file(tmp_path)
    command = ["tar", "-C", str(tmp_path), *form, "--sparse", "-c", "sparse"]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(made) < len(data) / 4, "the file system knows no holes"

    ((entry, found),) = read(made)

    assert (entry.name, entry.size) == ("sparse", len(data))
    assert found == data


def test_times_are_kept_to_the_nanosecond() -> None:
    for text, expected in (("1.000000001", 1_000_000_001), ("-1.5", -1_500_000_000), ("7", 7_000_000_000)):
        info = tarfile.TarInfo("a")
        info.pax_headers = {"mtime": text}
        ((entry, _),) = read(packed(info))
        assert entry.mtime_ns == expected


def test_a_global_header_is_of_all_entries() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", pax_headers={"uid": "7"}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
        tar.addfile(tarfile.TarInfo("b"))

    assert [entry.uid for entry, _ in read(data.getvalue())] == [7, 7]


def test_data_that_nobody_takes_is_left_out() -> None:
    first, second = tarfile.TarInfo("first"), tarfile.TarInfo("second")
    first.size = 100_000
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(first, io.BytesIO(bytes(first.size)))
        tar.addfile(second)
    fd = os.memfd_create("tar")
    os.write(fd, data.getvalue())
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(fd)

    assert [entry.name for entry in TarReader(reader).entries()] == ["first", "second"]
    reader.close()


@pytest.mark.parametrize(
    "records",
    [
        {"size": "-1"},
        {"size": "99999999999999999999999999"},
        {"uid": "x"},
        {"mtime": "1e5"},
        {"mtime": "9" * 30},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "5"},
        {"GNU.sparse.map": "5,10,0,3", "GNU.sparse.size": "20"},
        {"GNU.sparse.map": "0,10", "GNU.sparse.size": "5"},
        {"GNU.sparse.map": "1", "GNU.sparse.size": "5"},
        {"GNU.sparse.map": "1,x", "GNU.sparse.size": "5"},
    ],
    ids=str,
)
def test_records_that_cannot_be_are_refused(records: dict[str, str]) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = records
    with pytest.raises(ArchiveError):
        read(packed(info))


def test_whatever_the_bytes_are_it_is_read_or_refused() -> None:
    info = tarfile.TarInfo("directory/" + "name" * 40)
    info.size = 600
    info.pax_headers = {"SCHILY.xattr.user.a": "value", "GNU.sparse.map": "0,600", "GNU.sparse.size": "600"}
    good = {form: packed(info, bytes(600), form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)}
    chance = random.Random(20)
    outcomes = set()
    for number in range(3000):
        data = bytearray(good[tarfile.PAX_FORMAT if number % 2 else tarfile.GNU_FORMAT])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(3072)] = chance.choice(
                [0, 0x20, 0x2D, 0x30, 0x38, 0x80, 0xFF, chance.randrange(256)]
            )
        for start in range(0, 3072, 512):
            block = data[start : start + 512]
            if block[257:262] == b"ustar":
                data[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
        try:
            read(bytes(data))
            outcomes.add("read")
        except ArchiveError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def packed(info: tarfile.TarInfo, data: bytes = b"", form: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar of one entry."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        tar.addfile(info, io.BytesIO(data))
    return made.getvalue()
