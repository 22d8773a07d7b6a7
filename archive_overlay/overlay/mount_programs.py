"""Overlays that a process serves in user space: their options are nowhere but on its command line.

Source: proc(5); fuse-overlayfs(1).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def options_at(mount_point: str, mount_program: str) -> list[str] | None:
    """Give the mount options on the command line of the process that serves a mount point.

    Only processes of the hook's own user are believed: another user could run the same executable
    and name any directory as upperdir.

    Args:
        mount_point: absolute path.
        mount_program: path of the executable.

    Returns:
        The options, joined by commas or not; None: no process serves it.
    """
    programs = {mount_program, os.path.realpath(mount_program)}
    newest: tuple[int, list[str]] | None = None
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            # After a package upgrade the executable of a running process is "(deleted)".
            program = os.readlink(f"/proc/{pid}/exe")
            if program.removesuffix(" (deleted)") not in programs and program not in programs:
                continue
            if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
                continue
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                arguments = os.fsdecode(file.read()).rstrip("\0").split("\0")
            with open(f"/proc/{pid}/stat", "rb") as file:
                started = int(file.read().rpartition(b")")[2].split()[19])
        except OSError:
            continue  # the process has ended, or is none of ours
        options = _options_for(arguments[1:], mount_point)
        if options is not None and (newest is None or newest[0] < started):
            newest = (started, options)
    return newest[1] if newest else None


def _options_for(arguments: Sequence[str], mount_point: str) -> list[str] | None:
    options: list[str] = []
    where = ""
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            options.append(next(rest, ""))
        elif argument.startswith("-o"):
            options.append(argument[2:])
        elif not argument.startswith("-"):
            where = argument
    if not where or os.path.normpath(where) not in (mount_point, os.path.realpath(mount_point)):
        return None
    return options
