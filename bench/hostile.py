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

    from bench.measure import Contender
    from bench.rig import Bench

# In MiB, of each process. The zstd program, which takes 10 to 25 MiB of its own, is one of them.
_MOST = 64
_IN_ALL_FORMS = ("copy", "tar", "tar.gz", "tar.zst", "oci")
# A layer cannot have a path of more than 4,095 bytes, or more than 1 MiB of attributes.
_BUT_LAYERS = ("copy", "tar", "tar.gz", "tar.zst")


def memory(bench: Bench) -> Iterator[Row]:
    """Peak memory, trees that are made to take it."""

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
            _BUT_LAYERS,
            lambda top: hostile.dig(top, times(4000)),
            False,
        ),
        (
            "3,000 files with two names below 1,000 directories",
            _BUT_LAYERS,
            lambda top: hostile.dig(top, times(1000), files=times(3000)),
            False,
        ),
        (
            "200,000 files with long names in a directory",
            _IN_ALL_FORMS,
            lambda top: hostile.spread(top, times(200_000)),
            False,
        ),
        (
            "20,000 files with long names in each of 10 directories, one in the other",
            ("copy", "tar"),
            lambda top: hostile.nest(top, 10, times(20_000)),
            False,
        ),
        (
            "100,000 files with two names",
            _IN_ALL_FORMS,
            lambda top: hostile.dig(top, 1, files=times(100_000)),
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
            _BUT_LAYERS,
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
            run = _saving(bench, method, tree)
            if run.missing():
                yield Row(work, run.name, f"no {', '.join(run.missing())}")
                continue
            result = bench.race(run, rounds=1)[run.name]
            yield Row(
                work,
                run.name,
                f"{result.seconds:.3f}",
                cpu=f"{result.cpu_seconds:.3f}",
                at_most=f"{_MOST} MiB",
                met=judged(result.memory <= _MOST),
                memory=f"{result.memory:.0f}",
            )
        remove(tree)


def _saving(bench: Bench, method: str, tree: Path) -> Contender:
    name = f"{OURS}, {method}"
    if method != "oci":
        return bench.make.ours(method, tree, name=name)
    return bench.make.ours("oci", tree, name=name, tag="hostile")
