"""All tars say the same, whatever compresses them; and what a user can ask of them."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import hooks, image_layouts, overlays, tools, trees

if TYPE_CHECKING:
    from typing import Any, Callable, TypeVar

    T = TypeVar("T")

TOP = Path(__file__).resolve().parents[3]
ZSTD = "/usr/bin/zstd"
MIB = 2**20
# More than one thread gets at the default level.
LARGE = {"tar.gz": 3 * MIB, "tar.zst": 18 * MIB}

tars = pytest.mark.parametrize("method", ["tar", "tar.gz", "tar.zst"])
gz = pytest.mark.parametrize("method", ["tar.gz"])
zst = pytest.mark.parametrize("method", ["tar.zst"])
by_the_program = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="this Python needs no program for zstd"
)
compressed = pytest.mark.parametrize("method", ["tar.gz", "tar.zst"])


def below(root: Path) -> None:
    for name in ("gone1", "gone2", "changed"):
        (root / name).write_text("below")
    for name in ("kept", "kept/deep", "replaced", "to file"):
        (root / name).mkdir()
        (root / name / "gone").write_text("below")
        (root / name / "stays").write_text("below")


def change(root: Path) -> None:
    """Make something of most kinds, as every container can."""
    (root / "gone1").unlink()
    (root / "gone2").unlink()
    (root / "kept/deep/gone").unlink()
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced" / "new").write_text("new")
    shutil.rmtree(root / "to file")
    (root / "to file").write_text("a file now")
    (root / "changed").write_text("above")
    (root / "changed").chmod(0o4751)
    os.setxattr(root / "changed", "user.lines", b"one\ntwo\0")
    os.link(root / "changed", root / "kept/link")
    (root / "empty").mkdir()
    os.mkfifo(root / "pipe")
    os.symlink("l" * 150, root / "symlink")
    with open(root / "sparse", "wb") as file:
        file.seek(MIB)
        file.write(b"data")
        file.truncate(2 * MIB)
    (root / "large").write_bytes(random.Random(1).randbytes(300_000))
    (root / ("long " * 40)).mkdir()
    (root / ("long " * 40) / "\u00fc\n").write_text("x")
    os.utime(root / "kept/link", ns=(0, -12_345_678_901_234))


@cache
def text(size: int) -> bytes:
    """Give bytes that can be compressed, always the same."""
    words = [b"overlay", b"whiteout", b"opaque", b"upperdir", b"\0\0\0\0", b"container", b"\n"]
    return b" ".join(random.Random(size).choices(words, k=size // 4 + 1))[:size]


@pytest.fixture
def full(any_saver: Saver) -> Saver:
    """Give an overlay in which a container has changed something of most kinds."""
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)
    return any_saver


def saved(saver: Saver, *arguments: str, **keys: Any) -> bytes:
    """Save, and give the bytes of the archive, which is deleted."""
    result = saver.run(*arguments, **keys)
    assert result.status == 0, result.stderr
    assert os.listdir(saver.out) == ["archive"]
    data = saver.archive.read_bytes()
    saver.archive.unlink()
    return data


def unpacked(method: str, data: bytes) -> bytes:
    """Undo what a method has compressed, by the program that everybody has for that."""
    program = {"tar": ["cat"], "tar.gz": ["gzip", "-dc"], "tar.zst": ["zstd", "-dc"]}[method]
    tools.need(program[0])
    return subprocess.run(program, input=data, capture_output=True, check=True).stdout


# What is in a tar


@tars
def test_every_tar_holds_all_that_a_container_left(saver: Saver) -> None:
    if saver.method == "tar.zst":
        tools.need(ZSTD)

    def change_and_listen(root: Path) -> None:
        change(root)
        os.chdir(root)
        os.mkdir(b"\xff not UTF-8")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")

    saver.overlay.layer(below)
    saver.overlay.change(change_and_listen)

    saver.expect_the_same()


@pytest.mark.parametrize("method", ["tar"])
def test_tars_differ_in_nothing_but_the_compression(full: Saver) -> None:
    plain = saved(full)

    for method in ("tar.gz", "tar.zst"):
        assert unpacked(method, saved(full, method=method)) == plain


@pytest.mark.parametrize("method", ["tar", "tar.zst"])
@pytest.mark.parametrize("reader", ["tar", "bsdtar"])
def test_a_tar_is_read_by_other_programs(full: Saver, reader: str) -> None:
    tools.need(reader)
    result = full.run()
    assert result.status == 0, result.stderr

    done = subprocess.run([reader, "-tf", full.archive], check=True, capture_output=True)

    listed = done.stdout.splitlines()
    assert listed[0] == b"./"
    assert len(listed) == len(trees.names(full.overlay.upper)) + 3  # and what was deleted


@pytest.mark.parametrize("method", ["tar"])
def test_a_tar_is_read_by_python(full: Saver) -> None:
    result = full.run()
    assert result.status == 0, result.stderr

    with tarfile.open(full.archive, "r:") as opened:
        member = opened.extractfile("./large")
        assert member
        assert member.read() == random.Random(1).randbytes(300_000)


# Compression


@compressed
def test_the_number_of_jobs_changes_nothing(any_saver: Saver) -> None:
    large = text(LARGE[any_saver.method])
    any_saver.overlay.change(lambda root: (root / "large").write_bytes(large))

    variants = {saved(any_saver, *jobs) for jobs in ((), ("--jobs", "1"), ("--jobs", "2"), ("--jobs=7",))}

    (data,) = variants
    assert large in unpacked(any_saver.method, data)


@gz
@pytest.mark.parametrize("reader", ["gzip", "pigz", "python"])
def test_what_many_threads_compressed_is_one_gzip_file(any_saver: Saver, reader: str) -> None:
    any_saver.overlay.change(lambda root: (root / "large").write_bytes(text(3 * MIB)))
    data = saved(any_saver, "--jobs", "3")

    if reader == "python":
        tar = gzip.decompress(data)
    else:
        tools.need(reader)
        done = subprocess.run([reader, "-dc"], input=data, capture_output=True, check=True)
        tar = done.stdout
        assert done.stderr == b""

    assert text(3 * MIB) in tar


@zst
def test_zstd_writes_one_frame_with_a_checksum(any_saver: Saver) -> None:
    tools.need(ZSTD)
    any_saver.overlay.change(lambda root: (root / "large").write_bytes(text(LARGE["tar.zst"])))
    result = any_saver.run("--jobs", "2")
    assert result.status == 0, result.stderr
    named = any_saver.archive.rename(any_saver.out / "archive.tar.zst")

    subprocess.run([ZSTD, "--test", "--quiet", named], check=True)
    listed = subprocess.run([ZSTD, "--list", "-v", named], check=True, capture_output=True, text=True).stdout

    said = {key.strip(" #"): value.strip() for key, _, value in map(partition, listed.splitlines())}
    assert said["Zstandard Frames"] == "1"
    assert said["Check"].startswith("XXH64")


def partition(line: str) -> tuple[str, str, str]:
    return line.partition(":")


@pytest.mark.parametrize(("method", "smallest"), [("tar.gz", "9"), ("tar.zst", "19")])
def test_a_higher_level_makes_a_smaller_archive(any_saver: Saver, smallest: str) -> None:
    any_saver.overlay.change(lambda root: (root / "large").write_bytes(text(MIB // 2)))

    fast, default, small = (len(saved(any_saver, compression_level=level)) for level in ("1", None, smallest))

    assert fast > default > small


@pytest.mark.parametrize(("method", "default"), [("tar.gz", "6"), ("tar.zst", "3")])
def test_the_default_level(any_saver: Saver, default: str) -> None:
    any_saver.overlay.change(lambda root: (root / "large").write_bytes(text(MIB // 2)))

    assert saved(any_saver) == saved(any_saver, compression_level=default)


@pytest.mark.parametrize(
    ("method", "level"),
    [
        *(("tar.gz", level) for level in ("0", "10", "-1", "six", "6.0", "\u0666")),
        *(("tar.zst", level) for level in ("0", "20", "22", "-5", "1e1")),
        ("tar", "6"),
    ],
)
def test_a_level_that_there_is_not_is_refused(small: Saver, level: str) -> None:
    error = expect_refused(small, compression_level=level)

    assert "compression-level" in error
    assert level in error or small.method == "tar"


def expect_refused(saver: Saver, **keys: Any) -> str:
    """Hold that a request fails before anything is touched, and give what is said."""
    saver.archive.write_bytes(b"an old archive")
    saver.success.write_bytes(b"an old marker")
    before = trees.view(saver.out)

    result = saver.run(**keys)

    assert result.status == 1
    expect_equal(before, trees.view(saver.out))
    assert saver.success.read_bytes() == b"an old marker"
    return result.only_error()


# zstd, by a program


def with_program(saver: Saver, shadow: Callable[[], None], run: Callable[[], T]) -> T:
    """Run something where /usr/bin/zstd is another program, or none."""
    tools.need(ZSTD)

    def inside() -> T:
        shadow()
        try:
            return run()
        finally:
            overlays.detach(Path(ZSTD))
            overlays.detach(Path(ZSTD).parent)

    return saver.overlay.inside(inside)


def hide_zstd(saver: Saver) -> Callable[[], None]:
    """Give what lets /usr/bin be without zstd: an overlay of which the upper layer deletes it."""
    layer = saver.directory / "without zstd"

    def hide() -> None:
        layer.mkdir()
        os.mknod(layer / "zstd", 0o020000, os.makedev(0, 0))
        options = [f"lowerdir={overlays.escape_lower(layer)}:/usr/bin"]
        overlays.mount_overlay(Path("/usr/bin"), [*options, *saver.overlay.flavour.options])

    return hide


def replace_zstd(saver: Saver, script: str) -> Callable[[], None]:
    """Give what lets /usr/bin/zstd be a shell script."""
    fake = saver.directory / "zstd"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    return lambda: overlays.bind(fake, Path(ZSTD))


@zst
@by_the_program
def test_without_zstd_the_request_fails_before_anything_is_touched(small: Saver) -> None:
    error = with_program(small, hide_zstd(small), lambda: expect_refused_here(small))

    assert ZSTD in error
    assert "install zstd" in error


def expect_refused_here(saver: Saver) -> str:
    assert not os.path.lexists(ZSTD)
    saver.run = saver.run_here  # type: ignore[method-assign]  # this process is in the namespace already
    return expect_refused(saver)


@zst
@by_the_program
def test_without_zstd_other_archives_are_made(small: Saver) -> None:
    other = small.directory / "other"
    also = hooks.annotations("other", mount_point="/data", archive_to=other, method="tar.gz")

    result = with_program(small, hide_zstd(small), lambda: small.run_here(also=also))

    assert (result.status, tarfile.is_tarfile(other)) == (1, True)
    assert ZSTD in result.only_error()


@zst
@by_the_program
@pytest.mark.parametrize("size", [1, 5 * MIB])
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("head -c 5000 >/dev/null; echo out of luck >&2; exit 3", "out of luck"),
        ("head -c 5000; exit 3", "status 3"),
        ("kill -KILL $$", "status -9"),
        ("exec /nonexistent", "not found"),
    ],
)
def test_a_zstd_that_dies_is_a_failure_that_leaves_nothing(
    any_saver: Saver, script: str, said: str, size: int
) -> None:
    any_saver.overlay.change(lambda root: (root / "made").write_bytes(os.urandom(size)))

    result = with_program(any_saver, replace_zstd(any_saver, script), any_saver.run_here)

    error = result.only_error()
    assert result.status == 1
    assert ZSTD in error
    assert said in error
    assert os.listdir(any_saver.out) == []
    assert not any_saver.success.exists()


@zst
@by_the_program
def test_a_zstd_that_cannot_be_started_is_a_failure_that_leaves_nothing(small: Saver) -> None:
    nonsense = small.directory / "nonsense"
    nonsense.write_bytes(b"\0nonsense")
    nonsense.chmod(0o755)

    result = with_program(small, lambda: overlays.bind(nonsense, Path(ZSTD)), small.run_here)

    assert result.status == 1
    assert "Exec format error" in result.only_error()
    assert os.listdir(small.out) == []


@zst
@by_the_program
def test_zstd_is_started_with_an_empty_environment_and_no_file_of_the_hook_s(small: Saver) -> None:
    seen = small.directory / "seen"
    seen.touch(0o666)
    script = f'(env; for fd in /proc/$$/fd/*; do readlink "$fd"; done) >"{seen}"; exec cat'

    result = with_program(small, replace_zstd(small, script), small.run_here)

    assert result.status == 0, result.stderr
    left = set()
    for line in seen.read_text().splitlines():
        if not line.startswith(("pipe:", "PWD=", "_=", "SHLVL=", "OLDPWD=")):
            left.add(line)
    # It writes the archive itself. The shell holds its script open, and has the list redirected to a file.
    archives = {path for path in left if path.endswith("/archive")}
    assert left - archives <= {str(small.directory / "zstd"), str(seen), ZSTD}
    assert len(archives) == 1


@pytest.mark.parametrize("method", ["tar", "tar.gz", "tar.zst", "move"])
def test_a_full_disk_is_a_failure_that_leaves_nothing(any_saver: Saver, method: str) -> None:
    any_saver.overlay.change(lambda root: (root / "made").write_bytes(os.urandom(3 * MIB)))
    disk = any_saver.directory / "disk"
    disk.mkdir()
    old = disk / "archive"

    def run() -> tuple[hooks.Result, list[str]]:
        overlays.mount_tmpfs(disk, "size=1m")
        try:
            result = any_saver.run_here(archive_to=old)
            return result, os.listdir(disk)
        finally:
            overlays.detach(disk)

    result, left = any_saver.overlay.inside(run)

    assert (result.status, left) == (1, [])
    assert "No space left on device" in result.only_error()
    assert not any_saver.success.exists()


# zstd, by Python's own


def with_zstd_of_its_own(directory: Path) -> Path:
    """Make a program of this checkout whose Python has compression.zstd, as Python 3.14 has it."""
    lines = [f"#!{sys.executable} -ISXutf8", "import sys"]
    if sys.version_info < (3, 14):
        zstd = importlib.util.find_spec("backports.zstd")
        if not zstd or not zstd.origin:
            tools.cannot_run("backports.zstd not installed")
        package = directory / "library" / "compression"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "zstd.py").write_text("from backports.zstd import *\n")
        lines.append(f"sys.path[:0] = [{str(package.parent)!r}, {str(Path(zstd.origin).parents[2])!r}]")
    program = directory / "program"
    lines += [
        f"sys.path.insert(0, {str(TOP)!r})",
        "from archive_overlay.cli import main",
        "sys.exit(main())",
    ]
    program.write_text("\n".join([*lines, ""]))
    program.chmod(0o755)
    return program


def run_program(saver: Saver, program: Path, *arguments: str) -> hooks.Result:
    """Run a program as the hook, where the overlay is mounted and zstd is not installed."""
    bundle = hooks.Bundle(
        saver.directory / "bundle", mounts=[saver.overlay.spec_mount()], annotations=saver.asks()
    )
    return with_program(
        saver, hide_zstd(saver), lambda: hooks.run_hook(bundle, *arguments, executable=program)
    )


@zst
def test_python_s_own_zstd_needs_no_program(full: Saver) -> None:
    result = run_program(full, with_zstd_of_its_own(full.directory))

    assert result.status == 0, result.stderr
    assert unpacked("tar.zst", full.archive.read_bytes()) == saved(full, method="tar")


@zst
def test_python_s_own_zstd_writes_one_frame_whatever_the_number_of_jobs(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: (root / "large").write_bytes(text(LARGE["tar.zst"])))
    program = with_zstd_of_its_own(any_saver.directory)
    variants = set()
    for jobs in ("1", "2", "1024"):
        result = run_program(any_saver, program, "--jobs", jobs)
        assert result.status == 0, result.stderr
        variants.add(any_saver.archive.read_bytes())
        shutil.rmtree(any_saver.directory / "without zstd")

    (data,) = variants
    assert text(LARGE["tar.zst"]) in unpacked("tar.zst", data)
    any_saver.archive.rename(any_saver.archive.with_suffix(".zst"))
    command = [ZSTD, "--list", str(any_saver.archive.with_suffix(".zst"))]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert (listed[0].split()[0], listed[1].split()[0]) == ("Frames", "1")
    assert listed[1].split()[-2] == "XXH64"


# Deletions in the form of OCI layers


def names(archive: Path) -> list[str]:
    """Give the names in a tar, without `./`; the top is "."."""
    with tarfile.open(archive) as opened:
        return [member.name[2:] if member.name.startswith("./") else member.name for member in opened]


@gz
def test_deletions_and_opaque_directories_as_oci_layers_have_them(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)

    result = saver.run(whiteouts="oci")

    assert result.status == 0, result.stderr
    with tarfile.open(saver.archive) as opened:
        members = {member.name[2:]: member for member in opened}
    marks = {name: member for name, member in members.items() if ".wh." in name}
    assert {".wh.gone1", ".wh.gone2", "kept/deep/.wh.gone", "replaced/.wh..wh..opq"} <= marks.keys()
    assert all(member.isreg() and member.size == 0 for member in marks.values())
    assert not [member for member in members.values() if member.ischr()]
    assert not [key for member in members.values() for key in member.pax_headers if ".overlay." in key]


@tars
def test_overlay_is_the_default_form_of_deletions(full: Saver) -> None:
    assert saved(full) == saved(full, whiteouts="overlay")
    assert saved(full) != saved(full, whiteouts="oci")


@gz
@pytest.mark.parametrize(
    "path", [".wh.made", "directory/.wh.made", ".wh..wh..opq", ".wh.", ".wh..wh.plnk/made", ".wh.link"]
)
def test_a_name_that_would_be_a_deletion_in_a_layer_is_a_failure(any_saver: Saver, path: str) -> None:
    def write(root: Path) -> None:
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).symlink_to("x") if path.endswith("link") else (root / path).touch()

    any_saver.overlay.change(write)

    result = any_saver.run(whiteouts="oci")

    first = next(part for part in (path, os.path.dirname(path)) if os.path.basename(part).startswith(".wh."))
    if os.path.basename(os.path.dirname(path)).startswith(".wh."):
        first = os.path.dirname(path)
    assert result.status == 1
    assert f"{first} cannot be stored" in result.only_error()
    assert os.listdir(any_saver.out) == []


@gz
def test_a_name_that_would_be_a_deletion_in_a_layer_is_none_in_the_overlay_s_form(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: (root / ".wh.made").write_text("kept"))

    any_saver.expect_the_same()


@gz
def test_an_attribute_that_a_layer_has_no_form_for_is_a_failure(any_saver: Saver) -> None:
    def write(root: Path) -> None:
        (root / "made").touch()
        os.setxattr(root / "made", "user.a=b", b"c")

    any_saver.overlay.change(write)

    result = any_saver.run(whiteouts="oci")

    assert result.status == 1
    error = result.only_error()
    assert "user.a=b" in error
    assert "made" in error
    assert os.listdir(any_saver.out) == []


# Attributes of this name can be set where another mark makes directories opaque.
@gz
@pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
def test_an_attribute_that_readers_of_layers_act_on_is_left_out_with_a_warning(saver: Saver) -> None:
    def write(root: Path) -> None:
        (root / "made").mkdir()
        os.setxattr(root / "made", "user.overlay.opaque", b"y")

    saver.overlay.change(write)

    result = saver.run(whiteouts="oci")

    assert result.status == 0, result.stderr
    warnings = result.messages("warning")
    assert any("made" in warning and "user.overlay.opaque" in warning for warning in warnings)
    with tarfile.open(saver.archive) as opened:
        assert "SCHILY.xattr.user.overlay.opaque" not in opened.getmember("./made").pax_headers


@tars
def test_unknown_whiteouts_are_refused(small: Saver) -> None:
    error = expect_refused(small, whiteouts="aufs")

    assert "aufs" in error
    assert "overlay, oci" in error


def image_with(saver: Saver) -> Path:
    """Make an image of the lower layer and, on top of it, the archive as it is."""
    layout = saver.directory / "layout"
    data = saver.archive.read_bytes()
    base = saver.overlay.inside(lambda: image_layouts.tar_of(saver.overlay.lowers[0]))
    tar = unpacked(saver.method, data)
    image_layouts.put(layout, "image")  # makes the layout
    (layout / "index.json").unlink()
    forms = {"tar": "", "tar.gz": "+gzip", "tar.zst": "+zstd"}
    layers = [
        {"mediaType": image_layouts.LAYER_TYPE, **image_layouts.put_blob(layout, base)},
        {
            "mediaType": image_layouts.LAYER_TYPE + forms[saver.method],
            **image_layouts.put_blob(layout, data),
        },
    ]
    diff_ids = [image_layouts.put_blob(layout, part)["digest"] for part in (base, tar)]
    image_layouts.put(
        layout,
        "image",
        config={"rootfs": {"type": "layers", "diff_ids": diff_ids}},
        manifest={"layers": layers},
    )
    return layout


def expect_equal_to_the_second(expected: trees.View, found: trees.View, *, leave_out: set[bytes]) -> None:
    """Compare, but for what programs that read layers do not keep: nanoseconds, and what is named."""

    def coarse(view: trees.View) -> trees.View:
        entries = {
            path: dataclasses.replace(entry, mtime_ns=entry.mtime_ns // 10**9)
            for path, entry in view.entries.items()
            if path not in leave_out
        }
        return trees.View(entries, view.links)

    expect_equal(coarse(expected), coarse(found))


@pytest.mark.parametrize("method", ["tar", "tar.gz"])  # umoci 0.4.7 knows no zstd
def test_umoci_applies_a_tar_as_a_layer(full: Saver, method: str) -> None:
    tools.need("umoci")
    tools.need_root()
    result = full.run(whiteouts="oci")
    assert result.status == 0, result.stderr
    layout = image_with(full)

    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:image", full.directory / "unpacked"],
        check=True,
        capture_output=True,
    )

    expect_equal_to_the_second(
        full.overlay.view(), trees.view(full.directory / "unpacked" / "rootfs"), leave_out=set()
    )


@tars
def test_podman_applies_a_tar_as_a_layer(full: Saver, request: pytest.FixtureRequest) -> None:
    tools.need("podman", "unshare")
    tools.need_root()
    result = full.run(whiteouts="oci")
    assert result.status == 0, result.stderr
    layout = image_with(full)
    # podman refuses a runroot of more than 50 characters.
    store = Path(tempfile.mkdtemp(prefix="store-", dir="/tmp"))
    request.addfinalizer(lambda: overlays.remove(store))
    podman = [
        *("podman", f"--root={store}/root", f"--runroot={store}/run", "--storage-driver=vfs"),
        *("--cgroup-manager=cgroupfs", "--events-backend=none"),
    ]

    def import_image() -> str:
        def run(*arguments: str | Path) -> str:
            done = subprocess.run(
                [*podman, *arguments], cwd=layout.parent, check=False, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        image = run("pull", "--quiet", "oci:layout:image")  # the path becomes a name
        return run("image", "mount", image)

    tree = full.overlay.inside(import_image)

    # podman keeps nothing of the root directory, and no time before 1970.
    expect_equal_to_the_second(
        full.overlay.view(),
        full.overlay.inside(lambda: trees.view(tree)),
        leave_out={trees.TOP, b"kept/link", b"changed"},
    )


# Paths


def test_each_stop_gets_a_path_of_its_own(small: Saver) -> None:
    begun = datetime.now(timezone.utc)
    result = small.run(
        archive_to=f"{small.out}/{{id}}/{{name}}-{{timestamp}}{{x}}{{}}",
        success=f"{small.out}/{{id}}-{{timestamp}}/{{name}}",
    )
    ended = datetime.now(timezone.utc)

    assert result.status == 0, result.stderr
    (archive,) = (small.out / "c1").iterdir()
    name, _, stamp = archive.name.partition("-")
    stamp, z, rest = stamp.partition("Z")
    assert (name, z + rest) == ("data", "Z{x}{}")
    assert begun <= datetime.strptime(f"{stamp}+0000", "%Y%m%dT%H%M%S.%f%z") <= ended
    stamp += z
    assert (small.out / f"c1-{stamp}" / "data").read_bytes() == b""


def test_two_stops_of_one_container_do_not_have_one_path(small: Saver) -> None:
    for _ in range(2):
        result = small.run(archive_to=f"{small.out}/{{timestamp}}-{{id}}", if_exists="fail", success=None)
        assert result.status == 0, result.stderr

    assert len(list(small.out.glob("*-c1"))) == 2


def test_all_archives_of_a_stop_have_one_time(small: Saver) -> None:
    other = hooks.annotations("other", mount_point="/data", archive_to=f"{small.out}/{{name}}-{{timestamp}}")

    result = small.run(also=other, archive_to=f"{small.out}/{{name}}-{{timestamp}}")

    assert result.status == 0, result.stderr
    stamps = {name.partition("-")[2] for name in os.listdir(small.out)}
    assert len(os.listdir(small.out)) == 2
    assert len(stamps) == 1


def test_what_an_annotation_holds_is_not_replaced_in_turn(small: Saver) -> None:
    # The name of the archive is the user's, and may look like a placeholder.
    also = hooks.annotations("{id}", mount_point="/data", archive_to=f"{small.out}/of {{name}}")

    result = small.run(also=also)

    assert result.status == 0, result.stderr
    assert "of {id}" in os.listdir(small.out)


@pytest.mark.parametrize("id", ["..", ".", "a/../../b"])
def test_a_container_id_leads_nowhere_else(small: Saver, id: str) -> None:
    place = small.out / "in" / "here"
    place.mkdir(parents=True)
    bundle = hooks.Bundle(
        small.directory / "bundle",
        mounts=[small.overlay.spec_mount()],
        annotations=small.asks(archive_to=f"{place}/{{id}}"),
    )
    state = json.dumps({**json.loads(bundle.state()), "id": id}).encode()

    result = small.overlay.inside(lambda: hooks.run_hook(state))

    assert result.status == 1
    assert "placeholder" in result.only_error()
    assert [path.name for path in small.out.rglob("*")] == ["in", "here"]


# Processors


def threads(saver: Saver, *command: str) -> int:
    """Count the threads with which the hook compresses, and one that tells how far it is while another process writes."""
    tools.need("strace")
    saver.overlay.change(lambda root: (root / "large").write_bytes(text(3 * MIB)))
    log = saver.directory / "strace"
    bundle = hooks.Bundle(
        saver.directory / "bundle", mounts=[saver.overlay.spec_mount()], annotations=saver.asks()
    )
    # Another thread tells of a flush that takes long.
    traced = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=clone,clone3", *command, "--no-fsync"]

    def run() -> None:
        subprocess.run(traced, input=bundle.state(), check=True, env={})

    saver.overlay.inside(run)
    lines = log.read_text().splitlines()
    return len([line for line in lines if "CLONE_THREAD" in line and "<... " not in line])


@gz
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_the_command_line_says_how_many_threads_compress(
    any_saver: Saver, executable: Path, jobs: int
) -> None:
    assert threads(any_saver, str(executable), f"--jobs={jobs}") == (jobs + 1 if jobs > 1 else 0)


@gz
def test_there_are_as_many_threads_as_processors(any_saver: Saver, executable: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert threads(any_saver, str(executable)) == (allowed + 1 if allowed > 1 else 0)


@gz
def test_one_processor_needs_no_threads(any_saver: Saver, executable: Path) -> None:
    tools.need("taskset")
    first = str(min(os.sched_getaffinity(0)))
    assert threads(any_saver, "/usr/bin/taskset", "-c", first, str(executable)) == 0


@zst
@by_the_program
@pytest.mark.parametrize("jobs", ["1", "3", "1024"])
def test_zstd_gets_as_many_threads_as_were_asked_for(small: Saver, jobs: str) -> None:
    seen = small.directory / "seen"
    seen.touch(0o666)
    script = f'echo "$@" >"{seen}"; exec cat'

    result = with_program(
        small, replace_zstd(small, script), lambda: small.run_here("--jobs", jobs, compression_level="7")
    )

    assert result.status == 0, result.stderr
    assert {f"-T{jobs}", "-7"} <= {*seen.read_text().split()}


@compressed
def test_the_largest_number_of_jobs_is_taken(small: Saver) -> None:
    assert saved(small, "--jobs=1024") == saved(small)


@pytest.mark.parametrize("method", ["copy"])
@pytest.mark.parametrize("jobs", ["0", "-1", "1025", "two", "1.5", "", " 2", "٢", "9" * 5000])
def test_a_number_of_jobs_that_is_none_is_refused(small: Saver, jobs: str) -> None:
    result = small.run(f"--jobs={jobs}")

    assert result.status == 2
    assert "--jobs" in result.stderr
    assert not small.archive.exists()
