"""Saving what a container has changed while it runs."""

from __future__ import annotations

import os

from archive_overlay.hook import hook
from archive_overlay.hook.runtime import normal_destination
from archive_overlay.overlay.locate import mount_at
from archive_overlay.system import kernel, mountinfo
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Callable

    from archive_overlay.hook.recovery import Container
    from archive_overlay.log import Log
    from archive_overlay.settings import Settings


def save(
    container: Container,
    names: Collection[str],
    settings: Settings,
    log: Log,
    resume: Callable[[], None],
) -> tuple[int, list[str]]:
    """Run the hook for a running container.

    Its upperdirs are not touched, whatever fails: nothing is rescued, because nothing is about to be deleted.

    Args:
        container: it is claimed.
        names: of the archives that are made. None of them has a method that takes the upperdir away.
        settings: the hook's, for this container.
        log: takes what happens.
        resume: is called as soon as the archives are made. What is left to do at them then does not keep the container, nor the
            hook at its stop.

    Returns:
        The exit status (see `hook.run`), and the names of the archives that have nothing new.
    """
    unchanged: list[str] = []

    def done(names: Collection[str]) -> None:
        unchanged.extend(names)
        resume()
        container.close()

    _write_back(container, names, log)
    settings = settings.replace(bundle=container.bundle, rescue_dir=None)
    return hook.run(settings, log, names=names, running=done), unchanged


def _write_back(container: Container, names: Collection[str], log: Log) -> None:
    """Have the kernel hand on what it holds back of files that are open, where a program serves a mount.

    Until then, it is not in the upperdir. A native overlay has what is written there at once.
    """
    spec = container.spec
    for name in names:
        mount_point = normal_destination(str(container.asked[name].get("mount-point", "")))
        mount = mount_at(spec.mounts, mount_point)
        path = mount.source if mount else spec.root
        try:
            if not path or not mountinfo.read().is_served_by_a_program(path):
                continue
            fd = os.open(path, READ_TOP_DIRECTORY)
            try:
                kernel.sync_file_system(fd)
            finally:
                os.close(fd)
        except OSError as error:
            log.warning(
                f"archive {name}: what was written last to {mount_point} may be missing: {error.strerror}"
            )
