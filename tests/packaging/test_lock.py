"""tools/lock.sh --check: a change to the tools that are wanted does not pass without a new lock."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.packaging.conftest import PATH, checkout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a copy of the sources to spoil."""
    return checkout(tmp_path / "source")


def check(source: Path) -> subprocess.CompletedProcess[str]:
    """Compare lock and requirements as `make lint` does."""
    return subprocess.run(
        [source / "tools/lock.sh", "--check"],
        env={"PATH": PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [("mypy>=1.11,<2", "mypy>=1.11"), ("vermin>=1.6,<2\n", ""), ("ruff>=", "black>=25\nruff>=")],
    ids=["bound", "removed", "added"],
)
def test_other_requirements_make_the_lock_stale(source: Path, old: str, new: str) -> None:
    requirements = source / "tools/requirements.in"
    text = requirements.read_text()
    assert old in text
    requirements.write_text(text.replace(old, new))
    done = check(source)
    assert done.returncode == 1
    assert "make lock" in done.stderr


def test_what_makes_mutants_has_a_lock_of_its_own(source: Path) -> None:
    (source / "tools/mutants.in").write_text("cosmic-ray>=8\n")
    done = check(source)
    assert done.returncode == 1
    assert "tools/mutants.txt is not the lock of mutants.in" in done.stderr


def test_a_comment_does_not(source: Path) -> None:
    requirements = source / "tools/requirements.in"
    requirements.write_text(f"# Said in other words.\n\n{requirements.read_text()}")
    done = check(source)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["requirements", "mutants"])
def test_a_lock_names_no_index(source: Path, name: str) -> None:
    lock = (source / f"tools/{name}.txt").read_text()
    assert "://" not in lock
    # Options of pip begin a line; those of a requirement, its hashes, do not.
    assert [line for line in lock.splitlines() if line.startswith("-")] == []
