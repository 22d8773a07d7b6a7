"""What the documents say of the project itself: tests that are named exist, and every module has its line."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.packaging.conftest import TOP

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*sorted(TOP.glob("*.md")), *sorted((TOP / "docs").glob("*.md"))]
SECURITY = TOP / "docs" / "security.md"

TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
LINK = re.compile(r"\]\(([^)#:]+)\)")
BULLET = re.compile(r"^- (.*\n(?:  .*\n)*)", re.MULTILINE)


@cache
def defined_in(file: Path) -> frozenset[str]:
    """Give the names of the tests in a file; none if there is no such file."""
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text())
    return frozenset(each.name for each in tree.body if isinstance(each, ast.FunctionDef))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = TEST.findall(page.read_text())
    assert [f"{file}::{name}" for file, name in named if name not in defined_in(TOP / file)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = [*re.findall(r"\btests/[\w/]+\.py\b", text), *re.findall(r"\btools/\w+\.(?:py|sh)\b", text)]
    assert [name for name in named if not (TOP / name).is_file()] == []
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []


def test_every_claim_of_what_nobody_can_do_names_its_test() -> None:
    text = SECURITY.read_text()
    lists = re.findall(r"\bcannot:\n\n((?:- .*\n(?:  .*\n)*)+)", text)
    claims = [claim for found in lists for claim in BULLET.findall(found)]
    assert len(claims) > 60
    assert [claim for claim in claims if not TEST.search(claim)] == []


def test_the_design_shows_every_room_and_every_module() -> None:
    text = (TOP / "docs" / "design.md").read_text()
    plan = text[text.index("## The rooms") : text.index("## Words")]
    rooms = {path.parent.name for path in (TOP / "archive_overlay").glob("*/__init__.py")}
    shown = {*re.findall(r"^ +(\w+)/ ", plan, re.MULTILINE)}
    assert rooms - shown == set()
    named = {*re.findall(r"^ +(\w+)\.py ", plan, re.MULTILINE)}
    modules = {path.stem for path in (TOP / "archive_overlay").rglob("*.py")}
    assert named - modules == set()
    # Commands are shown by their room.
    commands = {path.stem for path in (TOP / "archive_overlay" / "commands").rglob("*.py")}
    assert modules - commands - named - {"__init__"} == set()
