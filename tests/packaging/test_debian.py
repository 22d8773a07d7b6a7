"""The Debian package: built without a network, clean, and gone without a trace when it is purged."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.packaging.conftest import DOCUMENTS, TOP, broken_links, build_package
from tests.support import engines, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engines import Machine

DEBIAN = TOP / "packaging/debian"

PROGRAMS = {
    "usr/bin/archive_overlay",
    "usr/lib/systemd/system/archive_overlay-recover.service",
    "usr/lib/systemd/user/archive_overlay-recover.service",
    "usr/share/bash-completion/completions/archive_overlay",
    "usr/share/containers/oci/hooks.d/archive_overlay.json",
    "usr/share/lintian/overrides/archive-overlay",
    *(f"usr/share/man/man1/{page.name}.gz" for page in (TOP / "man").glob("*.1")),
    *(f"usr/share/fish/vendor_completions.d/{path.name}" for path in (TOP / "completions").glob("*.fish")),
    "usr/share/zsh/vendor-completions/_archive_overlay",
}

# What dpkg and podman keep of their own work, whatever the package.
BOOKS = {
    *("var/lib/dpkg/status", "var/lib/dpkg/status-old", "var/log/dpkg.log"),
    *("var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock"),
    "var/lib/containers/cache/blob-info-cache-v1.boltdb",
}

# Not of the root's own file system.
NOT_ON_DISK = {"dev", "proc", "run", "sys"}


@pytest.fixture(scope="module")
def built(release: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Build the package, and give its files."""
    tools.need("dpkg-buildpackage", "dh")
    return build_package("deb", release, tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def deb(built: list[Path]) -> Path:
    """Give the package that is installed."""
    (package,) = (path for path in built if path.suffix == ".deb")
    return package


@pytest.fixture(scope="module")
def contents(deb: Path) -> dict[str, bytes]:
    """Give the contents of the regular files of the package."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        regular = [(member.name[2:], tar.extractfile(member)) for member in tar]
    return {name: file.read() for name, file in regular if file}


def field(deb: Path, name: str) -> str:
    """Give a field of the package's description."""
    asked = subprocess.run(["dpkg-deb", "--field", deb, name], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def test_lintian_finds_nothing_in_the_packages(built: list[Path]) -> None:
    tools.need("lintian")
    (changes,) = (path for path in built if path.suffix == ".changes")
    levels = ("--display-info", "--pedantic", "--fail-on=error,warning,info,pedantic")
    done = subprocess.run(["lintian", *levels, changes], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(DEBIAN.rglob("*lintian-overrides")), ids=lambda path: path.name)
def test_every_override_has_its_reason(path: Path) -> None:
    lines = path.read_text().splitlines()
    reasoned = [line for before, line in zip(["", *lines], lines) if not line.startswith("#") and not before]
    assert reasoned == []


def test_debian_s_name_has_no_underscore(deb: Path) -> None:
    assert field(deb, "Package") == "archive-overlay"
    assert field(deb, "Architecture") == "all"


def test_it_depends_on_python_and_recommends_an_engine(deb: Path) -> None:
    assert field(deb, "Depends") == "python3 (>= 3.9)"
    assert "podman" in field(deb, "Recommends")


def test_the_program_has_the_bytes_of_the_release(contents: dict[str, bytes], executable: Path) -> None:
    packaged = hashlib.sha256(contents["usr/bin/archive_overlay"])
    assert packaged.hexdigest() == hashlib.sha256(executable.read_bytes()).hexdigest()


def test_it_has_all_documents_and_nothing_unexpected(contents: dict[str, bytes]) -> None:
    documentation = "usr/share/doc/archive-overlay/"
    documents = {
        name[len(documentation) :].replace(".gz", "") for name in contents if name.startswith(documentation)
    }
    # Debian has the licence in copyright, and its own name for the changelog.
    assert documents == {
        *("changelog", "changelog.Debian", "copyright", "debug/archive_overlay.json"),
        *DOCUMENTS,
    } - {"LICENSE", "CHANGELOG.md"}
    assert {name for name in contents if not name.startswith(documentation)} == PROGRAMS


def test_links_between_the_documents_work(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", deb, tmp_path], check=True)
    assert broken_links(tmp_path / "usr/share/doc/archive-overlay") == []


@pytest.fixture(scope="module")
def fresh() -> Iterator[Machine]:
    """Set up a machine whose root has podman and what the package depends on, and nothing else of Debian."""
    tools.need_root()
    tools.need("mmdebstrap", "unshare", "nsenter")
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        tools.cannot_run("this is no Debian")
    # Made once: what matters is that it was made of packages alone, not when.
    subprocess.run([TOP / "tools/roots.sh", "fresh"], stdin=subprocess.DEVNULL, check=True)
    with engines.bare_machine(TOP / ".cache/roots/fresh") as machine:
        yield machine


def everything(machine: Machine) -> dict[str, tuple[object, ...]]:
    """Give what tells whether anything in a machine's root was made or changed, by path."""
    top = machine.outside("/")
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(top):
        where = os.path.relpath(directory, top)
        if where == ".":
            directories[:] = [name for name in directories if name not in NOT_ON_DISK]
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            facts: tuple[object, ...] = (status.st_mode, status.st_uid, status.st_gid)
            if stat.S_ISREG(status.st_mode):
                facts += (status.st_size, status.st_mtime_ns)
            elif stat.S_ISLNK(status.st_mode):
                facts += (os.readlink(path),)
            found[os.path.normpath(os.path.join(where, name))] = facts
    return {path: facts for path, facts in found.items() if path not in BOOKS}


def test_a_container_is_saved_and_a_purge_leaves_nothing(
    fresh: Machine, deb: Path, contents: dict[str, bytes]
) -> None:
    engine = engines.Engine(fresh, rootless=False, store="native", runtime="crun")
    engines.prepare_store(engine, hooks_dir=None)
    for path in (deb, DEBIAN / "tests/podman"):
        (fresh.outside(engines.HERE) / path.name).write_bytes(path.read_bytes())
    before = everything(fresh)

    fresh.run("dpkg", "--install", f"{engines.HERE}/{deb.name}")

    installed = everything(fresh)
    listed = fresh.run("dpkg", "--listfiles", "archive-overlay").stdout.splitlines()
    made = {path for path in installed.keys() - before.keys() if not path.startswith("var/lib/dpkg/info/")}
    assert made <= {path.lstrip("/") for path in listed}, "not all of it belongs to the package"
    assert made >= contents.keys()
    assert fresh.run("dpkg", "--verify", "archive-overlay").stdout == ""

    # What Debian's own machines run to see whether the package works.
    engine.as_container_root("sh", f"{engines.HERE}/podman")

    fresh.run("dpkg", "--purge", "archive-overlay")
    assert "archive-overlay" not in fresh.run("dpkg-query", "--show").stdout
    after = everything(fresh)
    assert [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)] == []
