"""Histories in image layouts, made as the hook makes them, without containers."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from typing import TYPE_CHECKING

from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.history.compaction import Form
from archive_overlay.history.revisions import open_image
from archive_overlay.history.tending import make_room
from archive_overlay.layout.add_layer import judge_destination
from archive_overlay.layout.layer import MEDIA_TYPES, Layer
from archive_overlay.layout.provenance import Provenance
from archive_overlay.log import Log
from archive_overlay.system.flush import Never
from archive_overlay.system.patience import Patience
from tests.support import history, trees

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from archive_overlay.layout.add_layer import LayoutDestination

LOG = Log("panic", [])


def append(
    layout: Path,
    tag: str,
    tar: bytes,
    *,
    most: int = 0,
    had: Collection[str] | None = None,
    parent: str = "",
    message: str = "",
    container: str = "c" * 64,
) -> None:
    """Add a revision as a stop does.

    Args:
        layout: a layout, or nothing yet.
        tag: its tag.
        tar: the change set, as a layer has it.
        most: how many layers the image may have; 0: nothing is composed.
        had: ids of what the container had mounted; None: nobody knows.
        parent, message: as the annotations.
        container: its id.
    """
    place = judge(layout, tag, had=had, parent=parent, message=message)
    publish(place, tar)
    if most and place.layers[0] >= most:
        with place.stage_again() as staging:
            make_room(
                place.path,
                tag,
                staging,
                most=most,
                form=Form(),
                paths=place.paths,
                patience=place.patience,
                log=LOG,
            )


def judge(
    layout: Path,
    tag: str,
    *,
    had: Collection[str] | None = None,
    parent: str = "",
    message: str = "",
    upper: str = "",
) -> LayoutDestination:
    """Judge where a revision goes; see `append`.

    Args:
        layout, tag, had, parent, message: see `append`.
        upper: identity of the upperdir.
    """
    provenance = Provenance(
        container="c" * 64, archive="data", mount_point="/data", message=message, upper=upper
    )
    return judge_destination(
        f"{layout}:{tag}",
        parent=parent,
        had=had,
        all_had=lambda: had or (),
        provenance=provenance,
        upper="/proc/self",
        paths=Paths(),
        patience=Patience(),
        log=LOG,
    )


def publish(place: LayoutDestination, tar: bytes) -> None:
    """Publish a revision at the place that was judged; see `append`."""
    with place.stage(Never(), LOG) as staging:
        fd = staging.create_file(ARCHIVE)
        os.write(fd, tar)
        os.close(fd)
        digest = f"sha256:{hashlib.sha256(tar).hexdigest()}"
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            names = [member.name.rpartition("/")[2] for member in opened.getmembers()]
        deletions = sum(name.startswith(".wh.") for name in names)
        layer = Layer(
            media_type=MEDIA_TYPES["none"],
            digest=digest,
            size=len(tar),
            diff_id=digest,
            entries=len(names) - deletions,
            deletions=deletions,
            bytes=0,
        )
        place.publish(staging, layer)


def build(layout: Path, count: int, *, tag: str = "main", most: int = 0) -> None:
    """Add revisions: each makes a file of its own, changes one that all change, and deletes one of an earlier one."""
    for number in range(1, count + 1):
        entries = [history.directory("./"), history.file("./all", b"%d" % number)]
        if number > 2:
            entries.append(history.file(f"./.wh.own{number - 2}"))
        entries.append(history.file(f"./own{number}", b"of %d" % number))
        append(layout, tag, history.layer(*entries), most=most)


def numbers(layout: Path, tag: str = "main") -> list[int]:
    """Give the numbers of the revisions of an image; all of them can be read."""
    with open_image(f"{layout}:{tag}") as image:
        assert not image.lost
        return [each.number for each in image.revisions]


def states(layout: Path, scratch: Path, tag: str = "main", only: Sequence[int] = ()) -> dict[int, trees.View]:
    """Give what `extract` makes of each revision."""
    found = {}
    for number in only or numbers(layout, tag):
        directory = scratch / f"state-{number}-{len(os.listdir(scratch))}"
        history.output_of("extract", "--no-fsync", f"{layout}:{tag}@{number}", directory)
        found[number] = trees.view(directory)
    return found
