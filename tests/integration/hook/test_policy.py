"""What the administrator allows on the hook's command line, whatever the annotations ask for."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from archive_overlay import methods
from tests.integration.conftest import Saver
from tests.support import image_layouts

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
@pytest.mark.parametrize(("limit", "most"), [("--max-entries", 1), ("--max-bytes", len("by a container"))])
def test_a_change_set_beyond_the_limit_is_refused(small: Saver, limit: str, most: int) -> None:
    refused = small.run(f"{limit}={most - 1}")
    assert refused.status == 1
    assert f"more than {most - 1}" in refused.only_error()
    assert os.listdir(small.out) == []

    allowed = small.run(f"{limit}={most}")
    assert allowed.status == 0, allowed.stderr
    assert small.archive.exists()


def test_holes_do_not_count(any_saver: Saver) -> None:
    any_saver.overlay.change(sparse)

    assert any_saver.run("--max-bytes=4096").status == 0


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "9" * 30])
def test_a_limit_is_a_number(small: Saver, value: str) -> None:
    assert small.run(f"--max-bytes={value}").status == 2
