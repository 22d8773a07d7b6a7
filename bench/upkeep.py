"""The upkeep of a long history, beside restic: adding to it, looking at it, and having less of it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import history
from bench.measure import Contender, remove

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Bench
    from bench.table import Row

_REVISIONS, _FEWEST = 1_000, 4
_CHANGED = 10
# Of so many revisions restic has one as a snapshot: each takes it seconds.
_EVERY = 20
# One of so many revisions stays, or is squashed.
_PART = 10


def some(bench: Bench) -> Iterator[Row]:
    """Keep 1,000 revisions, beside restic with every twentieth of them."""
    yield from _beside_restic(bench, _EVERY)


def every_one(bench: Bench) -> Iterator[Row]:
    """Keep 1,000 revisions, beside restic with all of them."""
    yield from _beside_restic(bench, 1)


class _States:
    """A tree of 30,000 files, of which 10 in one directory change at a time.

    Attributes:
        top: the tree.
        upper: an upperdir with what has changed last.
    """

    def __init__(self, bench: Bench) -> None:
        self.top = bench.small_files("states", 1)
        self.upper = bench.place / "states.upper"
        self._number = 0
        by_directory: dict[Path, list[Path]] = {}
        for file in sorted(self.top.rglob("*.txt")):
            if not file.is_symlink() and file.stat().st_nlink == 1:
                by_directory.setdefault(file.parent, []).append(file)
        self._directories = list(by_directory.values())

    def change(self) -> None:
        """Change some files, as a new container would."""
        self._number += 1
        files = self._directories[self._number % len(self._directories)]
        changed = random.Random(self._number).sample(files, min(_CHANGED, len(files)))
        for file in changed:
            line = b"change %d\n" % self._number
            file.write_bytes(line + file.read_bytes()[len(line) :])
        remove(self.upper)
        self.upper.mkdir()
        names = [file.relative_to(self.top) for file in changed]
        subprocess.run(["cp", "-a", "--parents", *names, self.upper], cwd=self.top, check=True)


class _Restic:
    """restic and one of its repositories.

    Args:
        place: the repository's directory, which also has restic's cache.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """Return a command's arguments."""
        files = f"--repo={self.place / 'repository'}", f"--cache-dir={self.place / 'cache'}"
        return ["restic", *arguments, *files, f"--password-file={self.place / 'password'}"]

    def run(self, *arguments: str | Path) -> str:
        """Run a command, and return its output; "" where there is no restic."""
        if not shutil.which("restic"):
            return ""
        return subprocess.run(self.command(*arguments), check=True, capture_output=True, text=True).stdout

    def snapshots(self) -> list[str]:
        """Return the names of the snapshots, the oldest first."""
        found = json.loads(self.run("snapshots", "--json") or "[]")
        return [each["short_id"] for each in sorted(found, key=lambda each: each["time"])]


def _beside_restic(bench: Bench, every: int) -> Iterator[Row]:
    """Measure each step with a history and a repository of the same states."""
    revisions = max(_FEWEST, int(_REVISIONS * bench.scale))
    every = min(every, revisions // 4)
    states = _States(bench)
    layout, bundle = history.layout_with_base(bench)
    remove(bundle)
    restic = _Restic(bench.place / "restic")
    restic.place.mkdir()
    (restic.place / "password").write_text("of the benchmark")
    restic.run("init", "--repository-version=2")
    restic.run("backup", states.top)  # the base
    states.change()
    append = bench.make.ours("oci", states.upper, name="append", out=layout, tag="main", parent="base")
    append = replace(append, makes=None)
    for number in range(1, revisions + 1):
        bench.race(append, rounds=1)
        if number % every == 0:
            restic.run("backup", states.top)
        states.change()
    work = f"{revisions:,} revisions of {_CHANGED} changed files on 30,000"
    yield from bench.compare(
        work,
        Contender("log", [str(bench.make.program), "log", f"{layout}:main"]),
        Contender("restic snapshots", restic.command("snapshots")),
    )
    for ours, theirs in _steps(bench, layout, restic, revisions, every):
        yield from bench.compare(work, ours, replace(theirs, at_most=1.0))
    backup = Contender(
        "restic backup", restic.command("backup", states.top), before=states.change, at_most=1.0
    )
    yield from bench.compare(work, replace(append, before=states.change), backup)
    for path in (layout, restic.place, states.top, states.upper):
        remove(path)


def _steps(
    bench: Bench, layout: Path, restic: _Restic, revisions: int, every: int
) -> Iterator[tuple[Contender, Contender]]:
    """Give the steps of ours and of restic that do the same: first those that change nothing.

    The base is restic's first snapshot, and our revision 1: so what changes first is revision 2.
    """
    program, main = str(bench.make.program), f"{layout}:main"
    snapshots = restic.snapshots() or [""] * (1 + revisions // every)
    yield Contender("verify", [program, "verify", layout]), Contender("restic check", restic.command("check"))
    yield (
        Contender("verify --read-data", [program, "verify", "--read-data", layout]),
        Contender("restic check --read-data", restic.command("check", "--read-data")),
    )
    out, restored = bench.place / "extracted", bench.place / "restored"
    for number in (revisions // every // 2 * every, revisions // every * every):
        snapshot = snapshots[number // every]
        yield (
            Contender(
                f"extract @{number + 1}",
                [program, "extract", "--no-fsync", f"{main}@{number + 1}", out],
                makes=out,
            ),
            Contender(
                f"restic restore, {'the last' if number == revisions else 'one in the middle'}",
                restic.command("restore", snapshot, "--target", restored),
                makes=restored,
            ),
        )
    # Each run changes a copy of its own.
    copied, copied_restic = layout.with_name("copied"), _Restic(restic.place.with_name("copied-restic"))

    def changing(name: str, of: Path, command: list[str | Path], copy: Path) -> Contender:
        return Contender(name, command, makes=copy, before=lambda: _copy(of, copy))

    def pair(
        name: str,
        arguments: list[str | Path],
        their_name: str,
        theirs: list[str | Path],
        sources: tuple[Path, Path] = (layout, restic.place),
    ) -> tuple[Contender, Contender]:
        return (
            changing(name, sources[0], [program, *arguments], copied),
            changing(their_name, sources[1], copied_restic.command(*theirs), copied_restic.place),
        )

    few = max(1, revisions // _PART)
    first = revisions // 2 // every * every + 1
    last = first - 1 + max(2 * every, few)
    squashed = snapshots[first // every + 1 : last // every]
    prune: list[str | Path] = ["prune", "--no-fsync", f"--keep-last={few}", f"{copied}:main"]
    forget: list[str | Path] = ["forget", f"--keep-last={max(1, few // every)}"]
    yield pair(
        f"squash @{first + 1}..{last + 1}",
        ["squash", "--no-fsync", f"{copied}:main@{first + 1}..{last + 1}"],
        "restic forget --prune, of these",
        ["forget", *squashed, "--prune"],
    )
    yield pair(f"prune --keep-last {few}", prune, "restic forget --prune, as many", [*forget, "--prune"])
    gc: list[str | Path] = ["gc", "--no-fsync", "--older=0", copied]
    yield pair("gc, nothing to do", gc, "restic prune, nothing to do", ["prune"])
    # What the two have left after the same step.
    _copy(layout, copied)
    _copy(restic.place, copied_restic.place)
    subprocess.run([program, *prune], check=True, capture_output=True)
    copied_restic.run(*forget)
    left = (
        copied.rename(layout.with_name("left")),
        copied_restic.place.rename(layout.with_name("left-restic")),
    )
    yield pair("gc, after prune", gc, "restic prune, after forget", ["prune"], left)
    for path in left:
        remove(path)


def _copy(source: Path, copy: Path) -> None:
    """Copy a directory."""
    subprocess.run(["cp", "-a", source, copy], check=True)
