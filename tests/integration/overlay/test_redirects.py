"""Change sets whose data are in part in the lower layers: the archive has all of it, or there is none."""

from __future__ import annotations

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
def test_a_file_without_its_data(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "file").chmod(0o600))

    saver.expect_the_same()


@pytest.mark.parametrize("overlay", [REDIRECT, METACOPY], indirect=True)
def test_a_renamed_directory(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "directory").rename(root / "renamed"))

    saver.expect_the_same()
