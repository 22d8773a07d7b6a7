"""The hook with something in its way: which system calls it makes, and what becomes of it if one of them goes wrong.

A run of the hook is forked by a process that has imported it (`warm.Server`), and the kernel asks us about each call that
can be struck (`notify`). So start-up is neither run again for each call nor counted. `trace` is for what strace shows
better, and for the executable itself.

The calls up to the one that was struck have to be those of the recorded run. Only the thread that the hook begins with is
struck, or one that is told by a call which only it makes: threads take turns as they like. `changing_calls` can make sure
that the others change nothing.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support import hooks, notify, warm

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Callable

# In namespaces of its own, for the hook reads mountinfo and goes through the processes, and what others do on this machine
# would change what it reads.
_ALONE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")

# The process stops at the calls that are traced, and not at all of them. Signals would be dropped in silence.
_FEWER_STOPS = ("--seccomp-bpf",)

# When threads allocate memory, the C library opens a file of its own now and then, as chance will have it.
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}

# Calls that change something, and what they fail with: names of errors as strace knows them.
_CHANGING = {
    **dict.fromkeys(("mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat"), "ENOSPC"),
    **dict.fromkeys(("link", "linkat", "setxattr", "lsetxattr", "fsetxattr"), "ENOSPC"),
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range"), "ENOSPC"),
    **dict.fromkeys(("truncate", "ftruncate", "fallocate", "ioctl"), "ENOSPC"),
    **dict.fromkeys(("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"), "EIO"),
    **dict.fromkeys(("chown", "lchown", "fchown", "fchownat"), "EIO"),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat", "fchmodat2", "utimensat"), "EIO"),
    **dict.fromkeys(("removexattr", "lremovexattr", "fremovexattr"), "EIO"),
    **dict.fromkeys(("fsync", "fdatasync", "syncfs", "sync_file_range", "flock"), "EIO"),
}
_READING = {
    # Only asks whether there is an overlay: see system/kernel.py.
    "mount": "EPERM",
    **dict.fromkeys(("read", "pread64", "readv", "lseek", "readlink", "readlinkat", "getdents64"), "EIO"),
    **dict.fromkeys(("stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat"), "EIO"),
    **dict.fromkeys(("listxattr", "llistxattr", "flistxattr"), "EIO"),
    **dict.fromkeys(("getxattr", "lgetxattr", "fgetxattr", "statfs", "fstatfs", "close"), "EIO"),
    **dict.fromkeys(("dup", "fcntl"), "EMFILE"),
    "name_to_handle_at": "EOPNOTSUPP",
}
# What tells that opening changes something: the index of the argument that has it, and bits.
_CREATING = {"open": (1, os.O_CREAT | os.O_TRUNC), "openat": (2, os.O_CREAT | os.O_TRUNC)}
_OPENING = ("open", "openat", "openat2", "creat")
# What touches nothing but the process itself.
_PRIVATE_NAMES = """
    arch_prctl brk mmap munmap mremap mprotect madvise futex set_tid_address set_robust_list rseq
    prlimit64 getrlimit sysinfo sched_getaffinity sched_yield getrandom umask chdir getcwd
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack clone clone3 exit exit_group execve
    getpid gettid getppid getuid geteuid getgid getegid clock_gettime clock_nanosleep
    poll select pselect6 restart_syscall wait4 waitid uname prctl epoll_create1 pipe2 vfork fork kill memfd_create
    """
_PRIVATE = frozenset(_PRIVATE_NAMES.split())
# What the arguments are, as far as they say what is called for: a file descriptor, a path or another name, a number, the
# flags of opening, or something (-) that is left out, as all is that comes after: data, results, modes, lengths.
_ARGUMENTS = {
    **dict.fromkeys(
        ("mkdir", "mknod", "rmdir", "unlink", "truncate", "creat", "chmod", "chown", "lchown"), "p"
    ),
    **dict.fromkeys(("mkdirat", "mknodat", "fchownat", "fchmodat", "fchmodat2", "utimensat"), "fp"),
    **dict.fromkeys(("symlink", "link", "rename"), "pp"),
    **dict.fromkeys(("linkat", "renameat"), "fpfp"),
    **dict.fromkeys(("setxattr", "lsetxattr", "removexattr", "lremovexattr", "getxattr", "lgetxattr"), "pp"),
    **dict.fromkeys(("fsetxattr", "fremovexattr", "fgetxattr"), "fp"),
    **dict.fromkeys(
        ("write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate", "fchown", "fchmod"), "f"
    ),
    **dict.fromkeys(("fsync", "fdatasync", "syncfs", "sync_file_range"), "f"),
    **dict.fromkeys(
        ("read", "pread64", "readv", "getdents64", "fstat", "fstatfs", "flistxattr", "close", "dup"), "f"
    ),
    **dict.fromkeys(("stat", "lstat", "statfs", "readlink", "listxattr", "llistxattr"), "p"),
    **dict.fromkeys(("newfstatat", "statx", "readlinkat", "openat2"), "fp"),
    **dict.fromkeys(("ioctl", "fcntl", "flock"), "fn"),
    "access": "pn",
    "copy_file_range": "f-f",
    "faccessat": "fpn",
    "lseek": "f-n",
    "open": "po",
    "openat": "fpo",
    "renameat2": "fpfpn",
    "sendfile": "ff",
    "symlinkat": "pfp",
    "unlinkat": "fpn",
}
_OPENING_FLAGS = ("O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_DIRECTORY", "O_NOFOLLOW", "O_PATH")
_AT_FDCWD = -100 & 0xFFFFFFFF
# How many arguments say what is called for in what strace shows.
_KEPT_ARGUMENTS = {
    **dict.fromkeys(("read", "write", "pread64", "pwrite64", "getdents64"), 1),
    **dict.fromkeys(("listxattr", "llistxattr", "flistxattr", "readlink", "statfs", "fstatfs"), 1),
    **dict.fromkeys(("getxattr", "lgetxattr", "fgetxattr", "readlinkat", "name_to_handle_at"), 2),
    **dict.fromkeys(("setxattr", "lsetxattr", "fsetxattr"), 2),
}
# In the paths of the program's own file, of the standard library's modules, and of the C libraries that these use.
_CODE = (".pyz", "/python3", ".so")

_THREAD = re.compile(r"(?P<thread>\d+ +|)")  # there with -f only
_INJECTED = "(INJECTED)"
_UNFINISHED = " <unfinished ...>"
# The others are processes: they run programs of their own.
_NEW_THREAD = re.compile(r"clone3?\(.*CLONE_THREAD.* = (?P<number>\d+)$")
_END = re.compile(r"\+\+\+ (?:exited with (?P<status>\d+)|killed by (?P<signal>SIG\w+))")
_STRUCK_BY_SIGNAL = re.compile(r"(?:--- (?P<delivered>SIG\w+) |\+\+\+ killed by (?P<killed>SIG\w+))")

# The mount namespace that others mount in, too.
_SHARED = os.readlink("/proc/self/ns/mnt")
# By program, mount namespace, and what is mounted there.
_servers: dict[tuple[Path, str, str], warm.Server] = {}

# How many calls were struck, by what was done to them.
tried: dict[str, int] = {}


class DidNotStrikeError(AssertionError):
    """A run went another way than the recorded one, so that nothing was tried."""


@dataclass(frozen=True)
class Call:
    """One system call of a run.

    Attributes:
        name: of the system call.
        number: it is the first, second, ... of that name.
        text: it and its arguments, without what differs from run to run.
        changes: whether it changes something outside the process.
        error: what it can fail with; None: it cannot.
    """

    name: str
    number: int
    text: str
    changes: bool
    error: str | None

    def __str__(self) -> str:
        return f"{self.text} ({self.name} number {self.number})"


@dataclass(frozen=True)
class Hook:
    """Something to run again and again in the same way.

    Attributes:
        executable: the built file.
        bundle: the bundle of the stopped container.
        arguments: the command line.
        home: the directory that everything is in which belongs to this hook; the same hook elsewhere
            makes the same calls.
        scratch: a directory in it for what is needed on the way.
        refused: a system call that this file system cannot do: it fails with EINVAL, always. "" is none.
    """

    executable: Path
    bundle: hooks.Bundle
    home: Path
    scratch: Path
    arguments: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: the exit status; negative: the signal that killed it.
        stderr: what it logged.
    """

    status: int
    stderr: str

    def strange_lines(self) -> list[str]:
        """Give what is in stderr that is no log line: a traceback."""
        try:
            hooks.parse_log(self.stderr)
        except AssertionError as error:
            return [str(error)]
        return []


def run(hook: Hook, *arguments: str) -> hooks.Result:
    """Run the hook to its end, with nothing in its way.

    Args:
        hook: what is run.
        arguments: more of the command line.
    """
    status, stdout, stderr = _server(hook).run(
        [*hook.arguments, *arguments],
        hook.bundle.state(),
        cwd=hook.bundle.directory,
        environment=_ENVIRONMENT,
    )
    return hooks.Result(status, _decoded(stdout), _decoded(stderr))


def begin(hook: Hook) -> warm.Run:
    """Start the hook, which then waits for the container's state."""
    return _server(hook).start(hook.arguments, None, cwd=hook.bundle.directory, environment=_ENVIRONMENT)


def changing_calls(hook: Hook, *, status: int = 0, other_threads: bool = False) -> list[Call]:
    """Run the hook, and give the calls of its work that change something, and the one that ends it.

    Args:
        hook: what is run.
        status: how it ends.
        other_threads: make sure that threads other than the first one change nothing.
    """
    outcome, calls, others = _recorded(hook)
    assert outcome.status == status, outcome.stderr
    if other_threads:
        changing = [call for call in others if call.changes]
        assert not changing, f"a thread changes something by {changing[0]}"
    return [call for call in calls if call.changes or call.name == "exit_group"]


def failing_calls(hook: Hook, *, status: int = 0) -> list[Call]:
    """Run the hook, and give the calls of its work that can fail.

    Args:
        hook: what is run.
        status: how it ends.
    """
    outcome, calls, _ = _recorded(hook)
    assert outcome.status == status, outcome.stderr
    begin = next(index for index, call in enumerate(calls) if "config.json" in call.text)
    # A fault in reading the program itself is nothing that the program can do anything about.
    code = set(_indices_of_code(calls))
    readers = set(_indices_of_closing_readers(calls))
    return [
        call
        for index, call in enumerate(calls)
        if index >= begin and call.error is not None and index not in code and index not in readers
    ]


def trace(hook: Hook, *, only: str) -> list[Call]:
    """Run the hook, and give its calls of some kinds.

    Args:
        hook: what is run.
        only: names of calls, separated by commas.
    """
    outcome, log = _started(hook, (*_FEWER_STOPS, "-e", f"trace={only}"))
    assert outcome.status == 0, outcome.stderr
    return list(_calls(hook, log))


def with_paths(hook: Hook, names: Collection[str]) -> list[Call]:
    """Run the hook, and give those calls of its first thread that have these names.

    What a file descriptor leads to is in their texts, as strace shows it: 4</tmp>.
    """
    calls: list[Call] = []
    process = 0

    def answer(notification: notify.Notification) -> None:
        nonlocal process
        process = process or notification.thread
        if notification.thread == process:
            calls.append(_asked(hook, notification, 0, paths=True))
        _let(hook, notification)

    outcome = _run(hook, notify.filter_of(names), answer)
    assert outcome.status == 0, outcome.stderr
    return calls


def send(hook: Hook, calls: Sequence[Call], index: int, number: signal.Signals) -> Outcome:
    """Run the hook, and let a signal arrive at one of its calls. SIGKILL comes before the call is done.

    Args:
        hook: what is run.
        calls: those of a run that went the same way, as `changing_calls` gives them.
        index: the one among them.
        number: the signal.

    Raises:
        DidNotStrikeError: the run went another way.
    """
    went: list[Call] = []
    process = 0

    def answer(notification: notify.Notification) -> None:
        nonlocal process
        process = process or notification.thread
        if notification.thread == process and len(went) <= index:
            call = _asked(hook, notification, 0)
            if call.changes or call.name == "exit_group":
                went.append(call)
                if len(went) == index + 1 and call.text == calls[index].text:
                    notification.signal(number)
                    return
        _let(hook, notification)

    outcome = _run(hook, notify.filter_of({call.name for call in calls}, flags=_CREATING), answer)
    if [call.text for call in went] != [call.text for call in calls[: index + 1]]:
        raise DidNotStrikeError(f"{number.name} did not come at {calls[index]}\n{_last(went)}")
    tried[number.name] = tried.get(number.name, 0) + 1
    return outcome


def fail(hook: Hook, call: Call) -> Outcome:
    """Run the hook, and let one of its calls fail without being made.

    Args:
        hook: what is run.
        call: one of a run that went the same way, as `failing_calls` gives them.

    Raises:
        DidNotStrikeError: the run went another way.
    """
    struck: list[Call] = []
    made = 0
    process = 0

    def answer(notification: notify.Notification) -> None:
        nonlocal made, process
        process = process or notification.thread
        counts = notification.thread == process and notification.name == call.name
        made += counts
        if counts and made == call.number:
            struck.append(_asked(hook, notification, made))
            notification.fail(getattr(errno, str(call.error)))
        else:
            _let(hook, notification)

    outcome = _run(hook, notify.filter_of({call.name, *filter(None, [hook.refused])}), answer)
    if [each.text for each in struck] != [call.text]:
        raise DidNotStrikeError(f"{call.error} did not come at {call}, but at {_last(struck)}")
    tried[str(call.error)] = tried.get(str(call.error), 0) + 1
    return outcome


def strike(
    hook: Hook, name: str, number: int, what: signal.Signals | str, *, spare_first: bool = False
) -> Outcome:
    """Run the hook, and do something to a call that only one of its processes makes.

    Args:
        hook: what is run.
        name: of the system call.
        number: the first, second, ... one of a process.
        what: a signal, or the name of an error.
        spare_first: do nothing to the process that makes the first such call of all.

    Raises:
        DidNotStrikeError: there was no such call.
    """
    counts: dict[int, int] = {}
    spared = 0

    def answer(notification: notify.Notification) -> None:
        nonlocal spared
        if spare_first and notification.thread == (spared := spared or notification.thread):
            notification.go_on()
            return
        counts[notification.thread] = counts.get(notification.thread, 0) + 1
        if counts[notification.thread] != number:
            notification.go_on()
        elif isinstance(what, signal.Signals):
            notification.signal(what)
        else:
            notification.fail(getattr(errno, what))

    outcome = _run(hook, notify.filter_of([name]), answer)
    said = what.name if isinstance(what, signal.Signals) else what
    if max(counts.values(), default=0) < number:
        raise DidNotStrikeError(f"{said} did not come at {name} number {number}")
    tried[said] = tried.get(said, 0) + 1
    return outcome


def refuse(
    hook: Hook, calls: Mapping[str, str], *, directories: Collection[str] = ()
) -> tuple[Outcome, set[str]]:
    """Run the hook where some system calls fail whenever they are made, in all its processes.

    Args:
        hook: what is run.
        calls: names of calls, and of the errors that they fail with.
        directories: those of the calls that fail only for a file descriptor of a directory.

    Returns:
        How it ended, and which of the calls were made.
    """
    made: set[str] = set()

    def answer(notification: notify.Notification) -> None:
        name = notification.name
        if name in directories and not os.path.isdir(
            f"/proc/{notification.thread}/fd/{notification.arguments[0]}"
        ):
            notification.go_on()
            return
        made.add(name)
        notification.fail(getattr(errno, calls[name]))

    return _run(hook, notify.filter_of(calls), answer), made


class Stopped:
    """A run that waits on its way, at its first call of some name.

    Args:
        hook: what is run.
        name: of the system call. No other call is asked about.
    """

    def __init__(self, hook: Hook, name: str) -> None:
        self._run, self._listener = _start(hook, notify.filter_of([name]))
        self._at = self._next()
        assert self._at, f"it ended: {self._run.stderr!r}"

    def go_on(self) -> int:
        """Let it go on to its end; give its exit status."""
        while self._at:
            self._at.go_on()
            self._at = self._next()
        return self._end()

    def kill(self) -> None:
        """Kill it there."""
        assert self._at
        self._at.signal(signal.SIGKILL)
        assert self._next() is None
        assert self._end() == -signal.SIGKILL

    def _next(self) -> notify.Notification | None:
        while (status := self._run.wait()) is None:
            if notification := notify.receive(self._listener):
                return notification
        self._status = status
        return None

    def _end(self) -> int:
        self._run.close()
        return self._status


def count(hook: Hook, name: str) -> int:
    """Run the hook, and count how often its processes make a system call."""
    made = 0

    def answer(notification: notify.Notification) -> None:
        nonlocal made
        made += 1
        notification.go_on()

    outcome = _run(hook, notify.filter_of([name]), answer)
    assert outcome.status == 0, outcome.stderr
    return made


def _recorded(hook: Hook) -> tuple[Outcome, list[Call], list[Call]]:
    """Run the hook; give the calls of the thread that it begins with, and those of the others of its process."""
    calls: list[Call] = []
    others: list[Call] = []
    made: dict[tuple[int, str], int] = {}
    process = 0

    def answer(notification: notify.Notification) -> None:
        nonlocal process
        thread, name = notification.thread, notification.name
        process = process or thread
        if notify.process_of(thread) == process:
            made[thread, name] = made.get((thread, name), 0) + 1
            found = calls if thread == process else others
            found.append(_asked(hook, notification, made[thread, name]))
        _let(hook, notification)

    return _run(hook, notify.filter_but(_PRIVATE - {"exit_group"}), answer), calls, others


def _run(hook: Hook, filter: warm.Filter, answer: Callable[[notify.Notification], None]) -> Outcome:
    """Run the hook, and have its calls answered."""
    run, listener = _start(hook, filter)
    try:
        while (status := run.wait()) is None:
            if notification := notify.receive(listener):
                answer(notification)
        return Outcome(status, _decoded(run.stderr))
    finally:
        run.close()


def _start(hook: Hook, filter: warm.Filter) -> tuple[warm.Run, int]:
    """Start a run whose calls are asked about; give it, and where they come."""
    run = _server(hook).start(
        hook.arguments,
        hook.bundle.state(),
        cwd=hook.bundle.directory,
        environment=_ENVIRONMENT,
        supervised=filter,
    )
    assert run.listener is not None
    notify.hand_over(run.listener)
    return run, run.listener


def _let(hook: Hook, notification: notify.Notification) -> None:
    if notification.name == hook.refused:
        notification.fail(errno.EINVAL)
    else:
        notification.go_on()


def _server(hook: Hook) -> warm.Server:
    """Give what runs are forked from: a server with mounts of its own, which are the same for all runs.

    In a namespace that only this process mounts in, they are those that are there now. Where others mount too, they are those
    that were there first, and nothing that was mounted since counts.
    """
    namespace = os.readlink("/proc/self/ns/mnt")
    mounts = ""
    if namespace != _SHARED:
        with open("/proc/self/mountinfo") as file:
            mounts = file.read()
    wanted = (hook.executable, namespace, mounts)
    if wanted not in _servers:
        for stale in [each for each in _servers if each[:2] == wanted[:2]]:
            _servers.pop(stale).close()
        _servers[wanted] = warm.Server(hook.executable, prefix=_ALONE, environment=_ENVIRONMENT)
    return _servers[wanted]


@atexit.register
def _close_servers() -> None:
    for server in _servers.values():
        server.close()


def _started(hook: Hook, options: tuple[str, ...]) -> tuple[Outcome, list[str]]:
    """Run the hook under strace from its beginning."""
    log = hook.scratch / "strace"
    done = subprocess.run(
        # --seccomp-bpf wants -f.
        [*_ALONE, "strace", "-f", "-qq", "-o", log, *options, hook.executable, *hook.arguments],
        input=hook.bundle.state(),
        capture_output=True,
        env=_ENVIRONMENT,
        cwd=hook.bundle.directory,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, _decoded(done.stderr)), _read(log)


def _read(log: Path) -> list[str]:
    return _decoded(log.read_bytes()).splitlines()


def _decoded(text: bytes) -> str:
    return text.decode(errors="surrogateescape")


def _calls(hook: Hook, log: Sequence[str]) -> Iterator[Call]:
    return (call for call, _ in _calls_and_lines(hook, log))


def _calls_and_lines(hook: Hook, log: Sequence[str], *, only: str = "") -> Iterator[tuple[Call, str]]:
    """Give the calls of the thread that the hook began with, in their order, and their lines of the log.

    Args:
        hook: what was run.
        log: what strace wrote.
        only: what must be in a line; the others are counted, too.
    """
    counts: dict[str, int] = {}
    for line in _threads(log)[0]:
        name, bracket, rest = line.partition("(")
        if not bracket or not name.isidentifier():
            continue  # a signal, or the end
        counts[name] = counts.get(name, 0) + 1
        if only in line:
            yield _call(name, _local(hook, rest), counts[name]), line


def _threads(log: Sequence[str]) -> list[list[str]]:
    """Give the lines of each thread, first of the one that the hook began with, without its number.

    A call in which another thread came in between has two lines in the log, and one here.
    """
    threads: dict[str, list[str]] = {}
    for line in log:
        match = _THREAD.match(line)
        assert match
        lines = threads.setdefault(match["thread"], [])
        text = line[match.end() :]
        if lines and lines[-1].endswith(_UNFINISHED) and text.startswith("<... "):
            lines[-1] = lines[-1][: -len(_UNFINISHED)] + text.partition(" resumed>")[2]
        else:
            lines.append(text)
    return list(threads.values()) or [[]]


def _asked(hook: Hook, notification: notify.Notification, number: int, *, paths: bool = False) -> Call:
    """Say what a thread is about to do; it is its first, second, ... call of that name.

    Args:
        paths: whether to say what file descriptors lead to.
    """
    name = notification.name
    shown = []
    for kind, value in zip(_ARGUMENTS.get(name, ""), notification.arguments):
        if kind == "p":
            shown.append(f'"{notification.text(value)}"')
        elif kind == "o":
            shown.append(_flags(value))
        elif kind != "-":
            # A descriptor is an int, whatever the rest of the register has.
            value &= 0xFFFFFFFF
            shown.append("AT_FDCWD" if value == _AT_FDCWD else f"{value}")
            if paths and kind == "f" and value != _AT_FDCWD:
                shown[-1] += f"<{os.readlink(f'/proc/{notification.thread}/fd/{value}')}>"
    if name == "openat2":
        shown.append(_flags(int.from_bytes(notification.memory(notification.arguments[2], 8), sys.byteorder)))
    if name == "ioctl" and notification.arguments[1] == termios.TCGETS:
        shown[1] = "TCGETS"
    if name == "fcntl" and notification.arguments[1] in (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC):
        shown[1] = "F_DUPFD"
    return _call(name, _local(hook, f"{', '.join(shown)})"), number)


def _flags(value: int) -> str:
    return "|".join(name for name in _OPENING_FLAGS if value & getattr(os, name) == getattr(os, name))


def _local(hook: Hook, text: str) -> str:
    """Say HOME for the directory that belongs to the hook alone."""
    return text.replace(str(hook.home), "HOME").replace(hook.home.name, "HOME")


def _call(name: str, rest: str, number: int) -> Call:
    text = _text(name, rest)
    if name in _OPENING:
        creates = "O_CREAT" in rest or "O_TRUNC" in rest
        return Call(name, number, text, creates, "ENOSPC" if creates else "EMFILE")
    if name == "ioctl" and "TCGETS" in rest:
        return Call(name, number, text, False, None)  # whether it is a terminal: mostly it is not
    if name == "fcntl" and "F_DUPFD" not in rest:
        return Call(name, number, text, False, None)
    if name in _CHANGING:
        return Call(name, number, text, True, _CHANGING[name])
    if name in _READING:
        return Call(name, number, text, False, _READING[name])
    assert name in _PRIVATE, f"nothing is known of the system call {name}({rest}"
    return Call(name, number, text, False, None)


def _text(name: str, rest: str) -> str:
    """Leave out what differs from run to run: results, data, times, addresses, inodes, random names."""
    arguments = rest.rpartition(" = ")[0] or rest
    if name in _KEPT_ARGUMENTS:
        arguments = ", ".join(arguments.split(", ")[: _KEPT_ARGUMENTS[name]])
    arguments = re.sub(r"\{.*?\}|/\*.*?\*/|0x[0-9a-f]+", "#", arguments)
    arguments = re.sub(
        r"archive_overlay-[0-9a-f]+|(?<=passing-)[0-9a-f.-]+|[0-9a-f]{64}|(?<=/proc/)[0-9]+|[0-9]{2,}",
        "#",
        arguments,
    )
    return f"{name}({arguments.strip().rstrip(')')})"


def _indices_of_code(calls: Sequence[Call]) -> Iterator[int]:
    """Give the calls that import modules: all that name one, and from its opening to its closing."""
    inside = False
    for index, call in enumerate(calls):
        if any(part in call.text for part in _CODE):
            inside = inside or call.name in _OPENING
            yield index
        elif inside:
            yield index
            inside = call.name != "close"


def _indices_of_closing_readers(calls: Sequence[Call]) -> Iterator[int]:
    """Give the calls that close what was not written to: they cannot fail."""
    written: set[str] = set()
    for index, call in enumerate(calls):
        if call.name == "write":
            written.add(call.text.partition("(")[2])
        elif call.name == "close" and call.text.partition("(")[2] not in written:
            yield index
        elif call.name == "close":
            written.discard(call.text.partition("(")[2])


def _last(calls: Sequence[Call]) -> str:
    return "\n".join(["The calls of the run end with:", *(call.text for call in calls[-8:])])
