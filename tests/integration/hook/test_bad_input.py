"""What cannot be done gets one clear line, exit status 1, and touches nothing; the rest is still done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from archive_overlay.keys import KEYS
from tests.integration.conftest import Saver, expect_equal
from tests.support import hooks, overlays, trees

PREFIX = hooks.PREFIX


# The container state and the spec: without them nothing can be done.


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"\n",
        b"{",
        b"{} {}",
        b"\xff\xfe",
        b"not JSON",
        b"[" * 200_000,
        b"[]",
        b"null",
        b'"bundle"',
        b"5",
        b"{}",
        b'{"bundle": null}',
        b'{"bundle": 5}',
        b'{"bundle": ["/"]}',
        b'{"bundle": ""}',
        b'{"bundle": "a\\u0000b"}',
        b'{"bundle": "/a\\u0000b"}',
        b'{"bundle": "/\\ud800"}',
        b'{"bundle": "/no/such/bundle"}',
        b'{"bundle": "/dev/null"}',
    ],
    ids=lambda state: repr(state[:30]),
)
def test_a_state_that_is_none_is_one_line(state: bytes) -> None:
    result = hooks.run_hook(state)

    assert result.status == 1
    assert result.only_error()
    assert len(result.lines()) == 1


@pytest.mark.parametrize(
    "spec",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 200_000,
        b"[]",
        b"null",
        b'{"annotations": []}',
        b'{"annotations": "x"}',
        b'{"annotations": {"%s.a.archive-to": "/a", "%s.a.mount-point": "/d"}, "mounts": {}}'
        % ((PREFIX.encode(),) * 2),
        b'{"annotations": {"%s.a.archive-to": "/a", "%s.a.mount-point": "/d"}, "mounts": "x"}'
        % ((PREFIX.encode(),) * 2),
        b'{"annotations": {"%s.a.archive-to": "/a", "%s.a.mount-point": "/d"}, "mounts": 5}'
        % ((PREFIX.encode(),) * 2),
    ],
    ids=lambda spec: repr(spec[:12] + spec[-12:]),
)
def test_a_spec_that_is_none_is_one_line(tmp_path: Path, spec: bytes) -> None:
    bundle = hooks.Bundle(tmp_path / "bundle")
    (bundle.directory / "config.json").write_bytes(spec)

    result = hooks.run_hook(bundle)

    assert result.status == 1
    assert "config.json" in result.only_error()
    assert len(result.lines()) == 1


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path)])
def test_a_spec_that_cannot_be_read_is_one_line(tmp_path: Path, make: Any) -> None:
    bundle = hooks.Bundle(tmp_path / "bundle")
    (bundle.directory / "config.json").unlink()
    make(bundle.directory / "config.json")

    result = hooks.run_hook(bundle)

    assert result.status == 1
    assert str(bundle.directory / "config.json") in result.only_error()


def test_a_bundle_without_a_spec_is_one_line(tmp_path: Path) -> None:
    result = hooks.run_hook(json.dumps({"bundle": str(tmp_path)}).encode())

    assert result.status == 1
    assert str(tmp_path / "config.json") in result.only_error()


def test_a_closed_stdin_is_one_line() -> None:
    result = hooks.run_hook(b"", before=lambda: os.close(0))

    assert result.status == 1
    assert result.only_error()


def test_a_terminal_as_stdin_says_who_calls_this_program() -> None:
    answer = hooks.run_on_terminal(b"", stdin=True)

    assert answer.status == 2
    assert "Container engines run this program as a hook, with the state of a container" in answer.stderr
    assert "See 'archive_overlay help'" in answer.stderr


def test_no_annotation_of_ours_is_silence(tmp_path: Path) -> None:
    result = hooks.run_hook(hooks.Bundle(tmp_path / "bundle"))

    assert (result.status, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("annotations", [None, {}])
def test_no_annotations_at_all_are_silence(tmp_path: Path, annotations: Any) -> None:
    bundle = hooks.Bundle(tmp_path / "bundle")
    spec = {**bundle.spec, "annotations": annotations, "mounts": None}
    (bundle.directory / "config.json").write_text(json.dumps(spec))

    result = hooks.run_hook(bundle)

    assert (result.status, result.stderr) == (0, "")


# One request that cannot be done, beside one that can.


def run_with_a_good_one(saver: Saver, **keys: Any) -> hooks.Result:
    """Run the hook for a bad request, and see that a good one beside it is done all the same."""
    good = saver.directory / "good"
    also = hooks.annotations("good", mount_point="/good", archive_to=good, method=saver.method)
    mounts = keys.pop("mounts", [saver.overlay.spec_mount()])

    result = saver.run(mounts=[*mounts, saver.overlay.spec_mount("/good")], also=also, **keys)

    assert result.status == 1
    assert good.exists(), result.stderr
    assert result.only_error().startswith("archive data: ")
    assert not saver.success.exists()
    return result


def test_a_mount_point_that_is_none_lists_those_there_are(small: Saver) -> None:
    result = run_with_a_good_one(small, mount_point="/dta")

    assert "/dta" in result.only_error()
    for destination in ("/data", "/good", "/proc", "/dev"):
        assert destination in result.only_error()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("destination", ["/proc", "/dev"])
def test_a_mount_that_is_no_overlay(small: Saver, destination: str) -> None:
    result = run_with_a_good_one(small, mount_point=destination)

    assert destination in result.only_error()
    assert os.listdir(small.out) == []


def test_an_upperdir_that_is_gone(small: Saver) -> None:
    mount = hooks.overlay_mount("/data", upper=small.directory / "gone", lowers=[Path("/")])

    result = run_with_a_good_one(small, mounts=[mount])

    assert str(small.directory / "gone") in result.only_error()
    assert os.listdir(small.out) == []


def test_an_upperdir_that_is_a_file(small: Saver) -> None:
    (small.directory / "file").touch()
    mount = hooks.overlay_mount("/data", upper=small.directory / "file", lowers=[Path("/")])

    result = run_with_a_good_one(small, mounts=[mount])

    assert str(small.directory / "file") in result.only_error()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("name", ["zip", "COPY", "tar.gz ", "../copy"])
def test_an_unknown_method_lists_those_there_are(small: Saver, name: str) -> None:
    good = small.directory / "good"
    also = hooks.annotations("good", mount_point="/data", archive_to=good)

    result = small.run(also=also, method=name)

    assert result.status == 1
    assert name in result.only_error()
    assert "copy" in result.only_error()
    assert "tar.gz" in result.only_error()
    assert good.exists()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("path", ["archive", "./archive", "../archive", "~/archive"])
@pytest.mark.parametrize("key", ["archive_to", "success"])
def test_a_relative_path(small: Saver, key: str, path: str) -> None:
    result = run_with_a_good_one(small, **{key: path})

    assert path in result.only_error()
    assert key.replace("_", "-") in result.only_error()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("path", ["/a\0b", "/\ud800"])
@pytest.mark.parametrize("key", ["archive_to", "success", "mount_point"])
def test_a_path_that_no_system_call_takes(small: Saver, key: str, path: str) -> None:
    result = run_with_a_good_one(small, **{key: path})

    assert key.replace("_", "-") in result.only_error()
    assert os.listdir(small.out) == []


def test_a_path_that_is_too_long(small: Saver) -> None:
    run_with_a_good_one(small, archive_to=small.out / ("n" * 256))

    assert os.listdir(small.out) == []


@pytest.mark.parametrize("place", ["", "inner", "inner/most", "../upper/inner"])
def test_an_archive_in_the_upperdir_it_is_made_of(small: Saver, place: str) -> None:
    before = trees.view(small.overlay.upper)

    result = run_with_a_good_one(small, archive_to=f"{small.overlay.upper}/{place}")

    assert "upperdir" in result.only_error()
    expect_equal(before, trees.view(small.overlay.upper))


def test_an_archive_in_the_upperdir_by_way_of_a_symlink(small: Saver) -> None:
    (small.out / "link").symlink_to(small.overlay.upper)
    before = trees.view(small.overlay.upper)

    result = run_with_a_good_one(small, archive_to=small.out / "link" / "inner")

    assert "upperdir" in result.only_error()
    expect_equal(before, trees.view(small.overlay.upper))


def test_an_archive_in_place_of_a_directory_that_holds_the_upperdir(small: Saver) -> None:
    layers = small.overlay.directory
    before = small.overlay.inside(lambda: trees.view(layers))

    run_with_a_good_one(small, archive_to=layers)

    expect_equal(before, small.overlay.inside(lambda: trees.view(layers)))


def test_an_archive_below_a_file(small: Saver) -> None:
    (small.out / "file").write_text("x")

    result = run_with_a_good_one(small, archive_to=small.out / "file" / "archive")

    assert str(small.out / "file") in result.only_error()
    assert (small.out / "file").read_text() == "x"


def test_an_archive_at_the_top_of_the_system(small: Saver) -> None:
    run_with_a_good_one(small, archive_to="/")


def test_a_disk_that_takes_no_writes(small: Saver) -> None:
    disk = small.directory / "disk"
    disk.mkdir()

    def run() -> hooks.Result:
        overlays.mount_tmpfs(disk, "size=1m")
        try:
            overlays.make_read_only(disk)
            return run_with_a_good_one_here(small, disk / "archive")
        finally:
            overlays.unmount(disk)

    result = small.overlay.inside(run)

    assert "Read-only file system" in result.only_error()
    assert str(disk) in result.only_error()


def test_a_marker_on_a_disk_that_takes_no_writes_is_named_with_what_follows(small: Saver) -> None:
    disk = small.directory / "disk"
    disk.mkdir()

    def run() -> hooks.Result:
        overlays.mount_tmpfs(disk, "size=1m")
        try:
            overlays.make_read_only(disk)
            return small.run_here(success=disk / "done")
        finally:
            overlays.unmount(disk)

    error = small.overlay.inside(run).only_error()

    assert (
        f"the success marker {disk}/done could not be created, so no archive was made: Read-only file system"
        in error
    )
    assert not small.archive.exists()


@pytest.mark.parametrize("options", ["size=128k", "size=10m,nr_inodes=10"], ids=["data", "names"])
def test_a_disk_that_is_full(any_saver: Saver, options: str) -> None:
    def change(root: Path) -> None:
        (root / "large").write_bytes(os.urandom(2**20))
        for number in range(20):
            (root / f"{number}").mkdir()

    saver = any_saver
    saver.overlay.change(change)
    disk = saver.directory / "disk"
    disk.mkdir()

    def run() -> tuple[hooks.Result, list[str]]:
        overlays.mount_tmpfs(disk, options)
        try:
            if saver.method == "tar.gz" and "inodes" in options:
                for number in range(9):
                    (disk / f"{number}").touch()
                before = set(os.listdir(disk))
            else:
                before = set()
            result = run_with_a_good_one_here(saver, disk / "archive")
            return result, sorted(set(os.listdir(disk)) - before)
        finally:
            overlays.unmount(disk)

    result, names = saver.overlay.inside(run)

    assert "No space left on device" in result.only_error()
    assert str(disk) in result.only_error()
    assert names == []
    assert not saver.success.exists()


def run_with_a_good_one_here(saver: Saver, archive: Path) -> hooks.Result:
    good = saver.directory / "good"
    also = hooks.annotations("zgood", mount_point="/data", archive_to=good, method=saver.method)
    result = saver.run_here(archive_to=archive, also=also)
    assert result.status == 1
    assert good.exists(), result.stderr
    return result


@pytest.mark.parametrize(
    "mount",
    [
        "string",
        5,
        None,
        {},
        {"destination": 5},
        {"destination": None},
        {"destination": "/data", "type": 5, "source": "/"},
        {"destination": "/data", "type": "overlay", "options": "rw"},
        {"destination": "/data", "type": "overlay", "options": [5]},
        {"destination": "/data", "type": "overlay", "options": {}},
        {"destination": "/data", "type": "bind", "source": 5},
        {"destination": "/data", "type": "bind"},
        {"destination": "/data", "type": "bind", "source": "/a\0b"},
        {"destination": "/data", "type": "bind", "source": "relative"},
        {"destination": "/data", "type": "bind", "source": "/\ud800"},
        {"destination": "/data", "type": "overlay", "options": ["upperdir=/a\0b"]},
        {"destination": "/data", "type": "overlay", "options": ["upperdir=/\ud800"]},
        {"destination": "/data", "type": "overlay", "options": ["upperdir="]},
        {"destination": "/data", "type": "overlay", "options": ["upperdir=relative"]},
        {"destination": "/data", "type": "overlay"},
        {"destination": "/data"},
    ],
    ids=repr,
)
def test_a_mount_of_the_spec_that_is_none(small: Saver, mount: Any) -> None:
    good = small.directory / "good"
    also = hooks.annotations("good", mount_point="/good", archive_to=good)

    result = small.run(mounts=[mount, small.overlay.spec_mount("/good")], also=also)

    assert result.status == 1
    assert result.messages("error")
    assert "internal error" not in result.stderr
    assert good.exists()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize(
    ("poststop", "swallowed"),
    [
        ([{"path": "/usr/bin/archive_overlay", "args": ["--no-setid", "--syslog"]}], "--no-setid"),
        (
            [{"path": "/bin/true"}, {"path": "/x/archive_overlay", "args": ["a --max-bytes=1 --no-setid"]}],
            "--max-bytes=1 --no-setid",
        ),
        ([{"path": "/usr/bin/archive_overlay", "args": ["archive_overlay", "--no-setid"]}], ""),
        ([{"path": "/a -b/archive_overlay", "args": ["/a -b/archive_overlay"]}], ""),
        ([{"path": "/bin/other", "args": ["-x"]}], ""),
        ([{"path": "/usr/bin/archive_overlay", "args": [None]}, {"path": 5}, None], ""),
        ({}, ""),
    ],
)
def test_an_option_where_the_program_s_name_belongs(small: Saver, poststop: Any, swallowed: str) -> None:
    bundle = hooks.Bundle(
        small.directory / "bundle", mounts=[small.overlay.spec_mount()], annotations=small.asks()
    )
    (bundle.directory / "config.json").write_text(
        json.dumps({**bundle.spec, "hooks": {"poststop": poststop}})
    )

    result = hooks.run_hook(bundle)

    assert result.status == 0
    warnings = [each for each in result.messages("warning") if "the program's name belongs" in each]
    assert [each.partition(" has no effect")[0] for each in warnings] == ([swallowed] if swallowed else [])


@pytest.mark.parametrize("value", [5, None, ["/archive"], {}, True])
@pytest.mark.parametrize("key", ["archive-to", "method", "success", "if-exists"])
def test_an_annotation_that_is_no_string(small: Saver, key: str, value: Any) -> None:
    good = small.directory / "good"
    also = hooks.annotations("good", mount_point="/data", archive_to=good)
    bundle = hooks.Bundle(
        small.directory / "bundle",
        mounts=[small.overlay.spec_mount()],
        annotations={**small.asks(), **also, f"{PREFIX}.data.{key}": value},
    )

    result = hooks.run_hook(bundle)

    assert result.status == 1
    assert key in result.only_error()
    assert good.exists()
    assert os.listdir(small.out) == []


# What is ignored, with a warning as in 2.0.4 or without one.


@pytest.mark.parametrize("method", ["copy", "move", "tar", "tar.gz", "oci"])
def test_annotations_without_a_value_are_as_if_they_were_not_there(small: Saver) -> None:
    optional = (key.replace("-", "_") for key in KEYS if key not in ("mount-point", "archive-to", "method"))

    result = small.run(**dict.fromkeys(optional, ""))  # type: ignore[arg-type]

    assert result.status == 0, result.stderr
    assert [line.level for line in result.lines()] == ["info"]
    assert small.archive.exists()
    assert not small.success.exists()


def test_a_method_without_a_value_is_copy(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: (root / "made").write_text("by a container"))

    assert any_saver.run(method="").status == 0
    assert (any_saver.archive / "made").read_text() == "by a container"


@pytest.mark.parametrize("key", ["mount_point", "archive_to"])
def test_a_required_annotation_without_a_value_is_missing(small: Saver, key: str) -> None:
    result = small.run(**{key: ""})  # type: ignore[arg-type]

    assert result.status == 0
    (warning,) = result.messages("warning")
    assert warning == f"archive data is ignored: it has no {key.replace('_', '-')} annotation"
    assert os.listdir(small.out) == []


@pytest.mark.parametrize(
    ("annotations", "culprit"),
    [
        ({f"{PREFIX}.half.mount-point": "/data"}, "half"),
        ({f"{PREFIX}.half.archive-to": "/somewhere"}, "half"),
        ({f"{PREFIX}.half.success": "/somewhere", f"{PREFIX}.half.method": "copy"}, "half"),
        ({f"{PREFIX}.data.colour": "red"}, f"{PREFIX}.data.colour"),
        ({f"{PREFIX}.data.Method": "zip"}, f"{PREFIX}.data.Method"),
        ({f"{PREFIX}.nodots": "x"}, f"{PREFIX}.nodots"),
        ({f"{PREFIX}.many.dots.archive-to": "/x"}, f"{PREFIX}.many.dots.archive-to"),
        ({f"{PREFIX}..archive-to": "/x"}, f"{PREFIX}..archive-to"),
        ({f"{PREFIX}.": "x"}, f"{PREFIX}."),
    ],
)
def test_annotations_that_make_no_request_are_ignored_with_a_warning(
    small: Saver, annotations: dict[str, str], culprit: str
) -> None:
    result = small.run(also=annotations)

    assert result.status == 0, result.stderr
    (warning,) = result.messages("warning")
    assert culprit in warning
    assert small.success.exists()


def test_a_look_alike_prefix_is_none_of_ours(small: Saver) -> None:
    result = small.run(also={f"{PREFIX}s.x.archive-to": "/x", f"x{PREFIX}.x.archive-to": "/x"})

    assert (result.status, result.messages("warning")) == (0, [])
