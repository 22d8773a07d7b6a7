"""Which users have an id in a user namespace."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive_overlay.system import user_namespace

INITIAL = "         0          0 4294967295\n"
ROOTLESS = "         0       1000          1\n         1     100000      65536\n"


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "uid_map"
    monkeypatch.setattr(user_namespace, "_MAP", str(file))
    return file


@pytest.mark.parametrize(("text", "all_of_them"), [(INITIAL, True), (ROOTLESS, False), ("", False)])
def test_all_users_have_an_id_in_the_initial_namespace_alone(
    mapping: Path, text: str, all_of_them: bool
) -> None:
    mapping.write_text(text)
    assert user_namespace.has_all_users() is all_of_them


@pytest.mark.parametrize(("user", "outside"), [(0, 1000), (1, 100000), (65536, 165535), (65537, 65537)])
def test_the_id_of_a_user_outside(mapping: Path, user: int, outside: int) -> None:
    mapping.write_text(ROOTLESS)
    assert user_namespace.outside(user) == outside


def test_without_a_map_a_user_has_the_same_id_outside(mapping: Path) -> None:
    assert not mapping.exists()
    assert user_namespace.outside(7) == 7


def test_the_owner_who_stands_for_all_others() -> None:
    assert user_namespace.overflow_owner() == int(Path("/proc/sys/kernel/overflowuid").read_text())
