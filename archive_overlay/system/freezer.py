"""Pause all processes of a control group, and resume them whatever happens to this one.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze"; cgroup-v1/freezer-subsystem.rst; proc(5).
"""

from __future__ import annotations

import errno
import os
import signal
import time

from archive_overlay.system import mountinfo
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Callable, NoReturn

_SECONDS = 10.0
_NAP = 0.01
# Of a file in /proc.
_LONGEST = 1 << 20


class Group(Record):
    """A control group that can be paused.

    Attributes:
        directory: its absolute path.
        unified: whether it is one of cgroups v2.
    """

    directory: str
    unified: bool

    @property
    def switch(self) -> str:
        """The file that pauses and resumes it."""
        return f"{self.directory}/{'cgroup.freeze' if self.unified else 'freezer.state'}"

    @property
    def words(self) -> tuple[bytes, bytes]:
        """What to write there to resume it, and to pause it."""
        return (b"0", b"1") if self.unified else (b"THAWED", b"FROZEN")

    def is_asked(self) -> bool:
        """Return whether somebody has paused it, or is about to.

        Raises:
            OSError: nobody can say.
        """
        return _read(self.switch).strip() != self.words[0]

    def has_stopped(self) -> bool:
        """Return whether all of its processes are paused.

        Raises:
            OSError: nobody can say.
        """
        if self.unified:
            return b"frozen 1" in _read(f"{self.directory}/cgroup.events").split(b"\n")
        return _read(self.switch).strip() == self.words[1]


def group_of(name: str, proc: str = "/proc") -> Group | None:
    """Find the control group that is named after a container and has all of its processes.

    Args:
        name: the container's id, which is a part of the group's name.
        proc: where the processes are.

    Returns:
        None: there is none that can be paused.

    Raises:
        OSError: the processes or mounts cannot be read.
    """
    mounts = mountinfo.read()
    hierarchies = [(True, mount) for mount in mounts.of_type("cgroup2")]
    hierarchies += [(False, mount) for mount in mounts.of_type("cgroup") if "freezer" in mount.options]
    own = set(_groups(f"{proc}/self/cgroup"))
    for process in os.listdir(proc):
        if not process.isdecimal():
            continue
        try:
            listed = _groups(f"{proc}/{process}/cgroup")
        except OSError:
            continue  # it has ended
        for unified, path in listed:
            top = _called_after(name, path) if name in path else ""
            if not top or any(_below(each, top) is not None for _, each in own):
                continue  # not this process's own group: it could not resume it
            for is_unified, mount in hierarchies:
                inside = _below(top, mount.root)
                if unified == is_unified and inside is not None:
                    group = Group(directory=mount.mount_point.rstrip("/") + inside, unified=unified)
                    if os.path.exists(group.switch):
                        return group
    return None


def _groups(path: str) -> list[tuple[bool, str]]:
    """Return the groups of a process that may be paused: whether each is one of v2, and its path."""
    found = []
    for line in os.fsdecode(_read(path)).splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" and not controllers:
            found.append((True, group))
        elif "freezer" in controllers.split(","):
            found.append((False, group))
    return found


def _called_after(name: str, path: str) -> str:
    """Return the path of the topmost group named after a container; "" if it is another one's, or there is none."""
    parts = path.split("/")
    for position, part in enumerate(parts):
        if name in part:
            return "" if "conmon" in part else "/".join(parts[: position + 1])
    return ""


def _below(path: str, root: str) -> str | None:
    """Return a path relative to the root of a mount; None: it is not there."""
    if root == "/":
        return path
    return path[len(root) :] if path == root or path.startswith(f"{root}/") else None


class Pause:
    """Paused processes, until `end` is called or this process has ended, for whatever reason.

    Another process, which only SIGKILL can end, waits for that. Use it as a context manager.

    Args:
        group: theirs. If somebody has paused it already, nothing is done, now and at the end.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._resume: Callable[[], None] | None = None

    def __enter__(self) -> Pause:  # noqa: PYI034, Self is not in Python 3.9
        """Pause them, and wait until they are.

        Raises:
            OSError: this is refused, or some cannot be paused.
        """
        group = self._group
        if group.is_asked():
            return self
        thaw, freeze = group.words
        switch = os.open(group.switch, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._resume = _watched(switch, thaw)
            until = time.monotonic() + _SECONDS
            os.write(switch, freeze)
            while not group.has_stopped():
                if time.monotonic() > until:
                    raise TimeoutError(f"its processes were not paused in {_SECONDS:.0f} seconds")
                time.sleep(_NAP)
                if not group.unified:
                    os.write(switch, freeze)  # a group of v1 does not pause new processes by itself
        except BaseException:
            self.end()
            raise
        finally:
            os.close(switch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Resume them."""
        resume, self._resume = self._resume, None
        if resume:
            resume()


def _watched(switch: int, thaw: bytes) -> Callable[[], None]:
    """Start the process that lets a group go on when this one has ended, and give what has it done at once."""
    reader, writer = os.pipe()
    ready, watching = os.pipe()
    # It gets none of them, not even between its start and its first call.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
        if not child:
            _watch(reader, watching, (writer, ready), switch, thaw)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(reader)
    os.close(watching)
    # Until it has left this process's group, SIGKILL to all of that would end it, too.
    watches = os.read(ready, 1)
    os.close(ready)
    if not watches:
        os.close(writer)
        os.waitpid(child, 0)
        raise OSError(errno.ECHILD, "the process that resumes them has not started")
    switch = os.dup(switch)

    def resume() -> None:
        try:
            os.write(switch, thaw)  # the other process may have been killed
        except OSError:
            pass  # the group has gone
        os.close(switch)
        os.close(writer)
        os.waitpid(child, 0)

    return resume


def _watch(reader: int, watching: int, others: tuple[int, int], switch: int, thaw: bytes) -> NoReturn:
    try:
        os.setsid()  # what ends all processes of a terminal is not meant for it
        for each in others:
            os.close(each)
        os.write(watching, b"w")
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (reader, switch):
                try:
                    os.close(int(name))
                except OSError:
                    pass  # of the listing itself
        os.read(reader, 1)
        os.write(switch, thaw)
    finally:
        os._exit(0)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_LONGEST)
