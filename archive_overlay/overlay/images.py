"""Find the images in an engine's store that a container was made from, and their manifests.

    STORE/DRIVER-containers/containers.json  the id of each container's image; see `overlay/store`
    STORE/DRIVER-layers/layers.json          the layer below each layer
    STORE/DRIVER-layers/volatile-layers.json the same for layers of containers run with --rm
    STORE/DRIVER-images/images.json          names and topmost layer of each image, and copies of that layer with other owners
    STORE/DRIVER-images/ID/manifest          an image's manifest
    STORE/DRIVER-images/ID/=BASE64           other data, by their names: "manifest-DIGEST" is a manifest that it came with

An image whose manifest changes and whose configuration does not has one id and several manifests. The engine uses the
one that it was named by, or the last one.

The image may be in a second store, which storage.conf names: the container's lower layers are there too.

Source: images.go, containers.go, layers.go and store.go of containers/storage; storage_dest.go and storage_src.go of
containers/image; the stores of podman 4.3.
"""

from __future__ import annotations

import os

from archive_overlay.overlay import store
from archive_overlay.system.record import Record
from archive_overlay.system.user_namespace import overflow_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Callable

    from archive_overlay.overlay.layers import Driver

_MANIFEST = "manifest"
# base64 of "manifest-", whose nine bytes are twelve digits of their own.
_MANIFEST_OF_DIGEST = "=bWFuaWZlc3Qt"

# The longest manifest that engines read from a registry. An image that is pulled each night for years keeps the index of
# each night as one of its own, 10 KB and more.
_LONGEST_MANIFEST = 1 << 22
_LONGEST_MANIFESTS = 1 << 26


class Container(Record):
    """What a spec says of a container's place in a store.

    Attributes:
        bundle: its bundle.
        root: its root.path.
        environment_file: source of the mount at /run/.containerenv; "" without one.
        lowers: gives the lower directories of its root file system; called only if they are needed.
        told: is told what the container is called, if the store says it.
    """

    bundle: str
    root: str
    environment_file: str
    lowers: Callable[[], Sequence[str]]
    told: Callable[[str], object] = str


class Image(Record):
    """An image in a store.

    Attributes:
        name: what people call it.
        directory: that of its data.
    """

    name: str
    directory: str


def of_container(container: Container) -> list[Image]:
    """Find the images that a container may have been made of.

    Returns:
        The image that the store names, once for each store that has it; else those that have the layer below the
        container's as their topmost one. Empty: it was made of none, the image is gone, or there is no store.

    Raises:
        UnknownError: there is a store, and it cannot be read.
    """
    containers, identifier = store.container_in_store(container.bundle)
    elsewhere, same = store.container_in_store(os.path.dirname(container.environment_file))
    layer = ""
    drivers = [containers, elsewhere if same == identifier else ""]
    drivers = [each[: -len("-containers")] for each in drivers if each]
    if os.path.basename(container.root) == "merged":
        directory, layer = os.path.split(os.path.dirname(container.root))
        drivers.append(directory)
    drivers = [each for each in dict.fromkeys(drivers) if os.path.isdir(f"{each}-containers")]
    if not drivers:
        return []
    found = _of_record(drivers, identifier, layer, container.told)
    if found is None:
        below = _below(drivers, layer) if layer else ""
        return _with_layer(drivers, below) if below else []
    if not found:
        return []
    # The host's root may have made a second store, and a user namespace shows him as somebody else.
    return _with_id(drivers, found) or _with_id(
        _others(container.lowers(), drivers), found, owners=(0, overflow_owner())
    )


class Listed(Record):
    """An image, as a store lists it.

    Attributes:
        identifier: its id.
        names: that it has.
        former: that it has had, those that it has among them, as far as the store remembers.
        layer: id of its topmost layer; "" if it has none.
        image: the same, for its manifests.
    """

    identifier: str
    names: tuple[str, ...]
    former: tuple[str, ...]
    layer: str
    image: Image


def listed(driver: str) -> Iterator[Listed]:
    """Yield all images of a store.

    Args:
        driver: the directory of its layers.

    Raises:
        UnknownError: the list cannot be read.
    """
    for _, record in _all([driver]):
        image = _image(driver, record)
        yield Listed(
            identifier=os.path.basename(image.directory),
            names=_texts(record.get("names")),
            former=_texts(record.get("names-history")),
            layer=str(record.get("layer") or ""),
            image=image,
        )


def manifests(image: Image) -> Iterator[str]:
    """Yield all manifests that a store has of an image, each once.

    Raises:
        UnknownError: one cannot be read, or is longer than any that engines read.
    """
    try:
        names = sorted(os.listdir(image.directory))
    except OSError as error:
        raise store.UnknownError(f"{image.directory}: {error.strerror}") from error
    left = _LONGEST_MANIFESTS
    seen: set[int] = (
        set()
    )  # the last one is there under two names; hashes, for the texts may be many megabytes
    for name in names:
        if name == _MANIFEST or name.startswith(_MANIFEST_OF_DIGEST):
            path = f"{image.directory}/{name}"
            text = store.bytes_of(path, min(left, _LONGEST_MANIFEST), "manifest", owners=None)
            left -= len(text)
            if hash(text) in seen:
                continue
            seen.add(hash(text))
            try:
                yield text.decode()
            except UnicodeDecodeError:
                raise store.UnknownError(f"{path} is not UTF-8") from None


def with_top_layer(drivers: Iterable[Driver], layer: str) -> list[Image]:
    """Find the images whose topmost layer, or a copy of it with other owners, is a certain one.

    Args:
        drivers: where to look.
        layer: its id.

    Raises:
        UnknownError: a list cannot be read.
    """
    return [image for driver in drivers for image in _with_layer([driver.path], layer, driver.owners)]


def _of_record(
    drivers: Iterable[str], container: str, layer: str, told: Callable[[str], object]
) -> str | None:
    """Give the id of the image that a container was made of; "": of none; None: no store knows the container."""
    for driver in drivers:
        for record in store.records(f"{driver}-containers"):
            if record.get("id") == container or (layer and record.get("layer") == layer):
                for name in _texts(record.get("names"))[:1]:
                    told(name)
                image = record.get("image") or ""
                if not isinstance(image, str) or (image and not store.is_identifier(image)):
                    raise store.UnknownError(
                        f"{driver}-containers names {str(image)[:80]!r}, which is not the id of an image"
                    )
                return image
    return None


def _below(drivers: Iterable[str], layer: str) -> str:
    """Return the layer below another one; "" if there is none, or no store knows it."""
    for directory in (f"{driver}-layers" for driver in drivers if os.path.isdir(f"{driver}-layers")):
        store.check_private(directory)
        for path in (f"{directory}/{name}" for name in ("layers.json", "volatile-layers.json")):
            for record in store.elements(path) if os.path.lexists(path) else ():
                if record.get("id") == layer:
                    return str(record.get("parent") or "")
    return ""


def _with_layer(drivers: Iterable[str], layer: str, owners: Sequence[int] = ()) -> list[Image]:
    found = []
    for driver, record in _all(drivers, owners):
        copies = record.get("mapped-layers")
        if record.get("layer") == layer or (isinstance(copies, list) and layer in copies):
            found.append(_image(driver, record))
    return found


def _with_id(drivers: Iterable[str], identifier: str, owners: Sequence[int] = ()) -> list[Image]:
    return [
        _image(driver, record) for driver, record in _all(drivers, owners) if record.get("id") == identifier
    ]


def _all(drivers: Iterable[str], owners: Sequence[int] = ()) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield what stores have on each of their images."""
    for driver in drivers:
        path = f"{driver}-images/images.json"
        if os.path.lexists(path):
            store.check_private(os.path.dirname(path), owners=owners)
            for record in store.elements(path, owners=owners):
                yield driver, record


def _image(driver: str, record: dict[str, object]) -> Image:
    identifier = record.get("id")
    if not isinstance(identifier, str) or not store.is_identifier(identifier):
        raise store.UnknownError(f"{driver}-images/images.json has an image without an id")
    names = record.get("names") or record.get("names-history")
    name = names[0] if isinstance(names, list) else identifier[:12]
    return Image(name=str(name), directory=f"{driver}-images/{identifier}")


def _texts(value: object) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _others(lowers: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return the stores, besides those that are known, in which lower layers are."""
    found = []
    for lower in lowers:
        layer, name = os.path.split(os.path.realpath(lower))
        if name == "diff":
            found.append(os.path.dirname(layer))
    return [driver for driver in dict.fromkeys(found) if driver not in known]
