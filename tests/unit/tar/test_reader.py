"""Reading tars: those of other programs, and those that nobody should have made."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.tar import headers
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import Entry, TarReader
from tests.support import tools

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable


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


FILE = headers.of_file(b"file", 0o644, 0, 0, 0, 4) + b"data".ljust(512, b"\0")
END = bytes(1024)


def extended(type_flag: bytes, body: bytes, *, size: int | None = None) -> bytes:
    """Make an extended header, of a size that need not be true."""
    header = named(b"x", type_flag, len(body) if size is None else size)
    return header + body + bytes(-len(body) % 512)


def records(*texts: bytes) -> bytes:
    """Make the records of an extended header."""
    made = b""
    for text in texts:
        length = next(n for n in range(len(text) + 3, len(text) + 30) if n == len(b"%d %b\n" % (n, text)))
        made += b"%d %b\n" % (length, text)
    return made


def named(name: bytes, type_flag: bytes, size: int = 0, more: dict[bytes, bytes] | None = None) -> bytes:
    """Make a header of which nothing matters but this."""
    return headers.of_entry(
        name=name, type_flag=type_flag, mode=0, uid=0, gid=0, mtime_ns=0, size=size, records=more
    )


def old_gnu(data: bytes, fields: dict[int, bytes]) -> bytes:
    """Make a header of GNU's old form of one of POSIX's, with these fields."""
    changed = bytearray(data)
    for start, field in {257: b"ustar  \0", **fields}.items():
        changed[start : start + len(field)] = field
    return bytes(changed)


def summed(header: bytes) -> bytes:
    """Make the sum of a header right; what comes after it stays."""
    total = sum(header[:148]) + sum(header[156:512]) + 8 * 0x20
    return bytes(header[:148] + b"%06o\0 " % total + header[156:])


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


def test_of_global_headers_nothing_is_kept_that_says_nothing_of_an_entry() -> None:
    fd = os.memfd_create("tar")
    comments = b"".join(extended(b"g", records(b"comment.%d=x" % number)) for number in range(300))
    os.write(fd, comments + extended(b"g", records(b"uid=7")) + FILE + END)
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(fd)
    tar = TarReader(reader)

    # So an entry costs the same after however many of them.
    assert [(entry.uid, len(tar._global)) for entry in tar.entries()] == [(7, 1)]
    reader.close()


def test_a_global_header_may_stand_between_an_extended_one_and_its_entry() -> None:
    data = extended(b"x", records(b"uid=1")) + extended(b"g", records(b"uid=2", b"gid=3")) + FILE + FILE + END

    assert [(entry.uid, entry.gid) for entry, _ in read(data)] == [(1, 3), (2, 3)]


def test_a_path_that_nobody_can_have_made_is_refused_in_a_few_words() -> None:
    for header in (extended(b"x", records(b"path=" + b"p" * (3 << 20))), extended(b"L", b"p" * (3 << 20))):
        with pytest.raises(ArchiveError) as caught:
            read(header + FILE + END)
        assert len(str(caught.value)) < 500


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
        {"GNU.sparse.map": "0,0,", "GNU.sparse.size": "5"},
        {"GNU.sparse.map": "0,-1", "GNU.sparse.size": "5"},
        {"GNU.sparse.map": f"0,{2**63}", "GNU.sparse.size": "5"},
        {"GNU.sparse.map": "0" * 9000, "GNU.sparse.size": "5"},
    ],
)
def test_records_that_cannot_be_are_refused(records: dict[str, str]) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = records
    with pytest.raises(ArchiveError):
        read(packed(info))


@pytest.mark.parametrize("numbers", [(2**31, 0), (0, 2**31), (2**40, 1)])
def test_a_device_that_cannot_be_is_refused(numbers: tuple[int, int]) -> None:
    header = bytearray(named(b"d", headers.CHARACTER_DEVICE))
    for start, number in zip((329, 337), numbers):
        header[start : start + 8] = b"\x80" + number.to_bytes(7, "big")
    with pytest.raises(ArchiveError, match="impossible device number"):
        read(summed(bytes(header)))


@pytest.mark.parametrize("offset", [108, 116])
def test_an_owner_who_is_negative_counts_from_the_end(offset: int) -> None:
    header = bytearray(FILE)
    header[offset : offset + 8] = (-2).to_bytes(8, "big", signed=True)
    ((found, _),) = read(summed(bytes(header)) + END)
    assert (found.uid, found.gid) == ((2**32 - 2, 0) if offset == 108 else (0, 2**32 - 2))

    ((found, _),) = read(extended(b"x", records(b"uid=-2", b"gid=-3")) + FILE + END)
    assert (found.uid, found.gid) == (2**32 - 2, 2**32 - 3)


@pytest.mark.parametrize("owner", [-1, 2**32 - 1, 2**32, -(2**31) - 1])
def test_an_owner_who_cannot_be_is_refused_with_the_entry(owner: int) -> None:
    for key in (b"uid", b"gid"):
        with pytest.raises(ArchiveError, match=r"damaged: file has an impossible owner"):
            read(extended(b"x", records(b"%b=%d" % (key, owner))) + FILE + END)


def test_of_a_mode_only_permissions_count() -> None:
    header = bytearray(FILE)
    header[100:108] = (-1).to_bytes(8, "big", signed=True)
    ((found, _),) = read(summed(bytes(header)) + END)
    assert found.mode == 0o7777


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (old_gnu(FILE, {124: b"\xff" * 12}), "file"),
        (extended(b"x", records(b"path=long", b"mtime=now")) + FILE, "long"),
        (extended(b"L", b"longer\0") + old_gnu(FILE, {124: b"abc"}), "longer"),
    ],
    ids=["size", "time", "size of a long name"],
)
def test_a_number_that_is_none_is_refused_with_the_entry(data: bytes, name: str) -> None:
    start = len(data) - len(FILE)
    with pytest.raises(ArchiveError, match=f"it is damaged: {name} has "):
        read(data[:start] + summed(data[start:]) + END)


@pytest.mark.parametrize(
    ("key", "there"), [(b"uid", 7), (b"gid", 8), (b"size", 4), (b"mtime", 9 * 10**9), (b"path", "file")]
)
def test_a_record_without_a_value_says_that_none_before_counts(key: bytes, there: object) -> None:
    field = {b"path": "name", b"mtime": "mtime_ns"}.get(key, key.decode())
    plain = headers.of_file(b"file", 0o644, 7, 8, 9 * 10**9, 4) + FILE[512:]
    empty = extended(b"x", records(key + b"="))
    some = records(key + b"=3")

    for before in (b"", extended(b"g", some), extended(b"g", some) + extended(b"g", records(key + b"="))):
        ((found, data),) = read(before + empty + plain + END)
        assert (getattr(found, field), data) == (there, b"data")
    ((found, _),) = read(extended(b"x", some + records(key + b"=")) + plain + END)
    assert getattr(found, field) == there
    # The next entry has the global one again.
    (_, _), (found, _) = read(extended(b"g", some) + empty + plain + plain + END)
    assert getattr(found, field) != there


def test_an_attribute_may_be_empty() -> None:
    ((found, _),) = read(extended(b"x", records(b"SCHILY.xattr.user.a=", b"uid=")) + FILE + END)
    assert found.attributes == {"user.a": b""}


@pytest.mark.parametrize(
    "end", [b"", bytes(512), bytes(612), END], ids=["none", "one block", "a part of one more", "two blocks"]
)
def test_the_end_of_a_tar_may_be_missing(end: bytes) -> None:
    assert [entry.name for entry, _ in read(FILE + end)] == ["file"]
    assert read(end) == []


@pytest.mark.parametrize(
    "pending",
    [extended(b"x", records(b"uid=1")), extended(b"L", b"name"), extended(b"K", b"name")],
    ids=["x", "L", "K"],
)
def test_what_announces_an_entry_is_not_the_end(pending: bytes) -> None:
    with pytest.raises(ArchiveError, match="ends too early"):
        read(FILE + pending)


def of_this_program(marks: bytes = b"trusted") -> bytes:
    """Make the first entry of a tar of this program."""
    said = extended(b"x", records(b"comment=archive_overlay marks=" + marks))
    return said + named(b"./", headers.DIRECTORY)


def test_a_tar_of_this_program_has_an_end() -> None:
    assert [entry.name for entry, _ in read(of_this_program() + FILE + END)] == [".", "file"]
    with pytest.raises(ArchiveError, match="ends too early"):
        read(of_this_program() + FILE)


SAYS = {
    "user": (of_this_program(b"user"), "user"),
    "oci": (of_this_program(b"oci"), "oci"),
    "what there is not": (of_this_program(b"fuse"), ""),
    "something more": (of_this_program(b"user\0"), ""),
    "something long": (of_this_program(b"u" * 100), ""),
    "on the second entry": (FILE + of_this_program(b"user"), ""),
    "on a file": (of_this_program(b"user")[:1024] + FILE, ""),
    "on a root that is not a directory": (
        of_this_program(b"user")[:1024] + named(b"./", headers.SYMLINK),
        "",
    ),
    "of all entries": (
        extended(b"g", records(b"comment=archive_overlay marks=user")) + named(b"./", headers.DIRECTORY),
        "",
    ),
    "by an attribute": (
        named(b"./", headers.DIRECTORY, more={b"SCHILY.xattr.comment": b"archive_overlay marks=user"}),
        "",
    ),
}


@pytest.mark.parametrize("name", SAYS)
def test_only_the_first_entry_says_which_marks_are_in_a_tar(name: str) -> None:
    data, marks = SAYS[name]
    fd = os.memfd_create("tar")
    os.write(fd, data + END)
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(fd)
    tar = TarReader(reader)

    assert list(tar.entries())
    assert tar.marks == marks
    reader.close()


# What takes memory or time without an end

# Each is made by its test, for some are large.
ENDLESS: dict[str, Callable[[], bytes]] = {
    "a global header that is large": lambda: extended(b"g", records(b"comment=" + bytes(65536))),
    "a global header with an attribute": lambda: extended(b"g", records(b"SCHILY.xattr.user.a=b")),
    "a global header of a sparse file": lambda: extended(b"g", records(b"GNU.sparse.map=0,5")),
    "attributes with long names": lambda: extended(
        b"x", records(*(b"SCHILY.xattr.user.%d%b=" % (n, b"n" * 900) for n in range(1300)))
    ),
    "a key that is long": lambda: extended(b"x", records(b"k" * 2000 + b"=value")),
    "an entry after the end": lambda: bytes(512) + FILE,
    "an extended header with many records": lambda: extended(
        b"x", b"".join(b"12 %05d=xyz\n" % number for number in range(16 * 1024 + 1))
    ),
    "a sparse file with many segments": lambda: extended(
        b"x", records(b"GNU.sparse.size=5", b"GNU.sparse.map=" + b"0," * (4 << 20) + b"0")
    ),
    "an extended header that is large": lambda: extended(b"x", b"", size=1 << 30),
    "a name that is large": lambda: extended(b"L", b"", size=1 << 30),
    "a map without an end": lambda: (
        extended(b"x", records(b"GNU.sparse.major=1", b"GNU.sparse.realsize=10000"))
        + named(b"s", headers.REGULAR, 1 << 30)
        + b"99999999999\n".ljust(512, b"\n")
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_would_not_end_is_refused_where_it_begins(name: str) -> None:
    with pytest.raises(ArchiveError, match="damaged"):
        read(ENDLESS[name]() + FILE + END)


def test_a_map_takes_the_memory_of_its_numbers() -> None:
    number = 300_000
    sparse = extended(b"x", records(b"GNU.sparse.size=5", b"GNU.sparse.map=" + b"0," * (number - 1) + b"0"))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="damaged"):
            read(sparse + sparse + b"no header".ljust(512, b"\0"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # Eight bytes each, and the text once as it was read and once put together.
    assert peak < 13 * number + (1 << 20)


def test_the_largest_sum_is_a_sum() -> None:
    header = bytearray(named(b"n", headers.SYMLINK))
    header[:100] = b"\xff" * 100
    header[157:257] = b"\xff" * 100
    header[265:329] = b"\xff" * 64
    header[345:500] = b"\xff" * 155

    ((entry, _),) = read(summed(bytes(header)) + END)
    assert entry.link == "\udcff" * 100


def test_segments_of_an_entry_are_not_those_of_the_next() -> None:
    sparse = records(b"GNU.sparse.map=0,10", b"GNU.sparse.size=20")

    found = read(extended(b"x", sparse) + extended(b"x", records(b"a=b")) + FILE + END)

    assert [(entry.name, data) for entry, data in found] == [("file", b"data")]


# Why tarfile is not used

MISREAD_BY_TARFILE = {
    "the entry after a sparse file whose size is a record": (
        named(
            b"GNUSparseFile.0/s",
            headers.REGULAR,
            517,
            {
                b"GNU.sparse.major": b"1",
                b"GNU.sparse.minor": b"0",
                b"GNU.sparse.name": b"s",
                b"GNU.sparse.realsize": b"5",
                b"size": b"517",
            },
        )
        + b"1\n0\n5\n".ljust(512, b"\0")
        + b"bytes".ljust(512, b"\0")
        + named(b"lost", headers.REGULAR)
        + FILE
        + END,
        ["s", "lost", "file"],
    ),
    "an attribute that looks like a record": (
        named(b"d", headers.FIFO, more={b"SCHILY.xattr.user.a": b"\n9 hdrcharset=\xff\n"}) + FILE + END,
        ["d", "file"],
    ),
    "access time": (summed(old_gnu(FILE, {345: b"14312345670\0"})) + END, ["file"]),
    "damage in the middle": (FILE + b"damaged".ljust(512, b"\0") + FILE + END, None),
}


@pytest.mark.parametrize("name", MISREAD_BY_TARFILE)
def test_what_tarfile_misreads_is_read_or_refused(name: str) -> None:
    data, expected = MISREAD_BY_TARFILE[name]
    if expected is None:
        with pytest.raises(ArchiveError):
            read(data)
    else:
        assert [entry.name for entry, _ in read(data)] == expected


def test_tarfile_misreads_some_of_them_on_every_python() -> None:
    misread = []
    for name, (data, expected) in MISREAD_BY_TARFILE.items():
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                found = tar.getnames()
        except (tarfile.TarError, ValueError):
            found = None
        if found != expected:
            misread.append(name)

    assert len(misread) >= 2, (
        "look again whether tarfile can read tars here (see the docstring of tar/reader)"
    )


# Whatever the bytes are


def seeds() -> list[bytes]:
    """Give tars of each form, from which damaged ones are made."""
    entries = [
        ("directory/" * 10 + "name" * 8, tarfile.REGTYPE, {"SCHILY.xattr.user.a": "value", "mtime": "-1.5"}),
        ("symlink", tarfile.SYMTYPE, {"linkpath": "target" * 30}),
        ("device", tarfile.CHRTYPE, {"uid": "3000000000"}),
        ("sparse", tarfile.REGTYPE, {"GNU.sparse.map": "0,300,400,300", "GNU.sparse.size": "700"}),
    ]
    made = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for name, kind, known in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "target" if kind == tarfile.SYMTYPE else ""
            info.size = 600 if kind == tarfile.REGTYPE else 0
            info.pax_headers = known if form == tarfile.PAX_FORMAT else {}
            made.append(packed(info, bytes(info.size), form))
    pairs = extended(
        b"x",
        records(
            b"GNU.sparse.size=90",
            b"GNU.sparse.offset=0",
            b"GNU.sparse.numbytes=2",
            b"GNU.sparse.offset=50",
            b"GNU.sparse.numbytes=2",
        ),
    )
    fields = {156: b"S", 386: b"00000000000\0" + b"00000000003\0", 482: b"\1", 483: b"00000001000\0"}
    more = (b"00000000400\0" + b"00000000001\0").ljust(512, b"\0")
    return [
        *made,
        extended(b"g", records(b"comment=hello")) + FILE + FILE + END,
        pairs + FILE + END,
        summed(old_gnu(FILE[:512], fields)) + more + FILE[512:] + END,
        MISREAD_BY_TARFILE["the entry after a sparse file whose size is a record"][0],
    ]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Change some bytes or blocks, and then let the sums be right, so that more than the sum is looked at."""
    blocks = [bytearray(data[start : start + 512]) for start in range(0, min(len(data), 6144), 512)]
    for _ in range(chance.randint(1, 4)):
        block = chance.choice(blocks)
        what = chance.randrange(12)
        if what == 0:
            blocks.insert(chance.randrange(len(blocks)), bytearray(block))
        elif what == 1 and len(blocks) > 1:
            del blocks[chance.randrange(len(blocks))]
        elif what == 2:
            start, length = chance.choice(
                [(100, 8), (108, 8), (124, 12), (136, 12), (329, 8), (386, 12), (483, 12)]
            )
            block[start : start + length] = chance.choice([b"\x80", b"\xff", b"7", b"-"]).ljust(
                length, chance.choice([b"\0", b"7", b"\xff"])
            )
        elif what == 3:
            block[156] = chance.choice(b"01234567xgXLKSVD\0")
        elif what == 4:
            digits = [at for at, byte in enumerate(block) if 0x30 <= byte <= 0x39]
            if digits:
                block[chance.choice(digits)] = chance.choice(b"0123456789")
        else:
            block[chance.randrange(len(block))] = chance.choice(
                b"\0 -08=,\n\x80\xff%c" % chance.randrange(256)
            )
    for block in blocks:
        if block[257:262] == b"ustar":
            block[:] = summed(bytes(block))
    whole = b"".join(blocks)
    return whole if chance.randrange(8) else whole[: chance.randrange(len(whole) + 1)]


def test_whatever_the_bytes_are_it_is_read_or_refused() -> None:
    chance = random.Random(20)
    outcomes = set()
    for good in seeds():
        assert read(good)
        for _ in range(400):
            try:
                read(damaged(good, chance))
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
