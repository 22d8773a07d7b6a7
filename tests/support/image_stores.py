"""Stores of container engines as far as images are concerned: what podman 4.3 writes, and what nobody should."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONTAINER = "ab12" * 16
IMAGE = "cd34" * 16
LAYER = "ef56" * 16  # the container's
TOP = "0a1b" * 16  # the image's


class ImageStore:
    """A store with one container and its image.

    Args:
        directory: is made.
        driver: the storage driver's name.

    Attributes:
        containers, images, layers: what the store's lists have.
        bundle: the container's.
        root: where its root file system would be mounted.
    """

    def __init__(self, directory: Path, driver: str = "overlay") -> None:
        self.driver = directory / driver
        self.containers: list[dict[str, Any]] = [{"id": CONTAINER, "image": IMAGE, "layer": LAYER}]
        self.images: list[dict[str, Any]] = [{"id": IMAGE, "names": ["localhost/evil:1"], "layer": TOP}]
        self.layers: list[dict[str, Any]] = [{"id": TOP}, {"id": LAYER, "parent": TOP}]
        self.bundle = self.path("containers") / CONTAINER / "userdata"
        self.root = self.driver / LAYER / "merged"
        self.bundle.mkdir(parents=True)
        self.root.mkdir(parents=True)
        for kind in ("containers", "images", "layers"):
            self.path(kind).mkdir(exist_ok=True)
            self.path(kind).chmod(0o700)

    def path(self, kind: str) -> Path:
        """Give the directory of containers, images or layers."""
        return self.driver.with_name(f"{self.driver.name}-{kind}")

    def write(self) -> None:
        """Write the lists."""
        for kind, listed in (
            ("containers", self.containers),
            ("images", self.images),
            ("layers", self.layers),
        ):
            (self.path(kind) / f"{kind}.json").write_text(json.dumps(listed))

    def add_manifest(self, text: str | bytes, *, image: str = IMAGE, last: bool = True) -> Path:
        """Give an image a manifest, and give the path of its last copy.

        Args:
            text: the manifest.
            image: the image's id.
            last: whether it is the one that the image came with last.
        """
        data = text.encode() if isinstance(text, str) else text
        directory = self.path("images") / image
        directory.mkdir(exist_ok=True)
        name = f"manifest-sha256:{hashlib.sha256(data).hexdigest()}"
        path = directory / f"={base64.b64encode(name.encode()).decode()}"
        path.write_bytes(data)
        if last:
            path = directory / "manifest"
            path.write_bytes(data)
        return path


def manifest(annotations: Mapping[str, str]) -> str:
    """Give a manifest, as `podman build --annotation` writes it."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{IMAGE}"},
            "layers": [],
            "annotations": {"org.opencontainers.image.base.name": "localhost/test:1", **annotations},
        }
    )
