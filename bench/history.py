"""The works of a revision history: adding a revision, and having one back, of few revisions or of many."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import data
from bench.measure import Contender, remove
from bench.table import Row, judged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Bench

_CHANGED = 10
_REVISIONS = 10
# Of a long history, and of a short one beside it.
_MANY, _FEW = 1_000, 10
_LARGEST = 3.0  # MB
_LONGEST_LOG = 0.3  # seconds
# How much longer something may take with many revisions than with few.
_LONGER = 1.5


def revision(bench: Bench) -> Iterator[Row]:
    """Add a revision of 10 changed files to a base of 30,000."""
    layout, bundle = layout_with_base(bench)
    for file in sorted((bundle / "rootfs").rglob("*.txt"))[:_CHANGED]:
        file.write_text("changed\n")
    ours = bench.make.ours("oci", bench.few, out=layout, tag="ours", parent="base")
    repack: list[str | Path] = ["umoci", "repack", "--image", f"{layout}:theirs", bundle]
    yield from bench.compare(
        f"a revision of {_CHANGED} changed files on 30,000",
        # What it makes stays: the layout is there for all.
        replace(ours, makes=None),
        Contender("umoci repack", repack, at_most=1 / 20),
        bench.make.ours("tar.gz", bench.few, name="ours, tar.gz", at_most=1.3),
    )
    remove(layout)
    remove(bundle)


def extract(bench: Bench) -> Iterator[Row]:
    """Have the last of ten revisions back."""
    layout, bundle = layout_with_base(bench)
    remove(bundle)
    for number in range(_REVISIONS - 1):
        parent = f"r{number - 1}" if number else "base"
        changed = bench.make.ours("oci", bench.few, out=layout, tag=f"r{number}", parent=parent)
        bench.race(replace(changed, makes=None), rounds=1)
    last = f"{layout}:r{_REVISIONS - 2}"
    out, unpacked = bench.place / "extracted", bench.place / "unpacked"
    program = str(bench.make.program)
    yield from bench.compare(
        f"extract of {_REVISIONS} revisions, 30,000 files",
        Contender("ours, extract", [program, "extract", "--no-fsync", last, out], makes=out),
        Contender(
            "umoci unpack", ["umoci", "unpack", "--image", last, unpacked], makes=unpacked, at_most=1.5
        ),
    )
    remove(layout)


def many(bench: Bench) -> Iterator[Row]:
    """Live with 1,000 revisions."""
    yield from _beside_few(bench, int(_MANY * bench.scale))


def very_many(bench: Bench) -> Iterator[Row]:
    """Live with 10,000 revisions."""
    yield from _beside_few(bench, int(10 * _MANY * bench.scale))


class _Growing:
    """An image of 30,000 files that gets revisions of one change of 2 bytes, as its tag `main`.

    Args:
        bench: runs the commands.
        layout: has it.
        name: what the table says of it.
    """

    def __init__(self, bench: Bench, layout: Path, name: str) -> None:
        self.image = f"{layout}:main"
        self._layout = layout
        self._name = name
        self._bench = bench
        self._changed = bench.place / f"{layout.name}.upper"
        self._changed.mkdir()
        self._podman = bench.place / f"{layout.name}.podman"
        # podman takes no longer path than of 50 bytes.
        self._run = tempfile.TemporaryDirectory(prefix="bench-")
        self._revisions = 0
        self.change()
        # It makes a part of what is there; instead of removing that, the next change is made.
        self.append = bench.make.ours(
            "oci",
            self._changed,
            name=f"append, {name}",
            out=layout,
            tag="main",
            parent="base",
            undo=self.change,
            at_most=_LONGER,
        )

    def change(self) -> None:
        """Change 2 bytes, as a container would."""
        (self._changed / "changed.txt").write_bytes(b"%02d" % (self._revisions % 100))
        self._revisions += 1

    def grow(self, revisions: int) -> None:
        """Add so many revisions."""
        self._bench.race(self.append, rounds=revisions)

    def remove(self) -> None:
        """Remove all of it."""
        for path in (self._layout, self._changed, self._podman):
            remove(path)
        self._run.cleanup()

    def extract(self, number: int) -> Contender:
        """Give the program, extracting a revision."""
        out = self._bench.place / "extracted"
        command: list[str | Path] = [
            *(str(self._bench.make.program), "extract", "--no-fsync", f"{self.image}@{number}", out)
        ]
        return Contender(f"extract @{number}", command, makes=out, at_most=_LONGER)

    def pull(self) -> Contender:
        """Give podman, pulling the last revision into a store of its own that has the one before."""
        place = self._podman
        place.mkdir()
        podman: list[str | Path] = [
            *("env", f"HOME={place}", "unshare", "--mount", "--propagation=private", "podman"),
            *(f"--root={place / 'root'}", f"--runroot={self._run.name}", "--storage-driver=overlay"),
        ]
        return Contender(
            f"podman pull, {self._name}",
            [*podman, "pull", "--quiet", f"oci:{self.image}"],
            makes=place,
            undo=lambda: self.grow(1),
            needs=("unshare", "podman"),
            at_most=_LONGER,
        )


def _beside_few(bench: Bench, revisions: int) -> Iterator[Row]:
    """Compare a history of many revisions with one of few."""
    revisions = max(4, revisions)
    number = min(_FEW, revisions // 2)
    work = f"{revisions:,} revisions of 2 bytes on 30,000 files"
    base, bundle = layout_with_base(bench)
    remove(bundle)
    before = _disk_usage(base)
    few = _Growing(bench, _copy(base, "short-history"), f"after {number} revisions")
    few.grow(number)
    many = _Growing(bench, base, f"after {revisions:,} revisions")
    many.grow(revisions)
    megabytes = (_disk_usage(base) - before) / 1e6
    yield Row(
        work,
        "disk usage, without the base",
        ratio=f"{megabytes:.2f} MB",
        at_most=f"{_LARGEST:.2f} MB",
        met=judged(megabytes <= _LARGEST),
    )
    listing = Contender("log", [str(bench.make.program), "log", many.image])
    taken = bench.race(listing)[listing.name]
    yield Row(
        work,
        listing.name,
        f"{taken.seconds:.3f}",
        cpu=f"{taken.cpu_seconds:.3f}",
        at_most=f"{_LONGEST_LOG:.2f} s",
        met=judged(taken.seconds <= _LONGEST_LOG),
        memory=f"{taken.memory:.0f}",
    )
    yield from bench.compare(work, many.extract(revisions // 2), many.extract(number))
    # Few of many stops compose layers, and the others are what is compared.
    yield from bench.compare(work, many.append, few.append, rounds=3 * bench.rounds)
    if os.geteuid() != 0:
        yield Row(work, "podman pull", "NOT MEASURED: only root has a store anywhere")
    else:
        pulls = many.pull(), few.pull()
        bench.race(*pulls, rounds=1)  # the base
        yield from bench.compare(work, *pulls)
    many.remove()
    few.remove()


def _copy(layout: Path, name: str) -> Path:
    """Copy a layout."""
    copied = layout.with_name(name)
    subprocess.run(["cp", "-a", layout, copied], check=True)
    return copied


def _disk_usage(layout: Path) -> int:
    """Say how many bytes the files of a layout take on disk."""
    return sum(path.lstat().st_blocks * 512 for path in layout.rglob("*") if path.is_file())


def layout_with_base(bench: Bench) -> tuple[Path, Path]:
    """Make a layout with an image of 30,000 files, tagged `base`, and the bundle it was made of."""
    layout, bundle = bench.place / "layout", bench.place / "umoci"
    base = f"{layout}:base"
    for command in (
        ["init", "--layout", layout],
        ["new", "--image", base],
        ["unpack", "--image", base, bundle],
    ):
        subprocess.run(["umoci", *command], check=True, capture_output=True)
    (bundle / "rootfs").rmdir()
    files, directories = int(30_000 * bench.scale), max(1, int(520 * bench.scale))
    data.small_files(bundle / "rootfs", files=files, directories=directories)
    for command in (["repack", "--image", base, bundle], ["unpack", "--image", base, f"{bundle}.again"]):
        subprocess.run(["umoci", *command], check=True, capture_output=True)
    remove(bundle)
    return layout, bundle.with_name(f"{bundle.name}.again")
