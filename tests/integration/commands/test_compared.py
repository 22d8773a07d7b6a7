"""What `diff` says of two things, and of a revision on the one before it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver
from tests.support import history, hooks, image_layouts, overlays
from tests.support.history import directory, file, layer, link, symlink

if TYPE_CHECKING:
    from typing import Callable

BASE = layer(
    directory("d"),
    directory("d/sub"),
    file("d/same", b"same"),
    file("d/sub/deep", b"1"),
    directory("hidden"),
    file("hidden/old", b"old"),
    file("gone"),
    file("text", b"old"),
    file("touched", b"same"),
    symlink("link", "d"),
    file("type"),
)
CHANGE = layer(
    directory("d", mtime=2),
    directory("d/sub"),
    file("d/same", b"same"),  # copied up, and nothing else
    file("d/sub/new", b"2"),
    directory("hidden"),
    file("hidden/.wh..wh..opq"),
    file("hidden/new"),
    file(".wh.gone"),
    file(".wh.never"),
    file("text", b"new"),  # of the same size and time
    file("touched", b"same", mtime=5),
    symlink("link", "hidden"),
    directory("type"),
    file("first", b"12"),
    link("second", "first"),
    link("third", "second"),
)
CHANGED = [
    "A            1 d/sub/new",
    "A            2 first",
    "D            - gone",
    "O            - hidden/",
    "A            0 hidden/new",
    "D            - hidden/old",
    "M            - link -> hidden",
    "A            - second => first",
    "M            3 text",
    "A            - third => first",
    "m            4 touched",
    "M            - type/",
]


@pytest.fixture
def layout(scratch: Path) -> Path:
    third = layer(file(".wh.d"), file("new"))
    image_layouts.put(scratch / "layout", "main", layers=[BASE, CHANGE, third])
    image_layouts.put(scratch / "layout", "other", layers=[BASE, layer(file("elsewhere"))])
    return scratch / "layout"


def lines_of(*arguments: str | Path) -> list[str]:
    return history.output_of("diff", *arguments).splitlines()


def test_a_revision_and_the_one_before_it(layout: Path) -> None:
    assert lines_of(f"{layout}:main@2") == CHANGED
    assert lines_of(f"{layout}:main@1", f"{layout}:main@2") == CHANGED
    assert lines_of(f"{layout}:main@3") == ["D            - d/", "A            0 new"]


def test_all_shows_what_was_in_it_and_what_came_along(layout: Path) -> None:
    assert lines_of("--all", f"{layout}:main@3") == [
        "D            - d/",
        "D            - d/same",
        "D            - d/sub/",
        "D            - d/sub/deep",
        "D            - d/sub/new",
        "A            0 new",
    ]
    assert set(lines_of("--all", f"{layout}:main@2")) - set(CHANGED) == {
        "m            - d/",
        "=            - d/sub/",
    }


def test_the_way_back_and_another_branch(layout: Path) -> None:
    assert lines_of(f"{layout}:main@3", f"{layout}:main@2") == [
        "A            - d/",
        "A            4 d/same",
        "A            - d/sub/",
        "A            1 d/sub/deep",
        "A            1 d/sub/new",
        "D            - new",
    ]
    assert lines_of(f"{layout}:main@1", f"{layout}:other") == ["A            0 elsewhere"]
    assert "D            - elsewhere" in lines_of(f"{layout}:other", f"{layout}:main")
    assert lines_of(f"{layout}:main", f"{layout}:main@3") == []


def test_what_lies_below_damage_is_not_needed(layout: Path, scratch: Path) -> None:
    other = scratch / "other"
    image_layouts.put(other, "main", layers=[layer(file("f", b"x"))])

    assert lines_of(f"{layout}:main@1", f"{other}:main")[:1] == ["D            - d/"]


def test_a_directory_and_a_revision(layout: Path, scratch: Path) -> None:
    history.output_of("extract", f"{layout}:main@2", scratch / "tree")
    assert lines_of(f"{layout}:main@2", scratch / "tree") == []
    (scratch / "tree/text").write_text("mine")
    shutil.rmtree(scratch / "tree/d")

    assert (
        lines_of(f"{layout}:main@2", scratch / "tree")
        == ["m            - ./", "D            - d/", "M            4 text"][1:]
    )
    assert lines_of(scratch / "tree", f"{layout}:main@2")[:2] == [
        "A            - d/",
        "A            4 d/same",
    ]


def test_two_directories(scratch: Path) -> None:
    for name in ("one", "other"):
        (scratch / name / "d").mkdir(parents=True)
        (scratch / name / "d/a").write_text("a")
        os.utime(scratch / name / "d/a", (1, 1))
    os.truncate(scratch / "one/d/a", 100_000)
    with open(scratch / "other/d/a", "r+b") as written:
        written.seek(99_999)
        written.write(b"\0")
    os.utime(scratch / "one/d/a", (1, 1))
    os.utime(scratch / "other/d/a", (1, 1))
    (scratch / "other/d/b").touch()
    (scratch / "one/x").touch()

    # Holes and zeros are the same.
    assert lines_of(scratch / "one", scratch / "other") == ["A            0 d/b", "D            - x"]


FORMS: list[tuple[str, dict[str, Any]]] = [("copy", {}), ("tar", {}), ("tar.gz", {"whiteouts": "oci"})]


@pytest.mark.parametrize(("method", "keys"), FORMS, ids=lambda value: str(value))
def test_forms_of_one_change_set_do_not_differ(
    any_overlay: overlays.Overlay, scratch: Path, method: str, keys: dict[str, Any]
) -> None:
    def below(root: Path) -> None:
        for name in ("d", "o"):
            (root / name).mkdir()
        (root / "d/gone").touch()

    any_overlay.layer(below)

    def change(root: Path) -> None:
        (root / "d/gone").unlink()
        (root / "d/.wh.kept").touch()
        (root / "d/.wh-other").touch()
        (root / "o").rmdir()
        (root / "o").mkdir()
        (root / "a").write_text("text")
        os.link(root / "a", root / "d/z")
        if method == "tar.gz":
            (root / "d/.wh.kept").unlink()

    any_overlay.change(change)
    saver = Saver(any_overlay, method, scratch)
    assert saver.run(**keys).status == 0

    def compared(*options: str) -> list[str]:
        return any_overlay.inside(
            lambda: history.output_of("diff", *options, any_overlay.upper, saver.archive)
        ).splitlines()

    assert compared() == []
    (saver.archive.parent / "plain").mkdir()
    (saver.archive.parent / "plain/a").write_text("text")
    shown = any_overlay.inside(
        lambda: history.output_of("diff", saver.archive.parent / "plain", saver.archive)
    ).splitlines()
    assert "A            - d/gone (deletion)" in shown
    assert "A            - o/" in shown


def test_a_tar_on_standard_input(scratch: Path, layout: Path) -> None:
    packed = layer(file("a", b"1"), file(".wh.b"))

    def given(*arguments: str | Path, stdin: Any = subprocess.PIPE) -> str:
        done = subprocess.run(
            [*hooks.command(), "diff", *map(str, arguments)],
            input=packed if stdin is subprocess.PIPE else None,
            stdin=None if stdin is subprocess.PIPE else stdin,
            capture_output=True,
            env={},
            check=False,
        )
        return (done.stdout + done.stderr).decode()

    assert given("-") == "A            1 a\nD            - b\n"
    (scratch / "a.tar").write_bytes(packed)
    with open(scratch / "a.tar", "rb") as opened:
        assert given("-", stdin=opened) == "A            1 a\nD            - b\n"
    assert given("-", scratch / "a.tar") == ""
    assert "cannot be compared with itself" in given("-", "-")
    packed = b""
    assert "it is not a tar" in given("-")


def test_what_cannot_be_compared(scratch: Path, layout: Path) -> None:
    (scratch / "a.tar").write_bytes(layer(file("a")))
    for pair in ((scratch / "a.tar", f"{layout}:main"), (f"{layout}:main", scratch / "a.tar")):
        assert "a.tar is a tar of changes" in history.complaint_of("diff", *pair)
    assert "has no revision 9" in history.complaint_of("diff", f"{layout}:main@9", f"{layout}:main")


def test_json_says_what_was(layout: Path) -> None:
    found = {
        each["path"]: each for each in json.loads(history.output_of("diff", "--json", f"{layout}:main@2"))
    }

    assert {path: each["change"] for path, each in found.items()} == {
        line[15:].partition(" ")[0].rstrip("/"): {
            "A": "added",
            "M": "modified",
            "m": "metadata",
            "D": "deleted",
            "O": "opaque",
        }[line[0]]
        for line in CHANGED
    }
    assert found["type"]["was"] == {"type": "file"}
    assert found["link"]["was"] == {"target": "d"}
    assert json.loads(history.output_of("diff", "--json", "--stat", f"{layout}:main@2")) == {
        "entries": 10,
        "deletions": 2,
        "opaque": 1,
        "size": 10,
        "added": 5,
        "modified": 3,
        "metadata": 1,
    }


def test_a_base_that_is_not_there_leaves_letters_open(
    new_overlay: Callable[..., overlays.Overlay], scratch: Path
) -> None:
    overlay = new_overlay(overlays.NATIVE if os.geteuid() == 0 else overlays.NATIVE_ROOTLESS)
    overlay.layer(lambda root: (root / "old").touch())

    def change(root: Path) -> None:
        (root / "old").unlink()
        (root / "text").write_text("1")

    overlay.change(change)
    saver = Saver(overlay, "oci", scratch)
    assert saver.run().status == 0
    overlay.change(lambda root: (root / "text").write_text("22"))
    assert saver.run().status == 0

    assert lines_of(f"{saver.archive}:latest@1") == ["D            - old", "A            1 text"]
    assert lines_of(f"{saver.archive}:latest@2") == ["D            - old", "M            2 text"]
