"""Paths and attributes of changes: nothing is held that could be large."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.change import TOP, LargeAttributes, TreePath


def chain(*names: str) -> TreePath:
    path = TOP
    for name in names:
        path = TreePath(path, name)
    return path


def test_a_path_is_made_of_names() -> None:
    path = chain("a", "b", "c")

    assert (TOP.text, TOP.prefix, TOP.shown, TOP.depth, TOP.length) == ("", "", ".", 0, 0)
    assert (path.text, path.prefix, path.shown, path.depth, path.length) == ("a/b/c", "a/b/c/", "a/b/c", 3, 6)
    assert (path.text, path.prefix) == ("a/b/c", "a/b/c/"), "it is the same when it has been asked for"


def test_no_directory_keeps_a_long_text() -> None:
    path = chain(*["directory" * 20] * 100)
    step: TreePath | None = path
    while step is not None:
        assert step.prefix.count("/") == step.depth
        step = step.parent

    kept = 0
    step = path
    while step is not None:
        kept = max(kept, len(step._prefix or ""))
        step = step.parent
    assert 0 < kept <= 1024


def test_a_directory_that_was_left_keeps_no_text() -> None:
    path = chain("a", "b")
    assert path.prefix == "a/b/"

    path.forget()

    assert path._prefix is None
    assert path.prefix == "a/b/"


def test_a_message_has_both_ends_of_a_path_that_is_deep() -> None:
    shown = chain(*(f"{number:0200}" for number in range(4000))).shown

    assert shown.startswith(f"{0:0200}/")
    assert "/[...]/" in shown
    assert shown.endswith(f"/{3999:0200}")
    assert len(shown) < 16 * 1024


@pytest.fixture
def large(tmp_path: Path) -> LargeAttributes:
    file = tmp_path / "file"
    file.touch()
    for name in ("user.a", "user.b", "user.c"):
        os.setxattr(file, name, name.encode())
    fd = os.open(file, os.O_PATH)
    return LargeAttributes(fd, dict.fromkeys(("user.a", "user.b", "user.c"), 6), {}, chain("file"))


def test_large_attributes_are_read_when_they_are_asked_for(large: LargeAttributes) -> None:
    large["user.a"] = b"other"
    del large["user.b"]

    assert list(large) == ["user.a", "user.c"]
    assert ("user.b" in large, len(large)) == (False, 2)
    assert dict(large.items()) == {"user.a": b"other", "user.c": b"user.c"}
    assert large.sizes == {"user.a": 5, "user.c": 6}


def test_an_attribute_that_changes_meanwhile_is_noticed(large: LargeAttributes) -> None:
    large.sizes["user.c"] = 7

    with pytest.raises(ArchiveError, match=r"the extended attribute user\.c of file changed"):
        dict(large.items())


def test_an_attribute_that_vanishes_is_noticed(large: LargeAttributes) -> None:
    large.sizes["user.d"] = 1

    with pytest.raises(ArchiveError, match=r"cannot read the extended attribute user\.d of file"):
        dict(large.items())
