"""Where podman looks for hook configurations.

Source: containers.conf(5), and podman's sources where it names nothing: libpod/container_internal.go.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from archive_overlay.commands.check.findings import NOTE, OK, PROBLEM, WARNING, Finding, listed
from archive_overlay.commands.check.hook_files import UnreadableError, of_ours_in
from archive_overlay.commands.check.podman import ETC, RELEASES, USR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Callable

    from archive_overlay.commands.check.podman import Installed, Release

DEFAULT_DIRECTORY = "/usr/share/containers/oci/hooks.d"
OVERRIDE_DIRECTORY = "/etc/containers/oci/hooks.d"
# All releases read it, and none takes it for another file's successor, as podman 6 takes a new containers.conf.
DROP_IN = f"{ETC}/containers.conf.d/50-archive_overlay.conf"

UNKNOWN_RELEASE = Finding(
    WARNING,
    "hooks-dir",
    "releases of podman differ here: a finding that begins with releases is true for those alone",
    "say which directories podman reads with --hooks-dir",
)


@dataclass(frozen=True)
class Directories:
    """Where the engine looks for hook configurations.

    Attributes:
        read: absolute paths, the last one first in rank.
        findings: how that is known.
        release: of podman, for which it is so; "": all that there may be.
    """

    read: tuple[str, ...]
    findings: tuple[Finding, ...]
    release: str = ""


def judge_release(installed: Installed) -> Finding:
    """Say which release of podman is meant, and how that is known."""
    if installed.releases != RELEASES:
        return Finding(OK, "hooks-dir", installed.why, "", installed.path)
    found = f"the release of podman is not known, for {installed.why}: what follows is about every release"
    return Finding(NOTE, "hooks-dir", found, "", installed.path)


def given_directories(paths: Sequence[str]) -> Directories:
    """Give the directories of the command line, which settle it."""
    read = tuple(os.path.abspath(path) for path in paths)
    return Directories(read, (Finding(OK, "hooks-dir", f"{listed(read)}, as given by --hooks-dir"),))


def find_directories(
    release: Release,
    *,
    configurations: Iterable[str],
    default: str = DEFAULT_DIRECTORY,
    override: str = OVERRIDE_DIRECTORY,
    rootless: bool,
    parse: Callable[[str], Mapping[str, Any]] | None,
) -> Directories:
    """Find out which directories podman reads.

    Args:
        release: of podman.
        configurations: paths of containers.conf files, the last one first in rank; they need not exist.
        default: what podman reads if none of them says anything.
        override: what many expect it to read.
        rootless: whether it runs as an ordinary user.
        parse: makes an object of TOML, or raises ValueError; None: this Python cannot.
    """
    findings = []
    read = [default]
    source = ""
    append = False
    for path in configurations:
        try:
            value = _hooks_dir(path, release, parse)
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
            if isinstance(item, dict):
                append = item.get("append", append)  # for what comes after, too
        names = [item for item in value if isinstance(item, str)]
        read, source = [*read, *names] if append else names, path
    if relative := [name for name in read if not os.path.isabs(name)]:
        read = [name for name in read if os.path.isabs(name)]
        findings.append(
            Finding(
                WARNING,
                "hooks-dir",
                f"{listed(relative)}, named by hooks_dir, is a relative path: podman looks for it where it happens to run",
                "write absolute paths",
                source,
            )
        )
    if not source:
        found = f"no containers.conf has hooks_dir, so podman reads {default}"
        findings.append(Finding(OK, "hooks-dir", found, "", default))
    elif not read and not relative and not rootless and release.since >= (4, 8):
        read = [default, override]
        findings.append(
            Finding(
                WARNING,
                "hooks-dir",
                f"{source} names no directory, so podman reads {listed(read)}; of hooks that run at one stage, those"
                " in the second alone",
                f"name the directories that you mean in {source}",
                source,
            )
        )
    else:
        found = f"podman reads {listed(read) or 'no directory'}, as {source} says"
        findings.append(Finding(OK, "hooks-dir", found, "", source))
    if override not in read and (ours := of_ours_in(override)):
        findings.append(
            Finding(
                WARNING,
                "hooks-dir",
                f"podman does not read {override}, and the options in {listed(ours)} are not in force",
                f'in {_place(source)}, under [engine], put hooks_dir = ["{default}", "{override}"]',
                override,
            )
        )
    return Directories(tuple(read), tuple(findings), release.name)


def _place(source: str) -> str:
    """Give the containers.conf in which hooks_dir is to be said: the one that says it, if it is not the distribution's."""
    return DROP_IN if not source or source.startswith(f"{USR}/") else source


def toml_parser() -> Callable[[str], Mapping[str, Any]] | None:
    """Give what makes an object of TOML, or raises ValueError; None: this Python cannot."""
    try:
        import tomllib  # type: ignore[import-not-found, unused-ignore]  # novm
    except ImportError:  # before Python 3.11
        return None
    parse: Callable[[str], Mapping[str, Any]] = tomllib.loads
    return parse


def _hooks_dir(
    path: str, release: Release, parse: Callable[[str], Mapping[str, Any]] | None
) -> list[str | dict[str, bool]] | None:
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
        lines = [line.lower() for line in text.splitlines()]
        if any("hooks_dir" in line for line in lines if not line.lstrip().startswith("#")):
            raise UnreadableError("it has hooks_dir, and this Python cannot read TOML (3.11 can)")
        return None
    try:
        engine = _value_of("engine", parse(text))
    except ValueError as error:
        raise UnreadableError(f"it is not valid TOML, and podman does not start with it: {error}") from error
    value = _value_of("hooks_dir", engine) if isinstance(engine, dict) else None
    if value is None:
        return None
    if not isinstance(value, list):
        raise UnreadableError(
            "its hooks_dir is not a list, and podman does not start with it"
        ) from ValueError()
    for item in value:
        if isinstance(item, str):
            continue
        if not (
            isinstance(item, dict) and all(key == "append" and isinstance(item[key], bool) for key in item)
        ):
            reason = "its hooks_dir is not a list of directories, and podman does not start with it"
            raise UnreadableError(reason) from ValueError()
        if release.since < (4, 8):
            reason = "its hooks_dir has an attribute, and podman before 4.8 does not start with it"
            raise UnreadableError(reason) from ValueError()
    return value


def _value_of(key: str, table: Mapping[str, Any]) -> Any:
    """Give what a table of TOML has for a key: podman takes one in other case, too (github.com/BurntSushi/toml)."""
    found = table.get(key)
    return found if found is not None else next((table[each] for each in table if each.lower() == key), None)
