"""Identify an upperdir: whether two archives, made at different times, are of the same one.

The root file system of a container stays when the container is started again. An engine makes the upperdirs in a
container's bundle anew at each start. A directory that a user named, or another engine's snapshot, stays as long as it
exists.
"""

from __future__ import annotations

import hashlib
import os

from archive_overlay.overlay import store
from archive_overlay.system.kernel import file_handle
from archive_overlay.system.open_flags import LOOK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.store import Place

_DIGITS = 16


def identity(upper: str, container: Place, *, archive: str, lower: Sequence[str]) -> str:
    """Return an id of an upperdir.

    Args:
        upper: its path.
        container: the container's.
        archive: what the container's user calls the archive, by which each has a history of its own.
        lower: what it lies on, as far as that is known: on something else, it is not the same. Where the engine made the
            upperdir for one thing to lie on, that does not matter. After a reboot it may not be known any more.

    Returns:
        16 hexadecimal digits; "" if it cannot be known.
    """
    layer = store.layer_of_upper(upper, store.stores_of(container.bundle, container.root))
    below: Sequence[str] = ()
    if layer:
        facts: tuple[object, ...] = ("layer", os.path.basename(layer))
    else:
        facts = ("directory", *_directory(upper))
        if len(facts) == 1 or _is_made_for_one_start(upper, container.bundle):
            if not (container.container and container.started):
                return ""
            facts = (*facts, container.container, container.started)
        else:
            below = lower[:1]
            if not store.container_in_store(container.bundle)[1]:
                # Another engine's: how long it keeps things is unknown.
                facts = (*facts, container.container)
    text = repr((archive, *below, *facts))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_DIGITS]


def _is_made_for_one_start(upper: str, bundle: str) -> bool:
    containers, _ = store.container_in_store(bundle)
    path = os.path.realpath(upper)
    return any(path.startswith(f"{os.path.realpath(home)}/") for home in (bundle, containers) if home)


def _directory(path: str) -> tuple[object, ...]:
    """Return what tells a directory from earlier ones at its place; () if the file system does not say."""
    try:
        fd = os.open(path, LOOK)
    except OSError:
        return ()
    try:
        handle = file_handle(fd)
        return (os.fstat(fd).st_ino, *handle) if handle else ()
    except OSError:
        return ()
    finally:
        os.close(fd)
