"""Composition of change sets: each cell of the rule, and streams that are composed without being read in vain."""

from __future__ import annotations

import os
import random
import stat
from typing import TYPE_CHECKING

import pytest

from archive_overlay.log import Log
from archive_overlay.overlay.change import DIRECTORY, FILE, TOP, WHITEOUT, Change, TreePath
from archive_overlay.overlay.compose import (
    DELETED,
    MERGED,
    NEWER,
    NEWER_OPAQUE,
    NOTHING,
    OPAQUE,
    OTHER,
    PLAIN,
    at_one_name,
    compose,
)
from archive_overlay.overlay.dialect import NATIVE_USERXATTR
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.upper import UpperReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from archive_overlay.overlay.compose import Source

    # What there is by its name: a directory is a tree of its own, a file a number of which names of one file have the
    # same, None a whiteout. A directory that is opaque has the name "" in it.
    Tree = dict[str, Any]

HERE = {"": "opaque"}
STATUS = os.stat("/")


class Recorded:
    """A tree as a source that says what was asked of it.

    Attributes:
        taken: paths of all entries that were taken.
        most: the greatest number of directories that it was in at once.
    """

    def __init__(self, tree: Tree, layer: int = 0) -> None:
        self.taken: list[str] = []
        self.most = 0
        self._layer = layer
        self._root: Tree | None = tree
        self._levels: list[tuple[TreePath, Tree, list[str]]] = []
        self._several = [file for file in set(_files(tree)) if _files(tree).count(file) > 1]
        self._first: dict[int, tuple[int, TreePath]] = {}

    def ahead(self) -> tuple[int, str] | None:
        if self._root is not None:
            return -1, ""
        while self._levels:
            if self._levels[-1][2]:
                return len(self._levels) - 1, self._levels[-1][2][-1]
            self._levels.pop()
        return None

    def is_directory(self) -> bool:
        return self._root is not None or isinstance(self._levels[-1][1][self._levels[-1][2][-1]], dict)

    def skip(self) -> None:
        if self._root is not None:
            self._root = None
        else:
            self._levels[-1][2].pop()

    def take(self) -> Change | None:
        if self._root is not None:
            tree, self._root = self._root, None
            return self._enter(TOP, "", tree)
        directory, tree, names = self._levels[-1]
        name = names.pop()
        found = tree[name]
        if isinstance(found, dict):
            return self._enter(directory, name, found)
        self.taken.append(directory.prefix + name)
        if found is None:
            return None if "" in tree else Change(WHITEOUT, directory, name, STATUS, {})
        if found not in self._several:
            return Change(FILE, directory, name, STATUS, {}, fd=100 * self._layer + found)
        if found in self._first:
            number, first = self._first[found]
            return Change(FILE, directory, name, STATUS, {}, shared=number, link_to=first)
        self._first[found] = len(self._first) + 1, TreePath(directory, name)
        return Change(
            FILE, directory, name, STATUS, {}, shared=len(self._first), fd=100 * self._layer + found
        )

    def _enter(self, directory: TreePath, name: str, tree: Tree) -> Change:
        path = TreePath(directory, name) if name else TOP
        self.taken.append(path.text)
        self._levels.append((path, tree, sorted(tree.keys() - {""}, reverse=True)))
        self.most = max(self.most, len(self._levels))
        change = Change(DIRECTORY, directory, name, STATUS, {"user.layer": b"%d" % self._layer})
        change.opaque = "" in tree
        return change


def _files(tree: Tree) -> list[int]:
    found = []
    for each in tree.values():
        if isinstance(each, dict):
            found += _files(each)
        elif isinstance(each, int):
            found.append(each)
    return found


def read(source: Source) -> Tree:
    """Give what a source has as a tree, and expect of it what those who read changes rely on."""
    levels: list[Tree] = []
    places: list[tuple[str, ...]] = []
    files: dict[str, tuple[int, int]] = {}
    numbers: dict[int, int] = {}
    while (place := source.ahead()) is not None:
        is_directory = source.is_directory()
        change = source.take()
        if change is None:
            continue
        assert place == ((change.directory.depth, change.name) if change.name else (-1, ""))
        assert is_directory == (change.kind is DIRECTORY)
        places.append(tuple(change.path.split("/")))
        if not change.name:
            levels = [{**HERE} if change.opaque else {}]
            continue
        del levels[change.directory.depth + 1 :]
        tree = levels[-1]
        assert change.name not in tree
        if change.kind is DIRECTORY:
            tree[change.name] = {**HERE} if change.opaque else {}
            levels.append(tree[change.name])
        elif change.kind is WHITEOUT:
            tree[change.name] = None
        elif change.link_to is not None:
            assert change.fd == -1
            tree[change.name], number = files[change.link_to.text]
            assert number == change.shared
        else:
            assert change.fd >= 0
            tree[change.name] = change.fd
            files[change.path] = change.fd, change.shared
            if change.shared:
                assert numbers.setdefault(change.shared, change.fd) == change.fd
    assert places == sorted(places)
    return levels[0]


def composed(*trees: Tree) -> Tree:
    """Compose trees, the oldest first; files of the second one have numbers from 100 on, and so on."""
    return read(compose([Recorded(tree, layer) for layer, tree in enumerate(trees)]))


CELLS = {
    # older, newer, covered
    **{(older, DELETED, False): NEWER for older in (NOTHING, OTHER, PLAIN)},
    **{(older, DELETED, True): NOTHING for older in (NOTHING, OTHER, PLAIN)},
    **{(older, OTHER, covered): NEWER for older in (NOTHING, OTHER, PLAIN) for covered in (False, True)},
    **{(older, OPAQUE, covered): NEWER for older in (NOTHING, OTHER, PLAIN) for covered in (False, True)},
    **{(NOTHING, PLAIN, covered): NEWER for covered in (False, True)},
    **{(OTHER, PLAIN, covered): NEWER_OPAQUE for covered in (False, True)},
    **{(PLAIN, PLAIN, covered): MERGED for covered in (False, True)},
}


@pytest.mark.parametrize(("older", "newer", "covered"), CELLS)
def test_each_cell_of_the_rule(older: str, newer: str, covered: bool) -> None:
    assert at_one_name(older, newer, covered=covered) is CELLS[older, newer, covered]


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        pytest.param({"a": 1}, {"a": 2}, {"a": 102}, id="file-on-file"),
        pytest.param({"a": {"b": 1}}, {"a": 2}, {"a": 102}, id="file-on-directory"),
        pytest.param({"a": {"b": 1}}, {"a": None}, {"a": None}, id="whiteout-on-directory"),
        pytest.param({"a": None}, {"a": 2}, {"a": 102}, id="file-on-whiteout"),
        pytest.param({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 102}}, id="both-directories"),
        pytest.param({"a": {"b": 1}}, {"a": {**HERE, "c": 2}}, {"a": {**HERE, "c": 102}}, id="newer-opaque"),
        pytest.param(
            {"a": {**HERE, "b": 1}}, {"a": {"c": 2}}, {"a": {**HERE, "b": 1, "c": 102}}, id="older-opaque"
        ),
        pytest.param({"a": None}, {"a": {"c": 2}}, {"a": {**HERE, "c": 102}}, id="directory-on-whiteout"),
        pytest.param({"a": 1}, {"a": {"c": 2}}, {"a": {**HERE, "c": 102}}, id="directory-on-file"),
        pytest.param({}, {"a": {"c": 2, "d": None}}, {"a": {"c": 102, "d": None}}, id="directory-on-nothing"),
        pytest.param(
            {"a": None, "b": {"c": None}}, {"b": {}}, {"a": None, "b": {"c": None}}, id="newer-silent"
        ),
        pytest.param(
            {"a": {**HERE, "b": 1, "c": {"d": 2}}},
            {"a": {"b": None, "c": {"d": None, "e": None}, "f": None}},
            {"a": {**HERE, "c": {}}},
            id="whiteouts-below-opaque",
        ),
        pytest.param(
            {"a": None},
            {"a": {"b": {"c": None, "d": 2}}},
            {"a": {**HERE, "b": {"d": 102}}},
            id="whiteouts-on-whiteout",
        ),
        pytest.param(
            {"a": {**HERE, "b": {"c": None, "d": 1}}},
            {"a": {"e": {"f": None}}, "g": {**HERE, "h": {"i": None}}},
            {"a": {**HERE, "b": {"d": 1}, "e": {}}, "g": {**HERE, "h": {}}},
            id="whiteouts-deep-below-opaque",
        ),
        pytest.param({**HERE, "a": 1}, {"b": 2}, {**HERE, "a": 1, "b": 102}, id="older-root-opaque"),
        pytest.param({"a": 1, "b": {"c": 1}}, {**HERE, "b": {}}, {**HERE, "b": {}}, id="newer-root-opaque"),
        pytest.param({}, {}, {}, id="nothing-at-all"),
        # What sorts differently as a whole path.
        pytest.param(
            {"a": {"b": 1}}, {"a!": 2}, {"a": {"b": 1}, "a!": 102}, id="names-are-compared-not-paths"
        ),
        pytest.param(
            {"\udcff": 1}, {"\U0001f600": 2, "z": 3}, {"\udcff": 1, "\U0001f600": 102, "z": 103}, id="order"
        ),
    ],
)
def test_two_trees(older: Tree, newer: Tree, expected: Tree) -> None:
    assert composed(older, newer) == expected


def test_the_newer_directory_has_its_own_metadata() -> None:
    source = compose([Recorded({"d": {"a": 1}, "e": {}}, 0), Recorded({"d": {}}, 1)])

    owners = {}
    while source.ahead() is not None:
        change = source.take()
        assert change is not None
        owners[change.path] = dict(change.attributes.items())

    assert owners == {
        "": {"user.layer": b"1"},
        "d": {"user.layer": b"1"},
        "d/a": {},
        "e": {"user.layer": b"0"},
    }


# Hard links


def test_a_file_whose_first_name_is_hidden_is_carried_by_the_next_one() -> None:
    older = {"a": 1, "b": 1, "d": {"c": 1}}

    assert composed(older, {"a": None}) == {"a": None, "b": 1, "d": {"c": 1}}
    assert composed(older, {"a": 1, "b": {}}) == {"a": 101, "b": HERE, "d": {"c": 1}}
    assert composed({"a": {"x": 1}, "b": 1, "c": 1}, {"a": {**HERE}}) == {"a": HERE, "b": 1, "c": 1}


def test_a_file_that_has_one_name_left_is_no_link_to_what_is_hidden() -> None:
    source = compose([Recorded({"a": 1, "b": 1}), Recorded({"a": 1}, 1)])

    changes = [source.take() for _ in range(3)]

    assert [(change.path, change.link_to, change.fd) for change in changes if change] == [
        ("", None, -1),
        ("a", None, 101),
        ("b", None, 1),
    ]


def test_files_of_several_sources_have_numbers_of_their_own() -> None:
    trees = [
        {f"{name}{layer}": file for name, file in (("a", 1), ("b", 1), ("c", 2), ("d", 2))}
        for layer in range(5)
    ]
    source = compose([Recorded(tree, layer) for layer, tree in enumerate(trees)])

    numbers: dict[int, set[str]] = {}
    while source.ahead() is not None:
        change = source.take()
        if change is not None and change.shared:
            numbers.setdefault(change.shared, set()).add(change.name)

    assert sorted(map(sorted, numbers.values())) == sorted(
        [f"{one}{layer}", f"{other}{layer}"] for layer in range(5) for one, other in (("a", "b"), ("c", "d"))
    )


# What is read


def test_what_is_hidden_is_not_read() -> None:
    older = Recorded({"a": 1, "b": {"c": 1, "d": {"e": 1}}, "f": {"g": 1}, "h": 1})
    newer = Recorded({"a": 2, "b": None, "f": {**HERE, "x": 1}}, 1)

    read(compose([older, newer]))

    assert older.taken == ["", "h"]
    assert newer.taken == ["", "a", "b", "f", "f/x"]


def test_of_many_sources_an_entry_goes_through_few() -> None:
    sources = [Recorded({f"{number:03}": number}, number) for number in range(64)]

    depth, pending = 0, [compose(sources)]
    while any(not isinstance(each, Recorded) for each in pending):
        depth += 1
        pending = [
            inner
            for each in pending
            for inner in ((each,) if isinstance(each, Recorded) else (each._older, each._newer))  # type: ignore[attr-defined]
        ]

    assert depth == 6
    assert [each.taken for each in sources] == [[]] * 64, "nothing is read before it is asked for"


def test_one_source_is_itself() -> None:
    source = Recorded({"a": 1})

    assert compose([source]) is source


def test_memory_is_for_the_depth() -> None:
    wide: Tree = {f"{number:04}": {"inner": {"file": 1}} for number in range(500)}
    one, other = Recorded(wide), Recorded({**wide, "x": None}, 1)
    source = compose([one, other])
    most = 0

    while source.ahead() is not None:
        source.take()
        most = max(most, len(source._covered))  # type: ignore[attr-defined]

    assert (one.most, other.most, most) == (3, 3, 3)


# Real directories


def test_a_directory_that_is_passed_over_is_never_opened(tmp_path: Path) -> None:
    for name in ("older/hidden/deep", "older/shown", "newer"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "older" / "hidden" / "first").write_text("data")
    os.link(tmp_path / "older" / "hidden" / "first", tmp_path / "older" / "shown" / "second")
    os.link(tmp_path / "older" / "hidden" / "first", tmp_path / "older" / "shown" / "third")
    (tmp_path / "newer" / "hidden").write_text("no directory any more")
    (tmp_path / "older" / "hidden" / "deep").chmod(0)
    readers = [
        UpperReader(
            OverlayMount(upper=str(tmp_path / name), lowers=(), dialect=NATIVE_USERXATTR), Log("panic", [])
        )
        for name in ("older", "newer")
    ]

    try:
        source = compose(readers)
        found: list[tuple[str, str | None, bytes]] = []
        while source.ahead() is not None:
            change = source.take()
            assert change
            data = os.read(change.fd, 100) if change.fd >= 0 else b""
            found.append((change.path, change.link_to.text if change.link_to else None, data))
    finally:
        for reader in readers:
            reader.close()

    assert found == [
        ("", None, b""),
        ("hidden", None, b"no directory any more"),
        ("shown", None, b""),
        ("shown/second", None, b"data"),
        ("shown/third", "shown/second", b""),
    ]


def read_uppers(*uppers: Path) -> Tree:
    readers = [
        UpperReader(OverlayMount(upper=str(upper), lowers=(), dialect=NATIVE_USERXATTR), Log("panic", []))
        for upper in uppers
    ]
    try:
        return read(compose(readers))
    finally:
        for reader in readers:
            reader.close()


def test_a_change_set_that_is_hidden_as_a_whole_is_passed_over(tmp_path: Path) -> None:
    for name in ("older/directory", "newer/other"):
        (tmp_path / name).mkdir(parents=True)
    os.setxattr(tmp_path / "newer", "user.overlay.opaque", b"y")

    assert read_uppers(tmp_path / "older", tmp_path / "newer") == {**HERE, "other": {}}


def test_an_upperdir_has_no_whiteouts_anywhere_below_an_opaque_directory(tmp_path: Path) -> None:
    """fuse-overlayfs leaves them where somebody removed a tree and made its top anew."""
    (tmp_path / "top" / "inner").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    for name in ("top/gone", "top/inner/gone", "plain/gone"):
        os.mknod(tmp_path / name, stat.S_IFCHR)
    os.setxattr(tmp_path / "top", "user.overlay.opaque", b"y")

    assert read_uppers(tmp_path) == {"top": {**HERE, "inner": {}}, "plain": {"gone": None}}


# A model


def some_tree(chance: random.Random, *, depth: int = 0) -> Tree:
    """Give a tree of few names, so that trees meet."""
    tree: Tree = {**HERE} if depth and chance.random() < 0.25 else {}
    for name in "abc":
        kind = chance.random()
        if kind < 0.4 and depth < 3:
            tree[name] = some_tree(chance, depth=depth + 1)
        elif kind < 0.65:
            tree[name] = chance.choice((None, 0, 1, 2))
    return tree


def shown(*layers: Tree | int | None) -> Any:
    """Give what layers show, the topmost first: files by their number, nothing as None."""
    visible: list[Tree] = []
    for layer in layers:
        if not isinstance(layer, dict):
            return layer if not visible else _merged(visible)
        visible.append(layer)
        if "" in layer:
            break
    return _merged(visible)


def _merged(layers: Sequence[Tree]) -> Tree:
    names = {name for layer in layers for name in layer if name}
    found = {name: shown(*(layer[name] for layer in layers if name in layer)) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def numbered(tree: Tree, layer: int) -> Tree:
    """Give a tree with the files' numbers as `Recorded` gives them."""
    return {
        name: numbered(each, layer)
        if isinstance(each, dict)
        else 100 * layer + each
        if isinstance(each, int)
        else each
        for name, each in tree.items()
    }


def essential(tree: Tree, *, covered: bool = False) -> Tree:
    """Give a tree without marks below others."""
    return {
        name: essential(each, covered=covered or "" in tree) if isinstance(each, dict) else each
        for name, each in tree.items()
        if name or not covered
    }


def test_composing_is_stacking_and_associative() -> None:
    folds: list[Any] = [
        compose,
        lambda sources: compose([compose(sources[:2]), sources[2]]),
        lambda sources: compose([sources[0], compose(sources[1:])]),
    ]
    for number in range(1500):
        chance = random.Random(number)
        base, *trees = (some_tree(chance) for _ in range(4))
        expected = shown(*(numbered(trees[layer], layer) for layer in (2, 1, 0)), numbered(base, 9))

        results = [read(fold([Recorded(tree, layer) for layer, tree in enumerate(trees)])) for fold in folds]

        assert all(shown(result, numbered(base, 9)) == expected for result in results), (base, *trees)
        assert essential(results[0]) == essential(results[1]) == essential(results[2]), trees
