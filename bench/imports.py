"""What a start imports, and what that costs."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

from bench.contenders import OURS, SHIV
from bench.measure import remove

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.contenders import Contenders
    from bench.measure import Contender

_LINE = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", re.MULTILINE)
_WORTH_A_ROW = 500  # microseconds


def compare(make: Contenders, upper: Path, environment: Mapping[str, str], rounds: int) -> str:
    """Give a table in Markdown of what the whole hook imports for a copy, plain and as it is shipped.

    Args:
        make: makes the commands.
        upper: what is copied.
        environment: of the hook.
        rounds: of so many runs the fastest counts.
    """
    shiv = make.plain_shiv_file(upper, by_hand=False)
    if shiv.missing():
        return "What a start imports was not compared: there is no shiv."
    before = _profile(shiv, environment, rounds + 1)  # the first one extracts itself
    after = _profile(make.ours("copy", upper, by_hand=False), environment, rounds)
    table = [
        f"| ms to import | {SHIV} | {OURS} |",
        "| --- | ---: | ---: |",
        f"| all of them | {_milliseconds(sum(before.values()))} | {_milliseconds(sum(after.values()))} |",
    ]
    for name in sorted(
        before.keys() | after.keys(), key=lambda name: (-max(before[name], after[name]), name)
    ):
        if max(before[name], after[name]) >= _WORTH_A_ROW:
            table.append(f"| `{name}` | {_milliseconds(before[name])} | {_milliseconds(after[name])} |")
    return "\n".join(table)


def _profile(contender: Contender, environment: Mapping[str, str], rounds: int) -> Counter[str]:
    """Run a Python program, and give the microseconds that each package took, without what it imports."""
    with open(contender.command[0], "rb") as program:
        # All after the interpreter is one argument (execve(2), "Interpreter scripts").
        interpreter, *options = program.readline()[2:].decode().strip().split(maxsplit=1)
    runs = []
    for _ in range(rounds):
        with open(contender.stdin, "rb") as stdin:
            done = subprocess.run(
                [interpreter, "-X", "importtime", *options, *contender.command],
                check=True,
                stdin=stdin,
                capture_output=True,
                text=True,
                env=dict(environment),
            )
        assert contender.makes
        remove(contender.makes)
        packages: Counter[str] = Counter()
        for time, module in _LINE.findall(done.stderr):
            packages[module.partition(".")[0]] += int(time)
        runs.append(packages)
    return min(runs, key=lambda run: sum(run.values()))


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:.1f}" if microseconds else ""
