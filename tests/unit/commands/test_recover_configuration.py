"""Which configuration of the hook is for a container: no policy is missed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from archive_overlay import cli
from archive_overlay.commands.check import host, report
from archive_overlay.commands.check.hooks_dirs import Directories
from archive_overlay.commands.check.host import Host
from archive_overlay.commands.recover import configuration
from archive_overlay.commands.recover.configuration import directories_of_crio, installed, settings_for
from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from tests.support import hooks

if TYPE_CHECKING:
    from pathlib import Path

    from archive_overlay.settings import Settings

ANNOTATIONS = hooks.annotations("data", mount_point="/data", archive_to="/srv/data")


class Node:
    """A host with two directories of hooks, of which podman reads the first alone.

    Args:
        directory: an empty one.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.usr, self.etc = directory / "usr", directory / "etc"
        self.usr.mkdir()
        self.etc.mkdir()
        here = Host(program=None, interpreter="", user=0)
        self.program = directory / "archive_overlay"
        self.program.write_text("#!/bin/sh\n")
        self.program.chmod(0o755)
        podman = [Directories((str(self.usr),), ())]
        monkeypatch.setattr(host, "this_host", lambda: here)
        monkeypatch.setattr(report, "directories_of_podman", lambda _: podman)
        monkeypatch.setattr(configuration, "OVERRIDE_DIRECTORY", str(self.etc))
        monkeypatch.setattr(configuration, "directories_of_crio", list)

    def write(self, path: Path, *arguments: str, pattern: str = r"archive-overlay\..*") -> None:
        hook = {"path": str(self.program), "args": ["archive_overlay", *arguments]}
        content = {"version": "1.0.0", "hook": hook, "stages": ["poststop"]}
        path.write_text(json.dumps({**content, "when": {"annotations": {pattern: ".*"}}}))

    def settings(self, *hooks_dirs: Path) -> Settings | None:
        found = installed([str(each) for each in hooks_dirs], cli.parse, Log("info", []))
        return settings_for(found, ANNOTATIONS)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A host without configurations."""
    return Node(tmp_path, monkeypatch)


def test_the_administrator_s_file_takes_the_place_of_the_package_s_whoever_reads_it(node: Node) -> None:
    node.write(node.usr / "archive_overlay.json")
    node.write(node.etc / "archive_overlay.json", "--allow-archive-to=/srv")

    settings = node.settings()

    assert settings
    assert settings.allowed == ("/srv",)


def test_of_two_that_say_different_things_none_is_taken_until_a_person_says_which(node: Node) -> None:
    node.write(node.usr / "archive_overlay.json")
    node.write(node.etc / "policy.json", "--allow-archive-to=/srv")

    with pytest.raises(ArchiveError, match="both apply to it and differ"):
        node.settings()
    settings = node.settings(node.etc)
    assert settings
    assert settings.allowed == ("/srv",)

    node.write(node.usr / "archive_overlay.json", pattern="something-else")
    settings = node.settings()
    assert settings
    assert settings.allowed == ("/srv",)


@pytest.mark.parametrize("text", ["", '{"version": "1.0.0"}'])
def test_behind_a_file_that_cannot_be_read_there_may_be_a_policy(node: Node, text: str) -> None:
    node.write(node.usr / "archive_overlay.json")
    (node.etc / "archive_overlay.json").write_text(text)

    with pytest.raises(ArchiveError, match=r"archive_overlay\.json is refused"):
        node.settings()


def test_arguments_that_are_not_understood_may_be_a_policy(node: Node) -> None:
    node.write(node.usr / "archive_overlay.json", "--allow-archive=/srv")

    with pytest.raises(ArchiveError, match="the hook cannot run with the args in "):
        node.settings()


def test_without_a_configuration_nobody_says_how(node: Node) -> None:
    with pytest.raises(ArchiveError, match="no hook configuration"):
        node.settings()


def test_crio_s_directories_are_found_in_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "crio.conf.d").mkdir()
    (tmp_path / "crio.conf").write_text(
        '[crio.runtime]\n# hooks_dir = ["/commented"]\nhooks_dir = ["/first"]\n'
    )
    (tmp_path / "crio.conf.d/10-hooks.conf").write_text(
        "[crio.runtime]\nhooks_dir = [\n  '/second', # why\n  \"/third\",\n]\n"
    )

    assert directories_of_crio(str(tmp_path)) == ["/first", "/second", "/third"]
    assert directories_of_crio(str(tmp_path / "missing")) == []
