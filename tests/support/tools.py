"""Programs and privileges that a test needs, and what becomes of it where they are missing.

In CI nothing may be left out, so a missing program is a failure there. Elsewhere the test is skipped,
and conftest.py lists at the end of the run what was missing, where a person sees it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import NoReturn


def in_ci() -> bool:
    """Say whether this run may leave nothing out."""
    return os.environ.get("CI", "") not in ("", "0", "false")


def need(*programs: str) -> None:
    """Let the calling test run only where all these programs are on PATH.

    Args:
        programs: names as a shell would look them up, or absolute paths.
    """
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        cannot_run(f"{', '.join(absent)} not installed")


def need_root() -> None:
    """Let the calling test run only as root."""
    if os.geteuid() != 0:
        cannot_run("not root")


def cannot_run(reason: str) -> NoReturn:
    """Give the calling test up: skip it, or fail it in CI.

    Args:
        reason: what this machine lacks, in a few words; tests that lack the same are listed together.
    """
    if in_ci():
        raise pytest.fail.Exception(f"{reason}, and CI leaves nothing out", pytrace=False)
    raise pytest.skip.Exception(reason)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Do something that other workers must not do at the same time.

    Args:
        lock: a file that stands for it; made if need be.
    """
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
