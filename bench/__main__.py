"""Measure the whole program beside the tools that do the same work.

The data lie in memory (/dev/shm), for else a disk would be measured rather than a program.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from bench import imports, machine, table
from bench.contenders import Contenders
from bench.measure import Starter, remove
from bench.rig import Bench, UnableError
from bench.works import BY_NAME_ALONE, WORKS

README = Path(__file__).with_name("README.md")


def main() -> None:
    """Measure what was asked for, and print the table."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # clean up, as after Ctrl-C
    # podman takes the path for a name: no underscore may stand beside a dash, or at the end.
    place = Path(tempfile.mkdtemp(prefix="archive_overlay-bench", suffix="x", dir=options.place))
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "SHIV_ROOT": str(place / "shiv"),
    }
    try:
        machine.find_memory(place, options.scale)
        with Starter(place, environment) as starter:
            make = Contenders(options.program.resolve(), place)
            about = machine.description(make.interpreter)
            about += f"\nMedians of {options.rounds} runs or more."
            if options.scale != 1:
                about += f" All sizes were multiplied by {options.scale:g}: this compares nothing."
            about = f"{about} {machine.warning()}".rstrip()
            print(about)
            bench = Bench(make, starter, place, rounds=options.rounds, scale=options.scale)
            rows = _measure(bench, options.works)
            starts = (
                imports.compare(make, bench.few, environment, options.rounds)
                if "start" in options.works
                else ""
            )
    finally:
        remove(place)
    if starts:
        print(f"\n{starts}")
    if unmet := [f"\n    {row.work}: {row.tool}" for row in rows if row.met == table.UNMET]:
        print("\nNot met:" + "".join(unmet))
    if options.update_readme:
        page: Path = options.readme
        page.write_text(table.updated(page.read_text(), f"{about}\n\n{table.markdown(rows)}\n{starts}"))


def _measure(bench: Bench, works: list[str]) -> list[table.Row]:
    """Run works, and print each one's rows as soon as there are any."""
    print(f"\n{table.heading()}")
    rows: list[table.Row] = []
    for name in works:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        try:
            found = list(WORKS[name](bench))
        except UnableError as reason:
            found = [table.Row(name, f"NOT MEASURED: {reason}")]
        print(table.text(found), flush=True)
        rows += found
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m bench",
        description="Measure the program beside the tools that do the same work.",
        epilog=f"Works: {', '.join(WORKS)}. A name also stands for those that begin with it and a dash.",
    )
    parser.add_argument("program", type=Path, help="the built program")
    parser.add_argument(
        "works", nargs="*", metavar="WORK", help="what is measured (default: all, but not very-long-history)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often (default: 5)")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="X",
        help="multiply all sizes, for trying this program out",
    )
    parser.add_argument(
        "--place", type=Path, default=Path("/dev/shm"), metavar="DIR", help="for the data (default: /dev/shm)"
    )
    parser.add_argument("--update-readme", action="store_true", help="write the table into bench/README.md")
    parser.add_argument(
        "--readme", type=Path, default=README, metavar="FILE", help="write into this one instead"
    )
    options = parser.parse_intermixed_args()
    for word in options.works:
        if not any(_means(word, name) for name in WORKS):
            parser.error(f"there is no work {word}, only {', '.join(WORKS)}")
    words = options.works or WORKS.keys() - BY_NAME_ALONE
    options.works = [name for name in WORKS if any(_means(word, name) for word in words)]
    return options


def _means(word: str, name: str) -> bool:
    return name == word or name.startswith(f"{word}-")


if __name__ == "__main__":
    main()
