"""The works that are measured, each with its peers and what it may take.

A work is a function from a `Bench` to rows of the table. The limits are the least that the
project promises; the README says how to read the table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import carry, data, history, hostile, upkeep
from bench.contenders import AS_MUCH, OURS
from bench.measure import remove
from bench.rig import LARGE, Bench, UnableError, compared
from bench.table import Row, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


MANY_TIMES = 10
DELETIONS = 2_000
METHODS = ("copy", "tar", "tar.gz", "tar.zst")

# What takes some milliseconds is run so many times as often as the rest.
_SHORT = 6
# "The same" and "linear" are measured, so they have a tolerance.
_SAME, _LINEAR = 1.1, 1.15
_ONE_JOB = ("--jobs", "1")


def start(bench: Bench) -> Iterator[Row]:
    """Whole hook, 10 entries, copy."""
    for title, options, by_hand, at_most in (
        ("as installed, --syslog", ("--syslog",), False, 2.6),
        ("without options", (), False, 2.3),
        ("--no-fsync --bundle DIR", (), True, 2.6),
    ):
        shiv = bench.make.plain_shiv_file(bench.few, by_hand=by_hand, options=options, at_most=0.5)
        if not shiv.missing():
            bench.race(shiv, rounds=1)  # extracts itself
        yield from bench.compare(
            f"whole hook, 10 entries, copy ({title})",
            bench.make.ours("copy", bench.few, by_hand=by_hand, options=options),
            bench.make.bare_interpreter(at_most=at_most),
            shiv,
            rounds=bench.rounds * _SHORT,
        )


def copy(bench: Bench) -> Iterator[Row]:
    """Copy, 30,000 files."""
    yield from bench.compare(
        "copy, 30,000 files",
        bench.make.ours("copy", bench.many),
        bench.make.cp(bench.many, at_most=0.7, cpu_at_most=1.2),
        bench.make.rsync(bench.many),
    )
    yield from bench.compare(
        "copy, 30,000 files, --jobs 1",
        bench.make.ours("copy", bench.many, options=_ONE_JOB),
        bench.make.cp(bench.many, at_most=1.0),
    )


def copy_large(bench: Bench) -> Iterator[Row]:
    """Copy, one file of 700 MB."""
    yield from bench.compare(
        "copy, one file of 700 MB",
        bench.make.ours("copy", bench.large),
        bench.make.cp(bench.large, at_most=1.1),
        bench.make.rsync(bench.large),
    )


def copy_reflink(bench: Bench) -> Iterator[Row]:
    """Copy, one file of 700 MB on xfs."""
    work = "copy, one file of 700 MB on a file system with reflinks (xfs)"
    with _xfs(bench.place, int(LARGE * bench.scale)) as xfs:
        upper = data.large_file(xfs / "upper", int(LARGE * bench.scale))
        subprocess.run(["sync", "-f", upper], check=True)  # else who copies it first has to wait for that
        out = xfs / "out"
        shares: list[float] = []

        def measure_and_remove() -> None:
            shares.append(_shared(out / "large"))
            remove(out)

        ours = bench.make.ours("copy", upper, out=out, undo=measure_and_remove)
        yield from bench.compare(work, ours, bench.make.cp(upper, out=xfs / "theirs"))
        yield Row(
            work,
            "data in shared extents",
            ratio=f"{min(shares):.0%}",
            at_most="all",
            met=judged(min(shares) == 1),
        )


def copy_changed(bench: Bench) -> Iterator[Row]:
    """Copy, one file of 700 MB of a lower layer of which 1 MiB changed, on xfs."""
    work = "copy, one file of 700 MB of which 1 MiB changed, on a file system with reflinks (xfs)"
    with _xfs(bench.place, int(LARGE * bench.scale)) as xfs:
        lower = data.large_file(xfs / "lower", int(LARGE * bench.scale))
        subprocess.run(["sync", "-f", lower], check=True)
        upper = data.changed_a_little(lower, "large", by=xfs)
        out = xfs / "out"
        parts: list[float] = []

        def measure_and_remove() -> None:
            parts.append(_shared_with(out / "large", lower / "large"))
            remove(out)

        ours = bench.make.ours("copy", upper, out=out, undo=measure_and_remove)
        yield from bench.compare(work, ours, bench.make.cp(upper, out=xfs / "theirs"))
        # The kernel does not clone a last block that is not full when it copies a file up.
        others = (data.CHANGED + os.statvfs(lower).f_bsize) / (lower / "large").stat().st_size
        yield Row(
            work,
            "data in extents shared with the lower layer",
            ratio=f"{min(parts):.1%}",
            at_most="all but 1 MiB",
            met=judged(min(parts) >= 1 - others),
        )


def tar(bench: Bench) -> Iterator[Row]:
    """Tar, 30,000 files."""
    yield from bench.compare(
        "tar, 30,000 files",
        bench.make.ours("tar", bench.many),
        bench.make.tar(bench.many, "cf", *AS_MUCH, at_most=0.82, cpu_at_most=1.76),
        bench.make.tar(bench.many, "cf"),
    )
    yield from bench.compare(
        "tar, 30,000 files, --jobs 1",
        bench.make.ours("tar", bench.many, options=_ONE_JOB),
        bench.make.tar(bench.many, "cf", *AS_MUCH, at_most=1.3),
    )


def tar_gz(bench: Bench) -> Iterator[Row]:
    """Tar.gz, 30,000 files."""
    yield from bench.compare(
        "tar.gz, 30,000 files",
        bench.make.ours("tar.gz", bench.many),
        bench.make.tar_through("pigz", bench.many, *AS_MUCH, at_most=0.93, cpu_at_most=1.08),
        bench.make.tar_through("pigz", bench.many),
        bench.make.tar(bench.many, "czf", *AS_MUCH),
        bench.make.tar(bench.many, "czf"),
    )


def tar_zst(bench: Bench) -> Iterator[Row]:
    """Tar.zst, 30,000 files."""
    yield from bench.compare(
        "tar.zst, 30,000 files",
        bench.make.ours("tar.zst", bench.many),
        bench.make.tar_through("zstd -T0", bench.many, *AS_MUCH),
        bench.make.tar_through("zstd -T0", bench.many),
    )


def tar_gz_large(bench: Bench) -> Iterator[Row]:
    """Tar.gz, one file of 700 MB."""
    work = "tar.gz level 6, one file of 700 MB"
    ours = bench.make.ours("tar.gz", bench.large)
    gzip = bench.make.tar(bench.large, "czf", at_most=0.5)
    pigz = bench.make.tar_through("pigz", bench.large, at_most=1.05)
    results = bench.race(ours, pigz, gzip)
    yield from compared(work, results, ours, pigz, gzip)
    if gzip.name in results:
        ratio = results[ours.name].size / results[gzip.name].size
        yield Row(
            work,
            "size, beside tar czf",
            ratio=f"{ratio:.3f} x",
            at_most="1.010 x",
            met=judged(ratio <= 1.01),
        )


def tar_zst_large(bench: Bench) -> Iterator[Row]:
    """Tar.zst, one file of 700 MB."""
    yield from bench.compare(
        "tar.zst, one file of 700 MB",
        bench.make.ours("tar.zst", bench.large),
        bench.make.tar_through("zstd -T0", bench.large, at_most=1.1),
    )


def move(bench: Bench) -> Iterator[Row]:
    """Move, 10 entries and 30,000 files."""
    names = {"moved-many": f"{OURS}, 30,000 files", "moved-few": f"{OURS}, 10 entries"}
    contenders = []
    for tree, name in names.items():
        bundle = bench.place / tree  # what is in it is the engine's, and may be moved
        bundle.mkdir()
        upper, out = bundle / "upper", bench.place / f"{tree}.archive"
        if tree == "moved-many":
            bench.small_files(f"{tree}/upper", 1)
        else:
            data.small_files(upper, files=9, directories=1)
        at_most = _SAME if tree == "moved-few" else None
        undo = _putting_back(upper, out)
        ours = bench.make.ours("move", upper, name=name, bundle=bundle, out=out, undo=undo, at_most=at_most)
        contenders.append(ours)
    yield from bench.compare("move, any size, one file system", *contenders, rounds=bench.rounds * _SHORT)
    for tree in names:
        remove(bench.place / tree)


def deletions(bench: Bench) -> Iterator[Row]:
    """2,000 deletions and nothing else."""
    tree = data.deletions(bench.place / "deletions", max(1, int(DELETIONS * bench.scale)))
    yield from bench.compare(
        "copy, 2,000 deletions and nothing else",
        bench.make.ours("copy", tree),
        bench.make.cp(tree),
        bench.make.rsync(tree),
    )
    yield from bench.compare(
        "tar.gz, 2,000 deletions and nothing else",
        bench.make.ours("tar.gz", tree),
        bench.make.tar(tree, "czf"),
    )


def growth(bench: Bench) -> Iterator[Row]:
    """Time and peak memory, 300,000 files beside 30,000."""
    very_many = bench.small_files("very-many", MANY_TIMES)
    for method in METHODS:
        most = bench.make.ours(method, very_many, name=f"{OURS}, 300,000 files")
        many = bench.make.ours(method, bench.many, name=f"{OURS}, 30,000 files", at_most=MANY_TIMES * _LINEAR)
        # What grows in the kernel grows for its peer too.
        peers = [replace(bench.make.cp(very_many), name="cp -a, 300,000 files")] if method == "copy" else []
        results = bench.race(most, many, *peers)
        yield from compared(f"growth from 30,000 to 300,000 files, {method}", results, most, many, *peers)
        for run, limit in ((many, 40), (most, 64)):
            if run.name in results:
                yield _memory(f"peak memory, {method}", run.name, results[run.name].memory, limit)
    remove(very_many)


def memory(bench: Bench) -> Iterator[Row]:
    """Peak memory, one file of 700 MB beside one of 70 MB."""
    tenth = data.large_file(bench.place / "tenth", int(LARGE * bench.scale / 10))
    for method in METHODS:
        small = bench.make.ours(method, tenth, name=f"{OURS}, one file of 70 MB")
        large = bench.make.ours(method, bench.large, name=f"{OURS}, one file of 700 MB")
        results = bench.race(small, large, rounds=1)
        if large.name in results:
            least, most = results[small.name].memory, results[large.name].memory
            yield _memory(f"peak memory, {method}", small.name, least)
            yield _memory(f"peak memory, {method}", large.name, most, least * _SAME)
    remove(tenth)


WORKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "start": start,
    "copy": copy,
    "copy-large": copy_large,
    "copy-reflink": copy_reflink,
    "copy-changed": copy_changed,
    "tar": tar,
    "tar.gz": tar_gz,
    "tar.zst": tar_zst,
    "tar.gz-large": tar_gz_large,
    "tar.zst-large": tar_zst_large,
    "move": move,
    "deletions": deletions,
    "growth": growth,
    "memory": memory,
    "memory-hostile": hostile.memory,
    "revision": history.revision,
    "extract": history.extract,
    "history": history.many,
    "load-as": carry.load_as,
    "push-to": carry.push_to,
    "upkeep": upkeep.some,
    "very-long-history": history.very_many,
    "full-upkeep": upkeep.every_one,
}
# What takes too long to be done with all others.
BY_NAME_ALONE = {"very-long-history", "full-upkeep"}


def _memory(work: str, tool: str, memory: float, limit: float = 0) -> Row:
    if not limit:
        return Row(work, tool, memory=f"{memory:.0f}")
    return Row(work, tool, at_most=f"{limit:.0f} MiB", met=judged(memory <= limit), memory=f"{memory:.0f}")


def _putting_back(upper: Path, out: Path) -> Callable[[], None]:
    """Give what puts a moved upperdir back to where it was."""

    def put_back() -> None:
        upper.rmdir()  # the empty twin; fails if the upperdir was copied
        out.rename(upper)

    return put_back


@contextmanager
def _xfs(place: Path, size: int) -> Iterator[Path]:
    """Mount an xfs with reflinks, in a file, that has room for some files of a size.

    Raises:
        UnableError: this is not possible here.
    """
    missing = [program for program in ("mkfs.xfs", "mount", "filefrag") if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        raise UnableError(f"no {', '.join(missing)}" if missing else "only root can mount an xfs")
    image, mounted = place / "xfs.img", place / "xfs"
    mounted.mkdir()
    with open(image, "xb") as file:
        file.truncate(2**30 + 2 * size)
    try:
        for command in (
            ["mkfs.xfs", "-q", "-m", "reflink=1", str(image)],
            ["mount", "-o", "loop", str(image), str(mounted)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise UnableError(done.stderr.strip().splitlines()[-1])
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "--lazy", mounted], check=True)
    finally:
        image.unlink()
        mounted.rmdir()


def _shared(file: Path) -> float:
    """Give the part of a file's data that is in extents which another file has too."""
    extents = _extents(file)
    return sum(length for _, _, length, shared in extents if shared) / _blocks(extents)


def _shared_with(file: Path, other: Path) -> float:
    """Give the part of a file's data that is on disk where another file has the data at the same offset."""
    extents, others = _extents(file), _extents(other)
    return sum(
        max(min(at + length, other_at + other_length) - max(at, other_at), 0)
        for at, place, length, _ in extents
        for other_at, other_place, other_length, _ in others
        if place - at == other_place - other_at
    ) / _blocks(extents)


def _extents(file: Path) -> list[tuple[int, int, int, bool]]:
    """Give a file's extents: offset, place on disk and length in blocks, and whether another file has it too."""
    shown = subprocess.run(["filefrag", "-s", "-v", file], check=True, capture_output=True, text=True).stdout
    # "   0:        0..   16383:         24..     16407:  16384:             last,shared,eof"
    found = re.findall(r"^ *\d+: +(\d+)\.\. *\d+: +(\d+)\.\. *\d+: +(\d+):[ \d]*:?(.*)$", shown, re.MULTILINE)
    return [(int(at), int(place), int(length), "shared" in flags) for at, place, length, flags in found]


def _blocks(extents: list[tuple[int, int, int, bool]]) -> int:
    return max(sum(length for _, _, length, _ in extents), 1)
