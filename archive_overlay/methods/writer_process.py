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
from itertools import chain
from time import monotonic

from archive_overlay.errors import ArchiveError, fail, internal_error
from archive_overlay.overlay.attributes import NO_ATTRIBUTES
from archive_overlay.overlay.change import DIRECTORY, FILE, KINDS, TOP, Change, LargeAttributes, TreePath
from archive_overlay.system import kernel, signals
from archive_overlay.system.activity import NOW
from archive_overlay.system.positions import positions
from archive_overlay.system.processors import processors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable, NoReturn

    Write = Callable[[Iterator[Change]], Any]

# What is sent at once. A change set that is no larger is not worth a process.
_MOST_CHANGES = 256
_MOST_BYTES = 64 * 1024
# The largest file that is sent with its contents.
_SMALL = 32 * 1024
# How many messages may be under way: this bounds the memory that they take.
_MOST_UNDER_WAY = 4
# The file, and the time in seconds, that show that it takes long. A second thread makes each system call a little slower.
_LARGE = 64 * 1024 * 1024
_LONG = 5.0
_LENGTH = 8  # bytes of a message's length, which comes before it
_END = bytes(_LENGTH)
_INT = 4
_MOST_FILES = 2  # that come with a message: one with data, and what has its attributes
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
    if batch.full and (jobs or processors()) == 1:
        return write(_watched(_all(batch, changes)))
    if not batch.full:
        return write(_all(batch, changes))
    writer = _Writer()
    try:
        if not writer.start(write):
            return write(_watched(_all(batch, changes)))
        begun = monotonic()
        writer.send(batch)
        for change in changes:
            batch.add(change)
            if batch.full:
                if batch.size >= _LARGE or monotonic() - begun > _LONG:
                    NOW.takes_long()
                writer.send(batch)
        NOW.takes_long()
        writer.send(batch)
        return writer.result()
    finally:
        writer.end()


def _all(batch: _Batch, changes: Iterator[Change]) -> Iterator[Change]:
    return chain(batch.changes, changes)


def _watched(changes: Iterator[Change]) -> Iterator[Change]:
    """Give changes, and say when it takes long to write them."""
    begun = monotonic()
    for number, change in enumerate(changes):
        if change.size >= _LARGE or (number % _MOST_CHANGES == 0 and monotonic() - begun > _LONG):
            NOW.takes_long()
        yield change


class _Batch:
    """Changes that are sent together.

    Attributes:
        changes: small files have their contents with them.
        full: whether it is to be sent before anything else is read.
        size: bytes of the files.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.clear()

    def clear(self) -> None:
        self.changes.clear()
        self.full = False
        self.size = 0
        self._bytes = 0

    def add(self, change: Change) -> None:
        self.changes.append(change)
        if change.fd >= 0:
            self.size += change.size
            if change.sparse or change.size > _SMALL:
                self.full = True  # its file is open until the next change is taken
            else:
                change.data = change.contents()
                change.fd = -1
                self._bytes += change.size
        if change.attributes:
            attributes = change.attributes
            if isinstance(attributes, LargeAttributes):
                self.full = True
            else:
                self._bytes += sum(map(len, attributes)) + sum(map(len, attributes.values()))
        if self._bytes >= _MOST_BYTES or len(self.changes) >= _MOST_CHANGES:
            self.full = True


_PLAIN = 10  # fields of a file that has nothing special


def _packed(change: Change) -> tuple[Any, ...]:
    """Return what is sent of a change. Of the directory that it is in, the depth says which it is."""
    fields = (
        change.directory.depth,
        change.name,
        change.mode,
        change.uid,
        change.gid,
        change.atime_ns,
        change.mtime_ns,
        change.size,
        change.sparse,
        change.data,
    )
    if change.kind is FILE and not change.attributes and not change.shared:
        return fields
    attributes = change.attributes
    large = (attributes.sizes, attributes.replaced) if isinstance(attributes, LargeAttributes) else None
    return (
        *fields,
        change.kind,
        None if large else attributes,
        large,
        change.shared,
        change.link_to is not None,
        change.target,
        change.rdev,
        change.opaque,
    )


class _Unpacking:
    """What the writing process remembers of earlier changes, to make the next ones of what comes."""

    def __init__(self) -> None:
        self._way = [TOP]  # the directories that come next may be in, from the root down
        self._first_names: dict[int, TreePath] = {}  # of files with several names, by their number

    def unpacked(self, fields: tuple[Any, ...], fds: list[int]) -> Change:
        """Make a change.

        Args:
            fields: from `_packed`.
            fds: of the last change of a message: its file and what has its attributes, as far as they came.
        """
        change = Change.__new__(Change)
        depth, change.name, change.mode, change.uid, change.gid = fields[:5]
        change.atime_ns, change.mtime_ns, change.size, change.sparse, change.data = fields[5:_PLAIN]
        way = self._way
        while len(way) > depth + 1:
            way.pop().forget()
        directory = change.directory = way[-1]
        if len(fields) == _PLAIN:
            change.kind, change.attributes = FILE, NO_ATTRIBUTES
            if change.data is None:
                change.fd = fds[0]
            return change
        (
            kind,
            change.attributes,
            large,
            change.shared,
            is_link,
            change.target,
            change.rdev,
            change.opaque,
        ) = fields[_PLAIN:]
        change.kind = KINDS[kind]
        if change.kind is DIRECTORY and change.name:
            way.append(TreePath(directory, change.name))
        elif is_link:
            change.link_to = self._first_names[change.shared]
        elif change.shared:
            self._first_names[change.shared] = TreePath(directory, change.name)
        if large:
            sizes, replaced = large
            path = TreePath(directory, change.name) if change.name else TOP
            change.attributes = LargeAttributes(fds[-1], sizes, replaced, path)
        has_file = change.kind is FILE and change.link_to is None and change.data is None
        if has_file:
            change.fd = fds[0]
        return change


class _Writer:
    """The process that writes, as the one that reads sees it."""

    def __init__(self) -> None:
        self._pid = 0
        self._under_way: list[int] = []  # bytes of files in each message

    def start(self, write: Write) -> bool:
        """Start it, and say whether that could be done.

        The number of processes may be limited, and a filter of system calls may refuse what the two need. A filter is the
        same for both: nothing that works here fails there.
        """
        try:
            with signals.HeldOff():  # until it is known what to end
                self._socket, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
                if not (kernel.can_end_with_parent() and _can_talk(self._socket, other)):
                    return False
                reader = os.getpid()
                NOW.fork_follows()
                self._pid = os.fork()
                if not self._pid:
                    self._socket.close()
                    _be_the_writer(other, write, reader)
                other.close()
        except OSError:
            return False
        NOW.behind = self._behind
        return True

    def send(self, batch: _Batch) -> None:
        """Send changes, and clear the batch.

        Raises:
            ArchiveError: something failed there.
        """
        while len(self._under_way) >= _MOST_UNDER_WAY:
            self._answer()
        message = marshal.dumps([_packed(change) for change in batch.changes], _MARSHAL)
        fds = _open_files(batch.changes[-1]) if batch.changes else ()
        files = []
        if fds:
            data = b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in fds)
            files.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data))
        try:
            self._socket.sendmsg([len(message).to_bytes(_LENGTH, "little")], files)
            self._socket.sendall(message)
        except ConnectionError:
            self.result()  # it says why there is none
        except OSError as error:
            fail("cannot send changes to the process that writes the archive", error)
        self._under_way.append(batch.size)
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
        NOW.behind = None
        with signals.HeldOff():
            if self._pid:
                os.kill(self._pid, signals.KILL)
                os.waitpid(self._pid, 0)
                self._pid = 0
                self._socket.close()

    def _behind(self) -> int:
        """Give how many bytes of files are under way. Another thread asks."""
        done = sum(position for _, position in positions(self._pid)) if self._pid else 0
        return max(sum(tuple(self._under_way)) - done, 0)

    def _answer(self) -> tuple[Any] | None:
        """Wait for one answer, and give the result if it is that."""
        answer = _receive(self._socket, 1)
        if answer == _WRITTEN:
            del self._under_way[0]
            return None
        size = int.from_bytes(_receive(self._socket, _LENGTH), "little")
        message = _receive(self._socket, size)
        if len(message) < size or not answer:
            raise ArchiveError(
                "the process that writes the archive was killed",
                hint="if the kernel's log says out of memory, raise the memory limit",
            )
        said = marshal.loads(message)
        if answer == _FAILED:
            raise ArchiveError(said[0], hint=said[1])
        return (said,)


def _can_talk(reader: _socket.socket, writer: _socket.socket) -> bool:
    """Return whether the calls by which the two talk are allowed, by making each of them."""
    try:
        reader.sendmsg([_WRITTEN])
        writer.recvmsg(len(_WRITTEN))
        writer.sendall(_WRITTEN)
        reader.recv(len(_WRITTEN))
    except OSError:
        return False
    return True


def _be_the_writer(reader: _socket.socket, write: Write, reader_pid: int) -> NoReturn:
    """Write what comes, answer, and end this process."""
    NOW.watch = None
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


def _open_files(change: Change) -> list[int]:
    """Return what a change needs to have open: its file, and what has its attributes."""
    fds = [change.fd] if change.fd >= 0 else []
    if isinstance(change.attributes, LargeAttributes):
        fds.append(change.attributes.fd)
    return fds


def _received(reader: _socket.socket) -> Iterator[Change]:
    unpacking = _Unpacking()
    while True:
        length, files, flags, _ = reader.recvmsg(
            _LENGTH, _socket.CMSG_SPACE(_MOST_FILES * _INT), _socket.MSG_CMSG_CLOEXEC
        )
        if not length:
            os._exit(1)  # the reader has ended
        if length == _END:
            return
        if flags & _socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        data = files[0][2] if files else b""
        fds = [int.from_bytes(data[at : at + _INT], sys.byteorder) for at in range(0, len(data), _INT)]
        try:
            for fields in marshal.loads(_receive(reader, int.from_bytes(length, "little"))):
                yield unpacking.unpacked(fields, fds)
        finally:
            for fd in fds:
                os.close(fd)
        reader.sendall(_WRITTEN)


def _receive(other: _socket.socket, size: int) -> bytes:
    """Return so many bytes; fewer if the other process has ended."""
    received = b""
    try:
        # A process that is stopped or frozen for a while gets what was there at that moment (signal(7)).
        while len(received) < size and (more := other.recv(size - len(received), _socket.MSG_WAITALL)):
            received += more
    except ConnectionError:
        pass
    return received
