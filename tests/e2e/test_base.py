"""What a container started from: the hook's view of podman's stores, compared with the layouts that the images came from."""

from __future__ import annotations

import json
import os
import re
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.overlay.layers import canonical
from tests.support import hooks, image_layouts
from tests.support.engines import HOOK, IMAGE_ROOT, Engine

if TYPE_CHECKING:
    from tests.support.engines import Machine

TOP = Path(__file__).resolve().parents[2]

# What the hook would find when the container stops, for each of its mount points. It runs where hooks run.
SCRIPT = """
import hashlib, json, os, sys
sys.path.insert(0, sys.argv[1] + "/site-packages")
from archive_overlay.hook.runtime import read_spec
from archive_overlay.log import Log
from archive_overlay.overlay.base import container_base
from archive_overlay.overlay.image_layers import image_of_store
from archive_overlay.overlay.labels import container_labels
from archive_overlay.overlay.locate import environment_file, find_overlay
from archive_overlay.overlay.store import Place, stores_of

bundle, *mount_points = sys.argv[2:]
spec = read_spec(bundle)
place = Place(container=os.path.basename(os.path.dirname(bundle)), bundle=bundle, root=spec.root,
    environment_file=environment_file(spec.mounts), annotations=spec.annotations)
labels = container_labels(place)
found = {"name": labels.name, "image": labels.image}
stores = stores_of(bundle, spec.root)
for mount_point in mount_points:
    overlay = find_overlay(
        spec.mounts, spec.root, mount_point, mount_program="/usr/bin/fuse-overlayfs", bundle=bundle)
    base = container_base(overlay, stores)
    found[mount_point] = {"ids": base.ids, "why": base.why_unknown}
    if not base.known:
        continue
    image = image_of_store(base)
    found[mount_point].update(
        all_ids=base.with_all_ids().ids,
        id=image.id,
        config=image.config,
        diff_ids=[layer.diff_id for layer in image.layers],
        digests=["sha256:" + hashlib.sha256(b"".join(layer.tar())).hexdigest() for layer in image.layers],
        changes=[
            {change.shown: str(change.kind) for change in layer.changes(Log("panic", []))}
            for layer in image.layers if not layer.layer.has_other_owners
        ],
    )
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Started:
    """What podman made containers of, in a store of its own kind.

    Attributes:
        engine: podman.
        name: the beginning of the names of all that belongs to it.
        layout: an image layout in its home, a path for this process.
    """

    engine: Engine
    name: str
    layout: Path

    def found(self, image: str, *mount_points: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """Start a container, and give what the hook finds of its base."""
        name = f"{self.name}-{image.rpartition(':')[2]}"
        self.engine.run(
            name, *options, image=image, command="exec sleep infinity", annotations={}, detach=True
        )
        bundle = os.path.dirname(self.engine.inspect(name, "OCIConfigPath"))
        said = self.engine.as_container_root(
            *("/usr/bin/python3", "-ISB", "-c", SCRIPT, HOOK, bundle, *mount_points)
        )
        found: dict[str, Any] = json.loads(said)
        assert (found["name"], found["image"]) == (name, image)
        return found


@pytest.fixture(
    params=[
        pytest.param((False, "native"), id="rootful-native"),
        pytest.param((False, "fuse"), id="rootful-fuse"),
        pytest.param((True, "native"), id="rootless-native"),
        pytest.param((True, "fuse"), id="rootless-fuse"),
    ]
)
def started(request: pytest.FixtureRequest, machine: Machine) -> Started:
    """Give an engine, and a place for a layout that it can read."""
    rootless, kind = request.param
    engine = Engine(machine, rootless=rootless, store=kind, runtime="crun")
    # Several tests have such an engine on one machine.
    name = f"base-{request.node.callspec.id}-{zlib.crc32(request.node.name.encode()):08x}"
    return Started(engine, name, machine.outside(engine.new_directory(name)) / "layout")


def layers_in(directory: Path) -> list[bytes]:
    """Make three layers: of the second, one name is a deletion, and one file has two names."""
    tars = []
    for number, names in enumerate((["gone", "kept/file"], [".wh.gone", "kept/linked"], ["last"])):
        tree = directory / str(number)
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text("" if name.startswith(".wh.") else f"{name} of layer {number}\n")
        if number == 1:
            os.link(tree / "kept/linked", tree / os.fsdecode(b"kept/\xff not UTF-8"))
            (tree / "link").symlink_to("/etc")
        tars.append(image_layouts.tar_of(tree))
    return tars


def test_the_layers_below_a_container_are_those_of_its_image(started: Started, tmp_path: Path) -> None:
    engine = started.engine
    image_layouts.put(started.layout, "main", layers=layers_in(tmp_path))
    layout = started.layout.relative_to(engine.machine.outside("/"))
    pulled = engine.podman("pull", "--quiet", f"oci:/{layout}:main").stdout.strip()
    volume = engine.new_directory(f"{started.name}/volume")

    data = f"type=image,source={pulled},destination=/data,rw=true"
    options = (f"--mount={data}", f"--volume={volume}:/volume:O")
    found = started.found("localhost/test:1", "/", "/data", "/volume", options=options)

    image = image_layouts.read(started.layout, "main")
    diff_ids = image.config["rootfs"]["diff_ids"]
    assert found["/data"]["diff_ids"] == found["/data"]["digests"] == diff_ids
    assert found["/data"]["id"] == pulled
    assert found["/data"]["config"] == image.config
    # The store's directory is called as a pulled layer is, so nothing more has to be read.
    assert found["/data"]["all_ids"] == found["/data"]["ids"]
    _, second, _ = found["/data"]["changes"]
    assert second["gone"] == "whiteout"
    assert found["/"]["digests"] == found["/"]["diff_ids"]
    assert len(found["/"]["digests"]) == 1
    assert found["/volume"]["ids"] == []
    assert found["/volume"]["why"].endswith(f"{volume} is a directory of the host, not an image")

    (started.layout.parent / "Containerfile").write_text("FROM localhost/test:1\nADD Containerfile /added\n")
    tag = f"localhost/{started.name}:built"
    engine.podman("build", "--quiet", "--tag", tag, f"/{layout.parent}")
    built = started.found(tag, "/")

    assert built["/"]["digests"] == built["/"]["diff_ids"]
    assert built["/"]["diff_ids"][0] == found["/"]["diff_ids"][0]
    assert len(built["/"]["digests"]) == 2
    engine.podman("rm", "--force", "--time=0", f"{started.name}-1", f"{started.name}-built")


@pytest.mark.parametrize("started", [pytest.param((True, "native"), id="rootless-mapped")], indirect=True)
def test_a_copy_with_other_owners_is_known_by_what_it_was_made_of(started: Started, tmp_path: Path) -> None:
    image_layouts.put(started.layout, "main", layers=[*layers_in(tmp_path), bottom(started)])
    layout = started.layout.relative_to(started.engine.machine.outside("/"))
    pulled = started.engine.podman("pull", "--quiet", f"oci:/{layout}:main").stdout.strip()
    tag = f"localhost/{started.name}:pulled"
    started.engine.podman("tag", pulled, tag)

    found = started.found(tag, "/", options=("--uidmap=0:1:1000",))["/"]

    diff_ids = image_layouts.read(started.layout, "main").config["rootfs"]["diff_ids"]
    own, pulled_as = found["all_ids"]
    assert found["ids"] == [own]
    assert pulled_as == canonical(diff_ids) != own
    assert found["digests"] == diff_ids
    started.engine.podman("rm", "--force", "--time=0", f"{started.name}-pulled")


def test_a_history_begins_with_a_copy_of_the_image(started: Started, tmp_path: Path) -> None:
    engine = started.engine
    image_layouts.put(started.layout, "main", layers=layers_in(tmp_path))
    data = f"{engine.home}/{started.name}"
    pulled = engine.podman("pull", "--quiet", f"oci:{data}/layout:main").stdout.strip()
    engine.podman("tag", pulled, f"localhost/{started.name}:data")
    diff_ids = image_layouts.read(started.layout, "main").config["rootfs"]["diff_ids"]

    def work(container: str, image: str, command: str, name: str = "history") -> None:
        asked = {
            "mount_point": "/data",
            "method": "oci",
            "archive_to": f"{data}/{name}:main",
            "base": "include",
        }
        engine.run(
            f"{started.name}-{container}",
            *("--mount", f"type=image,source={image},destination=/data,rw=true"),
            command=command,
            annotations=hooks.annotations("data", **asked),
        )

    work("first", f"localhost/{started.name}:data", "echo hello >/data/greeting; rm /data/last")
    history = engine.machine.outside(data) / "history"
    first = image_layouts.read(history, "main")
    assert first.config["rootfs"]["diff_ids"][:3] == diff_ids
    assert [each["comment"].split(":")[0] for each in first.config["history"][3:]] == ["revision 4"]
    # The image of before is one of the history's revisions, whoever pulled it.
    work("second", f"localhost/{started.name}:data", "echo branch >/data/greeting")
    (branch,) = [tag for tag in image_layouts.tags(history) if tag != "main"]
    assert image_layouts.read(history, branch).digests[:3] == first.digests[:3]

    next_one = engine.podman("pull", "--quiet", f"oci:{data}/history:main").stdout.strip()
    work(
        "third",
        next_one,
        "cat /data/greeting >/data/again; cat /data/kept/linked >>/data/again; ls /data >/data/names",
    )

    assert len(image_layouts.read(history, "main").layers) == 5
    engine.as_container_root("/usr/bin/python3", "-ISB", HOOK, "verify", "--read-data", f"{data}/history")
    engine.as_container_root(
        "/usr/bin/python3", "-ISB", HOOK, "extract", f"{data}/history:main", f"{data}/out"
    )
    out = engine.machine.outside(f"{data}/out")
    assert (out / "again").read_text() == "hello\nkept/linked of layer 1\n"
    assert set((out / "names").read_text().split()) == {"again", "greeting", "kept", "link", "names"}

    # Of what was made on this host, the store has other names than of what was pulled.
    work("on-imported", "localhost/test:1", "echo hello >/data/greeting", "imported")
    next_one = engine.podman("pull", "--quiet", f"oci:{data}/imported:main").stdout.strip()
    work("on-pulled", next_one, "cat /data/greeting >/data/again; ls /data/bin >/data/names", "imported")
    imported = image_layouts.read(engine.machine.outside(data) / "imported", "main")
    assert imported.layers[0].tar == bottom(started)
    assert [each["comment"].split(":")[0] for each in imported.config["history"][1:]] == [
        "revision 2",
        "revision 3",
    ]
    assert {"again", "names"} <= set(imported.layers[2].names)


def bottom(started: Started) -> bytes:
    """Give the layer of the test image, with what a container needs to run."""
    return started.engine.machine.outside(f"{IMAGE_ROOT}.tar").read_bytes()


@pytest.mark.parametrize("started", [pytest.param((False, "native"), id="rootful-readme")], indirect=True)
def test_the_example_of_the_readme_goes_on_where_it_left(started: Started) -> None:
    engine = started.engine
    section = (TOP / "README.md").read_text().partition("\n## History\n")[2]
    commands = re.findall(r"(?:P=|podman tag|podman run)(?:.*\\\n)*.*", section)
    data = f"{engine.home}/{started.name}"
    tag, prefix, run = (each.replace("\\\n", " ").replace("$HOME", data) for each in commands[:3])
    engine.podman("tag", "localhost/test:1", "docker.io/library/alpine")
    engine.podman(*shlex.split(tag)[1:])
    options = "run --rm --pull=never --cgroups=disabled"
    words = run.replace("podman run --rm", options, 1).replace("$P", prefix[2:])

    said = [engine.podman(*shlex.split(words)).stdout for _ in range(3)]

    assert said == ["hello\n", "hello\n" * 2, "hello\n" * 3]
    image = image_layouts.read(engine.machine.outside(f"{data}/data"), "main")
    assert image.layers[0].tar == bottom(started)
    assert [set(layer.names) for layer in image.layers[1:]] == [{".", "greeting"}] * 3
