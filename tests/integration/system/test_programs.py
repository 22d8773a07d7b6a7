"""Programs that are run: what they say is heard, and nothing of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.system.programs import ProgramError, require_program, run_program


def shell(
    script: str, *, timeout: float = 30, data: bytes = b"", most_output: int = 1 << 20
) -> tuple[bytes, list[str]]:
    said: list[str] = []
    command = ["/bin/sh", "-c", script]
    output = run_program(
        command, environment={}, timeout=timeout, say=said.append, data=data, most_output=most_output
    )
    return output, said


def test_input_and_output_of_any_size_pass() -> None:
    data = os.urandom(3_000_000)
    output, said = shell("cat; echo one >&2; printf two >&2", data=data, most_output=len(data))
    assert output == data
    assert said == ["one", "two"]


def test_a_program_that_does_not_read_its_input_is_no_failure() -> None:
    assert shell("exec <&-; sleep 0.05; echo done", data=bytes(1 << 20))[0] == b"done\n"


def test_nothing_of_our_environment_is_passed_on() -> None:
    output, _ = shell("/usr/bin/env")
    assert {line.partition(b"=")[0] for line in output.splitlines()} <= {b"PWD", b"SHLVL", b"_", b"OLDPWD"}


def test_what_it_leaves_in_the_background_is_not_waited_for() -> None:
    output, _ = shell("sleep 1000 & echo $!", timeout=100)
    child = int(output)
    os.kill(child, signal.SIGKILL)


def test_what_it_said_last_is_in_the_error() -> None:
    with pytest.raises(ProgramError, match="sh ended with status 3: no such thing") as caught:
        shell("echo first >&2; echo no such thing >&2; exit 3")
    assert caught.value.said == "first\nno such thing\n"
    assert not caught.value.timed_out


def test_one_that_takes_too_long_is_killed_with_its_children(tmp_path: object) -> None:
    with pytest.raises(ProgramError, match="did not end within") as caught:
        shell("echo $$ >&2; sleep 1000 & wait", timeout=0.3)
    assert caught.value.timed_out
    group = int(caught.value.said)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("a child is left")


def test_one_that_writes_without_end_is_stopped() -> None:
    with pytest.raises(ProgramError, match="wrote more than 1000 bytes"):
        shell("yes", most_output=1000)


def test_it_ends_when_this_process_is_killed() -> None:
    script = (
        "import os, sys; from archive_overlay.system.programs import run_program;"
        "run_program(['/bin/sh', '-c', 'echo $$ >&2; exec sleep 1000'], environment={}, timeout=1000,"
        " say=lambda line: (print(line, flush=True)))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        with open(f"/proc/{child}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{child}")


def test_a_missing_program_is_named() -> None:
    with pytest.raises(
        ArchiveError, match="cannot carry images: there is no program /nonexistent; install it"
    ):
        require_program("/nonexistent", purpose="carry images", hint="install it")
    with pytest.raises(ProgramError, match="cannot run /nonexistent: No such file or directory"):
        run_program(["/nonexistent"], environment={}, timeout=1, say=print)
