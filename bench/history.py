"""The works of a revision history: adding a revision, and having one back."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import data
from bench.measure import Contender, remove

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Bench
    from bench.table import Row

_CHANGED = 10
_REVISIONS = 10


def revision(bench: Bench) -> Iterator[Row]:
    """Add a revision of 10 changed files to a base of 30,000."""
    layout, bundle = _base(bench)
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
    layout, bundle = _base(bench)
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


def _base(bench: Bench) -> tuple[Path, Path]:
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
    data.small_files(bundle / "rootfs", files=int(30_000 * bench.scale), directories=520)
    for command in (["repack", "--image", base, bundle], ["unpack", "--image", base, f"{bundle}.again"]):
        subprocess.run(["umoci", *command], check=True, capture_output=True)
    remove(bundle)
    return layout, bundle.with_name(f"{bundle.name}.again")
