"""What `archive_overlay check` says of a host, and what podman does there: archives are made or not."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import engines, hooks
from tests.support.engines import HERE, IMAGE, TOP, Engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USR = "/usr/share/containers/oci/hooks.d"
ETC = "/etc/containers/oci/hooks.d"
PROGRAM = f"{HERE}/bin/archive_overlay"
NAME = "archive_overlay.json"


def configuration(**fields: Any) -> str:
    """Give the packaged configuration with some fields, or those of `hook`, changed."""
    content = json.loads((TOP / "hooks.d/archive_overlay.json.in").read_text())
    content["hook"]["path"] = PROGRAM
    for key, value in fields.items():
        (content["hook"] if key in ("path", "args") else content)[key] = value
    return json.dumps(content)


@dataclass(frozen=True)
class Case:
    """Hook configurations, and what becomes of archives.

    Attributes:
        files: their content by path.
        archived: whether archives are made.
        told: whether podman is told to read both directories.
    """

    files: dict[str, str]
    archived: bool
    told: bool = False


# The homes by which podman, and `check`, find the containers.conf of a user.
HOMES = {0: "/root", engines.USER: f"{HERE}/home"}

PACKAGED = {f"{USR}/{NAME}": configuration()}
CASES = {
    "packaged": Case(PACKAGED, True),
    "nothing": Case({}, False),
    "only in /etc": Case({f"{ETC}/{NAME}": configuration()}, False),
    "only in /etc, told": Case({f"{ETC}/{NAME}": configuration()}, True, told=True),
    "broken": Case({f"{USR}/{NAME}": "{"}, False),
    "another one broken": Case({**PACKAGED, f"{USR}/other.json": "{"}, False),
    "another version": Case({**PACKAGED, f"{USR}/other.json": configuration(version="9")}, False),
    "another one without its program": Case({**PACKAGED, f"{USR}/o.json": configuration(path="/no")}, True),
    "an old one": Case({**PACKAGED, f"{USR}/o.json": '{"hook": "/bin/true", "stages": ["poststop"]}'}, True),
    "no such program": Case({f"{USR}/{NAME}": configuration(path="/no/archive_overlay")}, False),
    "not executable": Case({f"{USR}/{NAME}": configuration(path=f"{HERE}/archive_overlay.txt")}, False),
    "wrong option": Case({f"{USR}/{NAME}": configuration(args=["archive_overlay", "--wrong"])}, False),
    "no arguments": Case({f"{USR}/{NAME}": configuration(args=[])}, True),
    "other stage": Case({f"{USR}/{NAME}": configuration(stages=["createRuntime"])}, False),
    "no such stage": Case({f"{USR}/{NAME}": configuration(stages=["stopped"])}, False),
    "no condition": Case({f"{USR}/{NAME}": configuration(when={})}, False),
    "never": Case({f"{USR}/{NAME}": configuration(when={"always": False})}, False),
    "not with volumes": Case({f"{USR}/{NAME}": configuration(when={"hasBindMounts": False})}, False),
    "always": Case({f"{USR}/{NAME}": configuration(when={"always": True})}, True),
    "taken away by /etc": Case(
        {**PACKAGED, f"{ETC}/{NAME}": configuration(when={"always": False})}, False, told=True
    ),
    "not taken away by /etc": Case({**PACKAGED, f"{ETC}/{NAME}": configuration(path="/no")}, True, told=True),
    "told, nothing in /etc": Case(PACKAGED, True, told=True),
}


@pytest.fixture(scope="module")
def bare(executable: Path) -> Iterator[engines.Machine]:
    """Set a machine up with the program, and with no hook configuration at all."""
    with engines.bare_machine() as machine:
        for directory in ("/usr/share/containers", "/root"):
            machine.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)
        passwd = machine.outside("/etc/passwd")
        passwd.write_text(passwd.read_text().replace("::/:/bin/sh", f"::{HOMES[engines.USER]}:/bin/sh"))
        machine.run("mkdir", "-p", f"{HERE}/bin")
        shutil.copy(executable, machine.outside(PROGRAM))
        shutil.copy(executable, machine.outside(f"{HERE}/archive_overlay.txt"))
        machine.outside(f"{HERE}/archive_overlay.txt").chmod(0o644)
        for rootless in (False, True):
            engines.prepare_store(Engine(machine, rootless, "native", "crun"), hooks_dir=None)
        machine.run("mkdir", HOMES[engines.USER])
        machine.run("chown", f"{engines.USER}:{engines.USER}", HOMES[engines.USER])
        yield machine


def lay_out(machine: engines.Machine, files: dict[str, str]) -> None:
    """Have these hook configurations on a machine, and no others."""
    for directory in map(machine.outside, (USR, ETC)):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    for path, content in files.items():
        machine.outside(path).write_text(content)


@pytest.mark.parametrize("rootless", [False, True], ids=["rootful", "rootless"])
@pytest.mark.parametrize("name", CASES)
def test_check_says_what_podman_does(bare: engines.Machine, name: str, rootless: bool) -> None:
    case = CASES[name]
    engine = Engine(bare, rootless, "native", "crun")
    lay_out(bare, case.files)
    told = [word for directory in (USR, ETC) for word in ("--hooks-dir", directory)] if case.told else []

    checked = bare.run(
        PROGRAM, "check", "--json", *told, user=engines.USER if rootless else 0, check=False
    ).stdout
    number = list(CASES).index(name)
    archives = engine.new_directory(f"archives-{number}")
    engine.run(
        f"check-{number}",
        f"--mount=type=image,source={IMAGE},destination=/data,rw=true",
        command="echo made >/data/made",
        annotations=hooks.annotations("data", mount_point="/data", archive_to=f"{archives}/data"),
        podman_options=tuple(told),
        check=False,
    )

    assert bare.outside(f"{archives}/data/made").exists() == case.archived
    assert json.loads(checked)["ready"] == case.archived, checked


# What may lie in the directories of containers.conf: names, and the hooks_dir of each. ~ is the user's own.
LAYOUTS: dict[str, dict[str, str]] = {
    "nothing": {},
    "distribution": {"/usr/share/containers/containers.conf": '["A"]'},
    "administrator": {
        "/usr/share/containers/containers.conf": '["A"]',
        "/etc/containers/containers.conf": '["B", "A"]',
    },
    "drop-ins": {
        "/etc/containers/containers.conf.d/50-b.conf": '["B"]',
        "/etc/containers/containers.conf.d/60-c.conf": '["C"]',
        "/etc/containers/containers.conf.d/70-a.txt": '["A"]',
    },
    "user": {"/etc/containers/containers.conf": '["A"]', "~/containers.conf": '["B"]'},
    "user, without others": {"~/containers.conf": '["B"]'},
    "user's drop-in": {
        "/etc/containers/containers.conf.d/60-a.conf": '["A"]',
        "~/containers.conf.d/50-b.conf": '["B"]',
    },
    "user's drop-in of the same name": {
        "/etc/containers/containers.conf.d/50.conf": '["A"]',
        "~/containers.conf.d/50.conf": '["B"]',
    },
    "distribution's drop-in": {"/usr/share/containers/containers.conf.d/50.conf": '["A"]'},
    "rootful and rootless": {
        "/etc/containers/containers.rootful.conf.d/50.conf": '["A"]',
        "/etc/containers/containers.rootless.conf.d/50.conf": '["B"]',
    },
    "rootless, main file": {"/etc/containers/containers.rootless.conf": '["B"]'},
    "rootless, one user": {f"/etc/containers/containers.rootless.conf.d/{engines.USER}/50.conf": '["B"]'},
    "appended": {
        "/etc/containers/containers.conf": '["A"]',
        "/etc/containers/containers.conf.d/50.conf": '["B", {append=true}]',
    },
    "empty": {"/etc/containers/containers.conf.d/50.conf": "[]"},
}


@pytest.fixture
def tidy(bare: engines.Machine) -> Iterator[engines.Machine]:
    """Take all containers.conf files away afterwards."""
    yield bare
    where = ("/usr/share/containers", "/etc/containers", *(f"{home}/.config" for home in HOMES.values()))
    bare.run("sh", "-c", 'for each; do rm -rf "$each"/containers.* "$each"/containers; done', "sh", *where)


@pytest.mark.parametrize("rootless", [False, True], ids=["rootful", "rootless"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_check_looks_where_podman_looks(tidy: engines.Machine, name: str, rootless: bool) -> None:
    user = engines.USER if rootless else 0
    engine = Engine(tidy, rootless, "native", "crun")
    number = f"{list(LAYOUTS).index(name)}"
    ran = engine.new_directory(f"ran-{number}")
    # Each directory has a hook that leaves a file with its name.
    directories = {
        "A": f"{HERE}/hooks-a",
        "B": f"{HERE}/hooks-b",
        "C": f"{HERE}/hooks-c",
        "usr": USR,
        "etc": ETC,
    }
    lay_out(tidy, {})
    for letter, directory in directories.items():
        tidy.outside(directory).mkdir(parents=True, exist_ok=True)
        hook = {"path": "/bin/touch", "args": ["touch", f"{ran}/{letter}"]}
        content = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["poststop"]}
        tidy.outside(f"{directory}/{letter}.json").write_text(json.dumps(content))
    settings = tidy.outside(f"{engine.home}/containers.conf").read_text()
    # One main file at the least has the settings without which no container starts here.
    files = {"/usr/share/containers/containers.conf": "", **LAYOUTS[name]}
    for path, value in files.items():
        for letter, directory in directories.items():
            value = value.replace(f'"{letter}"', f'"{directory}"')
        line = f"[engine]\nhooks_dir = {value}\n" if value else "[engine]\n"
        outside = tidy.outside(path.replace("~", f"{HOMES[user]}/.config/containers"))
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_text(settings.replace("[engine]\n", line))

    checked = json.loads(tidy.run(PROGRAM, "check", "--json", user=user, check=False).stdout)
    environment = {**engine.environment, "HOME": HOMES[user]}
    del environment["CONTAINERS_CONF"]
    options = ("--runtime=crun", "run", f"--name=looks-{number}", "--cgroups=disabled")
    done = tidy.run("podman", *options, IMAGE, "true", user=user, environment=environment, check=False)
    if started := done.returncode == 0:
        cleanup = ("podman", "container", "cleanup", f"looks-{number}")
        tidy.run(*cleanup, user=user, environment=environment, check=False)  # waits for the hooks

    where = {path: letter for letter, path in directories.items()}
    of_podman = set(os.listdir(tidy.outside(ran)))
    of_check = {where[path] for path in checked["hooks_dirs"]}
    refused = [each for each in checked["findings"] if "podman before 4.8 does not start" in each["found"]]
    assert started is not bool(refused), done.stderr
    if name == "empty" and of_check == {"usr", "etc"}:
        of_check = {"etc"}  # of one stage, as the warning says
    assert not started or of_podman == of_check, (checked["findings"], done.stderr)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/annotations.md", "docs/security.md", "docs/engines.md", "man/sections.in"]
)
def test_a_policy_in_etc_is_one_once_containers_conf_names_the_directory(
    bare: engines.Machine, page: str
) -> None:
    (line,) = set(re.findall(rf'hooks_dir = \["{USR}",\s+"{ETC}"\]', (TOP / page).read_text()))
    engine = Engine(bare, rootless=False, store="native", runtime="crun")
    strict = configuration(args=["archive_overlay", "--allow-archive-to=/srv"])
    lay_out(bare, {**PACKAGED, f"{ETC}/{NAME}": strict})
    own = bare.outside(f"{engine.home}/containers.conf")
    text = (TOP / page).read_text().replace("\\-", "-")
    (path,) = set(re.findall(r"/etc/containers/containers\.conf\.d/[\w-]+\.conf", text))
    common = bare.outside(path)
    common.parent.mkdir(exist_ok=True)
    before = own.read_text()

    def policies() -> list[str]:
        found = json.loads(bare.run(PROGRAM, "check", "--json", check=False).stdout)["findings"]
        return [each["found"] for each in found if each["topic"] == "policy"]

    def is_archived(name: str) -> bool:
        archives = engine.new_directory(name)
        engine.run(
            name,
            f"--mount=type=image,source={IMAGE},destination=/data,rw=true",
            command="echo made >/data/made",
            annotations=hooks.annotations("data", mount_point="/data", archive_to=f"{archives}/data"),
            check=False,
        )
        return bare.outside(f"{archives}/data/made").exists()

    name = page.replace("/", "-").replace(".", "-").lower()
    try:
        assert is_archived(f"{name}-before")
        assert "archives may be in /srv, and nowhere else" not in policies()

        # podman is told of one file by its environment here, and `check` reads the one that people have.
        own.write_text(before.replace("[engine]\n", f"[engine]\n{line}\n"))
        common.write_text(f"[engine]\n{line}\n")

        assert not is_archived(f"{name}-after")
        assert "archives may be in /srv, and nowhere else" in policies()
    finally:
        own.write_text(before)
        common.unlink(missing_ok=True)
