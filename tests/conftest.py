"""What all tests share: the built program, and a loud list of what could not run."""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import tools

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def executable() -> Iterator[Path]:
    """Build the program into one file, from the sources as they are now."""
    # pytest's own directories are 0700, but the users of rootless tests have to reach this one.
    with tempfile.TemporaryDirectory(prefix="archive_overlay-dist-") as directory:
        Path(directory).chmod(0o755)
        built = Path(directory) / "archive_overlay.pyz"
        subprocess.run([TOP / "build.sh", built], check=True, stdin=subprocess.DEVNULL)
        yield built


def pytest_runtest_logstart(nodeid: str) -> None:
    """Keep the test's id for the list at the end."""
    tools.current = nodeid


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what this machine lacks, and what therefore was not tested."""
    if not tools.missing:
        return
    terminalreporter.section("NOT TESTED ON THIS MACHINE", sep="!", red=True, bold=True)
    for reason, tests in sorted(tools.missing.items()):
        functions = Counter(test.split("[")[0] for test in tests)
        terminalreporter.write_line(f"{reason}: {len(tests)} tests", red=True)
        for function, count in sorted(functions.items()):
            terminalreporter.write_line(f"    {function}{f' ({count} times)' if count > 1 else ''}")
