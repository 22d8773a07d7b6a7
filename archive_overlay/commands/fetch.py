"""`archive_overlay fetch`: what other hosts have pushed to a registry."""

from __future__ import annotations

import os

from archive_overlay.commands import Output, shown
from archive_overlay.commands.writing import open_layout
from archive_overlay.destination.paths import Paths
from archive_overlay.errors import ArchiveError
from archive_overlay.history.misnamed import without_transport
from archive_overlay.history.revisions import opened_layout
from archive_overlay.layout.add_layer import expect_no_revision
from archive_overlay.layout.read import INDEX_FILE, images, read_index, split_reference, tag_of, tagged
from archive_overlay.layout.stored import open_stored
from archive_overlay.settings import DEFAULT_PODMAN
from archive_overlay.transfer.fetch import (
    Place,
    download,
    is_noted,
    judge_remote,
    look,
    put,
    put_note,
)
from archive_overlay.transfer.load_for_user import load, store_of_user
from archive_overlay.transfer.names import parse_remote, parse_store_name
from archive_overlay.transfer.skopeo import Skopeo
from archive_overlay.transfer.turns import turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from typing import Any

    from archive_overlay.commands.writing import Layout
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.transfer.fetch import Remote, Step
    from archive_overlay.transfer.names import Name


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
    path, tag = split_reference(without_transport(options.layout))
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
    if store_name and _load(skopeo, path, tag, store_name, options.timeout, log):
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
    downloaded = download(skopeo, remote, place, layout.staging)
    return _said(layout.write_at_once(lambda edit: put(place, edit.index, remote, downloaded, edit)), remote)


def _load(skopeo: Skopeo, path: str, tag: str, name: Name, timeout: int, log: Log) -> bool:
    """Load an image into the store of the user, if it is there and the store lacks it; say whether it was loaded."""
    if not os.path.exists(f"{path}/{INDEX_FILE}"):
        return False
    paths = Paths()
    resolved = paths.resolve(os.path.abspath(path), "the image layout")
    with opened_layout(resolved, paths) as layout, turn(layout, resolved, seconds=timeout):
        index = read_index(layout)
        descriptor = tagged(index, tag)
        if descriptor is None:
            return False
        image, others = open_stored(layout, descriptor), _others(layout, index, tag)
        place = store_of_user(DEFAULT_PODMAN, log)
        return load(image, others, f"oci:{resolved}:{tag}", place, name, skopeo, log)


def _others(layout: int, index: Mapping[str, Any], tag: str) -> Iterator[StoredImage]:
    """Give the images of a layout that have other tags."""
    for descriptor in images(index):
        if tag_of(descriptor) not in ("", tag):
            try:
                yield open_stored(layout, descriptor, whole=False)
            except (ArchiveError, OSError):
                continue  # damaged, or no image: another one's matter


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
