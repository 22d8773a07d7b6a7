"""How the hook would have been run for a container, by the hook configurations that are installed.

Source: oci-hooks(5), "when".
"""

from __future__ import annotations

import os
import re

from archive_overlay.commands.check import host, report
from archive_overlay.commands.check.findings import PROBLEM
from archive_overlay.commands.check.hook_files import read_hook_files
from archive_overlay.commands.check.hooks_dirs import OVERRIDE_DIRECTORY, given_directories
from archive_overlay.errors import ArchiveError
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archive_overlay.commands.check.hook_files import HookFile
    from archive_overlay.commands.check.report import Parser
    from archive_overlay.log import Log
    from archive_overlay.settings import Settings


_LONGEST = 1 << 20
# Python before 3.11 cannot read TOML, and no more of it is needed.
_HOOKS_DIR = re.compile(r"(?m)^\s*hooks_dir\s*=\s*\[([^\]]*)\]")
_NAME = re.compile(r"""["']([^"'\\]+)["']""")


class Configuration(Record):
    """A hook configuration that runs this program, or another copy of it.

    Attributes:
        path: of the file.
        settings: what its arguments say.
        hook: all that it says.
    """

    path: str
    settings: Settings
    hook: HookFile

    def is_for(self, annotations: Mapping[str, object]) -> bool:
        """Say whether an engine runs the hook for a container with these annotations.

        Other conditions are taken for met: rather a container too many is looked at.
        """
        when = self.hook.when
        if when.get("always") is False:
            return False
        return all(
            any(
                _matches(key, annotation) and isinstance(said, str) and _matches(value, said)
                for annotation, said in annotations.items()
            )
            for key, value in (when.get("annotations") or {}).items()
        )


def _matches(pattern: str, text: str) -> bool:
    try:
        return bool(re.search(pattern, text))
    except re.error:
        return True  # it means something to Go alone


def settings_for(
    configurations: Sequence[Configuration], annotations: Mapping[str, object]
) -> Settings | None:
    """Give the hook's settings for a container; None: no configuration is for it.

    Args:
        configurations: the installed ones.
        annotations: of the container.

    Raises:
        ArchiveError: two say different things. One of them may be a policy that the other one has not.
    """
    found = [each for each in configurations if each.is_for(annotations)]
    others = [each for each in found if each.settings != found[0].settings]
    if others:
        raise ArchiveError(
            f"{found[0].path} and {others[0].path} both apply to it and differ",
            hint="choose one directory with --hooks-dir",
        )
    return found[0].settings if found else None


def installed(hooks_dirs: Sequence[str], parse: Parser, log: Log) -> list[Configuration]:
    """Give the hook configurations that run this program.

    A policy must not be missed. So all directories count in which engines may look, whichever engine it was, and what cannot
    be understood is an error.

    Args:
        hooks_dirs: where a person says that they are; none: where podman and CRI-O may look for them.
        parse: by which the hook reads its arguments.
        log: is told of what is not known of these directories.

    Raises:
        ArchiveError: there are none, or one that cannot be used.
    """
    here = host.this_host()
    if hooks_dirs:
        places = [given_directories(hooks_dirs).read]
    else:
        places = []
        for each in report.directories_of_podman(here):
            for finding in each.findings:
                if finding.status == PROBLEM:
                    log.warning(finding.found)
            places.append(tuple(dict.fromkeys([*each.read, *directories_of_crio(), OVERRIDE_DIRECTORY])))
    found: dict[str, Configuration] = {}
    for place in places:
        files = read_hook_files(place)
        for finding in files.findings:
            if finding.status == PROBLEM:
                raise ArchiveError(finding.found)
        for hook in files.in_force:
            # Another copy of the program, perhaps, for which the policy is.
            if hook.path in found or not (
                hook.is_meant_for_us or (here.program and report.is_this(hook, here))
            ):
                continue
            try:
                settings = report.understood(hook.arguments, parse)
            except ValueError as error:
                raise ArchiveError(f"the hook cannot run with the args in {hook.path}: {error}") from error
            found[hook.path] = Configuration(path=hook.path, settings=settings, hook=hook)
    if not found:
        where = " and ".join(dict.fromkeys(path for place in places for path in place))
        raise ArchiveError(
            f"no hook configuration in {where or 'any directory'} runs this program, so the hook's options are unknown",
            hint="name its directory with --hooks-dir",
        )
    return list(found.values())


def directories_of_crio(top: str = "/etc/crio") -> list[str]:
    """Give the directories that CRI-O is told of, the last one first in rank.

    Args:
        top: the directory of its configuration.

    Source: crio.conf(5), `hooks_dir`; crio.conf.d(5).
    """
    try:
        names = sorted(os.listdir(f"{top}/crio.conf.d"))
    except OSError:
        names = []
    found: list[str] = []
    for path in (f"{top}/crio.conf", *(f"{top}/crio.conf.d/{name}" for name in names)):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read(_LONGEST).splitlines()
        except OSError:
            continue
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        for listed in _HOOKS_DIR.findall(text):
            found += _NAME.findall(listed)
    return [path for path in found if path.startswith("/")]
