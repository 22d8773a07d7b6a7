"""A run that is forked by a process which has imported the program finds what a fresh process finds."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import notify, overlays, tools, warm

if TYPE_CHECKING:
    from collections.abc import Iterator

# In place of the program: it says what a process can see of itself.
_PROGRAM = """
import json, os, resource, signal, sys

def build_parser():
    return None

def run():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    del status["SigQ"]  # all that the user has
    with open("/proc/self/limits") as file:
        limits = file.read()
    mask = os.umask(0)
    seen = {
        "status": {key: status[key].split() for key in sorted(status) if key.startswith(("Sig", "Shd", "Cap", "Uid", "Gid"))},
        "limits": limits,
        "umask": mask,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "arguments": sys.argv[1:],
        "flags": repr(sys.flags),
        "input": sys.stdin.buffer.read().decode(),
        "encodings": [sys.stdout.encoding, sys.stderr.errors, sys.getfilesystemencoding()],
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
        "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in sorted(os.listdir("/proc/self/ns"))},
        "mounts": open("/proc/self/mountinfo").read(),
        "handlers": {number: repr(signal.getsignal(number)) for number in range(1, 32)},
    }
    print(json.dumps(seen))
    print("to standard error", file=sys.stderr)
    return 3
"""
_MAIN = """
import sys
sys.path.insert(0, %r)
from archive_overlay.cli import run
sys.exit(run())
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Give a directory that stands for the built file, with such a program in it."""
    package = tmp_path / "built" / "site-packages" / "archive_overlay"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(_PROGRAM)
    return tmp_path / "built"


@pytest.fixture
def server(program: Path) -> Iterator[warm.Server]:
    """Give a server that has imported it."""
    made = warm.Server(program)
    yield made
    made.close()


def seen(status: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """Give what the program saw; it has come to its end."""
    assert (status, stderr) == (3, b"to standard error\n")
    found: dict[str, Any] = json.loads(stdout)
    return found


def run_afresh(program: Path, cwd: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run it in an interpreter of its own."""
    done = subprocess.run(
        ["/usr/bin/python3", "-IBSXutf8", "-c", _MAIN % str(program / "site-packages"), "--jobs", "2"],
        input=b"state",
        capture_output=True,
        env=environment,
        cwd=cwd,
        check=False,
    )
    return seen(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("rootless", [False, True, None], ids=["root", "rootless", "here"])
def test_a_run_finds_what_a_fresh_process_finds(
    program: Path, server: warm.Server, tmp_path: Path, rootless: bool | None
) -> None:
    environment = {"PYTHONPATH": "/nowhere", "LC_ALL": "C", "A": "b"}

    def both() -> tuple[dict[str, Any], dict[str, Any]]:
        umask = os.umask(0o027)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] - 1, limits[1]))
        try:
            run = server.run(["--jobs", "2"], b"state", cwd=tmp_path, environment=environment, here=True)
            return seen(*run), run_afresh(program, tmp_path, environment)
        finally:
            os.umask(umask)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    if rootless is None:
        warm_one, fresh_one = both()
    else:
        tools.need("unshare")
        if not rootless:
            tools.need_root()
        namespace = overlays.Namespace(rootless=rootless)
        warm_one, fresh_one = namespace.inside(both)
        namespace.close()

    assert warm_one == fresh_one
    assert warm_one["descriptors"] == [0, 1, 2]


def test_runs_at_once_do_not_wait_for_one_another(server: warm.Server, tmp_path: Path) -> None:
    runs = [server.start([str(number)], b"", cwd=tmp_path, environment={}) for number in range(20)]

    for number, run in reversed([*enumerate(runs)]):
        status = run.wait()
        assert status is not None
        assert seen(status, run.stdout, run.stderr)["arguments"] == [str(number)]
        run.close()


def test_a_run_that_is_given_up_is_killed(program: Path, tmp_path: Path) -> None:
    text = "import os, time\ndef build_parser(): pass\ndef run():\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
    (program / "site-packages" / "archive_overlay" / "cli.py").write_text(text)
    server = warm.Server(program)

    run = server.start([], b"", cwd=tmp_path, environment={})
    with pytest.raises(TimeoutError):
        run.wait(timeout=1)
    pid = int(run.stdout)
    watch = os.pidfd_open(pid)
    run.close()

    assert select.select([watch], [], [], 60)[0], "it has ended"
    os.close(watch)
    server.close()


def test_a_call_can_fail_without_being_made(server: warm.Server, tmp_path: Path) -> None:
    tools.need_root()

    run = server.start(
        [], b"", cwd=tmp_path, environment={}, supervised=notify.filter_of(["umask", "getcwd"])
    )
    asked = []
    while (status := run.wait()) is None:
        assert run.listener is not None
        notification = notify.receive(run.listener)
        assert notification
        asked.append(notification.name)
        if notification.name == "getcwd":
            notification.fail(errno.EACCES)
        else:
            notification.go_on()
    run.close()

    assert asked == ["umask", "getcwd"]
    assert status == 1
    assert b"PermissionError" in run.stderr


@pytest.mark.parametrize(
    ("number", "made", "ends"),
    [(signal.SIGKILL, False, -signal.SIGKILL), (signal.SIGTERM, True, 7)],
    ids=["SIGKILL", "SIGTERM"],
)
def test_a_signal_comes_before_the_call_or_after_it(
    program: Path, tmp_path: Path, number: signal.Signals, made: bool, ends: int
) -> None:
    tools.need_root()
    text = (
        "import os, signal\ndef build_parser(): pass\ndef run():\n"
        "    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\n    os.mkdir('made')\n    os.mkdir('another')\n"
    )
    (program / "site-packages" / "archive_overlay" / "cli.py").write_text(text)
    server = warm.Server(program)

    run = server.start(
        [], b"", cwd=tmp_path, environment={}, supervised=notify.filter_of(["mkdir", "mkdirat"])
    )
    assert run.wait() is None
    assert run.listener is not None
    notification = notify.receive(run.listener)
    assert notification
    path = notification.text(notification.arguments[notification.name == "mkdirat"])
    notification.signal(number)
    status = run.wait()
    run.close()
    server.close()

    assert (path, status) == ("made", ends)
    assert (tmp_path / "made").exists() == made
    assert not (tmp_path / "another").exists()
