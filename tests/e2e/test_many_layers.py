"""Images of so many layers that engines mount them in another way."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.archives import read_tar
from tests.support import hooks
from tests.support.engines import HERE, IMAGE_ROOT, Engine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Machine

# With absolute paths, the mount options of so many layers would not fit into the page that mount(2) takes.
LAYERS = 60


@pytest.fixture(scope="module")
def layout(machine: Machine) -> str:
    """Make an image layout of the test image, and of layers of one file each above it."""
    directory = machine.outside(f"{HERE}/layers")
    (directory / "blobs/sha256").mkdir(parents=True)
    bottom = machine.outside(f"{IMAGE_ROOT}.tar").read_bytes()
    layers = [
        add_blob(directory, layer, "application/vnd.oci.image.layer.v1.tar")
        for layer in (bottom, *(layer_of(f"tree/layer-{number}") for number in range(1, LAYERS)))
    ]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": add_blob(directory, encoded(config), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    listed = add_blob(directory, encoded(manifest), "application/vnd.oci.image.manifest.v1+json")
    listed["annotations"] = {"org.opencontainers.image.ref.name": "localhost/layers:1"}
    (directory / "index.json").write_bytes(encoded({"schemaVersion": 2, "manifests": [listed]}))
    (directory / "oci-layout").write_bytes(encoded({"imageLayoutVersion": "1.0.0"}))
    return f"{HERE}/layers"


def layer_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def add_blob(directory: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (directory / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("store", "options"),
    [
        pytest.param("native", (), id="native"),
        pytest.param("native", ("--storage-opt=overlay.mountopt=nodev,metacopy=on",), id="native-metacopy"),
        pytest.param("fuse", (), id="fuse"),
    ],
)
def test_the_root_file_system_of_an_image_of_many_layers_is_saved(
    machine: Machine, layout: str, store: str, options: tuple[str, ...]
) -> None:
    engine = Engine(machine, rootless=False, store=store, runtime="crun")
    image = engine.podman("pull", "--quiet", f"oci:{layout}").stdout.strip()
    name = f"layers{len(options)}"
    archives = engine.new_directory(name)
    ran = engine.run(
        name,
        image=image,
        podman_options=options,
        command="rm /tree/layer-1; echo made > /tree/made; chmod 600 /tree/kept; cat /proc/self/mounts",
        annotations=hooks.annotations(
            "root", mount_point="/", archive_to=f"{archives}/root", method="tar.gz"
        ),
    )
    if store == "native":
        # By paths relative to the store (podman 4), or by numbers of file descriptors (podman 5).
        assert re.match(r"overlay / overlay rw,(\w+,)*lowerdir=(l/|\d+:)", ran.stdout), ran.stdout
    assert ("metacopy=on" in ran.stdout) == bool(options)
    archive = read_tar(machine.outside(f"{archives}/root"))
    assert archive["tree/layer-1"].is_whiteout
    assert archive["tree/made"].content == b"made\n"
    assert archive["tree/kept"].mode == 0o600
    assert archive["tree/kept"].content == b"kept of the image\n"
