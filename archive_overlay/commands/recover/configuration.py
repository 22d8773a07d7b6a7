"""How the hook would have been run for a container, by the hook configurations that are installed.

Source: oci-hooks(5), "when".
"""

from __future__ import annotations

import re

from archive_overlay.commands.check import host, report
from archive_overlay.commands.check.findings import PROBLEM
from archive_overlay.commands.check.hook_files import read_hook_files
from archive_overlay.commands.check.hooks_dirs import given_directories
from archive_overlay.errors import ArchiveError
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archive_overlay.commands.check.hook_files import HookFile
    from archive_overlay.commands.check.report import Parser
    from archive_overlay.log import Log
    from archive_overlay.settings import Settings


class Configuration(Record):
    """A hook configuration that runs this program.

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


def installed(hooks_dirs: Sequence[str], parse: Parser, log: Log) -> list[Configuration]:
    """Give the hook configurations that run this program.

    Args:
        hooks_dirs: where a person says that they are; none: where podman looks for them.
        parse: by which the hook reads its arguments.
        log: is told of those that cannot be used.

    Raises:
        ArchiveError: there are none.
    """
    here = host.this_host()
    directories = [given_directories(hooks_dirs)] if hooks_dirs else report.directories_of_podman(here)
    found: dict[str, Configuration] = {}
    for each in directories:
        for finding in each.findings:
            if finding.status == PROBLEM:
                log.warning(finding.found)
        for hook in read_hook_files(each.read).in_force:
            if hook.path in found or not report.is_this(hook, here) or not hook.is_meant_for_us:
                continue
            try:
                settings = report.understood(hook.arguments, parse)
            except ValueError as error:
                log.warning(f"{hook.path} has args with which the hook fails: {error}")
                continue
            found[hook.path] = Configuration(path=hook.path, settings=settings, hook=hook)
    if not found:
        where = " and ".join(dict.fromkeys(path for each in directories for path in each.read))
        raise ArchiveError(
            f"no hook configuration in {where or 'any directory'} runs this program, so nobody says how archives are made",
            hint="name the directory that has it by --hooks-dir",
        )
    return list(found.values())
