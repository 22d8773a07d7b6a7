"""What the administrator allows on the hook's command line, whatever the annotations ask for."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay import methods
from tests.integration.conftest import Saver
from tests.support import image_layouts

if TYPE_CHECKING:
    from typing import Callable

METHODS = ["copy", "tar.gz", "move"]


@pytest.fixture
def method(request: pytest.FixtureRequest) -> str:
    name: str = getattr(request, "param", "copy")
    return name


def set_id(root: Path) -> None:
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o6755)
    os.setxattr(root / "program", "user.kept", b"yes")


def capable(root: Path) -> None:
    (root / "program").write_text("#!/bin/sh\n")
    # capabilities(7), "File capability extended attribute versioning": version 2, effective; CAP_NET_RAW.
    os.setxattr(root / "program", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    os.setxattr(root / "program", "user.kept", b"yes")


def attributes_of_program(saver: Saver) -> set[str]:
    """Give the names of the extended attributes that the archived program has."""
    if methods.METHODS[saver.method].makes != "layout":
        return set(os.listxattr(saver.extracted / "program"))
    (layer,) = image_layouts.read(saver.archive).layers
    return {key.partition("SCHILY.xattr.")[2] for key in layer.member("program").pax_headers} - {""}


def sparse(root: Path) -> None:
    (root / "holes").touch()
    os.truncate(root / "holes", 1 << 30)


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_archives_go_where_they_may(small: Saver) -> None:
    result = small.run("--allow-archive-to", small.directory)

    assert result.status == 0, result.stderr
    assert small.archive.exists()
    assert small.success.exists()


@pytest.mark.parametrize("method", [*METHODS, "oci"], indirect=True)
def test_no_archive_goes_anywhere_else(small: Saver, tmp_path: Path) -> None:
    result = small.run("--allow-archive-to", tmp_path / "other", "--allow-archive-to", small.out / "archive")

    assert result.status == 1
    assert f"archive-to {small.archive} is not allowed; it must be in" in result.only_error()
    assert os.listdir(small.out) == []
    assert not small.success.exists()


@pytest.mark.parametrize("method", [*METHODS, "oci"], indirect=True)
def test_a_directory_that_is_allowed_is_never_made(small: Saver) -> None:
    allowed = small.out / "allowed"

    result = small.run("--allow-archive-to", allowed, archive_to=allowed / "archive", success=None)

    assert result.status == 1
    assert f"{allowed}" in result.only_error()
    assert "No such file or directory" in result.only_error()
    assert os.listdir(small.out) == []

    allowed.mkdir()
    result = small.run("--allow-archive-to", allowed, archive_to=allowed / "made" / "archive", success=None)

    assert result.status == 0, result.stderr
    assert os.listdir(allowed / "made") == ["archive"]


def test_no_marker_goes_anywhere_else(small: Saver) -> None:
    result = small.run("--allow-archive-to", small.out)

    assert result.status == 1
    assert f"success {small.success} is not allowed" in result.only_error()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_no_link_leads_out_of_where_archives_may_go(small: Saver) -> None:
    allowed = small.directory / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(small.out)

    result = small.run("--allow-archive-to", allowed, archive_to=allowed / "link" / "archive", success=None)

    assert result.status == 1
    assert f"which is {small.archive}, is not allowed" in result.only_error()
    assert os.listdir(small.out) == []


def test_what_is_refused_is_rescued(small: Saver, scratch: Path) -> None:
    result = small.run("--allow-archive-to", "/nowhere", "--rescue-dir", scratch / "rescued")

    assert result.status == 1
    assert result.only_error().endswith(f"its changes are kept in {scratch}/rescued/c1/data")
    assert os.listdir(scratch / "rescued" / "c1" / "data") == ["made"]


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_no_set_id_bits_are_archived(any_saver: Saver) -> None:
    any_saver.overlay.change(set_id)

    result = any_saver.run("--no-setid")

    assert result.status == 0, result.stderr
    program = any_saver.extracted / "program"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    assert os.getxattr(program, "user.kept") == b"yes"


def test_set_id_bits_are_archived_otherwise(any_saver: Saver) -> None:
    any_saver.overlay.change(set_id)

    assert any_saver.run().status == 0
    assert stat.S_IMODE((any_saver.archive / "program").stat().st_mode) == 0o6755


@pytest.mark.parametrize("method", methods.METHODS, indirect=True)
@pytest.mark.parametrize(("arguments", "given"), [((), True), (("--no-setid",), False)], ids=["", "no-setid"])
def test_file_capabilities_are_archived_where_set_id_bits_are(
    any_saver: Saver, arguments: tuple[str, ...], given: bool
) -> None:
    any_saver.overlay.change(capable)

    result = any_saver.run(*arguments)

    assert result.status == 0, result.stderr
    found = attributes_of_program(any_saver)
    assert "user.kept" in found
    assert ("security.capability" in found) == given


@pytest.mark.parametrize("method", METHODS, indirect=True)
@pytest.mark.parametrize("limit", ["--max-entries", "--max-bytes"])
def test_a_change_set_beyond_the_limit_is_refused(small: Saver, limit: str) -> None:
    most = 1
    if limit == "--max-bytes":
        # Of a tar, its blocks and its end; else the name and the contents.
        most = 10240 if methods.METHODS[small.method].compression else len("made") + len("by a container")
    refused = small.run(f"{limit}={most - 1}")
    assert refused.status == 1
    assert f"more than {most - 1}" in refused.only_error()
    assert os.listdir(small.archive if small.archive.exists() else small.out) == []

    allowed = small.run(f"{limit}={most}")
    assert allowed.status == 0, allowed.stderr
    assert small.archive.exists()


def holes(root: Path) -> None:
    with (root / "holes").open("wb") as file:
        file.truncate(1 << 20)


def contents(root: Path) -> None:
    (root / "contents").write_bytes(bytes(100_000))


def half_holes(root: Path) -> None:
    with (root / "half").open("wb") as file:
        file.write(bytes(100_000))
        file.truncate(1 << 20)


def attributes(root: Path) -> None:
    for number in range(100):
        (root / f"{number}").touch()
        os.setxattr(root / f"{number}", "user.long", bytes(1000))


def attributes_of_others(root: Path) -> None:
    """Set attributes of what is no regular file."""
    for number in range(100):
        (root / f"{number}").mkdir()
        os.setxattr(root / f"{number}", "user.long", bytes(1000))


def targets(root: Path) -> None:
    for number in range(30):
        (root / f"{number}").symlink_to("t" * 4000)


def names(root: Path) -> None:
    for number in range(300):
        (root / f"{number:0250}").touch()


def paths(root: Path) -> None:
    """Make paths that are long as a whole, and links, whose targets are paths too."""
    here = root
    for _ in range(19):
        here = here / ("d" * 200)
        here.mkdir()
    (here / "file").touch()
    for number in range(20):
        os.link(here / "file", here / f"link {number}")


TAR_ONLY = (paths,)
OCI_ONLY = (holes,)
FAT = (contents, half_holes, attributes, attributes_of_others, targets, names)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        *((method, change) for method in ("copy", "tar", "oci") for change in FAT),
        *((method, change) for method in ("tar", "oci") for change in TAR_ONLY),
        *(("oci", change) for change in OCI_ONLY),
        *((method, contents) for method in ("move", "tar.gz", "tar.zst")),
    ],
    indirect=["method"],
)
def test_whatever_reaches_the_disk_is_counted(any_saver: Saver, change: Callable[[Path], None]) -> None:
    any_saver.overlay.change(change)

    result = any_saver.run("--max-bytes=64K")

    assert result.status == 1
    assert "the archive has more than 65536 bytes, the most that is allowed" in result.only_error()
    assert os.listdir(any_saver.archive if any_saver.archive.exists() else any_saver.out) == []


@pytest.mark.parametrize("method", ["tar", "oci"], indirect=True)
def test_a_tar_has_as_many_bytes_as_are_allowed(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        for each in (*FAT, paths):
            (root / each.__name__).mkdir()
            each(root / each.__name__)

    any_saver.overlay.change(change)
    assert any_saver.run(compression="none" if any_saver.method == "oci" else None, success=None).status == 0
    made = any_saver.archive
    if any_saver.method == "oci":
        made = max((made / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    size = made.stat().st_size

    assert (
        "more than" in any_saver.run(f"--max-bytes={size - 1}", archive_to=any_saver.out / "b").only_error()
    )
    assert any_saver.run(f"--max-bytes={size}", archive_to=any_saver.out / "b").status == 0


@pytest.mark.parametrize("method", ["copy", "tar", "oci"], indirect=True)
def test_directories_are_entries(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        os.makedirs(root / "a/b/c/d/e")

    any_saver.overlay.change(change)

    assert "more than 4 entries" in any_saver.run("--max-entries=4").only_error()
    assert any_saver.run("--max-entries=5").status == 0


def test_holes_do_not_count(any_saver: Saver) -> None:
    any_saver.overlay.change(sparse)

    assert any_saver.run("--max-bytes=4096").status == 0


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "9" * 30, "K", "10GB", "8388608T"])
@pytest.mark.parametrize("option", ["--max-bytes", "--max-entries"])
def test_a_limit_is_a_number(small: Saver, option: str, value: str) -> None:
    result = small.run(f"{option}={value}")

    assert result.status == 2
    assert f"argument {option}: {value!r} is not a whole number" in result.stderr
