"""The man page: of this program, and readable."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from archive_overlay import cli, methods
from archive_overlay.keys import KEYS
from tests.integration.hook.test_reports import FIELDS
from tests.packaging.conftest import PATH, TOP
from tests.support import tools

if TYPE_CHECKING:
    from pathlib import Path

PAGE = TOP / "man/archive_overlay.1"

ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANROFFOPT": "-c"}


@pytest.fixture(scope="module")
def rendered() -> str:
    """Give the page as a terminal of 80 columns shows it, without bold and underlining."""
    tools.need("man", "col")
    shown = subprocess.run(
        ["sh", "-c", 'man --warnings -l "$0" | col -bx', PAGE],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""
    return shown.stdout


def test_the_page_is_that_of_the_program_as_it_is_now(tmp_path: Path) -> None:
    tools.need(f"{PATH.split(':', 1)[0]}/argparse-manpage")
    subprocess.run(
        [TOP / "tools/manpage.sh", tmp_path / "page"],
        env={"PATH": PATH, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert (tmp_path / "page").read_text() == PAGE.read_text(), "stale: make man"


def test_man_formats_the_page_without_a_warning(rendered: str) -> None:
    assert rendered.startswith("ARCHIVE_OVERLAY(1)")


def test_mandoc_formats_the_page_without_a_warning() -> None:
    tools.need("mandoc")
    checked = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", PAGE], capture_output=True, text=True, check=False
    )
    assert checked.stdout + checked.stderr == ""


def test_the_page_fits_80_columns(rendered: str) -> None:
    assert [line for line in rendered.splitlines() if len(line) > 80] == []


def test_the_page_has_the_sections_that_a_reader_looks_for(rendered: str) -> None:
    sections = [line for line in rendered.splitlines()[1:-1] if line and not line.startswith(" ")]
    assert sections == [
        *(
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "COMMANDS",
            "ANNOTATIONS",
            "METHODS",
            "REPORTS",
            "IMAGES AND REVISIONS",
            "APPLYING A CHANGE SET",
            "AFTER A CRASH",
            "WHILE A CONTAINER RUNS",
            "CHECKING A HOST",
        ),
        *("EXIT STATUS", "FILES", "SECURITY", "EXAMPLES", "SEE ALSO"),
    ]


def test_the_page_names_every_option(rendered: str) -> None:
    options = [option for action in cli.build_parser()._actions for option in action.option_strings]
    missing = [option for option in options if option not in rendered]
    # Every program has them, and argparse-manpage leaves them out.
    assert [option for option in missing if option not in ("-h", "--help")] == []


def test_the_page_explains_every_command_and_its_options(rendered: str) -> None:
    part = rendered[rendered.index("\nCOMMANDS\n") : rendered.index("\nANNOTATIONS\n")]
    (commands,) = (action for action in cli.build_parser()._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    for name, parser in commands.choices.items():
        explained = part.split(f"\n   archive_overlay {name}\n", 1)[1].split("\n   archive_overlay ", 1)[0]
        words = [word for action in parser._actions for word in action.option_strings or [action.metavar]]
        missing = [
            word for word in words if f"       {word}" not in explained and f", {word}" not in explained
        ]
        assert [word for word in missing if word != "--help"] == [], name


def test_the_page_explains_every_annotation(rendered: str) -> None:
    assert [key for key in KEYS if f"       {key}=" not in rendered] == []


def test_the_page_explains_every_field_of_a_report() -> None:
    part = PAGE.read_text().split("\n.SH REPORTS\n", 1)[1].split("\n.SH ", 1)[0]
    assert [*re.findall(r"\w+", " ".join(re.findall(r"\.TP\n\.BR? (.*)", part)).replace('", "', " "))] == [
        *FIELDS
    ]


def test_the_page_explains_every_method() -> None:
    part = PAGE.read_text().split("\n.SH METHODS\n", 1)[1].split("\n.SH ", 1)[0]
    headings = re.findall(r"\.TP\n\.BR? (.*)", part)
    explained = {name for heading in headings for name in re.findall(r"\w[\w.]*", heading)}
    assert [name for name in methods.METHODS if name not in explained] == []


def test_the_page_explains_every_value_of_if_exists_and_whose_default_it_is() -> None:
    part = PAGE.read_text().split("if\\-exists=", 1)[1].split(".RE\n", 1)[0]
    explained = dict(re.findall(r"\.TP\n\.B (\w+)\n(.*?)(?=\.TP|$)", part, re.DOTALL))
    assert set(explained) == set(methods.IF_EXISTS)
    for method in methods.METHODS.values():
        defaults = [
            value
            for value, text in explained.items()
            if (named := re.search(r"default of\n\.BR (.*)", text))
            and method.name in re.findall(r"\w[\w.]*", named[1])
        ]
        assert defaults == list(method.if_exists[:1]), method.name
