"""Large files that changed a little: on a file system with reflinks, an archive shares the rest with the lower layer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver
from tests.support import extents, overlays

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.overlays import Flavour

SIZE, AT, CHANGED = 4 << 20, 1 << 20, 64 << 10


def make(root: Path) -> None:
    (root / "large").write_bytes(os.urandom(SIZE))


def change_a_little(root: Path) -> None:
    with open(root / "large", "r+b") as file:
        file.seek(AT)
        file.write(os.urandom(CHANGED))


@pytest.mark.parametrize("flavour", [overlays.NATIVE, overlays.FUSE])
@pytest.mark.parametrize("method", ["copy", "move"])
def test_what_did_not_change_in_a_file_is_on_disk_once(
    flavour: Flavour, method: str, scratch: Path, namespace: Callable[[bool], overlays.Namespace]
) -> None:
    overlays.need(flavour)
    private = namespace(False)

    def run() -> int:
        with extents.xfs(scratch) as xfs:
            (xfs / "overlay").mkdir()
            overlay = overlays.Overlay(flavour, xfs / "overlay", private)
            try:
                overlay.layer(make)
                overlay.change(change_a_little)
                saver = Saver(overlay, method, xfs)
                result = saver.run()
                assert result.status == 0, result.stderr
                return extents.shared(saver.archive / "large", overlay.lowers[0] / "large")
            finally:
                overlay.close()

    assert private.inside(run) == SIZE - CHANGED
