"""What the documentation of 2.0.4 promised, sentence by sentence: each test is named after what it says.

The docstrings say, in our words, which sentence of the readme or of the command's help is meant. What is not in them
was no promise; docs/upgrading.md has what changed of it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import archive_overlay
from tests.support import hooks, overlays

if TYPE_CHECKING:
    from tests.integration.conftest import NewOverlay

PREFIX = "com.launchplatform.oci-hooks.archive-overlay"


class Stopped:
    """A container that has stopped, with an overlay at /data that it wrote to.

    Attributes:
        out: an empty directory of the host, for archives.
    """

    def __init__(self, overlay: overlays.Overlay, directory: Path) -> None:
        self.overlay = overlay
        self.directory = directory
        self.out = directory / "out"
        self.out.mkdir()

    def run(
        self, annotations: dict[str, str], *arguments: str | Path, executable: Path | None = None
    ) -> hooks.Result:
        """Run the hook for a container with these annotations, whose names begin after the prefix."""
        bundle = hooks.Bundle(
            self.directory / "bundle",
            mounts=[self.overlay.spec_mount()],
            annotations={f"{PREFIX}.{key}": value for key, value in annotations.items()},
        )
        return self.overlay.inside(lambda: hooks.run_hook(bundle, *arguments, executable=executable))

    def run_pair(self, *arguments: str | Path, executable: Path | None = None, **more: str) -> hooks.Result:
        """Run the hook for the one archive `data`, with more keys than the two that it must have.

        Args:
            arguments: the command line.
            executable: the built program; None: the package in this checkout.
            more: with underscores for dashes.
        """
        pair = {"data.mount-point": "/data", "data.archive-to": f"{self.out}/data"}
        keys = {f"data.{key.replace('_', '-')}": value for key, value in more.items()}
        return self.run({**pair, **keys}, *arguments, executable=executable)


def change(root: Path) -> None:
    (root / "made").write_text("by the container\n")
    (root / "directory").mkdir()
    (root / "directory" / "program").write_text("#!/bin/sh\n")
    (root / "directory" / "program").chmod(0o755)


@pytest.fixture
def stopped(any_overlay: overlays.Overlay, scratch: Path) -> Stopped:
    """Give a container that made a file, and a directory with a program."""
    any_overlay.change(change)
    return Stopped(any_overlay, scratch)


def expect_copy(archive: Path) -> None:
    """Hold that a directory is the archive of what `change` did."""
    assert sorted(path.relative_to(archive).as_posix() for path in archive.rglob("*")) == [
        *("directory", "directory/program", "made")
    ]
    assert (archive / "made").read_text() == "by the container\n"
    assert (archive / "directory/program").stat().st_mode & 0o777 == 0o755


# How


def test_the_upperdir_of_an_overlay_is_archived_after_the_container_is_done(stopped: Stopped) -> None:
    """Readme, first line: the hook archives the upperdir of an overlay mount once the container is done."""
    assert stopped.run_pair().status == 0
    expect_copy(stopped.out / "data")


def test_two_annotations_ask_for_an_archive(stopped: Stopped) -> None:
    """Readme, "How": one annotation names the mount point, another where the archive goes."""
    result = stopped.run(
        {"my-archive.mount-point": "/data", "my-archive.archive-to": f"{stopped.out}/my-archive"}
    )
    assert result.status == 0
    expect_copy(stopped.out / "my-archive")


@pytest.mark.parametrize("name", ["data", "my-data_2", "DATA", "größe", "with space", "a=b", "0"])
def test_the_archive_s_name_is_any_text_without_a_dot(stopped: Stopped, name: str) -> None:
    """Readme, "How": any valid annotation text without a dot in it can be the name."""
    result = stopped.run({f"{name}.mount-point": "/data", f"{name}.archive-to": f"{stopped.out}/archive"})
    assert result.status == 0, result.stderr
    expect_copy(stopped.out / "archive")


@pytest.mark.parametrize("half", ["half.mount-point", "half.archive-to"])
def test_half_a_pair_is_ignored(stopped: Stopped, half: str) -> None:
    """Readme, "How": both annotations of one name have to be there, or else they are ignored."""
    value = {"half.mount-point": "/data", "half.archive-to": f"{stopped.out}/half"}[half]
    result = stopped.run({half: value, "data.mount-point": "/data", "data.archive-to": f"{stopped.out}/data"})
    assert result.status == 0
    assert os.listdir(stopped.out) == ["data"]
    assert stopped.run({half: value}).status == 0


def test_the_mount_point_is_the_destination_in_the_container(stopped: Stopped) -> None:
    """Readme, "How": the mount point is the mount's destination, a path in the container's namespace."""
    source = stopped.overlay.spec_mount()["source"]
    assert stopped.run({"data.mount-point": source, "data.archive-to": f"{stopped.out}/data"}).status == 1
    assert os.listdir(stopped.out) == []


def test_the_archive_is_made_in_the_runtime_namespace(stopped: Stopped) -> None:
    """Readme, "How": archive-to is a path in the runtime's namespace, whatever the container has there."""
    rootfs = stopped.directory / "bundle/rootfs"
    assert stopped.run_pair().status == 0
    expect_copy(stopped.out / "data")
    assert not rootfs.exists()


def test_each_mount_of_a_container_can_have_its_archive(stopped: Stopped, new_overlay: NewOverlay) -> None:
    """Readme, "How": annotations are told apart by the archive's name, so there can be several."""
    other = new_overlay(stopped.overlay.flavour)
    other.change(lambda root: (root / "other").touch())
    annotations = {
        **hooks.annotations("one", mount_point="/data", archive_to=stopped.out / "one"),
        **hooks.annotations("two", mount_point="/more", archive_to=stopped.out / "two"),
    }
    mounts = [stopped.overlay.spec_mount(), other.spec_mount("/more")]
    bundle = hooks.Bundle(stopped.directory / "bundle", mounts=mounts, annotations=annotations)
    assert stopped.overlay.inside(lambda: hooks.run_hook(bundle)).status == 0
    expect_copy(stopped.out / "one")
    assert os.listdir(stopped.out / "two") == ["other"]


# success


def test_success_is_an_empty_file_that_tells_of_a_successful_archive(stopped: Stopped) -> None:
    """Readme, "How": success is the path of an empty file, made to show that the archive succeeded."""
    assert stopped.run_pair(success=f"{stopped.out}/done").status == 0
    assert (stopped.out / "done").read_bytes() == b""


def test_no_success_without_an_archive(stopped: Stopped) -> None:
    """Readme, "How": the file shows success, so a failure makes none."""
    (stopped.out / "data").write_text("in the way of a directory")
    assert stopped.run_pair(success=f"{stopped.out}/done").status == 1
    assert os.listdir(stopped.out) == ["data"]


def test_success_is_optional(stopped: Stopped) -> None:
    """Readme, "How": success, method and tar-content-owner are optional."""
    assert stopped.run_pair().status == 0
    assert os.listdir(stopped.out) == ["data"]


# method


def test_the_method_is_copy_by_default(stopped: Stopped) -> None:
    """Readme, "How": unless method says something else, it is copy."""
    assert stopped.run_pair().status == 0
    expect_copy(stopped.out / "data")


def test_copy_can_be_asked_for(stopped: Stopped) -> None:
    """Readme, "How": copy is the name of the method that makes a directory."""
    assert stopped.run_pair(method="copy").status == 0
    expect_copy(stopped.out / "data")


def test_tar_gz_makes_a_compressed_tar(stopped: Stopped) -> None:
    """Readme, "How": with method tar.gz, the archive is a tar.gz file."""
    assert stopped.run_pair(method="tar.gz").status == 0
    with gzip.open(stopped.out / "data") as opened, tarfile.open(fileobj=opened) as tar:
        made = tar.extractfile("./made")
        assert made is not None
        assert made.read() == b"by the container\n"
        assert tar.getmember("./directory/program").mode == 0o755


def test_names_in_a_tar_begin_at_its_top(stopped: Stopped) -> None:
    """No sentence, but what every reader of a tar relied on: ./ before all names, / after directories."""
    assert stopped.run_pair(method="tar.gz").status == 0
    listed = subprocess.run(
        ["tar", "-tzf", stopped.out / "data"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert sorted(listed) == ["./", "./directory/", "./directory/program", "./made"]


# tar-content-owner


@pytest.mark.parametrize(("value", "owner"), [("2000", (2000, 0)), ("2000:3000", (2000, 3000))])
def test_the_owner_of_all_in_the_tar_can_be_changed(
    stopped: Stopped, value: str, owner: tuple[int, int]
) -> None:
    """Readme, "How": tar-content-owner, like 2000 or 2000:3000, is the owner of the files in the tar."""
    assert stopped.run_pair(method="tar.gz", tar_content_owner=value).status == 0
    with tarfile.open(stopped.out / "data") as tar:
        assert {(member.uid, member.gid) for member in tar} == {owner}


@pytest.mark.parametrize("value", ["root", "root:root", "2000:users", "-1", "1:2:3"])
def test_only_integers_are_owners(stopped: Stopped, value: str) -> None:
    """Readme, "How": numbers alone are supported, names of users are not."""
    result = stopped.run_pair(method="tar.gz", tar_content_owner=value)
    assert result.status == 0
    assert any("tar-content-owner" in message for message in result.messages("warning"))
    status = stopped.overlay.inside((stopped.overlay.upper / "made").stat)
    with tarfile.open(stopped.out / "data") as tar:
        assert {(member.uid, member.gid) for member in tar} == {(status.st_uid, status.st_gid)}


# The hook in a spec, and the hook's configuration


def test_the_hook_in_a_spec_needs_no_arguments(stopped: Stopped, executable: Path) -> None:
    """Readme, "Add poststop hook directly in the OCI spec": a path is enough."""
    assert stopped.run_pair(executable=executable).status == 0
    expect_copy(stopped.out / "data")


@pytest.fixture
def configuration() -> dict[str, object]:
    """Give the hook configuration as it is installed."""
    template = (hooks.TOP / "hooks.d/archive_overlay.json.in").read_text()
    parsed: dict[str, object] = json.loads(template.replace("@BINDIR@", "/usr/bin"))
    return parsed


def test_the_hook_configuration_is_of_version_1_for_poststop(configuration: dict[str, object]) -> None:
    """Readme, "Add OCI hook config": version 1.0.0, stage poststop, the program in /usr/bin."""
    assert configuration["version"] == "1.0.0"
    assert configuration["stages"] == ["poststop"]
    hook = configuration["hook"]
    assert isinstance(hook, dict)
    assert hook["path"] == "/usr/bin/archive_overlay"


@pytest.mark.parametrize(
    ("keys", "fires"),
    [
        (("data.mount-point", "data.archive-to"), True),
        (("data.mount-point", "data.archive-to", "data.success"), True),
        (("data/mount-point", "data/archive-to"), True),  # since 3.0.0
        (("data.mount-point",), True),  # since 3.1.0: the hook says what is missing
        (("data.mountpoint", "data.archive_to"), True),
        ((), False),
    ],
)
def test_the_hook_configuration_is_for_containers_with_such_annotations(
    configuration: dict[str, object], keys: tuple[str, ...], fires: bool
) -> None:
    """Readme, "Add OCI hook config": the hook runs for containers that have both annotations."""
    when = configuration["when"]
    assert isinstance(when, dict)
    names = ["other", f"x{PREFIX}.data.archive-to", *(f"{PREFIX}.{key}" for key in keys)]
    matched = all(
        any(re.search(key, name) and re.search(value, "/some/path") for name in names)
        for key, value in when["annotations"].items()
    )
    assert matched == fires


# Debug


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", {"debug", "info"}), ("trace", {"trace", "debug", "info"})]
)
def test_a_log_level_prints_debug_information(stopped: Stopped, level: str, shown: set[str]) -> None:
    """Readme, "Debug": with --log-level=debug, or trace for more, it prints what helps to debug."""
    result = stopped.run_pair(f"--log-level={level}")
    assert result.status == 0
    assert {line.level for line in result.lines()} == shown


def test_the_log_is_on_stderr(stopped: Stopped) -> None:
    """Readme, "Debug": the runtime can redirect the hook's stderr to a file, to read the messages there."""
    result = stopped.run_pair("--log-level=debug")
    assert result.stdout == ""
    assert result.lines() != []


@pytest.mark.parametrize("level", ["trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"])
def test_all_log_levels_are_known_in_any_case(stopped: Stopped, level: str) -> None:
    """Help: these are the levels; --log-level ignores case."""
    for spelling in (level, level.upper(), level.title()):
        assert stopped.run_pair("--log-level", spelling).status == 0


def test_info_is_the_level_by_default(stopped: Stopped) -> None:
    """Help: the log level is info unless another one is given."""
    assert {line.level for line in stopped.run_pair().lines()} == {"info"}


def test_an_unknown_log_level_is_refused(stopped: Stopped) -> None:
    """Help: messages are logged above the level that is specified, one of those listed."""
    result = stopped.run_pair("--log-level=loud")
    assert result.status != 0
    assert "loud" in result.stderr
    assert os.listdir(stopped.out) == []


def test_syslog_without_a_daemon_does_not_stop_the_hook(stopped: Stopped) -> None:
    """Readme, "Syslog": where no daemon runs, no messages are sent, but the hook runs all the same.

    That --syslog sends them where one runs is tested with podman, in tests/e2e/test_logs.py.
    """

    def no_daemon() -> None:
        if os.path.exists("/dev/log"):
            overlays.bind(stopped.overlay.upper / "made", Path("/dev/log"))

    stopped.overlay.inside(no_daemon)
    assert stopped.run_pair("--syslog").status == 0
    expect_copy(stopped.out / "data")


# The command line


def test_the_version_is_told() -> None:
    """Help: --version, or -v, prints the name, the word version, and the version."""
    for option in ("--version", "-v"):
        result = hooks.run_hook(b"", option)
        assert (result.status, result.stdout) == (
            0,
            f"archive_overlay version {archive_overlay.__version__}\n",
        )


def test_help_names_the_options(stopped: Stopped) -> None:
    """Help: --help, or -h, lists --log-level, --syslog, --mount-program and --version."""
    for option in ("--help", "-h"):
        result = hooks.run_hook(b"", option)
        assert result.status == 0
        for named in ("--log-level", "--syslog", "--mount-program", "--version", "--help"):
            assert named in result.stdout


@pytest.mark.parametrize("flavour", [overlays.FUSE, overlays.FUSE_ROOTLESS])
def test_overlays_of_fuse_overlayfs_are_found(
    flavour: overlays.Flavour, new_overlay: NewOverlay, scratch: Path
) -> None:
    """Help: --mount-program is /usr/bin/fuse-overlayfs unless another one is given."""
    overlay = new_overlay(flavour)
    overlay.change(change)
    stopped = Stopped(overlay, scratch)
    assert stopped.run_pair().status == 0
    expect_copy(stopped.out / "data")


def test_the_mount_program_can_be_another_one(new_overlay: NewOverlay, scratch: Path) -> None:
    """Help: --mount-program is the path of the program that mounts, by which its options are looked up."""
    overlay = new_overlay(overlays.FUSE_ROOTLESS)
    program = overlays.copy_of_program(overlay.flavour, scratch)
    overlay.program = str(program)
    overlay.change(change)
    stopped = Stopped(overlay, scratch)
    assert stopped.run_pair("--mount-program", program).status == 0
    expect_copy(stopped.out / "data")
