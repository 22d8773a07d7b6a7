"""What a person finds out about the hook's work under podman, which shows nothing of it by itself."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks
from tests.support.engines import IMAGE, INSTALLED, Engine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Machine

DEBUG_HOOK = f"{INSTALLED}/share/doc/archive_overlay/debug/archive_overlay.json"
DATA = ("--mount", f"type=image,source={IMAGE},destination=/data,rw=true")

# Severities of RFC 5424, section 6.2.1, as busybox calls them.
PRIORITIES = {"trace": "debug", "debug": "debug", "info": "info", "warning": "warn", "error": "err"}


@pytest.fixture(params=[False, True], ids=["rootful", "rootless"])
def engine(request: pytest.FixtureRequest, machine: Machine) -> Engine:
    return Engine(machine, request.param, "native", "crun")


def hook_with(engine: Engine, name: str, *options: str, template: str) -> str:
    """Write a hook configuration with more options than an installed one has; give its directory."""
    directory = engine.new_directory(name)
    configuration = json.loads(engine.machine.outside(template).read_text())
    configuration["hook"]["args"] += options
    engine.machine.outside(f"{directory}/hook.json").write_text(json.dumps(configuration))
    return directory


def log_file(engine: Engine, name: str) -> tuple[str, Path]:
    path = f"{engine.new_directory(name)}/hook.log"
    return path, engine.machine.outside(path)


def test_log_file_and_syslog_tell_the_same(engine: Engine) -> None:
    path, log = log_file(engine, "both-logs")
    directory = hook_with(engine, "both-hooks", "--log-file", path, template=DEBUG_HOOK)
    archives = engine.new_directory("both")
    before = len(engine.machine.syslog())
    engine.run(
        "both",
        "--rm",
        *DATA,
        podman_options=("--hooks-dir", directory),
        command="rm /data/tree/deleted",
        annotations={
            **hooks.annotations("good", mount_point="/data", archive_to=f"{archives}/good", method="tar.gz"),
            **hooks.annotations("odd", mount_point="/data", archive_to=f"{archives}/odd", colour="red"),
            **hooks.annotations("bad", mount_point="/nowhere", archive_to=f"{archives}/bad"),
        },
    )
    lines = hooks.parse_log(log.read_text())
    assert {line.level for line in lines} >= {"debug", "info", "warning", "error"}
    assert any("archive good: saved" in line.message for line in lines if line.level == "info")
    assert any("colour" in line.message for line in lines if line.level == "warning")
    assert {line.container for line in lines if line.level in ("info", "error")} == {
        f"{lines[0].container[:12]} (both)"
    }
    assert any("/nowhere" in line.message for line in lines if line.level == "error")

    sent = [
        re.fullmatch(r".* daemon\.(?P<priority>\w+) archive_overlay\[(?P<pid>\d+)\]: (?P<message>.*)", line)
        for line in engine.machine.syslog()[before:]
    ]
    received = [match for match in sent if match]
    assert [(match["priority"], match["message"]) for match in received] == [
        (PRIORITIES[line.level], f"{line.container}: {line.message}") for line in lines
    ]
    assert len({match["pid"] for match in received}) == 1


def test_a_hook_that_fails_shows_in_podman_s_debug_log_and_the_container_ends_as_ever(engine: Engine) -> None:
    before = len(engine.machine.syslog())
    ended = engine.run(
        "failing",
        "--rm",
        *DATA,
        podman_options=("--log-level=debug",),
        command="exit 7",
        annotations=hooks.annotations("data", mount_point="/data", archive_to="not/absolute"),
        check=False,
    )
    assert ended.returncode == 7
    # Which of podman's processes runs the hook is a matter of luck: this one, or the one in the
    # background, which logs to syslog.
    said = [*ended.stderr.splitlines(), *engine.machine.syslog()[before:]]
    assert any("level=error" in line and "not/absolute" in line for line in said)


def test_the_system_log_says_what_is_wrong_with_half_a_pair_and_nothing_of_other_containers(
    engine: Engine,
) -> None:
    # By the installed configuration, as it is.
    archive = f"{engine.new_directory('whose')}/archive"
    mount_point = hooks.annotations("data", mount_point="/data")
    for wishes, said in (
        ({}, []),
        (mount_point, ["archive data is ignored: it has no archive-to annotation"]),
        (
            {**mount_point, **hooks.annotations("data", archiveto=archive)},
            ["there is no key archiveto; did you mean archive-to?", "it has no archive-to annotation"],
        ),
        ({**mount_point, **hooks.annotations("data", archive_to="x")}, ["archive-to 'x' is a relative path"]),
        ({**mount_point, **hooks.annotations("data", archive_to=archive)}, ["archive data: saved"]),
    ):
        before = len(engine.machine.syslog())
        done = engine.run("whose", "--rm", *DATA, command="true", annotations=wishes)
        # If this podman runs the hook, and not its cleanup process, it may say that the hook has failed, but not why.
        assert "archive data" not in done.stdout + done.stderr
        lines = [line for line in engine.machine.syslog()[before:] if " archive_overlay[" in line]
        assert len(lines) == len(said), lines
        for line, words in zip(lines, said):
            assert words in line
