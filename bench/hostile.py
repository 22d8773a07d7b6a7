"""Peak memory for trees that a container makes to have the hook take memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.measure import remove
from bench.table import Row, judged
from tests.support import hostile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.rig import Bench

# How much more than an ordinary archive takes, in MiB.
_MORE = 64


def memory(bench: Bench) -> Iterator[Row]:
    """Peak memory, trees that are made to take it."""
    ordinary = bench.make.ours("copy", bench.few)
    limit = bench.race(ordinary, rounds=1)[OURS].memory + _MORE

    def times(number: int) -> int:
        return max(1, int(number * bench.scale))

    def decorated(top: Path, files: int, attributes: int) -> None:
        top.mkdir()
        for number in range(files):
            (top / f"{number}").touch()
            hostile.decorate(top / f"{number}", attributes)

    trees: list[tuple[str, tuple[str, ...], Callable[[Path], None], bool]] = [
        (
            "4,000 directories, one in the other",
            ("copy", "tar"),
            lambda top: hostile.dig(top, times(4000)),
            False,
        ),
        (
            "3,000 files with two names below 1,000 directories",
            ("copy", "tar"),
            lambda top: hostile.dig(top, times(1000), files=times(3000)),
            False,
        ),
        (
            "200,000 files with long names in a directory",
            ("copy", "tar"),
            lambda top: hostile.spread(top, times(200_000)),
            False,
        ),
        (
            "a file with 5,900 attributes of 64 KiB",
            ("copy",),  # no tar can have that in one header
            lambda top: decorated(top, 1, times(hostile.MOST_ATTRIBUTES)),
            True,
        ),
        (
            "64 files with 200 attributes of 64 KiB",
            ("copy", "tar"),
            lambda top: decorated(top, times(64), times(200)),
            True,
        ),
    ]
    for name, methods, make, needs_root in trees:
        work = f"peak memory, {name}"
        if needs_root and os.geteuid() != 0:
            yield Row(work, "NOT MEASURED: only root can make so many attributes in memory")
            continue
        tree = bench.place / "hostile"
        make(tree)
        for method in methods:
            run = bench.make.ours(method, tree, name=f"{OURS}, {method}")
            result = bench.race(run, rounds=1)[run.name]
            yield Row(
                work,
                run.name,
                f"{result.seconds:.3f}",
                at_most=f"{limit:.0f} MiB",
                met=judged(result.memory <= limit),
                memory=f"{result.memory:.0f}",
            )
        remove(tree)
