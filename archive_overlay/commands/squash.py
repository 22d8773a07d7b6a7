"""`archive_overlay squash`: one revision of several."""

from __future__ import annotations

import re

from archive_overlay.commands import Output, shown
from archive_overlay.commands.progress import Progress
from archive_overlay.commands.writing import find_tagged, make_room_in, open_layout
from archive_overlay.errors import ArchiveError
from archive_overlay.history.pruning import wanted_without
from archive_overlay.history.rewriting import plan_rewriting, put_rewritten
from archive_overlay.keys import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from archive_overlay.commands.writing import Layout
    from archive_overlay.history.revisions import Image
    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.packs import Kept
    from archive_overlay.log import Log

_RANGE = re.compile(r"(.+)@([1-9][0-9]{0,8})\.\.([1-9][0-9]{0,8})", re.DOTALL)
# What the first revision says of what it lies on.
_BELOW = (f"{PREFIX}parent", f"{PREFIX}base")


def run(options: argparse.Namespace, log: Log) -> None:
    """Make one revision of several.

    Args:
        options: `revision`, LAYOUT:TAG or LAYOUT:TAG@A..B; `message`; `max_layers`; `fsync`.
        log: is told for whom it waits.

    Raises:
        ArchiveError: there are no such revisions, they are damaged, or the layout cannot be written.
    """
    match = _RANGE.fullmatch(options.revision)
    found = find_tagged(match[1] if match else options.revision, numbered=False)
    asked = (int(match[2]), int(match[3])) if match else None
    if asked and asked[0] >= asked[1]:
        raise ArchiveError(
            f"{asked[0]}..{asked[1]} are not several revisions", hint="write the lower number first"
        )
    with Progress():
        with open_layout(found.path, fsync=options.fsync, log=log) as layout:
            done = layout.write(
                found.name, lambda edit: _squash(layout, found.name, asked, options.message, edit)
            )
        make_room_in(found.path, found.name, options.max_layers, fsync=options.fsync, log=log)
    output = Output()
    output.line(f"{shown(found.name)}: {done}")
    output.flush()


def _squash(layout: Layout, tag: str, asked: tuple[int, int] | None, message: str, edit: Edit | None) -> str:
    """Squash revisions, or compose what is needed for that; say what was done."""
    with layout.open(tag) as image:
        first, last = asked or _ours(image)
        image.numbered(first), image.numbered(last)
        inside = [each.number for each in image.revisions if first <= each.number <= last]
        if len(inside) < 2:
            return f"nothing to squash: revision {last} is the only one"
        # Revisions that are none any more have left what they changed to the next one.
        begin = image.numbered(first).previous + 1
        wanted = wanted_without(image.stored, inside[:-1], within=(max(begin, image.stored.first), last))
        facts = {each.number: each for each in image.stored.kept()}
        text = message or f"squash of {first} to {last}"
        kept = {**wanted.kept, last: _whole([facts[number] for number in inside], text)}
        plan = plan_rewriting(image, wanted.replace(kept=kept), layout.composer(image))
        if edit:
            put_rewritten(plan, tag, layout.fd, image.stored, edit, instead_of=image.stored)
    if edit:
        edit.publish()
    return f"{len(inside)} revisions, {first} to {last}, have become revision {last}"


def _ours(image: Image) -> tuple[int, int]:
    """Give the first and the last of the revisions that this program made."""
    numbers = [each.number for each in image.revisions if each.provenance]
    if not numbers:
        raise ArchiveError(
            f"{image.name} has no revision that archive_overlay made",
            hint=f"write {image.name}@A..B to squash those of other programs",
        )
    return numbers[0], numbers[-1]


def _whole(facts: list[Kept], message: str) -> Kept:
    """Give what is known of the revision that several become."""
    last = facts[-1]
    annotations = {**last.annotations, f"{PREFIX}message": message}
    for key in _BELOW:
        said = next((each.annotations[key] for each in facts if each.annotations.get(key)), "")
        annotations.pop(key, None)
        if said:
            annotations[key] = said
    return last.replace(annotations=annotations)
