"""What all tests share: the built program, workers that do not meet, and a loud list of what could not run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import faults, tools

TOP = Path(__file__).resolve().parent.parent

_SHARED = pytest.StashKey[Path]()

# Modules that take long, longest first. Each goes to one worker, and they begin first, so that no worker is left alone
# with one at the end. All end-to-end tests come one after the other: each worker sets up one machine for those it gets.
_LONG = (
    *("tests/crash/test_image_layout.py", "tests/packaging/test_debian.py", "tests/crash/test_at_once.py"),
    *("tests/crash/test_two_processes.py", "tests/packaging/test_build.py", "tests/e2e/test_two_hosts.py"),
    *("tests/e2e/test_load.py", "tests/e2e/test_history.py", "tests/e2e/test_circle.py"),
    *("tests/e2e/test_check.py", "tests/e2e/test_recover.py", "tests/e2e/test_pages.py"),
    *("tests/e2e/test_snapshot.py", "tests/e2e/test_base.py", "tests/e2e"),
)
# Modules that take longer, but whose tests share nothing that takes long to make: any worker takes any test. They come
# last, the shortest tests at the end, and fill up what the others leave.
_APART = ("tests/crash/test_every_call.py", "tests/property/test_oracle.py", "tests/property/test_limits.py")

# How many characters a parameter may add to the id of a test, and all of them together.
_LONGEST_VALUE = 60
_LONGEST_ID = 150


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name tests after values: those that are long by how they begin, and by a digest that tells them apart."""
    if not isinstance(val, (str, bytes, dict)):
        return None
    text = ascii(str(val)) if isinstance(val, dict) else ascii(val).lstrip("b")
    if len(text) <= _LONGEST_VALUE:
        return str(val) if isinstance(val, dict) else None  # pytest does the others
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[1 : _LONGEST_VALUE - 10]}...{digest}"


def pytest_configure(config: pytest.Config) -> None:
    """Make a directory for what the workers share."""
    worker = getattr(config, "workerinput", None)
    # pytest's own directories are 0700, but the users of rootless tests have to reach this one.
    made = Path(worker["shared"] if worker else tempfile.mkdtemp(prefix="archive_overlay-dist-"))
    made.chmod(0o755)
    config.stash[_SHARED] = made


def pytest_unconfigure(config: pytest.Config) -> None:
    """Delete it, when all workers have ended."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[_SHARED])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where it is."""
    node.workerinput["shared"] = str(node.config.stash[_SHARED])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the tests of a module to one worker, in the order of `_place`. No test has an endless name."""
    for item in items:
        if len(item.name.partition("[")[2]) > _LONGEST_ID + len("]"):
            raise pytest.UsageError(f"{item.nodeid[:300]}... is too long: give its parameters ids")
    if not config.pluginmanager.hasplugin("xdist"):
        return
    items.sort(key=_place)
    for item in items:
        if _module(item) not in _APART:
            item.add_marker(pytest.mark.xdist_group(_module(item)))


def _place(item: pytest.Item) -> int:
    module = _module(item)
    order = [*_LONG, None, *_APART]
    return order.index(next((name for name in (module, os.path.dirname(module)) if name in order), None))


def _module(item: pytest.Item) -> str:
    nodeid: str = item.nodeid
    return nodeid.split("::")[0]


@pytest.fixture(scope="session")
def executable(pytestconfig: pytest.Config) -> Path:
    """Build the program into one file, from the sources as they are now, once for all workers."""
    built: Path = pytestconfig.stash[_SHARED] / "archive_overlay.pyz"
    with tools.alone(built.with_name("lock")):
        if not built.exists():
            subprocess.run([TOP / "build.sh", f"{built}.new"], check=True, stdin=subprocess.DEVNULL)
            Path(f"{built}.new").rename(built)
    return built


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a worker hand in how much it struck, and let nothing be skipped in CI, for whatever reason."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["struck"] = faults.tried
    elif tools.in_ci() and _skipped(session.config.pluginmanager.getplugin("terminalreporter")):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the workers have struck. One that died has failed a test."""
    for what, count in getattr(node, "workeroutput", {}).get("struck", {}).items():
        faults.tried[what] = faults.tried.get(what, 0) + count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many system calls were struck; list what this machine lacks, and what therefore was not tested."""
    if faults.tried:
        terminalreporter.section("system calls struck, each in a run of its own")
        for what, count in sorted(faults.tried.items()):
            terminalreporter.write_line(f"{count:6} {what}")
        terminalreporter.write_line(f"{sum(faults.tried.values()):6} in all")
    skipped = _skipped(terminalreporter)
    if not skipped:
        return
    terminalreporter.section("NOT TESTED ON THIS MACHINE", sep="!", red=True, bold=True)
    for reason, functions in sorted(skipped.items()):
        terminalreporter.write_line(f"{reason}: {sum(functions.values())} tests", red=True)
        for function, count in sorted(functions.items()):
            terminalreporter.write_line(f"    {function}{f' ({count} times)' if count > 1 else ''}")


def _skipped(terminalreporter: pytest.TerminalReporter) -> dict[str, Counter[str]]:
    """Give the reasons for which tests were skipped, and how often each function was."""
    reasons: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        # What --dist=loadgroup adds to an id comes after an @.
        reasons.setdefault(reason, Counter())[re.split(r"[\[@]", report.nodeid)[0]] += 1
    return reasons
