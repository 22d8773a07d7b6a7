"""Runs of the hook that begin with everything imported: forked by a process that has imported it, once for many.

Such a run is a process of its own, with an environment, a working directory, descriptors, namespaces and an exit
status of its own. It costs a fifteenth of one that starts an interpreter. What it does not show is the start: that the
file can be executed, what is imported when, and what signals, limits and descriptors the program is started with.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TOP = Path(__file__).resolve().parents[2]
_SERVER = Path(__file__).with_name("warm_server.py")
# As in the first line of the built file, and as `hooks.command` has it for the checkout.
_BUILT = ("/usr/bin/python3", "-IBSXutf8")
_CHECKOUT = (sys.executable, "-ISXutf8", "-X", f"pycache_prefix={_TOP / '.cache' / 'bytecode'}")
_LIMITS = ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
# What fits in a pipe, read or not.
LARGEST_STATE = 1 << 16
# In the order in which they are entered.
_NAMESPACES = ("user", "mnt")


@dataclass(frozen=True)
class Filter:
    """Which system calls of a run somebody else decides about.

    Attributes:
        instructions: struct sock_filter[].
        seccomp: the number of the system call that sets it.
    """

    instructions: bytes
    seccomp: int


class Run:
    """A run that has begun, and that reads what is sent to its standard input.

    Attributes:
        listener: a file descriptor on which the calls come that were asked for; None: none were.
        stdout, stderr: what it has written, once it has ended.
    """

    def __init__(
        self, reply: socket.socket, outputs: Sequence[int], listener: int | None, stdin: int | None
    ) -> None:
        self.listener = listener
        self._stdin = stdin
        self.stdout = self.stderr = b""
        self._status: int | None = None
        self._reply = reply
        self._outputs = dict(zip(outputs, ("stdout", "stderr")))
        self._poll = select.poll()
        for fd in (reply.fileno(), *outputs, *([] if listener is None else [listener])):
            self._poll.register(fd, select.POLLIN)

    def send(self, state: bytes) -> None:
        """Put something on the standard input of a run that waits for it, and end that."""
        assert self._stdin is not None
        os.write(self._stdin, state)
        os.close(self._stdin)
        self._stdin = None

    def wait(self, timeout: float = 60) -> int | None:
        """Wait until it has ended, and all that it started and that writes where it does.

        Args:
            timeout: in seconds; it is an error if nothing happens for so long.

        Returns:
            The exit status; negative: the signal that killed it. None: a call waits at the listener.
        """
        while self._outputs or self._status is None:
            ready = dict(self._poll.poll(timeout * 1000))
            if not ready:
                raise TimeoutError(f"the run goes on after {timeout} s: {self.stderr!r}")
            for fd in ready:
                if fd in self._outputs:
                    self._read(fd)
                elif fd != self.listener:
                    self._read_status(fd)
            if self.listener in ready:
                if ready[self.listener] & select.POLLIN:
                    return None
                self._poll.unregister(self.listener)  # nobody is left who could make calls
        return self._status

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (*self._outputs, self.listener, self._stdin):
            if fd is not None:
                os.close(fd)
        self._outputs, self.listener, self._stdin = {}, None, None
        self._reply.close()

    def _read(self, fd: int) -> None:
        name = self._outputs[fd]
        if part := os.read(fd, 1 << 16):
            setattr(self, name, getattr(self, name) + part)
        else:
            self._poll.unregister(fd)
            del self._outputs[fd]
            os.close(fd)

    def _read_status(self, fd: int) -> None:
        answer = self._reply.recv(100)
        assert answer, "the server has ended"
        self._status = os.waitstatus_to_exitcode(int(answer))
        self._poll.unregister(fd)


class Server:
    """A process that runs of the hook are forked from.

    Args:
        executable: the built file; None: the package in this checkout.
        prefix: a command that starts the process, in namespaces of its own for example.
        environment: of the process: what the C library reads of it counts for the runs too.
    """

    def __init__(
        self,
        executable: Path | None,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.requests, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._namespaces = _namespaces()
        package = executable / "site-packages" if executable else _TOP
        with other:
            self._process = subprocess.Popen(
                [
                    *(*prefix, *(_BUILT if executable else _CHECKOUT), str(_SERVER)),
                    *(str(other.fileno()), str(package), str(executable or "archive_overlay")),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=dict(environment or {}),
                cwd="/",
            )
        assert self.requests.recv(100) == b"ready", "the server did not start"

    def run(
        self,
        arguments: Sequence[str],
        state: bytes,
        *,
        cwd: Path,
        environment: Mapping[str, str],
        here: bool = False,
        timeout: float = 60,
    ) -> tuple[int, bytes, bytes]:
        """Run the hook to its end; give its exit status, and what is on its standard output and error.

        Args:
            arguments, state, cwd, environment, here: see `start`.
            timeout: in seconds.
        """
        run = self.start(arguments, state, cwd=cwd, environment=environment, here=here)
        try:
            status = run.wait(timeout)
            assert status is not None
            return status, run.stdout, run.stderr
        finally:
            run.close()

    def start(
        self,
        arguments: Sequence[str],
        state: bytes | None,
        *,
        cwd: Path,
        environment: Mapping[str, str],
        here: bool = False,
        supervised: Filter | None = None,
    ) -> Run:
        """Start a run of the hook.

        Args:
            arguments: the command line.
            state: what is on its standard input; a pipe has to have room for it. None: it waits for `Run.send`.
            cwd: its working directory.
            environment: its environment.
            here: in the user and mount namespaces of the caller, and not in those of the server.
            supervised: which of its calls somebody else decides about.
        """
        with ExitStack() as given:

            def pipe(*, to_run: bool) -> int:
                """Make a pipe; one end is given to the run."""
                reader, writer = os.pipe()
                ours, theirs = (writer, reader) if to_run else (reader, writer)
                given.callback(os.close, theirs)
                fds.append(theirs)
                return ours

            reply, theirs = socket.socketpair()
            fds = [given.enter_context(theirs).fileno()]
            stdin = pipe(to_run=True)
            outputs = [pipe(to_run=False), pipe(to_run=False)]
            if here:
                for kind, inode in _namespaces().items():
                    if inode != self._namespaces[kind]:
                        fds.append(os.open(f"/proc/self/ns/{kind}", os.O_RDONLY))
                        given.callback(os.close, fds[-1])
            handshake = None
            if supervised:
                handshake, other = socket.socketpair()
                fds.append(given.enter_context(other).fileno())
            if state is not None:
                os.write(stdin, state)
                os.close(stdin)
            limits = [getattr(resource, f"RLIMIT_{name}") for name in _LIMITS]
            umask = os.umask(0o022)
            os.umask(umask)
            asked = {
                "arguments": [*arguments],
                "cwd": os.fspath(cwd),
                "environment": dict(environment),
                "umask": umask,
                "limits": [(number, resource.getrlimit(number)) for number in limits],
                "filter": supervised.instructions.decode("latin-1") if supervised else "",
                "seccomp": supervised.seccomp if supervised else 0,
            }
            socket.send_fds(self.requests, [json.dumps(asked).encode()], fds)
        listener = None
        if handshake:
            with handshake:
                _, (listener,), _, _ = socket.recv_fds(handshake, 1, 1)
        return Run(reply, outputs, listener, stdin if state is None else None)

    def close(self) -> None:
        """End the process."""
        # Processes that were forked from this one may have it open too.
        self.requests.shutdown(socket.SHUT_RDWR)
        self.requests.close()
        self._process.wait()


def _namespaces() -> dict[str, int]:
    """Give the inode numbers of the namespaces that this process is in."""
    return {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in _NAMESPACES}
