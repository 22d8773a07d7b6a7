"""make release-check: passes for what can be released, and says of everything else what to do."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

import archive_overlay
from tests.packaging.conftest import PATH, commit
from tests.support import tools

if TYPE_CHECKING:
    from pathlib import Path

CHECKS = ("commit", "version", "man", "completions", "build", "sums")
VERSION = archive_overlay.__version__


@pytest.fixture
def source(release: Path, tmp_path: Path) -> Path:
    """Give a git checkout to spoil."""
    return shutil.copytree(release, tmp_path / "source")


def check(source: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Run the checks as `make release-check` does, with the tools that pytest was installed with."""
    return subprocess.run(
        [sys.executable, "-B", source / "tools/release_check.py", *names],
        env={"PATH": PATH, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def expect_refused(done: subprocess.CompletedProcess[str], name: str, *words: str) -> None:
    """Hold that one check failed, in one line that has these words."""
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FAIL"))
    assert line.startswith(f"FAIL  {name}: ")
    assert [word for word in words if word not in line] == [], line


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text that is in a file by another, everywhere in it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_each_check_says_in_a_line_that_the_commit_can_be_released(source: Path) -> None:
    tools.need(f"{PATH.split(':', 1)[0]}/argparse-manpage")
    done = check(source)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"ok    {name}" for name in CHECKS]


def test_what_is_released_agrees_with_its_checksums(source: Path, executable: Path) -> None:
    dist = source / "dist"
    assert check(source, "sums").returncode == 0
    listed = (line.split("  ") for line in (dist / "SHA256SUMS").read_text().splitlines())
    sums = {name: digest for digest, name in listed}
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dist.iterdir()
        if path.name != "SHA256SUMS"
    }
    assert set(sums) == {"archive_overlay.pyz", f"archive_overlay-{VERSION}.tar.gz"}
    assert sums["archive_overlay.pyz"] == hashlib.sha256(executable.read_bytes()).hexdigest()
    with tarfile.open(dist / f"archive_overlay-{VERSION}.tar.gz") as tar:
        assert f"archive_overlay-{VERSION}/packaging/debian/rules" in tar.getnames()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("archive_overlay/__init__.py", f'"{VERSION}"', '"3.99.0"'),
        ("CHANGELOG.md", f"## {VERSION}", f"## 3.99.0\n\n## {VERSION}"),
        ("man/archive_overlay.1", f"archive_overlay {VERSION}", "archive_overlay 3.99.0"),
        ("packaging/debian/changelog", f"({VERSION}-", "(3.99.0-"),
        ("packaging/archive_overlay.spec", f"Version:        {VERSION}", "Version: 3.99.0"),
        ("packaging/archive_overlay.spec", f"> - {VERSION}-", "> - 3.99.0-"),
    ],
)
def test_another_version_anywhere_is_found(source: Path, name: str, old: str, new: str) -> None:
    replace(source / name, old, new)
    expect_refused(check(source, "version"), "version", name, "3.99.0", VERSION)


def test_what_is_not_committed_cannot_be_released(source: Path) -> None:
    (source / "archive_overlay/new.py").touch()
    expect_refused(check(source, "commit"), "commit", "archive_overlay/new.py", "commit")


def test_a_stale_manual_page_is_found(source: Path) -> None:
    tools.need(f"{PATH.split(':', 1)[0]}/argparse-manpage")
    replace(source / "archive_overlay/cli.py", "also send log messages to the system log", "no longer so")
    commit(source)
    expect_refused(check(source, "man"), "man", "man/archive_overlay.1", "make man")


def test_stale_completions_are_found(source: Path) -> None:
    replace(source / "archive_overlay/cli.py", '"--syslog"', '"--journal"')
    commit(source)
    expect_refused(
        check(source, "completions"), "completions", "completions/_archive_overlay", "make completions"
    )


def test_a_tool_that_is_missing_is_named(source: Path) -> None:
    replace(source / "tools/completions.py", "import shtab", "import shtab_that_nobody_has")
    commit(source)
    expect_refused(check(source, "completions"), "completions", "tools/requirements.txt")


def test_a_build_that_is_not_reproducible_is_found(source: Path) -> None:
    replace(source / "tools/onefile.py", 'MAIN = """\\\n', 'MAIN = f"# {os.urandom(8).hex()}\\n" + """\\\n')
    commit(source)
    expect_refused(check(source, "build"), "build", "differ")


def test_a_build_that_fails_is_told(source: Path) -> None:
    replace(
        source / "tools/onefile.py", "def main() -> None:\n", "def main() -> None:\n    sys.exit('no room')\n"
    )
    replace(source / "tools/onefile.py", "import os\n", "import os\nimport sys\n")
    commit(source)
    expect_refused(check(source, "build"), "build", "build.sh failed", "no room")


def test_an_unknown_check_is_refused(source: Path) -> None:
    done = check(source, "everything")
    assert done.returncode != 0
    assert "commit, version, man" in done.stderr
