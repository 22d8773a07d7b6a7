"""Headers of tar entries, as Python's tarfile and GNU tar read them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archive_overlay.tar import headers

if TYPE_CHECKING:
    from typing import Any

END = bytes(2 * headers.BLOCK)
PLAIN: dict[str, Any] = {
    "name": b"./file",
    "type_flag": headers.REGULAR,
    "mode": 0o644,
    "uid": 0,
    "gid": 0,
    "mtime_ns": 1_700_000_000 * 10**9,
}


def read(data: bytes) -> tarfile.TarInfo:
    """Read the entry that headers are for; its data need not be there."""
    with tarfile.open(fileobj=io.BytesIO(data + END), mode="r:", errors="surrogateescape") as tar:
        member = tar.next()
    assert member
    return member


def entry(**fields: Any) -> tarfile.TarInfo:
    return read(headers.of_entry(**{**PLAIN, **fields}))


names = st.binary(min_size=1, max_size=300).filter(lambda name: not {0, 0x2F} & {*name})


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(
    name=names,
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    mtime_ns=st.integers(-(2**62), 2**65),
    size=st.integers(0, 2**63 - 1),
)
@example(name=b"x", mode=0, uid=0o7777777, gid=0o7777777, mtime_ns=0, size=0)
@example(name=b"x", mode=0, uid=0o10000000, gid=0o10000000, mtime_ns=-1, size=0o77777777777)
@example(name=b"x" * 98, mode=0o7777, uid=1, gid=2, mtime_ns=10**18 - 1, size=0o100000000000)
@example(name=b"x" * 99, mode=0o7777, uid=1, gid=2, mtime_ns=10**18, size=1)
@example(name=b"\xff", mode=0o7777, uid=1, gid=2, mtime_ns=0o77777777777 * 10**9 + 1, size=1)
@example(name=b"x", mode=0, uid=0, gid=0, mtime_ns=0o100000000000 * 10**9, size=1)
def test_what_goes_in_comes_out(name: bytes, mode: int, uid: int, gid: int, mtime_ns: int, size: int) -> None:
    found = entry(name=b"./" + name, mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, size=size)

    assert os.fsencode(found.name) == b"./" + name
    assert (found.mode, found.uid, found.gid, found.size) == (mode, uid, gid, size)
    assert Decimal(found.pax_headers.get("mtime", found.mtime)) * 10**9 == mtime_ns
    assert headers.of_file(b"./" + name, mode, uid, gid, mtime_ns, size) == headers.of_entry(
        **{
            **PLAIN,
            "name": b"./" + name,
            "mode": mode,
            "uid": uid,
            "gid": gid,
            "mtime_ns": mtime_ns,
            "size": size,
        }
    )


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(link=names, type_flag=st.sampled_from([headers.SYMLINK, headers.HARD_LINK]))
@example(link=b"x" * 100, type_flag=headers.SYMLINK)
@example(link=b"x" * 101, type_flag=headers.SYMLINK)
def test_links(link: bytes, type_flag: bytes) -> None:
    found = entry(link=link, type_flag=type_flag)

    assert (os.fsencode(found.linkname), found.type) == (link, type_flag)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(major=st.integers(0, 2**12 - 1), minor=st.integers(0, 2**20 - 1))
@example(major=2**12 - 1, minor=2**20 - 1)
@example(major=0, minor=0)
def test_devices(major: int, minor: int) -> None:
    found = entry(type_flag=headers.BLOCK_DEVICE, device=os.makedev(major, minor))

    assert (found.devmajor, found.devminor) == (major, minor)


@pytest.mark.parametrize(
    ("type_flag", "judge"),
    [
        (headers.REGULAR, tarfile.TarInfo.isreg),
        (headers.DIRECTORY, tarfile.TarInfo.isdir),
        (headers.SYMLINK, tarfile.TarInfo.issym),
        (headers.HARD_LINK, tarfile.TarInfo.islnk),
        (headers.FIFO, tarfile.TarInfo.isfifo),
        (headers.CHARACTER_DEVICE, tarfile.TarInfo.ischr),
        (headers.BLOCK_DEVICE, tarfile.TarInfo.isblk),
    ],
)
def test_types(type_flag: bytes, judge: Any) -> None:
    assert judge(entry(type_flag=type_flag))


# A record says its own length, digits of the length counted: at each power of ten it jumps.
def test_records_of_every_length() -> None:
    wrong = []
    for length in (*range(1100), *range(9_950, 10_050), *range(99_950, 100_050)):
        found = entry(records={b"SCHILY.xattr.user.x": b"v" * length})
        if found.pax_headers["SCHILY.xattr.user.x"] != "v" * length:
            wrong.append(length)

    assert wrong == []


def test_values_keep_all_their_bytes() -> None:
    value = bytes(range(256)) + b"\n12 a=b\n"

    found = entry(records={b"SCHILY.xattr.user.x": value})

    assert os.fsencode(found.pax_headers["SCHILY.xattr.user.x"]) == value


def test_an_attribute_s_name_keeps_all_its_bytes() -> None:
    name = "SCHILY.xattr.user.\udcff"
    found = entry(records={os.fsencode(name): b"value"})

    assert found.pax_headers[name] == "value"
    with pytest.raises(UnicodeEncodeError):  # one of the reasons why tarfile does not write the headers
        found.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def test_a_record_of_the_path_stands_for_the_entry_s() -> None:
    found = headers.of_entry(
        **{**PLAIN, "name": b"./\xffsparse"}, records={b"path": b"./\xffGNUSparseFile.0/sparse"}
    )

    assert found.count(b"path=") == 1
    assert b"path=./\xffGNUSparseFile.0/sparse\n" in found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": b"./" + b"n" * 98},
        {"uid": 0o7777777, "gid": 0o7777777, "size": 0o77777777777},
        {"mtime_ns": 0},
        {"mtime_ns": 0o77777777777 * 10**9},
        {"mtime_ns": 10**18},
        {"link": b"l" * 100, "type_flag": headers.SYMLINK},
    ],
)
def test_what_fits_has_one_block(fields: dict[str, Any]) -> None:
    assert len(headers.of_entry(**{**PLAIN, **fields})) == headers.BLOCK


@pytest.mark.parametrize(
    ("fields", "record"),
    [
        ({"name": b"./" + b"n" * 99}, b"path=./nnn"),
        ({"name": b"./\xc3\xbc"}, b"13 path=./\xc3\xbc\n"),
        ({"link": b"l" * 101, "type_flag": headers.SYMLINK}, b"linkpath=lll"),
        ({"link": b"\xff", "type_flag": headers.SYMLINK}, b"14 linkpath=\xff\n"),
        ({"uid": 0o10000000}, b"15 uid=2097152\n"),
        ({"gid": 0o10000000}, b"15 gid=2097152\n"),
        ({"size": 0o100000000000}, b"19 size=8589934592\n"),
        ({"mtime_ns": 1_700_000_000_000_000_001}, b"30 mtime=1700000000.000000001\n"),
        ({"mtime_ns": 999_999_999_000_000_001}, b"29 mtime=999999999.000000001\n"),
        ({"mtime_ns": 1}, b"21 mtime=0.000000001\n"),
        ({"mtime_ns": -1}, b"22 mtime=-0.000000001\n"),
        ({"mtime_ns": -12_345_678_901_234}, b"26 mtime=-12345.678901234\n"),
        ({"mtime_ns": -(10**9)}, b"12 mtime=-1\n"),
        ({"mtime_ns": 0o100000000000 * 10**9}, b"20 mtime=8589934592\n"),
    ],
)
def test_what_does_not_fit_is_a_record_before_the_header(fields: dict[str, Any], record: bytes) -> None:
    made = headers.of_entry(**{**PLAIN, **fields})

    assert made[156:157] == b"x"
    assert record in made[headers.BLOCK : 2 * headers.BLOCK]
    assert len(made) == 3 * headers.BLOCK


def test_the_short_way_and_the_long_way_agree() -> None:
    short = headers.of_file(b"./file", 0o644, 0, 0, 1_700_000_000_123_456_789, 0)
    long = headers.of_entry(**{**PLAIN, "mtime_ns": 1_700_000_000_123_456_789}, records={b"comment": b"x"})

    (record,) = (line for line in long[headers.BLOCK :].split(b"\n") if b"mtime=" in line)
    assert short[headers.BLOCK : headers.BLOCK + 30] == record + b"\n"
    assert short[-headers.BLOCK :] == long[-headers.BLOCK :]


def test_gnu_tar_finds_nothing_wrong_with_the_largest_and_the_strangest() -> None:
    entries = [
        headers.of_entry(**{**PLAIN, **fields})
        for fields in (
            {"name": b"./" + b"\xff" * 255},
            {"name": b"./" + b"n" * 255, "uid": 2**32 - 2, "gid": 2**32 - 2},
            {"name": b"./" + b"/".join([b"d" * 255] * 15)},
            {"name": b"./then", "mtime_ns": -1},
            {"name": b"./later", "mtime_ns": 10**19 + 1},
            {"name": b"./attribute", "records": {b"SCHILY.xattr.user.a": bytes(65536)}},
            {"name": b"./link", "type_flag": headers.SYMLINK, "link": b"\xff" * 4095},
        )
    ]

    listed = subprocess.run(
        ["tar", "--list", "--verbose", "--file=-"],
        input=b"".join([*entries, END]),
        capture_output=True,
        check=True,
    )

    assert listed.stderr == b""
    assert len(listed.stdout.splitlines()) == len(entries)
