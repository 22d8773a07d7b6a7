"""Which image a text on a command line names: LAYOUT, LAYOUT:NAME, and with @N a revision of it.

Paths of layouts and names of images may both contain slashes, colons and at signs. What exists decides: the text is
split in each way whose first part is a layout, and means the image that exists. If two exist, the text is ambiguous,
which is an error.

Source: OCI image specification, image-layout.md, "index.json file"; annotations.md, "org.opencontainers.image.ref.name".
"""

from __future__ import annotations

import os
import re

from archive_overlay.errors import ArchiveError, brief, fail
from archive_overlay.history.misnamed import why_no_layout, without_transport
from archive_overlay.layout import read
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_NUMBERED = re.compile(r"(.+)@([1-9][0-9]{0,8})", re.DOTALL)


class Found(Record):
    """An image that a text names.

    Attributes:
        path: of the layout.
        name: of the image there; "" if it has none.
        number: of the revision that is meant; 0 for the last one.
        descriptor: of its manifest.
    """

    path: str
    name: str
    number: int
    descriptor: Mapping[str, Any]

    @property
    def unmistakable(self) -> str:
        """An unambiguous text for the image."""
        return f"{self.path}/:{self.name}" + (f"@{self.number}" if self.number else "")


class _Reading(Record):
    """A way to read a text.

    Attributes:
        path: of the layout.
        name: of the image, perhaps with a revision; "" if no image is named.
        number: of the revision, if no image is named.
    """

    path: str
    name: str
    number: int = 0


def find_image(text: str, *, numbered: bool) -> Found:
    """Find the image that a text names.

    An image whose name ends in @N is meant before revision N of another one. Without a name it is the image `latest`,
    or else the only image, if that has no name.

    Args:
        text: LAYOUT or LAYOUT:NAME.
        numbered: whether @N may come after that.

    Raises:
        ArchiveError: there is no such image, or there are two; or a layout is damaged.
    """
    text = without_transport(text)
    readings = list(_readings(text, numbered=numbered))
    possible = [reading for reading in readings if looks_like_layout(reading.path)]
    if not possible:
        there = (reading for reading in readings if os.path.exists(reading.path))
        possible = [next(there, _usual_reading(text))]
        if error := why_no_layout(possible[0].path):
            raise error
    indexes = [_read_index(reading.path) for reading in possible]
    pairs = list(zip(possible, indexes))
    found = [image for reading, index in pairs if (image := _find(reading, index, numbered=numbered))]
    if not found:
        raise _nothing_found(*pairs[0], numbered=numbered)
    if len(found) > 1:
        raise ArchiveError(
            f"{text} may be an image of {' or of '.join(image.path for image in found)}",
            hint=f"write {' or '.join(image.unmistakable for image in found)}",
        )
    return found[0]


def split_off_path(text: str) -> tuple[str, str | None]:
    """Split a text that names a revision and perhaps a path in it: LAYOUT:TAG, LAYOUT:TAG@N or LAYOUT:TAG@N:PATH.

    The longest part of it that names an image is the image.

    Returns:
        What names the revision, and the path: None if there is none, "" for the root directory.

    Raises:
        ArchiveError: there is no such image.
    """
    text = without_transport(text)
    try:
        find_image(text, numbered=True)
        return text, None
    except ArchiveError as error:
        failure = error
    for position in range(len(text) - 1, 0, -1):
        if text[position] != ":":
            continue
        image = text[:position]
        if os.path.isdir(image):  # a layout, and what follows is the name of an image
            continue
        try:
            find_image(image, numbered=True)
        except ArchiveError as error:
            failure = error
            continue
        return image, text[position + 1 :]
    raise failure


def find_images(text: str) -> tuple[list[Found], bool]:
    """Find the image that a text names, or all images of the layout that it names.

    Args:
        text: LAYOUT or LAYOUT:NAME.

    Returns:
        The images, sorted by their names, those without one first; and whether they are all of a layout, whose path then is the
        text.

    Raises:
        ArchiveError: there is no such image or layout; or the text may name one or the other; or a layout is damaged.
    """
    text = without_transport(text)
    if not looks_like_layout(text):
        return [find_image(text, numbered=False)], False
    for reading in _readings(text, numbered=False):
        if reading.name and looks_like_layout(reading.path):
            image = _find(reading, _read_index(reading.path), numbered=False)
            if image:
                raise ArchiveError(
                    f"{text} is an image layout, and {image.path} has an image of that name, too",
                    hint=f"write {text}/ or {image.unmistakable}",
                )
    images = [
        Found(path=text, name=read.tag_of(descriptor), number=0, descriptor=descriptor)
        for descriptor in read.images(_read_index(text))
    ]
    return sorted(images, key=lambda image: image.name), True


def expect_layout(text: str) -> str:
    """Give the path of the layout that a text names, by itself and without an image.

    Raises:
        ArchiveError: it names something else; what is wrong in a layout is not looked for.
    """
    path = without_transport(text)
    if not os.path.lexists(path) and (layout := layout_within(path)):
        raise ArchiveError(f"{text} names an image, and this is about whole layouts", hint=f"write {layout}")
    if error := why_no_layout(path):
        raise error
    return path


def layout_within(text: str) -> str:
    """Give the path of a layout of which a text may name an image, other than the text itself; "" if there is none."""
    paths = (reading.path for reading in _readings(text, numbered=True) if reading.path != text)
    return next((path for path in paths if looks_like_layout(path)), "")


def looks_like_layout(path: str) -> bool:
    """Return whether a path looks like an image layout. Whoever can write there can fake one."""
    return all(os.path.lexists(os.path.join(path, name)) for name in (read.VERSION_FILE, read.INDEX_FILE))


def _readings(text: str, *, numbered: bool) -> Iterator[_Reading]:
    """Yield all ways to read a text, the shortest path first."""
    for position, character in enumerate(text):
        if character == ":" and 0 < position < len(text) - 1:
            yield _Reading(path=text[:position], name=text[position + 1 :])
    if numbered and (match := _NUMBERED.fullmatch(text)):
        yield _Reading(path=match[1], name="", number=int(match[2]))
    yield _Reading(path=text, name="")


def _usual_reading(text: str) -> _Reading:
    """Split a text, assuming no colons or slashes in the layout's last component and the image's name."""
    directory, slash, last = text.rpartition("/")
    last, _, name = last.partition(":")
    return _Reading(path=directory + slash + last if name else text, name=name)


def _read_index(path: str) -> dict[str, Any]:
    try:
        layout = os.open(path, READ_TOP_DIRECTORY)
        try:
            return read.read_index(layout)
        finally:
            os.close(layout)
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    except ArchiveError as error:
        raise ArchiveError(f"cannot read {path}: {error.message}", hint=error.hint) from error


def _find(reading: _Reading, index: Mapping[str, Any], *, numbered: bool) -> Found | None:
    name, number = reading.name, reading.number
    try:
        descriptor = read.tagged(index, name or read.DEFAULT_TAG)
        if descriptor is None and not name:
            descriptor = read.only_untagged(index)
        elif descriptor is None and numbered and (match := _NUMBERED.fullmatch(name)):
            name, number = match[1], int(match[2])
            descriptor = read.tagged(index, name)
    except ArchiveError as error:
        raise ArchiveError(f"cannot read {reading.path}: {error.message}", hint=error.hint) from error
    if descriptor is None:
        return None
    return Found(path=reading.path, name=read.tag_of(descriptor), number=number, descriptor=descriptor)


def _nothing_found(reading: _Reading, index: Mapping[str, Any], *, numbered: bool) -> ArchiveError:
    match = _NUMBERED.fullmatch(reading.name) if numbered else None
    name = match[1] if match else reading.name or read.DEFAULT_TAG
    tags = sorted({tag for each in index["manifests"] if (tag := read.tag_of(each))})
    hint = f"its tags are: {brief(', '.join(tags)) or 'none'}"
    if untagged := sum(not read.tag_of(each) for each in read.images(index)):
        hint += f", and {'one image has' if untagged == 1 else f'{untagged} images have'} no tag"
    return ArchiveError(f"cannot read {reading.path}: the image layout has no tag {name}", hint=hint)
