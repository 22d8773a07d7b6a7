"""build.sh: the same bytes whoever builds them, and a file that says what it is."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging import pythons
from tests.packaging.conftest import PATH, Change, checkout, run
from tests.support import tools


def build(
    source: Path, *arguments: str | Path, umask: int = 0o022, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run build.sh with an environment of these variables and a PATH."""
    return subprocess.run(
        [source / "build.sh", *arguments],
        env={"PATH": PATH, **variables},
        umask=umask,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )


def digest(path: Path) -> str:
    """Give what is the same for files of the same bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bystanders(directory: Path) -> Path:
    """Make modules that no build may ever import."""
    directory.mkdir()
    for name in ("argparse", "compileall", "json", "os", "time", "zipfile", "archive_overlay", "shiv"):
        (directory / f"{name}.py").write_text("raise SystemExit('imported from a hostile directory')\n")
    return directory


@pytest.mark.parametrize("python", pythons.SUPPORTED, ids=str)
def test_two_builds_are_equal_byte_by_byte(python: pythons.Python, tmp_path: Path, executable: Path) -> None:
    one = checkout(tmp_path / "one")
    other = checkout(tmp_path / "somewhere else" / "größer")
    (other / "build/lib/archive_overlay").mkdir(parents=True)
    (other / "build/lib/archive_overlay/deleted.py").touch()
    (other / "archive_overlay/__pycache__").mkdir()
    (other / "archive_overlay/__pycache__/cli.pyc").touch()

    # That shiv makes the same bytes is seen on the way: only the second one is built with it.
    build(one, "--without-shiv", PYTHON=python.path, TZ="UTC", PYTHONHASHSEED="1", LC_ALL="C")
    build(
        other,
        PYTHON=python.path,
        umask=0o077,
        TZ="Asia/Kathmandu",
        PYTHONHASHSEED="2",
        PYTHONOPTIMIZE="2",
        PYTHONPATH=str(bystanders(tmp_path / "hostile")),
        SHIV_ROOT="/nonexistent",
        LC_ALL="C.UTF-8",
    )

    assert digest(one / "dist/archive_overlay.pyz") == digest(other / "dist/archive_overlay.pyz")


def test_the_standard_library_alone_makes_the_bytes_that_shiv_makes(tmp_path: Path, executable: Path) -> None:
    tools.need(f"{Path(sys.executable).parent}/shiv")
    source = checkout(tmp_path / "source")
    assert "no shiv here" not in build(source, tmp_path / "with").stderr
    build(source, "--without-shiv", tmp_path / "without")
    assert digest(tmp_path / "with") == digest(tmp_path / "without") == digest(executable)


def test_a_shiv_that_is_missing_is_installed_as_it_was_locked(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    assert shutil.which("shiv", path=path) is None, "this test is for a machine without shiv"
    done = subprocess.run(
        [source / "build.sh"],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hash" not in done.stderr, done.stderr
    if "no shiv here" in done.stderr:
        tools.cannot_run("no package index to install shiv from")
    lock = (source / "tools/requirements.txt").read_text().splitlines()
    (version,) = (line.split()[0] for line in lock if line.startswith("shiv=="))
    installed = subprocess.run(
        [source / ".cache/shiv/bin/python", "-m", "pip", "freeze", "--all"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert version in installed.stdout.splitlines()


def test_a_build_by_another_user_is_equal(open_directory: Path, executable: Path) -> None:
    tools.need_root()
    tools.need("setpriv")
    source = checkout(open_directory / "source")
    shutil.chown(open_directory, 65534)
    subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"),
            *(source / "build.sh", "--without-shiv", open_directory / "built"),
        ],
        env={"PATH": "/usr/bin:/bin"},
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert digest(open_directory / "built") == digest(executable)


def test_a_build_needs_no_network(tmp_path: Path, executable: Path) -> None:
    tools.need("unshare")
    source = checkout(tmp_path / "source")
    offline = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
    done = subprocess.run(
        [*offline, source / "build.sh"],
        env={"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "standard library alone" in done.stderr
    assert digest(source / "dist/archive_overlay.pyz") == digest(executable)


@pytest.mark.parametrize(
    ("epoch", "date"),
    [
        ("1500000000", (2017, 7, 14, 2, 40, 0)),
        ("0", (1980, 1, 1, 0, 0, 0)),
        ("99999999999", (2107, 12, 31, 23, 59, 58)),
    ],
)
def test_entries_have_the_date_that_was_asked_for(
    tmp_path: Path, epoch: str, date: tuple[int, int, int, int, int, int]
) -> None:
    source = checkout(tmp_path / "source")
    build(source, SOURCE_DATE_EPOCH=epoch, TZ="America/Lima")
    with zipfile.ZipFile(source / "dist/archive_overlay.pyz") as built:
        assert {info.date_time for info in built.infolist()} == {date}


def test_an_unusable_date_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        build(checkout(tmp_path / "source"), SOURCE_DATE_EPOCH="yesterday")
    assert "SOURCE_DATE_EPOCH" in refused.value.stderr


@pytest.mark.parametrize("interpreter", ["python3", "/opt/my python/bin/python3"])
def test_an_interpreter_that_no_hook_can_use_is_refused(tmp_path: Path, interpreter: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        build(checkout(tmp_path / "source"), PYTHON=interpreter)
    assert interpreter in refused.value.stderr


def test_the_first_line_names_the_interpreter_that_was_asked_for(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    build(source, PYTHON="/opt/not/here/python3")
    first_line = (source / "dist/archive_overlay.pyz").read_bytes().split(b"\n")[0]
    assert first_line.startswith(b"#!/opt/not/here/python3 -IBSc")


def test_an_interpreter_with_a_long_path_starts_as_python_runs_any_zip(
    tmp_path: Path, change: Change
) -> None:
    source = checkout(tmp_path / "source")
    python = tmp_path / ("long" * 20) / "python3"
    python.parent.mkdir()
    python.symlink_to("/usr/bin/python3")
    build(source, PYTHON=str(python))
    program = source / "dist/archive_overlay.pyz"
    assert program.read_bytes().startswith(f"#!{python} -IBSXutf8\n".encode())
    change.expect_saved(run([program], change, env={}))


def test_the_first_line_is_debians_python_by_default(executable: Path) -> None:
    (first_line, *_) = executable.read_bytes().split(b"\n")
    assert first_line.startswith(b"#!/usr/bin/python3 -IBSc")
    assert len(first_line) < 127  # all that older kernels read of it


def test_the_zip_counts_the_first_line(executable: Path) -> None:
    # zipfile mends offsets that are off by what precedes the zip; not every reader does.
    data = executable.read_bytes()
    end = data.rindex(b"PK\5\6")
    count, _, start = struct.unpack("<HLL", data[end + 10 : end + 20])
    assert data[start : start + 4] == b"PK\1\2"
    with zipfile.ZipFile(executable) as built:
        assert len(built.infolist()) == count
        assert all(data[info.header_offset :][:4] == b"PK\3\4" for info in built.infolist())
        assert built.testzip() is None


def test_the_file_holds_the_package_and_nothing_else(executable: Path) -> None:
    package = Path(__file__).resolve().parents[2]
    sources = {
        f"site-packages/{path.relative_to(package)}" for path in package.glob("archive_overlay/**/*.py")
    }
    with zipfile.ZipFile(executable) as built:
        names = built.namelist()
    assert names == sorted(names)
    assert set(names) == {"BLOCK", "__main__.py", "start.py"} | sources | {f"{name}c" for name in sources}


def test_the_file_is_executable_whatever_the_umask(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    build(source, tmp_path / "built", umask=0o077)
    assert (tmp_path / "built").stat().st_mode & 0o777 == 0o755
