"""The man pages: of this program, and readable."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay import cli, methods
from archive_overlay.commands.parsers import commands_of
from archive_overlay.keys import KEYS
from tests.integration.hook.test_reports import FIELDS
from tests.packaging.conftest import PATH, TOP
from tests.support import histories, history, tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOOK = "archive_overlay"
PAGE = TOP / f"man/{HOOK}.1"
PAGES = sorted((TOP / "man").glob("*.1"))

ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANROFFOPT": "-c"}


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    """Give each page as a terminal of 80 columns shows it, without bold and underlining, by its name."""
    tools.need("man", "col")
    return {page.stem: _rendered(page) for page in PAGES}


def _rendered(page: Path) -> str:
    shown = subprocess.run(
        ["sh", "-c", 'man --warnings -l "$0" | col -bx', page],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == "", page
    return shown.stdout


def test_the_pages_are_those_of_the_program_as_it_is_now(tmp_path: Path) -> None:
    tools.need(f"{PATH.split(':', 1)[0]}/argparse-manpage")
    subprocess.run(
        [sys.executable, "-B", TOP / "tools/manpage.py", tmp_path],
        env={"PATH": PATH},
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert {page.name for page in PAGES} == {page.name for page in tmp_path.iterdir()}
    stale = [page.name for page in PAGES if (tmp_path / page.name).read_text() != page.read_text()]
    assert stale == [], "stale: make man"


def test_man_formats_all_pages_without_a_warning(rendered: dict[str, str]) -> None:
    assert [name for name, text in rendered.items() if not text.startswith(f"{name.upper()}(1)")] == []


def test_mandoc_formats_all_pages_without_a_warning() -> None:
    tools.need("mandoc")
    checked = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *PAGES], capture_output=True, text=True, check=False
    )
    assert checked.stdout + checked.stderr == ""


def test_all_pages_fit_80_columns_with_no_word_cut_and_no_line_stretched(rendered: dict[str, str]) -> None:
    for name, text in rendered.items():
        lines = text.splitlines()[1:-1]  # without header and footer
        assert [line for line in lines if len(line) > 80 or line.endswith("\N{HYPHEN}")] == [], name
        # After the end of a sentence there are two blanks; more stand before columns and explanations.
        assert [line for line in lines if re.search(r"[a-z,]  +[a-z]", line[14:])] == [], name


def test_each_page_has_the_sections_that_a_reader_looks_for(rendered: dict[str, str]) -> None:
    for name, text in rendered.items():
        sections = [line for line in text.splitlines()[1:-1] if line and not line.startswith(" ")]
        assert sections[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"], name
        assert sections[-2:] == ["EXAMPLES", "SEE ALSO"], name
    hook = [line for line in rendered[HOOK].splitlines()[1:-1] if line and not line.startswith(" ")]
    assert hook[3:-2] == [
        *(
            "OPTIONS",
            "COMMANDS",
            "ANNOTATIONS",
            "EXCLUDE AND INCLUDE",
            "METHODS",
            "REPORTS",
            "IMAGES AND REVISIONS",
        ),
        *("EXIT STATUS", "FILES", "SECURITY"),
    ]


def test_the_page_of_the_hook_names_every_option(rendered: dict[str, str]) -> None:
    options = [option for action in cli.build_parser()._actions for option in action.option_strings]
    missing = [option for option in options if option not in rendered[HOOK]]
    # Every program has them, and argparse-manpage leaves them out.
    assert [option for option in missing if option not in ("-h", "--help")] == []


def test_each_command_has_a_page_that_explains_its_options_and_arguments(rendered: dict[str, str]) -> None:
    commands = commands_of(cli.build_parser())
    listed = rendered[HOOK].split("\nCOMMANDS\n", 1)[1].split("\nANNOTATIONS\n", 1)[0]
    assert re.findall(rf"^       {HOOK}-([a-z]+)\(1\)$", listed, re.MULTILINE) == [*commands]
    assert set(rendered) == {HOOK, *(f"{HOOK}-{name}" for name in commands)}
    for name, parser in commands.items():
        text = rendered[f"{HOOK}-{name}"]
        words = [
            word for action in parser._actions for word in action.option_strings or [str(action.metavar)]
        ]
        missing = [word for word in words if f"\n       {word}" not in text and f", {word}" not in text]
        assert [word for word in missing if word not in ("-h", "--help")] == [], name


def test_a_page_refers_to_pages_that_there_are() -> None:
    named = {name for page in PAGES for name in re.findall(rf'({HOOK}\S*?)"? "?\(1\)', page.read_text())}
    assert {name.replace("\\", "") for name in named} <= {page.stem for page in PAGES}


def test_each_page_explains_every_field_of_the_json_that_its_command_writes(
    rendered: dict[str, str], tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    histories.build(layout, 3, most=2)
    history.output_of("tag", f"{layout}:main@2", "other")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/all").write_text("else")
    (tmp_path / "a.tar").write_bytes(
        history.layer(history.file("a", b"a"), history.link("b", "a"), history.symlink("c", "a"))
    )

    def expect_explained(*arguments: str | Path, also: tuple[str, ...] = ()) -> None:
        written = json.loads(history.run(*arguments, "--json").stdout)
        texts = [rendered[f"{HOOK}-{name}"] for name in (str(arguments[0]), *also)]
        explained = {word for text in texts for word in re.findall(r"\w+", text.split("\nJSON\n", 1)[-1])}
        assert sorted(_fields(written) - explained) == [], arguments

    image = f"{layout}:main"
    expect_explained("log", layout)
    expect_explained("show", image, also=("log", "diff"))
    expect_explained("show", f"{image}:all")
    expect_explained("show", f"{image}:")
    expect_explained("diff", f"{image}@1", image)
    expect_explained("diff", "--stat", image)
    expect_explained("diff", tmp_path / "a.tar")
    expect_explained("apply", "--dry-run", tmp_path / "a.tar", tmp_path / "tree", also=("diff",))
    expect_explained("prune", "--dry-run", "--keep-last", "1", image)
    expect_explained("gc", "--older", "0", layout)
    expect_explained("check")
    for blob in (layout / "blobs/sha256").iterdir():
        if not blob.read_bytes().startswith(b"{"):
            blob.unlink()
    expect_explained("verify", layout)


def _fields(value: Any) -> set[str]:
    return set(_all_fields(value))


def _all_fields(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _all_fields(each)


def test_the_page_explains_every_annotation(rendered: dict[str, str]) -> None:
    assert [key for key in KEYS if f"       {key}=" not in rendered[HOOK]] == []


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
