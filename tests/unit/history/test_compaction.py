"""Compaction where something is damaged: what was there stays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.history.revisions import open_image
from archive_overlay.layout.packs import history_of
from archive_overlay.layout.stored import SUPERSEDED
from tests.support import histories, image_layouts

if TYPE_CHECKING:
    from pathlib import Path


def test_packs_that_cannot_be_read_are_not_left_behind(tmp_path: Path) -> None:
    histories.build(tmp_path, 12, most=4)
    with open_image(f"{tmp_path}:main") as image:
        history = history_of(image.stored.manifest["annotations"])
    assert history
    blob = image_layouts.blob(tmp_path, history)
    whole = blob.read_bytes()
    blob.write_bytes(whole.replace(b"manifests", b"manifestz"))

    with pytest.raises(ArchiveError, match="a part of the history cannot be read"):
        histories.build(tmp_path, 4, most=4)

    blob.write_bytes(whole)
    assert histories.numbers(tmp_path) == list(range(1, histories.numbers(tmp_path)[-1] + 1))


def test_what_an_annotation_names_that_is_no_blob_takes_nothing_back(tmp_path: Path) -> None:
    histories.build(tmp_path, 2)
    index = image_layouts.read_index(tmp_path)
    (tagged,) = index["manifests"]
    manifest = json.loads(image_layouts.blob(tmp_path, tagged).read_bytes())
    manifest["annotations"][SUPERSEDED] = "sha512:aa nothing"
    tagged.update(image_layouts.put_blob(tmp_path, json.dumps(manifest).encode()))
    (tmp_path / "index.json").write_text(json.dumps(index))

    histories.build(tmp_path, 1)

    assert histories.numbers(tmp_path) == [1, 2, 3]
