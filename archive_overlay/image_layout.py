"""An OCI image layout on disk: read, verify, lock, append.

Blobs come first, flushed; index.json is exchanged last, in one rename, under a lock on the layout's
directory. A run that is killed leaves at most blobs that nothing refers to.

Source: OCI image specification, image-layout.md, image-index.md, manifest.md, config.md, descriptor.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import time

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.publish import keep_apart
from archive_overlay.staging import ARCHIVE, Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from archive_overlay.flush import Flush
    from archive_overlay.log import Log
    from archive_overlay.places import Places

DEFAULT_TAG = "latest"
LAYER_TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_REF_NAME = "org.opencontainers.image.ref.name"
_CREATED = "org.opencontainers.image.created"
_VERSION_FILE = "oci-layout"
_INDEX_FILE = "index.json"
_BLOBS = "blobs/sha256"

# image-layout.md, "index.json file": the grammar of ref.name, of which a path's last component can
# hold one component.
_TAG = re.compile(r"[A-Za-z0-9]+(?:(?:[-._@+]|--)[A-Za-z0-9]+)*")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
# JSON of images is small; what is larger was not made by anybody's tools.
_LARGEST_JSON = 64 * 1024 * 1024
# Names of processors: config.md, "architecture" (those of Go).
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
    "armv6l": "arm",
    "armv7l": "arm",
    "loongarch64": "loong64",
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOCK_SECONDS = 300
_LOCK_POLL_SECONDS = 0.05


class Layer:
    """A layer that has been written.

    Attributes:
        media_type: one of `LAYER_TYPES`.
        digest: of the compressed tar, "sha256:...".
        size: of the compressed tar, in bytes.
        diff_id: digest of the tar itself.
        empty: whether there is nothing in it but the root directory.
    """

    __slots__ = ("diff_id", "digest", "empty", "media_type", "size")

    def __init__(self, *, media_type: str, digest: str, size: int, diff_id: str, empty: bool) -> None:
        self.media_type = media_type
        self.digest = digest
        self.size = size
        self.diff_id = diff_id
        self.empty = empty


class LayoutDestination:
    """A tag of an image layout, which is to get one more layer.

    Attributes:
        path: of the layout: absolute, symbolic links are resolved.
        tag: names the image.
        parent: tag of the image that is built upon: the same one by default.
    """

    __slots__ = ("_places", "parent", "path", "tag")

    def __init__(self, *, path: str, tag: str, parent: str, places: Places) -> None:
        self._places = places
        self.path = path
        self.tag = tag
        self.parent = parent

    def stage(self, flush: Flush, log: Log) -> Staging:
        """Give the place in the layout to write the layer in."""
        return Staging(self.path, "", places=self._places, flush=flush, log=log)

    def publish(
        self, staging: Staging, layer: Layer | None, facts: Mapping[str, str], comment: str, flush: Flush
    ) -> str:
        """Add the layer to the image.

        Args:
            staging: has the layer.
            layer: what is known of it.
            facts: of this revision, kept as annotations of the layer and of the manifest.
            comment: of this revision, kept in the image's history.
            flush: when something counts as written.

        Returns:
            What was done, for the summary.

        Raises:
            ArchiveError: the layout is damaged, or cannot be written. It is as it was.
        """
        assert layer is not None
        try:
            layout = _open_locked(self.path, self._places)
            try:
                return _append(self, layout, staging, layer, facts, comment, flush)
            finally:
                os.close(layout)
        except OSError as error:
            fail(f"cannot write to the image layout {self.path}", error)


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


def judge_destination(archive_to: str, *, parent: str, upper: str, places: Places) -> LayoutDestination:
    """Refuse all that can be refused before anything is written.

    Args:
        archive_to: absolute path of the layout, with `:TAG` or without.
        parent: tag of the image to build upon; "" for the one that gets the layer.
        upper: the upperdir that is archived.
        places: where it may be.

    Raises:
        ArchiveError: there is something else, the layout is damaged, or a tag is none.
    """
    path, tag = split_reference(archive_to)
    if parent:
        check_tag(parent)
    path = places.resolve(path, "archive-to")
    keep_apart("archive-to", path, upper)
    destination = LayoutDestination(path=path, tag=tag, parent=parent or tag, places=places)
    try:
        layout = places.open(path)
    except FileNotFoundError:
        layout = -1
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    try:
        manifest = find_manifest(layout, destination.parent) if layout >= 0 and not _is_new(layout) else None
        if manifest is None and parent and parent != tag:
            raise ArchiveError(f"the image layout {path} has no tag {parent}, which is to be the parent")
        if manifest is not None:
            read_image(layout, manifest)
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    finally:
        if layout >= 0:
            os.close(layout)
    return destination


def find_manifest(layout: int, tag: str) -> dict[str, Any] | None:
    """Give the descriptor of the manifest that a tag names; None: the layout has no such tag.

    Args:
        layout: file descriptor of the layout's directory.
        tag: what to find.

    Raises:
        ArchiveError: the layout is damaged, or something else.
        OSError: it cannot be read.
    """
    found = None
    for descriptor in read_index(layout)["manifests"]:
        annotations = descriptor.get("annotations")
        if isinstance(annotations, dict) and annotations.get(_REF_NAME) == tag:
            found = descriptor
    return found


def read_index(layout: int) -> dict[str, Any]:
    """Read and check a layout's index.

    Args:
        layout: file descriptor of the layout's directory.

    Raises:
        ArchiveError: the layout is damaged, or something else.
        OSError: it cannot be read.
    """
    version = _parse(_read_file(layout, _VERSION_FILE), _VERSION_FILE)
    if version.get("imageLayoutVersion") != "1.0.0":
        raise _damaged(f"{_VERSION_FILE} does not say that it is version 1.0.0")
    index = _parse(_read_file(layout, _INDEX_FILE), _INDEX_FILE)
    manifests = index.get("manifests")
    if not isinstance(manifests, list) or not all(isinstance(each, dict) for each in manifests):
        raise _damaged(f"{_INDEX_FILE} has no list of manifests")
    return index


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
    media_type = manifest.get("mediaType", descriptor.get("mediaType", _MANIFEST_TYPE))
    if media_type != _MANIFEST_TYPE:
        raise ArchiveError(
            f"the image has a manifest of type {media_type}, not {_MANIFEST_TYPE}",
            hint="copy a single image into an OCI layout, for example with skopeo copy",
        )
    layers = manifest.get("layers")
    config_descriptor = manifest.get("config")
    if not isinstance(layers, list) or not isinstance(config_descriptor, dict):
        raise _damaged("a manifest has no layers or no config")
    config = read_json_blob(layout, config_descriptor)
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
        raise _damaged("a config does not have a diff_id for each layer")
    if not isinstance(config.get("history", []), list):
        raise _damaged("the history in a config is no list")
    for layer in layers:
        name = blob_path(layer)
        status = os.stat(name, dir_fd=layout, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or status.st_size != layer.get("size"):
            raise _damaged(f"{name} is not what the manifest says")
    return manifest, config


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
    return f"{_BLOBS}/{match[1]}"


def _append(
    destination: LayoutDestination,
    layout: int,
    staging: Staging,
    layer: Layer,
    facts: Mapping[str, str],
    comment: str,
    flush: Flush,
) -> str:
    new = _is_new(layout)
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": []}
    parent = None
    if not new:
        index = read_index(layout)
        parent = find_manifest(layout, destination.parent)
    if layer.empty and (parent is None or destination.parent == destination.tag):
        return "no layer, because nothing was changed,"
    manifest, config = read_image(layout, parent) if parent else _empty_image()
    if layer.empty:
        assert parent is not None
        descriptor = {key: value for key, value in parent.items() if key != "annotations"}
        number = len(manifest["layers"])
    else:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        number = len(manifest["layers"]) + 1
        config = {
            **config,
            "created": now,
            "rootfs": {**config["rootfs"], "diff_ids": [*config["rootfs"]["diff_ids"], layer.diff_id]},
            "history": [
                *config.get("history", []),
                {"created": now, "created_by": "archive_overlay", "comment": comment},
            ],
        }
        blobs = _Blobs(layout, staging, flush)
        blobs.add_layer(layer)
        manifest = {
            **manifest,
            "config": {"mediaType": _CONFIG_TYPE, **blobs.add_json(config)},
            "layers": [
                *manifest["layers"],
                {
                    "mediaType": layer.media_type,
                    "digest": layer.digest,
                    "size": layer.size,
                    "annotations": {_CREATED: now, **facts},
                },
            ],
            "annotations": {**manifest.get("annotations", {}), _CREATED: now, **facts},
        }
        descriptor = {"mediaType": _MANIFEST_TYPE, **blobs.add_json(manifest)}
        blobs.finish()
    others = [each for each in index["manifests"] if not _is_tagged(each, destination.tag)]
    index["manifests"] = [*others, {**descriptor, "annotations": {_REF_NAME: destination.tag}}]
    if new:
        _write_file(staging, _VERSION_FILE, b'{"imageLayoutVersion": "1.0.0"}\n', layout, flush)
    _write_file(staging, _INDEX_FILE, _dump(index), layout, flush)
    flush.file(layout)
    return f"revision {number}" if not layer.empty else "no layer, because nothing was changed,"


class _Blobs:
    """Blobs that are added to a layout."""

    def __init__(self, layout: int, staging: Staging, flush: Flush) -> None:
        self._staging = staging
        self._flush = flush
        for name in ("blobs", _BLOBS):
            try:
                os.mkdir(name, 0o755, dir_fd=layout)
            except FileExistsError:
                continue
        self._directory = os.open(_BLOBS, _DIRECTORY, dir_fd=layout)
        self._layout = layout

    def add_layer(self, layer: Layer) -> None:
        """Rename the layer that was written to be a blob."""
        fd = os.open(ARCHIVE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._staging.directory)
        try:
            self._flush.file(fd)
        finally:
            os.close(fd)
        os.rename(
            ARCHIVE,
            layer.digest.partition(":")[2],
            src_dir_fd=self._staging.directory,
            dst_dir_fd=self._directory,
        )

    def add_json(self, value: object) -> dict[str, Any]:
        """Write a value as a blob, and give its digest and size."""
        data = _dump(value)
        digest = hashlib.sha256(data).hexdigest()
        _write_file(self._staging, digest, data, self._directory, self._flush)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def finish(self) -> None:
        """Make the blobs' names last."""
        self._flush.file(self._directory)
        os.close(self._directory)
        _flush_directory("blobs", self._layout, self._flush)


def _open_locked(path: str, places: Places) -> int:
    """Open a layout's directory, and wait until no other hook writes to it."""
    layout = places.open(path)
    for _ in range(int(_LOCK_SECONDS / _LOCK_POLL_SECONDS)):
        try:
            fcntl.flock(layout, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return layout
        except BlockingIOError:
            time.sleep(_LOCK_POLL_SECONDS)
    os.close(layout)
    raise ArchiveError(f"the image layout {path} has been locked by another program for {_LOCK_SECONDS} s")


def _is_new(layout: int) -> bool:
    """Say whether a directory is to become a layout: it is empty but for what killed runs left.

    Raises:
        ArchiveError: there is something else in it.
    """
    names = {name for name in os.listdir(layout) if not name.startswith(".archive_overlay-")}
    if _INDEX_FILE in names:
        return False
    if names - {"blobs", _VERSION_FILE}:
        raise ArchiveError(
            "archive-to is a directory that is no image layout: it has no index.json", hint="name another one"
        )
    return True


def _empty_image() -> tuple[dict[str, Any], dict[str, Any]]:
    machine = os.uname().machine
    manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": {}, "layers": []}
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return manifest, config


def _is_tagged(descriptor: Mapping[str, Any], tag: str) -> bool:
    annotations = descriptor.get("annotations")
    return isinstance(annotations, dict) and annotations.get(_REF_NAME) == tag


def _write_file(staging: Staging, name: str, data: bytes, directory: int, flush: Flush) -> None:
    fd = os.open(
        "file",
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o644,
        dir_fd=staging.directory,
    )
    with open(fd, "wb", closefd=True) as file:
        file.write(data)
        file.flush()
        flush.file(fd)
    os.rename("file", name, src_dir_fd=staging.directory, dst_dir_fd=directory)


def _flush_directory(name: str, directory: int, flush: Flush) -> None:
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        flush.file(fd)
    finally:
        os.close(fd)


def _read_file(layout: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout)
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


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _damaged(reason: str) -> ArchiveError:
    return ArchiveError(f"the image layout is damaged: {reason}", hint="nothing was written to it")
