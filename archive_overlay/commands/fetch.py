"""`archive_overlay fetch`: what other hosts have pushed to a registry."""

from __future__ import annotations

import os

from archive_overlay.commands import Output, shown
from archive_overlay.commands.load import load_tag
from archive_overlay.commands.progress import Progress
from archive_overlay.commands.writing import open_layout
from archive_overlay.errors import ArchiveError
from archive_overlay.layout.add_layer import expect_no_revision
from archive_overlay.layout.read import INDEX_FILE, split_reference, tagged
from archive_overlay.transfer.fetch import (
    Place,
    download,
    is_noted,
    judge_remote,
    look,
    put,
    put_note,
)
from archive_overlay.transfer.names import parse_remote, parse_store_name
from archive_overlay.transfer.skopeo import Skopeo

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from archive_overlay.commands.writing import Layout
    from archive_overlay.log import Log
    from archive_overlay.transfer.fetch import Remote, Step


def run(options: argparse.Namespace, log: Log) -> None:
    """Bring what is newer in a registry into a layout.

    Args:
        options: `layout`, LAYOUT:TAG; `remote`, docker://...; `load_as`; `authfile`; `tls_verify`; `timeout`; `skopeo`;
            `fsync`.
        log: is told for whom it waits.

    Raises:
        ArchiveError: the registry does not answer, its image does not go on with what is here, or the layout cannot be
            written.
    """
    path, tag = split_reference(options.layout)
    expect_no_revision(tag)
    if ":" in path:
        raise ArchiveError(f"{shown(path)} has a colon in it, which no program takes in the path of a layout")
    name = parse_remote(options.remote)
    store_name = parse_store_name(options.load_as) if options.load_as else None
    skopeo = Skopeo(
        options.skopeo,
        environment=None,
        timeout=options.timeout,
        say=log.debug,
        authfile=os.path.abspath(options.authfile) if options.authfile else None,
        tls_verify=options.tls_verify == "true",
    )
    skopeo.require()
    output = Output()
    remote = look(skopeo, name)
    if remote is None:
        output.line(f"{shown(name.reference)} is not there yet, so there is nothing to fetch")
    else:
        with open_layout(path, fsync=options.fsync, log=log, make=True) as layout:
            output.line(f"{shown(path)}:{shown(tag)}: {_fetch(skopeo, remote, layout, tag)}")
    output.flush()
    is_there = os.path.exists(f"{path}/{INDEX_FILE}")
    if store_name and is_there and load_tag(skopeo, path, tag, store_name, options.timeout, log):
        output.line(f"{shown(path)}:{shown(tag)}: loaded as {store_name}")
        output.flush()


def _fetch(skopeo: Skopeo, remote: Remote, layout: Layout, tag: str) -> str:
    """Fetch an image, if that is newer; say what was done."""
    place = Place(path=layout.path, layout=layout.fd, tag=tag)
    step = judge_remote(skopeo, remote, place)
    if step and not step.brings:
        descriptor = tagged(place.index(), tag)
        if descriptor and not is_noted(descriptor, remote):
            layout.write_at_once(lambda edit: put_note(place, edit.index, remote, edit))
        return _said(step, remote)
    downloaded = download(
        skopeo, remote, place, layout.staging, receiving=lambda size, done: Progress(size, done=done)
    )
    return _said(layout.write_at_once(lambda edit: put(place, edit.index, remote, downloaded, edit)), remote)


def _said(step: Step, remote: Remote) -> str:
    where = shown(remote.name.reference)
    if not step.brings:
        return f"{where} has nothing newer"
    new = f"revision {step.theirs.last} of {where}"
    if step.besides:
        return f"{new}; what was here is in the tag {shown(step.besides)}"
    if step.here:
        return f"{new}, after revision {step.here.last}"
    return new
