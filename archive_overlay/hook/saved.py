"""Which archives of a container are saved since its last start: a mark on the directory that the engine keeps of it.

The engine writes config.json there anew for each start. So its time tells the starts of one container apart: a mark counts
only for the start that it names. No container sees this directory.

The lock on it says who is at work: two runs for one container take turns (the hook, and `recover`).

Source: xattr(7), "Trusted extended attributes"; flock(2); podman 4.3 and CRI-O, as seen.
"""

from __future__ import annotations

import fcntl
import os

from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.system.patience import Patience

# The second where the first is refused, as in a user namespace.
_ATTRIBUTES = ("trusted.archive_overlay.saved", "user.archive_overlay.saved")
_SEPARATOR = "\0"


class Saved:
    """The mark of one container, and its lock.

    Args:
        directory: see `store.lasting_directory`.

    Attributes:
        started: which start of the container it is about; "" if that is unknown, and then nothing is noted.

    Raises:
        OSError: the directory cannot be opened.
    """

    def __init__(self, directory: str) -> None:
        self._fd = os.open(directory, READ_TOP_DIRECTORY)
        self.started = self._start()

    def close(self) -> None:
        """Give the lock away."""
        os.close(self._fd)

    def lock(self) -> bool:
        """Take the lock, if nobody has it.

        Returns:
            False: somebody has it. True also where there are no locks.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def wait(self, patience: Patience) -> bool:
        """Wait for the lock, but not for ever.

        Args:
            patience: how long.

        Returns:
            Whether it was taken in the end.
        """
        while not self.lock():
            if not patience.nap():
                return False
        return True

    @property
    def has_begun_again(self) -> bool:
        """Whether the container was started again, or removed, since this was made."""
        return self._start() != self.started

    @property
    def names(self) -> frozenset[str]:
        """The archives that are saved since this start, by name."""
        for attribute in _ATTRIBUTES:
            try:
                value = os.getxattr(self._fd, attribute)
            except OSError:
                continue
            started, *names = os.fsdecode(value).split(_SEPARATOR)
            return frozenset(names if started and started == self.started else ())
        return frozenset()

    def add(self, name: str) -> None:
        """Note that an archive is saved. Nothing depends on it but what `recover` does, so a failure is no failure."""
        if not self.started:
            return
        try:
            value = os.fsencode(_SEPARATOR.join([self.started, *sorted(self.names | {name})]))
        except UnicodeEncodeError:  # a lone surrogate
            return
        for attribute in _ATTRIBUTES:
            try:
                os.setxattr(self._fd, attribute, value)
                return
            except OSError:
                continue  # also where there is no room for a thousand names

    def _start(self) -> str:
        try:
            status = os.stat("config.json", dir_fd=self._fd)
        except OSError:
            return ""
        return f"{status.st_mtime_ns}.{status.st_ino}"
