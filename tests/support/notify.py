"""The kernel's question, before a process makes a system call, whether it may: seccomp_unotify(2).

Where strace stops a process twice at each call, and is a program to be started for each run, this stops at the calls
that were asked for, once.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tests.support import tools, warm
from tests.support.warm_server import HANDSHAKE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_libc = ctypes.CDLL(None, use_errno=True)

# From linux/filter.h: load a word, jump if it equals, jump if it has one of these bits, return.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
# From linux/seccomp.h.
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_CONTINUE = 1
_NUMBER = 0
# The lower half of each.
_ARGUMENTS = [16 + 8 * index + (4 if sys.byteorder == "big" else 0) for index in range(6)]
_NOTIFICATION, _ANSWER = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
_RECEIVE = 0xC0000000 | _NOTIFICATION.size << 16 | ord("!") << 8
_SEND = 0xC0000000 | _ANSWER.size << 16 | ord("!") << 8 | 1
_SET_FLAGS = 0x40000000 | 8 << 16 | ord("!") << 8 | 4
_WAKE_UP_AT_ONCE = 1

_LONGEST_TEXT = 4096


@dataclass(frozen=True)
class Notification:
    """A thread that is about to make a system call, and waits for an answer.

    Attributes:
        listener: where the answer goes.
        id: of this notification.
        thread: its number, as it is seen here.
        name: of the system call.
        arguments: as the kernel gets them: numbers, and addresses of what is longer.
    """

    listener: int
    id: int
    thread: int
    name: str
    arguments: tuple[int, ...]

    def text(self, address: int) -> str:
        """Give the string at an address of the process."""
        if not address:
            return "NULL"
        return os.fsdecode(self.memory(address, _LONGEST_TEXT).partition(b"\0")[0])

    def memory(self, address: int, size: int) -> bytes:
        """Give what the process has at an address; less, if there is no more."""
        fd = os.open(f"/proc/{self.thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, address)
        finally:
            os.close(fd)

    def go_on(self) -> None:
        """Let the call be made."""
        self._answer(0, _CONTINUE)

    def fail(self, number: int) -> None:
        """Let the call fail with an error, without being made."""
        self._answer(-number, 0)

    def signal(self, number: signal.Signals) -> None:
        """Send the thread a signal.

        One that ends the process comes before the call is made, as SIGKILL does; one that is handled, when it has been made.
        """
        if number == signal.SIGKILL:
            os.kill(self.thread, number)
            return
        if _libc.tgkill(_process(self.thread), self.thread, number) != 0:
            raise OSError(ctypes.get_errno(), "tgkill")
        self.go_on()

    def _answer(self, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(self.id, 0, error, flags))
        except FileNotFoundError:
            pass  # somebody has killed it


def hand_over(listener: int) -> None:
    """Let who asks and who answers take turns on one processor, where the kernel can do that (since Linux 6.6)."""
    try:
        fcntl.ioctl(listener, _SET_FLAGS, _WAKE_UP_AT_ONCE)
    except OSError:
        pass


def receive(listener: int) -> Notification | None:
    """Take a notification, after there was something to read; None: its process has ended meanwhile."""
    buffer = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except FileNotFoundError:
        return None
    number, thread, _, call, _, _, *arguments = _NOTIFICATION.unpack(buffer)
    return Notification(listener, number, thread, _name_of(call), tuple(arguments))


def filter_of(names: Iterable[str], *, flags: Mapping[str, tuple[int, int]] | None = None) -> warm.Filter:
    """Let those system calls be asked about that have these names.

    Args:
        names: of the calls.
        flags: of some, the index of an argument and bits: only with one of these bits in it the call is asked about.
    """
    program = []
    for name in names:
        if flags and name in flags:
            index, bits = flags[name]
            program += [
                (_JUMP_IF_EQUAL, 0, 4, _number_of(name)),
                (_LOAD, 0, 0, _ARGUMENTS[index]),
                (_JUMP_IF_SET, 0, 1, bits),
                (_RETURN, 0, 0, _NOTIFY),
                (_RETURN, 0, 0, _ALLOW),
            ]
        else:
            program += [(_JUMP_IF_EQUAL, 0, 1, _number_of(name)), (_RETURN, 0, 0, _NOTIFY)]
    return _filter(program, _ALLOW)


def filter_but(names: Iterable[str]) -> warm.Filter:
    """Let all system calls be asked about but those that have these names."""
    program = []
    for name in names:
        program += [(_JUMP_IF_EQUAL, 0, 1, _number_of(name)), (_RETURN, 0, 0, _ALLOW)]
    return _filter(program, _NOTIFY)


def process_of(thread: int) -> int:
    """Give the number of the process that a thread belongs to."""
    return _process(thread)


def _filter(program: Sequence[tuple[int, int, int, int]], others: int) -> warm.Filter:
    """Assemble a filter: what it does by the number of a call, and what becomes of the others."""
    # What the run hands its listener over through is never asked about: there is nobody yet to answer.
    begin = [
        (_LOAD, 0, 0, _ARGUMENTS[0]),
        (_JUMP_IF_EQUAL, 0, 1, HANDSHAKE),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _NUMBER),
    ]
    instructions = [struct.pack("HBBI", *each) for each in (*begin, *program, (_RETURN, 0, 0, others))]
    return warm.Filter(b"".join(instructions), _number_of("seccomp"))


def _process(thread: int) -> int:
    with open(f"/proc/{thread}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        tools.cannot_run("libseccomp not installed")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    return library


@cache
def _number_of(name: str) -> int:
    """Give the number of a system call; of one that this architecture has not, one that no call has."""
    number: int = _library().seccomp_syscall_resolve_name(name.encode())
    return number & 0xFFFFFFFF


@cache
def _name_of(number: int) -> str:
    address = _library().seccomp_syscall_resolve_num_arch(0, number)
    if not address:
        return f"system call {number}"
    # It has to be freed, and is not: there are few.
    return ctypes.string_at(address).decode()
