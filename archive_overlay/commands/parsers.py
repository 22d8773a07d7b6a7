"""The command lines of the commands, for `cli`, the man page and the completions.

What a person types is read here, and what the words mean is left to each command. No hook imports this.
"""

from __future__ import annotations

import argparse
import unicodedata

from archive_overlay.commands import terminal, usage
from archive_overlay.commands.engine_parsers import add_engine_commands
from archive_overlay.errors import ArchiveError
from archive_overlay.layout.keep import parse_count, parse_duration
from archive_overlay.methods import DEFAULT_LAYERS, LAYERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Callable, Union

    from archive_overlay.settings import Settings

    Add = Callable[[str, str, str, str], argparse.ArgumentParser]
    Parse = Callable[[Sequence[str]], Union[Settings, argparse.Namespace]]

_AGES = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST_MESSAGE = 1000
# Control characters, ends of lines and of paragraphs, and what was no UTF-8.
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")

_IMAGE = "an image; without a tag: latest, or the only image if that has no tag"
_REVISION = "an image: its revision N, or else its newest revision"
_CHANGE_SET = (
    "an archive (a directory or a tar), an upperdir, or LAYOUT:TAG[@N]: revision N, or else the newest one"
)


def add_commands(parser: argparse.ArgumentParser, *, parse: Parse, width: int) -> None:
    """Add what a person runs to a parser.

    Args:
        parser: of the whole command line.
        parse: by which the hook reads its arguments.
        width: of the help.
    """
    commands = parser.add_subparsers(
        title="commands",
        dest="command",
        metavar="COMMAND",
        prog=usage.PROGRAM,
        description=(
            "Look at archives (log, diff, show, cat), use them (extract, apply), tidy histories (tag to verify), exchange"
            " them (push, fetch, load), save what no hook saved (recover, snapshot), and check the host. COMMAND --help has"
            " examples."
        ),
        parser_class=usage.Parser,
    )
    parser._optionals.title = "options of the hook"
    parser._action_groups.insert(0, parser._action_groups.pop())

    def add(name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=lambda prog: usage.Formatter(prog, width=width - 2),
            allow_abbrev=False,
            add_help=False,
        )
        command.set_defaults(refuse=command.error)
        command.add_argument("-h", "--help", action="help", help="show this help and exit")
        return command

    _add_log(add)
    _add_diff(add)
    _add_show(add)
    _add_cat(add)
    _add_extract(add)
    _add_apply(add)
    _add_tag(add)
    _add_untag(add)
    _add_revert(add)
    _add_squash(add)
    _add_prune(add)
    _add_gc(add)
    _add_verify(add)
    add_engine_commands(add, parse)
    _add_check(add, parse)
    _add_help(add, commands.choices)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Give the parsers of the commands, by name."""
    (action,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)


def _add_log(add: Add) -> None:
    command = add(
        "log",
        "list the revisions of an image, newest first",
        "List the revisions of an image in an OCI image layout, newest first: number, time (UTC), container, image, how many"
        " entries were added or changed (+) and deleted (-), stored size, and the message. Without a tag, list all images of"
        " the layout.",
        "  archive_overlay log /srv/data\n"
        "  archive_overlay log /srv/data:main\n"
        "  archive_overlay log /srv/data:main etc/passwd var/lib\n"
        "  archive_overlay log --graph /srv/data\n"
        "  archive_overlay log --json /srv/data:main | jq '.[0].created'",
    )
    command.add_argument("layout", metavar="LAYOUT[:TAG]", help="an image, or all images of a layout")
    command.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        default=[],
        help="list only revisions that touch one of these paths of the image, or something below it",
    )
    command.add_argument("--graph", action="store_true", help="draw how branches are related")
    _add_form(command)


def _add_diff(add: Add) -> None:
    command = add(
        "diff",
        "list what an archive, revision or upperdir changes, or how two of them differ",
        "List what a change set changes, or how WHAT2 differs from WHAT, one path per line: a letter, the size of a file, and"
        " the path. The letters are A (added), M (contents changed), m (only owner, mode, time or other attributes changed), D"
        " (deleted), O (opaque: a directory that hides everything below it) and R (renamed). If nothing says what is below a"
        " change set, as with an archive alone, A means added or changed.",
        "  archive_overlay diff /srv/changes.tar.gz\n"
        "  archive_overlay diff /srv/data:main\n"
        "  archive_overlay diff /srv/data:main@3 /srv/data:main@7\n"
        "  archive_overlay diff --as layout /srv/data\n"
        "  archive_overlay diff --stat --bytes /srv/data:main@3\n"
        "  zstd -dc /srv/changes.tar.zst | archive_overlay diff -",
    )
    command.add_argument("what", metavar="WHAT", help=f"{_CHANGE_SET}; - is a tar on standard input")
    command.add_argument(
        "other",
        metavar="WHAT2",
        nargs="?",
        help="what to compare it with: one of these, or any directory",
    )
    command.add_argument(
        "--all",
        action="store_true",
        help="also show directories that are there only because of what is in them",
    )
    command.add_argument(
        "--force",
        action="store_true",
        help="read layers whose diff ID is wrong, with a warning; their digest must be right",
    )
    _add_form(command)
    command.add_argument("--stat", action="store_true", help="show totals only")
    _add_kind(command, "WHAT")


def _add_show(add: Add) -> None:
    command = add(
        "show",
        "show a revision, or a directory or file in it",
        "Show the facts about a revision and what it changed. With a path, list that directory or show the facts about that"
        " file, as it was in the revision.",
        "  archive_overlay show /srv/data:main\n"
        "  archive_overlay show /srv/data:main@3\n"
        "  archive_overlay show /srv/data:main@3:etc",
    )
    command.add_argument("what", metavar="LAYOUT:TAG[@N][:PATH]", help=f"{_REVISION}; and a path in it")
    _add_form(command)


def _add_cat(add: Add) -> None:
    command = add(
        "cat",
        "write a file of a revision to standard output",
        "Write the contents of a file, as it was in a revision, to standard output.",
        "  archive_overlay cat /srv/data:main@3:etc/passwd\n"
        "  archive_overlay cat /srv/data:main:etc/passwd | diff /etc/passwd -",
    )
    command.add_argument("what", metavar="LAYOUT:TAG[@N]:PATH", help=f"{_REVISION}; and a path in it")


def _add_extract(add: Add) -> None:
    command = add(
        "extract",
        "write a revision of an image, or parts of it, into a directory",
        "Write a revision of an image into a plain directory: all layers up to it, one on top of the other. The directory"
        " appears when it is complete.",
        "  archive_overlay extract /srv/data:main /srv/now\n"
        "  archive_overlay extract /srv/data:main@3 /srv/as-it-was\n"
        "  archive_overlay extract /srv/data:main@3 /srv/some-of-it etc var/lib",
    )
    command.add_argument("revision", metavar="LAYOUT:TAG[@N]", help=_REVISION)
    command.add_argument("directory", metavar="DIR", help="the directory, which must be empty or not exist")
    command.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        default=[],
        help="extract only these paths of the image, and what is below them",
    )
    command.add_argument(
        "--force",
        action="store_true",
        help="read layers whose diff ID is wrong, with a warning; their digest must be right",
    )
    _add_no_fsync(command, "the directory is")


def _add_apply(add: Add) -> None:
    command = add(
        "apply",
        "apply a change set to a directory",
        "Apply a change set to a plain directory: add what was added, replace what was changed, remove what was deleted. DIR"
        " then is what a container saw that had DIR below and the change set on top. At every moment, each entry is the old"
        " one or the new one. If it is interrupted, run it again without --reverse.",
        "  archive_overlay apply --dry-run /srv/changes.tar.gz /srv/data\n"
        "  archive_overlay apply --reverse /srv/undo.tar.zst /srv/changes /srv/data\n"
        "  archive_overlay apply /srv/undo.tar.zst /srv/data\n"
        "  archive_overlay apply /srv/history:main@3 /srv/data",
    )
    command.add_argument("archive", metavar="ARCHIVE", help=_CHANGE_SET)
    command.add_argument("directory", metavar="DIR", help="the directory; no mounted overlay may use it")
    command.add_argument(
        "--dry-run", action="store_true", help="list what would happen, as diff does; change nothing"
    )
    command.add_argument(
        "--reverse",
        metavar="FILE",
        help=(
            "first save what will be overwritten or deleted in FILE, a new tar that ends in .tar, .tar.gz or .tar.zst; apply"
            " FILE to undo the changes"
        ),
    )
    _add_form(command)
    command.set_defaults(stat=False)
    _add_kind(command, "ARCHIVE")
    _add_no_fsync(command, "the changes are")


def _add_tag(add: Add) -> None:
    command = add(
        "tag",
        "give a revision another tag",
        "Give a revision another tag in the same layout. Archives that go to the new tag begin a branch. prune and squash"
        " keep a revision that has a tag.",
        "  archive_overlay tag /srv/data:main@3 before-upgrade\n"
        "  archive_overlay tag /srv/data:main release-1",
    )
    command.add_argument("revision", metavar="LAYOUT:TAG[@N]", help=_REVISION)
    command.add_argument("new", metavar="NEW", help="the new tag, which must not exist")
    _add_writing(command)


def _add_untag(add: Add) -> None:
    command = add(
        "untag",
        "remove a tag and the revisions that no other tag has",
        "Remove a tag from a layout. Revisions that no other tag has are deleted with it, at once. Layers that other"
        " programs made stay until gc removes them.",
        "  archive_overlay untag /srv/data:try",
    )
    command.add_argument("layout", metavar="LAYOUT:TAG", help="an image")
    _add_no_fsync(command, "the change is")


def _add_revert(add: Add) -> None:
    command = add(
        "revert",
        "add a revision that restores an earlier one",
        "Add a revision to an image that restores the state of an earlier one. The revisions in between stay.",
        "  archive_overlay revert /srv/data:main@3\n"
        "  archive_overlay revert --message 'undo the upgrade' /srv/data:main@3",
    )
    command.add_argument("revision", metavar="LAYOUT:TAG@N", help="an image, and its revision N")
    _add_message(command)
    _add_writing(command)


def _add_squash(add: Add) -> None:
    command = add(
        "squash",
        "combine several revisions into one",
        "Combine several revisions into one: the last of them then has everything that they changed, and the others are gone.",
        "  archive_overlay squash /srv/data:main\n"
        "  archive_overlay squash --message 'the upgrade' /srv/data:main@3..7",
    )
    command.add_argument(
        "revision",
        metavar="LAYOUT:TAG[@A..B]",
        help="an image, and its revisions A to B (default: all that this program made)",
    )
    _add_message(command)
    _add_writing(command)


def _add_prune(add: Add) -> None:
    command = add(
        "prune",
        "drop revisions that no rule keeps",
        "Drop the revisions of an image that no rule keeps. What they changed goes to the next revision that is kept. Without"
        " a tag, prune each image of the layout by itself. The newest revision, revisions with a tag, those of other programs"
        " and those of unknown time are always kept. Days, weeks (from Monday), months and years are those of UTC.",
        "  archive_overlay prune --keep-last 30 --dry-run /srv/data:main\n"
        "  archive_overlay prune --keep-daily 14 --keep-monthly 12 /srv/data:main\n"
        "  archive_overlay prune --keep-within 30d /srv/data",
    )
    command.add_argument("layout", metavar="LAYOUT[:TAG]", help="an image, or all images of a layout")
    command.add_argument("--keep-last", metavar="N", type=_kept, default=0, help="keep the last N revisions")
    for name, unit in (("daily", "day"), ("weekly", "week"), ("monthly", "month"), ("yearly", "year")):
        command.add_argument(
            f"--keep-{name}",
            metavar="N",
            type=_kept,
            default=0,
            help=f"keep the last revision of each of the last N {unit}s that have one",
        )
    command.add_argument(
        "--keep-within",
        dest="within",
        metavar="TIME",
        type=_span,
        default=0,
        help="keep revisions at most this much older than the newest one: 12h, 30d, 2w, 6m (of 30 days), 1y, 1y6m",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="list what would be kept and why; change nothing"
    )
    _add_color(command)
    _add_json(command)
    _add_writing(command)


def _add_gc(add: Add) -> None:
    command = add(
        "gc",
        "remove files of a layout that nothing refers to",
        "Remove files of a layout that no image in it refers to, such as those of removed tags.",
        "  archive_overlay gc --dry-run /srv/data\n"
        "  archive_overlay gc /srv/data\n"
        "  archive_overlay gc --older 2d /srv/data",
    )
    command.add_argument("layout", metavar="LAYOUT", help="an image layout")
    command.add_argument(
        "--older",
        metavar="TIME",
        type=_age,
        default=3600,
        help=(
            "keep files that are younger than this, because another program may be about to refer to them: 90min, 1h, 2d, 1w;"
            " 0 keeps none (default: 1h)"
        ),
    )
    command.add_argument("--dry-run", action="store_true", help="list what would be removed; change nothing")
    _add_form(command)
    _add_no_fsync(command, "the change is")


def _add_verify(add: Add) -> None:
    command = add(
        "verify",
        "check that a layout is whole",
        "Check that a layout is whole: that everything its images refer to is there, and that each revision can be extracted."
        " Name the revisions that are damaged. The exit status is 1 if anything is damaged.",
        "  archive_overlay verify /srv/data\n"
        "  archive_overlay verify --read-data /srv/data\n"
        "  archive_overlay verify --json /srv/data",
    )
    command.add_argument("layout", metavar="LAYOUT", help="an image layout")
    command.add_argument(
        "--read-data", action="store_true", help="read all data, and compare digests and diff IDs"
    )
    _add_form(command)


def _add_check(add: Add, parse: Parse) -> None:
    command = add(
        "check",
        "check whether this host is set up",
        "Check whether this host is set up, one line for each finding: ok, note, warning, or problem, which stops archives."
        " Nothing is written. Run it as root, or for rootless containers as their user.",
        "  archive_overlay check\n"
        "  archive_overlay check --json\n"
        "  archive_overlay check --hooks-dir /etc/containers/oci/hooks.d",
    )
    command.add_argument(
        "--hooks-dir",
        metavar="DIR",
        action="append",
        default=[],
        help=(
            "look for hook configurations in this directory; may be repeated, and later directories take precedence (default:"
            " those that podman reads, as containers.conf says)"
        ),
    )
    _add_color(command)
    _add_json(command)
    command.set_defaults(parse=parse)


def _add_help(add: Add, commands: Iterable[str]) -> None:
    command = add(
        usage.HELP,
        "show how to use a command",
        "Show how to use a command, as COMMAND --help does. Without a command, list all commands and the options of the hook.",
        "  archive_overlay help\n  archive_overlay help log",
    )
    command.add_argument(
        "topic", metavar="COMMAND", nargs="?", choices=[*commands], help="the command (default: all)"
    )


def _add_form(command: argparse.ArgumentParser) -> None:
    """Add how the output looks."""
    sizes = command.add_mutually_exclusive_group()
    sizes.add_argument(
        "--bytes",
        dest="sizes",
        action="store_const",
        const=terminal.BYTES,
        help="show sizes in bytes (default, unless output is a terminal)",
    )
    sizes.add_argument(
        "--human-readable",
        dest="sizes",
        action="store_const",
        const=terminal.HUMAN,
        help="show sizes as 1.2K, 34M (default on a terminal)",
    )
    _add_color(command)
    _add_json(command)


def _add_color(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--color",
        metavar="WHEN",
        choices=terminal.COLOURS,
        default=terminal.COLOURS[0],
        help="use colors: auto, always or never; auto is on a terminal, unless NO_COLOR is set or TERM is dumb",
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="write JSON, for programs")


def _add_kind(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--as",
        dest="kind",
        choices=("layout", "directory", "tar"),
        help=(
            f"what {what} is: needed if a path could also be LAYOUT:TAG, and for a directory that contains the files of an"
            " image layout, because a container can make such files"
        ),
    )
    command.add_argument(
        "--marks",
        choices=("trusted", "user", "fuse", "oci"),
        help=(
            "how deletions and opaque directories are marked: trusted or user (0:0 devices, trusted.overlay.opaque or"
            " user.overlay.opaque), fuse (as fuse-overlayfs does), oci (.wh. names) (default: as the tar says, or a guess)"
        ),
    )


def _add_message(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--message",
        metavar="TEXT",
        type=_message,
        default="",
        help="one line that log shows beside the revision",
    )


def _add_writing(command: argparse.ArgumentParser) -> None:
    """Add what all commands take that add revisions to an image or take some away."""
    command.add_argument(
        "--max-layers",
        metavar="N",
        type=_layers,
        default=DEFAULT_LAYERS,
        help=(
            "how many layers the image may have at most; beyond that, revisions share layers"
            f" ({LAYERS[0]} to {LAYERS[-1]}, default: {DEFAULT_LAYERS})"
        ),
    )
    _add_no_fsync(command, "the change is")


def _add_no_fsync(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--no-fsync", dest="fsync", action="store_false", help=f"do not wait until {what} on disk"
    )


def _kept(value: str) -> int:
    try:
        return parse_count(value, value)
    except ArchiveError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _span(value: str) -> int:
    try:
        return parse_duration(value)
    except ArchiveError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _age(value: str) -> int:
    """Read an age, in seconds. A bare m, which is a month in --keep-within, is refused: a minute would delete more."""
    digits = value.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = value[len(digits) :]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 7):
        digits = ""
    if digits and int(digits) == 0 and not unit:
        return 0
    if not digits or unit not in _AGES:
        raise argparse.ArgumentTypeError(f"{value!r} is not an age; write 0, 30s, 90min, 1h, 2d or 1w")
    return int(digits) * _AGES[unit]


def _layers(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 4 and int(value) in LAYERS):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from {LAYERS[0]} to {LAYERS[-1]}")
    return int(value)


def _message(value: str) -> str:
    if len(value) > _LONGEST_MESSAGE:
        raise argparse.ArgumentTypeError(
            f"the text has {len(value)} characters; it may have at most {_LONGEST_MESSAGE}"
        )
    if any(unicodedata.category(character) in _NO_TEXT for character in value):
        raise argparse.ArgumentTypeError(f"{value!r} is not one line of text")
    return value
