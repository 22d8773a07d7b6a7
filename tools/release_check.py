"""Check that the last commit can be released: python3 tools/release_check.py [CHECK]...

Each check says in one line how it went, and what to do if it failed. The last of them writes what is
released to dist/, with SHA256SUMS.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TOP = Path(__file__).resolve().parent.parent

# Where the version is written, and how; all of them must say the same.
VERSIONS = {
    "archive_overlay/__init__.py": r'^__version__ = "(.*)"$',
    "CHANGELOG.md": r"^## (\S+)",
    "man/archive_overlay.1": r'^\.TH \S+ "1" "[^"]*" "archive_overlay (\S+)"',
    "packaging/debian/changelog": r"^archive-overlay \((.*)-[^-]*\)",
    "packaging/archive_overlay.spec": r"^Version: *(\S+)$",
    "the %changelog of packaging/archive_overlay.spec": r"^\* .*> - (.*)-[^-]*$",
}

PROGRAM = "archive_overlay.pyz"


class NotYetError(Exception):
    """The commit cannot be released as it is; the message says why, and what to do."""


def main() -> None:
    """Run the checks that are named, or all of them."""
    names = sys.argv[1:] or list(CHECKS)
    failed = False
    for name in names:
        if name not in CHECKS:
            sys.exit(f"release_check.py: there is no check {name}, only {', '.join(CHECKS)}")
        try:
            said = f"ok    {name}: {CHECKS[name]()}"
        except NotYetError as error:
            failed = True
            said = f"FAIL  {name}: {error}"
        print(said, flush=True)
    sys.exit(1 if failed else 0)


def check_commit() -> str:
    """Everything is committed."""
    changed = _git("status", "--porcelain").splitlines()
    if changed:
        raise NotYetError(
            f"{len(changed)} files are not as they were committed ({changed[0][3:]}); commit them"
        )
    return f"{_git('rev-parse', '--short', 'HEAD').strip()}, with nothing uncommitted"


def check_version() -> str:
    """The version is the same wherever it is written."""
    found = {where: _version(where, pattern) for where, pattern in VERSIONS.items()}
    version = found["archive_overlay/__init__.py"]
    others = [f"{where} has {other}" for where, other in found.items() if other != version]
    if others:
        raise NotYetError(
            f"the version is {version} in archive_overlay/__init__.py, but {', '.join(others)}; change them (the manual page by make man)"
        )
    return f"{version} in {len(found)} places"


def check_man() -> str:
    """The manual pages are those of the program."""
    return _check_generated("man", "make man", [sys.executable, "-B", "tools/manpage.py", "man"])


def check_completions() -> str:
    """The completions are those of the program."""
    return _check_generated(
        "completions", "make completions", [sys.executable, "-B", "tools/completions.py", "completions"]
    )


def check_build() -> str:
    """Two builds in different surroundings give the same bytes."""
    with tempfile.TemporaryDirectory(prefix="archive_overlay-release-") as directory:
        one = _build(_checkout(Path(directory) / "one"))
        other = _build(
            _checkout(Path(directory) / "another, größer"),
            "--without-shiv",
            umask=0o077,
            environment={"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "7"},
        )
    if one != other:
        raise NotYetError(
            "two builds of the same commit differ; find out why with diffoscope, or the checksums will mean nothing"
        )
    return f"two builds, with shiv and without, are equal: {hashlib.sha256(one).hexdigest()}"


def check_sums() -> str:
    """What is released is in dist/, and SHA256SUMS agrees with it."""
    version = _version("archive_overlay/__init__.py", VERSIONS["archive_overlay/__init__.py"])
    source = f"archive_overlay-{version}.tar.gz"
    dist = TOP / "dist"
    dist.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="archive_overlay-release-") as directory:
        (dist / PROGRAM).write_bytes(_build(_checkout(Path(directory) / "release")))
    (dist / PROGRAM).chmod(0o755)
    _git("archive", f"--prefix=archive_overlay-{version}/", f"--output={dist / source}", "HEAD")
    sums = "".join(
        f"{hashlib.sha256((dist / name).read_bytes()).hexdigest()}  {name}\n" for name in (PROGRAM, source)
    )
    (dist / "SHA256SUMS").write_text(sums)
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=dist,
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode != 0:
        raise NotYetError(
            f"dist/SHA256SUMS does not agree: {checked.stdout.strip()}; see what else writes to dist"
        )
    return f"dist/SHA256SUMS agrees with dist/{PROGRAM} and dist/{source}"


CHECKS: dict[str, Callable[[], str]] = {
    "commit": check_commit,
    "version": check_version,
    "man": check_man,
    "completions": check_completions,
    "build": check_build,
    "sums": check_sums,
}


def _version(where: str, pattern: str) -> str:
    text = (TOP / where.split(" of ")[-1]).read_text()
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].replace("\\", "") if match else "none"


def _check_generated(where: str, remedy: str, command: list[str]) -> str:
    """Write what is generated anew, in a copy, and compare.

    Args:
        where: the directory that it is in.
        remedy: what writes it.
        command: the same, to be run in the copy.
    """
    with tempfile.TemporaryDirectory(prefix="archive_overlay-release-") as name:
        copy = _checkout(Path(name) / "copy")
        before = _files(copy / where)
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise NotYetError(
                f"{' '.join(command)} failed ({said}); see tools/requirements.txt for what it takes"
            )
        after = _files(copy / where)
    stale = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if stale:
        raise NotYetError(f"{', '.join(stale)} is not that of the program; {remedy}, and commit it")
    return f"{where}/ is that of the program"


def _files(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory.parent)): path.read_bytes() for path in files}


def _checkout(directory: Path) -> Path:
    """Give the last commit's files in a directory that does not exist yet."""
    directory.mkdir()
    archive = subprocess.run((*_GIT, "archive", "HEAD"), cwd=TOP, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=directory, input=archive, check=True)
    return directory


def _build(
    directory: Path, *options: str, umask: int = 0o022, environment: dict[str, str] | None = None
) -> bytes:
    """Build the program in a directory, and give its bytes."""
    done = subprocess.run(
        ["sh", "-c", 'umask "$0"; exec ./build.sh "$@"', f"{umask:03o}", *options],
        cwd=directory,
        env={**os.environ, "SOURCE_DATE_EPOCH": "", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NotYetError(f"build.sh failed: {done.stderr.strip()}")
    return (directory / "dist" / PROGRAM).read_bytes()


_GIT = ("git", "-c", "safe.directory=*")


def _git(*arguments: str) -> str:
    return subprocess.run((*_GIT, *arguments), cwd=TOP, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
