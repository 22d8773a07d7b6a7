"""Revisions, directories and files shown without extracting the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import history, hooks, image_layouts
from tests.support.history import directory, file, layer, link, symlink

if TYPE_CHECKING:
    from pathlib import Path

BINARY = bytes(range(256)) * 1000


@pytest.fixture
def layout(scratch: Path) -> Path:
    below = layer(
        directory("etc"),
        file("etc/passwd", b"root", mode=0o600),
        file("etc/old"),
        file("a:b", b"colon"),
        symlink("conf", "/etc"),
    )
    above = layer(
        directory("etc", mtime=2),
        file("etc/.wh.old"),
        file("etc/new", BINARY),
        link("etc/same", "etc/new"),
        file("two\nlines"),
    )
    image_layouts.put(scratch / "layout", "main", layers=[below, above])
    image_layouts.put(scratch / "layout", "v:1@x", layers=[below])
    return scratch / "layout"


def bytes_of(*arguments: str) -> bytes:
    done = subprocess.run([*hooks.command(), *arguments], capture_output=True, env={}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_a_file_comes_out_as_it_went_in(layout: Path) -> None:
    assert bytes_of("cat", f"{layout}:main:etc/new") == BINARY
    assert bytes_of("cat", f"{layout}:main:conf/same") == BINARY
    assert bytes_of("cat", f"{layout}:main@1:/etc/passwd") == b"root"
    assert bytes_of("cat", f"{layout}:main:a:b") == b"colon"
    assert bytes_of("cat", f"{layout}:v:1@x:a:b") == b"colon"
    assert bytes_of("cat", f"{layout}:v:1@x@1:a:b") == b"colon"


def test_holes_are_zeros(scratch: Path) -> None:
    (scratch / "sparse").touch()
    os.truncate(scratch / "sparse", 300_000)
    with open(scratch / "sparse", "r+b") as written:
        written.seek(200_000)
        written.write(b"data")
    packed = subprocess.run(["tar", "-SC", scratch, "-c", "sparse"], capture_output=True, check=True).stdout
    image_layouts.put(scratch / "layout", "main", layers=[packed])

    assert bytes_of("cat", f"{scratch}/layout:main:sparse") == (scratch / "sparse").read_bytes()


def test_what_has_no_contents(layout: Path) -> None:
    assert "is a directory" in history.complaint_of("cat", f"{layout}:main:etc")
    assert "has no etc/old" in history.complaint_of("cat", f"{layout}:main:etc/old")
    assert "not a directory" in history.complaint_of("cat", f"{layout}:main:a:b/c")
    assert "names a revision, but no file in it" in history.complaint_of("cat", f"{layout}:main")
    assert "no tag x" in history.complaint_of("cat", f"{layout}:x:etc/new")
    assert "has no revision 3" in history.complaint_of("cat", f"{layout}:main@3:etc/new")


def test_a_damaged_layer_gives_nothing(layout: Path) -> None:
    blob = layout / "blobs/sha256" / image_layouts.read(layout, "main").digests[1].partition(":")[2]
    data = blob.read_bytes()
    blob.write_bytes(data.replace(bytes(range(256)), bytes(range(255, -1, -1)), 1))

    assert "digest" in history.complaint_of("cat", f"{layout}:main:etc/new")
    assert "digest" in history.complaint_of("show", f"{layout}:main:etc")


def test_a_reader_that_goes_away_ends_it_in_silence(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "main", layers=[layer(file("a", bytes(1_000_000)))])
    with subprocess.Popen(
        [*hooks.command(), "cat", f"{scratch}/layout:main:a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (128 + signal.SIGPIPE, b"")


def test_a_directory_is_listed(layout: Path) -> None:
    owner = f"{os.geteuid()} {os.getegid()}"
    then = "2001-09-09 01:46:40"
    etc = [
        f"-rw-r--r-- {owner} 256000 {then} new",
        f"-rw------- {owner}      4 {then} passwd",
        f"-rw-r--r-- {owner} 256000 {then} same",
    ]

    assert history.output_of("show", f"{layout}:main:etc").splitlines() == etc
    assert history.output_of("show", f"{layout}:main:conf/").splitlines() == etc
    top = history.output_of("show", f"{layout}:main:").splitlines()
    assert [line.partition(then)[2] for line in top] == [" a:b", " conf -> /etc", "", " two\\nlines"]
    assert "1970-01-01 00:00:02 etc" in top[2]
    found = json.loads(history.output_of("show", "--json", f"{layout}:main:etc"))
    assert [each["name"] for each in found] == ["new", "passwd", "same"]
    assert found[1]["size"] == 4
    assert json.loads(history.output_of("show", "--json", f"{layout}:main@1:etc"))[0]["name"] == "old"


def test_a_file_says_who_changed_it_last(layout: Path) -> None:
    shown = history.output_of("show", f"{layout}:main:etc/passwd")
    assert "mode:           0600 (-rw-------)\n" in shown
    assert shown.endswith("last changed:   revision 1\n")
    found = json.loads(history.output_of("show", "--json", f"{layout}:main:etc/new"))
    assert (found["last_changed"], found["path"], found["size"]) == (2, "etc/new", len(BINARY))
    assert json.loads(history.output_of("show", "--json", f"{layout}:main:conf"))["target"] == "/etc"


def test_a_revision_is_shown_with_what_it_changed(layout: Path) -> None:
    shown = history.output_of("show", f"{layout}:main@2")
    facts, _, changes = shown.partition("\n\n")
    assert "revision:       2\n" in facts
    assert "parent:         1" in facts
    assert changes == history.output_of("diff", f"{layout}:main@2")
    found = json.loads(history.output_of("show", "--json", f"{layout}:main@2"))
    assert found["revision"] == 2
    assert found["changes"] == json.loads(history.output_of("diff", "--json", f"{layout}:main@2"))
