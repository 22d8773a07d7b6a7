"""A container whose hook the engine has not run: what is left to save of it, and saving that."""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, HookError
from archive_overlay.hook import hook, runtime
from archive_overlay.hook.annotations import group_by_name
from archive_overlay.hook.saved import Saved
from archive_overlay.log import Log
from archive_overlay.overlay import store
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.system.metadata import is_twin
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from archive_overlay.hook.runtime import Spec
    from archive_overlay.settings import Settings
    from archive_overlay.system.patience import Patience

# In seconds. The boot waits for each container, and may come before the network; the next stop pushes what waits.
_PUSH_TIMEOUT = 10


class DamagedError(Exception):
    """Nobody can say what a container asks for; the message says why, with the path."""


class Left(Record):
    """An archive that is asked for and not made.

    Attributes:
        name: of the archive.
        mount_point: as the annotation has it.
        archive_to: as the annotation has it.
        nothing: why there is nothing to make it of; "" if there is.
        in_use: whether a container that runs writes there still: this one, or another one.
    """

    name: str
    mount_point: str
    archive_to: str
    nothing: str = ""
    in_use: bool = False


class Container:
    """A container of a store, which asks for archives.

    Args:
        bundle: its bundle.
        spec: the container's.
        asked: its annotations of each archive, by the archive's name.

    Attributes:
        bundle, spec, asked: see there.
        id: the engine's.
        annotations: of the container.
        layer: the id of the layer that is its root file system, as far as the spec says it; "" where it does not.
        started: when the engine wrote its spec, in seconds since 1970.
    """

    def __init__(self, bundle: str, spec: Spec, asked: Mapping[str, Mapping[str, object]]) -> None:
        self.id = runtime.state_of_bundle(bundle).id
        self.annotations = spec.annotations
        self.layer = os.path.basename(store.layer_at(spec.root))
        self.started = spec.started / 10**9
        self.bundle = bundle
        self.spec = spec
        self.asked = asked
        self._saved: Saved | None = None

    def claim(self, patience: Patience | None = None) -> bool:
        """Take the lock that keeps the hook and other recoveries out until `close`.

        Args:
            patience: how long to wait for them; None: not at all.

        Returns:
            False: one of them has it.

        Raises:
            DamagedError: the engine has removed the container meanwhile, or its directory cannot be opened.
        """
        directory = store.lasting_directory(self.bundle, self.spec.root)
        try:
            self._saved = Saved(directory)
        except OSError as error:
            raise DamagedError(f"{directory}: {error.strerror}") from error
        return self._saved.wait(patience) if patience else self._saved.lock()

    def close(self) -> None:
        """Give the lock away, if it was taken."""
        saved, self._saved = self._saved, None
        if saved:
            saved.close()

    @property
    def saved(self) -> frozenset[str]:
        """The archives that are noted as saved, by name."""
        return self._saved.names if self._saved else frozenset()

    def is_as_it_was(self) -> bool:
        """Say whether the engine has neither removed nor started the container since it was read."""
        try:
            status = os.stat(f"{self.bundle}/config.json")
        except OSError:
            return False
        return status.st_mtime_ns == self.spec.started

    def left(self, settings: Settings) -> list[Left]:
        """Give what is asked for and not noted as saved, by the container's last start.

        Args:
            settings: the hook's, for this container.
        """
        saved = self.saved
        return [self._left(name, keys, settings) for name, keys in self.asked.items() if name not in saved]

    def save(self, names: Collection[str], settings: Settings, log: Log) -> int:
        """Run the hook for some of its archives, and give its exit status; see `hook.run`.

        The container is claimed.
        """
        assert self._saved
        transfer = settings.transfer
        transfer = transfer.replace(push_timeout=min(transfer.push_timeout, _PUSH_TIMEOUT))
        settings = settings.replace(bundle=self.bundle, transfer=transfer)
        return hook.run(settings, log, names=names, recovering=self._saved)

    def _left(self, name: str, keys: Mapping[str, object], settings: Settings) -> Left:
        mount_point, archive_to = keys["mount-point"], keys["archive-to"]
        left = Left(name=name, mount_point=str(mount_point), archive_to=str(archive_to))
        if not isinstance(mount_point, str):
            return left  # the hook says what is wrong with it
        mount_point = runtime.normal_destination(mount_point)
        try:
            overlay = find_overlay(
                self.spec.mounts,
                self.spec.root,
                mount_point,
                mount_program=settings.mount_program,
                bundle=self.bundle,
                ended=True,
            )
        except ArchiveError as error:
            return left.replace(nothing=str(error))
        if is_twin(overlay.upper):
            return left.replace(nothing=f"the hook has moved the upperdir {overlay.upper} already")
        if mount_point == "/":
            return left  # the engine may have it mounted as long as there is the container
        return left.replace(in_use=_is_written(overlay.upper))


def open_container(bundle: str) -> Container | None:
    """Read what a container asks for.

    Args:
        bundle: where it may have a bundle.

    Returns:
        None: it has none, because it was never started, or it asks for nothing.

    Raises:
        DamagedError: there is one, and it cannot be read.
    """
    if not os.path.lexists(f"{bundle}/config.json"):
        return None
    try:
        spec = runtime.read_spec(bundle)
    except HookError as error:
        raise DamagedError(error.message) from error
    asked = dict(group_by_name(spec.annotations, Log("fatal", [])))
    return Container(bundle, spec, asked) if asked else None


def _is_written(upper: str) -> bool:
    """Say whether an overlay writes into an upperdir that is mounted where only a container sees it.

    Returns:
        False also where nobody can say.
    """
    from archive_overlay.overlay import in_use

    try:
        return in_use.can_ask() and in_use.is_mounted_elsewhere(upper)
    except OSError:
        return False
