"""Fetching: what other hosts have pushed to a registry, brought into a layout.

Looking comes first, and takes two requests: the manifest and the config say whether there is anything newer, and whether it
goes on with what is here. Then only the blobs that are not here are downloaded, into staging, by the digest that was judged,
so whatever the registry's tag is in the meantime makes no difference. They get into the layout with the lock, as those of a
stop do, and what is downloaded is judged once more by then.

A registry is believed as it is by a pull: it says what its image is. What it says of this layout means nothing; see
`history.joining`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import nullcontext

from archive_overlay.errors import ArchiveError
from archive_overlay.history.joining import goes_on_with, named_besides, put_joined
from archive_overlay.layout.blobs import BLOBS, Blobs, blob_path, damaged
from archive_overlay.layout.edit import is_new
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.read import (
    MANIFEST_TYPE,
    parse_blob,
    parse_image,
    read_image,
    read_index,
    tagged,
)
from archive_overlay.layout.remotes import noted, remote_of
from archive_overlay.layout.stored import StoredImage, open_stored
from archive_overlay.system.activity import NOW
from archive_overlay.system.open_flags import READ, READ_DIRECTORY
from archive_overlay.system.record import Record
from archive_overlay.transfer.remote_image import by_digest
from archive_overlay.transfer.sending import came_into
from archive_overlay.transfer.skopeo import TransferError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from typing import Any, Callable

    from archive_overlay.destination.staging import Staging
    from archive_overlay.layout.edit import Edit
    from archive_overlay.transfer.names import Name
    from archive_overlay.transfer.skopeo import Skopeo

# What skopeo writes: a layout in staging, with one image.
_FETCHED = "fetched"
_TAG = "fetched"
_BLOCK = 1 << 20
# EFBIG, in skopeo's words.
_TOO_LARGE = "file too large"
# skopeo has a cache, which is a file of some megabytes.
_LARGEST_OF_ITS_OWN = 256 * 1024 * 1024


class Remote(Record):
    """An image in a registry, as it was when it was looked at.

    Attributes:
        name: its name.
        manifest: of this very image, or of several for different machines.
        digest: of the manifest.
    """

    name: Name
    manifest: Mapping[str, Any]
    digest: str

    @property
    def reference(self) -> str:
        """Names this very image, whatever becomes of its tag."""
        return by_digest(self.name, self.digest)

    @property
    def is_plain(self) -> bool:
        """Whether it is as layouts have it, so that nothing of it has to be translated."""
        return (
            self.manifest.get("mediaType", MANIFEST_TYPE) == MANIFEST_TYPE
            and "manifests" not in self.manifest
        )

    @property
    def layers(self) -> list[Mapping[str, Any]]:
        """The descriptors of its layers, as far as they are known."""
        layers = self.manifest.get("layers")
        return [each for each in layers if isinstance(each, dict)] if isinstance(layers, list) else []


class Place(Record):
    """A tag that is to name what is fetched.

    Attributes:
        path: of the layout, resolved.
        layout: file descriptor of its directory.
        tag: the tag.
    """

    path: str
    layout: int
    tag: str

    def index(self) -> Mapping[str, Any]:
        """Give the layout's index; an empty one if there is no layout yet."""
        return {"manifests": []} if is_new(self.layout) else read_index(self.layout)


class Step(Record):
    """What is to be done, or was done, about a tag.

    Attributes:
        here: the image that has the tag before; None: there is none.
        theirs: the image in the registry.
        brings: whether that takes its place.
        besides: a tag that has what would be lost by that; "": nothing would.
    """

    here: StoredImage | None
    theirs: StoredImage
    brings: bool
    besides: str = ""


class Downloaded(Record):
    """An image that is in staging, as far as it is not in the layout.

    Attributes:
        image: the image.
        files: names in staging of the blobs that are there, by digest.
    """

    image: StoredImage
    files: Mapping[str, str]


def look(skopeo: Skopeo, name: Name) -> Remote | None:
    """Look at an image in a registry; None: there is none.

    Raises:
        ArchiveError: it cannot be looked at.
    """
    data = skopeo.manifest(name.reference)
    if data is None:
        return None
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Remote(name=name, manifest=parse_blob(data, f"the manifest of {name.reference}"), digest=digest)


def judge_remote(skopeo: Skopeo, remote: Remote, place: Place) -> Step | None:
    """Say whether an image in a registry is to take the place of the one that has a tag, without its layers.

    Returns:
        None: that cannot be said before it is downloaded.

    Raises:
        ArchiveError: it does not go on with what is here; or something cannot be read.
        OSError: what is here cannot be read.
    """
    if not remote.is_plain:
        return None
    index = place.index()
    descriptor = {"mediaType": MANIFEST_TYPE, "digest": remote.digest, "size": 0}
    # It may have a history here: then this is where it came from.
    theirs = StoredImage(
        place.layout, descriptor, *parse_image(remote.manifest, skopeo.config(remote.reference))
    )
    try:
        return judge(place, index, remote, theirs)
    except ArchiveError:
        if place.index() == index:
            raise
        return None  # others have deleted what they made superfluous meanwhile


def judge(place: Place, index: Mapping[str, Any], remote: Remote, theirs: StoredImage) -> Step:
    """Say whether an image in a registry is to take the place of the one that has a tag.

    Args:
        place: the tag.
        index: the layout's.
        remote: the image in the registry.
        theirs: the same as a history.

    Raises:
        ArchiveError: it does not go on with what is here.
        OSError: what is here cannot be read.
    """
    descriptor = tagged(index, place.tag)
    if descriptor is None:
        return Step(here=None, theirs=theirs, brings=True)
    here = open_stored(place.layout, descriptor, whole=False)
    if goes_on_with(theirs, here):
        return Step(here=here, theirs=theirs, brings=theirs.last > here.last)
    if goes_on_with(here, theirs):
        return Step(here=here, theirs=theirs, brings=False)
    besides = named_besides(place.layout, index, place.tag, here)
    if besides:
        return Step(here=here, theirs=theirs, brings=True, besides=besides)
    raise ArchiveError(
        f"{place.path}:{place.tag} has revisions that {remote.name.reference} does not go on with, so nothing is fetched",
        hint=f"archive_overlay tag {quoted(f'{place.path}:{place.tag}')} {place.tag}-here gives them another tag, and then"
        " fetch brings what is there",
    )


def download(
    skopeo: Skopeo,
    remote: Remote,
    place: Place,
    staging: Staging,
    receiving: Callable[
        [int, Callable[[], int] | None], AbstractContextManager[object]
    ] = lambda size, done: nullcontext(),
) -> Downloaded:
    """Download what is not in a layout of an image in a registry, into staging.

    Args:
        skopeo: does it.
        remote: the image.
        place: where it is to be.
        staging: in the layout; nothing was downloaded into it before.
        receiving: is entered while something comes, and while it is compared with its digests; is called with how many bytes
            that are, as far as it is known, and what gives how many have come, or None where they are read.

    Raises:
        ArchiveError: it cannot be had, or is not what it should be.
        OSError: it cannot be written.
    """
    here = _link_blobs(remote, place, staging)
    size = _expect_room(remote, here, staging)
    # skopeo resolves symbolic links itself, so nothing is gained by a path that leads through a file descriptor.
    directory = os.readlink(f"/proc/self/fd/{staging.directory}")
    same = ["--preserve-digests"] if remote.is_plain else []
    limit = _largest_file(remote)
    try:
        with receiving(size, came_into(staging.directory, _FETCHED)):
            skopeo.copy(remote.reference, f"oci:{directory}/{_FETCHED}:{_TAG}", *same, largest_file=limit)
    except TransferError as error:
        if _TOO_LARGE in str(error):
            raise ArchiveError(f"{remote.name.reference} sends more than it says") from error
        raise
    fetched = os.open(_FETCHED, READ_DIRECTORY, dir_fd=staging.directory)
    try:
        descriptor = tagged(read_index(fetched), _TAG) or {}
        if remote.is_plain and descriptor.get("digest") != remote.digest:
            raise damaged(f"{remote.reference} has come as something else")
        manifest, config = read_image(fetched, descriptor)
        new = {blob_path(each) for each in manifest["layers"]} - here
        with receiving(size, None):
            for blob in new:
                _expect_sound(blob, fetched)
    finally:
        os.close(fetched)
    new.add(blob_path(manifest["config"]))
    files = {f"sha256:{os.path.basename(blob)}": f"{_FETCHED}-{os.path.basename(blob)}" for blob in new}
    for blob in new:
        staging.adopt(f"{_FETCHED}/{blob}", f"{_FETCHED}-{os.path.basename(blob)}")
    named = {key: value for key, value in descriptor.items() if key != "annotations"}
    return Downloaded(image=StoredImage(place.layout, named, manifest, config), files=files)


def put(place: Place, index: Mapping[str, Any], remote: Remote, downloaded: Downloaded, edit: Edit) -> Step:
    """Let a tag name what was downloaded, if it still is to.

    Args:
        place: the tag.
        index: the layout's, which is locked.
        remote: what was downloaded.
        downloaded: the same.
        edit: publishes it.

    Returns:
        What was done.

    Raises:
        ArchiveError: see `judge`; or the layout is damaged.
        OSError: something cannot be read or written.
    """
    step = judge(place, index, remote, downloaded.image)
    if not step.brings:
        put_note(place, index, remote, edit)
        return step
    for digest, name in downloaded.files.items():
        edit.add_file(name, digest)
    digest = put_joined(edit, place.tag, place.layout, downloaded.image, here=step.here)
    if _belongs(tagged(index, place.tag), remote):
        edit.annotate_tag(place.tag, noted(remote.name.reference, digest))
    edit.publish()
    return step


def put_note(place: Place, index: Mapping[str, Any], remote: Remote, edit: Edit) -> None:
    """Note where a tag's image belongs; see `is_noted`.

    Raises:
        ArchiveError, OSError: see `put`.
    """
    descriptor = tagged(index, place.tag)
    if descriptor is not None and not is_noted(descriptor, remote):
        edit.annotate_tag(place.tag, _note(descriptor, remote))
        edit.publish()


def is_noted(descriptor: Mapping[str, Any], remote: Remote) -> bool:
    """Say whether a tag says where its image belongs, and that it is there if it is.

    A tag whose images belong elsewhere stays as it is.
    """
    said = descriptor.get("annotations") or {}
    return not _belongs(descriptor, remote) or said == {**said, **_note(descriptor, remote)}


def _belongs(descriptor: Mapping[str, Any] | None, remote: Remote) -> bool:
    return remote_of(descriptor or {}) in ("", remote.name.reference)


def _note(descriptor: Mapping[str, Any], remote: Remote) -> dict[str, str]:
    there = remote.digest if descriptor.get("digest") == remote.digest else ""
    return noted(remote.name.reference, there)


def _link_blobs(remote: Remote, place: Place, staging: Staging) -> set[str]:
    """Put layers that are here where skopeo finds them; give the paths in a layout of those that it does."""
    for name in (_FETCHED, f"{_FETCHED}/blobs", f"{_FETCHED}/{BLOBS}"):
        os.mkdir(name, 0o700, dir_fd=staging.directory)
    linked: set[str] = set()
    if is_new(place.layout):
        return linked
    layers = remote.layers
    if descriptor := tagged(place.index(), place.tag):
        layers += read_image(place.layout, descriptor, whole=False)[0]["layers"]
    with Blobs(place.layout) as blobs:
        for layer in layers:
            if blobs.has(layer) and _link(blob_path(layer), place.layout, staging.directory):
                linked.add(blob_path(layer))
    return linked


def _link(blob: str, layout: int, staging: int) -> bool:
    """Give a blob a second name where skopeo looks for it, if it is a file of its own."""
    name = f"{_FETCHED}/{blob}"
    try:
        os.link(blob, name, src_dir_fd=layout, dst_dir_fd=staging, follow_symlinks=False)
    except FileExistsError:
        return True
    except OSError:
        return (
            False  # there are no links here, or not to files of somebody else's: it is downloaded once more
        )
    if stat.S_ISREG(os.stat(name, dir_fd=staging, follow_symlinks=False).st_mode):
        return True
    os.unlink(name, dir_fd=staging)
    return False


def _expect_room(remote: Remote, here: set[str], staging: Staging) -> int:
    """Make sure that there is room for what is not here; give how many bytes that are, as far as it is known."""
    sizes = {blob_path(layer): layer.get("size") for layer in remote.layers}
    if any(type(size) is not int or size < 0 for size in sizes.values()):
        raise damaged("a layer has no size")
    needed: int = sum(size for blob, size in sizes.items() if blob not in here and size)
    status = os.fstatvfs(staging.directory)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise ArchiveError(
            f"{remote.name.reference} needs {needed} bytes, and there are {free} free for the layout"
        )
    return needed


def _largest_file(remote: Remote) -> int | None:
    """Give how many bytes a file may have that skopeo writes: it compares sizes when all of a blob is there."""
    if not remote.layers:
        return None  # nobody knows yet
    return _LARGEST_OF_ITS_OWN + max(int(layer["size"]) for layer in remote.layers)


def _expect_sound(blob: str, layout: int) -> None:
    """Compare a blob's digest."""
    digest = hashlib.sha256()
    with open(os.open(blob, READ, dir_fd=layout), "rb") as file:
        while data := file.read(_BLOCK):
            digest.update(data)
            NOW.read += len(data)
    if digest.hexdigest() != os.path.basename(blob):
        raise damaged(f"{blob} is not what its name says")
