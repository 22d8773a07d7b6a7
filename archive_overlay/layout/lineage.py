"""Find the revision that a new one goes on top of: what the container had mounted, if that is known.

Engines name the layers of a pulled image by what is in them and below them (`stored.chains_of`), and a mount of an
image shows the name of its top layer. So the hook knows the revision that a container started from, even if the tag has
moved since.

As in git, a new revision of a tag is a fast-forward if the container had the tag's last revision.
"""

from __future__ import annotations

import re

from archive_overlay.errors import ArchiveError, StaleError
from archive_overlay.layout.provenance import ABSENT, OTHER, UNKNOWN, first_of
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.read import images, is_tagged, only_untagged, tag_of, tagged
from archive_overlay.layout.stored import ANCESTOR_DIGITS, StoredImage, chains_in, chains_of, open_stored
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any, Callable

BRANCH = "branch"
FAIL = "fail"
APPEND = "append"

_NUMBERED = re.compile(r"(.+)@([1-9][0-9]{0,8})", re.DOTALL)
_ID_LENGTH = 12
# How many other images of a layout are searched for the container's revision.
_MOST_IMAGES = 200


class Wish(Record):
    """What the annotations ask for, and what is known of the container.

    Attributes:
        path: of the layout, for messages.
        tag: names the image.
        parent: TAG or TAG@N that a new tag begins with; "" for none.
        if_moved: BRANCH, FAIL or APPEND: what to do if it is no fast-forward.
        container: the container's id.
        had: the ids that the top layer of what the container had mounted may have in a store; None: nobody knows.
        all_had: gives further ones, where these say nothing, which takes longer; none: nobody knows.
        count_base: says how many layers that image has, if it is to be copied into a layout that lacks it, or None if that is
            not known, and so cannot be done; None: it is not to be copied.
        upper: identity of the upperdir; see `provenance.Provenance`. "" if nobody knows it, or it does not matter.
        earlier: the revision of the same upperdir that the new one is compared with; None: that is not known yet, or
            there is none.
    """

    path: str
    tag: str
    parent: str
    if_moved: str
    container: str
    had: Collection[str] | None
    all_had: Callable[[], Collection[str]] = tuple
    count_base: Callable[[], int | None] | None = None
    upper: str = ""
    earlier: Earlier | None = None


class Earlier(Record):
    """The newest revision made from the same upperdir: a new one goes on top of it.

    Attributes:
        tag: of an image that has it; "" for none.
        descriptor: of that image's manifest.
        number: of the revision.
        first: of the first revision of that upperdir.
        chains: ids of the image that ends in it, as stores have them.
    """

    tag: str
    descriptor: Mapping[str, Any]
    number: int
    first: int
    chains: tuple[str, ...]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.tag or 'an image without a tag'}@{self.number}"


class Place(Record):
    """Where a new revision goes.

    Attributes:
        tag: that it gets.
        image: that it lies on, or on one of whose revisions; None: on nothing.
        number: of the revision that it lies on; 0 for none.
        parent: the same as "TAG@N", if that is a revision of another tag, or was not the last one; "" otherwise.
        base: see `provenance.Provenance`.
        warning: a warning for the user; "" for none.
        earlier: see `Wish`.
    """

    tag: str
    image: StoredImage | None
    number: int
    parent: str = ""
    base: str = ""
    warning: str = ""
    earlier: Earlier | None = None


def find_place(layout: int, index: Mapping[str, Any], wish: Wish) -> Place:
    """Say where a new revision goes.

    Args:
        layout: file descriptor of the layout's directory.
        index: the layout's.
        wish: what is asked for.

    Raises:
        ArchiveError: there is no such parent, the layout is damaged, or the container had another revision than the last
            one and `if_moved` is FAIL.
        StaleError: `wish.earlier` is not there any more.
        OSError: the layout cannot be read.
    """
    usual = _usual_place(layout, index, wish)
    earlier = wish.earlier or (_find_earlier(layout, index, wish, usual) if wish.upper else None)
    if earlier:
        return _on_earlier(layout, index, wish, usual, earlier)
    if wish.had is None:
        return _on_unknown(usual, wish)
    if usual.image and _is_revision(usual.image, usual.number, wish.had):
        return usual
    wish = wish.replace(had=wish.all_had() or None)
    if wish.had is None:
        return _on_unknown(usual, wish)
    if usual.image and _is_revision(usual.image, usual.number, wish.had):
        return usual
    true = _search(layout, index, wish, usual.image)
    if wish.if_moved == APPEND and usual.image:
        return usual.replace(base=f"{OTHER} {true[2] if true else next(iter(wish.had), '')}".rstrip())
    new = tagged(index, wish.tag) is None
    if true is None:
        return _without_parent(index, wish, usual, new=new)
    image, number, name = true
    if new and not wish.parent:
        return Place(tag=wish.tag, image=image, number=number, parent=name)
    what = f"the container started from {name}, not from {_named(wish, usual)}"
    if wish.if_moved == FAIL:
        raise ArchiveError(
            f"{what}, and if-moved=fail refuses that",
            hint="mount the newest revision and do the work again, or archive with if-moved=branch",
        )
    tag = wish.tag if new else branch_tag(index, wish.tag, wish.container)

    return Place(
        tag=tag,
        image=image,
        number=number,
        parent=name,
        warning=f"{what}: this revision goes on top of {name}, under the tag {tag}; {_merge_by_hand(wish, tag)}"
        if tag != wish.tag
        else f"{what}: so {tag} begins from {name}",
    )


def _find_earlier(layout: int, index: Mapping[str, Any], wish: Wish, usual: Place) -> Earlier | None:
    """Find the newest revision of the same upperdir; None: there is none."""
    image = usual.image if tagged(index, wish.tag) is not None else None
    if image is None:
        # It may have another tag: if the tag's name has the time in it, for example.
        for descriptor in _newest(index, wish):
            if found := _earlier_in(_opened(layout, descriptor), wish.upper):
                return found
        return None
    # Packs are read only if the container did not start from the last revision; that is checked in any case.
    moved = wish.had is not None and not _is_revision(image, image.last, wish.had)
    found = _earlier_in(image, wish.upper, packs=moved)
    if wish.if_moved == APPEND:
        return found  # of another history, the tag has nothing
    for descriptor in images(index):
        if tag_of(descriptor).startswith(_branch_name(wish.tag, wish.container)):
            other = _earlier_in(_opened(layout, descriptor), wish.upper)
            if other and (found is None or other.number > found.number):
                found = other
    return found


def _earlier_in(image: StoredImage | None, upper: str, *, packs: bool = False) -> Earlier | None:
    """Find the last revision of an upperdir in an image; None: there is none."""
    if image is None:
        return None
    for piece, layer in zip(reversed(image.layers), reversed(image.manifest["layers"])):
        annotations = layer.get("annotations")
        if isinstance(annotations, dict) and (first := first_of(annotations, upper)):
            return _earlier(image, piece.last, first, annotations)
    for each in reversed(image.kept()) if packs else ():
        if first := first_of(each.annotations, upper):
            return _earlier(image, each.number, first, each.annotations)
    return None


def _earlier(image: StoredImage, number: int, first: int, annotations: Mapping[str, Any]) -> Earlier | None:
    chains = [*chains_in(annotations), *([image.chain()] if number == image.last else [])]
    if not chains or not image.first <= first <= number:
        return None
    return Earlier(
        tag=tag_of(image.descriptor),
        descriptor=image.descriptor,
        number=number,
        first=first,
        chains=tuple(dict.fromkeys(chains)),
    )


def _on_earlier(layout: int, index: Mapping[str, Any], wish: Wish, usual: Place, earlier: Earlier) -> Place:
    """Return the place on an earlier revision of the same upperdir, which the container had and has changed since."""
    usual = usual.replace(earlier=earlier)
    if usual.image and _is_revision(usual.image, usual.number, earlier.chains):
        return usual
    true = _search(layout, index, wish.replace(had=earlier.chains), usual.image)
    if true is None:
        raise StaleError(
            f"{earlier.name}, which has what this container had changed before, no longer exists"
        )
    image, number, name = true
    if wish.if_moved == APPEND and usual.image:
        return usual.replace(base=f"{OTHER} {name}")
    place = Place(tag=wish.tag, image=image, number=number, parent=name, earlier=earlier)
    if tagged(index, wish.tag) is None:
        return place
    tag = tag_of(image.descriptor)
    if tag.startswith(_branch_name(wish.tag, wish.container)) and number == image.last:
        return place.replace(tag=tag, parent="")
    what = f"{name} has what this container had changed before, but {wish.tag} has moved on without it"
    if wish.if_moved == FAIL:
        raise ArchiveError(
            f"{what}, and if-moved=fail refuses that",
            hint="mount the newest revision and do the work again, or archive with if-moved=branch",
        )
    tag = branch_tag(index, wish.tag, wish.container)
    return place.replace(
        tag=tag,
        warning=f"{what}: this revision goes on top of {name}, under the tag {tag}; {_merge_by_hand(wish, tag)}",
    )


def _usual_place(layout: int, index: Mapping[str, Any], wish: Wish) -> Place:
    """Return the place for a container that had the revision that the annotations name."""
    descriptor = tagged(index, wish.tag)
    if descriptor is not None:
        image = open_stored(layout, descriptor)
        return Place(tag=wish.tag, image=image, number=image.last)
    if wish.parent in ("", wish.tag):
        return Place(tag=wish.tag, image=None, number=0)
    descriptor = tagged(index, wish.parent)
    name, number = wish.parent, 0
    if descriptor is None and (match := _NUMBERED.fullmatch(wish.parent)):
        name, number = match[1], int(match[2])
        descriptor = tagged(index, name)
    if descriptor is None:
        raise _no_parent(wish, name, index)
    image = open_stored(layout, descriptor)
    if number and all(each.number != number for each in image.kept()):
        raise ArchiveError(
            f"the image layout {wish.path} has no revision {number} of {name}, which is to be the parent",
            hint=f"archive_overlay log {quoted(f'{wish.path}:{name}')} lists its revisions",
        )
    number = number or image.last
    return Place(tag=wish.tag, image=image, number=number, parent=f"{name}@{number}")


def _on_unknown(usual: Place, wish: Wish) -> Place:
    """Return the place if it is unknown what the container had."""
    warning = ""
    if wish.count_base and not usual.image:
        warning = f"{wish.tag} begins without the image that the container had mounted: it is unknown which one that is"
    return usual.replace(base=UNKNOWN, warning=warning)


def _without_parent(index: Mapping[str, Any], wish: Wish, usual: Place, *, new: bool) -> Place:
    """Return the place for a container that had something that the layout does not have."""
    assert wish.had is not None
    base = f"{ABSENT} {next(iter(wish.had), '')}".rstrip()
    # Its revisions come first, when they are there.
    below = (wish.count_base() if wish.count_base else None) or 0
    if not usual.image:
        if below:
            return Place(tag=wish.tag, image=None, number=below, base=base)
        return Place(
            tag=wish.tag,
            image=None,
            number=0,
            base=base,
            warning=f"{wish.tag} begins without the image that the container had mounted: it is not in the layout"
            f" {wish.path}, which gets the changes alone. base=include copies it there",
        )
    what = f"the container started from an image that is not in the layout, not from {_named(wish, usual)}"
    other = usual.parent.rpartition("@")[0] if new and usual.parent else wish.tag
    if wish.if_moved == FAIL:
        raise ArchiveError(
            f"{what}, and if-moved=fail refuses that",
            hint=f"mount oci:{wish.path}:{other} and do the work again, or archive with if-moved=branch",
        )
    tag = wish.tag if new else branch_tag(index, wish.tag, wish.container)
    return Place(
        tag=tag,
        image=None,
        number=below,
        base=base,
        warning=f"{what}: so the revision begins a history of its own, under the tag {tag}; to continue {other}, mount"
        f" oci:{wish.path}:{other}, or archive with if-moved=append to put revisions on its newest one all the same",
    )


def _merge_by_hand(wish: Wish, tag: str) -> str:
    return f"to join the two, load {wish.path}:{tag}, and make the changes of {wish.tag} there by hand"


def _named(wish: Wish, usual: Place) -> str:
    if usual.parent:
        return usual.parent
    return f"{wish.tag}@{usual.number}, which is the newest revision"


def _is_revision(image: StoredImage, number: int, had: Collection[str]) -> bool:
    """Return whether a revision is the one that the container had."""
    if number == image.last:
        if image.chain() in had:
            return True
        annotations = image.manifest["layers"][-1].get("annotations") if image.layers else None
        return isinstance(annotations, dict) and any(chain in had for chain in chains_in(annotations))
    return find_revision(image, had) == number


def _search(
    layout: int, index: Mapping[str, Any], wish: Wish, usual: StoredImage | None
) -> tuple[StoredImage, int, str] | None:
    """Find the revision that the container had; None: it is not in the layout."""
    assert wish.had is not None
    for descriptor in _newest(index, wish):
        if usual and descriptor.get("digest") == usual.descriptor.get("digest"):
            image = usual
        elif (opened := _opened(layout, descriptor)) is not None:
            image = opened
        else:
            continue
        if number := find_revision(image, wish.had):
            return image, number, f"{tag_of(descriptor) or 'an image without a tag'}@{number}"
    return None


def find_revision(image: StoredImage, had: Collection[str]) -> int:
    """Find the last revision of an image that a container may have had; 0: there is none."""
    if image.layers and image.chain() in had:
        return image.last
    for each in reversed(image.kept()):
        if any(chain in had for chain in chains_in(each.annotations)):
            return each.number
    # Nobody has noted the ids of older revisions and of those of 3.0.
    chains = chains_of(image.config["rootfs"]["diff_ids"])
    for piece, chain in zip(reversed(image.layers), reversed(chains)):
        if chain in had:
            return piece.last
    return _find_noted(image, had)


def _find_noted(image: StoredImage, had: Collection[str]) -> int:
    """Find a revision by an id that only the image's manifest has noted, because the layer came from another host."""
    noted = image.ancestors()
    numbers = {noted.get(each[:ANCESTOR_DIGITS], 0) for each in had} & {each.number for each in image.kept()}
    return max(numbers, default=0)


def _newest(index: Mapping[str, Any], wish: Wish) -> Sequence[Mapping[str, Any]]:
    """Return the images of a layout in which a revision is looked for."""
    descriptors = images(index)[::-1]
    # If several images have it, prefer the one that is asked for, or the one to begin on.
    begins_on = match[1] if (match := _NUMBERED.fullmatch(wish.parent)) else wish.parent
    descriptors.sort(key=lambda each: (not is_tagged(each, wish.tag), not is_tagged(each, begins_on)))
    if len(descriptors) > _MOST_IMAGES:
        # The newest, and those that were there first: bases among them.
        descriptors = descriptors[: _MOST_IMAGES // 2] + descriptors[-_MOST_IMAGES // 2 :]
    return descriptors


def _opened(layout: int, descriptor: Mapping[str, Any]) -> StoredImage | None:
    try:
        return open_stored(layout, descriptor)
    except (ArchiveError, OSError):
        return None  # damaged, or no image: another one's matter


def _branch_name(tag: str, container: str) -> str:
    """Return the prefix of tags of branches that nobody asked for."""
    identifier = re.sub("[^A-Za-z0-9]", "", container)[:_ID_LENGTH] or "branch"
    return f"{tag}-{identifier}"


def branch_tag(index: Mapping[str, Any], tag: str, container: str) -> str:
    """Find a tag for a branch that nobody asked for: TAG-ID12, and a number after it if that is taken.

    Args:
        index: of the layout.
        tag: that it is a branch of.
        container: id of the container that made it.
    """
    taken = {tag_of(each) for each in index["manifests"]}
    branch = first = _branch_name(tag, container)
    number = 1
    while branch in taken:
        number += 1
        branch = f"{first}.{number}"
    return branch


def _no_parent(wish: Wish, name: str, index: Mapping[str, Any]) -> ArchiveError:
    layout = f"oci:{wish.path}"
    tag = f"{layout}:{name}"
    hint = ""
    if only_untagged(index):
        hint = f"its only image has no tag: skopeo copy {quoted(layout)} {quoted(tag)} gives it this one"
    elif not all(map(tag_of, images(index))):
        hint = f"it has images without a tag: copy one there once more, as skopeo copy IMAGE {quoted(tag)}"
    return ArchiveError(
        f"the image layout {wish.path} has no tag {name}, which is to be the parent",
        hint=hint,
    )
