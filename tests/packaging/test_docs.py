"""What the documents say of the project itself: links lead somewhere, tests that are named exist, every module has its line."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.packaging.conftest import TOP

if TYPE_CHECKING:
    from pathlib import Path

DOCS = TOP / "docs"
INDEX = DOCS / "index.md"
PAGES = [*sorted(TOP.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
SECURITY = DOCS / "security.md"

TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
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


def links_of(page: Path) -> list[tuple[Path, str]]:
    """Give where a page's relative links lead: a file or a directory, and an anchor; "" for none."""
    found = LINK.findall(FENCED.sub("", page.read_text()))
    return [((page.parent / path).resolve() if path else page, anchor) for path, anchor in found]


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    made: list[str] = []
    for heading in HEADING.findall(FENCED.sub("", page.read_text())):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        made.append(f"{anchor}-{made.count(anchor)}" if anchor in made else anchor)
    return frozenset(made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [
        f"{path}#{anchor}"
        for path, anchor in links_of(page)
        if not path.exists() or (anchor and anchor not in anchors_of(path))
    ] == []


def test_every_page_and_every_example_can_be_reached_from_the_index() -> None:
    reached, waiting = {INDEX}, [INDEX]
    while waiting:
        page = waiting.pop()
        new = {path for path, _ in links_of(page) if path.is_file()} - reached
        reached |= new
        waiting += [path for path in new if path.suffix == ".md" and DOCS in path.parents]
    here = {path for path in DOCS.rglob("*") if path.is_file()}
    assert here - reached == set()


def test_the_index_names_every_how_to_page_by_its_title() -> None:
    text = INDEX.read_text()
    for page in sorted((DOCS / "how-to").glob("*.md")):
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        assert f"[{title}](how-to/{page.name})" in text


def test_every_claim_of_what_nobody_can_do_names_its_test() -> None:
    text = SECURITY.read_text()
    lists = re.findall(r"\bcannot:\n\n((?:- .*\n(?:  .*\n)*)+)", text)
    claims = [claim for found in lists for claim in BULLET.findall(found)]
    assert len(claims) > 60
    assert [claim for claim in claims if not TEST.search(claim)] == []


def test_the_design_shows_every_room_and_every_module() -> None:
    text = (DOCS / "design.md").read_text()
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
