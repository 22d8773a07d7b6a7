"""What all works share: the commands, the data, how often to run, and rows of the table."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from bench import data
from bench.measure import Contender, race
from bench.table import Row, judged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.contenders import Contenders
    from bench.measure import Result, Starter

FILES, DIRECTORIES = 30_000, 520
LARGE = 700_000_000


class UnableError(Exception):
    """This machine cannot do the work; the message says why."""


class Bench:
    """What all works share: commands, data (made when first asked for), how often to run.

    Args:
        contenders: makes the commands.
        starter: runs them.
        place: a directory for the data.
        rounds: how often each command is run.
        scale: what all sizes are multiplied by.
    """

    def __init__(
        self, contenders: Contenders, starter: Starter, place: Path, *, rounds: int, scale: float
    ) -> None:
        self.make = contenders
        self.rounds = rounds
        self.scale = scale
        self.place = place
        self._starter = starter

    @cached_property
    def few(self) -> Path:
        """A change set of 10 entries."""
        return data.small_files(self.place / "few", files=9, directories=1)

    @cached_property
    def many(self) -> Path:
        """A change set of 30,000 small files."""
        return self.small_files("many", 1)

    @cached_property
    def large(self) -> Path:
        """A change set of one file of 700 MB."""
        return data.large_file(self.place / "large", int(LARGE * self.scale))

    def small_files(self, name: str, times: int) -> Path:
        """Make a change set of so many times 30,000 small files."""
        scale = self.scale * times
        return data.small_files(
            self.place / name, files=int(FILES * scale), directories=max(1, int(DIRECTORIES * scale))
        )

    def race(self, *contenders: Contender, rounds: int = 0) -> dict[str, Result]:
        """Run contenders in turn. See `measure.race`."""
        return race(self._starter, contenders, rounds or self.rounds)

    def compare(self, work: str, ours: Contender, *peers: Contender, rounds: int = 0) -> Iterator[Row]:
        """Run ours and its peers in turn, and give a row for each."""
        yield from compared(work, self.race(ours, *peers, rounds=rounds), ours, *peers)


def compared(work: str, results: dict[str, Result], ours: Contender, *peers: Contender) -> Iterator[Row]:
    """Give a row for each contender."""
    for contender in (ours, *peers):
        result = results.get(contender.name)
        if not result:
            yield Row(work, contender.name, f"no {', '.join(contender.missing())}")
            continue
        yield _row(work, contender, result, results.get(ours.name) if contender is not ours else None)


def _row(work: str, contender: Contender, result: Result, ours: Result | None) -> Row:
    """Give a contender's row, with our ratio to it if there is one."""
    row = Row(
        work,
        contender.name,
        f"{result.seconds:.3f}",
        cpu=f"{result.cpu_seconds:.3f}",
        memory=f"{result.memory:.0f}",
    )
    if not ours:
        return row
    ratio, cpu_ratio = ours.seconds / result.seconds, ours.cpu_seconds / result.cpu_seconds
    limits, met = [], []
    if contender.at_most:
        limits.append(f"{contender.at_most:.2f} x")
        met.append(ratio <= contender.at_most)
    if contender.cpu_at_most:
        limits.append(f"CPU {contender.cpu_at_most:.2f} x")
        met.append(cpu_ratio <= contender.cpu_at_most)
    return replace(
        row,
        ratio=f"{ratio:.2f} x",
        cpu_ratio=f"{cpu_ratio:.2f} x",
        at_most=", ".join(limits),
        met=judged(all(met)) if met else "",
    )
