"""What composing takes from layers, and what it does not believe."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.history.layer_source import LayerSource
from archive_overlay.overlay.compose import changes_of
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.tar import headers
from archive_overlay.tar.reader import TarReader
from tests.property.layers import composed, composed_of, opener, seen_in, streaming

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from archive_overlay.history.layer_source import Opener

SIZE = 300_000
LARGE = bytes(range(250)) * (SIZE // 250)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, READ_DIRECTORY)
    yield fd
    assert os.listdir(fd) == []
    os.close(fd)


def entry(name: str, kind: bytes = headers.REGULAR, data: bytes = b"", **more: Any) -> bytes:
    fields = {"mode": 0o640, "uid": 1, "gid": 2, "mtime_ns": 10**18, **more}
    header = headers.of_entry(name=name.encode(), type_flag=kind, size=len(data), **fields)
    return header + data + bytes(-len(data) % headers.BLOCK)


def directory(name: str, **more: Any) -> bytes:
    return entry(f"{name}/", headers.DIRECTORY, **{"mode": 0o750, **more})


def tar(*entries: bytes) -> bytes:
    return b"".join(entries) + bytes(2 * headers.BLOCK)


def read(open_layer: Opener, spool: int) -> int:
    """Read a layer with all its data; say how many changes it has."""
    count = 0
    with LayerSource(open_layer, spool) as source:
        for change in changes_of(source):
            count += 1
            for _ in change.pieces or ():
                pass
    return count


def names(layer: bytes) -> list[str]:
    with opener(layer)() as opened:
        return [each.name for each in opened.entries()]


def contents(layer: bytes, *paths: str) -> list[bytes]:
    found = {}
    with opener(layer)() as opened:
        for each in opened.entries():
            data = bytearray(each.size)
            for offset, piece in opened.data():
                data[offset : offset + len(piece)] = piece
            found[each.name] = bytes(data)
    return [found[path] for path in paths]


LINKED = tar(
    directory("."),
    entry("./a", data=LARGE),
    entry("./b", headers.HARD_LINK, link=b"./a"),
    entry("./c", headers.HARD_LINK, link=b"./a"),
)


def test_a_name_that_is_left_of_a_file_has_its_data(spool: int) -> None:
    made = composed([LINKED, tar(directory("."), entry("./a", data=b"new"))], spool)

    assert contents(made, "./a", "./b") == [b"new", LARGE]
    assert seen_in(made, spool)["c"].link == "b"


def test_a_file_that_no_name_is_left_of_is_gone(spool: int) -> None:
    made = composed([LINKED, tar(directory("."), entry("./.wh..wh..opq"), entry("./d"))], spool)

    assert names(made) == [".", "./.wh..wh..opq", "./d"]


def test_links_of_layers_of_several_sizes_are_not_mixed_up(spool: int) -> None:
    others = tar(directory("."), entry("./x", data=b"x"), entry("./y", headers.HARD_LINK, link=b"./x"))

    found = seen_in(composed([LINKED, others], spool), spool)

    assert {path: each.link for path, each in found.items() if each.link} == {"b": "a", "c": "a", "y": "x"}


def test_a_directory_that_a_layer_does_not_list_stays_what_it_is(spool: int) -> None:
    older = tar(directory("."), directory("./d", mode=0o711), entry("./d/old"))
    newer = tar(entry("./d/new"), entry("./d/e/f"))

    found = seen_in(composed([older, newer], spool), spool)
    without = seen_in(composed([newer], spool), spool)

    assert found["d"].facts[1:5] == (0o711, 1, 2, 10**18)
    assert list(found) == ["", "d", "d/e", "d/e/f", "d/new", "d/old"]
    assert names(composed([newer], spool)) == ["./d/e/f", "./d/new"]
    assert without["d"].facts[1:4] == (0o755, 0, 0)


@pytest.mark.parametrize("hidden", [entry("./d", data=b"file"), entry("./.wh.d")])
def test_an_unlisted_directory_in_the_place_of_something_else_is_listed(hidden: bytes, spool: int) -> None:
    made = composed([tar(directory("."), hidden), tar(entry("./d/new"))], spool)

    assert names(made) == [".", "./d", "./d/.wh..wh..opq", "./d/new"]


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    ("newer", "expected"),
    [
        ((entry("./d", data=b"1"), directory("./d"), entry("./d/x")), ["./d", "./d/.wh..wh..opq", "./d/x"]),
        ((entry("./.wh.d"), directory("./d"), entry("./d/x")), ["./d", "./d/.wh..wh..opq", "./d/x"]),
        ((directory("./d"), entry("./d/x"), entry("./.wh.d")), ["./d", "./d/.wh..wh..opq", "./d/x"]),
        ((entry("./.wh.d"), entry("./d")), ["./d"]),
        ((directory("./d"), entry("./d/.wh..wh..opq"), entry("./d/e/x")), ["./d", "./d/.wh..wh..opq", "./d/e", "./d/e/x"]),
        ((directory("./d"), entry("./d/e/x"), entry("./d/.wh..wh..opq")), ["./d", "./d/.wh..wh..opq", "./d/e", "./d/e/x"]),
        ((directory("./d"), entry("./d/.wh.z"), entry("./d/a"), entry("./d/.wh.b")), ["./d", "./d/a", "./d/.wh.b", "./d/old", "./d/.wh.z"]),
        ((entry("./d/.wh..wh.plnk"),), ["./d", "./d/old"]),
    ],
)  # fmt: skip
def test_it_does_not_matter_where_marks_stand(
    newer: tuple[bytes, ...], expected: list[str], small: bool, spool: int
) -> None:
    older = tar(directory("."), directory("./d"), entry("./d/old"))

    with nullcontext() if small else streaming():
        assert names(composed([older, tar(directory("."), *newer)], spool)) == [".", *expected]


@pytest.mark.parametrize(
    "mark", [(entry("./d/.wh..wh..opq"), entry("./d/new")), (entry("./d/new"), entry("./d/.wh..wh..opq"))]
)
def test_an_unlisted_directory_may_be_opaque(mark: tuple[bytes, ...], spool: int) -> None:
    older = tar(directory("."), directory("./d", mode=0o711), entry("./d/old"))

    made = composed([older, tar(*mark)], spool)

    assert names(made) == [".", "./d", "./d/.wh..wh..opq", "./d/new"]
    assert seen_in(made, spool)["d"].facts[1:5] == (0o711, 1, 2, 10**18)


def test_an_unlisted_directory_below_an_opaque_one_is_listed(spool: int) -> None:
    older = tar(directory("."), directory("./d"), entry("./d/.wh..wh..opq"))

    for made in (
        composed([older, tar(entry("./d/e/f/new"))], spool),
        composed(
            [tar(directory("."), directory("./d"), entry("./d/.wh..wh..opq"), entry("./d/e/f/new"))], spool
        ),
    ):
        assert names(made) == [".", "./d", "./d/.wh..wh..opq", "./d/e", "./d/e/f", "./d/e/f/new"]


def test_a_hard_link_before_its_file_is_refused(spool: int) -> None:
    layer = tar(directory("."), entry("./a", headers.HARD_LINK, link=b"./b"), entry("./b", data=LARGE))

    with pytest.raises(ArchiveError, match="which its layer does not have"):
        composed([layer], spool)


def test_a_hole_is_not_kept_but_its_size_is(spool: int) -> None:
    size = 10**6
    sparse = entry(
        "./file",
        data=b"1\n500000\n4\n".ljust(512, b"\0") + b"data",
        records={
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": b"./file",
            b"GNU.sparse.realsize": b"%d" % size,
        },
    )

    with streaming():
        made = composed([tar(directory("."), sparse), tar(directory("."))], spool)

    assert contents(made, "./file") == [bytes(500_000) + b"data" + bytes(size - 500_004)]


def test_a_hard_link_to_a_file_of_another_layer_is_refused(spool: int) -> None:
    with pytest.raises(ArchiveError, match=r"b is a hard link to \./a, which its layer does not have"):
        composed([LINKED, tar(directory("."), entry("./b", headers.HARD_LINK, link=b"./a"))], spool)


@pytest.mark.parametrize("size", [10, SIZE])
def test_a_layer_that_is_not_what_it_should_be_is_refused_before_any_of_it_is_believed(
    size: int, spool: int
) -> None:
    @contextmanager
    def damaged() -> Iterator[TarReader]:
        with opener(tar(directory("."), entry("./a", data=bytes(size))))() as opened:
            yield opened
        raise ArchiveError("revision 7 is damaged")

    with pytest.raises(ArchiveError, match="revision 7 is damaged"):
        LayerSource(damaged, spool).__enter__()


def test_what_fails_elsewhere_is_not_blamed_on_a_layer(spool: int) -> None:
    blamed = []

    @contextmanager
    def watching() -> Iterator[TarReader]:
        try:
            with opener(LINKED)() as opened:
                yield opened
        except Exception as error:
            blamed.append(error)
            raise

    def failing() -> None:
        with LayerSource(watching, spool) as source:
            source.take()
            raise ArchiveError("the disk is full")

    with pytest.raises(ArchiveError, match="the disk is full"):
        failing()

    assert blamed == []


@pytest.mark.parametrize("size", [10, SIZE])
def test_what_cannot_be_composed_is_blamed_on_its_layer(size: int, spool: int) -> None:
    layer = tar(directory("."), entry("./a", data=bytes(size)), entry("./b", headers.HARD_LINK, link=b"./c"))

    @contextmanager
    def named() -> Iterator[TarReader]:
        try:
            with opener(layer)() as opened:
                yield opened
        except ArchiveError as error:
            raise ArchiveError(f"revision 3: {error.message}") from error

    with pytest.raises(ArchiveError, match=r"revision 3: \./b is a hard link to"):
        composed_of([opener(LINKED), named], spool)
    with pytest.raises(ArchiveError, match=r"revision 3: \./b is a hard link to"):
        read(named, spool)


def test_a_layer_that_changes_between_two_readings_is_blamed(spool: int) -> None:
    readings = iter([LINKED, LINKED[: len(LINKED) // 2]])

    @contextmanager
    def changing() -> Iterator[TarReader]:
        try:
            with opener(next(readings))() as opened:
                yield opened
        except ArchiveError as error:
            raise ArchiveError(f"revision 3: {error.message}") from error

    with pytest.raises(ArchiveError, match="revision 3: it ends too early"):
        read(changing, spool)


def test_composing_reads_layers_once_unless_there_is_a_reason(spool: int) -> None:
    opened = []

    def counting(layer: bytes) -> Opener:
        def open_layer() -> AbstractContextManager[TarReader]:
            opened.append(len(layer))
            return opener(layer)()

        return open_layer

    small = tar(directory("."), entry("./b", data=b"b"), entry("./a", data=b"a"))
    hiding = tar(directory("."), entry("./a", data=b"new"))

    assert read(counting(small), spool) == 3
    composed_of([counting(small), counting(LINKED)], spool)
    assert opened == [len(small), len(small), len(LINKED)]

    opened.clear()
    assert read(counting(LINKED), spool) == 4
    assert opened == 2 * [len(LINKED)]

    opened.clear()
    made = composed_of([counting(LINKED), opener(hiding)], spool)
    assert opened == 3 * [len(LINKED)]
    assert made == composed([LINKED, hiding], spool)


def test_memory_does_not_grow_with_a_layer_that_is_in_order(spool: int) -> None:
    def peak(files: int) -> int:
        layer = tar(directory("."), *(entry(f"./{number:06}", data=b"x" * 2000) for number in range(files)))
        open_layer = opener(layer)
        tracemalloc.start()
        read(open_layer, spool)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(4000) < peak(1000) + 3000 * 20
