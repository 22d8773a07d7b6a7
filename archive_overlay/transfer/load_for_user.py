"""Loading an image into the store of the user who asks for it, by the name that containers mount. See `load_at_stop`.

Where that store is, podman says: this is for people and for units of theirs, and runs in their environment.

Source: podman-info(1).
"""

from __future__ import annotations

import json

from archive_overlay.errors import ArchiveError
from archive_overlay.layout.lineage import find_revision
from archive_overlay.overlay import store
from archive_overlay.system.programs import require_program, run_program
from archive_overlay.transfer.named_images import find_named, ids_of, remove_superseded
from archive_overlay.transfer.stores import EngineStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.transfer.names import Name
    from archive_overlay.transfer.skopeo import Skopeo

_TIMEOUT = 60
_MOUNT_PROGRAM = "overlay.mount_program"


def store_of_user(podman: str, log: Log) -> EngineStore:
    """Find the store of the user who runs this.

    Args:
        podman: absolute path of the program.
        log: takes what it says.

    Raises:
        ArchiveError: it cannot be found.
    """
    require_program(podman, purpose="find the engine's store", hint="install podman")
    command = [podman, "info", "--format=json"]
    said = _object(run_program(command, environment=None, timeout=_TIMEOUT, say=log.debug))
    found = said.get("store")
    found = found if isinstance(found, dict) else {}
    graph_root, run_root, driver = (found.get(key) for key in ("graphRoot", "runRoot", "graphDriverName"))
    if driver != "overlay" or not isinstance(graph_root, str) or not isinstance(run_root, str):
        raise ArchiveError("podman's store does not use the driver overlay")
    options = found.get("graphOptions")
    program = options.get(_MOUNT_PROGRAM) if isinstance(options, dict) else None
    path = program.get("Executable") if isinstance(program, dict) else program
    return EngineStore(
        graph_root=graph_root, run_root=run_root, mount_program=path if isinstance(path, str) else ""
    )


def load(
    image: StoredImage,
    others: Iterable[StoredImage],
    source: str,
    place: EngineStore,
    name: Name,
    skopeo: Skopeo,
    log: Log,
) -> bool:
    """Load an image, if its name is not there or names a revision that the layout has; say whether it was loaded.

    Args:
        image: it.
        others: of the layout: what the name means may be a branch, if a stop has loaded that. They are asked for if need be.
        source: what skopeo calls it.
        place: the store.
        name: by which it is loaded.
        skopeo: does it.
        log: is told of images that are removed.

    Raises:
        ArchiveError: it could not be loaded. The name is where it was.
    """
    try:
        there = find_named(place, name)
        ids = ids_of(place, there) if there else ()
    except store.UnknownError as error:
        raise ArchiveError(f"cannot use the engine's store: {error}") from error
    if there and image.chain() in ids:
        return False
    if (
        there
        and there.layer
        and not (find_revision(image, ids) or any(find_revision(each, ids) for each in others))
    ):
        raise ArchiveError(
            f"{name} is another image in the engine's store, which is not in the layout, so the name stays",
            hint=f"podman untag {name} takes the name from it",
        )
    skopeo.copy(source, place.transport(name))
    remove_superseded(place, name, skopeo, log.debug)
    return True


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}
