"""Registries for tests of what is carried to them and from them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.support.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Give a registry that many tests use, each with names of its own."""
    with Registry(tmp_path_factory.mktemp("registry") / "plain") as made:
        yield made


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Give a name that no other test has."""
    return f"team/data/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
