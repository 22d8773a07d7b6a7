"""What a person at a shell does with history: commands, and layers as anybody may have made them."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

from tests.support import hooks

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable


def run(
    *arguments: str | Path, cwd: Path | None = None, before: Callable[[], None] | None = None
) -> hooks.Result:
    """Run a command to its end, without a terminal."""
    return hooks.run_hook(b"", *arguments, cwd=cwd, before=before)


def output_of(*arguments: str | Path) -> str:
    """Run a command that has to succeed in silence, and give what it wrote."""
    result = run(*arguments)
    assert (result.status, result.stderr) == (0, "")
    return result.stdout


def complaint_of(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a command that cannot be done; give the one line that says so."""
    result = run(*arguments, cwd=cwd)
    assert (result.status, result.stdout) == (1, ""), result
    assert result.stderr.startswith("archive_overlay: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def shown_on_terminal(*arguments: str | Path, **environment: str) -> str:
    """Run a command that has to succeed with a terminal as output, and give what that showed."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*hooks.command(), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={"TERM": "xterm", **environment},
    ) as process:
        os.close(slave)
        shown = b""
        while part := _read(master):
            shown += part
    os.close(master)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


def file(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Give a file for `layer`. Fields are those of tarfile."""
    return entry(name, tarfile.REGTYPE, data, **fields)


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Give a directory for `layer`."""
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Give a symbolic link for `layer`."""
    return entry(name, tarfile.SYMTYPE, linkname=target, **fields)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """Give a hard link for `layer`."""
    return entry(name, tarfile.LNKTYPE, linkname=target)


def entry(name: str, type: bytes, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Give an entry of any type for `layer`."""
    info = tarfile.TarInfo(name)
    info.type = type
    info.size = len(data)
    info.uid, info.gid = os.geteuid(), os.getegid()
    info.mtime = 1_000_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Make a tar of just these entries, in this order."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""  # EIO: nobody has the other end open any more
