"""The revisions of an image, as a person or a program reads them."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver
from tests.support import history, hooks, image_layouts
from tests.support.history import directory, file, layer

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

    assert headings.split() == ["REV", "WHEN", "(UTC)", "CONTAINER", "+", "-", "SIZE", "MESSAGE"]
    created = [each["created"] for each in image.config["history"] if "empty_layer" not in each]
    days, times = zip(*((each[:10], each[11:16]) for each in created))
    size = [str(each["size"]) for each in image.manifest["layers"]]
    assert [line.split()[:7] for line in lines] == [
        ["3", days[2], times[2], "c1", "1", "1", size[2]],
        ["2", days[1], times[1], "c1", "1", "0", size[1]],
        ["1", "2020-01-02", "03:04", "-", "-", "-", size[0]],
    ]
    assert lines[2].endswith("  COPY\\x1b[2J . /")
    assert len({line.index(size[0][-1] + "  COPY") for line in lines[2:]}) == 1
    assert max(map(len, lines)) <= 80


def test_json_has_all_that_is_known(two_revisions: Saver) -> None:
    image = image_layouts.read(two_revisions.archive, "main")
    found = json.loads(history.output_of("log", "--json", f"{two_revisions.archive}:main"))

    last = image.manifest["layers"][2]
    label = found[0].pop("base")
    assert label == "unknown"
    assert found[0] == {
        "tag": "main",
        "revision": 3,
        "parent": 2,
        "branched_from": None,
        "digest": last["digest"],
        "diff_id": image.config["rootfs"]["diff_ids"][2],
        "created": image.config["history"][3]["created"],
        "container": "c1",
        "container_name": None,
        "image": None,
        "archive": "data",
        "mount_point": "/data",
        "message": None,
        "entries": 1,
        "deletions": 1,
        "bytes": 1,
        "excluded": None,
        "size": last["size"],
        "created_by": "archive_overlay",
        "comment": image.config["history"][3]["comment"],
        "pieces": [{"first": 3, "last": 3, "digest": last["digest"], "size": last["size"], "in_image": True}],
        "fault": None,
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

    assert " 100K " in history.output_of("log", "--human-readable", scratch / "layout")


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

    assert history.output_of("log", scratch / "layout") == f"{scratch}/layout:latest (no revisions)\n"
    assert json.loads(history.output_of("log", "--json", scratch / "layout")) == []


def test_a_layout_without_images(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest")
    (scratch / "layout/index.json").write_text('{"schemaVersion": 2, "manifests": []}')

    for arguments in ((), ("--graph",), ("a/path",)):
        assert history.output_of("log", scratch / "layout", *arguments) == f"{scratch}/layout (no images)\n"
    assert json.loads(history.output_of("log", "--json", scratch / "layout")) == []


def test_a_tag_that_is_not_there(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "main", layers=[layer(file("a"))])

    complaint = history.complaint_of("log", f"{scratch}/layout:none")
    assert complaint.endswith("no tag none; its tags are: main\n")


def test_a_layout_whose_path_could_be_an_image(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "main", layers=[layer(file("a"))])
    image_layouts.put(scratch / "layout:main", "other", layers=[layer(file("b"))])

    complaint = history.complaint_of("log", f"{scratch}/layout:main")
    assert complaint.endswith(f"write {scratch}/layout:main/ or {scratch}/layout/:main\n")
    assert "layout:main/:other (1 revision)" in history.output_of("log", f"{scratch}/layout:main/")


def test_what_is_no_layout(scratch: Path) -> None:
    (scratch / "file").touch()
    os.mkdir(scratch / "directory")

    for name in ("file", "directory", "missing"):
        assert f"{scratch}/{name}" in history.complaint_of("log", scratch / name)


def test_help_has_examples() -> None:
    assert "archive_overlay log --graph /srv/data\n" in history.output_of("log", "--help")


# Branches, and what is known of revisions


def put(layout: Path, tag: str, *revisions: tuple[int, dict[str, str], list[Any]]) -> None:
    """Put an image into a layout: number, facts and entries of each revision; without facts it is another program's."""
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    layers, entries = [], []
    for number, facts, changed in revisions:
        created = f"2026-11-{number:02}T10:00:00Z"
        stored = {"mediaType": image_layouts.LAYER_TYPE, **image_layouts.put_blob(layout, layer(*changed))}
        if facts:
            own = {"revision": str(number), "container": "c1", "archive": "data", "mount-point": "/", **facts}
            stored["annotations"] = {f"{hooks.PREFIX}.{key}": value for key, value in own.items()}
        layers.append(stored)
        entries.append({"created": created, "created_by": "archive_overlay" if facts else "COPY . /"})
    diff_ids = [each["digest"] for each in layers]
    config = {"rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": entries}
    image_layouts.put(layout, tag, config=config, manifest={"layers": layers})


@pytest.fixture
def branches(scratch: Path) -> Path:
    """Give a layout with two branches, and two tags on one of them."""
    none: dict[str, str] = {}
    first = (1, none, [file("etc/passwd"), file("gone/a"), file("gone/b")])
    second = (2, {"container-name": "web", "image": "docker.io/library/alpine:3.19"}, [file("etc/group")])
    third = (3, {"message": "the third"}, [directory("etc", mode=0o700), file("a/b/c")])
    on_second = {"parent": "main@2", "base": "absent 123", "message": "a branch " * 10}
    layout = scratch / "layout"
    put(layout, "main", first, second, third, (4, {"base": "unknown"}, [file(".wh.gone")]))
    put(layout, "side", first, second, (3, on_second, [file("a/.wh..wh..opq")]))
    put(layout, "v1", first, second, third)
    return layout


def test_all_images_are_listed_and_what_they_share_once(branches: Path) -> None:
    shown = history.output_of("log", branches)

    assert [line for line in shown.splitlines() if line[:1] not in (" ", "")] == [
        f"{branches}:main (4 revisions)",
        "REV  WHEN (UTC)        CONTAINER  IMAGE        +  -   SIZE  MESSAGE",
        f"{branches}:side (3 revisions)",
        "REV  WHEN (UTC)        CONTAINER  +  -   SIZE  MESSAGE",
        f"{branches}:v1 (3 revisions)",
    ]
    assert shown.splitlines()[-1] == "  3  and older: as in main"
    assert max(len(line) for line in shown.splitlines()) <= 80
    everything = json.loads(history.output_of("log", "--json", branches))
    assert [(each["tag"], each["revision"]) for each in everything] == [
        *(("main", number) for number in (4, 3, 2, 1)),
        *(("side", number) for number in (3, 2, 1)),
        *(("v1", number) for number in (3, 2, 1)),
    ]


def test_what_is_known_of_a_revision(branches: Path) -> None:
    lines = history.output_of("log", f"{branches}:side").splitlines()

    assert lines[1].split()[3:5] == ["c1", "-"]
    said = " ".join(" ".join(lines[2:4]).split())
    assert said == f"{'a branch ' * 10}[on main@2, base not in here]"
    assert lines[4].split()[3:5] == ["web", "alpine:3.19"]
    assert history.output_of("log", f"{branches}:main").splitlines()[1].endswith("[base unknown]")
    found = json.loads(history.output_of("log", "--json", f"{branches}:side"))
    assert (found[0]["branched_from"], found[0]["base"]) == ("main@2", "absent 123")
    assert (found[1]["container_name"], found[1]["image"]) == ("web", "docker.io/library/alpine:3.19")


def test_branches_are_drawn(branches: Path) -> None:
    shown = history.output_of("log", "--graph", branches).splitlines()

    assert [line[:9].rstrip() for line in shown[1:]] == [
        "*     4",
        "|",
        "*     3",
        "| *   3",
        "| |",
        "| |",
        "|/",
        "*     2",
        "*     1",
    ]
    assert shown[2].endswith(" (main) [base unknown]")
    assert shown[3].endswith(" (v1) the third")
    assert " (side) a branch a branch" in shown[5]
    alone = history.output_of("log", "--graph", f"{branches}:side").splitlines()
    assert [line[:7].rstrip() for line in alone[1:]] == ["*   3", "|", "|", "*   2", "*   1"]


@pytest.mark.parametrize(
    ("paths", "main", "side"),
    [
        (["etc"], [3, 2, 1], [2, 1]),
        (["etc/passwd"], [1], [1]),
        (["/etc/group/"], [2], [2]),
        (["gone/b"], [4, 1], [1]),  # with its directory
        (["a/x"], [], [3]),  # hidden by an opaque directory
        (["a"], [3], [3]),
        (["nothing", "a/b/c"], [3], [3]),
        (["."], [4, 3, 2, 1], [3, 2, 1]),
        (["no"], [], []),
    ],
)
def test_revisions_that_touch_a_path(
    branches: Path, paths: list[str], main: list[int], side: list[int]
) -> None:
    for tag, expected in (("main", main), ("side", side)):
        found = json.loads(history.output_of("log", f"{branches}:{tag}", "--json", *paths))
        assert [each["revision"] for each in found] == expected
        shown = history.output_of("log", f"{branches}:{tag}", *paths).splitlines()[1:]
        assert [int(line[:3]) for line in shown if line[:3].strip()] == expected
    joined = history.output_of("log", "--graph", branches, *paths)
    assert len([line for line in joined.splitlines() if "*" in line]) == len({*main, *side}) + (
        3 in main and 3 in side
    )


def test_a_damaged_layer_is_listed_as_such(branches: Path) -> None:
    image = image_layouts.read(branches, "main")
    (branches / "blobs/sha256" / image.digests[1].partition(":")[2]).write_bytes(b"damaged")

    result = history.run("log", f"{branches}:main", "etc/passwd")

    assert result.status == 1
    (_, second, fault, *rest) = result.stdout.splitlines()
    assert second.split()[0] == "2"
    assert "may be listed wrongly: revision 2 of" in fault
    assert [line.split()[0] for line in rest if line[:3].strip()] == ["1"]
    assert history.run("log", f"{branches}:main").status == 0


def test_an_image_that_cannot_be_read_leaves_the_others(branches: Path) -> None:
    index = image_layouts.read_index(branches)
    (side,) = (each for each in index["manifests"] if image_layouts.tag_of(each) == "side")
    (branches / "blobs/sha256" / side["digest"].partition(":")[2]).write_bytes(b"{}")

    result = history.run("log", branches)

    assert result.status == 1
    assert f"{branches}:side (cannot be read)\n" in result.stdout
    assert f"{branches}:v1 (3 revisions)\n" in result.stdout
    assert result.stderr.startswith("archive_overlay: cannot read ")
    assert result.stderr.count("\n") == 1
    assert history.run("log", "--graph", branches).status == 1
    assert len(json.loads(history.run("log", "--json", branches).stdout)) == 7


def columns(text: str) -> int:
    return len(text) + len(re.findall("[箱像文字]", text))


def test_a_terminal_gets_colours_and_lines_that_fit(branches: Path) -> None:
    put(branches, "long", (1, {"container-name": "n" * 100, "image": "i" * 100, "message": "m" * 200}, []))

    shown = history.shown_on_terminal("log", f"{branches}:long")
    assert "\x1b[33m  1\x1b[0m" in shown
    assert max(len(re.sub("\x1b\\[\\d*m", "", line)) for line in shown.splitlines()) <= 80
    for settings in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "COLUMNS": "60"}):
        shown = history.shown_on_terminal("log", f"{branches}:long", **settings)
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= int(settings.get("COLUMNS", 80))
    # Of wide characters, half as many fit.
    put(
        branches,
        "wide",
        (1, {"container-name": "箱" * 30, "image": "像" * 30, "message": "文 " * 60 + "字" * 60}, []),
    )
    for width in ("80", "40"):
        lines = history.shown_on_terminal("log", f"{branches}:wide", NO_COLOR="1", COLUMNS=width).splitlines()
        assert max(map(columns, lines)) <= int(width)
        if width == "80":
            assert columns(lines[1].partition("像")[0]) == lines[0].index("IMAGE")
    # Programs get all of it.
    assert f"{'n' * 100}  {'i' * 100}" in history.output_of("log", f"{branches}:long")


@pytest.mark.parametrize("arguments", [(), ("--wrong", "a")])
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    result = history.run("log", *arguments)

    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: archive_overlay log ")


def test_options_of_the_hook_do_not_go_with_a_command(scratch: Path) -> None:
    result = history.run("--log-level=debug", "log", scratch)

    assert (result.status, result.stdout) == (2, "")
    assert "--log-level is an option of the hook" in result.stderr
