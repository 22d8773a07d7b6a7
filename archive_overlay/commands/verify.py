"""`archive_overlay verify`: whether a layout is whole."""

from __future__ import annotations

import json
import os

from archive_overlay.commands import Output, shown, size_in_words
from archive_overlay.commands.progress import Progress
from archive_overlay.commands.terminal import GREEN, RED, coloured, find_screen
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.history.verifying import verify
from archive_overlay.layout.packs import format_ranges
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from archive_overlay.commands.terminal import Screen
    from archive_overlay.history.verifying import Finding, Report
    from archive_overlay.log import Log


def run(options: argparse.Namespace, log: Log) -> int:
    """Look at a layout, and write what is damaged to standard output: a line for each finding, and a summary.

    Args:
        options: `layout`; `read_data`: all data are read; `json`; how it is shown.
        log: takes nothing.

    Returns:
        0 if all is well; 1 if something is damaged.

    Raises:
        ArchiveError: there is no layout, or its index is damaged.
    """
    path = options.layout
    try:
        layout = os.open(path, READ_TOP_DIRECTORY)
        try:
            with Progress():
                report = verify(path, layout, read_data=options.read_data)
        finally:
            os.close(layout)
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    except ArchiveError as error:
        raise ArchiveError(f"cannot read {path}: {error.message}", hint=error.hint) from error
    output = Output()
    if options.json:
        output.line(json.dumps(_object(path, report), indent=2))
    else:
        _write(path, report, output, find_screen(options))
    output.flush()
    return 1 if report.findings else 0


def _write(path: str, report: Report, output: Output, screen: Screen) -> None:
    for finding in report.findings:
        output.line(coloured(f"damaged: {_line(finding)}", RED, screen))
    for image in report.images:
        if image.lost:
            others = f"; {_revisions(image.usable)} can be had" if image.usable else ""
            output.line(f"image {_name(image.tag)}: {_revisions(image.lost)} cannot be had whole{others}")
    for note in report.notes:
        output.line(f"note: {shown(note)}")
    if report.unneeded and (report.unneeded.blobs or report.unneeded.histories):
        size = size_in_words(report.unneeded.bytes, human=screen.human)
        output.line(
            f"note: nothing refers to {_count(len(report.unneeded.blobs), 'blob')}"
            f" ({size}); archive_overlay gc removes them"
        )
    output.line(coloured(_summary(path, report), RED if report.findings else GREEN, screen))


def _summary(path: str, report: Report) -> str:
    revisions = sum(each.revisions for each in report.images)
    looked = f"{_count(len(report.images), 'image')} with {_count(revisions, 'revision')}"
    if not report.findings:
        return f"{shown(path)} is whole: {looked}"
    findings = "1 thing is" if len(report.findings) == 1 else f"{len(report.findings)} things are"
    lost = sum(each.lost_count for each in report.images)
    return (
        f"{shown(path)} is damaged: {findings} wrong; {looked} looked at, {lost} of them cannot be had whole"
    )


def _line(finding: Finding) -> str:
    where = f"image {_name(finding.image)}: " if finding.image else ""
    blob = (
        f" ({finding.digest})"
        if finding.digest and finding.digest.partition(":")[2] not in finding.message
        else ""
    )
    line = f"{where}{finding.message}{blob}"
    if finding.extract:
        line += f": {_revisions(finding.extract)} cannot be extracted"
    if finding.changes:
        line += f"{',' if finding.extract else ':'} what {_revisions(finding.changes)} changed is lost"
    elif not finding.extract and finding.is_spare:
        line += ": all revisions can be had without it"
    return shown(line)


def _name(tag: str) -> str:
    return shown(tag) if tag else "without a tag"


def _revisions(runs: Sequence[tuple[int, int]]) -> str:
    one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"revision {runs[0][0]}" if one else f"revisions {format_ranges(runs)}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _object(path: str, report: Report) -> dict[str, object]:
    unneeded = report.unneeded
    return {
        "layout": path,
        "whole": not report.findings,
        "findings": [
            {
                "tag": each.image or None,
                "digest": each.digest or None,
                "message": each.message,
                "not_extractable": _pairs(each.extract),
                "changes_lost": _pairs(each.changes),
            }
            for each in report.findings
        ],
        "images": [
            {
                "tag": each.tag or None,
                "revisions": each.revisions,
                "usable": _pairs(each.usable),
                "lost": _pairs(each.lost),
            }
            for each in report.images
        ],
        "notes": list(report.notes),
        "unneeded": {"blobs": len(unneeded.blobs), "bytes": unneeded.bytes} if unneeded else None,
    }


def _pairs(runs: Iterable[tuple[int, int]]) -> list[list[int]]:
    return [[first, last] for first, last in runs]
