"""Write the shell completions anew: python3 tools/completions.py DIRECTORY

shtab makes them from the program's own parser. What a value may be, which the parser leaves to the
program, it is told here: files and directories by the names that the help has for them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parent.parent

# The name of each file is the one by which its shell finds it.
FILES = {"bash": "archive_overlay", "zsh": "_archive_overlay"}


def main() -> None:
    """Read the command line and write both files."""
    parser = argparse.ArgumentParser(description="Write the shell completions anew.")
    parser.add_argument("directory", type=Path, help="where they go")
    directory: Path = parser.parse_args().directory
    directory.mkdir(exist_ok=True)
    for shell, name in FILES.items():
        (directory / name).write_text(completion(shell))


def completion(shell: str) -> str:
    """Give the completion for one shell, "bash" or "zsh"."""
    try:
        import shtab
    except ModuleNotFoundError:
        sys.exit("completions.py: there is no shtab; tools/requirements.txt says which one is wanted")
    sys.path.insert(0, str(TOP))
    from archive_overlay import cli, log

    parser = cli.build_parser()
    values: dict[str, dict[str, object]] = {
        "PATH": {"complete": shtab.FILE},
        "WHAT": {"complete": shtab.FILE},
        "DIR": {"complete": shtab.DIRECTORY},
        "LAYOUT": {"complete": shtab.DIRECTORY},
        "LEVEL": {"choices": log.LEVEL_NAMES},
    }
    for action in actions(parser):
        if isinstance(action.metavar, str):
            word = re.match("[A-Z]*", action.metavar)
            vars(action).update(values.get(word[0] if word else "", {}))
    # Lines that end in blanks are none of a shell's business, and git complains about them.
    lines = [line.rstrip() for line in shtab.complete(parser, shell).splitlines()]
    return "\n".join(lines).strip() + "\n"


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Give all options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for summary in action._choices_actions:
                command = action.choices[summary.dest]
                # zsh shows it beside the command's name.
                command.description = summary.help
                yield from actions(command)


if __name__ == "__main__":
    main()
