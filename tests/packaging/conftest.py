"""What the tests of the built program share: a checkout to build from, and a change set to save."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, tools, trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TOP = Path(__file__).resolve().parents[2]

# What building and installing takes.
SOURCES = (
    "archive_overlay",
    "tools",
    "hooks.d",
    "systemd",
    "man",
    "completions",
    "build.sh",
    "Makefile",
    "docs",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
)

# What a release has besides.
OTHERS = ("packaging", "pyproject.toml", ".gitignore")

# What is installed as documentation, by its place in the sources.
DOCUMENTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"),
    *(str(path.relative_to(TOP)) for path in sorted((TOP / "docs").rglob("*")) if path.is_file()),
)

# Where the tools are that pytest itself was installed with, shiv among them.
PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

# Names that are no UTF-8, and names that are no Latin-1.
NAMES = (b"caf\xe9", "größe €".encode(), b"plain")


class Change:
    """A change set, a bundle that asks for it twice, and where the archives go.

    The upperdir is an ordinary directory: that the hook saves real overlays rightly is for other tests.

    Args:
        directory: an empty directory.
    """

    def __init__(self, directory: Path) -> None:
        self.upper = directory / "upper"
        self.out = directory / "out"
        self.tree = self.out / "tree €"
        self.tar = self.out / "tar.gz"
        self.success = self.out / "success"
        (directory / "lower").mkdir()
        self.out.mkdir()
        top = os.fsencode(self.upper)
        os.makedirs(top + b"/d/e")
        for name in NAMES:
            (self.upper / os.fsdecode(name)).write_bytes(b"data of " + name)
        (self.upper / "d/e/deep").write_text("deep")
        (self.upper / "link").symlink_to("d/e/deep")
        self.bundle = hooks.Bundle(
            directory / "bundle",
            # As of a user: without privileges too it is known what is marked in it.
            mounts=[
                hooks.overlay_mount("/data", upper=self.upper, lowers=[directory / "lower"], userxattr=True)
            ],
            annotations={
                **hooks.annotations("a", mount_point="/data", archive_to=self.tree, success=self.success),
                **hooks.annotations("b", mount_point="/data", archive_to=self.tar, method="tar.gz"),
            },
        )

    def expect_saved(self, done: subprocess.CompletedProcess[bytes]) -> None:
        """Hold that a run of the hook succeeded, and that both archives are whole."""
        assert done.returncode == 0, done.stderr.decode()
        assert self.success.read_bytes() == b""
        differing = trees.differences(trees.view(self.upper), trees.view(self.tree))
        assert not differing, "\n".join(differing)
        with tarfile.open(self.tar, errors="surrogateescape") as tar:
            members = {os.fsencode(member.name) for member in tar}
        assert members == {b"." if path == b"." else b"./" + path for path in trees.view(self.upper).entries}
        assert sorted(os.listdir(self.out)) == ["success", "tar.gz", "tree €"], "debris"


@pytest.fixture
def change(tmp_path: Path) -> Change:
    """Give a change set to save."""
    directory = tmp_path / "change"
    directory.mkdir()
    return Change(directory)


def run(
    command: Sequence[str | Path],
    change: Change,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = "/",
) -> subprocess.CompletedProcess[bytes]:
    """Run a command with the state of a stopped container on stdin.

    Args:
        command: the built program, by itself or at the end of another command.
        change: whose bundle the state names.
        env: the environment; empty by default, as podman makes it.
        cwd: the working directory.
    """
    return subprocess.run(
        command, input=change.bundle.state(), capture_output=True, env=dict(env or {}), cwd=cwd, check=False
    )


def checkout(directory: Path) -> Path:
    """Copy the sources to a directory that does not exist yet."""
    directory.mkdir(parents=True)
    copy(SOURCES, directory)
    return directory


def built_checkout(directory: Path, executable: Path) -> Path:
    """Copy the sources to a directory that does not exist yet, with the program built."""
    source = checkout(directory)
    settings = source / ".cache/build-settings"
    settings.parent.mkdir()
    settings.write_text("/usr/bin/python3 \n")
    (source / "dist").mkdir()
    # As new as it is now, to make.
    shutil.copyfile(executable, source / "dist/archive_overlay.pyz")
    (source / "dist/archive_overlay.pyz").chmod(0o755)
    return source


def broken_links(top: Path) -> list[str]:
    """Give the links of Markdown pages to other files that lead nowhere, or out of a directory."""
    return [
        f"{page.relative_to(top)}: {link}"
        for page in sorted(top.rglob("*.md"))
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / link).exists() or top.resolve() not in (page.parent / link).resolve().parents
    ]


def copy(names: Sequence[str], directory: Path) -> None:
    """Copy files and directories of this checkout into a directory."""
    for name in names:
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(TOP / name, directory / name)


def commit(directory: Path) -> None:
    """Commit all that is in a directory, which becomes a git checkout if it is none."""
    nobody = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    for command in (["init", "--quiet"], ["add", "--all"], [*nobody, "commit", "--quiet", "--message=all"]):
        subprocess.run(
            ["git", *command],
            cwd=directory,
            env={"PATH": PATH, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"},
            stdin=subprocess.DEVNULL,
            check=True,
        )


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a git checkout whose last commit has the sources as they are now, and nothing else."""
    tools.need("git")
    directory = checkout(tmp_path_factory.mktemp("release") / "archive_overlay")
    copy(OTHERS, directory)
    commit(directory)
    return directory


def build_package(kind: str, release: Path, output: Path, **variables: str) -> list[Path]:
    """Build a distribution's package without any network.

    Args:
        kind: "deb" or "rpm".
        release: a git checkout.
        output: where it goes.
        variables: of the environment, who publishes it.

    Returns:
        The files of the package, its source package among them.
    """
    tools.need("unshare")
    offline = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--net")
    done = subprocess.run(
        [*offline, release / "tools/package.sh", kind, output],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Give a directory that other users reach too, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="archive_overlay-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
