"""The image below a container's overlay: found in the engine's store, and in nothing that only looks like one."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from archive_overlay.overlay.base import ContainerBase, container_base
from archive_overlay.overlay.dialect import NATIVE_USERXATTR
from archive_overlay.overlay.image_layers import StoredImage, image_of_store
from archive_overlay.overlay.labels import container_labels
from archive_overlay.overlay.layers import canonical
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.store import Place
from tests.support.image_stores import CONTAINER, IMAGE, LAYER, TOP, ImageStore

BOTTOM = "1234" * 16
LOG = Log("panic", [])


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Store(ImageStore):
    """A store with a container, made of an image of two layers.

    Attributes:
        directory: whose it is.
    """

    def __init__(self, directory: Path, driver: str = "overlay") -> None:
        super().__init__(directory, driver)
        self.directory = directory
        for layer in (BOTTOM, TOP, LAYER):
            (self.driver / layer / "diff").mkdir(parents=True)
            (self.driver / layer / "merged").mkdir(exist_ok=True)
        for short, layer in (("BOTTOM", BOTTOM), ("TOP", TOP)):
            (self.driver / "l").mkdir(exist_ok=True)
            (self.driver / "l" / short).symlink_to(f"../{layer}/diff")
        (self.driver / LAYER / "lower").write_text("l/TOP:l/BOTTOM")
        self.tars = [b"tar of the bottom", b"tar of the top"]
        self.layers = [
            {"id": BOTTOM, "diff-digest": sha256(self.tars[0])},
            {"id": TOP, "parent": BOTTOM, "diff-digest": sha256(self.tars[1])},
            {"id": LAYER, "parent": TOP},
        ]
        self.write()

    def base(self, *lowers: Path, upper: Path | None = None) -> ContainerBase:
        """Find what lies below an overlay of the container: its root file system, if no upperdir is given."""
        self.write()
        overlay = OverlayMount(
            upper=str(upper or self.driver / LAYER / "diff"),
            lowers=tuple(map(str, lowers or (self.driver / TOP / "diff", self.driver / BOTTOM / "diff"))),
            dialect=NATIVE_USERXATTR,
        )
        return container_base(overlay, [str(self.driver)])

    def mounted(self, *lowers: Path) -> ContainerBase:
        """Find what lies below another overlay of the container, with an upperdir in its bundle."""
        return self.base(*lowers, upper=self.bundle / "overlay" / "1" / "upper")

    def keep_tar(self, layer: str, *entries: dict[str, Any], members: int = 1) -> Path:
        """Keep what is needed to put a layer's tar together."""
        lines = [json.dumps(entry).encode() + b"\n" for entry in entries]
        path = self.path("layers") / f"{layer}.tar-split.gz"
        parts = (
            [b"".join(lines[number::members]) for number in range(members)]
            if members > 1
            else [b"".join(lines)]
        )
        path.write_bytes(b"".join(map(gzip.compress, parts)))
        return path

    def say_diff_id(self, tar: bytes) -> None:
        """Have the store say what the topmost layer's tar is."""
        self.layers[1]["diff-digest"] = sha256(tar)

    def image(self) -> StoredImage:
        """Give the container's image."""
        return image_of_store(self.base())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage")


def raw(data: bytes) -> dict[str, Any]:
    return {"type": 2, "payload": base64.b64encode(data).decode()}


def contents(name: str, size: int) -> dict[str, Any]:
    return {"type": 1, "name": name, "size": size, "payload": "AAAAAAAAAAA="}


# Which image it is


def test_a_root_file_system_lies_on_the_topmost_layer_of_its_image(store: Store) -> None:
    by_link = store.base(store.driver / "l/TOP", store.driver / "l/BOTTOM")

    assert by_link.known
    assert by_link.ids == store.base().ids == (TOP,)


def test_what_the_engine_kept_of_the_containers_own_layer_is_not_below_it(store: Store) -> None:
    assert store.base(store.driver / LAYER / "diff1", store.driver / TOP / "diff").ids == (TOP,)


def test_an_image_mount_lies_on_the_image(store: Store, tmp_path: Path) -> None:
    assert store.mounted(store.driver / TOP / "merged").ids == (TOP,)
    (tmp_path / "link").symlink_to(store.directory)
    overlay = OverlayMount(upper="/u", lowers=(str(store.driver / TOP / "merged"),), dialect=NATIVE_USERXATTR)
    assert container_base(overlay, [str(tmp_path / "link" / "overlay")]).ids == (TOP,)


def test_other_ids_are_those_of_a_pulled_image(store: Store) -> None:
    first, second = (sha256(tar)[len("sha256:") :] for tar in store.tars)
    pulled = hashlib.sha256(f"{first}+{second}".encode()).hexdigest()

    assert store.base().with_all_ids().ids == (TOP, pulled)
    assert canonical([sha256(store.tars[0])]) == first


def test_of_several_lists_the_container_s_may_be_that_of_containers_run_with_rm(store: Store) -> None:
    own = store.layers.pop()
    base = store.base()
    (store.path("layers") / "volatile-layers.json").write_text(json.dumps([own]))

    assert len(base.with_all_ids().ids) == 2


# What is unknown


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("volume", "is a directory of the host, not an image"),
        (f"storage/overlay/{TOP}/diff", "is a directory of the host, not an image"),
        (f"storage/overlay/{TOP}/merged/etc", "is a part of an image"),
        (f"storage/overlay/{TOP}/../{TOP}/merged", "is a directory of the host, not an image"),
        ("storage/overlay/l/merged", "is a directory of the host, not an image"),
    ],
)
def test_a_directory_of_the_host_is_no_image(store: Store, tmp_path: Path, inner: str, said: str) -> None:
    base = store.mounted(tmp_path / inner)

    assert not base.known
    assert base.why_unknown == f"{tmp_path / inner} {said}"
    assert not base.with_all_ids().known


def test_a_volume_that_looks_like_a_store_is_none(store: Store, tmp_path: Path) -> None:
    # A container whose root user is the host's can make all of it, with the owners that an engine's store has.
    forged = Store(tmp_path / "volume")

    assert not store.mounted(forged.driver / TOP / "merged").known
    assert not store.base(forged.driver / BOTTOM / "diff").known


def test_a_second_store_is_believed_only_if_the_first_says_that_the_container_lies_on_its_layer(
    store: Store, tmp_path: Path
) -> None:
    second = Store(tmp_path / "second")
    store.layers = [{"id": LAYER, "parent": TOP}]
    lowers = (second.driver / "l/TOP", second.driver / "l/BOTTOM")

    assert len(store.base(*lowers).with_all_ids().ids) == 2

    store.layers = [{"id": LAYER, "parent": BOTTOM}]
    assert "does not say that the container lies on" in store.base(*lowers).why_unknown


@pytest.mark.parametrize("number", [0, 1])
def test_lists_that_others_may_write_are_not_believed(store: Store, tmp_path: Path, number: int) -> None:
    second = Store(tmp_path / "second")
    store.layers = [{"id": LAYER, "parent": TOP}]
    lowers = (second.driver / "l/TOP", second.driver / "l/BOTTOM")
    (second, store)[number].path("layers").chmod(0o777)

    base = store.base(*lowers).with_all_ids()

    assert not base.known
    assert "others can write" in base.why_unknown


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"toc-digest": sha256(b"table")},
        {"diff-digest": "sha512:00"},
        # Some releases note the digest of what was compressed.
        {"diff-digest": sha256(b"zstd"), "compressed-diff-digest": sha256(b"zstd"), "compression": 4},
    ],
    ids=["nothing", "table of contents", "another digest", "what was compressed"],
)
def test_a_layer_whose_tar_nobody_has_seen_makes_the_image_unknown(
    store: Store, record: dict[str, Any]
) -> None:
    store.layers[0] = {"id": BOTTOM, **record}

    base = store.base().with_all_ids()

    assert not base.known
    assert f"no diff ID of the layer {BOTTOM}" in base.why_unknown


@pytest.mark.parametrize("parent", [TOP, LAYER, "../../etc", "f" * 64])
def test_a_list_without_an_end_makes_the_image_unknown(store: Store, parent: str) -> None:
    store.layers[0]["parent"] = parent

    assert "do not list the layer" in store.base().with_all_ids().why_unknown


# Its layers, to be copied


def test_a_tar_is_put_together_of_its_headers_and_the_files(store: Store) -> None:
    diff = store.driver / TOP / "diff"
    (diff / "etc").mkdir()
    (diff / "etc" / "large").write_bytes(b"x" * 300_000)
    (diff / os.fsdecode(b"\xff")).write_bytes(b"name")
    tar = b"head" + b"x" * 300_000 + b"middle" + b"name" + b"end" * 100_000
    named = {"type": 1, "name_raw": base64.b64encode(b"./\xff").decode(), "size": 4}
    entries = [
        raw(b"head"),
        {"type": 1, "name": "./etc/", "payload": None},
        contents("./etc/../etc/large", 300_000),
        raw(b"middle"),
        named,
        raw(b"end" * 100_000),
        raw(b""),
    ]
    store.keep_tar(TOP, *entries)
    store.say_diff_id(tar)

    layer = store.image().layers[1]

    assert layer.has_tar
    assert layer.diff_id == sha256(tar)
    assert b"".join(layer.tar()) == tar
    assert not store.image().layers[0].has_tar


def expect_no_tar(store: Store, said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        list(store.image().layers[1].tar())


def test_no_link_in_a_layer_leads_out_of_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"secret")
    diff = store.driver / TOP / "diff"
    (diff / "link").symlink_to(tmp_path / "secret")
    (diff / "file").symlink_to(tmp_path / "secret" / "file")
    os.mkfifo(diff / "pipe")
    store.say_diff_id(b"secret")

    for name in ("link/file", "file", "pipe", f"../../../../../..{tmp_path}/secret/file", "gone", "."):
        store.keep_tar(TOP, contents(name, 6))
        expect_no_tar(store, "cannot be put together")


def test_a_file_that_is_not_what_it_was_is_noticed(store: Store) -> None:
    file = store.driver / TOP / "diff" / "file"
    store.keep_tar(TOP, contents("file", 6))
    store.say_diff_id(b"before")

    file.write_bytes(b"longer than before")
    expect_no_tar(store, "is not the file that it was")
    file.write_bytes(b"after.")
    expect_no_tar(store, "is not what its diff ID")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        '{"type":3,"payload":""}',
        '{"type":2,"payload":"*"}',
        '{"type":1,"name":"file","size":-1}',
        '{"type":1,"name":7,"size":1}',
        '{"type":1,"name":"\\ud800","size":1}',
    ],
)
def test_damaged_notes_are_an_error(store: Store, line: str) -> None:
    path = store.keep_tar(TOP)
    path.write_bytes(gzip.compress(f"{line}\n".encode()))

    expect_no_tar(store, "cannot be put together")


def test_notes_that_end_too_soon_are_an_error(store: Store) -> None:
    path = store.keep_tar(TOP, raw(b"data"), raw(b"more"))
    store.say_diff_id(b"datamore")
    assert list(store.image().layers[1].tar()) == [b"data", b"more"]

    whole = path.read_bytes()
    for end in range(len(whole) - 8):
        path.write_bytes(whole[:end])
        expect_no_tar(store, "cannot be put together")


def test_without_a_tar_a_layer_is_given_as_changes(store: Store) -> None:
    bottom, top = store.driver / BOTTOM / "diff", store.driver / TOP / "diff"
    (bottom / "gone").write_text("x")
    os.mknod(top / "gone", stat.S_IFCHR, os.makedev(0, 0))
    (top / "made").write_text("x")

    layer = store.image().layers[1]

    assert not layer.has_tar
    assert [(change.shown, change.kind) for change in layer.changes(LOG)] == [
        (".", "directory"),
        ("gone", "whiteout"),
        ("made", "file"),
    ]


def test_a_layer_that_was_given_to_others_is_not_given_with_their_owners(store: Store) -> None:
    store.layers[1]["uidmap"] = [{"container_id": 0, "host_id": 1, "size": 1000}]

    with pytest.raises(ArchiveError, match="has been given to other users"):
        store.image().layers[1].changes(LOG)


# Its configuration


def configure(store: Store, config: dict[str, Any], data: bytes | None = None) -> None:
    """Have the image's manifest name a configuration."""
    text = json.dumps(config).encode()
    store.add_manifest(json.dumps({"config": {"digest": sha256(text)}}))
    name = base64.b64encode(sha256(text).encode()).decode()
    (store.path("images") / IMAGE / f"={name}").write_bytes(data or text)


def test_the_configuration_is_that_of_the_image_with_these_layers(store: Store) -> None:
    config = {"os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in store.tars]}}
    configure(store, config)

    assert (store.image().id, store.image().config) == (IMAGE, config)

    configure(store, config, b"{}")
    assert (store.image().id, store.image().config) == (IMAGE, None)
    configure(store, {"rootfs": {"diff_ids": [sha256(b"others")]}})
    assert store.image().config is None
    store.images = []
    assert (store.image().id, store.image().config) == ("", None)


# What people call it


def labels(store: Store, **annotations: object) -> tuple[str, str]:
    store.write()
    place = Place(
        container=CONTAINER,
        bundle=str(store.bundle),
        root=str(store.root),
        environment_file="",
        annotations={key.replace("_", "."): value for key, value in annotations.items()},
    )
    found = container_labels(place)
    return found.name, found.image


def test_a_container_is_called_what_the_store_calls_it(store: Store) -> None:
    metadata = json.dumps({"image-name": "localhost/box:1", "name": "box"})
    store.containers[0].update(names=["box"], metadata=metadata)

    assert labels(store) == ("box", "localhost/box:1")


def test_in_a_pod_it_is_called_what_the_pod_calls_it(store: Store) -> None:
    store.containers[0]["names"] = ["k8s_box_pod_default_0"]
    cri_o = {"io.kubernetes.container.name": "box", "io.kubernetes.cri-o.ImageName": "quay.io/box:1"}
    containerd = {"io.kubernetes.cri.container-name": "box", "io.kubernetes.cri.image-name": "quay.io/box:1"}

    assert labels(store, **cri_o) == labels(store, **containerd) == ("box", "quay.io/box:1")


@pytest.mark.parametrize("metadata", [None, 7, "", "[]", "{", '{"image-name": 7}', "[" * 100_000])
@pytest.mark.parametrize("names", [None, [], [7], "box", {}])
def test_what_nobody_knows_is_nothing(store: Store, names: object, metadata: object) -> None:
    store.containers[0].update(names=names, metadata=metadata)

    assert labels(store) == ("", "")


def test_a_label_is_one_short_line(store: Store) -> None:
    name = "\033[2Jbox\n\u202e\ud800" + "x" * 1000
    assert labels(store, **{"io.kubernetes.container.name": name})[0] == ("[2Jbox" + "x" * 1000)[:255]
