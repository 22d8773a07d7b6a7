"""Completion in bash, zsh and fish: of this program, and as the shells themselves do it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from archive_overlay import cli, log
from tests.packaging.conftest import PATH, TOP
from tests.support import history, image_layouts, tools

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
COMP_LINE="archive_overlay $*"
function=$(complete -p archive_overlay)
function=${function##*-F }
"${function%% *}"
printf '%s\\n' "${COMPREPLY[@]}"
"""

# bash in its line editor, which splits words as it does for a person: it gets the keys, and the last one has it write down
# the line as it is by then.
BASH_LINE = """
source {completions}
bind 'set bell-style none'
PS1=ready
bind -x '"\\C-xd": printf "%s\\n" "$READLINE_LINE" >>{found}'
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


def fish(directory: Path, *words: str) -> list[str]:
    """Give what fish offers for the last of the words after the program's name."""
    tools.need("fish")
    script = 'source $argv[1]; complete -C "$argv[2]"'
    line = " ".join(["archive_overlay", *words])
    done = subprocess.run(
        ["fish", "--no-config", "-c", script, str(COMPLETIONS / "archive_overlay.fish"), line],
        cwd=directory,
        env={**os.environ, "HOME": str(directory), "XDG_DATA_HOME": str(directory.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return sorted(word.partition("\t")[0] for word in done.stdout.splitlines())


def typed_in_bash(directory: Path, program: Path, line: str) -> str:
    """Give what bash makes of a line after which the tabulator key is pressed."""
    tools.need("bash")
    found, start = directory.parent / "found", directory.parent / "bashrc"
    start.write_text(BASH_LINE.format(completions=COMPLETIONS / "archive_overlay", found=found))
    found.write_text("")
    master, slave = pty.openpty()
    environment = {"PATH": f"{program.parent}:{PATH}", "TERM": "dumb", "HOME": str(directory)}
    with subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", start, "-i"],
        cwd=directory,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
    ) as process:
        os.close(slave)
        shown = b""
        while b"ready" not in shown:  # until then the terminal takes keys for itself
            shown += _shown(master)
        os.write(master, f"{line}\t\x18d\x15exit\n".encode())
        while _shown(master):
            pass
    os.close(master)
    assert process.returncode == 0
    return found.read_text().rstrip("\n")


def _shown(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""  # EIO: nobody has the other end open any more


@pytest.fixture
def program(executable: Path, tmp_path: Path) -> Path:
    """Give the program by its name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/archive_overlay").symlink_to(executable)
    return tmp_path / "bin/archive_overlay"


@pytest.fixture
def layout(directory: Path) -> Path:
    """Give a layout with two tags and three revisions, and a colon in the name of one more."""
    for number, tag in enumerate(("main", "docker.io/library/x:v1"), 1):
        layers = [history.layer(history.file(str(each))) for each in range(number + 1)]
        image_layouts.put(directory / "data", tag, layers=layers)
    return directory / "data"


@pytest.fixture(params=[bash, zsh, fish], ids=["bash", "zsh", "fish"])
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
    for name in ("archive_overlay", "_archive_overlay", "archive_overlay.fish"):
        assert (tmp_path / name).read_text() == (COMPLETIONS / name).read_text(), "stale: make completions"


def test_all_options_are_offered(complete: Complete) -> None:
    options = {
        option
        for action in cli.build_parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert {word.rstrip("=") for word in complete("--") if word != "--"} == options


def test_an_option_is_completed(complete: Complete) -> None:
    assert {word.rstrip("=") for word in complete("--log-")} == {"--log-file", "--log-level"}


def test_the_levels_of_the_log_are_offered(complete: Complete) -> None:
    assert complete("--log-level", "") == sorted(log.LEVEL_NAMES)


def test_values_after_an_equals_sign_are_offered(complete: Complete) -> None:
    # fish gives the whole word, for it replaces that.
    assert [word.rpartition("=")[2] for word in complete("--log-level=in")] == ["info"]
    assert [word.rpartition("=")[2] for word in complete("diff", "--as=")] == ["directory", "layout", "tar"]
    assert [word.rpartition("=")[2].rstrip("/") for word in complete("check", "--hooks-dir=some-")] == [
        "some-directory"
    ]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("log", "--color", ""), ["always", "auto", "never"]),
        (("push", "--if-moved", ""), ["branch", "fail"]),
        (("help", "ver"), ["verify"]),
        (("snapshot", "web", "some-"), []),
    ],
)
def test_enumerated_values_are_offered(
    complete: Complete, words: tuple[str, ...], offered: list[str]
) -> None:
    assert complete(*words) == offered


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


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("log data:m", "log data:main"),
        ("log data:d", "log data:docker.io/library/x:v1"),
        ("log data:docker.io/library/x:", "log data:docker.io/library/x:v1"),
        ("log data/:ma", "log data/:main"),
        ("log ~/data:ma", "log ~/data:main"),
        ("log --json data:ma", "log --json data:main"),
        ("diff data:main@1 data:main@2", "diff data:main@1 data:main@2 "),
        ("extract data:docker.io/library/x:v1@3", "extract data:docker.io/library/x:v1@3 "),
        ("extract data:main@3", "extract data:main@3"),
        ("log data:main@2", "log data:main@2"),
        ("squash data:main@1..", "squash data:main@1..2 "),
        ("extract data:main@2 some-d", "extract data:main@2 some-directory/"),
        ("log other:m", "log other:m"),
        ("--log-level=d", "--log-level=debug "),
        ("diff --as=l", "diff --as=layout "),
    ],
)
def test_bash_completes_tags_and_revisions(
    directory: Path, layout: Path, program: Path, line: str, becomes: str
) -> None:
    assert layout.is_dir()
    assert typed_in_bash(directory, program, f"archive_overlay {line}") == f"archive_overlay {becomes}"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("log", "data:"), ["docker.io/library/x:v1", "main"]),
        (("extract", "data:main@"), ["1", "2"]),
        (("squash", "data:docker.io/library/x:v1@1.."), ["1..2", "1..3"]),
        (("cat", "data:none@"), []),
    ],
)
def test_other_shells_offer_tags_and_revisions(
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    layout: Path,
    program: Path,
    words: tuple[str, ...],
    offered: list[str],
) -> None:
    monkeypatch.setenv("PATH", f"{program.parent}:{PATH}")
    assert layout.is_dir()
    assert zsh(directory, *words) == offered
    rest = [each.removeprefix("1..") for each in offered]
    for word in (words[1], f"~/{words[1]}"):
        assert [each.removeprefix(word) for each in fish(directory, words[0], word)] == rest
