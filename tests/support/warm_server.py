"""The program of `warm.Server`: it imports all modules of the hook, and forks a process for each run of it.

    python3 -IBSXutf8 warm_server.py FD PATH [NAME]

FD is a socket (SOCK_SEQPACKET) on which requests come, PATH where the package is imported from, and NAME what
the program's file is called in sys.argv. The process ends when nobody has the other end of the socket open.

It imports nothing of the tests: what is imported here is imported in every run.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

# How many bytes a request has at most, and how many file descriptors.
_LARGEST = 1 << 20
_MOST_FDS = 8
# Where a run keeps the socket that it sends its listener through: no file of its own gets such a number.
HANDSHAKE = 1000
# From linux/seccomp.h.
_SET_MODE_FILTER = 1
_NEW_LISTENER = 8
_WAIT_KILLABLE = 32

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Import, and answer requests until there can be no more."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    name = sys.argv[3] if len(sys.argv) > 3 else ""
    sys.path.insert(0, sys.argv[2])
    import archive_overlay.cli

    _import_all(archive_overlay)
    # It costs as much as a small archive, and is the same each time.
    parser = archive_overlay.cli.build_parser()
    archive_overlay.cli.build_parser = lambda **_: parser
    # Pages that the runs have in common need not be copied for each.
    gc.collect()
    gc.disable()
    gc.freeze()
    requests.send(b"ready")
    # By the file descriptor of each process, and by that of the socket on which its end is reported.
    running: dict[int, tuple[int, int]] = {}
    waiting: dict[int, int] = {}
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in waiting:
                # Nobody wants to know any more: it took too long.
                os.kill(waiting.pop(fd), signal.SIGKILL)
                poll.unregister(fd)
            elif fd in running:
                pid, reply = running.pop(fd)
                _, status = os.waitpid(pid, 0)
                if waiting.pop(reply, None):
                    poll.unregister(reply)
                    os.write(reply, b"%d" % status)
                poll.unregister(fd)
                os.close(reply)
                os.close(fd)
            elif fd == requests.fileno():
                message, fds = _receive(requests)
                if not message:
                    for pid in waiting.values():
                        os.kill(pid, signal.SIGKILL)
                    return
                asked = json.loads(message)
                pid = os.fork()
                if pid == 0:
                    # What is raised or returned here ends the interpreter as in any other program.
                    del poll, requests, running, waiting
                    _become(asked, fds, name)
                    sys.exit(archive_overlay.cli.run())
                reply, *others = fds
                for other in others:
                    os.close(other)
                watch = os.pidfd_open(pid)
                running[watch] = (pid, reply)
                waiting[reply] = pid
                poll.register(watch, select.POLLIN)
                poll.register(reply, 0)


def _import_all(package: ModuleType) -> None:
    """Import a package's modules, but for what no hook imports and much of the standard library is needed for."""
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.name.endswith((".__main__", ".commands.check")):
            continue
        module = importlib.import_module(found.name)
        if found.ispkg:
            _import_all(module)


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    size = array.array("i").itemsize
    message, ancillary, _, _ = requests.recvmsg(_LARGEST, socket.CMSG_SPACE(_MOST_FDS * size))
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % size])
    return message, list(fds)


def _become(asked: dict[str, Any], fds: list[int], name: str) -> None:
    """Make this process what a fresh one would be.

    Args:
        asked: what `warm.Server.start` sends.
        fds: the file descriptors that came with it: of the reply, of standard input, output and error, of
            the namespaces to enter, and of the handshake if calls are to be supervised.
        name: what the program is called.
    """
    _, stdin, stdout, stderr, *more = fds
    handshake = more.pop() if asked["filter"] else None
    for namespace in more:
        if _libc.setns(namespace, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    for number, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, number)
    if handshake is not None:
        os.dup2(handshake, HANDSHAKE, inheritable=False)
    for fd in [int(each) for each in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd != HANDSHAKE:
            try:
                os.close(fd)
            except OSError:
                pass  # it was the list's own
    for number, limits in asked["limits"]:
        resource.setrlimit(number, limits)
    os.umask(asked["umask"])
    os.chdir(os.fsencode(asked["cwd"]))
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv[:] = [name, *asked["arguments"]]
    gc.enable()
    if handshake is not None:
        _supervised(asked["filter"].encode("latin-1"), asked["seccomp"])


def _supervised(instructions: bytes, number: int) -> None:
    """Let somebody else decide about system calls of this process, and of those that it starts.

    Args:
        instructions: the filter, as struct sock_filter[].
        number: of the system call seccomp.
    """
    handshake = socket.socket(fileno=HANDSHAKE)
    program = ctypes.create_string_buffer(instructions, len(instructions))
    header = struct.pack("HP", len(instructions) // 8, ctypes.addressof(program))
    listener = _libc.syscall(number, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(handshake, [b"."], [listener])
    handshake.close()
    os.close(listener)


if __name__ == "__main__":
    main()
