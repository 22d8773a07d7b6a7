"""The engine's store as skopeo and podman are told of it: the one that a container came from.

    GRAPH/overlay, GRAPH/overlay-images, GRAPH/overlay-layers  images, and the layers that they are made of
    RUN/overlay-layers/mountpoints.json                        which layers are mounted, and for how many

Where they are, the runtime says; see `overlay/store`. What skopeo calls a store is "[overlay@GRAPH+RUN:options]".

Source: containers-transports(5), "containers-storage"; layers.go of containers/storage.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay import store
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.store import Place
    from archive_overlay.transfer.names import Name

_DRIVER = "overlay"
# What has a meaning in the name of a store.
_SPECIAL = "[]@+:,="


class EngineStore(Record):
    """A store.

    Attributes:
        graph_root, run_root: its directories.
        mount_program: the program that mounts its overlays; "" if the kernel does.
    """

    graph_root: str
    run_root: str
    mount_program: str

    @property
    def driver(self) -> str:
        """The directory of its layers."""
        return f"{self.graph_root}/{_DRIVER}"

    def transport(self, name: Name | str) -> str:
        """Return what skopeo calls an image of the store.

        Args:
            name: of the image; or "@" and its id.
        """
        options = f":{_DRIVER}.mount_program={self.mount_program}" if self.mount_program else ""
        return f"containers-storage:[{_DRIVER}@{self.graph_root}+{self.run_root}{options}]{name}"

    @property
    def podman_options(self) -> list[str]:
        """Return the options by which podman works on it."""
        options = [f"--root={self.graph_root}", f"--runroot={self.run_root}", f"--storage-driver={_DRIVER}"]
        if self.mount_program:
            options.append(f"--storage-opt={_DRIVER}.mount_program={self.mount_program}")
        return options

    def mounted(self) -> set[str]:
        """Return the ids of the layers that are mounted now.

        Raises:
            UnknownError: the store does not say.
        """
        path = f"{self.run_root}/{_DRIVER}-layers/mountpoints.json"
        if not os.path.lexists(path):
            return set()
        return {str(record.get("id")) for record in store.elements(path)}


def store_of(container: Place, mount_program: str) -> EngineStore:
    """Find the store that a container came from.

    Args:
        container: what the runtime says of it.
        mount_program: of the store, if it has one.

    Raises:
        ArchiveError: it came from none, or one with a name that cannot be told to other programs.
    """
    try:
        graph_root, run_root = _roots(container)
        with_program = store.has_mount_program(f"{graph_root}/{_DRIVER}/any")
    except store.UnknownError as error:
        raise ArchiveError(f"the engine's store is unknown: {error}") from error
    found = EngineStore(
        graph_root=graph_root, run_root=run_root, mount_program=mount_program if with_program else ""
    )
    for path in (graph_root, run_root, found.mount_program):
        if any(each in path for each in _SPECIAL):
            raise ArchiveError(
                f"the engine's store at {path} has a character in its path that skopeo does not accept"
            )
    return found


def _roots(container: Place) -> tuple[str, str]:
    of_bundle, identifier = store.container_in_store(container.bundle)
    elsewhere, same = store.container_in_store(os.path.dirname(container.environment_file))
    layer = store.layer_at(container.root)
    graphs = [os.path.dirname(os.path.dirname(layer))] if layer else []
    graphs += [os.path.dirname(each) for each in (of_bundle,) if each]
    graph_root = next((each for each in graphs if os.path.isdir(f"{each}/{_DRIVER}-images")), "")
    if not graph_root:
        raise store.UnknownError("the container is not in a store of podman or CRI-O")
    # An engine whose list of containers is not to outlive a reboot keeps the bundle in the other directory as well.
    runs: Sequence[str] = [
        os.path.dirname(each)
        for each, of in ((elsewhere, same), (of_bundle, identifier))
        if each and of == identifier
    ]
    run_root = next((each for each in runs if each != graph_root), "")
    if not run_root:
        raise store.UnknownError("the container does not say where the store's list of mounts is")
    for directory in (f"{graph_root}/{_DRIVER}-images", run_root):
        store.check_private(directory)
    return graph_root, run_root
