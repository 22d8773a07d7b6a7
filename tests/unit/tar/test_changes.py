"""Tars as changes: entries, and what marks say, wherever they stand."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.change import CHARACTER_DEVICE, DIRECTORY, FILE, SYMLINK, WHITEOUT
from archive_overlay.tar import headers
from archive_overlay.tar.changes import LAYER, Form, Marks, read_changes, read_marks
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.overlay.change import Change

OVERLAY = Form(
    whiteout_files=False,
    whiteout_devices=True,
    opaque_attributes=("trusted.overlay.opaque", "user.overlay.opaque"),
)
OPAQUE = {b"SCHILY.xattr.trusted.overlay.opaque": b"y"}


def entry(
    name: bytes,
    type_flag: bytes = headers.REGULAR,
    *,
    link: bytes = b"",
    device: int = 0,
    records: dict[bytes, bytes] | None = None,
) -> bytes:
    return headers.of_entry(
        name=name,
        type_flag=type_flag,
        mode=0o640,
        uid=7,
        gid=8,
        mtime_ns=1_700_000_000_123_456_789,
        link=link,
        device=device,
        records=records,
    )


def changes_of(*entries: bytes, form: Form) -> list[Change]:
    fd = os.memfd_create("tar")
    os.write(fd, b"".join(entries) + bytes(2 * headers.BLOCK))
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with opened(fd) as tar:
            marks = read_marks(tar, form)
        with opened(fd) as tar:
            return list(read_changes(tar, form, marks))
    finally:
        os.close(fd)


@contextmanager
def opened(fd: int) -> Iterator[TarReader]:
    """Give a tar from its start."""
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(os.dup(fd))
    try:
        yield TarReader(reader)
    finally:
        reader.close()


def shown(changes: list[Change]) -> list[tuple[str, str, bool]]:
    return [(change.kind, change.path, change.opaque) for change in changes]


def test_an_entry_has_its_metadata_and_its_place() -> None:
    (change,) = changes_of(entry(b"./a//b/c"), form=LAYER)

    assert (change.kind, change.directory.prefix, change.name) == (FILE, "a/b/", "c")
    assert (change.mode, change.uid, change.gid) == (0o640, 7, 8)
    assert change.mtime_ns == 1_700_000_000_123_456_789


def test_attributes_take_no_memory_when_their_entry_was_read() -> None:
    size = 1024 * 1024
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = changes_of(
            *(entry(b"f", records={b"SCHILY.xattr.user.x": bytes(size)}) for _ in range(16)), form=LAYER
        )
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert len(found) == 16
    assert kept < size


@pytest.mark.parametrize("mark_at", [0, 1, 2])
def test_a_layer_deletes_and_hides_by_files_wherever_they_stand(mark_at: int) -> None:
    entries = [entry(b"d/", headers.DIRECTORY), entry(b"d/.wh.a")]
    entries.insert(mark_at, entry(b"d/.wh..wh..opq"))

    assert shown(changes_of(*entries, form=LAYER)) == [(DIRECTORY, "d", True), (WHITEOUT, "d/a", False)]


def test_a_mark_of_a_directory_that_has_no_entry_makes_one() -> None:
    found = changes_of(entry(b"d/e/.wh..wh..opq"), entry(b"d/e/f"), entry(b".wh..wh..opq"), form=LAYER)

    assert shown(found) == [(DIRECTORY, "d/e", True), (FILE, "d/e/f", False), (DIRECTORY, "", True)]
    assert (found[0].directory.prefix, found[0].name) == ("d/", "e")


def test_an_overlay_deletes_by_devices_and_hides_by_attributes() -> None:
    entries = [
        entry(b"a", headers.CHARACTER_DEVICE),
        entry(b"null", headers.CHARACTER_DEVICE, device=os.makedev(1, 3)),
        entry(b"d/", headers.DIRECTORY, records=OPAQUE),
    ]
    deleted, device, directory = changes_of(*entries, form=OVERLAY)

    assert (deleted.kind, deleted.path) == (WHITEOUT, "a")
    assert (device.kind, device.rdev) == ("character device", os.makedev(1, 3))
    assert (directory.kind, directory.path, directory.opaque) == (DIRECTORY, "d", True)


def test_marks_of_the_other_form_are_what_they_are() -> None:
    devices = [
        entry(b"a", headers.CHARACTER_DEVICE),
        entry(b"d/", headers.DIRECTORY, records=OPAQUE),
    ]
    files = [entry(b".wh.a"), entry(b".wh..wh..opq")]

    assert shown(changes_of(*devices, form=LAYER)) == [
        ("character device", "a", False),
        (DIRECTORY, "d", False),
    ]
    assert shown(changes_of(*files, form=OVERLAY)) == [(FILE, ".wh.a", False), (FILE, ".wh..wh..opq", False)]


def test_a_hard_link_is_of_the_kind_of_what_it_is_one_with() -> None:
    _, _, link, other = changes_of(
        entry(b"f"),
        entry(b"s", headers.SYMLINK, link=b"target"),
        entry(b"t", headers.HARD_LINK, link=b"./s"),
        entry(b"g", headers.HARD_LINK, link=b"/f"),
        form=LAYER,
    )

    assert link.link_to
    assert other.link_to
    assert (link.kind, link.link_to.text) == (SYMLINK, "s")
    assert (other.kind, other.link_to.text) == (FILE, "f")


@pytest.mark.parametrize(
    "bad",
    [
        entry(b"../a"),
        entry(b"a/../../b"),
        entry(b"../.wh.a"),
        entry(b"d/.wh."),
        entry(b"d/.wh.."),
        entry(b"d/.wh..."),
        entry(b".wh.a")[:300],
    ],
)
def test_what_leads_out_or_says_nothing_or_is_cut_off_is_refused(bad: bytes) -> None:
    with pytest.raises(ArchiveError):
        changes_of(entry(b"first"), bad, form=LAYER)


def test_parents_that_do_not_lead_out_are_taken_away() -> None:
    first, second, link = changes_of(
        entry(b"gone/../a"),
        entry(b"./a/b/./../../c"),
        entry(b"l", headers.HARD_LINK, link=b"../x/../a"),
        form=LAYER,
    )

    assert [each.path for each in (first, second, link)] == ["a", "c", "l"]
    assert link.link_to
    assert link.link_to.text == "a"


def test_a_link_of_a_deletion_is_one() -> None:
    """GNU tar makes these of an upperdir: all deletions in it are one file."""
    found = changes_of(
        entry(b"a", headers.CHARACTER_DEVICE),
        entry(b"d/", headers.DIRECTORY),
        entry(b"d/b", headers.HARD_LINK, link=b"a"),
        entry(b"c", headers.HARD_LINK, link=b"d/b"),
        entry(b"e", headers.CHARACTER_DEVICE, device=os.makedev(1, 3)),
        entry(b"f", headers.HARD_LINK, link=b"e"),
        form=OVERLAY,
    )

    assert [(each.kind, each.path, each.link_to is None) for each in found] == [
        (WHITEOUT, "a", True),
        (DIRECTORY, "d", True),
        (WHITEOUT, "d/b", True),
        (WHITEOUT, "c", True),
        (CHARACTER_DEVICE, "e", True),
        (CHARACTER_DEVICE, "f", False),
    ]


@pytest.mark.parametrize("mark", [b"f/.wh.a", b"f/.wh..wh..opq"])
@pytest.mark.parametrize("mark_first", [False, True])
@pytest.mark.parametrize("type_flag", [headers.REGULAR, headers.BLOCK_DEVICE, headers.FIFO])
def test_marks_below_what_is_no_directory_say_nothing(
    mark: bytes, mark_first: bool, type_flag: bytes
) -> None:
    entries = [entry(b"f", type_flag), entry(mark)]
    found = changes_of(*(entries[::-1] if mark_first else entries), entry(b"g/.wh.b"), form=LAYER)

    assert [each.path for each in found] == ["f", "g/b"]


def test_marks_below_a_symbolic_link_are_shown() -> None:
    found = changes_of(entry(b"l", headers.SYMLINK, link=b"d"), entry(b"l/.wh.a"), form=LAYER)

    assert shown(found) == [(SYMLINK, "l", False), (WHITEOUT, "l/a", False)]


def test_a_mark_of_a_directory_that_has_no_entry_makes_one_only_once() -> None:
    found = changes_of(entry(b"d/.wh..wh..opq"), entry(b"d/.wh..wh..opq"), form=LAYER)

    assert shown(found) == [(DIRECTORY, "d", True)]


def test_whatever_stands_under_the_name_of_a_deletion_is_one() -> None:
    found = changes_of(entry(b".wh.a/", headers.DIRECTORY), entry(b".wh.b", headers.FIFO), form=LAYER)

    assert shown(found) == [(WHITEOUT, "a", False), (WHITEOUT, "b", False)]


def test_what_is_remembered_of_paths_is_told_apart_however_many_there_are() -> None:
    marks = Marks()
    for number in range(5000):
        marks.add(f"path {number}", 1 + number % 3)
    marks.add("path 1", 4)

    for number in range(5000):
        assert [marks.has(f"path {number}", bit) for bit in (1, 2)] == [
            bool(1 + number % 3 & bit) for bit in (1, 2)
        ]
    assert not any(marks.has(f"other {number}", 7) for number in range(5000))
    assert [number for number in range(5000) if marks.has(f"path {number}", 4)] == [1]


def test_what_is_remembered_takes_few_bytes_for_each_path() -> None:
    marks = Marks()
    tracemalloc.start()
    try:
        for number in range(50_000):
            marks.add(f"{number:0100}", 1)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert kept < 30 * 50_000


@pytest.mark.parametrize("depth", [64 * 1024 + 1, 1024 * 1024])
def test_a_path_without_an_end_is_refused(depth: int) -> None:
    with pytest.raises(ArchiveError) as caught:
        changes_of(entry(b"d/" * depth + b"f"), form=LAYER)

    assert len(str(caught.value)) < 500
