"""Patterns mean what they mean in .dockerignore."""

from __future__ import annotations

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.patterns import parse_patterns
from archive_overlay.overlay.selection import Selected, Selection


def selects(path: str, *, include: str = "", exclude: str = "") -> bool:
    *directories, name = path.split("/")
    return within("/".join(directories), include=include, exclude=exclude).has(name)


def within(path: str, *, include: str = "", exclude: str = "") -> Selected:
    selected = Selection(
        include=parse_patterns(include, "include"), exclude=parse_patterns(exclude, "exclude")
    ).top
    for name in filter(None, path.split("/")):
        selected = selected.inside(name)
    return selected


@pytest.mark.parametrize(
    ("patterns", "excluded", "kept"),
    [
        # A pattern begins at the mount, and what matches a directory matches all that is in it.
        ("a", "a a/b a/b/c", "b b/a ab"),
        ("/a/", "a a/b", "b/a"),
        ("./a/../b//c/.", "b/c b/c/d", "a b c a/b/c"),
        ("/../a", "a", "b"),
        # An asterisk and a question mark match no slash.
        ("*.log", "a.log .log a.log/b", "b/a.log log"),
        ("*/t*", "a/t a/tmp/b", "t tmp a/b/t"),
        ("a?c", "abc a\u00fcc a\udcffc a\nc", "ac abbc a/c"),
        ("*", "a .a a/b", ""),
        # Two of them match any number of directories.
        ("**", "a a/b", ""),
        ("**/a", "a b/a b/c/a a/b", "ba b/ba"),
        ("**/*.log", "a.log b/a.log b/c/a.log", "a.txt"),
        ("a/**", "a/b a/b/c", "a b"),
        ("a/**/b", "a/b a/c/b a/c/d/b", "b a/bc ab"),
        ("a**", "a ab ab/c", "ba"),
        ("**a", "a b/a", "ba"),
        ("a**b", "ab ac/b ac/d/b", "acb a"),
        ("a**/*.txt", "a/b.txt a/c/b.txt ab.txt ab/c.txt", "b.txt"),
        # Brackets: a caret negates, and an exclamation mark does not.
        ("[a-c]x", "ax bx", "dx ABx"),
        ("[^a-c]x", "dx \nx", "ax"),
        ("[!a]x", "!x ax", "bx"),
        (r"[\]\-\,]", "] - ,", "a"),
        (r"[[]", "[", "]"),
        ("]", "]", "["),
        # A backslash takes the meaning from what follows.
        (r"\*\?\[\!", "*?[!", "a?[!"),
        (r"a\,b,c\;d;e", "a,b c;d e", "a b c d"),
        (r"\a\\", "a\\", "a"),
        (r"\!a", "!a", "a"),
        ("#a,{b,c}", "#a {b c}", "a b c"),
        # Spaces around a pattern do not count, and those within do.
        (" a , b ", "a b", "c"),
        ("a\\ ,b", "b", "a"),
        ("A", "A", "a"),
        # The last pattern that matches counts, for a path or for a directory above it.
        ("a,!a/b", "a a/c a/bc", "a/b a/b/c"),
        ("!a/b,a", "a a/b", "b"),
        ("*,!a", "b b/a", "a a/b/c"),
        ("*,!**/*.csv", "a a/b a.txt", "a.csv a/b.csv a/b.csv/c"),
        ("a,!a/b,a/b/c", "a a/b/c a/b/c/d", "a/b a/b/d"),
        ("**/a,!b/a,b/a/c", "a c/a b/a/c", "b/a b/a/d"),
        ("a,! a", "", "a"),
        (".,/,a", "a", "b"),
    ],
)
def test_a_pattern_matches_as_in_dockerignore(patterns: str, excluded: str, kept: str) -> None:
    names = {path: False for path in excluded.split(" ") if path} | {
        path: True for path in kept.split(" ") if path
    }

    assert {path: selects(path, exclude=patterns) for path in names} == names
    opposite = {path: not kept for path, kept in names.items()}
    assert {path: selects(path, include=patterns) for path in names} == opposite


def test_spaces_within_a_pattern_count() -> None:
    assert not selects("a b", exclude=" a b ")
    assert not selects("a ", exclude="a\\ ,b")
    assert selects("a", exclude="a b")


def test_what_is_included_can_be_excluded_again() -> None:
    paths = ("a/b", "a/c", "a/b/c", "d")
    found = [path for path in paths if selects(path, include="a,!a/c", exclude="**/c,!a/c")]
    assert found == ["a/b"]


def test_a_directory_leads_where_something_in_it_may_be_selected() -> None:
    exclude = "*,!a/b/**/x,!c"
    assert within("", exclude=exclude).leads("a")
    assert within("a", exclude=exclude).leads("b")
    assert within("a/b", exclude=exclude).leads("anything")
    assert not within("", exclude=exclude).leads("b")
    assert not within("a", exclude=exclude).leads("c")
    assert not within("", exclude=exclude).leads("c")  # it is selected itself
    assert within("b", exclude=exclude).nothing
    assert within("c", exclude=exclude).everything


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("ok,!", "nothing after the exclamation mark"),
        ("ok,[a", r"'\[a' is not valid: a bracket is not closed"),
        ("[]", "] needs a backslash"),
        ("[a-]", "] needs a backslash"),
        ("[b-a]", "the range b-a is empty"),
        ("a[b/c]", "a bracket is not closed"),
        ("a\\", "nothing after the last backslash"),
        ("a/../../b", "leads out of the mount"),
        ("a\0", "NUL"),
        ("\ud800", "not valid text"),
        ("a" * 5000, "5000 characters"),
        ("**".join("abcdefg"), "too many names"),
        (",".join(["a"] * 1001), "1001 patterns"),
        (",".join(["a" * 4000] * 17), "68016 characters"),
    ],
)
def test_what_is_no_pattern_is_refused_by_name(pattern: str, said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        parse_patterns(pattern, "exclude")


def test_no_name_takes_time_that_grows_with_a_power_of_its_length() -> None:
    """With an expression that goes back and tries again, this would not end."""
    patterns = ",".join(["**/" + "*a" * 60 + "b", "**/a*/**/b*/**/c"])
    assert within("/".join(["a" * 255] * 50), exclude=patterns).has("a" * 255)


def test_the_thousandth_name_of_a_directory_is_judged_as_the_first_one() -> None:
    directory = within("", exclude="a?*,!*b,c*")
    names = ("ax", "axb", "b", "c", "cb", "d")
    first = [directory.has(name) for name in names]
    for number in range(1000):
        directory.has(str(number))

    assert [directory.has(name) for name in names] == first == [False, True, True, False, False, True]
