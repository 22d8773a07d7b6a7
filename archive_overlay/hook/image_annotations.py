"""Whose an annotation is: the user's, or the image's own.

podman up to 4.5.0 copies the annotations of an image's manifest into each container, where nothing tells them from those
of the user. Whoever made an image is trusted with nothing, so what the image's manifest says as well is the image's.

An image's author may know this page. So a manifest is scanned for strings, and two of them with a colon between are an
annotation wherever they stand: engines, which are written in Go, take `Annotations` for `annotations`, and of doubled
members the last one, or all. If this program cannot read what an engine may have read, all requests fail.

Source: pkg/specgen/generate/container.go of podman 4.3; Go's encoding/json, Unmarshal; RFC 8259, section 7.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.hook.annotations import split
from archive_overlay.keys import KEYS, PREFIX
from archive_overlay.overlay import images
from archive_overlay.overlay.store import UnknownError, after_space
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from archive_overlay.overlay.images import Container

_OPTION = "--trust-image-annotations"


class Refusal(Record):
    """Why an archive is not made.

    Attributes:
        reason: what to tell the user.
        keep: whether a rescue may keep its changes: only if that is not the image's choice.
    """

    reason: str
    keep: bool


def refusals(
    asked: Iterable[str], annotations: Mapping[str, object], container: Container
) -> dict[str, Refusal]:
    """Find the archives that a container's image asks for, or has a say in.

    Args:
        asked: the names of all archives that are asked for.
        annotations: of the container.
        container: where it is in a store.

    Returns:
        Those that must not be made, by name. All of them, if there is a store and it does not say what the image asks for.
    """
    said = {
        annotation: (_as_go(annotation), _as_go(value))
        for annotation, value in annotations.items()
        if annotation.startswith(PREFIX) and isinstance(value, str) and value
    }
    wanted = set(said.values())
    images_of: dict[tuple[str, str], str] = {}
    try:
        made_of = images.of_container(container)
    except UnknownError as error:
        return refuse_all(asked, str(error), keep=True)  # no image can bring that about
    try:
        for image in made_of:
            for manifest in images.manifests(image):
                for pair in _pairs(manifest):
                    if pair in wanted:
                        images_of.setdefault(pair, image.name)
    except UnknownError as error:
        return refuse_all(asked, str(error), keep=False)
    refused: dict[str, str] = {}
    own = set()
    for annotation, pair in said.items() if images_of else ():
        name, key = split(annotation)
        if key not in KEYS:
            continue
        if pair not in images_of:
            own.add((name, key))
        elif name not in refused:
            refused[name] = _reason(annotation, images_of[pair])
    return {
        name: Refusal(reason=refused[name], keep=(name, "mount-point") in own)
        for name in asked
        if name in refused
    }


def refuse_all(asked: Iterable[str], reason: str, *, keep: bool) -> dict[str, Refusal]:
    """Refuse all archives, because nobody knows which of them the image asks for.

    Args:
        asked: their names.
        reason: why not.
        keep: see `Refusal`.
    """
    error = ArchiveError(
        f"it is not known whether the user or the image asks for it: {reason}",
        hint=f"if images may, add {_OPTION} to the hook's arguments",
    )
    return {name: Refusal(reason=str(error), keep=keep) for name in asked}


def _reason(annotation: str, image: str) -> str:
    return str(
        ArchiveError(
            f"annotation {annotation} comes from the image {image}, whose manifest has it with the same value",
            hint=(
                "set it yourself to another value, or to an empty one to leave it out; if images may ask for"
                f" archives, add {_OPTION} to the hook's arguments"
            ),
        )
    )


def _pairs(manifest: str) -> Iterator[tuple[str, str]]:
    """Give all annotations of ours in a manifest.

    Raises:
        UnknownError: it is not JSON.
    """
    if PREFIX not in manifest and "\\" not in manifest:
        return  # nearly all
    from _json import scanstring

    try:
        quote = manifest.find('"')
        while quote >= 0:
            key, end = scanstring(manifest, quote + 1)
            if key.startswith(PREFIX):
                colon = after_space(manifest, end)
                value = after_space(manifest, colon + 1)
                if manifest[colon] == ":" and manifest[value] == '"':
                    yield _as_go(key), _as_go(scanstring(manifest, value + 1)[0])
            quote = manifest.find('"', end)
    except Exception:  # SystemError among them: without `json`, scanstring has no words for what is wrong
        raise UnknownError("its manifest is not valid JSON") from None


def _as_go(text: str) -> str:
    """Give a string as Go has it: halves of characters, which JSON can write, become U+FFFD."""
    if text.isascii():
        return text
    return "".join(["\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text])
