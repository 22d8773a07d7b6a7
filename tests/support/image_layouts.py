"""OCI image layouts as other programs have them: made, read and judged without the project's own code.

Source: OCI image specification, image-layout.md, manifest.md, config.md, layer.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tests.support import tools
from tests.support.hooks import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True)
class Layer:
    """A layer of an image, complete and as its descriptor says.

    Attributes:
        descriptor: the manifest's.
        tar: what it is when it is not compressed.
    """

    descriptor: dict[str, Any] = field(repr=False)
    tar: bytes = field(repr=False)

    @cached_property
    def members(self) -> list[tarfile.TarInfo]:
        """Its entries, in order, with their names as they are stored."""
        with tarfile.open(fileobj=io.BytesIO(self.tar), mode="r:") as opened:
            return opened.getmembers()

    @property
    def is_ours(self) -> bool:
        """Whether the hook says that it wrote it."""
        return any(key.startswith(PREFIX) for key in self.descriptor.get("annotations") or ())

    @property
    def names(self) -> list[str]:
        """The names of its entries in order, without `./`; the root directory is ".".

        Whiteouts have the form that they have in the layer.
        """
        return [_plain(member.name) for member in self.members]

    def member(self, name: str) -> tarfile.TarInfo:
        """Give the entry with a name of `names`."""
        return self.members[self.names.index(name)]

    def faults(self) -> list[str]:
        """Say what is wrong with it by layer.md, and by what podman and umoci take."""
        return list(_faults_of_layer(self))


@dataclass(frozen=True)
class Image:
    """An image of a layout: all that belongs to it is there, and is what its digests say.

    Attributes:
        descriptor: the index's entry.
        layers: lowest first.
    """

    descriptor: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    layers: list[Layer]

    @property
    def digests(self) -> list[str]:
        """The digests of the layers, lowest first."""
        return [layer.descriptor["digest"] for layer in self.layers]


def read(layout: Path, tag: str = "latest") -> Image:
    """Read an image, and fail the test if anything of it is not what it should be."""
    found = [entry for entry in read_index(layout)["manifests"] if tag_of(entry) == tag]
    assert len(found) == 1, f"{len(found)} images have the tag {tag}"
    return _image(layout, found[0])


def read_index(layout: Path) -> dict[str, Any]:
    """Read the index of a layout."""
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index: dict[str, Any] = json.loads((layout / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    return index


def tags(layout: Path) -> list[str]:
    """Give the tags of a layout, in the index's order."""
    return [tag for entry in read_index(layout)["manifests"] if (tag := tag_of(entry))]


def tag_of(descriptor: dict[str, Any]) -> str:
    """Give the tag in an index's entry; "" if there is none."""
    tag: str = (descriptor.get("annotations") or {}).get(REF_NAME, "")
    return tag


def expect_sound(layout: Path) -> None:
    """Fail the test unless all images are whole, and there is nothing else: no orphan, no debris."""
    orphans = expect_whole(layout)
    assert not orphans, f"blobs that nothing refers to: {orphans}"
    assert sorted(os.listdir(layout)) == ["blobs", "index.json", "oci-layout"]


def expect_whole(layout: Path) -> set[str]:
    """Fail the test unless all images are whole; give the blobs that nothing refers to."""
    used = set()
    for descriptor in read_index(layout)["manifests"] or ():
        if descriptor["mediaType"] == INDEX_TYPE:
            used |= {descriptor["digest"], *_packed(layout, descriptor)}
            continue
        image = _image(layout, descriptor)
        used |= {descriptor["digest"], image.manifest["config"]["digest"], *image.digests}
        for layer in image.layers:
            faults = layer.faults() if layer.is_ours else ()
            assert not faults, "\n".join(faults)
    return {f"sha256:{name}" for name in os.listdir(layout / "blobs/sha256")} - used


def extract(layer: Layer, directory: Path, opaque_attribute: str) -> None:
    """Extract a layer with GNU tar, as an overlay has it: deletions are 0:0 devices."""
    subprocess.run(
        [
            *("tar", "--extract", "--file=-", "--directory", directory),
            *("--xattrs", "--xattrs-include=*", "--numeric-owner", "--preserve-permissions"),
        ],
        input=layer.tar,
        check=True,
    )
    for member in layer.members:
        path = PurePosixPath(member.name)
        if not path.name.startswith(".wh."):
            continue
        parent = directory / path.parent
        times = parent.stat()
        (parent / path.name).unlink()
        if path.name == OPAQUE:
            os.setxattr(parent, opaque_attribute, b"y")
        else:
            os.mknod(parent / path.name[len(".wh.") :], stat.S_IFCHR, os.makedev(0, 0))
        os.utime(parent, ns=(times.st_atime_ns, times.st_mtime_ns))


def put(
    layout: Path,
    tag: str,
    *,
    layers: Sequence[bytes] = (),
    config: dict[str, Any] | None = None,
    manifest: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Put an image into a layout, which is made if need be, beside what is there.

    Args:
        layout: its directory.
        tag: what it is called; "": it has no tag.
        layers: tars, lowest first; they are stored as they are.
        config, manifest: keys besides those that there must be, or other values of those.
        annotations: of the index's entry, besides the tag.

    Returns:
        The index's entry.
    """
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index_file = layout / "index.json"
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if index_file.exists():
        index = json.loads(index_file.read_text())
    stored = [{"mediaType": LAYER_TYPE, **put_blob(layout, tar)} for tar in layers]
    whole_config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in stored]},
        "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers, 1)],
        **(config or {}),
    }
    whole_manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": CONFIG_TYPE, **put_blob(layout, as_json(whole_config))},
        "layers": stored,
        **(manifest or {}),
    }
    named = {REF_NAME: tag} if tag else {}
    descriptor = {
        "mediaType": whole_manifest.get("mediaType", MANIFEST_TYPE),
        **put_blob(layout, as_json(whole_manifest)),
        "annotations": {**named, **(annotations or {})},
    }
    index["manifests"].append(descriptor)
    index_file.write_text(json.dumps(index))
    return descriptor


def put_compressed(layout: Path, tag: str, *layers: Iterable[bytes]) -> int:
    """Put an image of gzip layers into a layout, of which none has to be in memory as a whole.

    Args:
        layout, tag: see `put`.
        layers: the pieces of each tar, lowest first.

    Returns:
        How many bytes all layers have.
    """
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    stored, diff_ids = [], []
    for pieces in layers:
        packer, digest, packed = zlib.compressobj(1, zlib.DEFLATED, 31), hashlib.sha256(), []
        for piece in pieces:
            digest.update(piece)
            packed.append(packer.compress(piece))
        packed.append(packer.flush())
        stored.append({"mediaType": f"{LAYER_TYPE}+gzip", **put_blob(layout, b"".join(packed))})
        diff_ids.append(f"sha256:{digest.hexdigest()}")
    config = {"rootfs": {"type": "layers", "diff_ids": diff_ids}}
    put(layout, tag, config=config, manifest={"layers": stored})
    return sum(each["size"] for each in stored)


def put_blob(layout: Path, data: bytes) -> dict[str, Any]:
    """Put a blob into a layout, and give its digest and size."""
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def as_json(value: object) -> bytes:
    """Give a value as JSON, in a form of its own that nobody may take for granted."""
    return json.dumps(value, indent=3).encode()


def tar_of(tree: Path) -> bytes:
    """Give a directory as a layer."""
    done = subprocess.run(
        [
            *("tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner"),
            *("-C", tree, "-cf", "-", "."),
        ],
        check=True,
        capture_output=True,
    )
    return done.stdout


def blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    """Give the path of what a descriptor describes."""
    digest: str = descriptor["digest"]
    algorithm, _, digest = digest.partition(":")
    return layout / "blobs" / algorithm / digest


def _packed(layout: Path, descriptor: dict[str, Any]) -> Iterator[str]:
    """Give the digests of all that a history index refers to: docs/design.md, "Histories"."""
    assert not tag_of(descriptor)
    for pack in json.loads(_verified(layout, descriptor))["manifests"]:
        manifest = json.loads(_verified(layout, pack))
        yield pack["digest"]
        for part in (manifest["config"], *manifest["layers"]):
            _verified(layout, part)
            yield part["digest"]


def _image(layout: Path, descriptor: dict[str, Any]) -> Image:
    assert descriptor["mediaType"] == MANIFEST_TYPE
    manifest = json.loads(_verified(layout, descriptor))
    assert manifest["schemaVersion"] == 2
    assert manifest["config"]["mediaType"] == CONFIG_TYPE
    config = json.loads(_verified(layout, manifest["config"]))
    assert config["rootfs"]["type"] == "layers"
    layers = [Layer(each, _uncompressed(each, _verified(layout, each))) for each in manifest["layers"]]
    assert [_digest(layer.tar) for layer in layers] == config["rootfs"]["diff_ids"]
    return Image(descriptor, manifest, config, layers)


def _verified(layout: Path, descriptor: dict[str, Any]) -> bytes:
    data = blob(layout, descriptor).read_bytes()
    assert (len(data), _digest(data)) == (descriptor["size"], descriptor["digest"])
    return data


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _uncompressed(descriptor: dict[str, Any], data: bytes) -> bytes:
    form = descriptor["mediaType"][len(LAYER_TYPE) :]
    assert descriptor["mediaType"].startswith(LAYER_TYPE)
    assert form in ("", "+gzip", "+zstd")
    if form == "+gzip":
        return gzip.decompress(data)
    if form == "+zstd":
        tools.need("zstd")
        return subprocess.run(["zstd", "-dc"], input=data, check=True, capture_output=True).stdout
    return data


def _plain(name: str) -> str:
    return name[2:] if name.startswith("./") else name


def _faults_of_layer(layer: Layer) -> Iterator[str]:
    seen: set[str] = set()
    begun: set[str] = set()  # directories in which something has come
    opaque: set[str] = set()
    deleted: set[str] = set()
    files: set[str] = set()
    for name, member in zip(layer.names, layer.members):
        if name in seen:
            yield f"{name} is there twice"
        seen.add(name)
        parent, _, last = name.rpartition("/")
        if name != "." and (parent or ".") not in seen:
            yield f"{name} is there before its parent"
        if last.startswith(".wh."):
            if last == OPAQUE:
                opaque.add(parent)
                if parent in begun:
                    yield f"{name} comes after other entries of its directory"
            else:
                deleted.add(f"{parent}/{last[len('.wh.') :]}" if parent else last[len(".wh.") :])
                if parent in opaque:
                    yield f"{name} is in an opaque directory"
            if not member.isreg() or member.size:
                yield f"{name} is no empty regular file"
        if name != ".":
            begun.add(parent)
        if member.islnk() and _plain(member.linkname) not in files:
            yield f"{name} is a link to {member.linkname}, which does not come before it"
        if not member.isdir():
            files.add(name)
        for attribute in member.pax_headers:
            escaped = attribute.endswith(".overlay.overlay.opaque")  # an overlay's within the overlay
            if attribute.endswith((".overlay.opaque", ".fuseoverlayfs.opaque")) and not escaped:
                yield f"{name} has {attribute}"
    for name in deleted & seen:
        yield f"{name} is there, and deleted"
