"""Where the store of an engine is, by its configurations."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from archive_overlay.commands.recover import stores
from archive_overlay.commands.recover.stores import Store, find_store

if TYPE_CHECKING:
    from pathlib import Path

ID = "ab12" * 16

TEXT = """\
# graphroot = "/srv/commented"
[storage]
driver = "overlay"
runroot = "/srv/run" # not for long
graphroot = '/srv/store'
rootless_storage_path = "/srv/$USER-$UID/store"

[storage.options.overlay]
graphroot = "/srv/elsewhere"
"""


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's storage.conf; the distribution's is not there."""
    path = tmp_path / "storage.conf"
    path.write_text(TEXT)
    monkeypatch.setattr(stores, "SYSTEM", (str(tmp_path / "missing"), str(path)))
    return path


def become(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "outside", lambda _: user)


def test_root_has_the_store_of_the_system_s_configuration(
    configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(0, monkeypatch)

    assert find_store(None) == Store(root="/srv/store", run="/srv/run")
    configuration.unlink()
    assert find_store(None) == Store(root="/var/lib/containers/storage", run="/run/containers/storage")


def test_a_user_has_a_store_at_home_or_where_configurations_say(
    configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(4_000_000, monkeypatch)  # nobody has this number
    home = str(tmp_path)

    assert find_store(None, home=home).root == "/srv/-4000000/store"

    configuration.write_text(TEXT.replace("rootless_storage_path", "other"))
    assert find_store(None, home=home) == Store(root=f"{tmp_path}/.local/share/containers/storage")

    own = tmp_path / ".config/containers/storage.conf"
    own.parent.mkdir(parents=True)
    own.write_text('[storage]\ngraphroot = "/home/own"\n')
    assert find_store(None, home=home).root == "/home/own"
    assert find_store("relative", home=home).root == f"{os.getcwd()}/relative"


def test_what_a_person_says_counts(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(0, monkeypatch)

    assert find_store("/srv/other", "/run/other") == Store(root="/srv/other", run="/run/other")


def test_the_directory_that_a_reboot_took_away_is_made_for_its_user_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    store = Store(root="/srv/store", run=str(tmp_path / "run/containers/storage"))

    store.make_run()
    store.make_run()

    modes = [
        (tmp_path / path).stat().st_mode & 0o777 for path in ("run/containers", "run/containers/storage")
    ]
    assert modes == [0o700, 0o700]


def test_of_a_container_of_crio_the_bundle_is_taken_before_its_copy(tmp_path: Path) -> None:
    store = Store(root=str(tmp_path / "root"), run=str(tmp_path / "run"))
    for place in (store.root, store.run):
        directory = f"{place}/overlay-containers/{ID}/userdata"
        os.makedirs(directory)
        os.chmod(f"{place}/overlay-containers", 0o700)
        (tmp_path / directory / "config.json").write_text("{}")
    with open(f"{store.root}/overlay-containers/containers.json", "w", encoding="ascii") as file:
        json.dump([{"id": ID}, {"id": "../.."}, {"id": ID}, {}], file)

    assert list(store.bundles()) == [f"{store.run}/overlay-containers/{ID}/userdata"]
    os.unlink(f"{store.run}/overlay-containers/{ID}/userdata/config.json")
    assert list(store.bundles()) == [f"{store.root}/overlay-containers/{ID}/userdata"]
