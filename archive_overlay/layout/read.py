"""An OCI image layout on disk, read and verified.

Whoever made it may mean harm: its files are opened by their names in it, no link is followed, and blobs are
what their digests say.

Source: OCI image specification, image-layout.md, image-index.md, manifest.md, config.md, descriptor.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat

from archive_overlay.errors import ArchiveError
from archive_overlay.system.open_flags import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable

DEFAULT_TAG = "latest"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
VERSION_FILE = "oci-layout"
INDEX_FILE = "index.json"
BLOBS = "blobs/sha256"

# image-layout.md, "index.json file": the grammar of ref.name, of which a path's last component can
# hold one component.
_TAG = re.compile(r"[A-Za-z0-9]+(?:(?:[-._@+]|--)[A-Za-z0-9]+)*")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
# JSON of images is small; what is larger was not made by anybody's tools.
_LARGEST_JSON = 64 * 1024 * 1024


def split_reference(text: str) -> tuple[str, str]:
    """Split PATH:TAG of an image layout.

    Args:
        text: the tag may be missing: then it is `latest`.

    Raises:
        ArchiveError: the tag is none.
    """
    directory, slash, name = text.rpartition("/")
    name, colon, tag = name.partition(":")
    if colon:
        check_tag(tag)
    return directory + slash + name, tag or DEFAULT_TAG


def check_tag(tag: str) -> None:
    """Refuse what the image specification does not take for a tag.

    Raises:
        ArchiveError: it is none.
    """
    if not _TAG.fullmatch(tag):
        raise ArchiveError(
            f"{tag!r} is no tag of an image", hint="letters and digits, with single - . _ @ + between them"
        )


def find_manifest(layout: int, tag: str) -> dict[str, Any] | None:
    """Give the descriptor of the manifest that a tag names; None: the layout has no such tag.

    Args:
        layout: file descriptor of the layout's directory.
        tag: what to find.

    Raises:
        ArchiveError: the layout is damaged, or something else, or several images have the tag.
        OSError: it cannot be read.
    """
    return tagged(read_index(layout), tag)


def tagged(index: Mapping[str, Any], tag: str) -> dict[str, Any] | None:
    """Give the entry of an index that has a tag; None: no entry has it.

    Raises:
        ArchiveError: several images have the tag.
    """
    found: list[dict[str, Any]] = [each for each in index["manifests"] if is_tagged(each, tag)]
    if any(each.get("digest") != found[0].get("digest") for each in found):
        raise ArchiveError(f"the image layout has {len(found)} images with the tag {tag}", hint="leave one")
    return found[0] if found else None


def is_tagged(descriptor: Mapping[str, Any], tag: str) -> bool:
    """Say whether an entry of an index has a tag."""
    annotations = descriptor.get("annotations")
    return isinstance(annotations, dict) and annotations.get(REF_NAME) == tag


def read_index(layout: int) -> dict[str, Any]:
    """Read and check a layout's index.

    Args:
        layout: file descriptor of the layout's directory.

    Raises:
        ArchiveError: the layout is damaged, or something else.
        OSError: it cannot be read.
    """
    version = _parse(_read_file(layout, VERSION_FILE), VERSION_FILE)
    if version.get("imageLayoutVersion") != "1.0.0":
        raise _damaged(f"{VERSION_FILE} does not say that it is version 1.0.0")
    index = _parse(_read_file(layout, INDEX_FILE), INDEX_FILE)
    manifests = _or_empty(index, "manifests", list)
    if not isinstance(manifests, list) or not all(isinstance(each, dict) for each in manifests):
        raise _damaged(f"{INDEX_FILE} has no list of manifests")
    return {**index, "manifests": manifests}


def read_image(layout: int, descriptor: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read and check an image: its manifest and its config. Layers must be there, with the right size.

    Args:
        layout: file descriptor of the layout's directory.
        descriptor: of the manifest.

    Raises:
        ArchiveError: the layout is damaged, or the image is none that can be built upon.
        OSError: it cannot be read.
    """
    manifest = read_json_blob(layout, descriptor)
    media_type = manifest.get("mediaType", descriptor.get("mediaType", MANIFEST_TYPE))
    if media_type != MANIFEST_TYPE:
        raise ArchiveError(
            f"the image has a manifest of type {media_type}, not {MANIFEST_TYPE}",
            hint="copy a single image into an OCI layout, for example with skopeo copy",
        )
    layers = _or_empty(manifest, "layers", list)
    annotations = _or_empty(manifest, "annotations", dict)
    config_descriptor = manifest.get("config")
    if not isinstance(layers, list) or not isinstance(config_descriptor, dict):
        raise _damaged("a manifest has no layers or no config")
    if not isinstance(annotations, dict):
        raise _damaged("the annotations of a manifest are none")
    config = read_json_blob(layout, config_descriptor)
    rootfs = _or_empty(config, "rootfs", dict)
    diff_ids = _or_empty(rootfs, "diff_ids", list) if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
        raise _damaged("a config does not have a diff_id for each layer")
    history = _or_empty(config, "history", list)
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise _damaged("the history in a config is none")
    for layer in layers:
        name = blob_path(layer)
        try:
            status = os.stat(name, dir_fd=layout, follow_symlinks=False)
        except FileNotFoundError:
            raise _damaged(f"{name} is missing") from None
        if not stat.S_ISREG(status.st_mode) or status.st_size != layer.get("size"):
            raise _damaged(f"{name} is not what the manifest says")
    return (
        {**manifest, "layers": layers, "annotations": annotations},
        {**config, "rootfs": {**rootfs, "diff_ids": diff_ids}, "history": history},
    )


def read_json_blob(layout: int, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    """Read a blob that is JSON, and check its size and digest.

    Raises:
        ArchiveError: it is not what the descriptor says.
        OSError: it cannot be read.
    """
    name = blob_path(descriptor)
    data = _read_file(layout, name)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if len(data) != descriptor.get("size") or digest != descriptor.get("digest"):
        raise _damaged(f"{name} is not what its name says")
    return _parse(data, name)


def blob_path(descriptor: Mapping[str, Any]) -> str:
    """Give the path of a blob in its layout.

    Raises:
        ArchiveError: the descriptor has no digest that is known.
    """
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not match:
        raise _damaged(f"{digest!r} is no digest that this program knows")
    return f"{BLOBS}/{match[1]}"


def _read_file(layout: int, name: str) -> bytes:
    try:
        fd = os.open(name, READ, dir_fd=layout)
    except FileNotFoundError:
        raise _damaged(f"{name} is missing") from None
    with open(fd, "rb") as file:
        data = file.read(_LARGEST_JSON + 1)
    if len(data) > _LARGEST_JSON:
        raise _damaged(f"{name} is larger than any such file")
    return data


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(f"{name} is no JSON object")
    return value


def _or_empty(value: Mapping[str, Any], key: str, kind: Callable[[], Any]) -> Any:
    """Give what a key stands for; programs in Go write null, or nothing, for what is empty."""
    found = value.get(key)
    return kind() if found is None else found


def _damaged(reason: str) -> ArchiveError:
    return ArchiveError(f"the image layout is damaged: {reason}")
