"""Two processes that talk to each other, whatever is done to them meanwhile."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import termios
import time

import pytest

from archive_overlay.methods import writer_process


def unread(sender: socket.socket) -> int:
    """Give the number of bytes that the other side of a socket has not taken yet (unix(7), SIOCOUTQ)."""
    number = array.array("i", [0])
    fcntl.ioctl(sender.fileno(), termios.TIOCOUTQ, number)
    return number[0]


def state(pid: int) -> str:
    """Give the letter for what a process is doing (proc(5), /proc/pid/stat)."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("parts", [(b"half of it ", b"and the rest"), (b"a", b"b", b"c", b"d")])
def test_who_is_stopped_for_a_while_gets_the_whole_message(parts: tuple[bytes, ...]) -> None:
    whole = b"".join(parts)
    here, there = socket.socketpair()
    pid = os.fork()
    if not pid:
        here.close()
        received = writer_process._receive(there, len(whole))
        os._exit(0 if received == whole else 1)
    there.close()
    with here:
        for part in parts[:-1]:
            here.sendall(part)
            while unread(here):
                time.sleep(0.001)
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
            os.kill(pid, signal.SIGCONT)
            while state(pid) not in "SZ":  # it waits again, or has ended
                time.sleep(0.001)
        try:
            here.sendall(parts[-1])
        except BrokenPipeError:
            pass  # its status says so
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_message_that_ends_too_early_is_given_as_it_is() -> None:
    here, there = socket.socketpair()
    with there:
        with here:
            here.sendall(b"half of it")
        assert writer_process._receive(there, 100) == b"half of it"
