"""What a person is told about command lines: help, and what is wrong with one."""

from __future__ import annotations

import argparse
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, NoReturn

PROGRAM = "archive_overlay"
# The command that shows the help of another command.
HELP = "help"
USAGE = f"{PROGRAM} COMMAND [option ...] [argument ...]\n       {PROGRAM} [option ...] <state"
_WRONG_COMMAND_LINE = 2
_EXAMPLES = "examples:"
_STDERR = 2


class Formatter(argparse.HelpFormatter):
    """Help whose paragraphs are as wide as the terminal, without breaks at hyphens. Examples stay as they are."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        import textwrap

        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [
            each if each.startswith(_EXAMPLES) else super(Formatter, self)._fill_text(each, width, indent)
            for each in text.split("\n\n")
        ]
        return "\n\n".join(paragraphs)


class Parser(argparse.ArgumentParser):
    """A parser that says what was perhaps meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._positionals.title, self._optionals.title = "arguments", "options"
        self.color = False  # Python 3.14 would ask the environment

    def error(self, message: str) -> NoReturn:
        """End the program: usage, what is wrong, and how to get help."""
        self.print_usage(sys.stderr)
        self.exit(_WRONG_COMMAND_LINE, f"{self.prog}: error: {message}\nSee {_help_for(self.prog)}.\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not sys.stdout:
            super()._print_message(message, file)
            return
        try:
            file.write(message)
            file.flush()
        except BrokenPipeError:
            os._exit(128 + signal.SIGPIPE)
        except OSError as error:  # what is in the buffer cannot be written at the end either
            os.write(_STDERR, f"{PROGRAM}: cannot write to standard output: {error.strerror}\n".encode())
            os._exit(1)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [*map(str, action.choices)]
            known = f"{value!r} is not one of {', '.join(choices)}"
            raise argparse.ArgumentError(action, known + perhaps(str(value), choices))


def perhaps(word: str, words: Iterable[str]) -> str:
    """Give "; did you mean ...?" for a word that is like others, or else ""."""
    import difflib

    words = [*words]
    longer = [each for each in words if word.strip("-") and each.startswith(word)]
    found = longer if len(longer) == 1 else difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def refuse_command(parser: argparse.ArgumentParser, name: str, commands: Iterable[str]) -> NoReturn:
    """End the program because there is no such command."""
    parser.error(f"{name!r} is not a command{perhaps(name, commands)}")


def refuse_unknown_options(
    parser: argparse.ArgumentParser, hook: argparse.ArgumentParser, words: Sequence[str]
) -> None:
    """End the program if a command has no such option.

    Args:
        parser: of the command.
        hook: of the hook.
        words: the command line after the command's name.
    """
    for word in words:
        if word == "--":
            return
        option, _, _ = word.partition("=")
        if not _is_option(word) or option in parser._option_string_actions:
            continue
        if option in hook._option_string_actions:
            parser.error(f"{option} is an option of the hook, and commands do not take it")
        parser.error(f"there is no option {option}{perhaps(option, parser._option_string_actions)}")


def refuse_hook_arguments(
    hook: argparse.ArgumentParser,
    commands: Mapping[str, argparse.ArgumentParser],
    given: Sequence[str],
    unknown: Sequence[str],
) -> NoReturn:
    """End the program because the hook does not take some arguments.

    Args:
        hook: its parser.
        commands: the parsers of the commands, by name.
        given: the command line.
        unknown: what of it the hook does not take.
    """
    command = next((word for word in unknown if word in commands), None)
    for word in unknown:
        option, _, _ = word.partition("=")
        if command is None and not _is_option(word):
            hook.error(f"{word!r} is not a command{perhaps(word, commands)}")
        if not _is_option(word) or option in hook._option_string_actions:
            continue
        if command and option in commands[command]._option_string_actions:
            hook.error(f"{option} is an option of {command}: write {PROGRAM} {command} {option}")
        takes = [name for name, parser in commands.items() if option in parser._option_string_actions]
        if takes and not command:
            hook.error(f"{option} is an option of commands ({', '.join(takes)}): write it after the command")
        known = [*hook._option_string_actions, *(commands[command]._option_string_actions if command else ())]
        hook.error(f"there is no option {option}{perhaps(option, known)}")
    if command:
        option, _, _ = given[0].partition("=")
        commands[command].error(f"{option} is an option of the hook, and commands do not take it")
    hook.error(f"unexpected arguments: {' '.join(unknown)}")


def greet() -> int:
    """Tell a person who runs the program by its name alone what there is; give the exit status."""
    text = (
        f"usage: {USAGE}\n\n"
        "Container engines run this program as a hook, with the state of a container on\n"
        "standard input, which is a terminal now. Commands for people:\n\n"
        "  check                  say whether this host is set up\n"
        "  log, diff, show, cat   look at what was saved\n"
        "  extract, apply         use it\n"
        f"  help                   list all commands\n\nSee {_help_for(PROGRAM)}, or man {PROGRAM}.\n"
    )
    try:
        os.write(2, text.encode())
    except OSError:
        pass
    return _WRONG_COMMAND_LINE


def _help_for(name: str) -> str:
    _, _, command = name.partition(" ")
    return f"'{PROGRAM} help {command}'" if command and command != HELP else f"'{PROGRAM} {HELP}'"


def _is_option(word: str) -> bool:
    """Say whether argparse takes a word for an option: not what may be a number or has a blank."""
    return len(word) > 1 and word[0] == "-" and not word[1].isdigit() and word[1] != "." and " " not in word
