"""Which containers have a process, or an engine that is at work for them.

The engine's own notes are of no use: after a power failure they say that all containers run. So processes are looked at:

- conmon and the engine's cleaning up have the container's id on their command lines; only those of this user count.
- A container's processes are in a control group that is called after it, or in a mount namespace in which files of its
  directory are mounted, or its layer at /.

Whoever can make such a process keeps a container from being recovered, and can do no more.

Source: proc(5); conmon(8); the mounts of podman 4.3, CRI-O.
"""

from __future__ import annotations

import os
import re
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ID = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_DIRECTORY = re.compile(rb"-containers/([0-9a-f]{64})/userdata/")
_UPPER = re.compile(rb"upperdir=[^,]*?([0-9a-f]{64})/diff")

_ENGINES = (b"conmon", b"podman", b"crio", b"runc", b"crun")

# Of a command line or a table that is read.
_LONGEST = 1 << 22
# For how long what was seen counts.
_SECONDS = 1.0


class Running:
    """The containers that run, as far as processes show them.

    Args:
        proc: where the processes are.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._ids: set[str] = set()
        self._seen = -_SECONDS

    def has(self, container: str, layer: str = "") -> bool:
        """Say whether a container has a process.

        Args:
            container: its id.
            layer: the id of its layer; "" if that is unknown.
        """
        now = time.monotonic()
        if now - self._seen >= _SECONDS:
            self._ids = set(self._look())
            self._seen = now
        return container in self._ids or layer in self._ids

    def _look(self) -> Iterator[str]:
        user = os.geteuid()
        own = self._namespace("self")
        namespaces = set()
        for name in os.listdir(self._proc):
            if not name.isdecimal() or int(name) == os.getpid():
                continue
            directory = f"{self._proc}/{name}"
            try:
                owner = os.stat(directory).st_uid
            except OSError:
                continue  # it has ended
            if owner == user:
                command = self._read(name, "cmdline")
                if os.path.basename(command.partition(b"\0")[0]).startswith(_ENGINES):
                    yield from _texts(_ID, command)
            yield from _texts(_ID, self._read(name, "cgroup"))
            namespace = self._namespace(name)
            if namespace in (own, "") or namespace in namespaces:
                continue
            namespaces.add(namespace)
            for line in self._read(name, "mountinfo").split(b"\n"):
                fields = line.split(b" ")
                if len(fields) > 4:
                    yield from _texts(_DIRECTORY, fields[3])
                    if fields[4] == b"/":
                        yield from _texts(_UPPER, line)

    def _namespace(self, process: str) -> str:
        try:
            return os.readlink(f"{self._proc}/{process}/ns/mnt")
        except OSError:
            return ""

    def _read(self, process: str, name: str) -> bytes:
        try:
            with open(f"{self._proc}/{process}/{name}", "rb") as file:
                return file.read(_LONGEST)
        except OSError:
            return b""


def _texts(pattern: re.Pattern[bytes], text: bytes) -> Iterator[str]:
    for match in pattern.finditer(text):
        yield (match[1] if pattern.groups else match[0]).decode()
