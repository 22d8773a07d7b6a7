"""Change sets whose data are in part in the lower layers: refused rather than saved as zeros."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.conftest import Saver
from tests.support.overlays import Flavour

METACOPY = Flavour("metacopy", options=("metacopy=on", "redirect_dir=on"))
REDIRECT = Flavour("redirect", options=("redirect_dir=on",))


def below(root: Path) -> None:
    (root / "file").write_text("data")
    (root / "directory").mkdir()
    (root / "directory" / "inner").write_text("data")


@pytest.mark.parametrize("overlay", [METACOPY], indirect=True)
def test_a_file_without_its_data_fails_the_request(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "file").chmod(0o600))

    result = saver.run()

    assert result.status == 1
    assert "file" in result.only_error()
    assert "metacopy" in result.only_error()
    assert os.listdir(saver.out) == []
    assert not saver.success.exists()


@pytest.mark.parametrize("overlay", [REDIRECT, METACOPY], indirect=True)
def test_a_renamed_directory_fails_the_request(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "directory").rename(root / "renamed"))

    result = saver.run()

    assert result.status == 1
    assert "renamed" in result.only_error()
    assert "redirect" in result.only_error()
    assert os.listdir(saver.out) == []
    assert not saver.success.exists()
