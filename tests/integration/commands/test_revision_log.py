"""The revisions of an image, as a person or a program reads them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver
from tests.support import history, hooks, image_layouts
from tests.support.history import file, layer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def method() -> str:
    """Give the method that makes revisions."""
    return "oci"


@pytest.fixture
def two_revisions(any_saver: Saver) -> Saver:
    """Save an overlay twice on top of a layer that another program made."""
    history_entries = [
        {"created": "2020-01-02T03:04:05.678901Z", "created_by": "COPY\x1b[2J . /", "comment": "buildkit"},
        {"created_by": "ENV a=b", "empty_layer": True},
    ]
    image_layouts.put(
        any_saver.archive, "main", layers=[layer(file("below"))], config={"history": history_entries}
    )
    any_saver.overlay.layer(lambda root: (root / "below").touch())
    any_saver.overlay.change(lambda root: (root / "made").write_text("1"))
    assert any_saver.run(archive_to=f"{any_saver.archive}:main").status == 0
    any_saver.overlay.change(lambda root: (root / "below").unlink())
    assert any_saver.run(archive_to=f"{any_saver.archive}:main").status == 0
    return any_saver


def test_revisions_newest_first(two_revisions: Saver) -> None:
    image = image_layouts.read(two_revisions.archive, "main")
    headings, *lines = history.output_of("log", f"{two_revisions.archive}:main").splitlines()

    assert headings.split() == (
        ["REVISION", "DIGEST", "WHEN", "CONTAINER", "MOUNT", "POINT", "ENTRIES", "DELETIONS", "SIZE", "BY"]
    )
    layers = image.manifest["layers"]
    created = [each["created"] for each in image.config["history"] if "empty_layer" not in each]
    short = [digest.partition(":")[2][:12] for digest in image.digests]
    size = [str(each["size"]) for each in layers]
    assert [line.split() for line in lines] == [
        ["3", short[2], created[2], "c1", "/data", "1", "1", size[2], "archive", "data"],
        ["2", short[1], created[1], "c1", "/data", "1", "0", size[1], "archive", "data"],
        ["1", short[0], "2020-01-02T03:04:05Z", "-", "-", "-", "-", size[0], "COPY\\x1b[2J", ".", "/"],
    ]


def test_json_has_all_that_is_known(two_revisions: Saver) -> None:
    image = image_layouts.read(two_revisions.archive, "main")
    found = json.loads(history.output_of("log", "--json", f"{two_revisions.archive}:main"))

    last = image.manifest["layers"][2]
    assert found[0] == {
        "revision": 3,
        "digest": last["digest"],
        "diff_id": image.config["rootfs"]["diff_ids"][2],
        "created": image.config["history"][3]["created"],
        "container": "c1",
        "archive": "data",
        "mount_point": "/data",
        "entries": 1,
        "deletions": 1,
        "size": last["size"],
        "created_by": "archive_overlay",
        "comment": image.config["history"][3]["comment"],
    }
    foreign = found[2]
    assert (foreign["revision"], foreign["created_by"]) == (1, "COPY\x1b[2J . /")
    assert {foreign[key] for key in ("container", "archive", "mount_point", "entries", "deletions")} == {None}


def test_what_an_engine_leaves_of_a_revision(two_revisions: Saver, scratch: Path) -> None:
    """An image that has been in an engine's store has lost the annotations of its layers."""
    image = image_layouts.read(two_revisions.archive, "main")
    tars = [each.tar for each in image.layers]
    image_layouts.put(scratch / "again", "latest", layers=tars, config={"history": image.config["history"]})

    found = json.loads(history.output_of("log", "--json", scratch / "again"))

    assert [each["container"] for each in found] == ["c1", "c1", None]
    assert [each["mount_point"] for each in found] == ["/data", "/data", None]
    assert [each["entries"] for each in found] == [None] * 3


def test_human_readable_sizes(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a", bytes(100_000)))])

    assert " 100K " in history.output_of("log", "-h", scratch / "layout")


def test_long_ids_are_shown_short(scratch: Path) -> None:
    stored = layer(file("a"))
    facts = {f"{hooks.PREFIX}.container": "0123456789abcdef" * 4, f"{hooks.PREFIX}.archive": "data"}
    described = [{"mediaType": image_layouts.LAYER_TYPE, "annotations": facts}]
    (scratch / "layout/blobs/sha256").mkdir(parents=True)
    described[0].update(image_layouts.put_blob(scratch / "layout", stored))
    config = {"rootfs": {"type": "layers", "diff_ids": [described[0]["digest"]]}}
    image_layouts.put(scratch / "layout", "latest", config=config, manifest={"layers": described})

    assert " 0123456789ab  " in history.output_of("log", scratch / "layout")
    (found,) = json.loads(history.output_of("log", "--json", scratch / "layout"))
    assert found["container"] == "0123456789abcdef" * 4


@pytest.mark.parametrize("value", [3, None, "many", "-1", "9" * 50, ["1"]])
def test_facts_that_are_none_are_not_shown(scratch: Path, value: object) -> None:
    described = {
        "mediaType": image_layouts.LAYER_TYPE,
        "annotations": {f"{hooks.PREFIX}.entries": value, f"{hooks.PREFIX}.container": 7},
    }
    (scratch / "layout/blobs/sha256").mkdir(parents=True)
    described.update(image_layouts.put_blob(scratch / "layout", layer(file("a"))))
    config = {
        "rootfs": {"type": "layers", "diff_ids": [described["digest"]]},
        "history": [{"created": 5, "created_by": ["x"]}],
    }
    image_layouts.put(scratch / "layout", "latest", config=config, manifest={"layers": [described]})

    (found,) = json.loads(history.output_of("log", "--json", scratch / "layout"))
    assert {found[key] for key in ("entries", "container", "created", "created_by")} == {None}


def test_an_image_without_layers(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest")

    assert history.output_of("log", scratch / "layout").count("\n") == 1
    assert json.loads(history.output_of("log", "--json", scratch / "layout")) == []


def test_a_tag_that_is_not_there(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "main", layers=[layer(file("a"))])

    complaint = history.complaint_of("log", scratch / "layout")
    assert complaint.endswith("no tag latest; its tags are: main\n")


def test_what_is_no_layout(scratch: Path) -> None:
    (scratch / "file").touch()
    os.mkdir(scratch / "directory")

    for name in ("file", "directory", "missing"):
        assert f"{scratch}/{name}" in history.complaint_of("log", scratch / name)


def test_help_has_examples() -> None:
    assert "archive_overlay log --json /srv/data:main\n" in history.output_of("log", "--help")


@pytest.mark.parametrize("arguments", [(), ("--wrong", "a")])
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    result = history.run("log", *arguments)

    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: archive_overlay log ")


def test_options_of_the_hook_do_not_go_with_a_command(scratch: Path) -> None:
    result = history.run("--log-level=debug", "log", scratch)

    assert (result.status, result.stdout) == (2, "")
    assert "the options of the hook mean nothing to log" in result.stderr
