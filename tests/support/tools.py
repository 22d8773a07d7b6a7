"""Programs and privileges that a test needs, and what becomes of it where they are missing.

In CI nothing may be left out, so a missing program is a failure there. Elsewhere the test is skipped,
and what was missing is listed at the end of the run, where a person sees it.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import NoReturn

# What was missing, and the tests that could not run for want of it.
missing: dict[str, list[str]] = {}

# The id of the test that is about to run or is running; conftest.py keeps it.
current = ""


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
    missing.setdefault(reason, []).append(current)
    if in_ci():
        raise pytest.fail.Exception(f"{reason}, and CI leaves nothing out", pytrace=False)
    raise pytest.skip.Exception(reason)
