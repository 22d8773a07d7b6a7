"""The machine on which all engines run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import engines, pages, tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Ask for what the tests here need before any fixture does, so that each of them is listed."""
    tools.need_root()
    tools.need(*engines.PROGRAMS)


@pytest.fixture(scope="package")
def machine(executable: Path) -> Iterator[engines.Machine]:
    """Set up the engines, with the hook installed as `make install` does it."""
    with engines.machine(executable) as made:
        yield made


@pytest.fixture(scope="package")
def pages_engines(machine: engines.Machine) -> dict[str, engines.Engine]:
    return pages.prepare(machine)


@pytest.fixture
def host(pages_engines: dict[str, engines.Engine]) -> Iterator[pages.Host]:
    """Give a host on which nothing is but the hook and an image."""
    made = pages.Host(pages_engines)
    yield made
    made.clean()
