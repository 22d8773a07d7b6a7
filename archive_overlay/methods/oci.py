"""The method `oci`: the change set as one more layer of an image in an OCI image layout.

Source: OCI image specification, layer.md.
"""

from __future__ import annotations

import os

from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import fail
from archive_overlay.layout.add_layer import Step, judge_destination
from archive_overlay.layout.images import COMFORTABLE
from archive_overlay.layout.keep import parse_keep
from archive_overlay.layout.layer import Layer, write_layer
from archive_overlay.layout.provenance import Provenance
from archive_overlay.layout.read import split_reference
from archive_overlay.methods.writer_process import write_beside
from archive_overlay.overlay import store
from archive_overlay.overlay.base import container_base
from archive_overlay.overlay.identity import identity
from archive_overlay.overlay.labels import container_labels
from archive_overlay.tar import compress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.destination.paths import Paths
    from archive_overlay.layout.add_layer import LayoutDestination
    from archive_overlay.layout.keep import Keep
    from archive_overlay.log import Log
    from archive_overlay.methods import Destination, Request, Target
    from archive_overlay.overlay.base import ContainerBase
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.overlay.store import Place
    from archive_overlay.settings import Settings, TransferSettings
    from archive_overlay.system.patience import Patience
    from archive_overlay.transfer.load_at_stop import LoadAtStop
    from archive_overlay.transfer.push_at_stop import PushAtStop


def require(compression: str) -> None:
    """Compression may need a program. See `methods.Writer`."""
    compress.require(compression)


def judge(overlay: OverlayMount, *, keep_in_place: str) -> None:
    """Nothing is refused. See `methods.Writer`."""


def destination(
    request: Request,
    *,
    overlay: OverlayMount,
    container: Place,
    settings: Settings,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> Destination:
    """A tag of an image layout. See `methods.Writer`."""
    keep = parse_keep(request.keep)
    labels = container_labels(container)
    provenance = Provenance(
        container=request.container,
        archive=request.name,
        mount_point=request.mount_point,
        container_name=labels.name,
        image=labels.image,
        message=request.message,
    )
    base = container_base(overlay, store.stores_of(container.bundle, container.root))
    upper = identity(overlay.upper, container, archive=request.name, lower=base.ids)
    provenance = provenance.replace(upper=upper)
    loading = _loading(request, overlay, container, settings, log) if request.load_as else None
    pushing = _pushing(request, settings.transfer, log) if request.push_to else None
    found = judge_destination(
        request.archive_to,
        parent=request.parent,
        if_moved=request.if_moved,
        had=base.ids if base.known else None,
        all_had=lambda: base.with_all_ids().ids,
        count_base=(lambda: _count(base, request, log)) if request.base else None,
        provenance=provenance,
        annotate=lambda tag, added: {
            key: value
            for transfer in (loading, pushing)
            if transfer
            for key, value in transfer.annotations(tag, added=added).items()
        },
        upper=overlay.upper,
        paths=paths,
        patience=patience,
        log=log,
    )
    if found.earlier:
        from archive_overlay.methods.earlier import compared

        found.compare = lambda read, staging, log: compared(found, overlay, request.owner, read, staging, log)
    if request.base and base.known:
        # Another version may take the place of this file meanwhile.
        __import__("archive_overlay.history.including")
        found.steps.append(
            Step(what="copying the container's image", work=lambda layout: _include(layout, request, base))
        )
    if not keep.everything:
        found.steps.append(Step(what="pruning", work=lambda layout: _prune(layout, request, keep)))
    found.steps.append(Step(what="composing layers", work=lambda layout: _make_room(layout, request)))
    if loading and loading.complaint:
        found.complaints.append(loading.complaint)
    elif loading and not loading.later:
        found.steps.append(Step(what="loading it", work=loading.load, asked=True))
    if pushing and pushing.complaint:
        found.complaints.append(pushing.complaint)
    elif pushing:
        found.steps.append(Step(what="pushing it", work=pushing.push, asked=True))
    return found


def _loading(
    request: Request, overlay: OverlayMount, container: Place, settings: Settings, log: Log
) -> LoadAtStop:
    """Find out whether the revision can be loaded."""
    from archive_overlay.transfer.load_at_stop import LoadAtStop

    return LoadAtStop(
        request.name,
        request.load_as,
        request.archive_to,
        overlay=overlay,
        container=container,
        settings=settings,
        log=log,
    )


def _pushing(request: Request, settings: TransferSettings, log: Log) -> PushAtStop:
    """Find out whether the revision can be pushed."""
    from archive_overlay.transfer.push_at_stop import PushAtStop

    tag = split_reference(request.archive_to)[1]
    return PushAtStop(
        request.name, request.push_to, tag, if_moved=request.if_moved, settings=settings, log=log
    )


def _count(base: ContainerBase, request: Request, log: Log) -> int | None:
    """Say how many layers an image of the store has; None: the store does not say."""
    try:
        return len(base.layers())
    except store.UnknownError as error:
        log.warning(f"archive {request.name}: the container's image cannot be copied: {error}")
        return None


def _include(layout: LayoutDestination, request: Request, base: ContainerBase) -> None:
    """Copy the image that the container started from, if the history lacks it."""
    from archive_overlay.history.compaction import Form
    from archive_overlay.history.including import include_base
    from archive_overlay.overlay.image_layers import image_of_store

    with layout.stage_again() as staging:
        done = include_base(
            layout.path,
            layout.published,
            staging,
            ids=base.with_all_ids().ids or base.ids,
            find=lambda: image_of_store(base),
            form=Form(compression=request.compression, level=request.level),
            paths=layout.paths,
            patience=layout.patience,
            log=layout.log,
        )
    if done:
        layout.log.info(f"archive {request.name}: {layout.path}:{layout.published}: {done}")


def _make_room(layout: LayoutDestination, request: Request) -> None:
    """Compose layers, if the image has as many as it may have."""
    layers, base = layout.layers
    if layers - base < min(request.max_layers - base, COMFORTABLE):
        return
    # Most stops have nothing to compose. If another version has taken the place of this file meanwhile, a later one does it.
    from archive_overlay.history.compaction import Form
    from archive_overlay.history.tending import make_room

    with layout.stage_again() as staging:
        done = make_room(
            layout.path,
            layout.published,
            staging,
            most=request.max_layers,
            form=Form(compression=request.compression, level=request.level),
            paths=layout.paths,
            patience=layout.patience,
            log=layout.log,
        )
    if done:
        layout.log.info(f"archive {request.name}: {layout.path}:{layout.published}: {done}")


def _prune(layout: LayoutDestination, request: Request, keep: Keep) -> None:
    """Let revisions that no rule keeps be none any more."""
    from archive_overlay.history.pruning import prune

    with layout.stage_again() as staging:
        done = prune(
            layout.path,
            layout.published,
            staging,
            keep=keep,
            paths=layout.paths,
            patience=layout.patience,
            log=layout.log,
        )
    if done:
        layout.log.info(f"archive {request.name}: {layout.path}:{layout.published}: {done}")


def write(changes: Iterator[Change], target: Target, log: Log) -> Layer:
    """Write the changes as a layer. See `methods.Writer`."""
    # What goes from one process to the other is plain values.
    return Layer(**write_beside(changes, lambda stream: vars(_write(stream, target, log)), jobs=target.jobs))


def _write(changes: Iterator[Change], target: Target, log: Log) -> Layer:
    where = target.staging.path
    try:
        fd = target.staging.create_file(ARCHIVE)
        try:
            return write_layer(
                changes,
                fd,
                where=where,
                compression=target.compression,
                level=target.level,
                jobs=target.jobs,
                owner=target.owner,
                max_bytes=target.max_bytes,
                log=log,
            )
        finally:
            os.close(fd)
    except OSError as error:
        fail(f"cannot write . into {where}", error)
