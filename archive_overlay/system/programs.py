"""Run programs: at fixed paths, with a deadline, and with none left behind."""

from __future__ import annotations

import os
import selectors
import subprocess
import time

from archive_overlay.errors import ArchiveError
from archive_overlay.system import kernel, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Callable

_PIECE = 64 * 1024
# How often it is looked whether a program has ended that says nothing, and left its output to a child, in seconds.
_LOOK = 0.2
# Of what a program says on standard error: what an error keeps of it, and what is passed on in all.
_LONGEST_SAID = 4096
_MOST_PASSED_ON = 256 * 1024
DEFAULT_MOST_OUTPUT = 8 * 1024 * 1024


class ProgramError(ArchiveError):
    """A program failed.

    Args:
        message: what is wrong.
        hint: what the user can do about it.
        said: the end of what the program wrote to standard error.
        timed_out: whether it was killed because it took too long.
    """

    def __init__(self, message: str, *, hint: str = "", said: str = "", timed_out: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.said = said
        self.timed_out = timed_out


def require_program(path: str, *, purpose: str, hint: str) -> None:
    """Make sure that a program can be run.

    Args:
        path: absolute.
        purpose: what it is needed for, after "cannot".
        hint: what the user can do if it is not there.

    Raises:
        ArchiveError: it cannot be run.
    """
    if not os.access(path, os.X_OK) or not os.path.isfile(path):
        raise ArchiveError(f"cannot {purpose}: there is no program {path}", hint=hint)


def run_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None,
    timeout: float,
    say: Callable[[str], object],
    data: bytes = b"",
    most_output: int = DEFAULT_MOST_OUTPUT,
    largest_file: int | None = None,
) -> bytes:
    """Run a program to its end.

    The kernel kills it if this process is killed; at the deadline, and if a signal ends this process, it is killed with
    the processes that it started. What it leaves behind when it ends by itself goes on, and is not waited for.

    Args:
        command: the program's absolute path, and its arguments.
        environment: its variables; None: those of this process, for programs that a person runs this way.
        timeout: in seconds.
        say: is called with each line that it writes to standard error.
        data: for its standard input.
        most_output: how many bytes it may write to standard output.
        largest_file: how many bytes a file may have that it writes; None: any number.

    Returns:
        What it wrote to standard output.

    Raises:
        ProgramError: it cannot be run, took too long, wrote too much, or ended with another status than 0.
    """
    deadline = time.monotonic() + timeout
    name = os.path.basename(command[0])
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else dict(environment),
            cwd="/",
            bufsize=0,
            start_new_session=True,
            preexec_fn=_before_it_begins(largest_file),
        )
    except OSError as error:
        raise ProgramError(f"cannot run {command[0]}: {error.strerror or error}") from error
    told = _Told(say)
    try:
        output = _converse(process, data, deadline, told, most_output)
        if output is None:
            raise ProgramError(f"{name} wrote more than {most_output} bytes", said=told.end)
        status = process.wait(max(deadline - time.monotonic(), 0))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise ProgramError(
            f"{name} did not end within {timeout:.0f} s", said=told.end, timed_out=True
        ) from None
    finally:
        _end(process)
        told.finish()
    if status:
        ended = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
        raise ProgramError(f"{name} {ended}{f': {told.last}' if told.last else ''}", said=told.end)
    return output


def _before_it_begins(largest_file: int | None) -> Callable[[], None] | None:
    """Return what the new process does before it becomes the program; None: nothing."""
    end_with_parent = kernel.end_with_parent if kernel.can_end_with_parent() else None
    if largest_file is None:
        return end_with_parent
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        if end_with_parent:
            end_with_parent()

    return limited


def _converse(
    process: subprocess.Popen[bytes], data: bytes, deadline: float, told: _Told, most_output: int
) -> bytes | None:
    """Write and read until the program has closed its output, or has ended; None: it wrote too much.

    Raises:
        TimeoutError: it took too long.
    """
    assert process.stdin
    assert process.stdout
    assert process.stderr
    output = bytearray()
    rest = memoryview(data)
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        if rest:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            # Asked before: what it wrote last is read then, whenever it ends.
            ended = process.poll() is not None
            ready = selector.select(min(left, _LOOK))
            if not ready and ended:
                break
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest[:_PIECE]) :]
                    except BlockingIOError:
                        continue
                    except OSError:  # it has stopped reading
                        rest = rest[:0]
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                read = os.read(key.fd, _PIECE)
                if not read:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    told.add(read)
                else:
                    output += read
                    if len(output) > most_output:
                        return None
    return bytes(output)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that no process of a program is left."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signals.KILL)
        except OSError:
            process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


class _Told:
    """What a program says, line by line.

    Args:
        say: takes the lines.

    Attributes:
        end: the end of it all.
        last: its last line that is not empty.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.end = ""
        self.last = ""
        self._say = say
        self._begun = b""
        self._passed_on = 0

    def add(self, data: bytes) -> None:
        """Add some bytes."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        self._begun = self._begun[-_LONGEST_SAID:]
        for line in lines:
            self._line(line)

    def finish(self) -> None:
        """Add the last line, which has no newline."""
        self._line(self._begun)
        self._begun = b""

    def _line(self, data: bytes) -> None:
        line = data[-_LONGEST_SAID:].decode(errors="replace").strip()
        if not line:
            return
        self.last = line
        self.end = f"{self.end}{line}\n"[-_LONGEST_SAID:]
        self._passed_on += len(line)
        if self._passed_on <= _MOST_PASSED_ON:
            self._say(line)
