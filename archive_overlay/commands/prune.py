"""`archive_overlay prune`: fewer revisions, by rules."""

from __future__ import annotations

import json

from archive_overlay.commands import Output, shown
from archive_overlay.commands.progress import Progress
from archive_overlay.commands.terminal import GREEN, RED, coloured, find_screen
from archive_overlay.commands.writing import find_layout_or_image, make_room_in, open_layout
from archive_overlay.errors import ArchiveError
from archive_overlay.history.pruning import choose, named_elsewhere, runs_of, wanted_without
from archive_overlay.history.rewriting import plan_rewriting, put_rewritten
from archive_overlay.layout.keep import Keep
from archive_overlay.layout.packs import format_ranges
from archive_overlay.layout.read import images, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from archive_overlay.commands.terminal import Screen
    from archive_overlay.commands.writing import Layout
    from archive_overlay.history.pruning import Choice
    from archive_overlay.layout.edit import Edit
    from archive_overlay.log import Log


def run(options: argparse.Namespace, log: Log) -> None:
    """Drop the revisions that no rule keeps.

    Args:
        options: `layout`, LAYOUT or LAYOUT:TAG; the rules: `keep_last`, `keep_daily` and so on, `within`; `dry_run`; `json`; `color`;
            `max_layers`; `fsync`.
        log: is told for whom it waits.

    Raises:
        ArchiveError: there is no rule, no such image, a part of it is damaged, or the layout cannot be written.
    """
    keep = Keep(
        last=options.keep_last,
        daily=options.keep_daily,
        weekly=options.keep_weekly,
        monthly=options.keep_monthly,
        yearly=options.keep_yearly,
        within=options.within,
    )
    if keep.everything:
        raise ArchiveError(
            "no rule says which revisions are to be kept", hint="give one, such as --keep-last 30"
        )
    path, tag = find_layout_or_image(options.layout)
    output = Output()
    done: list[dict[str, Any]] = []
    with open_layout(path, fsync=options.fsync, log=log) as layout:
        tags = [tag] if tag else sorted({name for each in images(layout.index) if (name := tag_of(each))})
    if not tags:
        raise ArchiveError(f"the image layout {path} has no tag")
    for name in tags:
        with Progress():
            choice = _pruned(path, name, keep, options, log)
            if choice.dropped and not options.dry_run:
                make_room_in(path, name, options.max_layers, fsync=options.fsync, log=log)
        if options.json:
            done.append(_object(name, choice, dry=options.dry_run))
        else:
            _write(output, name, choice, find_screen(options), dry=options.dry_run)
    if options.json:
        output.line(json.dumps(done, indent=2))
    output.flush()


def _pruned(path: str, tag: str, keep: Keep, options: argparse.Namespace, log: Log) -> Choice:
    with open_layout(path, fsync=options.fsync, log=log) as layout:
        if options.dry_run:
            return _prune(layout, tag, keep, None, dry=True)
        return layout.write(tag, lambda edit: _prune(layout, tag, keep, edit))


def _prune(layout: Layout, tag: str, keep: Keep, edit: Edit | None, *, dry: bool = False) -> Choice:
    """Prune an image, or compose what is needed for that; give what goes and what stays."""
    with layout.open(tag) as image:
        stored = image.stored
        choice = choose(stored, keep, named_elsewhere(layout.fd, layout.index, stored))
        if dry:
            return choice
        wanted = wanted_without(stored, choice.dropped)
        plan = plan_rewriting(image, wanted, layout.composer(image))
        if edit and (choice.dropped or plan.superseded):
            put_rewritten(plan, tag, layout.fd, stored, edit, instead_of=stored)
            edit.publish()
    return choice


def _write(output: Output, tag: str, choice: Choice, screen: Screen, *, dry: bool) -> None:
    if dry:
        for number, reasons in choice.kept.items():
            output.line(f"{coloured('keep', GREEN, screen)}  {shown(tag)}@{number}  {', '.join(reasons)}")
        for number in choice.dropped:
            output.line(f"{coloured('drop', RED, screen)}  {shown(tag)}@{number}")
    if not choice.dropped:
        output.line(f"{shown(tag)}: nothing to drop; {_revisions(len(choice.kept))} stay")
        return
    what = "would go" if dry else "are gone"
    numbers = format_ranges(runs_of(choice.dropped))
    output.line(
        f"{shown(tag)}: {_revisions(len(choice.dropped))} {what} ({numbers}), {_revisions(len(choice.kept))} stay"
    )


def _revisions(count: int) -> str:
    return f"{count} revision{'s' if count != 1 else ''}"


def _object(tag: str, choice: Choice, *, dry: bool) -> dict[str, Any]:
    return {
        "tag": tag,
        "dry_run": dry,
        "kept": [{"revision": number, "reasons": list(reasons)} for number, reasons in choice.kept.items()],
        "dropped": list(choice.dropped),
    }
