"""The units in docs/examples do what they say: systemd and podman's quadlets take them, and their commands are run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_two_hosts import Host as Sharing
from tests.e2e.test_two_hosts import hosts, registry  # noqa: F401
from tests.support import tools
from tests.support.engines import HOOK, IMAGE, TOP, USER, Engine, pods
from tests.support.pages import Block

if TYPE_CHECKING:
    from tests.support.engines import Machine
    from tests.support.pages import Host
    from tests.support.registry import Registry

EXAMPLES = TOP / "docs" / "examples"
QUADLET = EXAMPLES / "data.container"
PROGRAM = "/usr/bin/archive_overlay"
REMOTE = "docker://registry.example/team/data:main"
ALPINE = "docker.io/library/alpine:latest"
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
    hosts: list[Sharing],  # noqa: F811
    registry: Registry,  # noqa: F811
) -> None:
    for number in range(3):
        sharing = hosts[number % 2]
        text = _on(sharing, QUADLET.read_text())
        for command in values(text, "Service", "ExecStartPre"):
            may_fail = command.startswith("-")
            sharing.engine.machine.run(
                *_with_options(shlex.split(command.lstrip("-"))),
                user=USER if sharing.engine.rootless else 0,
                environment=sharing.engine.environment,
                check=not may_fail,
            )
        asked = dict(value.split("=", 1) for value in values(text, "Container", "Annotation"))
        (mount,) = values(text, "Container", "Mount")
        done = sharing.engine.run(
            f"quadlet{number}",
            *("--rm", "--mount", mount),
            command=f"cat /data/turns || :; echo {number} >> /data/turns",
            annotations=asked,
            podman_options=("--hooks-dir", sharing.hooks),
        )
        assert done.stdout.split() == [str(each) for each in range(number)]
    assert len(registry.tags(hosts[0].name)) == 1


def _on(sharing: Sharing, text: str) -> str:
    """Give the example as it would be on a sharing."""
    text = text.replace(PROGRAM, HOOK).replace(REMOTE, sharing.remote)
    return text.replace("/srv/data", sharing.layout).replace("localhost/data:main", sharing.image)


def _with_options(command: list[str]) -> list[str]:
    """Give a command that takes the registry without a certificate."""
    return [*command[:2], "--tls-verify=false", *command[2:]]


@pytest.mark.parametrize("quadlet", sorted(EXAMPLES.glob("*.container")), ids=lambda quadlet: quadlet.name)
def test_podman_takes_the_quadlets(quadlet: Path, tmp_path: Path) -> None:
    generator = next(filter(Path.exists, map(Path, GENERATORS)), None)
    if not generator:
        return  # podman has had it since 4.4
    text = quadlet.read_text()
    (tmp_path / quadlet.name).write_text(text)

    done = subprocess.run(
        [generator, "-dryrun"],
        env={"QUADLET_UNIT_DIRS": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    (start,) = values(done.stdout, "Service", "ExecStart")
    assert [pair for pair in section(text, "Service") if pair not in section(done.stdout, "Service")] == []
    (mount,) = values(text, "Container", "Mount")
    assert mount in start
    for annotation in values(text, "Container", "Annotation"):
        assert annotation in start


def test_a_quadlet_of_one_host_goes_on_with_what_its_last_start_left(host: Host) -> None:
    text = (EXAMPLES / "notes.container").read_text()
    (image,) = values(text, "Container", "Image")
    (command,) = values(text, "Container", "Exec")
    options = [f"--mount={value}" for value in values(text, "Container", "Mount")]
    options += [f"--annotation={value}" for value in values(text, "Container", "Annotation")]
    start_and_stop = f"""
        podman run --detach --rm --name=notes {shlex.join(options)} {image} {command}
        until podman exec notes test -s /notes/starts; do :; done
        podman stop notes
    """
    first = "mkdir empty; tar -C empty -c . | podman import - localhost/notes:main"
    shown = "archive_overlay cat /srv/notes:main:starts | wc -l"

    *_, starts = host.run("sh", [Block("sh", each, 0) for each in (first, start_and_stop * 2, shown)])

    assert int(starts) == 2


def test_a_service_of_compose_leaves_its_directory_alone(host: Host) -> None:
    tools.need("podman-compose")
    text = (EXAMPLES / "compose.yaml").read_text()
    script = f"""
        mkdir -p /srv/compose/data
        cat >/srv/compose.yaml <<'END'
{text}
END
        cd /srv
        podman-compose up
        podman-compose down
        echo left:
        ls compose compose/data
        archive_overlay diff compose/changes.tar.gz
    """

    (written,) = host.run("sh", [Block("sh", script, 0)])

    left = written.partition("left:\n")[2].split()
    named = ["compose:", "changes.tar.gz", "changes.tar.gz.success", "data", "compose/data:"]
    assert left == [*named, "A", "6", "greeting"]


def test_a_pod_of_podman_is_a_revision(machine: Machine) -> None:
    engine = Engine(machine, True, "native", "crun")
    directory = engine.new_directory("example-pod")
    text = (EXAMPLES / "pod.yaml").read_text().replace("/srv/pod", f"{directory}/layout")
    # The machine has no networks.
    text = text.replace("spec:\n", "spec:\n  hostNetwork: true\n").replace(ALPINE, IMAGE)
    machine.outside(f"{directory}/pod.yaml").write_text(text)

    with pods(engine):
        engine.podman("kube", "play", f"{directory}/pod.yaml")
        engine.podman("wait", "work-main")
        engine.podman("container", "cleanup", "work-main", check=False)
        engine.podman("kube", "down", f"{directory}/pod.yaml")

    done = machine.run(HOOK, "cat", f"{directory}/layout:main:greeting")
    assert done.stdout == "hello\n"
