"""Whenever a fetch is killed: the layout has what it had or what came, all of it, and the next fetch ends what was begun."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import histories, history, image_layouts, overlays, tools
from tests.support.registry import Registry, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_STRIKES = 8
CHANGING = (
    "mkdir",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "chmod",
    "fchmod",
)
CALL = re.compile(r"(\w+)\((.*)")


class Place:
    """A layout that is to get what another one has pushed, whose layers were composed in the meantime.

    Attributes:
        layout: where it is.
        registry: where that is to come from.
    """

    def __init__(self, executable: Path, directory: Path, registry: Registry) -> None:
        self.layout = directory / "layout"
        self.registry = registry
        self._template = directory / "template"
        self._trace = directory / "trace"
        self._executable = executable
        theirs = directory / "theirs"
        histories.build(theirs, 3)
        self._push(theirs)
        history.output_of("fetch", *self._arguments(self._template, registry))
        histories.build(theirs, 6, most=2)
        self._push(theirs)
        self.lay_out()
        history.output_of("fetch", *self._arguments(self.layout, registry))
        self.new = histories.numbers(self.layout)
        self.lay_out()
        self.old = histories.numbers(self.layout)
        assert self.old == self.new[: len(self.old)] != self.new

    def _push(self, layout: Path) -> None:
        remote = f"--to={self.registry.reference('data')}"
        history.output_of("push", "--no-fsync", "--tls-verify=false", remote, f"{layout}:main")

    def _arguments(self, layout: Path, registry: Registry | Way) -> list[str]:
        return ["--no-fsync", "--tls-verify=false", f"{layout}:main", registry.reference("data")]

    def lay_out(self) -> None:
        """Let the layout be as it was."""
        shutil.rmtree(self.layout, ignore_errors=True)
        shutil.copytree(self._template, self.layout)

    def start(self, way: Way) -> subprocess.Popen[bytes]:
        """Begin to fetch."""
        command = [str(self._executable), "fetch", *self._arguments(self.layout, way)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def calls(self) -> list[tuple[str, str]]:
        """Give the calls that change something, of the program itself."""
        self._run_traced(f"--trace={','.join(CHANGING)}")
        lines = self._trace.read_text(errors="replace").splitlines()
        return [match.groups() for line in lines if (match := CALL.match(line))]  # type: ignore[misc]

    def kill_at(self, name: str, count: int) -> None:
        """Fetch, and kill that at a call."""
        status = self._run_traced(f"--inject={name}:signal=KILL:when={count}")
        assert status in (-signal.SIGKILL, 128 + signal.SIGKILL), status

    def _run_traced(self, option: str) -> int:
        command = [self._executable, "fetch", *self._arguments(self.layout, self.registry)]
        strace = ["strace", "-qq", f"--output={self._trace}", option, *map(str, command)]
        return subprocess.run(strace, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode

    def judge(self) -> Iterator[str]:
        """Say what is wrong after a fetch was killed, and after the next one."""
        if histories.numbers(self.layout) not in (self.old, self.new):
            yield f"there are the revisions {histories.numbers(self.layout)}"
        verified = history.run("verify", "--read-data", self.layout)
        if verified.status:
            yield f"not all can be had: {verified.stdout}{verified.stderr}"
        again = history.run("fetch", *self._arguments(self.layout, self.registry))
        if again.status or histories.numbers(self.layout) != self.new:
            yield f"the next run ends with {again}, and there are the revisions {histories.numbers(self.layout)}"
        image_layouts.expect_whole(self.layout)
        if sorted(os.listdir(self.layout)) != ["blobs", "index.json", "oci-layout"]:
            yield f"left: {os.listdir(self.layout)}"


@pytest.fixture
def place(executable: Path) -> Iterator[Place]:
    tools.need("strace")
    directory = overlays.new_directory("archive_overlay-crash-", Path("/dev/shm"))
    with Registry(directory / "registry") as registry:
        yield Place(executable, directory, registry)
    overlays.remove(directory)


def test_a_kill_leaves_what_was_there_or_what_came(place: Place) -> None:
    calls = place.calls()
    exchanges = [index for index, (_, text) in enumerate(calls) if "index.json" in text]
    # What puts the new image in the place of the old one comes last, and cleaning up after that.
    indices = sorted(
        {*range(0, len(calls), max(1, len(calls) // MOST_STRIKES)), exchanges[-1], exchanges[-1] + 1}
    )
    complaints = []

    for index in indices:
        place.lay_out()
        name, text = calls[index]
        place.kill_at(name, sum(each == name for each, _ in calls[: index + 1]))
        complaints += [f"killed at {name}({text}: {each}" for each in place.judge()]

    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("request_for", [b"/manifests/main", b"/manifests/sha256", b"/blobs/"])
def test_a_kill_while_something_comes_leaves_no_program_behind(place: Place, request_for: bytes) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    children: set[str] = set()

    def kill(data: bytes) -> None:
        if request_for in data and processes and processes[0].poll() is None:
            pid = processes[0].pid
            children.update(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            processes[0].kill()
            processes[0].wait()
            raise ConnectionError

    with Way(place.registry, watch=kill) as way:
        processes.append(place.start(way))
        assert processes[0].wait() == -signal.SIGKILL

    for child in children:
        while _runs(child):
            time.sleep(0.01)
    assert children
    assert not list(place.judge())


def _runs(pid: str) -> bool:
    """Say whether skopeo still runs as a process; what has ended may still be there for its parent to see."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    return "skopeo" in fields[0] and fields[2].split()[0] not in "ZX"
