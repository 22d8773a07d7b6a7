"""make bench, with next to no data: that it measures, not what."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.packaging.conftest import PATH, TOP
from tests.support import tools

if TYPE_CHECKING:
    from collections.abc import Iterator

README = """\
written by hand
<!-- begin of the table -->
an old table
<!-- end of the table -->
written by hand, too
"""


def measure(executable: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the measuring once, with very little to do."""
    return subprocess.run(
        [sys.executable, "-B", "-m", "bench", executable, "--rounds=1", "--scale=0.001", *arguments],
        cwd=TOP,
        env={"PATH": PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory in memory, where the data lie."""
    if not os.access("/dev/shm", os.W_OK):
        tools.cannot_run("no /dev/shm")
    with tempfile.TemporaryDirectory(prefix="archive_overlay-test", suffix="x", dir="/dev/shm") as name:
        yield Path(name)


def test_a_table_of_all_works_gets_into_the_readme(executable: Path, place: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    done = measure(executable, f"--place={place}", "--update-readme", f"--readme={readme}")
    assert done.returncode == 0, done.stderr
    assert os.listdir(place) == [], "left behind"

    page = readme.read_text()
    assert page.startswith("written by hand\n")
    assert page.endswith("\nwritten by hand, too\n")
    assert "an old table" not in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    assert rows[0] == ["work", "tool", "seconds", "ours is", "CPU s", "ours is", "at most", "met", "peak MiB"]
    works = {row[0] for row in rows if len(row) == 9}
    for work in (
        "whole hook",
        "copy",
        "tar",
        "tar.gz",
        "tar.zst",
        "move",
        "growth",
        "peak memory",
        "4 revisions",
    ):
        assert any(name.startswith(work) for name in works), f"{work} is not in the table"
    beside_cp = next(row for row in rows if row[1] == "cp -a")
    assert float(beside_cp[2]) > 0
    ratios = [float(beside_cp[column].split()[0]) for column in (3, 5)]
    limits = [float(limit.split()[-2]) for limit in beside_cp[6].split(", ")]
    assert beside_cp[7] == ("yes" if all(map(float.__le__, ratios, limits)) else "NO")
    assert float(beside_cp[8]) > 0


def test_a_command_that_fails_is_no_measurement(place: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
    program.chmod(0o755)
    done = measure(program, f"--place={place}", "copy-large")
    assert done.returncode == 1
    assert "failed with status 1:\nthe disk is full" in done.stderr
    assert os.listdir(place) == []
