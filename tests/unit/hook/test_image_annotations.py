"""What an image's author writes into its manifest is the image's, however it is written."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.hook.image_annotations import Refusal, refusals
from archive_overlay.keys import PREFIX
from archive_overlay.overlay import images, store
from archive_overlay.overlay.images import Container
from tests.support import tools
from tests.support.image_stores import CONTAINER, IMAGE, LAYER, TOP, ImageStore, manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KEY = f"{PREFIX}data.archive-to"
VALUE = "/etc/cron.d/evil"
MOUNT_POINT = f"{PREFIX}data.mount-point"
ASKED = {MOUNT_POINT: "/", KEY: VALUE}


@pytest.fixture
def made(tmp_path: Path) -> ImageStore:
    """A store in which the image asks for nothing yet."""
    return ImageStore(tmp_path / "storage")


def judge(
    made: ImageStore,
    annotations: Mapping[str, object] = ASKED,
    *,
    asked: Sequence[str] = ("data",),
    root: str = "",
    bundle: str = "",
    environment_file: str = "",
    lowers: Sequence[str] = (),
) -> dict[str, Refusal]:
    """Write the store, and give what is refused of a container's requests."""
    made.write()
    container = Container(
        bundle=bundle or str(made.bundle),
        root=root or str(made.root),
        environment_file=environment_file,
        lowers=lambda: lowers,
    )
    return refusals(asked, annotations, container)


def expect_known(refused: Mapping[str, Refusal]) -> None:
    """Expect that the request is the image's."""
    assert "comes from the image localhost/evil:1" in refused["data"].reason


def expect_unknown(refused: Mapping[str, Refusal], reason: str, *, keep: bool = False) -> None:
    """Expect that nobody knows whose the request is.

    Args:
        refused: what is refused.
        reason: part of what is said.
        keep: whether a rescue may keep it, for the image has no part in it.
    """
    assert refused["data"].reason.startswith("it is not known whether the user or the image asks for it: ")
    assert reason in refused["data"].reason
    assert refused["data"].keep == keep


# What is the image's


def quoted(text: str) -> str:
    return json.dumps(text)


def escaped(text: str) -> str:
    """Write a string as JSON allows it, and nobody does."""
    return '"' + "".join(f"\\u{ord(char):04x}" for char in text) + '"'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(manifest(ASKED), id="as podman writes it"),
        pytest.param(json.dumps({"annotations": ASKED}, indent="\t"), id="with space"),
        pytest.param(f'{{"annotations":{{{escaped(KEY)}:{quoted(VALUE)}}}}}', id="key escaped"),
        pytest.param(f'{{"annotations":{{{quoted(KEY)}:{escaped(VALUE)}}}}}', id="value escaped"),
        pytest.param(f'{{"annotations":{{{quoted(KEY)} \n:\r\t{quoted(VALUE)}}}}}', id="around the colon"),
        pytest.param(json.dumps({"aNNotationS": ASKED}), id="member in other letters"),
        pytest.param(json.dumps({"annotation\u017f": ASKED}), id="member with a long s"),
        pytest.param('{"annotations":' + json.dumps(ASKED) + ',"annotations":{}}', id="member doubled"),
        pytest.param('{"annotations":{},"annotations":' + json.dumps(ASKED) + "}", id="member doubled, last"),
        pytest.param(
            f'{{"annotations":{{{quoted(KEY)}:"other",{quoted(KEY)}:{quoted(VALUE)}}}}}',
            id="key doubled, last",
        ),
        pytest.param(
            f'{{"annotations":{{{quoted(KEY)}:{quoted(VALUE)},{quoted(KEY)}:"other"}}}}',
            id="key doubled, first",
        ),
        pytest.param(json.dumps({"manifests": [{"annotations": ASKED}]}), id="of an index's manifest"),
        pytest.param("[" * 200_000 + json.dumps(ASKED), id="deeper than JSON is read"),
        pytest.param(
            '{"n":' + "9" * 10_000 + ',"annotations":' + json.dumps(ASKED) + "}", id="a long number"
        ),
        pytest.param(json.dumps(ASKED) + " and more", id="something after it"),
    ],
)
def test_an_annotation_of_the_manifest_is_the_image_s(made: ImageStore, text: str) -> None:
    made.add_manifest(text)

    expect_known(judge(made))


@pytest.mark.parametrize("half", ["\\ud800", "\\udfff", "\\ud800\\ud800", "\\uD800x"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_half_a_character_is_what_go_makes_of_it(made: ImageStore, where: str, half: str) -> None:
    key = KEY.replace("data", "data{}") if where == "name" else KEY
    value = VALUE if where == "name" else VALUE + "{}"
    made.add_manifest('{"annotations":{"' + key.format(half) + '":"' + value.format(half) + '"}}')
    became = half.replace("\\ud800", "\ufffd").replace("\\udfff", "\ufffd").replace("\\uD800", "\ufffd")

    refused = judge(
        made,
        {key.format(became): value.format(became)},
        asked=[f"data{became}" if where == "name" else "data"],
    )

    assert [each.reason.count("comes from the image") for each in refused.values()] == [1]


def test_it_is_in_the_form_with_a_slash_too(made: ImageStore) -> None:
    slashed = {f"{PREFIX}data/mount-point": "/", f"{PREFIX}data/archive-to": VALUE}
    made.add_manifest(manifest(slashed))

    expect_known(judge(made, slashed))


def test_one_annotation_of_the_image_is_enough(made: ImageStore) -> None:
    made.add_manifest(manifest({f"{PREFIX}data.success": "/etc/nologin"}))

    refused = judge(made, {**ASKED, f"{PREFIX}data.success": "/etc/nologin"})

    expect_known(refused)
    assert f"annotation {PREFIX}data.success " in refused["data"].reason


def test_a_manifest_that_the_image_no_longer_has_counts(made: ImageStore) -> None:
    # Pulled again, the image has the same id and another manifest.
    made.add_manifest(manifest(ASKED), last=False)
    made.add_manifest(manifest({}))

    expect_known(judge(made))


def test_an_image_without_a_name_is_named_by_its_id(made: ImageStore) -> None:
    del made.images[0]["names"]
    made.add_manifest(manifest(ASKED))

    assert f"the image {IMAGE[:12]}," in judge(made)["data"].reason

    made.images[0]["names-history"] = ["localhost/was:1"]
    assert "the image localhost/was:1," in judge(made)["data"].reason


def test_only_what_the_user_wants_saved_is_kept(made: ImageStore) -> None:
    made.add_manifest(manifest({KEY: VALUE}))
    assert judge(made)["data"].keep

    made.add_manifest(manifest({MOUNT_POINT: "/"}))
    assert not judge(made)["data"].keep


# What is the user's


@pytest.mark.parametrize(
    "value", ["/etc/cron.d/evil ", "/etc/cron.d/evi", "/etc//cron.d/evil", "/etc/cron.d/Evil"]
)
def test_the_user_s_value_takes_the_image_s_place(made: ImageStore, value: str) -> None:
    made.add_manifest(manifest({KEY: VALUE}))

    assert judge(made, {**ASKED, KEY: value}) == {}


def test_an_empty_value_is_nobody_s(made: ImageStore) -> None:
    made.add_manifest(manifest({f"{PREFIX}data.success": ""}))

    assert judge(made, {**ASKED, f"{PREFIX}data.success": ""}) == {}


def test_other_archives_are_made(made: ImageStore) -> None:
    made.add_manifest(manifest(ASKED))
    own = {f"{PREFIX}own.mount-point": "/", f"{PREFIX}own.archive-to": VALUE}

    assert list(judge(made, {**ASKED, **own}, asked=["data", "own"])) == ["data"]


def test_what_only_looks_like_an_annotation_is_none(made: ImageStore) -> None:
    text = json.dumps(
        {"a": KEY, VALUE: KEY, "b": [KEY, VALUE], KEY: {"c": VALUE}, f"x{KEY}": VALUE, "\\": '"'}
    )
    made.add_manifest(text)

    assert judge(made) == {}


def test_values_that_are_no_strings_are_none_of_the_image_s(made: ImageStore) -> None:
    made.add_manifest(json.dumps({"annotations": {KEY: 1}}))

    assert judge(made, {**ASKED, KEY: 1}) == {}


def test_an_honest_image_costs_four_reads(made: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made.containers.append({"id": "other"})
    made.add_manifest(manifest({}))
    for number in range(20):
        made.images.append({"id": f"{number:064}", "layer": TOP})
        made.add_manifest(manifest({}), image=f"{number:064}")
    read = []
    bytes_of = store.bytes_of

    def counted(path: str, *arguments: Any, **options: Any) -> bytes:
        read.append(os.path.basename(path)[:9])
        return bytes_of(path, *arguments, **options)

    monkeypatch.setattr(store, "bytes_of", counted)

    assert judge(made) == {}
    assert sorted(read) == ["=bWFuaWZl", "container", "images.js", "manifest"]


# Which image it is


def test_another_image_with_the_same_layers_has_no_say(made: ImageStore) -> None:
    made.images.append({"id": "55aa" * 16, "names": ["localhost/other:1"], "layer": TOP})
    made.add_manifest(manifest({}))
    made.add_manifest(manifest(ASKED), image="55aa" * 16)

    assert judge(made) == {}


@pytest.mark.parametrize(
    "record", [{"layer": TOP}, {"layer": "77bb" * 16, "mapped-layers": ["88cc" * 16, TOP]}]
)
def test_without_a_record_of_the_container_the_layer_below_names_it(
    made: ImageStore, record: dict[str, object]
) -> None:
    made.containers.clear()
    made.images[0].update(record)
    made.add_manifest(manifest(ASKED))

    expect_known(judge(made))


def test_the_layers_of_a_container_run_with_rm_are_known(made: ImageStore) -> None:
    made.containers.clear()
    made.add_manifest(manifest(ASKED))
    made.write()
    volatile = made.path("layers") / "volatile-layers.json"
    volatile.write_text(json.dumps([made.layers.pop()]))

    expect_known(judge(made))


def test_a_container_run_with_rm_is_known(made: ImageStore) -> None:
    made.add_manifest(manifest(ASKED))
    volatile = made.path("containers") / "volatile-containers.json"
    volatile.write_text(json.dumps(made.containers))
    made.containers.clear()

    expect_known(judge(made))


def test_a_container_is_known_by_its_layer_where_the_bundle_says_nothing(made: ImageStore) -> None:
    made.add_manifest(manifest(ASKED))

    expect_known(judge(made, bundle="/run/bundle"))


def test_a_list_of_containers_may_be_elsewhere(made: ImageStore, tmp_path: Path) -> None:
    other = ImageStore(tmp_path / "run")
    (other.path("containers") / "volatile-containers.json").write_text(json.dumps(made.containers))
    made.containers.clear()
    made.layers.clear()
    made.add_manifest(manifest(ASKED))

    expect_known(judge(made, environment_file=str(other.bundle / ".containerenv")))


def test_the_bundle_may_be_elsewhere(made: ImageStore, tmp_path: Path) -> None:
    # As with CRI-O, whose bundles are gone after a reboot.
    run = ImageStore(tmp_path / "run")
    made.add_manifest(manifest(ASKED))

    expect_known(judge(made, bundle=str(run.bundle)))


def test_a_store_of_another_driver_is_a_store(tmp_path: Path) -> None:
    made = ImageStore(tmp_path, "vfs")
    made.add_manifest(manifest(ASKED))

    expect_known(judge(made, root=str(tmp_path / "vfs/dir" / LAYER)))


@pytest.mark.parametrize("owner", [None, 0, 65534])
def test_the_image_may_be_in_a_second_store(made: ImageStore, tmp_path: Path, owner: int | None) -> None:
    second = ImageStore(tmp_path / "second")
    second.add_manifest(manifest(ASKED))
    second.write()
    if owner is not None:
        tools.need_root()
        os.chown(second.path("images"), owner, owner)
    (second.driver / TOP / "diff").mkdir(parents=True)
    (second.driver / "l").mkdir()
    (second.driver / "l/SHORT").symlink_to(f"../{TOP}/diff")
    made.images.clear()

    expect_known(judge(made, lowers=[str(tmp_path), str(second.driver / "l/SHORT")]))
    expect_known(judge(made, lowers=[str(second.driver / TOP / "diff")]))


def test_a_second_store_of_another_user_is_not_believed(made: ImageStore, tmp_path: Path) -> None:
    tools.need_root()
    second = ImageStore(tmp_path / "second")
    second.write()
    os.chown(second.path("images"), 1000, 1000)
    made.images.clear()

    expect_unknown(judge(made, lowers=[str(second.driver / TOP / "diff")]), "others can write to", keep=True)


@pytest.mark.parametrize("which", ["containers", "images"])
def test_a_list_that_others_may_write_is_not_believed(made: ImageStore, which: str) -> None:
    made.add_manifest(manifest({}))
    made.write()
    path = made.path(which) / f"{which}.json"
    path.chmod(0o666)

    expect_unknown(judge(made), f"others can write to {path}", keep=True)


# Where it cannot be told


def test_a_container_of_no_store_is_believed(made: ImageStore, tmp_path: Path) -> None:
    made.add_manifest(manifest(ASKED))
    merged = tmp_path / "docker/overlay2" / LAYER / "merged"
    merged.mkdir(parents=True)

    for root in (tmp_path / "rootfs", merged):
        assert judge(made, bundle="/run/bundle", root=str(root)) == {}


@pytest.mark.parametrize("kind", ["containers", "images"])
def test_a_container_of_no_image_is_believed(made: ImageStore, kind: str) -> None:
    made.add_manifest(manifest(ASKED))
    if kind == "containers":
        del made.containers[0]["image"]
    else:
        made.images.clear()

    assert judge(made) == {}


def test_without_any_record_it_is_believed(made: ImageStore) -> None:
    made.add_manifest(manifest(ASKED))
    made.containers.clear()
    made.layers.clear()

    assert judge(made) == {}


# What cannot be read opens no door


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(manifest({}).encode() + b"\xff", "is not UTF-8", id="not UTF-8"),
        pytest.param(
            manifest({KEY: "{}"}).encode().replace(b"{}", b"\xed\xa0\x80"), "is not UTF-8", id="a half"
        ),
        pytest.param(f'{{"\\n": "{PREFIX}', "is not valid JSON", id="no end"),
        pytest.param(f'{{"{KEY}"', "is not valid JSON", id="no value"),
        pytest.param(f'{{"{KEY}": "\n"}}', "is not valid JSON", id="a bare line end"),
        pytest.param(" " * (4 << 20) + "{}", "longer than any manifest", id="long"),
    ],
)
def test_a_manifest_that_cannot_be_read(made: ImageStore, text: str | bytes, reason: str) -> None:
    made.add_manifest(text)

    expect_unknown(judge(made), reason)


def test_as_many_manifests_as_years_of_pulling_leave(made: ImageStore) -> None:
    for number in range(3):
        made.add_manifest(json.dumps({"number": number}) + " " * ((4 << 20) - 100), last=False)

    assert not judge(made)


def test_more_manifests_than_any_image_has(made: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_LONGEST_MANIFESTS", 1 << 23)
    for number in range(3):
        made.add_manifest(json.dumps({"number": number}) + " " * ((4 << 20) - 100), last=False)

    expect_unknown(judge(made), "longer than any manifest")


def test_no_manifest_is_opened_that_is_no_file(made: ImageStore) -> None:
    path = made.add_manifest(manifest({}))
    path.unlink()
    os.mkfifo(path)
    expect_unknown(judge(made), "is not a regular file")

    path.unlink()
    path.symlink_to(made.driver)
    expect_unknown(judge(made), "symbolic link")


def test_an_image_without_its_directory(made: ImageStore) -> None:
    expect_unknown(judge(made), f"overlay-images/{IMAGE}: No such file")


@pytest.mark.parametrize("kind", ["containers", "images"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_store_that_others_can_write_to(made: ImageStore, kind: str, mode: int) -> None:
    made.add_manifest(manifest({}))
    made.path(kind).chmod(mode)

    expect_unknown(judge(made), f"others can write to {made.path(kind)}", keep=True)


@pytest.mark.parametrize("image", ["../" * 3 + "etc", "a/b", 1, ["x"], "\ud800"])
def test_an_image_s_id_is_no_path(made: ImageStore, image: object) -> None:
    made.containers[0]["image"] = image
    made.images[0]["id"] = image

    expect_unknown(judge(made), "which is not the id of an image", keep=True)

    made.containers.clear()
    expect_unknown(judge(made), "an image without an id", keep=True)


@pytest.mark.parametrize("kind", ["containers", "images"])
@pytest.mark.parametrize("text", ["", "[", "[{}", "[{},", "[{}] x", "{}{}", "[" * 100_000, '[{"id": "\\x"}]'])
def test_a_list_that_is_damaged(made: ImageStore, kind: str, text: str) -> None:
    made.add_manifest(manifest({}))
    made.write()
    made.write = lambda: None  # type: ignore[method-assign]
    (made.path(kind) / f"{kind}.json").write_text(text)

    expect_unknown(judge(made), f"{kind}.json is not valid JSON, or not a list", keep=True)


# Lists of the store


LISTS: tuple[object, ...] = (
    *([], None, {}, [{}], [[], [{}]]),
    [{"a": [1, {"b": "]"}]}, 1, "x", None, {"c": 2.5}],
)


@pytest.mark.parametrize("listed", LISTS, ids=str)
@pytest.mark.parametrize("indent", [None, 2])
def test_lists_are_read_as_json_is(tmp_path: Path, listed: object, indent: int | None) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(listed, indent=indent) + "\n")

    assert list(store.elements(str(path))) == [
        each for each in (listed if isinstance(listed, list) else []) if isinstance(each, dict)
    ]


def test_the_image_of_a_container_is_found_in_its_store_alone(made: ImageStore) -> None:
    made.add_manifest(manifest({}))
    made.write()
    found = images.of_container(
        Container(
            bundle=str(made.bundle), root="", environment_file="", lowers=lambda: pytest.fail("not needed")
        )
    )

    assert [(image.name, image.directory) for image in found] == [
        ("localhost/evil:1", str(made.path("images") / IMAGE))
    ]
    assert str(made.bundle).endswith(f"overlay-containers/{CONTAINER}/userdata")
