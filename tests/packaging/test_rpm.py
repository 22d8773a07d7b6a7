"""The rpm package: built without a network, clean, and gone without a trace when it is erased."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.packaging.conftest import DOCUMENTS, TOP, Change, build_package, run
from tests.support import tools

SPEC = TOP / "packaging/archive_overlay.spec"
REASONS = TOP / "packaging/archive_overlay.rpmlintrc"

PROGRAMS = {
    "/usr/bin/archive_overlay",
    "/usr/lib/systemd/system/archive_overlay-recover.service",
    "/usr/lib/systemd/user/archive_overlay-recover.service",
    "/usr/share/bash-completion/completions/archive_overlay",
    "/usr/share/containers/oci/hooks.d/archive_overlay.json",
    "/usr/share/zsh/site-functions/_archive_overlay",
    *(f"/usr/share/fish/vendor_completions.d/{path.name}" for path in (TOP / "completions").glob("*.fish")),
}
DOCUMENTATION = "/usr/share/doc/archive_overlay/"

# What every system has before the first package that is not the system's own.
ON_EVERY_SYSTEM = (
    "usr/bin",
    "usr/lib",
    "usr/share/doc",
    "usr/share/licenses",
    "usr/share/man/man1",
    "var/lib/rpm",
)


MAINTAINER = "Jane & Co | Ltd <jane@example.org>"


@pytest.fixture(scope="module")
def built(release: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Build the package, and give its files."""
    tools.need("rpmbuild", "rpm")
    return build_package("rpm", release, tmp_path_factory.mktemp("rpm"), MAINTAINER=MAINTAINER)


@pytest.fixture(scope="module")
def package(built: list[Path]) -> Path:
    """Give the package that is installed."""
    (binary,) = (path for path in built if path.name.endswith(".noarch.rpm"))
    return binary


def rpm(*arguments: str | Path) -> list[str]:
    """Run rpm, and give the lines that it writes."""
    done = subprocess.run(["rpm", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_rpmlint_finds_nothing_in_the_packages(built: list[Path]) -> None:
    tools.need("rpmlint")
    done = subprocess.run(
        ["rpmlint", "--rpmlintrc", REASONS, *built, SPEC], capture_output=True, text=True, check=False
    )
    assert "0 errors, 0 warnings" in done.stdout, done.stdout
    assert f"{len(built)} packages" in done.stdout


def test_every_filter_has_its_reason() -> None:
    lines = REASONS.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert [line for line in lines if not line.startswith(("# ", "addFilter("))] == []


def test_there_is_a_source_package(built: list[Path]) -> None:
    (source,) = (path for path in built if path.name.endswith(".src.rpm"))
    (archive,) = (
        name for name in rpm("--query", "--list", "--package", source) if not name.endswith(".spec")
    )
    assert archive == f"archive_overlay-{rpm('-qp', '--queryformat', '%{version}', source)[0]}.tar.gz"


def test_it_says_who_publishes_it(package: Path) -> None:
    changes = rpm("-qp", "--changelog", package)
    assert MAINTAINER in changes[0]
    assert "invalid" not in "".join(changes)


def test_it_requires_python_and_recommends_an_engine(package: Path) -> None:
    required = [line for line in rpm("-qp", "--requires", package) if not line.startswith("rpmlib(")]
    assert required == ["python3 >= 3.9"]
    assert "podman" in rpm("-qp", "--recommends", package)


def test_it_has_all_documents_and_nothing_unexpected(package: Path) -> None:
    # A name and its mode, which begins with a 4 for a directory.
    listed = [
        line.split() for line in rpm("-qp", "--queryformat", "[%{filenames} %{filemodes:octal}\n]", package)
    ]
    files = {name for name, mode in listed if len(mode) == 6}
    documents = {name[len(DOCUMENTATION) :] for name in files if name.startswith(DOCUMENTATION)}
    assert documents == {
        "debug/archive_overlay.json",
        *DOCUMENTS,
    } - {"LICENSE"}
    others = {name for name in files if not name.startswith((DOCUMENTATION, "/usr/share/licenses/"))}
    # Compressed where the distribution's rpm does so.
    pages = {name for name in others if name.startswith("/usr/share/man/man1/")}
    assert {Path(name).name.partition(".1")[0] + ".1" for name in pages} == {
        page.name for page in (TOP / "man").glob("*.1")
    }
    assert others - pages == PROGRAMS


def test_the_installed_program_saves_and_erasing_it_leaves_nothing(
    package: Path, change: Change, executable: Path, tmp_path: Path
) -> None:
    tools.need_root()
    root = tmp_path / "root"
    for directory in ON_EVERY_SYSTEM:
        (root / directory).mkdir(parents=True)
    before = {path for path in root.rglob("*") if "rpm" not in path.parts}

    # Debian's rpm has its database in the home directory, and knows of no installed Python.
    there = ("--root", root, "--dbpath", "/var/lib/rpm")
    rpm(*there, "--install", "--nodeps", package)

    assert rpm(*there, "--verify", "--nodeps", "archive_overlay") == []
    program = root / "usr/bin/archive_overlay"
    assert hashlib.sha256(program.read_bytes()).digest() == hashlib.sha256(executable.read_bytes()).digest()
    assert os.stat(program).st_mode & 0o7777 == 0o755
    change.expect_saved(run([program], change))

    rpm(*there, "--erase", "archive_overlay")
    assert {path for path in root.rglob("*") if "rpm" not in path.parts} == before
