"""An OCI image layout on disk, read and verified.

Its author may mean harm: its files are opened by their names in it, and only links to blobs are followed, because
digests verify these.

Source: OCI image specification, image-layout.md, image-index.md, manifest.md, config.md, descriptor.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.keys import PREFIX
from archive_overlay.layout.blobs import BLOBS, Blobs, blob_path, damaged, is_size
from archive_overlay.system.open_flags import READ, READ_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable

DEFAULT_TAG = "latest"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
# Of an image's manifest: digest and size of the index of its packs. Of that index in index.json: "index".
HISTORY = f"{PREFIX}history"
VERSION_FILE = "oci-layout"
INDEX_FILE = "index.json"

# image-layout.md, "index.json file": the grammar of ref.name, of which a path's last component can
# hold one component.
_TAG = re.compile(r"[A-Za-z0-9]+(?:(?:[-._@+]|--)[A-Za-z0-9]+)*")
_COMPONENT = "[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_NAME = re.compile(f"{_COMPONENT}(?:/{_COMPONENT})*")
# A registry takes 4 MiB of a manifest. An index of 8 MiB has some 27,000 tags.
_LARGEST_BLOB = 4 * 1024 * 1024
_LARGEST_INDEX = 8 * 1024 * 1024
# Where a manifest says what it is.
_BEGINNING = 4096
# Objects and lists, and what they hold. As a value in memory each takes up to 200 bytes, and may be two of the file's. An
# index of that size, or a manifest or config of 13,000 layers, has about as many.
_MOST_VALUES = 128 * 1024
# JSON may have numbers of any length, and to read them may take the square of it.
_MOST_DIGITS = 20


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
    """Refuse a tag that the image specification does not allow.

    Raises:
        ArchiveError: it is none.
    """
    if not _TAG.fullmatch(tag):
        raise ArchiveError(
            f"{tag!r} is not a valid tag", hint="letters and digits, with single - . _ @ + between them"
        )


def check_name(name: str) -> None:
    """Refuse a name that the image specification does not allow. Tags and registry names are allowed.

    Raises:
        ArchiveError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ArchiveError(
            f"{name!r} is not a valid tag",
            hint="letters and digits, with single - . _ : @ + / between them",
        )


def tagged(index: Mapping[str, Any], tag: str) -> dict[str, Any] | None:
    """Return the entry of an index that has a tag; None: no entry has it.

    Raises:
        ArchiveError: several images have the tag.
    """
    found: list[dict[str, Any]] = [each for each in index["manifests"] if is_tagged(each, tag)]
    if any(each.get("digest") != found[0].get("digest") for each in found):
        raise ArchiveError(
            f"the image layout has {len(found)} images with the tag {tag}", hint="remove all but one"
        )
    return found[0] if found else None


def tag_of(descriptor: Mapping[str, Any]) -> str:
    """Return the tag of an entry of an index; "" if it has none."""
    annotations = descriptor.get("annotations")
    tag = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return tag if isinstance(tag, str) else ""


def is_history(descriptor: Mapping[str, Any]) -> bool:
    """Return whether an entry of an index is not an image but revisions kept beside images (see `packs`)."""
    annotations = descriptor.get("annotations")
    return isinstance(annotations, dict) and HISTORY in annotations and not tag_of(descriptor)


def images(index: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of an index that are images."""
    return [each for each in index["manifests"] if not is_history(each)]


def only_untagged(index: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the only image of an index, if it has no tag: it is the one that is meant."""
    found = images(index)
    return found[0] if len(found) == 1 and not tag_of(found[0]) else None


def is_tagged(descriptor: Mapping[str, Any], tag: str) -> bool:
    """Return whether an entry of an index has a tag."""
    return tag_of(descriptor) == tag


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
        raise damaged(f"{VERSION_FILE} does not say that it is version 1.0.0")
    return parse_index(_read_file(layout, INDEX_FILE))


def has_manifest(layout: int) -> bool:
    """Return whether a layout has a blob that only an index leads to: without an index, that is lost.

    A first stop that was killed under 3.0.0 left layers alone. It left no symbolic links either, so each of these counts.
    """
    try:
        blobs = os.open(BLOBS, READ_DIRECTORY, dir_fd=layout)
    except OSError:
        return False  # there are none; or they are not where they belong, which is somebody else's question
    try:
        return any(_may_be_manifest(blobs, name) for name in os.listdir(blobs))
    finally:
        os.close(blobs)


def _may_be_manifest(directory: int, name: str) -> bool:
    try:
        fd = os.open(name, READ, dir_fd=directory)
    except OSError as error:
        return error.errno == errno.ELOOP
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and b'"schemaVersion"' in os.read(fd, _BEGINNING)
    finally:
        os.close(fd)


def lost_index(path: str = "") -> ArchiveError:
    """Give the error of a layout that has blobs and no index."""
    layout = f"the image layout {path}" if path else "the image layout"
    return ArchiveError(
        f"{INDEX_FILE} of {layout} is gone, and its blobs are still there",
        hint=f"restore {INDEX_FILE} from a backup, or move the whole directory away to begin a new history",
    )


def read_index_file(layout: int) -> bytes:
    """Read a layout's index as it stands there. See `read_index`."""
    return _read_file(layout, INDEX_FILE)


def parse_index(data: bytes) -> dict[str, Any]:
    """Check what an index has.

    Raises:
        ArchiveError: it is damaged.
    """
    index = _parse(data, INDEX_FILE)
    manifests = _or_empty(index, "manifests", list)
    if not isinstance(manifests, list) or not all(isinstance(each, dict) for each in manifests):
        raise damaged(f"{INDEX_FILE} has no list of manifests")
    return {**index, "manifests": manifests}


def read_image(
    layout: int, descriptor: Mapping[str, Any], *, whole: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read and check an image: its manifest and its config.

    Args:
        layout: file descriptor of the layout's directory.
        descriptor: of the manifest.
        whole: whether all layers must be there, with the right size.

    Raises:
        ArchiveError: the layout is damaged, or the image is none that can be built upon.
        OSError: it cannot be read.
    """
    with Blobs(layout) as blobs:
        manifest, config = _read_json_blobs(blobs, descriptor)
        for layer in manifest["layers"]:
            if whole:
                blobs.expect(layer)
            else:
                blob_path(layer)
    return manifest, config


def parse_blob(data: bytes, what: str) -> dict[str, Any]:
    """Read JSON that is going to be a blob of a layout.

    Args:
        data: it.
        what: it is, for messages.

    Raises:
        ArchiveError: it is not JSON, or larger than what this program reads.
    """
    check_json(data, what)
    return _parse(data, what)


def parse_image(manifest: Mapping[str, Any], config: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check an image that is not in a layout yet. See `read_image`."""
    descriptor = manifest.get("config")
    said = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if said != f"sha256:{hashlib.sha256(config).hexdigest()}":
        raise damaged("the config does not match the manifest")
    return _checked(manifest, parse_blob(config, "the config"))


def _read_json_blobs(blobs: Blobs, descriptor: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read and check the manifest and the config of an image."""
    manifest = read_json_blob(blobs, descriptor)
    media_type = manifest.get("mediaType", descriptor.get("mediaType", MANIFEST_TYPE))
    if media_type != MANIFEST_TYPE:
        raise ArchiveError(
            f"the image has a manifest of type {brief(str(media_type))}, not {MANIFEST_TYPE}",
            hint="copy a single image into an OCI layout, for example with skopeo copy",
        )
    config_descriptor = manifest.get("config")
    if not isinstance(config_descriptor, dict):
        raise damaged("a manifest has no layers or no config")
    return _checked(manifest, read_json_blob(blobs, config_descriptor))


def _checked(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check that a manifest and a config have what they must have, and fit."""
    layers = _or_empty(manifest, "layers", list)
    annotations = _or_empty(manifest, "annotations", dict)
    if not isinstance(layers, list):
        raise damaged("a manifest has no layers or no config")
    if not isinstance(annotations, dict):
        raise damaged("the manifest's annotations are not an object")
    rootfs = _or_empty(config, "rootfs", dict)
    diff_ids = _or_empty(rootfs, "diff_ids", list) if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
        raise damaged("a config does not have a diff_id for each layer")
    history = _or_empty(config, "history", list)
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise damaged("the config's history is not a list of objects")
    return (
        {**manifest, "layers": layers, "annotations": annotations},
        {**config, "rootfs": {**rootfs, "diff_ids": diff_ids}, "history": history},
    )


def read_json_blob(blobs: Blobs, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    """Read a blob that is JSON, and check its size and digest.

    Raises:
        ArchiveError: it is not what the descriptor says.
        OSError: it cannot be read.
    """
    name = blob_path(descriptor)
    data = _read(blobs.open(descriptor), name)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if not is_size(descriptor.get("size"), len(data)) or digest != descriptor.get("digest"):
        raise damaged(f"{name} does not match its digest")
    return _parse(data, name)


def check_json(data: bytes, name: str) -> None:
    """Refuse JSON that is larger than this program reads: as values in memory it can be 25 times as large.

    Args:
        data: of a file of a layout.
        name: the file's in the layout.

    Raises:
        ArchiveError: it is too large, or has too many values.
    """
    most = _LARGEST_INDEX if name == INDEX_FILE else _LARGEST_BLOB
    # Each value but the first comes after one of these. They also count in texts: real ones have few.
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if len(data) > most or values > _MOST_VALUES:
        raise ArchiveError(
            f"{name} of the image layout has more than {most} bytes or {_MOST_VALUES} values",
            hint="start a new layout",
        )


def _open_regular(layout: int, name: str) -> int:
    """Open a file of a layout: opening a FIFO would wait, and opening a device could have any effect."""
    try:
        fd = os.open(name, READ, dir_fd=layout)
    except FileNotFoundError:
        raise damaged(f"{name} is missing") from None
    except OSError as error:  # a symbolic link, a socket, or a device that is not there
        raise OSError(error.errno, f"{name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise damaged(f"{name} is not a regular file")
    return fd


def _read_file(layout: int, name: str) -> bytes:
    return _read(_open_regular(layout, name), name)


def _read(fd: int, name: str) -> bytes:
    with open(fd, "rb") as file:
        data = file.read(_LARGEST_INDEX + 1)
    check_json(data, name)
    return data


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise damaged(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise damaged(f"{name} is not a JSON object")
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:_MOST_DIGITS]}... is not a valid number")
    return int(text)


def _or_empty(value: Mapping[str, Any], key: str, kind: Callable[[], Any]) -> Any:
    """Return the value of a key; programs in Go write null, or nothing, for empty values."""
    found = value.get(key)
    return kind() if found is None else found
