"""Whether a layout is whole: each kind of damage is found, and takes no more with it than it has to."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.history.revisions import open_image
from tests.integration.methods.test_oci import stop
from tests.support import history, hooks, image_layouts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from archive_overlay.layout.pieces import Piece
    from tests.integration.conftest import Saver

pytestmark = pytest.mark.parametrize("method", ["oci"])

STOPS = 10
MOST = 4
ALL = [[1, STOPS]]


_made: list[Path] = []


@pytest.fixture
def layout(small: Saver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a layout whose image has fewer layers than revisions, and an image of another program."""
    if not _made:
        for number in range(1, STOPS + 1):
            small.overlay.change(partial(only, number))
            stop(small, max_layers=str(MOST))
        image_layouts.put(small.archive, "other", layers=[history.layer(history.file("a", b"text"))])
        assert verified(small.archive, "--read-data")["findings"] == []
        _made.append(tmp_path_factory.mktemp("verify") / "layout")
        shutil.copytree(small.archive, _made[0])
    else:
        shutil.copytree(_made[0], small.archive)
    return small.archive


def only(number: int, root: Path) -> None:
    """Let the overlay hold one file: a new one, and none that another revision has."""
    for path in root.iterdir():
        path.unlink()
    (root / f"of {number}").write_text(os.urandom(20).hex())


def verified(layout: Path, *options: str) -> dict[str, Any]:
    """Verify a layout, and give what was found."""
    result = history.run("verify", "--json", *options, layout)
    found: dict[str, Any] = json.loads(result.stdout)
    assert (result.status, result.stderr) == (0 if found["whole"] else 1, "")
    return found


def image_of(found: dict[str, Any], tag: str = "latest") -> dict[str, Any]:
    image: dict[str, Any]
    (image,) = [each for each in found["images"] if each["tag"] == tag]
    return image


def pieces(layout: Path) -> tuple[Sequence[Piece], Sequence[Piece]]:
    """Give the pieces that are layers of the image, and those that are in packs."""
    with open_image(str(layout)) as image:
        found = image.stored.pieces(1, STOPS)
    return [each for each in found if each.in_image], [each for each in found if not each.in_image]


def path_of(layout: Path, piece: Piece) -> Path:
    return image_layouts.blob(layout, dict(piece.blob))


def flip(path: Path, position: int) -> None:
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_whole_layout(layout: Path) -> None:
    found = verified(layout)

    assert found["findings"] == found["notes"] == []
    assert image_of(found) == {"tag": "latest", "revisions": STOPS, "usable": ALL, "lost": []}
    assert history.output_of("verify", layout).endswith(
        f"{layout} is whole: 2 images with {STOPS + 1} revisions\n"
    )


def test_a_layer_that_is_missing_takes_those_on_top_with_it(layout: Path) -> None:
    top = pieces(layout)[0][-1]
    assert top.first == top.last == STOPS
    path_of(layout, top).unlink()

    found = verified(layout)

    (finding,) = found["findings"]
    assert finding["digest"] == top.digest
    assert finding["message"].endswith("is missing")
    assert finding["not_extractable"] == finding["changes_lost"] == [[STOPS, STOPS]]
    assert image_of(found)["usable"] == [[1, STOPS - 1]]
    assert image_of(found, "other")["usable"] == [[1, 1]]
    result = history.run("verify", layout)
    assert (result.status, result.stdout.count("\n")) == (1, 3), result.stdout


def test_a_composed_layer_is_not_needed_where_packs_are(layout: Path, scratch: Path) -> None:
    composed = next(each for each in pieces(layout)[0] if each.first < each.last)
    history.output_of("extract", layout, scratch / "before")
    flip(path_of(layout, composed), -1)

    found = verified(layout, "--read-data")

    (finding,) = found["findings"]
    assert finding["digest"] == composed.digest
    assert finding["not_extractable"] == finding["changes_lost"] == []
    assert image_of(found)["usable"] == ALL
    assert verified(layout)["whole"], "that is not seen without reading it"
    for name, remove in (("damaged", False), ("missing", True)):
        if remove:
            path_of(layout, composed).unlink()
        history.output_of("extract", layout, scratch / name)
        assert {each.name: each.read_bytes() for each in (scratch / name).iterdir()} == {
            each.name: each.read_bytes() for each in (scratch / "before").iterdir()
        }


def test_a_piece_of_a_pack_takes_one_revision_with_it(layout: Path, scratch: Path) -> None:
    packed = next(each for each in pieces(layout)[1] if each.first == 2)
    assert packed.offset is not None
    flip(path_of(layout, packed), packed.offset + packed.size // 2)

    found = verified(layout, "--read-data")

    # The blob itself is not what its digest says, and one of the pieces in it.
    blob, piece = found["findings"]
    assert blob["digest"] == packed.blob["digest"]
    assert piece["digest"] == packed.digest
    assert piece["changes_lost"] == [[2, 2]]
    assert [2, 2] in image_of(found)["lost"] or image_of(found)["lost"][0][0] == 2
    history.output_of("extract", layout, scratch / "last")
    history.output_of("extract", f"{layout}:latest@1", scratch / "first")
    assert "revision 2 of" in history.complaint_of("extract", f"{layout}:latest@2", scratch / "second")


def test_a_manifest_that_is_damaged_leaves_other_images_verified(layout: Path) -> None:
    (entry,) = [each for each in image_layouts.read_index(layout)["manifests"] if "latest" in str(each)]
    flip(image_layouts.blob(layout, entry), 10)

    found = verified(layout)

    assert [each["tag"] for each in found["findings"]] == ["latest"]
    assert [each["tag"] for each in found["images"]] == ["other"]


def test_a_history_that_is_not_listed_is_in_danger(layout: Path) -> None:
    index = image_layouts.read_index(layout)
    index["manifests"] = [each for each in index["manifests"] if image_layouts.tag_of(each)]
    (layout / "index.json").write_text(json.dumps(index))

    (finding,) = verified(layout)["findings"]

    assert "does not list the history" in finding["message"]


def unnamed(layout: Path) -> dict[str, Any]:
    """Give the entry of the history that the image names; one that was superseded may be there, too."""
    named = image_layouts.read(layout).manifest["annotations"][f"{hooks.PREFIX}.history"]
    entry: dict[str, Any]
    (entry,) = [each for each in image_layouts.read_index(layout)["manifests"] if each["digest"] in named]
    return entry


@pytest.mark.parametrize("what", ["history", "pack", "list"])
def test_lost_facts_are_damage_and_the_image_is_usable(layout: Path, scratch: Path, what: str) -> None:
    entry = unnamed(layout)
    history_index = json.loads(image_layouts.blob(layout, entry).read_bytes())
    pack = history_index["manifests"][0]
    manifest = json.loads(image_layouts.blob(layout, pack).read_bytes())
    flip(image_layouts.blob(layout, {"history": entry, "pack": pack, "list": manifest["config"]}[what]), 5)

    findings = verified(layout)["findings"]

    assert any("revisions are lost" in each["message"] for each in findings)
    history.output_of("extract", layout, scratch / "extracted")


def test_numbers_that_do_not_add_up(layout: Path) -> None:
    descriptor = image_layouts.read(layout)
    changed = [dict(each) for each in descriptor.manifest["layers"]]
    changed[-1] = {
        **changed[-1],
        "annotations": {**changed[-1]["annotations"], f"{hooks.PREFIX}.revision": "77"},
    }
    image_layouts.put(
        layout,
        "wrong",
        manifest={**descriptor.manifest, "layers": changed, "config": descriptor.manifest["config"]},
    )

    (finding,) = verified(layout)["findings"]

    assert (finding["tag"], "'77', but by its place it has 10" in finding["message"]) == ("wrong", True)


def test_what_other_programs_have_in_a_layout_is_looked_at_too(layout: Path) -> None:
    blob = image_layouts.put_blob(layout, b"of an artifact")
    config = {"mediaType": "application/vnd.example.thing", **image_layouts.put_blob(layout, b"{}")}
    image_layouts.put(
        layout, "artifact", manifest={"config": config, "layers": [{"mediaType": "x/y", **blob}]}
    )
    assert verified(layout, "--read-data")["whole"]
    image_layouts.blob(layout, blob).write_bytes(b"of AN artifact")

    (finding,) = verified(layout, "--read-data")["findings"]

    assert (finding["tag"], finding["digest"]) == ("artifact", blob["digest"])
