"""`archive_overlay tag`: a tag of its own for a revision."""

from __future__ import annotations

from archive_overlay.commands import Output, shown
from archive_overlay.commands.writing import open_layout
from archive_overlay.errors import ArchiveError
from archive_overlay.history.references import find_image
from archive_overlay.history.rewriting import Wanted, facts_of, plan_rewriting, put_rewritten
from archive_overlay.history.tiers import OF_REVISION, runs_to_compose
from archive_overlay.layout.add_layer import expect_no_revision
from archive_overlay.layout.images import image_at, put_image, put_same, with_chain
from archive_overlay.layout.pulling import advice_on_pulling
from archive_overlay.layout.read import check_tag, tagged

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from archive_overlay.commands.writing import Layout
    from archive_overlay.history.revisions import Image
    from archive_overlay.layout.edit import Edit
    from archive_overlay.layout.pieces import Piece
    from archive_overlay.log import Log


def run(options: argparse.Namespace, log: Log) -> None:
    """Give a revision a tag.

    Args:
        options: `revision`, LAYOUT:TAG or LAYOUT:TAG@N; `new`, the tag; `max_layers`; `fsync`.
        log: takes a warning if podman does not take the tag.

    Raises:
        ArchiveError: there is no such revision, the tag is there already or is none, or the layout cannot be written.
    """
    check_tag(options.new)
    expect_no_revision(options.new)
    found = find_image(options.revision, numbered=True)
    with open_layout(found.path, fsync=options.fsync, log=log) as layout:
        number = layout.write(
            found.name,
            lambda edit: _tag(layout, found.name, found.number, options.new, options.max_layers, edit),
        )
        if advice := advice_on_pulling(layout.path, options.new):
            log.warning(advice)
        output = Output()
        output.line(f"the tag {shown(options.new)} is revision {number} of {shown(found.name or found.path)}")
        output.flush()


def _tag(layout: Layout, name: str, number: int, new: str, most: int, edit: Edit | None) -> int:
    """Tag a revision, or compose what is needed for that; give its number."""
    if tagged(layout.index, new):
        raise ArchiveError(
            f"the image layout {layout.path} has a tag {new} already",
            hint=f"archive_overlay untag {layout.path}:{new} removes it",
        )
    with layout.open(name) as image:
        revision = image.numbered(number)
        pieces = image.state(revision)
        stored = image.stored
        if len(pieces) > most:
            runs = _few(image, pieces, most)
            kept = {each: fact for each, fact in facts_of(stored).items() if each <= revision.number}
            wanted = Wanted(runs=runs, kept=kept, tidy=False)
            plan = plan_rewriting(image, wanted, layout.composer(image))
            if edit:
                put_rewritten(plan, new, layout.fd, stored, edit, instead_of=None)
        elif edit and revision.number == stored.last:
            put_same(edit, new, stored)
        elif edit:
            manifest, config = image_at(layout.fd, stored, revision.number, edit)
            manifest["layers"] = with_chain(manifest["layers"], config["rootfs"]["diff_ids"])
            platform = stored.descriptor.get("platform")
            put_image(edit, new, manifest, config, instead_of=None, platform=platform)
    if edit:
        edit.publish()
    return revision.number


def _few(image: Image, pieces: Sequence[Piece], most: int) -> list[Sequence[Piece]]:
    """Divide pieces into as many runs as an image may have layers."""
    base = sum(piece.last <= image.stored.base for piece in pieces)
    weights = [piece.size + OF_REVISION * (piece.last - piece.first + 1) for piece in pieces[base:]]
    runs: list[Sequence[Piece]] = [[piece] for piece in pieces[:base]]
    position = base
    for begin, end in runs_to_compose(weights, others=base, most=most):
        runs += [[piece] for piece in pieces[position : base + begin]]
        runs.append(pieces[base + begin : base + end])
        position = base + end
    return [*runs, *([piece] for piece in pieces[position:])]
