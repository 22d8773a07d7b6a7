"""One more layer of an image in an OCI image layout: where it goes is judged, locked, and written to.

Blobs come first, flushed; index.json is exchanged last, in one rename, under a lock on the layout's
directory. A run that is killed leaves at most blobs that nothing refers to.

Source: OCI image specification, image-layout.md, image-index.md, manifest.md, config.md, descriptor.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time

from archive_overlay.destination.apart import keep_apart
from archive_overlay.destination.names import is_staging_name
from archive_overlay.destination.staging import ARCHIVE, Staging
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.layout.blobs import BLOBS
from archive_overlay.layout.layer import Layer
from archive_overlay.layout.lock import lock
from archive_overlay.layout.provenance import CREATED_BY, Provenance
from archive_overlay.layout.pulling import advice_on_pulling, quoted
from archive_overlay.layout.read import (
    CREATED,
    INDEX_FILE,
    MANIFEST_TYPE,
    REF_NAME,
    VERSION_FILE,
    check_json,
    check_name,
    is_tagged,
    only_untagged,
    read_image,
    read_index,
    split_reference,
    tag_of,
    tagged,
)
from archive_overlay.system.open_flags import READ, READ_DIRECTORY
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from archive_overlay.destination.paths import Paths
    from archive_overlay.log import Log
    from archive_overlay.system.flush import Flush
    from archive_overlay.system.patience import Patience

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
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


class LayoutDestination(Record):
    """A tag of an image layout, which is to get one more layer.

    Attributes:
        path: of the layout: absolute, symbolic links are resolved.
        tag: names the image.
        parent: tag of the image that is built upon: the same one by default.
        provenance: where the layer comes from, without the numbers that are known when it is written.
        paths: how to get there.
        patience: how long publishing may wait for another program.
        log: is told if it does.
    """

    path: str
    tag: str
    parent: str
    provenance: Provenance
    paths: Paths
    patience: Patience
    log: Log

    def stage(self, flush: Flush, log: Log, file_mode: int | None = None) -> Staging:
        """Give the place in the layout to write the layer in."""
        return Staging(self.path, "", paths=self.paths, flush=flush, log=log, file_mode=file_mode)

    def publish(self, staging: Staging, result: object) -> str:
        """Add the layer to the image.

        Args:
            staging: has the layer.
            result: the `Layer`.

        Returns:
            What was done, for the summary.

        Raises:
            ArchiveError: the layout is damaged, or cannot be written. It is as it was.
        """
        assert isinstance(result, Layer)
        try:
            layout = self.paths.open(self.path)
            try:
                lock(layout, self.path, self.patience, self.log)
                return _add_layer(self, layout, staging, result)
            finally:
                os.close(layout)
        except OSError as error:
            fail(f"cannot write to the image layout {self.path}", error)


def judge_destination(
    archive_to: str,
    *,
    parent: str,
    provenance: Provenance,
    upper: str,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> LayoutDestination:
    """Refuse all that can be refused before anything is written.

    Args:
        archive_to: absolute path of the layout, with `:TAG` or without.
        parent: tag of the image to build upon; "" for the one that gets the layer.
        provenance: where the layer comes from.
        upper: the upperdir that is archived.
        paths: where it may be.
        patience: how long publishing may wait for another program.
        log: is told if it does.

    Raises:
        ArchiveError: there is something else, the layout is damaged, its path is none that other programs
            take, or a tag is none.
    """
    path, tag = split_reference(archive_to)
    if ":" in path:
        raise ArchiveError(
            f"archive-to {archive_to} has a colon before its last slash",
            hint="in a tag no slash is possible, and in the path of a layout no program takes a colon",
        )
    if parent:
        check_name(parent)
    for each in (tag, parent):
        _expect_no_revision(each)
    path = paths.resolve(path, "archive-to")
    keep_apart("archive-to", path, upper)
    destination = LayoutDestination(
        path=path,
        tag=tag,
        parent=parent or tag,
        provenance=provenance,
        paths=paths,
        patience=patience,
        log=log,
    )
    try:
        layout = paths.open(path)
    except FileNotFoundError:
        layout = -1
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    try:
        if layout >= 0:
            _expect_own_blobs(layout, path)
        index = read_index(layout) if layout >= 0 and not _is_new(layout) else None
        manifest = tagged(index, destination.parent) if index else None
        if manifest is None and destination.parent != tag:
            raise _no_parent(destination, index)
        if manifest is not None:
            read_image(layout, manifest)
        elif index and not all(map(tag_of, index["manifests"])):
            log.warning(
                f"archive {provenance.archive}: the image layout {path} has an image without a tag, which is ignored:"
                f" {tag} begins without it. To begin with it, copy it there once more, as skopeo copy IMAGE"
                f" {quoted(f'oci:{path}:base')}, and ask for parent=base"
            )
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    finally:
        if layout >= 0:
            os.close(layout)
    return destination


def _expect_no_revision(tag: str) -> None:
    """Refuse a tag that is called as the commands call a revision of another one."""
    other, at, number = tag.rpartition("@")
    if at and number.isdigit():
        raise ArchiveError(
            f"the tag {tag} would hide revision {number} of {other}, which has the same name",
            hint="a tag must not end in @ and digits",
        )


def _expect_own_blobs(layout: int, path: str) -> None:
    """Refuse a layout whose blobs are to be written elsewhere: whoever made it would choose where.

    Raises:
        ArchiveError: a symbolic link is in the place of the directory of its blobs.
        OSError: it cannot be looked at.
    """
    for name in ("blobs", BLOBS):
        try:
            status = os.stat(name, dir_fd=layout, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(status.st_mode):
            raise ArchiveError(
                f"the image layout {path} has its blobs elsewhere: {name} is a symbolic link, and nothing is written"
                " through it",
                hint="name another layout; skopeo copy oci:LAYOUT:TAG oci:OTHER:TAG takes an image there",
            )


def _add_layer(destination: LayoutDestination, layout: int, staging: Staging, layer: Layer) -> str:
    new = _is_new(layout)
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": []}
    if not new:
        index = read_index(layout)
    old = tagged(index, destination.tag)
    parent = tagged(index, destination.parent)
    if parent is None and destination.parent != destination.tag:
        raise _no_parent(destination, index)
    if layer.empty and (parent is None or destination.parent == destination.tag):
        return "no layer, because nothing was changed,"
    manifest, config = read_image(layout, parent) if parent else _empty_image()
    files = _Files(layout, staging)
    if layer.empty:
        assert parent is not None
        descriptor = parent
        done = f"no layer, because nothing was changed, but the tag {destination.tag},"
    else:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        provenance = destination.provenance.replace(entries=layer.entries, deletions=layer.deletions)
        files.add_layer(layer)
        config = _config_with(config, manifest, layer, provenance.comment(), now)
        config_descriptor = {"mediaType": _CONFIG_TYPE, **files.add_json_blob(config)}
        manifest = _manifest_with(manifest, config_descriptor, layer, provenance.annotations(), now)
        descriptor = {
            **{key: value for key, value in (parent or {}).items() if key == "platform"},
            "mediaType": MANIFEST_TYPE,
            **files.add_json_blob(manifest),
        }
        done = f"revision {len(manifest['layers'])} of {destination.tag}"
    annotations = {**(old or {}).get("annotations", {}), REF_NAME: destination.tag}
    others = [each for each in index["manifests"] if not is_tagged(each, destination.tag)]
    if new:
        files.add(VERSION_FILE, b'{"imageLayoutVersion": "1.0.0"}\n')
    files.add(
        INDEX_FILE,
        _dump({**index, "manifests": [*others, {**descriptor, "annotations": annotations}]}),
    )
    files.publish()
    if old is None and (advice := advice_on_pulling(destination.path, destination.tag)):
        destination.log.warning(f"archive {destination.provenance.archive}: {advice}")
    return done


def _config_with(
    config: Mapping[str, Any], manifest: Mapping[str, Any], layer: Layer, comment: str, now: str
) -> dict[str, Any]:
    """Give the config of an image with one more layer."""
    history = config["history"]
    # Readers take the n-th entry for the n-th layer's, but not every image has one for each layer.
    known = sum(not each.get("empty_layer") for each in history)
    unknown = [{"created_by": "unknown"}] * (len(manifest["layers"]) - known)
    return {
        **config,
        "created": now,
        "rootfs": {**config["rootfs"], "diff_ids": [*config["rootfs"]["diff_ids"], layer.diff_id]},
        "history": [
            *history,
            *unknown,
            {"created": now, "created_by": CREATED_BY, "comment": comment},
        ],
    }


def _manifest_with(
    manifest: Mapping[str, Any],
    config_descriptor: Mapping[str, Any],
    layer: Layer,
    facts: Mapping[str, str],
    now: str,
) -> dict[str, Any]:
    """Give the manifest of an image with one more layer."""
    annotations = {CREATED: now, **facts}
    descriptor = {
        "mediaType": layer.media_type,
        "digest": layer.digest,
        "size": layer.size,
        "annotations": annotations,
    }
    return {
        **manifest,
        "config": config_descriptor,
        "layers": [*manifest["layers"], descriptor],
        "annotations": {**manifest["annotations"], **annotations},
    }


class _Files:
    """Files that are to be in a layout. They are written elsewhere, so what fails there leaves nothing in it."""

    def __init__(self, layout: int, staging: Staging) -> None:
        self._layout = layout
        self._staging = staging
        self._flush = staging.flush
        self._blobs: list[tuple[str, str]] = []  # names in staging and in the layout
        self._names: list[str] = []

    def add_layer(self, layer: Layer) -> None:
        """Add the layer that was written as a blob."""
        fd = os.open(ARCHIVE, READ, dir_fd=self._staging.directory)
        try:
            self._flush.file(fd)
        finally:
            os.close(fd)
        self._blobs.append((ARCHIVE, layer.digest.partition(":")[2]))

    def add_json_blob(self, value: object) -> dict[str, Any]:
        """Add a value as a blob, and give its digest and size."""
        data = _dump(value)
        digest = hashlib.sha256(data).hexdigest()
        check_json(data, f"{BLOBS}/{digest}")  # what is written must be read again
        self._write(digest, data)
        self._blobs.append((digest, digest))
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def add(self, name: str, data: bytes) -> None:
        """Add a file at the top of the layout."""
        check_json(data, name)
        self._write(name, data)
        self._names.append(name)

    def publish(self) -> None:
        """Give all files their names: blobs first, and the one that was added last when all others last."""
        if self._blobs:
            self._publish_blobs()
        for name in self._names[:-1]:
            self._rename(name, name, self._layout)
        self._flush.file(self._layout)
        self._rename(self._names[-1], self._names[-1], self._layout)
        self._flush.file(self._layout)

    def _publish_blobs(self) -> None:
        directories = [self._layout]
        try:
            for name in BLOBS.split("/"):
                try:
                    os.mkdir(name, 0o755, dir_fd=directories[-1])
                except FileExistsError:
                    pass
                directories.append(os.open(name, READ_DIRECTORY, dir_fd=directories[-1]))
            for name, blob in self._blobs:
                self._rename(name, blob, directories[-1])
            for directory in directories[:0:-1]:
                self._flush.file(directory)
        finally:
            for directory in directories[1:]:
                os.close(directory)

    def _rename(self, name: str, to: str, directory: int) -> None:
        os.rename(name, to, src_dir_fd=self._staging.directory, dst_dir_fd=directory)

    def _write(self, name: str, data: bytes) -> None:
        fd = self._staging.create_file(name)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            self._flush.file(fd)


def _is_new(layout: int) -> bool:
    """Say whether a directory is to become a layout: it is empty but for what killed runs left.

    Raises:
        ArchiveError: there is something else in it.
    """
    names = {name for name in os.listdir(layout) if not is_staging_name(name, "")}
    if INDEX_FILE in names:
        return False
    if names - {"blobs", VERSION_FILE}:
        raise ArchiveError(
            "archive-to is a directory that is no image layout: it has no index.json", hint="name another one"
        )
    return True


def _empty_image() -> tuple[dict[str, Any], dict[str, Any]]:
    machine = os.uname().machine
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {},
        "layers": [],
        "annotations": {},
    }
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }
    return manifest, config


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _no_parent(destination: LayoutDestination, index: Mapping[str, Any] | None) -> ArchiveError:
    layout = f"oci:{destination.path}"
    tag = f"{layout}:{destination.parent}"
    hint = ""
    if index and only_untagged(index):
        hint = f"its only image has no tag: skopeo copy {quoted(layout)} {quoted(tag)} gives it this one"
    elif index and not all(map(tag_of, index["manifests"])):
        hint = f"it has images without a tag: copy one there once more, as skopeo copy IMAGE {quoted(tag)}"
    return ArchiveError(
        f"the image layout {destination.path} has no tag {destination.parent}, which is to be the parent",
        hint=hint,
    )
