"""`archive_overlay snapshot`: the archives that a running container asks for, made now."""

from __future__ import annotations

import os
from contextlib import ExitStack

from archive_overlay.commands import Output, shown
from archive_overlay.commands.recover import configuration, stores
from archive_overlay.commands.recover.running import Running
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.hook import recovery, snapshot
from archive_overlay.log import open_log
from archive_overlay.overlay.store import UnknownError
from archive_overlay.system import freezer
from archive_overlay.system.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Callable

    from archive_overlay.commands.recover.stores import Listed, Store
    from archive_overlay.hook.recovery import Container
    from archive_overlay.log import Log

_SHORT_ID = 12
_NO_PAUSE = "--no-pause saves it while it runs; what it writes meanwhile may be saved in part"


def run(options: argparse.Namespace, log: Log) -> int:
    """Make the archives, and say on standard output which they are.

    Args:
        options: `container`, a name, an id or the beginning of one; `archives`, names of archives, or none for all; `pause`,
            whether it is paused; `root`, `hooks_dir` and `parse`: as for `recover`.
        log: is told what cannot be done.

    Returns:
        0: all are made; 1: some are not.

    Raises:
        ArchiveError: none can be made.
    """
    if os.geteuid() != 0:
        raise ArchiveError(
            "only the engine's own processes see what this user's containers have mounted",
            hint=f"run this there: podman unshare archive_overlay snapshot {options.container}",
        )
    store = stores.find_store(options.root, options.runroot)
    listed = find_container(store, options.container)
    who = f"container {listed.names[0] if listed.names else listed.id[:_SHORT_ID]}"
    container = _opened(listed, who)
    configurations = configuration.installed(options.hooks_dir, options.parse, log)
    settings = configuration.settings_for(configurations, container.annotations)
    if settings is None:
        raise ArchiveError(f"no hook configuration applies to {who}, so the hook's options are unknown")
    names, refused = _chosen(container, options.archives, who)
    for message in refused:
        log.error(message)
    if not names:
        return 1
    if not Running().has(container.id, container.layer):
        raise ArchiveError(
            f"{who} is not running: its changes were saved when it stopped, or archive_overlay recover saves them"
        )
    try:
        if not container.claim(Patience()):
            raise ArchiveError(f"{who}: another run of the hook is still working on it")
        with ExitStack() as stack:
            resume = _paused(container, who, stack) if options.pause else _nothing
            hook_log = open_log(settings.log_level, path=settings.log_file, syslog=settings.syslog)
            status, unchanged = snapshot.save(container, names, settings, hook_log, resume)
    except recovery.DamagedError as error:
        raise ArchiveError(f"{who}: {error}") from error
    finally:
        container.close()
    if not status:
        output = Output()
        for name in names:
            done = "has nothing new to save" if name in unchanged else "saved"
            output.line(f"{shown(who)}: archive {shown(name)} {done}")
        output.flush()
    return 1 if status or refused else 0


def find_container(store: Store, text: str) -> Listed:
    """Find a container by its name, its id or the beginning of its id, in this order.

    Args:
        store: the engine's.
        text: as a person says it.

    Raises:
        ArchiveError: there is none, or several ids begin so.
    """
    found: list[Listed] = []
    try:
        for each in store.containers():
            if text == each.id or text in each.names:
                return each
            if text and each.id.startswith(text):
                found.append(each)
    except UnknownError as error:
        raise ArchiveError(f"cannot find out which containers are in {store.root}: {error}") from error
    if len(found) > 1:
        ids = ", ".join(each.id[:_SHORT_ID] for each in found[:3])
        raise ArchiveError(f"{len(found)} containers have an id that begins with {text}: {ids}")
    if not found:
        raise ArchiveError(
            f"there is no container {text} in {store.root}",
            hint="podman ps lists those that run; --root names another store",
        )
    return found[0]


def _opened(listed: Listed, who: str) -> Container:
    try:
        container = recovery.open_container(listed.bundle)
    except recovery.DamagedError as error:
        raise ArchiveError(f"cannot find out what {who} asks for: {error}") from error
    if container is None:
        raise ArchiveError(f"{who} asks for no archive, or was never started")
    return container


def _chosen(container: Container, archives: Sequence[str], who: str) -> tuple[list[str], list[str]]:
    """Choose the archives that are made, and say why others are not."""
    asked = container.asked
    unknown = [name for name in archives if name not in asked]
    if unknown:
        raise ArchiveError(f"{who} asks for no archive {unknown[0]}, but for {', '.join(asked)}")
    names, refused = [], []
    for name in dict.fromkeys(archives or asked):
        if asked[name].get("method") == "move":
            refused.append(
                f"archive {name}: method move takes the upperdir away, which {who} needs as long as it runs; method copy"
                " saves the same"
            )
        else:
            names.append(name)
    return names, refused


def _paused(container: Container, who: str, stack: ExitStack) -> Callable[[], None]:
    """Pause a container until a context ends, and give what lets it go on earlier."""
    try:
        group = freezer.group_of(container.id)
        if group is None:
            raise ArchiveError(f"{who} cannot be paused: it has no control group of its own", hint=_NO_PAUSE)
        return stack.enter_context(freezer.Pause(group)).end
    except OSError as error:
        fail(f"cannot pause {who} ({_NO_PAUSE})", error)


def _nothing() -> None:
    """Nobody is paused."""
