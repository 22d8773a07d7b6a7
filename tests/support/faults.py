"""The hook under strace: which system calls it makes, and what becomes of it if one of them goes wrong.

Two ways lead to a single call, because each is fast at what the other cannot do:

* A signal is put there by a strace that attaches when start-up is over. The spec is a FIFO, so the hook
  waits for it until strace is there, and start-up is neither traced nor counted.
* A failure is put there by a strace that starts the hook with --seccomp-bpf, which stops the process at
  that one kind of call only (and would drop signals in silence).

Either way the log of the run has to show that the call was struck that was meant. Only the thread that the
hook begins with is struck: strace counts for each thread by itself, and threads take turns as they like.
`changing_calls` can make sure that the others change nothing.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import hooks, overlays

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# In namespaces of its own, for the hook reads mountinfo and goes through the processes. They are made from one in
# which nothing is mounted or unmounted any more: what others do on this machine would change what the hook reads.
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
    **dict.fromkeys(("read", "pread64", "readv", "lseek", "readlink", "readlinkat", "getdents64"), "EIO"),
    **dict.fromkeys(("stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat"), "EIO"),
    **dict.fromkeys(("listxattr", "llistxattr", "flistxattr"), "EIO"),
    **dict.fromkeys(("getxattr", "lgetxattr", "fgetxattr", "statfs", "fstatfs", "close"), "EIO"),
    **dict.fromkeys(("dup", "fcntl"), "EMFILE"),
}
_OPENING = ("open", "openat", "openat2", "creat")
# What touches nothing but the process itself.
_PRIVATE_NAMES = """
    arch_prctl brk mmap munmap mremap mprotect madvise futex set_tid_address set_robust_list rseq
    prlimit64 getrlimit sysinfo sched_getaffinity sched_yield getrandom umask chdir getcwd
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack clone clone3 exit exit_group execve
    getpid gettid getppid getuid geteuid getgid getegid clock_gettime clock_nanosleep
    poll select pselect6 restart_syscall wait4 waitid uname prctl epoll_create1 pipe2 vfork fork kill
    """
_PRIVATE = frozenset(_PRIVATE_NAMES.split())
# How many arguments say what is called for; those after them are data and results.
_KEPT_ARGUMENTS = {
    **dict.fromkeys(("read", "write", "pread64", "pwrite64", "getdents64"), 1),
    **dict.fromkeys(("listxattr", "llistxattr", "flistxattr", "readlink"), 1),
    **dict.fromkeys(("getxattr", "lgetxattr", "fgetxattr", "readlinkat"), 2),
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
    """

    executable: Path
    bundle: hooks.Bundle
    home: Path
    scratch: Path
    arguments: tuple[str, ...] = ()


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


def changing_calls(hook: Hook, *, status: int = 0, other_threads: bool = False) -> list[Call]:
    """Run the hook, and give the calls of its work that change something, and the one that ends it.

    Args:
        hook: what is run.
        status: how it ends.
        other_threads: make sure that threads other than the first one change nothing.
    """
    outcome, log = _attached(hook, ("-f",) if other_threads else ())
    assert outcome.status == status, outcome.stderr
    if other_threads:
        _expect_nothing_changed_by_other_threads(hook, log)
    return [call for call in _calls(hook, log) if call.changes or call.name == "exit_group"]


def failing_calls(hook: Hook, *, status: int = 0) -> list[Call]:
    """Run the hook, and give the calls of its work that can fail.

    Args:
        hook: what is run.
        status: how it ends.
    """
    outcome, log = _started(hook, ("-e", "trace=all"))
    assert outcome.status == status, outcome.stderr
    calls = list(_calls(hook, log))
    begin = next(index for index, call in enumerate(calls) if "config.json" in call.text)
    # A fault in reading the program itself is nothing that the program can do anything about.
    code = set(_indices_of_code(calls))
    readers = set(_indices_of_closing_readers(calls))
    return [
        call
        for index, call in enumerate(calls)
        if index >= begin and call.error is not None and index not in code and index not in readers
    ]


def trace(hook: Hook, *, only: str, options: tuple[str, ...] = ()) -> list[Call]:
    """Run the hook, and give its calls of some kinds.

    Args:
        hook: what is run.
        only: names of calls, separated by commas.
        options: further options of strace.
    """
    outcome, log = _started(hook, (*_FEWER_STOPS, "-e", f"trace={only}", *options))
    assert outcome.status == 0, outcome.stderr
    return list(_calls(hook, log))


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
    call = calls[index]
    outcome, log = _attached(
        hook, ("-e", f"inject={call.name}:signal={number.name[3:]}:when={call.number}"), calls
    )
    seen = [
        each.text
        for each in _calls(hook, _up_to_signal(log, number))
        if each.changes or each.name == "exit_group"
    ]
    # A signal that the hook holds back for a while arrives later than it was sent.
    if seen[: index + 1] != [each.text for each in calls[: index + 1]]:
        raise DidNotStrikeError(f"{number.name} did not come at {call}\n{_last(log)}")
    tried[number.name] = tried.get(number.name, 0) + 1
    return outcome


def fail(hook: Hook, call: Call, *more: str) -> Outcome:
    """Run the hook, and let one of its calls fail without being done.

    Args:
        hook: what is run.
        call: one of a run that went the same way, as `failing_calls` gives them.
        more: further options of strace.

    Raises:
        DidNotStrikeError: the run went another way.
    """
    outcome, log = _started(
        hook,
        (
            *(*_FEWER_STOPS, "-e", f"trace={call.name}"),
            *("-e", f"inject={call.name}:error={call.error}:when={call.number}", *more),
        ),
    )
    struck = [call for call, line in _calls_and_lines(hook, log, only=_INJECTED) if _INJECTED in line]
    if [(each.number, each.text) for each in struck] != [(call.number, call.text)]:
        raise DidNotStrikeError(f"{call.error} did not come at {call}, but at {struck}\n{_last(log)}")
    tried[str(call.error)] = tried.get(str(call.error), 0) + 1
    return outcome


def strike(hook: Hook, call: str, number: int, what: str) -> Outcome:
    """Run the hook, and do something to a call that only one of its processes makes.

    Args:
        hook: what is run.
        call: name of the system call.
        number: the first, second, ... one of a process.
        what: as strace's option inject has it: "signal=KILL" or "error=EIO".

    Raises:
        DidNotStrikeError: there was no such call.
    """
    stops = _FEWER_STOPS if what.startswith("error=") else ()
    outcome, log = _started(
        hook, (*stops, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={number}")
    )
    name = what.partition("=")[2]
    if not any(_INJECTED in line or f"SIG{name}" in line for line in log):
        raise DidNotStrikeError(f"{what} did not come at {call} number {number}\n{_last(log)}")
    tried[name] = tried.get(name, 0) + 1
    return outcome


def count(hook: Hook, call: str) -> int:
    """Run the hook, and count how often its processes make a system call."""
    outcome, log = _started(hook, (*_FEWER_STOPS, "-e", f"trace={call}"))
    assert outcome.status == 0, outcome.stderr
    return sum(f"{call}(" in line for line in log)


def _alone() -> tuple[str, ...]:
    """Give the command that runs another one with the mounts that are here now, the same each time."""
    return _alone_from(os.readlink("/proc/self/ns/mnt"))


@cache
def _alone_from(mounts: str) -> tuple[str, ...]:
    """Give it for this process, which is in the namespace `mounts`: `Overlay.inside` has others."""
    still = overlays.Namespace(rootless=False)
    atexit.register(still.close)
    return ("nsenter", f"--mount={still.path}", "--", *_ALONE)


def _started(hook: Hook, options: tuple[str, ...]) -> tuple[Outcome, list[str]]:
    """Run the hook under strace from its beginning."""
    log = hook.scratch / "strace"
    done = subprocess.run(
        # --seccomp-bpf wants -f.
        [*_alone(), "strace", "-f", "-qq", "-o", log, *options, hook.executable, *hook.arguments],
        input=hook.bundle.state(),
        capture_output=True,
        env=_ENVIRONMENT,
        cwd=hook.bundle.directory,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, _decoded(done.stderr)), _read(log)


def _attached(hook: Hook, options: tuple[str, ...], calls: Sequence[Call] = ()) -> tuple[Outcome, list[str]]:
    """Run the hook, and let strace see what it does after it was started."""
    log = hook.scratch / "strace"
    log.unlink(missing_ok=True)
    traced = ("-e", f"trace={','.join(sorted({call.name for call in calls}))}") if calls else ()
    spec = hook.bundle.directory / "config.json"
    text = spec.read_bytes()
    spec.unlink()
    os.mkfifo(spec)
    try:
        with subprocess.Popen(
            [*_alone(), hook.executable, *hook.arguments],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
            cwd=hook.bundle.directory,
        ) as process:
            assert process.stdin
            assert process.stderr
            process.stdin.write(hook.bundle.state())
            process.stdin.close()
            fifo = _open_when_read(spec, process)
            (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            with subprocess.Popen(
                ["strace", "-o", log, "-p", pid, *traced, *options],
                stderr=subprocess.PIPE,
            ) as tracer:
                assert tracer.stderr
                attached = tracer.stderr.readline()
                with open(fifo, "wb") as pipe:
                    pipe.write(text)
                assert attached.endswith(b"attached\n"), attached
                stderr = process.stderr.read()
                tracer.communicate()
    finally:
        spec.unlink()
        spec.write_bytes(text)
    lines = _read(log)
    # Of a process that was killed unshare gives no status, and says so.
    ends = [match for line in lines if (match := _END.search(line))]
    assert ends, f"{stderr!r}\n{_last(lines)}"
    end = ends[-1]
    status = int(end["status"]) if end["status"] else -signal.Signals[end["signal"]]
    return Outcome(status, re.sub("^unshare: .*\n", "", _decoded(stderr), flags=re.MULTILINE)), lines


def _open_when_read(fifo: Path, reader: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert reader.poll() is None, "the hook ended before it read its spec"
            time.sleep(0.001)
            continue
        os.set_blocking(fd, True)
        return fd


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
            rest = rest.replace(str(hook.home), "HOME").replace(hook.home.name, "HOME")
            yield _call(name, rest, counts[name]), line


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


def _expect_nothing_changed_by_other_threads(hook: Hook, log: list[str]) -> None:
    main, *others = _threads(log)
    started = {match["number"] for line in main if (match := _NEW_THREAD.match(line))}
    numbers = list(dict.fromkeys(match["thread"].strip() for line in log if (match := _THREAD.match(line))))
    for number, lines in zip(numbers[1:], others):
        if number in started:
            changing = [call for call in _calls(hook, lines) if call.changes]
            assert not changing, f"a thread changes something by {changing[0]}"


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
    arguments = re.sub(r"archive_overlay-[0-9a-f]+|[0-9a-f]{64}|(?<=/proc/)[0-9]+|[0-9]{2,}", "#", arguments)
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


def _up_to_signal(log: list[str], number: signal.Signals) -> list[str]:
    for index, line in enumerate(log):
        match = _STRUCK_BY_SIGNAL.match(line)
        if match and number.name in (match["delivered"], match["killed"]):
            return log[:index]
    return []


def _last(log: Sequence[str]) -> str:
    return "\n".join(["The log of the run ends with:", *log[-8:]])
