"""The command line: arguments to settings, and the exit status.

An OCI runtime runs the program without a person watching, so this module (on every start's path)
imports little, and nothing happens at import time.
"""

from __future__ import annotations

import gc
import os
import sys

from archive_overlay import __version__, log
from archive_overlay.errors import Interrupted
from archive_overlay.settings import (
    DEFAULT_LOG_LEVEL,
    DEFAULT_MOUNT_PROGRAM,
    DEFAULT_PUSH_TIMEOUT,
    DEFAULT_SKOPEO,
    Settings,
    TransferSettings,
)
from archive_overlay.system import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

_MOST_JOBS = 1024
_LONGEST_TIMEOUT = 86400
# What may come after a number, and how many bits that is.
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
# Of help that nobody reads on a terminal. argparse itself would ask the environment, by way of shutil, which takes 2 ms.
_WIDTH = 80
_STDIN = 0
# What options without a value make of it, by what the parser does for them.
_FLAGS = {"store_true": True, "store_false": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the hook as the command line says.

    Args:
        arguments: the command line without the program's name; the process's own by default.

    Returns:
        The exit status: 0 if all that was asked for is saved, 1 if something is not, 128 plus the
        signal's number after SIGTERM, SIGHUP or another signal that ends programs. A wrong command line ends the
        program with status 2.
    """
    _keep_standard_descriptors()
    signals.hear_of_children()
    os.umask(0o022)  # what archives and parents are made with does not depend on the runtime's
    asked = parse(sys.argv[1:] if arguments is None else arguments)
    _raise_on_signals()
    try:
        if not isinstance(asked, Settings):
            gc.enable()
            from archive_overlay import commands

            return commands.run(asked)
        if not asked.bundle and os.isatty(_STDIN):
            from archive_overlay.commands import usage

            return usage.greet()
        logger = log.open_log(asked.log_level, path=asked.log_file, syslog=asked.syslog)

        from archive_overlay.hook import hook

        return hook.run(asked, logger)
    except Interrupted as interruption:
        return 128 + interruption.number


def run() -> int:
    """Run the program as a process of its own, and end it at once.

    Returns:
        See `main`. Only what could not be written to standard output or error comes back from here.
    """
    # Nothing here makes cycles, so looking for them is time lost, and so is taking the interpreter down.
    gc.disable()
    try:
        status = main()
        signals.ignore_end()
    except Interrupted as interruption:  # when all was done, and before it is said
        status = 128 + interruption.number
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return status  # the interpreter complains
    os._exit(status)


def parse(arguments: Sequence[str]) -> Settings | argparse.Namespace:
    """Read a command line.

    Returns:
        How the hook works; or what a person asks for, as `commands.run` takes it. A wrong command line ends the
        program with a usage message and status 2.
    """
    plain = _read_plain(arguments)
    if plain is not None:
        return _settings(plain)
    if not arguments[0].startswith("-"):
        return _parse_command(arguments)
    # Only people ask for help: what hooks have in their configuration is read without the parsers of the commands.
    parser = _build_hook_parser()
    parser.error = lambda message: _refuse_value(arguments, message)  # type: ignore[method-assign]
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse_arguments(arguments, unknown)
    return _settings(vars(options))


def _read_plain(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Read options of the hook as the parser would, but without argparse, which costs 8 ms.

    Returns:
        All values by name; None: it takes the parser to say what is meant, or what is wrong.
    """
    if not arguments:
        return {}
    known = _options()
    values = {_key(name, keywords): _default(keywords) for name, keywords in known.items()}
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in known:
            return None
        keywords = known[name]
        key, action = _key(name, keywords), keywords.get("action")
        if action in _FLAGS:
            if equals:
                return None
            values[key] = _FLAGS[action]
            continue
        if not equals:
            value = next(rest, "")
            if value.startswith("-"):
                return None
        # (argparse finds nothing in --option=--.)
        if value in ("", "--") or value not in keywords.get("choices", (value,)):
            return None
        try:
            value = keywords.get("type", str)(value)
        except Exception:  # of argparse, which is not imported: the parser finds it again
            return None
        values[key] = [*values[key], value] if action == "append" else value
    return values


def _key(name: str, keywords: Mapping[str, Any]) -> str:
    """Give what the parser calls the value of an option."""
    key: str = keywords.get("dest") or name[2:].replace("-", "_")
    return key


def _default(keywords: Mapping[str, Any]) -> Any:
    action = keywords.get("action")
    return not _FLAGS[action] if action in _FLAGS else keywords.get("default")


def _settings(values: Mapping[str, Any]) -> Settings:
    """Give the settings that options ask for.

    Args:
        values: of all options, by name, as the parser gives them; none: all are the defaults.
    """
    if not values:
        return Settings()
    return Settings(
        bundle=values["bundle"],
        mount_program=values["mount_program"],
        rescue_dir=values["rescue_dir"],
        jobs=values["jobs"],
        fsync=values["fsync"],
        allowed=tuple(values["allow_archive_to"]),
        trust_image_annotations=values["trust_image_annotations"],
        setid=values["setid"],
        max_bytes=values["max_bytes"],
        max_entries=values["max_entries"],
        file_mode=values["file_mode"],
        transfer=TransferSettings(
            skopeo=values["skopeo"],
            load_prefixes=_load_prefixes(values),
            push_prefixes=tuple(values["allow_push_to"]),
            authfile=values["authfile"],
            push_timeout=values["push_timeout"],
            tls_verify=values["tls_verify"] == "true",
        ),
        on_success=values["on_success"],
        on_failure=values["on_failure"],
        log_level=values["log_level"],
        log_file=values["log_file"],
        syslog=values["syslog"],
    )


def _load_prefixes(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Say which names images may be loaded as: if paths are limited, only those that are allowed."""
    if values["allow_load_as"] or values["allow_archive_to"]:
        return tuple(values["allow_load_as"])
    return None


def build_parser(*, width: int = _WIDTH) -> argparse.ArgumentParser:
    """Build the parser of the whole command line, from which the man pages and the completions are made.

    Args:
        width: of help, in columns.
    """
    from archive_overlay.commands import usage
    from archive_overlay.commands.parsers import add_commands

    parser = _build_hook_parser(usage.Parser, width=width)
    parser.usage = usage.USAGE
    parser.add_argument("-h", "--help", action="help", help="show this help and exit")
    add_commands(parser, parse=parse, width=width)
    return parser


def _parse_command(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a command. A wrong one ends the program."""
    import argparse

    from archive_overlay.commands import COMPLETE

    name, *rest = arguments
    if name == COMPLETE:
        return argparse.Namespace(command=name, words=rest)

    from archive_overlay.commands import terminal, usage
    from archive_overlay.commands.parsers import commands_of

    parser = build_parser(width=terminal.help_width())
    commands = commands_of(parser)
    command = commands.get(name)
    if command is None:
        usage.refuse_command(parser, name, commands)
    usage.refuse_unknown_options(command, parser, rest)
    options, unknown = command.parse_known_args(rest)
    if unknown:
        # Arguments may stand on both sides of an option (log LAYOUT --json PATH), though argparse by itself gives all that
        # an argument may have what stands before it.
        options = command.parse_intermixed_args(rest)
    if name == usage.HELP:
        commands.get(options.topic, parser).print_help()
        sys.exit()
    options.command = name
    return options


def _refuse_value(arguments: Sequence[str], message: str) -> NoReturn:
    """End the program because an option of the hook has a wrong value, or none."""
    from archive_overlay.commands import usage

    # This parser knows what was perhaps meant.
    parser = _build_hook_parser(usage.Parser, usage=usage.USAGE)
    parser.parse_known_args(arguments)
    parser.error(message)


def _refuse_arguments(arguments: Sequence[str], unknown: Sequence[str]) -> NoReturn:
    """End the program because of what the hook does not take, or show the help that is asked for.

    Args:
        arguments: the command line.
        unknown: what of it the hook does not take.
    """
    from archive_overlay.commands import terminal, usage
    from archive_overlay.commands.parsers import commands_of

    asks_for_help = "-h" in unknown or "--help" in unknown
    parser = build_parser(width=terminal.help_width()) if asks_for_help else build_parser()
    commands = commands_of(parser)
    if asks_for_help:
        commands.get(next((word for word in unknown if word in commands), ""), parser).print_help()
        sys.exit()
    usage.refuse_hook_arguments(parser, commands, arguments, unknown)


def _build_hook_parser(
    kind: type[argparse.ArgumentParser] | None = None, *, width: int = _WIDTH, usage: str | None = None
) -> argparse.ArgumentParser:
    """Build the parser of the hook's options.

    Args:
        kind: what it is; None: argparse's own.
        width: of help, in columns.
        usage: that wrong command lines get.
    """
    import argparse

    # It would look for translations of its messages where the environment says.
    argparse._ = str  # type: ignore[attr-defined]
    argparse.ngettext = _numbered  # type: ignore[attr-defined]

    parser = (kind or argparse.ArgumentParser)(
        prog="archive_overlay",
        usage=usage,
        description=(
            "Save what a container changed in its overlay mounts. An OCI runtime runs this program as a poststop hook, with"
            " the container's state on standard input. Annotations of the container say which mounts to save, where and how."
        ),
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=width - 2),
    )
    parser.color = False  # type: ignore[attr-defined]  # Python 3.14 would ask the environment
    for name, keywords in _options().items():
        parser.add_argument(name, **keywords)
    parser.add_argument("-v", "--version", action="version", version=f"archive_overlay version {__version__}")
    return parser


def _options() -> dict[str, dict[str, Any]]:
    """Give the options of the hook, and for each what the parser has to know of it: see `add_argument` of argparse."""
    return {
        "--log-level": {
            "metavar": "LEVEL",
            "type": _log_level,
            "default": DEFAULT_LOG_LEVEL,
            "help": f"log messages of this level and above: {', '.join(log.LEVEL_NAMES)} (default: {DEFAULT_LOG_LEVEL})",
        },
        "--log-file": {
            "metavar": "PATH",
            "help": "also append log messages to this file (podman does not show what a hook writes to stderr)",
        },
        "--syslog": {"action": "store_true", "help": "also send log messages to the system log"},
        "--mount-program": {
            "metavar": "PATH",
            "default": DEFAULT_MOUNT_PROGRAM,
            "help": "the program that serves overlay mounts in user space: mount_program in storage.conf (default:"
            f" {DEFAULT_MOUNT_PROGRAM})",
        },
        "--rescue-dir": {
            "metavar": "DIR",
            "type": _absolute_path,
            "help": "if an archive fails, keep the upperdir as DIR/CONTAINER/ARCHIVE, and say in DIR/CONTAINER/ARCHIVE.json what was"
            " asked for and what went wrong",
        },
        "--allow-archive-to": {
            "metavar": "DIR",
            "type": _absolute_path,
            "action": "append",
            "default": [],
            "help": "allow archives and success markers only in this directory; may be repeated",
        },
        "--allow-load-as": {
            "metavar": "PREFIX",
            "type": _name_prefix,
            "action": "append",
            "default": [],
            "help": "allow load-as names that begin with this, for example localhost/data; may be repeated (default: all names, or none"
            " with --allow-archive-to)",
        },
        "--allow-push-to": {
            "metavar": "PREFIX",
            "type": _name_prefix,
            "action": "append",
            "default": [],
            "help": "allow push-to names that begin with this, for example docker://registry.example/team; a port is part of the host;"
            " may be repeated (default: none)",
        },
        "--authfile": {
            "metavar": "PATH",
            "type": _absolute_path,
            "help": "passwords of registries, as written by skopeo login (default: those of the engine's user)",
        },
        "--push-timeout": {
            "metavar": "SECONDS",
            "type": _seconds,
            "default": DEFAULT_PUSH_TIMEOUT,
            "help": f"give up a push after this time (default: {DEFAULT_PUSH_TIMEOUT})",
        },
        "--tls-verify": {
            "choices": ("true", "false"),
            "default": "true",
            "help": "require a valid certificate of the registry; false only for loopback and tests (default: true)",
        },
        "--skopeo": {
            "metavar": "PATH",
            "type": _absolute_path,
            "default": DEFAULT_SKOPEO,
            "help": f"absolute path of skopeo, for load-as and push-to (default: {DEFAULT_SKOPEO})",
        },
        "--on-success": {
            "metavar": "PROGRAM",
            "type": _absolute_path,
            "help": "run this program for each archive that succeeds, with the facts as JSON on standard input",
        },
        "--on-failure": {
            "metavar": "PROGRAM",
            "type": _absolute_path,
            "help": "run this program for each archive that could not be made, loaded or pushed",
        },
        "--trust-image-annotations": {
            "action": "store_true",
            "help": "obey annotations of images, which some engines copy into containers",
        },
        "--no-setid": {
            "dest": "setid",
            "action": "store_false",
            "help": "leave set-user-ID and set-group-ID bits and file capabilities out of archives",
        },
        "--max-bytes": {
            "metavar": "N",
            "type": _number,
            "help": "refuse an archive with more bytes than this before compression: contents, names, attributes and, for method oci,"
            " the zeros of holes; 10K, 512M, 10G and 1T are in steps of 1024",
        },
        "--max-entries": {
            "metavar": "N",
            "type": _number,
            "help": "refuse a change set with more entries than this, including directories and deletions",
        },
        "--file-mode": {
            "metavar": "MODE",
            "type": _file_mode,
            "help": "permissions of tars and of the files in image layouts, in octal, such as 0640 or 0644 (default: as the"
            " directory's default ACL says, or else 0600)",
        },
        "--jobs": {
            "metavar": "N",
            "default": 0,
            "type": _count,
            "help": "compress on N processors (default: all that this process may use)",
        },
        "--no-fsync": {
            "dest": "fsync",
            "action": "store_false",
            "help": "do not wait until archives are on disk: faster, but a power failure may lose them",
        },
        "--bundle": {
            "metavar": "DIR",
            "help": "read config.json from this bundle instead of a container state from standard input, to run the hook by hand",
        },
    }


def _log_level(value: str) -> str:
    try:
        return log.canonical_level(value)
    except ValueError as error:
        from archive_overlay.commands.usage import perhaps

        known = f"{error}, choose from {', '.join(log.LEVEL_NAMES)}"
        raise _wrong(known + perhaps(value, log.LEVEL_NAMES)) from error


def _number(value: str) -> int:
    digits = value.removesuffix("iB")
    bits = _UNITS.get(digits[-1:].upper(), 0)
    if bits:
        digits = digits[:-1]
    elif digits != value:
        digits = ""  # iB alone is no unit
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19) or int(digits) << bits >> 63:
        raise _wrong(f"{value!r} is not a whole number, or is too large; write 5000, 512M or 10G (1024 M)")
    return int(digits) << bits


def _file_mode(value: str) -> int:
    digits = value[1:] if value.startswith("0") else value
    if len(digits) != 3 or digits[0] != "6" or not set(digits) <= set("0246"):
        raise _wrong(f"{value!r} is not an octal mode from 0600 to 0666 without execute bits")
    return int(digits, 8)


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value[:9]) <= _MOST_JOBS and len(value) < 9):
        raise _wrong(f"{value!r} is not a number from 1 to {_MOST_JOBS}")
    return int(value)


def _seconds(value: str) -> int:
    if not (
        value.isascii() and value.isdigit() and 0 < int(value[:9]) <= _LONGEST_TIMEOUT and len(value) < 9
    ):
        raise _wrong(f"{value!r} is not a number of seconds from 1 to {_LONGEST_TIMEOUT}")
    return int(value)


def _name_prefix(value: str) -> str:
    from archive_overlay.errors import ArchiveError
    from archive_overlay.transfer.names import parse_prefix

    try:
        parse_prefix(value)
    except ArchiveError as error:
        raise _wrong(str(error)) from error
    return value


def _absolute_path(value: str) -> str:
    if not value.startswith("/"):
        raise _wrong(f"{value!r} is not an absolute path, such as /usr/bin/{os.path.basename(value)}")
    return os.path.normpath("/" + value.lstrip("/"))


def _wrong(reason: str) -> argparse.ArgumentTypeError:
    import argparse

    return argparse.ArgumentTypeError(reason)


def _numbered(one: str, many: str, number: int) -> str:
    return one if number == 1 else many


def _raise_on_signals() -> None:
    def interrupt(number: int, frame: object) -> None:
        signals.ignore_end()  # what is being cleaned up is cleaned up to its end
        raise Interrupted(number)

    signals.on_end(interrupt)


def _keep_standard_descriptors() -> None:
    # A runtime may start a hook with stdin, stdout or stderr closed. The next file opened would get
    # that number, and log lines would end up in an archive.
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
