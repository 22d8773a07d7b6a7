"""Measure the whole program beside the tools that do the same work.

Every round runs each contender once, so that whatever else the machine does falls on all of them. The
data lie in memory (/dev/shm), for a disk would be measured rather than a program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ANNOTATION = "com.launchplatform.oci-hooks.archive-overlay.bench"


def main() -> None:
    """Measure all works, and print a table for each."""
    parser = argparse.ArgumentParser(description="Measure the program beside cp and tar.")
    parser.add_argument("program", type=Path, help="the built program")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is run (default: 7)")
    parser.add_argument("--files", type=int, default=5000, help="how many small files (default: 5000)")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory(prefix="archive_overlay-bench-", dir="/dev/shm") as name:
        compare(options.program.resolve(), Path(name), files=options.files, rounds=options.rounds)


def compare(program: Path, place: Path, *, files: int, rounds: int) -> None:
    """Measure start-up, and both methods beside cp and tar.

    Args:
        program: the built program.
        place: an empty directory for the data.
        files: how many files the larger change set has.
        rounds: how often each contender is run.
    """
    out = place / "out"
    few, many = make_tree(place / "few", 10), make_tree(place / "many", files)
    hook = [str(program), "--log-level=error", "--bundle"]
    measure(
        "Start and save 10 files",
        {
            "archive_overlay, copy": [*hook, make_bundle(place / "1", few, out, "copy")],
            "archive_overlay, nothing to do": [*hook, make_bundle(place / "2", few, out, "")],
            "python3 -IS -c pass": [sys.executable, "-IS", "-c", "pass"],
        },
        out,
        rounds,
    )
    measure(
        f"Copy {files} files",
        {
            "archive_overlay, copy": [*hook, make_bundle(place / "3", many, out, "copy")],
            "cp -a": ["cp", "-a", str(many), str(out)],
        },
        out,
        rounds,
    )
    measure(
        f"Compress {files} files",
        {
            "archive_overlay, tar.gz": [*hook, make_bundle(place / "4", many, out, "tar.gz")],
            "tar czf": ["tar", "-C", str(many), "-czf", str(out), "."],
        },
        out,
        rounds,
    )


def measure(title: str, contenders: dict[str, list[str]], out: Path, rounds: int) -> None:
    """Run contenders in turn, and print their median times and how they compare to the first.

    Args:
        title: what the work is.
        contenders: name to command line.
        out: what each command makes; removed before each run.
        rounds: how often each is run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, command in contenders.items():
            if out.is_dir():
                shutil.rmtree(out)
            out.unlink(missing_ok=True)
            start = time.perf_counter()
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = next(iter(medians.values()))
    print(f"\n{title}\n{'':34}{'median':>10}{'least':>10}{'ours is':>12}")
    for name, median in medians.items():
        ratio = "" if median == ours else f"{ours / median:.2f} x"
        print(f"    {name:30}{median * 1000:7.1f} ms{min(seconds[name]) * 1000:7.1f} ms{ratio:>12}")


def make_tree(top: Path, files: int) -> Path:
    """Make small files, 60 to a directory, of text that compresses as source code does."""
    text = Path(__file__).read_bytes() * 4
    for number in range(files):
        directory = top / f"{number // 60:04}"
        directory.mkdir(parents=True, exist_ok=True)
        start = number * 37 % len(text)
        (directory / f"{number:05}.txt").write_bytes(text[start : start + number % 4096])
    return top


def make_bundle(bundle: Path, upper: Path, archive_to: Path, method: str) -> str:
    """Make a bundle whose one overlay has an upperdir; without a method it asks for no archive."""
    (bundle / "lower").mkdir(parents=True)
    (bundle / "work").mkdir()
    annotations = {
        f"{ANNOTATION}.mount-point": "/data",
        f"{ANNOTATION}.archive-to": str(archive_to),
        f"{ANNOTATION}.method": method,
    }
    options = [f"lowerdir={bundle}/lower", f"upperdir={upper}", f"workdir={bundle}/work"]
    spec = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/data", "type": "overlay", "source": f"{bundle}/merge", "options": options}
        ],
        "annotations": annotations if method else {},
    }
    (bundle / "config.json").write_text(json.dumps(spec))
    return str(bundle)


if __name__ == "__main__":
    main()
