"""Where engines look for hook configurations.

Source: containers.conf(5). What podman takes as its default was seen with podman 4.3.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from archive_overlay.commands.check.findings import NOTE, OK, PROBLEM, WARNING, Finding, listed
from archive_overlay.commands.check.hook_files import UnreadableError, of_ours_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Callable

DEFAULT_DIRECTORY = "/usr/share/containers/oci/hooks.d"
OVERRIDE_DIRECTORY = "/etc/containers/oci/hooks.d"


@dataclass(frozen=True)
class Directories:
    """Where the engine looks for hook configurations.

    Attributes:
        read: absolute paths, the last one first in rank.
        findings: how that is known.
    """

    read: tuple[str, ...]
    findings: tuple[Finding, ...]


def find_directories(
    given: Sequence[str],
    *,
    configurations: Iterable[str],
    default: str = DEFAULT_DIRECTORY,
    override: str = OVERRIDE_DIRECTORY,
    rootless: bool,
    parse: Callable[[str], Mapping[str, Any]] | None,
) -> Directories:
    """Find out which directories the engine reads.

    Args:
        given: directories of the command line; they settle it.
        configurations: paths of containers.conf files, the last one first in rank; they need not exist.
        default: what podman reads if none of them says anything.
        override: what many expect it to read.
        rootless: whether the engine runs as an ordinary user.
        parse: makes an object of TOML, or raises ValueError; None: this Python cannot.
    """
    if given:
        read = tuple(os.path.abspath(directory) for directory in given)
        return Directories(read, (Finding(OK, "hooks-dir", f"{listed(read)}, as given by --hooks-dir"),))
    findings = []
    configured: tuple[list[str], str] | None = None
    append = False
    for path in configurations:
        try:
            value = _hooks_dir(path, parse)
        except UnreadableError as error:
            findings.append(
                Finding(
                    PROBLEM if parse and isinstance(error.__cause__, ValueError) else WARNING,
                    "hooks-dir",
                    f"what {path} says is not known: {error}",
                    "say which directories podman reads with --hooks-dir",
                    path,
                )
            )
            continue
        if value is None:
            continue
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("append"), bool):
                append = item["append"]  # for what comes after, too
        before = configured[0] if configured else [default]
        names = [item for item in value if isinstance(item, str)]
        configured = ([*before, *names] if append else names, path)
    if configured:
        read, source = tuple(configured[0]), configured[1]
        findings.append(
            Finding(OK, "hooks-dir", f"podman reads {listed(read)}, as {source} says", "", source)
        )
    else:
        read = (default,)
        findings.append(_by_default(default, rootless=rootless))
    if override not in read and (ours := of_ours_in(override)):
        findings.append(
            Finding(
                WARNING,
                "hooks-dir",
                f"podman does not read {override}, and the options in {listed(ours)} are not in force",
                f'under [engine] in containers.conf, put hooks_dir = ["{default}", "{override}"]',
                override,
            )
        )
    return Directories(read, tuple(findings))


def toml_parser() -> Callable[[str], Mapping[str, Any]] | None:
    """Give what makes an object of TOML, or raises ValueError; None: this Python cannot."""
    try:
        import tomllib  # type: ignore[import-not-found, unused-ignore]  # novm
    except ImportError:  # before Python 3.11
        return None
    parse: Callable[[str], Mapping[str, Any]] = tomllib.loads
    return parse


def _by_default(default: str, *, rootless: bool) -> Finding:
    found = f"no containers.conf has hooks_dir, so podman reads {default}"
    if not rootless:
        return Finding(OK, "hooks-dir", found, "", default)
    return Finding(
        NOTE,
        "hooks-dir",
        f"{found} if it is a release that does so for ordinary users; others read nothing, and say nothing",
        f'to be sure, put hooks_dir = ["{default}"] under [engine] in ~/.config/containers/containers.conf',
        default,
    )


def _hooks_dir(path: str, parse: Callable[[str], Mapping[str, Any]] | None) -> list[object] | None:
    """Give what a containers.conf says about directories of hooks; None: nothing.

    Raises:
        UnreadableError: nobody can say.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnreadableError(error.strerror) from error
    except UnicodeDecodeError as error:
        raise UnreadableError("it is not UTF-8") from error
    if parse is None:
        if any("hooks_dir" in line for line in text.splitlines() if not line.lstrip().startswith("#")):
            raise UnreadableError("it has hooks_dir, and this Python cannot read TOML (3.11 can)")
        return None
    try:
        engine = parse(text).get("engine")
    except ValueError as error:
        raise UnreadableError(f"it is no TOML, and podman does not start with it: {error}") from error
    value = engine.get("hooks_dir") if isinstance(engine, dict) else None
    if value is not None and not isinstance(value, list):
        raise UnreadableError("its hooks_dir is no list, and podman does not start with it") from ValueError()
    return value
