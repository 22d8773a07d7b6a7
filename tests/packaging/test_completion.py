"""Completion in bash and zsh: of this program, and as the shells themselves do it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from archive_overlay import cli, log
from tests.packaging.conftest import PATH, TOP
from tests.support import tools

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable

    Complete = Callable[..., list[str]]

COMPLETIONS = TOP / "completions"

# What bash does when a person presses the tabulator key after the last of the words.
BASH = """
source "$1"
shift
COMP_WORDS=(archive_overlay "$@")
COMP_CWORD=$#
function=$(complete -p archive_overlay)
function=${function##*-F }
"${function%% *}"
printf '%s\\n' "${COMPREPLY[@]}"
"""

# zsh completes in its line editor only, which wants a terminal: a second zsh has one, gets the keys as a
# person would press them, and writes down what is offered. The last key ends it.
ZSH = """
zmodload zsh/zpty
zpty terminal "cd ${(q)PWD}; FOUND=${(q)2} DUMP=${(q)4} zsh -f -i"
zpty -w terminal "fpath=(${(q)1} \\$fpath)"
zpty -w terminal 'autoload -Uz compinit && compinit -u -d $DUMP
compadd() {
    local -a hits
    if (( ! ${@[(I)-[OAD]*]} )); then
        builtin compadd -O hits "$@"
        print -rl -- $hits >>$FOUND
    fi
    builtin compadd "$@"
}
leave() { exit }
zle -N leave
bindkey "^X" leave'
zpty -w -n terminal "$3"$'\\t\\x18'
while zpty -r terminal; do :; done
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a directory to complete names in."""
    made = tmp_path / "directory"
    made.mkdir()
    (made / "some-directory").mkdir()
    (made / "some-file").touch()
    return made


def bash(directory: Path, *words: str) -> list[str]:
    """Give what bash offers for the last of the words after the program's name."""
    tools.need("bash")
    script = ["bash", "--norc", "-c", BASH, "bash", str(COMPLETIONS / "archive_overlay"), *words]
    done = subprocess.run(script, cwd=directory, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return sorted(word for word in done.stdout.splitlines() if word)


def zsh(directory: Path, *words: str) -> list[str]:
    """Give what zsh offers for the last of the words after the program's name."""
    tools.need("zsh")
    found = directory.parent / "found"
    found.write_text("")
    line = " ".join(["archive_overlay", *words])
    # What zsh knows of all its completions is made by the first of these tests, which takes the longest.
    dump = directory.parents[1] / "zcompdump"
    script = ["zsh", "-f", "-c", ZSH, "zsh", str(COMPLETIONS), str(found), line, str(dump)]
    subprocess.run(script, cwd=directory, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    return sorted({word for word in found.read_text().splitlines() if word})


@pytest.fixture(params=[bash, zsh], ids=["bash", "zsh"])
def complete(request: pytest.FixtureRequest, directory: Path) -> Complete:
    """Give what completes the last of some words in a shell."""

    def complete(*words: str) -> list[str]:
        offered: list[str] = request.param(directory, *words)
        return offered

    return complete


def test_the_completions_are_those_of_the_program_as_it_is_now(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-B", TOP / "tools/completions.py", tmp_path],
        env={"PATH": PATH},
        check=True,
        stdin=subprocess.DEVNULL,
    )
    for name in ("archive_overlay", "_archive_overlay"):
        assert (tmp_path / name).read_text() == (COMPLETIONS / name).read_text(), "stale: make completions"


def test_all_options_are_offered(complete: Complete) -> None:
    options = {
        option
        for action in cli.build_parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert {word for word in complete("--") if word != "--"} == options


def test_an_option_is_completed(complete: Complete) -> None:
    assert complete("--log-") == ["--log-file", "--log-level"]


def test_the_levels_of_the_log_are_offered(complete: Complete) -> None:
    assert complete("--log-level", "") == sorted(log.LEVEL_NAMES)


def test_a_log_file_may_be_any_file(complete: Complete) -> None:
    assert [word.rstrip("/") for word in complete("--log-file", "some-")] == ["some-directory", "some-file"]


def test_a_bundle_is_a_directory(complete: Complete) -> None:
    assert [word.rstrip("/") for word in complete("--bundle", "some-")] == ["some-directory"]


def test_commands_are_offered(complete: Complete) -> None:
    assert {"diff", "extract", "log"} <= set(complete(""))


def test_the_options_of_a_command_are_offered(complete: Complete) -> None:
    assert complete("log", "--j") == ["--json"]


def test_an_archive_is_any_file(complete: Complete) -> None:
    assert [word.rstrip("/") for word in complete("diff", "some-")] == ["some-directory", "some-file"]
