"""Running contenders in turn, and keeping what each run took."""

from __future__ import annotations

import marshal
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType


@dataclass(frozen=True)
class Contender:
    """A command that does some work.

    Attributes:
        name: as the table has it.
        command: its arguments; the first is looked up on PATH.
        makes: what is there after it has run, and is removed again; None: nothing.
        undo: how to remove that; None: by deleting it.
        before: is called before each run.
        stdin: the file that it gets on standard input.
        needs: the programs that it takes.
        at_most: how long ours may take, in times of this one's median; None: as long as it takes.
        cpu_at_most: the same for CPU time.
    """

    name: str
    command: Sequence[str | Path]
    makes: Path | None = None
    undo: Callable[[], None] | None = None
    before: Callable[[], None] | None = None
    stdin: Path = Path("/dev/null")
    needs: tuple[str, ...] = ()
    at_most: float | None = None
    cpu_at_most: float | None = None

    def missing(self) -> list[str]:
        """Give the programs that are not installed."""
        return [need for need in (str(self.command[0]), *self.needs) if not shutil.which(need)]


@dataclass
class Result:
    """What the runs of a contender took.

    Attributes:
        times: seconds of each run.
        cpu_times: seconds on processors, of all its processes together.
        memory: the largest peak memory of a run's largest process, in MiB.
        size: bytes of the file that it makes; 0 for a directory.
    """

    times: list[float] = field(default_factory=list)
    cpu_times: list[float] = field(default_factory=list)
    memory: float = 0
    size: int = 0

    @property
    def seconds(self) -> float:
        """The median of the times."""
        return statistics.median(self.times)

    @property
    def cpu_seconds(self) -> float:
        """The median of the CPU times."""
        return statistics.median(self.cpu_times)


class Starter:
    """The process that starts the contenders. Use it as a context manager.

    Args:
        place: a directory for what they write to standard error.
        environment: of all contenders.
    """

    def __init__(self, place: Path, environment: Mapping[str, str]) -> None:
        self._stderr = place / "stderr"
        self._environment = dict(environment)
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(Path(__file__).with_name("starter.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Starter:  # noqa: PYI034, Self is not in Python 3.9
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, contender: Contender) -> tuple[float, float, float]:
        """Run a contender once, and give its seconds, its CPU seconds and its peak memory in MiB."""
        assert self._process.stdin
        assert self._process.stdout
        arguments = [shutil.which(str(contender.command[0])) or "", *map(str, contender.command[1:])]
        order = (arguments, self._environment, str(contender.stdin), str(self._stderr))
        self._process.stdin.write(marshal.dumps(order))
        self._process.stdin.flush()
        # (No marshal here: it would replace the exception that Ctrl-C raises.)
        seconds, cpu, kibibytes, status = self._process.stdout.readline().split()
        if int(status) != 0 or (contender.makes and not contender.makes.exists()):
            sys.exit(f"{' '.join(arguments)} failed with status {int(status)}:\n{self._stderr.read_text()}")
        return float(seconds), float(cpu), int(kibibytes) / 1024


def race(starter: Starter, contenders: Sequence[Contender], rounds: int) -> dict[str, Result]:
    """Run contenders in turn, so that whatever else the machine does falls on all of them.

    Args:
        contenders: those for which a program is missing are left out.
        rounds: how often each is run.

    Returns:
        Results by the names of the contenders that ran.
    """
    runners = [contender for contender in contenders if not contender.missing()]
    results = {contender.name: Result() for contender in runners}
    for _ in range(rounds):
        for contender in runners:
            if contender.before:
                contender.before()
            seconds, cpu, memory = starter.run(contender)
            result = results[contender.name]
            result.times.append(seconds)
            result.cpu_times.append(cpu)
            result.memory = max(result.memory, memory)
            if contender.makes:
                result.size = contender.makes.stat().st_size if contender.makes.is_file() else 0
                if contender.undo:
                    contender.undo()
                else:
                    remove(contender.makes)
    return results


def remove(tree: Path) -> None:
    """Delete a file or a directory with all that is in it."""
    subprocess.run(["rm", "-rf", "--", tree], check=True)
