"""The units in docs/examples do what they say: systemd and podman's quadlets take them, and their commands are run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_two_hosts import Host, hosts, registry  # noqa: F401
from tests.support import tools
from tests.support.engines import HOOK, TOP, USER

if TYPE_CHECKING:
    from tests.support.registry import Registry

EXAMPLES = TOP / "docs" / "examples"
QUADLET = EXAMPLES / "data.container"
PROGRAM = "/usr/bin/archive_overlay"
REMOTE = "docker://registry.example/team/data:main"
GENERATORS = ("/usr/libexec/podman/quadlet", "/usr/lib/podman/quadlet")


def section(text: str, name: str) -> list[tuple[str, str]]:
    """Give the keys of a section of a unit, with their values."""
    part = text[text.index(f"[{name}]") :].splitlines()[1:]
    lines = part[: next((i for i, line in enumerate(part) if line.startswith("[")), None)]
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return [(key, value) for key, _, value in pairs]


def values(text: str, name: str, key: str) -> list[str]:
    return [value for each, value in section(text, name) if each == key]


@pytest.mark.parametrize("unit", sorted(EXAMPLES.glob("*.[st][ei]*")), ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit: Path, executable: Path, tmp_path: Path) -> None:
    tools.need("systemd-analyze")
    for each in EXAMPLES.glob(f"{unit.stem}.*"):
        text = each.read_text().replace(PROGRAM, str(executable))
        (tmp_path / each.name.replace("@", "@web")).write_text(text)
    copy = tmp_path / unit.name.replace("@", "@web")

    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_all_examples_of_several_hosts_have_the_same_commands() -> None:
    commands = {
        line.partition("=")[2].lstrip("-")
        for each in EXAMPLES.glob("data*")
        for line in each.read_text().splitlines()
        if line.startswith("ExecStart") and "--watch" not in line
    }
    assert len(commands) == 2


@pytest.mark.parametrize("hosts", [False, True], ids=["rootful", "rootless"], indirect=True)
def test_what_a_quadlet_runs_goes_on_with_what_the_last_one_left(
    hosts: list[Host],  # noqa: F811
    registry: Registry,  # noqa: F811
) -> None:
    for number in range(3):
        host = hosts[number % 2]
        text = _on(host, QUADLET.read_text())
        for command in values(text, "Service", "ExecStartPre"):
            may_fail = command.startswith("-")
            host.engine.machine.run(
                *_with_options(shlex.split(command.lstrip("-"))),
                user=USER if host.engine.rootless else 0,
                environment=host.engine.environment,
                check=not may_fail,
            )
        asked = dict(value.split("=", 1) for value in values(text, "Container", "Annotation"))
        (mount,) = values(text, "Container", "Mount")
        done = host.engine.run(
            f"quadlet{number}",
            *("--rm", "--mount", mount),
            command=f"cat /data/turns || :; echo {number} >> /data/turns",
            annotations=asked,
            podman_options=("--hooks-dir", host.hooks),
        )
        assert done.stdout.split() == [str(each) for each in range(number)]
    assert len(registry.tags(hosts[0].name)) == 1


def _on(host: Host, text: str) -> str:
    """Give the example as it would be on a host."""
    text = text.replace(PROGRAM, HOOK).replace(REMOTE, host.remote)
    return text.replace("/srv/data", host.layout).replace("localhost/data:main", host.image)


def _with_options(command: list[str]) -> list[str]:
    """Give a command that takes the registry without a certificate."""
    return [*command[:2], "--tls-verify=false", *command[2:]]


def test_podman_takes_the_quadlet(tmp_path: Path) -> None:
    generator = next(filter(Path.exists, map(Path, GENERATORS)), None)
    if not generator:
        return  # podman has had it since 4.4
    (tmp_path / QUADLET.name).write_text(QUADLET.read_text())

    done = subprocess.run(
        [generator, "-dryrun"],
        env={"QUADLET_UNIT_DIRS": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    (start,) = values(done.stdout, "Service", "ExecStart")
    assert values(done.stdout, "Service", "ExecStartPre") == values(
        QUADLET.read_text(), "Service", "ExecStartPre"
    )
    (mount,) = values(QUADLET.read_text(), "Container", "Mount")
    assert mount in start
    for annotation in values(QUADLET.read_text(), "Container", "Annotation"):
        assert annotation in start
