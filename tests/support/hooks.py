"""What an OCI runtime does around a hook: a bundle, a container state on stdin, an environment."""

# Without `from __future__ import annotations`: the name is a function's here.
import atexit
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Callable, Optional, Union

from tests.support import warm

TOP = Path(__file__).resolve().parents[2]
PREFIX = "com.launchplatform.oci-hooks.archive-overlay"

# Isolated, as the built file is: nothing of the caller's environment counts. The byte code is kept, so
# that not every run compiles the package anew, but not among the sources.
_FROM_CHECKOUT = (
    sys.executable,
    "-ISXutf8",
    "-X",
    f"pycache_prefix={TOP / '.cache' / 'bytecode'}",
    "-c",
    f"import sys; sys.path.insert(0, {str(TOP)!r}); from archive_overlay.cli import main; sys.exit(main())",
)
_LINE = re.compile(r'time="(?P<time>[^"]+)" level=(?P<level>[a-z]+) msg="(?P<message>(?:[^"\\]|\\.)*)"')
# The container's short id, and its name in parentheses.
_CONTAINER = re.compile(r"(?P<container>[^\s:]+(?: \([^)]*\))?): ")

# What every container has besides the mounts that a test is about.
_ORDINARY_MOUNTS = (
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
)


def annotations(name: str, **keys: object) -> dict[str, str]:
    """Ask for one archive.

    Args:
        name: the archive's name, a part of each annotation's key.
        keys: values by their key, with underscores for dashes: `archive_to=path`.
    """
    return {f"{PREFIX}.{name}.{key.replace('_', '-')}": str(value) for key, value in keys.items()}


def overlay_mount(
    destination: str,
    *,
    upper: Path,
    lowers: Sequence[Path],
    work: Optional[Path] = None,
    userxattr: bool = False,
) -> dict[str, Any]:
    """Give a mount of type overlay as podman writes it into the spec.

    Args:
        destination: where the container sees it.
        upper: the upperdir.
        lowers: the lowerdirs, topmost first.
        work: the workdir; "work" beside the upperdir by default.
        userxattr: whether it is a mount of a user namespace.
    """
    options = [
        "lowerdir=" + ":".join(str(lower).replace("\\", "\\\\").replace(":", "\\:") for lower in lowers),
        f"upperdir={upper}",
        f"workdir={work or upper.parent / 'work'}",
        "private",
    ]
    if userxattr:
        options.append("userxattr")
    source = str(upper.parent / "merge")
    return {"destination": destination, "type": "overlay", "source": source, "options": options}


class Bundle:
    """A bundle on disk, and the state of the container that was made from it.

    Args:
        directory: where config.json is written; created if need be.
        mounts: the spec's mounts, in order, after those that every container has.
        annotations: the spec's annotations.
        root: the root file system's directory.
        linux: more of the spec's `linux`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mounts: Iterable[Mapping[str, Any]] = (),
        annotations: Optional[Mapping[str, str]] = None,
        root: Optional[Path] = None,
        linux: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self.directory = directory
        self.spec: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": str(root or directory / "rootfs")},
            "hostname": "box",
            "mounts": [*_ORDINARY_MOUNTS, *mounts],
            "annotations": {"org.opencontainers.image.stopSignal": "15", **(annotations or {})},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], **(linux or {})},
        }
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.spec))

    def state(self) -> bytes:
        """Give the container's state, as the runtime writes it to the hook's stdin."""
        state = {
            "ociVersion": "1.0.2",
            "id": "c1",
            "status": "stopped",
            "bundle": str(self.directory),
            "annotations": self.spec["annotations"],
        }
        return json.dumps(state).encode()


@dataclass(frozen=True)
class Line:
    """A line of the log; `message` is unescaped, and without the container that it begins with."""

    level: str
    message: str
    container: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        status: the exit status; negative: the signal that killed it.
    """

    status: int
    stdout: str
    stderr: str

    def lines(self) -> list[Line]:
        """Parse stderr; every line has to be a log line."""
        return parse_log(self.stderr)

    def messages(self, level: str) -> list[str]:
        """Give the messages of one level, in order."""
        return [line.message for line in self.lines() if line.level == level]

    def only_error(self) -> str:
        """Give the one line of level error; a failure is told once, in one line."""
        errors = self.messages("error")
        assert len(errors) == 1, self.stderr
        return errors[0]


def parse_log(text: str) -> list[Line]:
    """Parse log lines in the logfmt of the container tools."""
    lines = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        assert match, f"not a log line: {line!r}"
        message = re.sub(r"\\(.)", r"\1", match["message"])
        container, message = split_off_container(message)
        lines.append(Line(match["level"], message, container))
    return lines


def split_off_container(message: str) -> tuple[str, str]:
    """Split what the hook logs into the container, "" if it is not known yet, and the message."""
    named = _CONTAINER.match(message)
    return (named["container"], message[named.end() :]) if named else ("", message)


def command(executable: Optional[Path] = None) -> list[str]:
    """Give the command that runs the hook: the built file, or the package in this checkout."""
    return [str(executable)] if executable else list(_FROM_CHECKOUT)


def run_hook(
    subject: Union[Bundle, bytes],
    *arguments: Union[str, Path],
    executable: Optional[Path] = None,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[Path] = None,
    before: Optional[Callable[[], None]] = None,
) -> Result:
    """Run the hook to its end.

    Where nothing is asked for that has to do with how a program starts, the process is forked by one that has imported it.

    Args:
        subject: the bundle of the stopped container, or the bytes to put on stdin.
        arguments: the command line.
        executable: the built file; None: the package in this checkout.
        env: the environment; empty by default, as podman makes it.
        cwd: the working directory; the bundle by default, as podman does.
        before: called in the new process before the hook starts: resource limits, closed descriptors.
    """
    if isinstance(subject, Bundle):
        state, cwd = subject.state(), cwd or subject.directory
    else:
        state = subject
    if (
        not executable
        and not env
        and not before
        and len(state) <= warm.LARGEST_STATE
        and arguments[:1] != ("check",)
    ):
        status, stdout, stderr = keep_warm().run(
            [*map(str, arguments)], state, cwd=cwd or Path("/"), environment={}, here=True, timeout=60
        )
        return Result(status, _decoded(stdout), _decoded(stderr))
    # The time limit is a net for tests of hanging: all of them take a small part of it.
    done = subprocess.run(
        [*command(executable), *map(str, arguments)],
        input=state,
        capture_output=True,
        env=dict(env or {}),
        cwd=cwd or "/",
        preexec_fn=before,
        timeout=60,
        check=False,
    )
    return Result(done.returncode, _decoded(done.stdout), _decoded(done.stderr))


@cache
def keep_warm() -> warm.Server:
    """Give the process that runs are forked from, which has to be made before a namespace is entered."""
    server = warm.Server(None)
    atexit.register(server.close)
    return server


def _decoded(text: bytes) -> str:
    return text.decode(errors="surrogateescape")


def run_on_terminal(state: bytes, *arguments: Union[str, Path], stdin: bool = False) -> Result:
    """Run the hook with a terminal as stderr, as a person at a shell does.

    Args:
        state: what is put on stdin.
        arguments: the command line.
        stdin: make the terminal stdin too, instead.

    Returns:
        `stderr` is what the terminal showed, with plain line ends.
    """
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*command(), *map(str, arguments)],
        stdin=slave if stdin else subprocess.PIPE,
        stderr=slave,
        env={},
    ) as process:
        os.close(slave)
        if process.stdin:
            process.stdin.write(state)
            process.stdin.close()
        shown = b""
        while part := _read_terminal(master):
            shown += part
    os.close(master)
    return Result(process.returncode, "", shown.decode().replace("\r\n", "\n"))


def _read_terminal(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:
        return b""  # EIO: nobody has the other end open any more
