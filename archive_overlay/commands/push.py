"""`archive_overlay push`: images of a layout, pushed to registries."""

from __future__ import annotations

import gc
import os
import time
from contextlib import nullcontext

from archive_overlay.commands import Output, shown
from archive_overlay.commands.progress import Progress
from archive_overlay.commands.writing import find_layout_or_image, open_layout
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.read import read_index, tag_of
from archive_overlay.layout.remotes import waits
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY
from archive_overlay.transfer.names import parse_remote
from archive_overlay.transfer.push import Source, push, push_waiting
from archive_overlay.transfer.sending import sent_from
from archive_overlay.transfer.skopeo import Skopeo

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Union

    from archive_overlay.commands.writing import Layout
    from archive_overlay.log import Log
    from archive_overlay.transfer.push import Pushed

    Outcome = tuple[str, Union[Pushed, ArchiveError]]

# With --watch: how often the layout is looked at, and how long it takes at first and at most until what failed is tried
# again.
_LOOK = 1.0
_FIRST_PAUSE = 10.0
_LONGEST_PAUSE = 300.0


def run(options: argparse.Namespace, log: Log) -> int:
    """Push one tag, or those that wait.

    Args:
        options: `layout`, LAYOUT or LAYOUT:TAG; `to`: where the tag is to go; `all`: look at all tags that go somewhere;
            `watch`: go on with what comes to wait; `if_moved`; `authfile`, `tls_verify`, `skopeo`; `timeout`: of each tag, in
            seconds; `fsync`.
        log: takes what happens.

    Returns:
        0; or 1 if something still waits.

    Raises:
        ArchiveError: there is no such layout or image, or skopeo is not there.
        Interrupted: a signal came.
    """
    path, tag = find_layout_or_image(options.layout)
    if options.to and not tag:
        raise ArchiveError(
            "--to says where one image is to go, and no image is named",
            hint=f"write {quoted(f'{options.layout}:TAG')}",
        )
    if tag and (options.all or options.watch):
        raise ArchiveError(
            f"--all and --watch are for all images of the layout {path}", hint="leave the tag out"
        )
    _skopeo(options, log).require()
    if options.watch:
        _watch(path, options, log)
    outcomes = _push_one(path, tag, options, log) if tag else _push_all(path, options, log)
    still = [_say(path, outcome, log) for outcome in outcomes]
    if not still:
        output = Output()
        output.line(f"{shown(path)}: no image waits to be pushed")
        output.flush()
    return int(any(still))


def _push_one(path: str, tag: str, options: argparse.Namespace, log: Log) -> Iterator[Outcome]:
    to = parse_remote(options.to) if options.to else None
    with open_layout(path, fsync=options.fsync, log=log) as layout:
        source = _source(layout, options)
        yield tag, push(source, tag, _skopeo(options, log), to=to, if_moved=options.if_moved)


def _push_all(path: str, options: argparse.Namespace, log: Log) -> Iterator[Outcome]:
    with open_layout(path, fsync=options.fsync, log=log) as layout:
        yield from push_waiting(
            _source(layout, options),
            lambda: _skopeo(options, log),
            all_tags=options.all,
            if_moved=options.if_moved,
        )


def _watch(path: str, options: argparse.Namespace, log: Log) -> None:
    """Push what waits, and what comes to wait, until a signal comes."""
    gc.enable()  # the program does without, for it ends soon
    failed: set[tuple[str, str]] = set()
    pause, again = _FIRST_PAUSE, 0.0
    while True:
        waiting = _waiting(path)
        now = time.monotonic()
        if waiting - failed or (waiting and now >= again):
            for outcome in _push_all(path, options, log):
                _say(path, outcome, log)
            left = _waiting(path)
            pause = min(pause * 2, _LONGEST_PAUSE) if left & failed else _FIRST_PAUSE
            # What has come to wait meanwhile was not tried.
            failed, again = left & (waiting | failed), time.monotonic() + pause
        time.sleep(_LOOK)


def _waiting(path: str) -> set[tuple[str, str]]:
    """Give the tags that wait, and the digests of what they name."""
    try:
        layout = os.open(path, READ_TOP_DIRECTORY)
        try:
            listed = read_index(layout)["manifests"]
        finally:
            os.close(layout)
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    return {(tag_of(each), str(each.get("digest"))) for each in listed if waits(each)}


def _say(path: str, outcome: Outcome, log: Log) -> bool:
    """Say what has become of a tag, and whether it still waits."""
    tag, pushed = outcome
    if isinstance(pushed, ArchiveError):
        log.error(f"{path}:{tag} still waits: {pushed}")
        return True
    if pushed.refused:
        fetch = f"archive_overlay fetch {quoted(f'{path}:{tag}')} {pushed.name}"
        branch = f"; so it is pushed as {pushed.branch_name}" if pushed.branch else ""
        log.error(f"{path}:{tag} still waits: {pushed.refused}{branch}; {fetch} gets what is there")
        return True
    output = Output()
    output.line(shown(pushed.done))
    output.flush()
    return False


def _source(layout: Layout, options: argparse.Namespace) -> Source:
    return Source(
        path=layout.path,
        stage=lambda: nullcontext(layout.staging),
        paths=layout.paths,
        patience=layout.patience,
        turn=options.timeout,
        log=layout.log,
        sending=lambda directory, size: Progress(size, done=sent_from(directory)),
        checking=lambda size: Progress(size),
    )


def _skopeo(options: argparse.Namespace, log: Log) -> Skopeo:
    return Skopeo(
        options.skopeo,
        environment=None,
        timeout=options.timeout,
        say=log.debug,
        authfile=os.path.abspath(options.authfile) if options.authfile else None,
        tls_verify=options.tls_verify == "true",
    )
