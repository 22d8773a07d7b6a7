"""Write the man pages anew: python3 tools/manpage.py DIRECTORY

There is a page for the hook, and one for each command. Options, arguments and examples come from the program's own
parser; everything else comes from man/sections.in and man/commands/COMMAND.in. These files have sections in roff, each
after a line with its name in brackets.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PROGRAM = "archive_overlay"
SUMMARY = "save what a container changed in its overlay mounts"
# Of the last change to what the pages say.
DATE = "2026-11-27"
# After what may be repeated; to roff this is not the end of a sentence.
DOTS = "\\ ...\\&"


def main() -> None:
    """Read the command line and write all pages."""
    parser = argparse.ArgumentParser(description="Write the man pages anew.")
    parser.add_argument("directory", type=Path, help="where they go")
    directory: Path = parser.parse_args().directory
    for name, text in pages().items():
        (directory / name).write_text(text)


def pages() -> dict[str, str]:
    """Give the text of each page, by the name of its file."""
    sys.path.insert(0, str(TOP))
    from archive_overlay import cli
    from archive_overlay.commands.parsers import commands_of

    parser = cli.build_parser()
    (listed,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {each.dest: each.help or "" for each in listed._choices_actions}
    made = {f"{PROGRAM}.1": hook_page(parser, summaries)}
    commands = commands_of(parser)
    for name, summary in summaries.items():
        made[f"{PROGRAM}-{name}.1"] = command_page(name, summary, commands[name])
    return made


def hook_page(parser: argparse.ArgumentParser, summaries: dict[str, str]) -> str:
    """Give the page of the hook, which also lists the commands."""
    sections = read_sections(TOP / "man/sections.in")
    parser._action_groups = [group for group in parser._action_groups if group.title != "commands"]
    commands = [sections.pop("COMMANDS")]
    commands += [
        f".TP\n.BR {escaped(f'{PROGRAM}-{name}')} (1)\n{sentence(text)}" for name, text in summaries.items()
    ]
    return page(
        PROGRAM,
        SUMMARY,
        {
            "SYNOPSIS": sections.pop("SYNOPSIS"),
            **described(parser, sections.pop("DESCRIPTION", "")),
            "COMMANDS": "\n".join(commands),
            **sections,
        },
    )


def command_page(name: str, summary: str, command: argparse.ArgumentParser) -> str:
    """Give the page of a command."""
    sections = read_sections(TOP / f"man/commands/{name}.in")
    examples = [example_block(command.epilog or ""), sections.pop("EXAMPLES", "")]
    last = {"EXAMPLES": "\n".join(filter(None, examples)), "SEE ALSO": sections.pop("SEE ALSO")}
    description = described(command, sections.pop("DESCRIPTION", ""))
    return page(
        f"{PROGRAM}-{name}", summary, {"SYNOPSIS": synopsis(name, command), **description, **sections, **last}
    )


def page(name: str, summary: str, sections: dict[str, str]) -> str:
    """Put a page together: no word in it is hyphenated, and no line is stretched."""
    from archive_overlay import __version__

    lines = [
        f'.TH {escaped(name.upper())} "1" "{DATE}" "{PROGRAM} {__version__}" "Container tools"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(summary)}",
    ]
    for heading, text in sections.items():
        lines += [f".SH {heading}", text]
    # .nh and .ad l; of groff's macros, .YS and .EE undo them.
    text = re.sub(
        r"^\.(?:TH .*|YS|EE)$", lambda line: f"{line[0]}\n.nh\n.ad l", "\n".join(lines), flags=re.MULTILINE
    )
    return f"{text}\n"


def read_sections(path: Path) -> dict[str, str]:
    """Give the sections of a file that is written by hand, in their order."""
    parts = re.split(r"^\[([A-Z ]+)\]\n", path.read_text(), flags=re.MULTILINE)
    assert not parts[0], f"{path} does not begin with the name of a section"
    return {heading: text.strip("\n") for heading, text in zip(parts[1::2], parts[2::2])}


def described(parser: argparse.ArgumentParser, more: str) -> dict[str, str]:
    """Give the sections that the parser has something to say in.

    Args:
        parser: of the command, or of the hook.
        more: what is written by hand about what the command does.
    """
    from argparse_manpage.manpage import Manpage

    for action in parser._actions:
        if action.help:
            action.help = sentence(action.help)
    parser._positionals.title, parser._optionals.title = "arguments", "options"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # which leaves lines as they are
    description, parser.description = parser.description or "", None
    lines = "\n".join(Manpage(parser).mf.format_parser(parser)).split("\n")
    text = "\n".join([line for line in lines if line])
    sections = re.split(r"^\.SH (.*)\n", text, flags=re.MULTILINE)
    paragraphs = [escaped(" ".join(each.split())) for each in description.split("\n\n") if each.strip()]
    return {
        "DESCRIPTION": "\n".join(filter(None, ("\n.PP\n".join(paragraphs), more))),
        **dict(zip(sections[1::2], [each.strip() for each in sections[2::2]])),
    }


def synopsis(name: str, command: argparse.ArgumentParser) -> str:
    """Say how a command is called: options first, as people type them."""
    actions = [action for action in command._actions if "--help" not in action.option_strings]
    options = [_option(action) for action in actions if action.option_strings]
    arguments = [_argument(action) for action in actions if not action.option_strings]
    return "\n".join([f".SY {PROGRAM}\\ {name}", *options, *arguments, ".YS"])


def _option(action: argparse.Action) -> str:
    text = f"\\fB{escaped(action.option_strings[-1])}\\fR"
    if action.choices and not action.metavar:
        text += f"\\ {{{escaped('|'.join(map(str, action.choices)))}}}"
    elif action.nargs != 0:
        text += f"\\ \\fI{escaped(str(action.metavar))}\\fR"
    return f"[{text}]{DOTS if isinstance(action, argparse._AppendAction) else ''}"


def _argument(action: argparse.Action) -> str:
    # Only the words of LAYOUT:TAG[@N] stand for something else.
    text = re.sub("[A-Z][A-Z0-9-]*", lambda word: f"\\fI{escaped(word.group())}\\fR", str(action.metavar))
    text += DOTS if action.nargs in ("*", "+") else ""
    return f"[{text}]" if action.nargs in ("*", "?") else text


def example_block(epilog: str) -> str:
    """Give the examples of a command's help."""
    _, _, examples = epilog.partition("examples:\n")
    lines = [escaped(re.sub("^  ", "", line)) for line in examples.split("\n")]
    return "\n".join([".EX", *lines, ".EE"]) if examples else ""


def sentence(text: str) -> str:
    """Give a text of the help as a sentence."""
    first = text.split(maxsplit=1)[0]
    text = text[0].upper() + text[1:] if first.strip(",;:").isalpha() else text
    return text if text.endswith((".", ":")) else f"{text}."


def escaped(text: str) -> str:
    """Give a text so that roff shows it as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    main()
