"""Loading what a stop has archived into the engine's store, by the name that the next container mounts.

The name moves forward only: what it names in the store has to be an ancestor of the revision. The engine keeps the image
that the container had mounted until its clean-up, which comes after the hook and finds it by its name. When the name has
moved, one mount of the old image would stay for good, so it is taken away here, by the image's id.

Source: container_internal_common.go of podman (mounts of image volumes); images.go and layers.go of containers/storage;
podman 4.3 and 5.4.
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.layout.edit import Edit, until_published
from archive_overlay.layout.lineage import find_revision
from archive_overlay.layout.lock import lock
from archive_overlay.layout.provenance import ABSENT, BASE, UNKNOWN
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.read import read_index, split_reference, tagged
from archive_overlay.layout.remotes import load_failed_of, noted_as_waiting
from archive_overlay.layout.stored import open_stored
from archive_overlay.overlay import images, store
from archive_overlay.system.programs import ProgramError, require_program, run_program
from archive_overlay.transfer.environment import engine_environment
from archive_overlay.transfer.named_images import find_named, ids_of, remove_superseded
from archive_overlay.transfer.names import is_allowed, parse_store_name
from archive_overlay.transfer.skopeo import Skopeo
from archive_overlay.transfer.stores import store_of
from archive_overlay.transfer.turns import turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from archive_overlay.layout.add_layer import LayoutDestination
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.overlay.store import Place
    from archive_overlay.settings import Settings
    from archive_overlay.transfer.names import Name

# In seconds. What is loaded for the first time may have a large image below it.
_TIMEOUT = 600
_UNMOUNT_TIMEOUT = 60
# How long another load or push of the layout is waited for: the engine waits meanwhile, and the next stop loads as well.
_TURN = 60


class LoadAtStop:
    """A revision that is to be loaded.

    Args:
        archive: what the user calls it.
        load_as: as the annotation says it.
        archive_to: the layout, and the tag that is asked for: only what gets that is loaded, and no branch.
        overlay: what the container wrote into.
        container: where the container is in a store.
        settings: what the administrator allows.
        log: takes what happens.

    Attributes:
        complaint: why it will not be loaded; "" if nothing is in the way.
        later: whether the container runs: the stop loads it, because until then the engine needs the image that has the name.
    """

    def __init__(
        self,
        archive: str,
        load_as: str,
        archive_to: str,
        *,
        overlay: OverlayMount,
        container: Place,
        settings: Settings,
        log: Log,
    ) -> None:
        self._what = f"archive {archive}"
        self._tag = split_reference(archive_to)[1]
        self._overlay = overlay
        self._settings = settings.transfer
        self._log = log
        self.complaint = ""
        self.later = container.running
        self._name: Name | None = None
        try:
            name = parse_store_name(load_as)
            prefixes = self._settings.load_prefixes
            if prefixes is not None and not is_allowed(name, prefixes):
                raise ArchiveError(
                    f"load-as {name} is not allowed",
                    hint="the administrator allows it by --allow-load-as in the hook's configuration",
                )
            self._name = name
            self._store = store_of(container, settings.mount_program)
            self._skopeo().require()
        except ArchiveError as error:
            self.complaint = f"the revision will not be loaded: {error}"

    def annotations(self, tag: str, *, added: bool) -> dict[str, str]:
        """Return what a tag is annotated with that gets the revision: that it waits, until it is loaded.

        A new revision waits from its publication on: whatever ends this process before it is loaded, the next stop loads it.
        """
        waits = (self.complaint or self.later or added) and self._name and tag == self._tag
        return noted_as_waiting(str(self._name)) if waits else {}

    def load(self, layout: LayoutDestination) -> None:
        """Load it.

        Raises:
            ArchiveError: it could not be loaded. Its name is where it was.
        """
        assert self._name
        name = self._name
        try:
            fd = layout.paths.open(layout.path)
            try:
                with turn(fd, layout.path, seconds=_TURN):
                    self._load(fd, layout, name)
            finally:
                os.close(fd)
        except store.UnknownError as error:
            raise ArchiveError(f"cannot use the engine's store: {error}") from error
        except OSError as error:
            fail(f"cannot read the image layout {layout.path}", error)

    def _load(self, fd: int, layout: LayoutDestination, name: Name) -> None:
        descriptor = tagged(read_index(fd), self._tag)
        if descriptor is None:
            return  # a branch was published, and the tag is gone
        there = find_named(self._store, name)
        waits = load_failed_of(descriptor) == str(name)
        if there and not waits and not (layout.added and layout.published == self._tag):
            if layout.added:
                self._expect_newest(fd, layout, name, descriptor, ids_of(self._store, there))
            self._unmount(name)
            return  # a branch; or nothing has changed, and somebody may have moved the name on purpose
        image = open_stored(fd, descriptor)
        ids = ids_of(self._store, there) if there else ()
        if there and image.chain() in ids:
            self._log.debug(f"{self._what}: {name} is revision {image.last} of {self._tag} already")
        else:
            if there and there.layer and not find_revision(image, ids):
                if waits:
                    self._note(fd, layout, "")  # no later stop can do it without a person
                raise ArchiveError(
                    f"{name} is another image in the engine's store, and revision {image.last} of {self._tag} is not based"
                    " on it, so the name stays",
                    hint=f"to have the revision in its place: podman untag {name}, and then {self._by_hand(layout.path)}",
                )
            if _lacks_base(image):
                raise ArchiveError(
                    f"{layout.path}:{self._tag} lacks the image that the container had mounted, so the next container could"
                    " not use it",
                    hint="mount an image of the engine's store: only that can be copied",
                )
            self._copy(fd, layout, name, noted=waits)
            self._log.info(
                f"{self._what}: loaded revision {image.last} of {layout.path}:{self._tag} as {name}"
            )
        layout.loaded = str(name)
        if waits:
            self._note(fd, layout, "")
        self._unmount(name)
        remove_superseded(
            self._store, name, self._skopeo(), lambda said: self._log.debug(f"{self._what}: {said}")
        )

    def _copy(self, fd: int, layout: LayoutDestination, name: Name, *, noted: bool) -> None:
        source = f"oci:{layout.path}:{self._tag}"
        try:
            self._skopeo().copy(source, self._store.transport(name))
        except ArchiveError as error:
            try:
                if not noted:  # as the publication of a new revision does
                    self._note(fd, layout, str(name))
            except (ArchiveError, OSError) as failure:
                self._log.warning(
                    f"{self._what}: cannot note in {layout.path} that it is to be loaded: {failure}"
                )
            raise ArchiveError(
                str(error), hint=f"the next stop tries again, or by hand: {self._by_hand(layout.path)}"
            ) from error

    def _expect_newest(
        self,
        fd: int,
        layout: LayoutDestination,
        name: Name,
        descriptor: Mapping[str, Any],
        ids: Collection[str],
    ) -> None:
        """Warn if a branch was made because the name is an older revision of the tag, and will go on to be one.

        No stop leaves it so: somebody has set it back. Which of the two is to be gone on with, only people know.
        """
        image = open_stored(fd, descriptor, whole=False)
        number = find_revision(image, ids)
        if not number or image.chain() in ids:
            return
        self._log.warning(
            f"{self._what}: {name} is revision {number} of {self._tag} in the engine's store, and the newest is {image.last}: so"
            f" this revision is the branch {layout.published}, and each later container makes another branch. Choose one, for"
            f" the next container: {self._load_command(layout.path, self._tag)} loads the newest, and"
            f" {self._load_command(layout.path, layout.published)} the branch"
        )

    def _load_command(self, path: str, tag: str) -> str:
        return f"archive_overlay load {quoted(f'{path}:{tag}')} {quoted(str(self._name))}"

    def _by_hand(self, path: str) -> str:
        """Return the command by which the engine's user loads the revision."""
        return f"skopeo copy {quoted(f'oci:{path}:{self._tag}')} {quoted(f'containers-storage:{self._name}')}"

    def _note(self, fd: int, layout: LayoutDestination, name: str) -> None:
        """Note beside the tag that it could not be loaded by a name; "": that it was."""
        with layout.stage_again() as staging:
            writing = layout.paths.open(layout.path)
            try:
                lock(writing, layout.path, layout.patience, layout.log)
                edit = Edit(writing, staging)

                def note() -> None:
                    edit.annotate_tag(self._tag, noted_as_waiting(name))
                    edit.publish()

                until_published(edit, layout.path, note)
            finally:
                os.close(writing)

    def _unmount(self, name: Name) -> None:
        """Unmount the image that the container had, once, if the engine will not find it by its name any more."""
        lowers = self._overlay.lowers
        layer, merged = os.path.split(lowers[0]) if len(lowers) == 1 else ("", "")
        if merged != "merged" or os.path.realpath(os.path.dirname(layer)) != os.path.realpath(
            self._store.driver
        ):
            return  # it had no image mounted
        layer = os.path.basename(layer)
        if layer not in self._store.mounted():
            return
        for image in images.listed(self._store.driver):
            if image.layer != layer or str(name) in image.names or str(name) not in image.former:
                continue
            try:
                require_program(self._settings.podman, purpose="unmount it", hint="install podman")
                run_program(
                    [
                        self._settings.podman,
                        *self._store.podman_options,
                        *("image", "unmount", image.identifier),
                    ],
                    environment=engine_environment(self._store.run_root),
                    timeout=_UNMOUNT_TIMEOUT,
                    say=self._log.debug,
                )
            except ProgramError as error:
                self._log.warning(
                    f"{self._what}: the image {image.identifier[:12]}, which was {name}, stays mounted: {error}"
                )
            return

    def _skopeo(self) -> Skopeo:
        return Skopeo(
            self._settings.skopeo,
            environment=engine_environment(self._store.run_root),
            timeout=_TIMEOUT,
            say=self._log.debug,
        )


def _lacks_base(image: StoredImage) -> bool:
    """Return whether a history began with changes alone, and what they lay on has not been copied into it."""
    if image.base or not image.layers:
        return False
    first = next(iter(image.kept()), None)
    return bool(first and str(first.annotations.get(BASE) or "").startswith((ABSENT, UNKNOWN)))
