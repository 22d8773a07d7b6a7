"""Reading changes in this process and writing them in another, so that two processors share the work.

With many small files, reading takes about as long as writing, and both are short system calls in great
number: threads of one interpreter would wait for each other between any two of them. So a second process
writes. It gets the changes through a socket in their order, small files with their contents and others as
open files, and what fails there is raised here. If one of the two processes dies, the other one ends.

Source: fork(2); unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import _socket  # the module socket takes 5 ms more, for enumerations and classes that are not used here
import errno
import marshal
import os
import sys

from archive_overlay.errors import ArchiveError, fail, internal_error
from archive_overlay.overlay.attributes import NO_ATTRIBUTES
from archive_overlay.overlay.change import FILE, KINDS, Change
from archive_overlay.system import kernel, signals
from archive_overlay.system.processors import processors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable, NoReturn

    Write = Callable[[Iterator[Change]], Any]

# What is sent at once. A change set that is no larger is not worth a process.
_MOST_CHANGES = 128
_MOST_BYTES = 32 * 1024
# The largest file that is sent with its contents.
_SMALL = 32 * 1024
# How many messages may be under way: this bounds the memory that they take.
_MOST_UNDER_WAY = 4
_LENGTH = 8  # bytes of a message's length, which comes before it
_END = bytes(_LENGTH)
_INT = 4
_MARSHAL = 2  # later formats look for objects that occur twice, which takes longer
# What the writing process answers, and what it then says: nothing, the result, an error's message and hint.
_WRITTEN, _DONE, _FAILED = b"w", b"d", b"f"


def write_beside(changes: Iterator[Change], write: Write, *, jobs: int) -> Any:
    """Read changes here, and have them written by another process if there are many.

    Args:
        changes: from `overlay.changes`.
        write: what writes them. If that is in another process, only its result and what it logs come back.
        jobs: how many processors may work; 0: as many as there are for this process.

    Returns:
        What `write` returns: numbers, strings, bytes and tuples of them, or None.

    Raises:
        ArchiveError: something failed, in this process or in the other one, or the other one died.
    """
    batch = _Batch()
    for change in changes:
        batch.add(change)
        if batch.full:
            break
    if not batch.full or (jobs or processors()) == 1:
        return write(_all(batch, changes))
    writer = _Writer()
    try:
        if not writer.start(write):
            return write(_all(batch, changes))
        writer.send(batch)
        for change in changes:
            batch.add(change)
            if batch.full:
                writer.send(batch)
        writer.send(batch)
        return writer.result()
    finally:
        writer.end()


def _all(batch: _Batch, changes: Iterator[Change]) -> Iterator[Change]:
    for fields in batch.entries:
        yield _unpacked(fields, batch.fd)
    yield from changes


class _Batch:
    """Changes that are sent together.

    Attributes:
        entries: a tuple for each change.
        fd: the last one's open file, or -1.
        full: whether it is to be sent before anything else is read.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self.clear()

    def clear(self) -> None:
        self.entries.clear()
        self.fd = -1
        self.full = False
        self._bytes = 0

    def add(self, change: Change) -> None:
        data = None
        plain = False
        if change.fd >= 0:
            plain = not change.attributes
            if change.sparse or change.size > _SMALL:
                self.fd = change.fd
                self.full = True
            else:
                data = change.contents()
                self._bytes += change.size
        fields = (
            change.directory,
            change.name,
            change.mode,
            change.uid,
            change.gid,
            change.atime_ns,
            change.mtime_ns,
            change.size,
            change.sparse,
            data,
        )
        self.entries.append(fields if plain else (*fields, *_rest(change)))
        if self._bytes >= _MOST_BYTES or len(self.entries) >= _MOST_CHANGES:
            self.full = True


def _rest(change: Change) -> tuple[Any, ...]:
    """Give what is sent of a change if it is anything but a file without attributes."""
    return change.kind, change.attributes, change.link_to, change.target, change.rdev, change.opaque


def _unpacked(fields: tuple[Any, ...], fd: int) -> Change:
    change = Change.__new__(Change)
    (
        change.directory,
        change.name,
        change.mode,
        change.uid,
        change.gid,
        change.atime_ns,
        change.mtime_ns,
        change.size,
        change.sparse,
        change.data,
        *more,
    ) = fields
    if more:
        kind, change.attributes, change.link_to, change.target, change.rdev, change.opaque = more
        change.kind = KINDS[kind]
    else:
        change.kind, change.attributes, change.link_to = FILE, NO_ATTRIBUTES, None
        change.target, change.rdev, change.opaque = "", 0, False
    change.fd = -1 if change.kind is not FILE or change.link_to or change.data is not None else fd
    return change


class _Writer:
    """The process that writes, as the one that reads sees it."""

    def __init__(self) -> None:
        self._pid = 0
        self._under_way = 0

    def start(self, write: Write) -> bool:
        """Start it, and say whether that could be done: the number of processes may be limited."""
        try:
            with signals.HeldOff():  # until it is known what to end
                self._socket, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
                reader = os.getpid()
                self._pid = os.fork()
                if not self._pid:
                    self._socket.close()
                    _be_the_writer(other, write, reader)
                other.close()
        except OSError:
            return False
        return True

    def send(self, batch: _Batch) -> None:
        """Send changes, and clear the batch.

        Raises:
            ArchiveError: something failed there.
        """
        while self._under_way >= _MOST_UNDER_WAY:
            self._answer()
        message = marshal.dumps(batch.entries, _MARSHAL)
        files = []
        if batch.fd >= 0:
            files.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, batch.fd.to_bytes(_INT, sys.byteorder)))
        try:
            self._socket.sendmsg([len(message).to_bytes(_LENGTH, "little")], files)
            self._socket.sendall(message)
        except ConnectionError:
            self.result()  # it says why there is none
        except OSError as error:
            fail("cannot send changes to the process that writes the archive", error)
        self._under_way += 1
        batch.clear()

    def result(self) -> Any:
        """Wait until all is written.

        Raises:
            ArchiveError: something failed there.
        """
        try:
            self._socket.sendall(_END)
        except ConnectionError:
            pass  # what follows says why
        while (answer := self._answer()) is None:
            pass
        return answer[0]

    def end(self) -> None:
        """End it, whatever it does."""
        with signals.HeldOff():
            if self._pid:
                os.kill(self._pid, signals.KILL)
                os.waitpid(self._pid, 0)
                self._pid = 0
                self._socket.close()

    def _answer(self) -> tuple[Any] | None:
        """Wait for one answer, and give the result if it is that."""
        answer = _receive(self._socket, 1)
        if answer == _WRITTEN:
            self._under_way -= 1
            return None
        size = int.from_bytes(_receive(self._socket, _LENGTH), "little")
        message = _receive(self._socket, size)
        if len(message) < size or not answer:
            raise ArchiveError("the process that writes the archive was killed")
        said = marshal.loads(message)
        if answer == _FAILED:
            raise ArchiveError(said[0], hint=said[1])
        return (said,)


def _be_the_writer(reader: _socket.socket, write: Write, reader_pid: int) -> NoReturn:
    """Write what comes, answer, and end this process."""
    try:
        kernel.end_with_parent()
        if os.getppid() != reader_pid:
            os._exit(1)  # the reader died before that
        try:
            answer, said = _DONE, write(_received(reader))
        except ArchiveError as error:
            answer, said = _FAILED, (error.message, error.hint)
        except BaseException as error:  # this process must not go on where the other one does
            answer, said = _FAILED, (internal_error(error), "")
        message = marshal.dumps(said, _MARSHAL)
        reader.sendall(b"".join((answer, len(message).to_bytes(_LENGTH, "little"), message)))
        while reader.recv(_MOST_BYTES):
            pass  # the reader may be about to send more, before it looks at the answer
    finally:
        os._exit(0)  # nothing of what the other process will do is done here


def _received(reader: _socket.socket) -> Iterator[Change]:
    while True:
        length, files, flags, _ = reader.recvmsg(_LENGTH, _socket.CMSG_SPACE(_INT), _socket.MSG_CMSG_CLOEXEC)
        if not length:
            os._exit(1)  # the reader has ended
        if length == _END:
            return
        if flags & _socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        fd = int.from_bytes(files[0][2], sys.byteorder) if files else -1
        try:
            for fields in marshal.loads(_receive(reader, int.from_bytes(length, "little"))):
                yield _unpacked(fields, fd)
        finally:
            if fd >= 0:
                os.close(fd)
        reader.sendall(_WRITTEN)


def _receive(other: _socket.socket, size: int) -> bytes:
    """Give so many bytes; fewer if the other process has ended."""
    received = b""
    try:
        # A process that is stopped or frozen for a while gets what was there at that moment (signal(7)).
        while len(received) < size and (more := other.recv(size - len(received), _socket.MSG_WAITALL)):
            received += more
    except ConnectionError:
        pass
    return received
