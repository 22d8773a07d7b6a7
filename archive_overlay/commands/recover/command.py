"""`archive_overlay recover`: run the hook where the engine had no chance to."""

from __future__ import annotations

import os
import time

from archive_overlay.commands import Output, shown
from archive_overlay.commands.recover import configuration, namespace, stores
from archive_overlay.commands.recover.running import Running
from archive_overlay.errors import ArchiveError, internal_error, interruption
from archive_overlay.hook import recovery
from archive_overlay.log import open_log
from archive_overlay.overlay.store import UnknownError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from archive_overlay.commands.recover.configuration import Configuration
    from archive_overlay.commands.recover.stores import Store
    from archive_overlay.hook.recovery import Container, Left
    from archive_overlay.log import Log
    from archive_overlay.settings import Settings

# An engine writes a container's spec a moment before there is a process that shows that the container runs.
_STARTING = 5.0
_SHORT_ID = 12


def run(options: argparse.Namespace, log: Log) -> int:
    """Save what is left of each container, and say on standard output what that was.

    Args:
        options: `root`, the directory of the store; `hooks_dir`, directories of hook configurations; `dry_run`: only list
            what would be saved; `parse`, by which the hook reads its arguments.
        log: is told what cannot be done.

    Returns:
        0: nothing is left; 1: something is.

    Raises:
        ArchiveError: nothing can be recovered at all.
    """
    store = stores.find_store(options.root, options.runroot)
    if not os.path.isdir(store.root):
        if options.root:
            raise ArchiveError(f"there is no store {store.root}")
        return 0
    found = configuration.installed(options.hooks_dir, options.parse, log)
    if os.geteuid() != 0:
        namespace.enter()
    return recover(store, found, log, dry_run=options.dry_run)


def recover(store: Store, configurations: Sequence[Configuration], log: Log, *, dry_run: bool) -> int:
    """Save what is left of the containers of a store; see `run`.

    Args:
        store: the engine's.
        configurations: of the hook.
        log: is told what cannot be done.
        dry_run: whether only to list what would be saved.
    """
    this = _Recovery(store, configurations, Output(), log, dry_run=dry_run)
    try:
        for bundle in store.bundles():
            this.look_at(bundle)
    except UnknownError as error:
        raise ArchiveError(f"cannot find out which containers are in {store.root}: {error}") from error
    this.finish()
    return 1 if this.failed else 0


class _Recovery:
    """One run of the command.

    Args:
        store: the engine's.
        configurations: of the hook.
        output: takes what is saved.
        log: takes what cannot be done.
        dry_run: whether only to list what would be saved.

    Attributes:
        failed: whether something is left.
    """

    def __init__(
        self,
        store: Store,
        configurations: Sequence[Configuration],
        output: Output,
        log: Log,
        *,
        dry_run: bool,
    ) -> None:
        self.failed = False
        self._store = store
        self._configurations = configurations
        self._output = output
        self._log = log
        self._dry_run = dry_run
        self._running = Running()
        self._logs: dict[tuple[object, ...], Log] = {}
        self._count = 0

    def look_at(self, bundle: str) -> None:
        """Save what is left of one container; what fails there is said, and costs the others nothing."""
        try:
            container = recovery.open_container(bundle)
            settings = container and self._settings(container)
            if container and settings:
                try:
                    self._recover(container, settings)
                finally:
                    container.close()
        except recovery.DamagedError as error:
            self._complain(f"cannot find out what the container of {bundle} asks for: {error}")
        except Exception as error:
            if isinstance(error, BrokenPipeError) or interruption(error):
                raise
            self._complain(f"the container of {bundle}: {internal_error(error)}")

    def finish(self) -> None:
        """Say that nothing was to be done, if so."""
        if not self._count and not self.failed:
            self._output.line("Nothing is left to recover.")
        self._output.flush()

    def _recover(self, container: Container, settings: Settings) -> None:
        if not container.claim():
            return  # the hook is at work, or another recovery
        left = [each for each in container.left(settings) if not each.nothing]
        if not left or self._is_at_work(container):
            return
        for each in left:
            if each.in_use:
                self._complain(
                    f"archive {each.name} of container {container.id[:_SHORT_ID]}: the upperdir of {each.mount_point} is"
                    " still in use by a process of the container or by another container"
                )
        left = [each for each in left if not each.in_use]
        if not left:
            return
        self._count += len(left)
        if self._dry_run:
            for each in left:
                self._say(container, each, f"would be saved to {shown(each.archive_to)}")
            self._output.flush()
            return
        self._store.make_run()
        names = {each.name for each in left}
        status = container.save(names, settings, self._log_of(settings))
        noted = container.saved
        for each in left:
            if not status or each.name in noted:
                self._say(container, each, "saved")
        self._output.flush()
        if status:
            self.failed = True  # the hook has said why
        elif not names <= noted:
            self._log.warning(
                f"container {container.id[:_SHORT_ID]}: its file system cannot record what is saved, so the next run saves it"
                " again"
            )

    def _is_at_work(self, container: Container) -> bool:
        """Say whether the container runs, or the engine starts it or cleans it up."""
        if self._running.has(container.id, container.layer):
            return True
        wait = container.started + _STARTING - time.time()
        if wait > 0:
            time.sleep(min(wait, _STARTING))  # less, where the clock was set back
            if self._running.has(container.id, container.layer):
                return True
        return not container.is_as_it_was()

    def _settings(self, container: Container) -> Settings | None:
        """Give the hook's settings for a container; None: no configuration is for it."""
        try:
            return configuration.settings_for(self._configurations, container.annotations)
        except ArchiveError as error:
            self._complain(f"container {container.id[:_SHORT_ID]}: {error}")
            return None

    def _log_of(self, settings: Settings) -> Log:
        key = (settings.log_level, settings.log_file, settings.syslog)
        if key not in self._logs:
            self._logs[key] = open_log(settings.log_level, path=settings.log_file, syslog=settings.syslog)
        return self._logs[key]

    def _say(self, container: Container, left: Left, what: str) -> None:
        self._output.line(
            f"container {container.id[:_SHORT_ID]}: archive {shown(left.name)} of {shown(left.mount_point)} {what}"
        )

    def _complain(self, message: str) -> None:
        self.failed = True
        self._log.error(message)
