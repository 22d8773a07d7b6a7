"""How much memory a command takes at its peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import hooks

# A small process of its own, for what a process had when it became another program counts for the other one (getrusage(2)).
_STARTER = """
import os, sys
report, *command = sys.argv[1:]
_, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ), 0)
with open(report, "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(
    subject: hooks.Bundle | bytes, directory: Path, *arguments: str | Path
) -> tuple[hooks.Result, float]:
    """Run the hook, or one of the commands, and measure it.

    Args:
        subject: the bundle of the stopped container, or the bytes to put on stdin.
        directory: where to write.
        arguments: the command line.

    Returns:
        What became of it, and the peak memory of its largest process in MiB: the second process that writes counts.
    """
    report = directory / "memory"
    state = subject.state() if isinstance(subject, hooks.Bundle) else subject
    done = subprocess.run(
        [sys.executable, "-IS", "-c", _STARTER, report, *hooks.command(), *map(str, arguments)],
        input=state,
        capture_output=True,
        env={},
        cwd=directory,
        check=False,
    )
    result = hooks.Result(
        done.returncode,
        done.stdout.decode(errors="surrogateescape"),
        done.stderr.decode(errors="surrogateescape"),
    )
    return result, int(report.read_text()) / 1024
