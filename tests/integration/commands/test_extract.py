"""A revision as a plain directory: what the container left, whatever the layers try."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import history, hooks, image_layouts, overlays, tools, trees
from tests.support.history import directory, file, layer, link, symlink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable

    from tests.integration.conftest import NewOverlay

    Entry = tuple[tarfile.TarInfo, bytes]


def extract(layers: list[bytes], scratch: Path) -> Path:
    """Extract an image of these layers, which has to succeed in silence."""
    image_layouts.put(scratch / "layout", "latest", layers=layers)
    out = scratch / "out"
    assert history.output_of("extract", scratch / "layout", out) == ""
    return out


def contents(tree: Path) -> dict[str, str]:
    """Give what each path of a tree is: a file's text, a symbolic link's target, or "/" for directories."""
    found = {}
    for top, directories, names in os.walk(tree):
        for name in [*directories, *names]:
            path = Path(top, name)
            if path.is_symlink():
                found[str(path.relative_to(tree))] = f"-> {os.readlink(path)}"
            else:
                found[str(path.relative_to(tree))] = "/" if path.is_dir() else path.read_text()
    return found


# What a container left


def first(root: Path) -> None:
    for name in ("kept", "replaced/below", "emptied", "to file", "removed"):
        (root / name).mkdir(parents=True)
        (root / name / "inside").write_text(name)
    (root / "to directory").write_text("a file")
    (root / "one name").write_text("linked")
    os.link(root / "one name", root / "kept/other name")
    os.symlink("../../etc", root / "kept/symlink")
    os.link(root / "kept/symlink", root / "kept/symlink too", follow_symlinks=False)
    os.mkfifo(root / "kept/pipe", 0o620)
    (root / b"kept/\xff not utf-8".decode(errors="surrogateescape")).write_text("odd")
    (root / "kept/deep" / ("long" * 40) / ("long" * 40)).mkdir(parents=True)
    with open(root / "sparse", "wb") as sparse:
        for offset in (1 << 20, 5 << 20):
            sparse.seek(offset)
            sparse.write(b"data")
        sparse.truncate(9 << 20)
    (root / "large").write_bytes(os.urandom(400_000))
    os.setxattr(root / "large", "user.attribute", b"a\0value")
    os.setxattr(root / "kept", "user.attribute", b"of a directory")
    (root / "program").write_text("#!")
    (root / "program").chmod(0o4755)
    (root / "shared").mkdir()
    (root / "shared").chmod(0o2775)
    (root / "closed").mkdir()
    (root / "closed/inside").write_text("")
    (root / "closed").chmod(0o500)
    os.utime(root / "large", ns=(5, 1234567890123456789))
    os.utime(root / "kept", ns=(5, 1234567890987654321))


def second(root: Path) -> None:
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced/new").write_text("new")
    (root / "emptied/inside").unlink()
    shutil.rmtree(root / "to file")
    (root / "to file").write_text("now a file")
    (root / "to directory").unlink()
    (root / "to directory").mkdir()
    (root / "to directory/inside").write_text("")
    shutil.rmtree(root / "removed")
    (root / "one name").write_text("no longer linked")
    os.removexattr(root / "large", "user.attribute")
    os.removexattr(root / "kept", "user.attribute")
    (root / "closed/inside").write_text("written to")
    (root / "shared/new").write_text("")


def third(root: Path) -> None:
    (root / "replaced/new").unlink()
    (root / "removed").symlink_to("kept")
    (root / "kept/deep/new").write_text("")


def as_root(root: Path) -> None:
    os.chown(root / "kept", 1000, 2000)
    os.chown(root / "program", 1000, 1000)
    (root / "program").chmod(0o6755)
    os.chown(root / "kept/symlink", 7, 8, follow_symlinks=False)
    os.chown(root / "shared", 0, 3000)
    (root / "shared").chmod(0o2775)
    os.mknod(root / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))


@pytest.mark.parametrize("method", ["oci"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_each_revision_is_what_its_container_left(
    new_overlay: NewOverlay, scratch: Path, method: str, compression: str
) -> None:
    if compression == "zstd":
        tools.need("/usr/bin/zstd")
    flavour = overlays.NATIVE if os.geteuid() == 0 else overlays.NATIVE_ROOTLESS
    left = []
    below: list[Path] = []
    for number, change in enumerate((first, second, third), 1):
        overlay = new_overlay(flavour)
        if below:
            overlay.lowers = list(below)
        overlay.change(change)
        if number == 1 and os.geteuid() == 0:
            overlay.change(as_root)
        (scratch / f"save{number}").mkdir()
        saver = Saver(overlay, method, scratch / f"save{number}")
        result = saver.run(archive_to=scratch / "layout:main", compression=compression)
        assert result.status == 0, result.stderr
        left.append(overlay.whole_view())
        below = [overlay.upper, *overlay.lowers]

    for number, expected in enumerate(left, 1):
        out = scratch / f"revision{number}"
        assert history.output_of("extract", f"{scratch}/layout:main@{number}", out) == ""
        expect_equal(expected, trees.view(out), f"revision {number}")
    assert history.output_of("extract", f"{scratch}/layout:main", scratch / "last") == ""
    expect_equal(left[-1], trees.view(scratch / "last"))
    assert (scratch / "last/sparse").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("method", ["oci"])
def test_the_same_as_umoci_unpacks(any_saver: Saver) -> None:
    tools.need("umoci")
    tools.need_root()
    any_saver.overlay.change(first)
    assert any_saver.run(archive_to=f"{any_saver.archive}:main").status == 0
    bundle = any_saver.directory / "unpacked"
    subprocess.run(["umoci", "unpack", "--image", f"{any_saver.archive}:main", bundle], check=True)

    history.output_of("extract", f"{any_saver.archive}:main", any_saver.directory / "out/extracted")

    expect_equal(trees.view(bundle / "rootfs"), trees.view(any_saver.directory / "out/extracted"))


def test_a_base_that_others_made(scratch: Path) -> None:
    tools.need("tar")
    (scratch / "base").mkdir()
    first(scratch / "base")
    archives = []
    for form in ("gnu", "posix", "oldgnu"):
        command = ["tar", "-C", str(scratch / "base"), "--sparse", f"--format={form}", "-c", "."]
        archives.append(subprocess.run(command, check=True, capture_output=True).stdout)

    for number, archive in enumerate(archives):
        (scratch / str(number)).mkdir()
        out = extract([archive], scratch / str(number))
        assert contents(out / "kept/deep") == contents(scratch / "base/kept/deep")
        assert (out / "sparse").read_bytes() == (scratch / "base/sparse").read_bytes()
        assert (out / "sparse").stat().st_blocks * 512 < 1 << 20
        assert (out / "one name").samefile(out / "kept/other name")


# Whiteouts and opaque directories


def test_a_whiteout_deletes_what_lower_layers_have(scratch: Path) -> None:
    out = extract(
        [
            layer(directory("d"), file("d/gone"), file("d/kept"), directory("e"), file("e/gone")),
            layer(directory("d"), file("d/.wh.gone"), file(".wh.e"), file(".wh.never there")),
        ],
        scratch,
    )

    assert contents(out) == {"d": "/", "d/kept": ""}


@pytest.mark.parametrize("mark_at", [0, 1, 2, 3])
def test_a_whiteout_spares_what_its_own_layer_has(scratch: Path, mark_at: int) -> None:
    entries = [directory("x"), directory("x/y"), file("x/y/new")]
    entries.insert(mark_at, file(".wh.x"))
    out = extract([layer(directory("x"), directory("x/y"), file("x/y/old")), layer(*entries)], scratch)

    assert contents(out) == {"x": "/", "x/y": "/", "x/y/new": ""}


@pytest.mark.parametrize("mark_at", range(6))
def test_an_opaque_directory_hides_lower_layers_only_wherever_it_stands(scratch: Path, mark_at: int) -> None:
    entries = [
        directory("d"),
        file("d/new", b"new"),
        directory("d/both", mtime=7),
        file("d/both/new"),
        file("d/z"),
    ]
    entries.insert(mark_at, file("d/.wh..wh..opq"))
    lower = layer(directory("d"), file("d/old"), file("d/z", b"old"), directory("d/both"), file("d/both/old"))
    out = extract([lower, layer(*entries)], scratch)

    assert contents(out) == {"d": "/", "d/new": "new", "d/both": "/", "d/both/new": "", "d/z": ""}
    assert (out / "d/both").stat().st_mtime == 7


def test_marks_in_the_lowest_layer_mean_nothing(scratch: Path) -> None:
    out = extract([layer(file("a"), file(".wh.a"), file(".wh..wh..opq"), file(".wh.b"))], scratch)

    assert contents(out) == {"a": ""}


# The form of layers


def test_parents_that_are_not_listed_are_made(scratch: Path) -> None:
    out = extract([layer(file("a/b/c", b"text"))], scratch)

    assert contents(out) == {"a": "/", "a/b": "/", "a/b/c": "text"}
    assert [stat.S_IMODE(path.stat().st_mode) for path in (out, out / "a", out / "a/b")] == [0o755] * 3


def test_directories_that_are_written_into_keep_what_they_have(scratch: Path) -> None:
    out = extract(
        [
            layer(directory("d", mtime=1, mode=0o2510)),
            layer(file("d/new"), file("d/e/f")),
            layer(file("d/.wh.new")),
        ],
        scratch,
    )

    status = (out / "d").stat()
    assert (status.st_mtime, stat.S_IMODE(status.st_mode)) == (1, 0o2510)
    assert contents(out) == {"d": "/", "d/e": "/", "d/e/f": ""}


def test_the_last_of_several_entries_of_a_name_counts(scratch: Path) -> None:
    out = extract(
        [
            layer(
                file("a", b"1"),
                directory("a"),
                file("a/in"),
                file("a", b"2"),
                symlink("b", "x"),
                directory("b"),
            )
        ],
        scratch,
    )

    assert contents(out) == {"a": "2", "b": "/"}


def test_what_was_made_in_a_directory_inherits_nothing_of_it(scratch: Path) -> None:
    tools.need("setfacl")
    model = scratch / "model"
    model.mkdir()
    subprocess.run(["setfacl", "--default", "--modify", "user:77:rwx", model], check=True)
    acl = os.getxattr(model, "system.posix_acl_default").decode(errors="surrogateescape")
    lower = directory("d", pax_headers={"SCHILY.xattr.system.posix_acl_default": acl})
    out = extract([layer(lower), layer(file("d/new", mode=0o640))], scratch)

    assert os.listxattr(out / "d/new") == []
    assert stat.S_IMODE((out / "d/new").stat().st_mode) == 0o640
    assert os.getxattr(out / "d", "system.posix_acl_default").decode(errors="surrogateescape") == acl


def test_a_hard_link_to_a_lower_layer(scratch: Path) -> None:
    out = extract(
        [layer(directory("d"), file("d/a", b"text")), layer(link("b", "./d/a"), link("c", "/b"))], scratch
    )

    assert (out / "d/a").samefile(out / "b")
    assert (out / "d/a").samefile(out / "c")


def test_a_hard_link_to_itself(scratch: Path) -> None:
    out = extract([layer(file("a", b"text"), link("a", "a"))], scratch)

    assert contents(out) == {"a": "text"}


# Hostile layers


@pytest.fixture
def outside(scratch: Path) -> Iterator[Path]:
    """Give a directory that nothing may reach."""
    victim = scratch / "outside"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    before = trees.view(victim), trees.traces(victim)
    yield victim
    assert (trees.view(victim), trees.traces(victim)) == before


ESCAPES: dict[str, Callable[[Path], list[list[Entry]]]] = {
    "parent": lambda out: [[file("../outside/new")]],
    "parent in the middle": lambda out: [[directory("a"), file("a/../../outside/new")]],
    "parent as a directory": lambda out: [[directory("../outside/new")]],
    "parent itself": lambda out: [[directory("..", mode=0o777)]],
    "through a symlink": lambda out: [[symlink("s", str(out)), file("s/new")]],
    "through a relative symlink": lambda out: [[symlink("s", "../outside"), file("s/new")]],
    "through a symlink to itself": lambda out: [[symlink("s", "t"), symlink("t", "s"), file("s/new")]],
    "through a symlink to a file": lambda out: [[file("f"), symlink("s", "f"), file("s/new")]],
    "whiteout through a symlink": lambda out: [
        [directory("d"), file("d/f")],
        [symlink("s", "d"), file("s/.wh.f")],
    ],
    "whiteout below a symlink to a directory": lambda out: [
        [directory("d"), directory("d/e"), file("d/e/f")],
        [symlink("s", "d"), file("s/e/.wh.f")],
    ],
    "link through a long way of symlinks": lambda out: [
        [directory("d"), file("d/f"), symlink("s", "d/../" * 200), link("l", "s/s/d/f")]
    ],
    "link to a parent": lambda out: [[link("l", "../outside/file")]],
    "link through a symlink": lambda out: [[symlink("s", str(out)), link("l", "s/file")]],
    "link to an absolute path": lambda out: [[link("l", str(out / "file"))]],
    "link to a directory": lambda out: [[directory("d"), link("l", "d")]],
    "link to the root": lambda out: [[link("l", "/")]],
    "whiteout of the parent": lambda out: [[directory("a")], [file("a/.wh...")]],
    "whiteout of the directory": lambda out: [[directory("a")], [file("a/.wh..")]],
    "whiteout of nothing": lambda out: [[directory("a")], [file("a/.wh.")]],
    "whiteout in a parent": lambda out: [[], [file("../outside/.wh.file")]],
    "opaque parent": lambda out: [[], [file("../outside/.wh..wh..opq")]],
    "entry in a file": lambda out: [[file("f"), file("f/new")]],
    "name with a NUL": lambda out: [[file("f", pax_headers={"path": "a\0b"})]],
    "target with a NUL": lambda out: [[symlink("f", "x", pax_headers={"linkpath": "a\0b"})]],
    "attribute with a NUL": lambda out: [[file("f", pax_headers={"SCHILY.xattr.user.\0": "x"})]],
    "name that is too long": lambda out: [[file("n" * 256)]],
    "root that is a file": lambda out: [[file("./")]],
    "unknown type": lambda out: [[history.entry("f", b"Q")]],
    "impossible owner": lambda out: [[file("f", uid=2**32 - 1)]],
}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_layer_that_means_harm_is_refused(scratch: Path, outside: Path, name: str) -> None:
    layers = [layer(*entries) for entries in ESCAPES[name](outside)]
    image_layouts.put(scratch / "layout", "latest", layers=layers)
    (scratch / "to").mkdir()

    complaint = history.complaint_of("extract", scratch / "layout", scratch / "to/out")

    assert f"revision {len(layers)} of " in complaint
    assert os.listdir(scratch / "to") == []


HARMLESS: dict[str, tuple[Callable[[Path], list[list[Entry]]], dict[str, str]]] = {
    "absolute": (lambda out: [[file("/a/b", b"x")]], {"a": "/", "a/b": "x"}),
    "entry below a lower symlink": (
        lambda out: [[symlink("s", str(out))], [file("s/file", b"x")]],
        {"s": "/", "s/file": "x"},
    ),
    "directory instead of a symlink": (
        lambda out: [[symlink("s", str(out)), directory("s", mode=0o700)]],
        {"s": "/"},
    ),
    "file instead of a symlink": (
        lambda out: [[symlink("s", str(out / "file"))], [file("s", b"x")]],
        {"s": "x"},
    ),
    "whiteout below a symlink": (
        lambda out: [[symlink("s", str(out))], [file("s/.wh.file")]],
        {"s": "/"},
    ),
    "opaque below a symlink": (
        lambda out: [[symlink("s", str(out))], [file("s/.wh..wh..opq")]],
        {"s": "/"},
    ),
    "whiteout of a symlink": (lambda out: [[symlink("s", str(out))], [file(".wh.s")]], {}),
    "through a symlink to a directory's parent": (
        lambda out: [[directory("a"), symlink("a/s", "../.."), directory("a/s/outside/new")]],
        {"a": "/", "a/s": "-> ../..", "outside": "/", "outside/new": "/"},
    ),
    "through an absolute symlink": (
        lambda out: [[directory("outside"), symlink("s", "/outside"), file("s/new", b"x")]],
        {"outside": "/", "outside/new": "x", "s": "-> /outside"},
    ),
    "link through a symlink that leads out": (
        lambda out: [
            [directory("outside"), file("outside/f", b"x"), symlink("s", "../outside"), link("l", "s/f")]
        ],
        {"outside": "/", "outside/f": "x", "s": "-> ../outside", "l": "x"},
    ),
    "link to a symlink": (lambda out: [[symlink("s", "x"), link("l", "s")]], {"s": "-> x", "l": "-> x"}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_layer_that_could_mean_harm_stays_inside(scratch: Path, outside: Path, name: str) -> None:
    make, expected = HARMLESS[name]

    out = extract([layer(*entries) for entries in make(outside)], scratch)

    assert contents(out) == expected


MARKS = [
    "trusted.overlay.redirect",
    "trusted.overlay.opaque",
    "trusted.overlay.overlay.opaque",
    "user.overlay.opaque",
    "user.overlay.whiteout",
    "user.overlay.overlay.opaque",
    "user.fuseoverlayfs.opaque",
    "user.fuseoverlayfs.override_stat",
    "security.fuseoverlayfs.override_stat",
    "user.containers.override_stat",
]


def test_no_mark_of_an_overlay_comes_alive(scratch: Path) -> None:
    marked = {"SCHILY.xattr.user.kept": "value", **{f"SCHILY.xattr.{mark}": "y" for mark in MARKS}}
    image_layouts.put(
        scratch / "layout",
        "latest",
        layers=[
            layer(file("w", b"below"), directory("d")),
            layer(
                directory("d", pax_headers=marked),
                file("f", pax_headers=marked),
                history.entry("w", tarfile.CHRTYPE, devmajor=0, devminor=0),
                history.entry("d/w", tarfile.CHRTYPE, devmajor=0, devminor=0),
            ),
        ],
    )

    result = history.run("extract", scratch / "layout", scratch / "out")

    assert result.status == 0
    (warning,) = result.stderr.splitlines()
    for mark in MARKS:
        assert f"the attribute {mark} of d and 1 more" in warning
    assert "the device 0:0 of w and 1 more" in warning
    assert "overlays would act on" in warning
    # The device's name is not what lower layers have there either.
    assert contents(scratch / "out") == {"d": "/", "f": ""}
    for name in ("d", "f"):
        assert os.listxattr(scratch / "out" / name) == ["user.kept"]


@pytest.mark.parametrize("name", [".wh.d/f", ".wh.d/e/", ".wh..wh..opq/f"])
def test_no_directory_has_the_name_of_a_deletion(scratch: Path, name: str) -> None:
    for number, layers in enumerate(([layer(file(name))], [layer(file("d/f")), layer(file(name))])):
        image_layouts.put(scratch / f"layout{number}", "latest", layers=layers)

        complaint = history.complaint_of("extract", scratch / f"layout{number}", scratch / "out")

        assert "its name stands for a deletion" in complaint
        assert not (scratch / "out").exists()


def test_a_file_of_its_own_layer_is_no_directory_in_any_layer(scratch: Path) -> None:
    image_layouts.put(
        scratch / "layout", "latest", layers=[layer(file("f")), layer(symlink("s", "f"), file("s/new"))]
    )

    assert "f is not a directory, but there is an entry in it" in history.complaint_of(
        "extract", scratch / "layout", scratch / "out"
    )


def test_a_directory_that_gets_an_entry_again_has_what_the_last_one_says(scratch: Path) -> None:
    attribute = {"SCHILY.xattr.user.first": "1"}
    out = extract(
        [
            layer(directory("d", mode=0o500, pax_headers=attribute), file("d/a")),
            layer(directory("d", mode=0o711, mtime=5), file("d/b"), directory("d", mode=0o510, mtime=7)),
        ],
        scratch,
    )

    assert contents(out) == {"d": "/", "d/a": "", "d/b": ""}
    status = (out / "d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o510, 7)
    assert os.listxattr(out / "d") == []


def test_a_very_deep_tree(scratch: Path) -> None:
    deep = "/".join(["d"] * 1500)
    out = extract([layer(file(f"{deep}/f")), layer(file("d/.wh..wh..opq"), file(f"{deep}/g"))], scratch)

    found = subprocess.run(["find", out, "-type", "f", "-printf", "%f"], capture_output=True, check=True)
    assert found.stdout == b"g"


# Damage


def damage_blob(layout: Path, layer_number: int) -> Path:
    image = image_layouts.read(layout)
    return layout / "blobs/sha256" / image.digests[layer_number].partition(":")[2]


def test_a_layer_that_is_not_what_its_digest_says(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a", b"text"))])
    blob = damage_blob(scratch / "layout", 0)
    blob.write_bytes(blob.read_bytes().replace(b"text", b"TEXT"))

    complaint = history.complaint_of("extract", scratch / "layout", scratch / "out")

    assert "digest" in complaint
    assert not (scratch / "out").exists()


def test_a_layer_that_is_not_what_its_diff_id_says(scratch: Path) -> None:
    config = {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"]}}
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a"))], config=config)

    assert "diff ID" in history.complaint_of("extract", scratch / "layout", scratch / "out")
    assert not (scratch / "out").exists()


def test_force_takes_layers_whose_diff_id_is_wrong(scratch: Path) -> None:
    layers = [layer(file("a", b"1")), layer(file("b")), layer(file("a", b"3"))]
    right = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]
    config = {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}", right[1], None]}}
    image_layouts.put(scratch / "layout", "latest", layers=layers, config=config)

    complaint = history.complaint_of("extract", scratch / "layout", scratch / "out")
    result = history.run("extract", "--force", scratch / "layout", scratch / "out")

    assert "extract --force uses it" in complaint
    assert result.status == 0
    first, third = result.stderr.splitlines()
    name = f"of {scratch}/layout:latest was used anyway: its diff ID is"
    assert f"revision 1 {name} {right[0]}, but the image says sha256:{'0' * 64}" in first
    assert f"revision 3 {name} {right[2]}, but the image says none" in third
    assert contents(scratch / "out") == {"a": "3", "b": ""}


def test_force_does_not_take_what_is_damaged(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a", b"text"))])
    (described,) = image_layouts.read(scratch / "layout").manifest["layers"]
    blob = image_layouts.blob(scratch / "layout", described)
    blob.write_bytes(blob.read_bytes().replace(b"text", b"txet"))

    assert "its digest is" in history.complaint_of("extract", "--force", scratch / "layout", scratch / "out")
    assert not (scratch / "out").exists()


def test_what_is_compressed_for_zstd_chunked(scratch: Path) -> None:
    tools.need("skopeo", "zstd")
    image_layouts.put(scratch / "layout", "main", layers=[layer(directory("d"), file("d/a", b"text" * 100))])
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--dest-compress-format=zstd:chunked"),
            *(f"oci:{scratch}/layout:main", f"oci:{scratch}/chunked:main"),
        ],
        check=True,
    )

    plain = history.run("extract", f"{scratch}/chunked:main", scratch / "plain")
    forced = history.run("extract", "--force", f"{scratch}/chunked:main", scratch / "forced")

    # skopeo 1.9 writes a wrong diff ID, and 1.18 does not.
    assert plain.status == 0 or "extract --force uses it" in plain.stderr
    assert (forced.status, "was used anyway: its diff ID is" in forced.stderr) == (0, plain.status == 1)
    assert contents(scratch / "forced") == {"d": "/", "d/a": "text" * 100}


@pytest.mark.parametrize("size", [300, 700, 1100])
def test_a_layer_that_was_cut_off(scratch: Path, size: int) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a", b"text"), file("b"))[:size]])

    history.complaint_of("extract", scratch / "layout", scratch / "out")
    assert not (scratch / "out").exists()


@pytest.mark.parametrize(
    "compressed",
    [gzip.compress(layer(file("a")), mtime=0)[:-9], b"\x1f\x8b no gzip", b"\x28\xb5\x2f\xfd no"],
    ids=["cut off", "no gzip", "no zstd"],
)
def test_a_layer_that_cannot_be_decompressed(scratch: Path, compressed: bytes) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[compressed])

    assert "valid" in history.complaint_of("extract", scratch / "layout", scratch / "out")


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda tar: tar,
    "gzip": lambda tar: gzip.compress(tar, mtime=0),
    "zstd": lambda tar: subprocess.run(["/usr/bin/zstd"], input=tar, stdout=-1, check=True).stdout,
}
GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "a byte": lambda blob: b"x",
    "zeros": lambda blob: bytes(300_000),
    "bytes": lambda blob: b"garbage" * 50_000,
    "zeros, then bytes": lambda blob: bytes(200_000) + b"garbage",
    "itself": lambda blob: blob,
    "a part of itself": lambda blob: blob[: len(blob) // 2],
    "what is empty, then bytes": lambda blob: gzip.compress(b"") + b"garbage" * 50_000,
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_layer_that_goes_on_after_what_its_digest_is_of(
    scratch: Path, compression: str, garbage: str
) -> None:
    if compression == "zstd":
        tools.need("/usr/bin/zstd")
    tar = layer(file("a", b"text"))
    blob = COMPRESSED[compression](tar)
    layout = scratch / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    described = image_layouts.put_blob(layout, blob)
    config = {
        "rootfs": {"type": "layers", "diff_ids": [image_layouts.put_blob(scratch / "layout", tar)["digest"]]}
    }
    more = GARBAGE[garbage](blob)
    image_layouts.blob(layout, described).write_bytes(blob + more)
    described["size"] += len(more)
    image_layouts.put(layout, "latest", config=config, manifest={"layers": [described]})

    for command in (("extract", layout, scratch / "out"), ("diff", f"{layout}:latest")):
        complaint = history.complaint_of(*command)
        assert "revision 1 of" in complaint
        assert "damaged" in complaint or "not valid" in complaint
    assert not (scratch / "out").exists()


def test_a_layer_that_is_gone(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a"))])
    damage_blob(scratch / "layout", 0).unlink()

    assert str(scratch / "layout") in history.complaint_of("extract", scratch / "layout", scratch / "out")


# The directory


@pytest.fixture
def small_layout(scratch: Path) -> Path:
    """Give a layout with two revisions."""
    layers = [layer(directory(".", mode=0o711), file("a", b"1")), layer(file("a", b"2"))]
    image_layouts.put(scratch / "layout", "latest", layers=layers)
    return scratch / "layout"


def test_an_empty_directory_is_replaced(small_layout: Path, scratch: Path) -> None:
    (scratch / "out").mkdir()
    history.output_of("extract", small_layout, scratch / "out")

    assert contents(scratch / "out") == {"a": "2"}
    assert stat.S_IMODE((scratch / "out").stat().st_mode) == 0o711
    assert sorted(os.listdir(scratch)) == ["layout", "out"]


def test_a_directory_that_holds_something_is_left_alone(small_layout: Path, scratch: Path) -> None:
    (scratch / "out").mkdir()
    (scratch / "out/mine").write_text("mine")

    assert "not empty" in history.complaint_of("extract", small_layout, scratch / "out")
    assert contents(scratch / "out") == {"mine": "mine"}


def test_a_file_in_its_place_is_left_alone(small_layout: Path, scratch: Path) -> None:
    (scratch / "out").write_text("mine")

    assert "not a directory" in history.complaint_of("extract", small_layout, scratch / "out")
    assert (scratch / "out").read_text() == "mine"


def test_a_relative_path_and_missing_parents(small_layout: Path, scratch: Path) -> None:
    result = history.run("extract", "layout:latest@1", "some/where/out/", cwd=scratch)

    assert (result.status, result.stderr) == (0, "")
    assert contents(scratch / "some/where/out") == {"a": "1"}


def test_a_symbolic_link_to_an_empty_directory(small_layout: Path, scratch: Path) -> None:
    (scratch / "real").mkdir()
    (scratch / "out").symlink_to("real")
    history.output_of("extract", small_layout, scratch / "out")

    assert contents(scratch / "real") == {"a": "2"}
    assert (scratch / "out").is_symlink()


def test_the_set_group_id_bit_of_the_parent_is_not_inherited(small_layout: Path, scratch: Path) -> None:
    (scratch / "parent").mkdir()
    if os.geteuid() == 0:
        os.chown(scratch / "parent", 0, 4321)
    (scratch / "parent").chmod(0o2755)
    history.output_of("extract", small_layout, scratch / "parent/out")

    assert (scratch / "parent/out/a").stat().st_gid == os.getegid()


def test_a_full_disk_leaves_nothing(scratch: Path, any_overlay: overlays.Overlay) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a", os.urandom(3 << 20)))])
    (scratch / "disk").mkdir()

    def on_a_small_disk() -> tuple[str, list[str]]:
        overlays.mount_tmpfs(scratch / "disk", "size=1m")
        return history.complaint_of("extract", scratch / "layout", scratch / "disk/out"), os.listdir(
            scratch / "disk"
        )

    complaint, left = any_overlay.inside(on_a_small_disk)

    assert "a: No space left on device" in complaint
    assert left == []


# References


@pytest.mark.parametrize("name", ["docker.io/library/x:v1", "localhost:5000/a@b", ""])
def test_images_are_found_by_the_names_that_other_programs_give(scratch: Path, name: str) -> None:
    image_layouts.put(scratch / "layout", name, layers=[layer(file("a", b"1")), layer(file("a", b"2"))])
    colon = ":" if name else ""

    named = f"{scratch}/layout{colon}{name}"
    assert len(json.loads(history.output_of("log", "--json", named))) == 2
    assert history.output_of("diff", f"{named}@1") == "A            1 a\n"
    for at, expected in (("@1", "1"), ("", "2")):
        history.output_of("extract", f"{named}{at}", scratch / f"out{at}")
        assert contents(scratch / f"out{at}") == {"a": expected}
    assert f"{named} has no revision 3" in history.complaint_of("extract", f"{named}@3", scratch / "none")


def test_a_revision_that_is_not_there(small_layout: Path, scratch: Path) -> None:
    complaint = history.complaint_of("extract", f"{small_layout}:latest@3", scratch / "out")

    assert "no revision 3, only revisions 1 to 2" in complaint


def test_a_tag_that_is_not_there(small_layout: Path, scratch: Path) -> None:
    complaint = history.complaint_of("extract", f"{small_layout}:other@2", scratch / "out")

    assert "no tag other; its tags are: latest" in complaint


def test_a_tag_that_looks_like_a_revision(small_layout: Path, scratch: Path) -> None:
    image_layouts.put(small_layout, "latest@1", layers=[layer(file("b"))])
    history.output_of("extract", f"{small_layout}:latest@1", scratch / "out")
    history.output_of("extract", f"{small_layout}:latest@2", scratch / "out2")

    assert contents(scratch / "out") == {"b": ""}
    assert contents(scratch / "out2") == {"a": "2"}


def test_an_image_without_layers(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest")

    assert "no revision" in history.complaint_of("extract", scratch / "layout", scratch / "out")


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_something_else_than_a_layout(scratch: Path, what: str) -> None:
    (scratch / "empty").mkdir()
    (scratch / "file").touch()

    assert str(scratch / what) in history.complaint_of("extract", f"{scratch / what}:main", scratch / "out")


# People


@pytest.fixture
def for_everybody() -> Iterator[Path]:
    """Give a directory that other users reach, too."""
    with tempfile.TemporaryDirectory(prefix="archive_overlay-test-") as made:
        Path(made).chmod(0o777)
        yield Path(made)
        overlays.remove(Path(made))


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def test_an_ordinary_user_gets_what_nobody_may_write_in(for_everybody: Path) -> None:
    tools.need_root()
    owner: dict[str, Any] = {"uid": 65534, "gid": 65534}
    closed: dict[str, Any] = {"mode": 0o555, **owner}
    layers = [
        layer(
            directory(".", **closed),
            directory("d", **closed),
            directory("d/removed", **closed),
            file("d/removed/f", mode=0o400, **owner),
        ),
        layer(
            directory(".", **closed), directory("d", **closed), file("d/.wh.removed"), file("d/new", **owner)
        ),
    ]
    image_layouts.put(for_everybody / "layout", "latest", layers=layers)
    for paths in ([], ["d/new"]):
        out = for_everybody / f"out{len(paths)}"
        result = history.run("extract", f"{for_everybody}/layout:latest", out, *paths, before=become_nobody)

        assert (result.status, result.stderr) == (0, "")
        assert contents(out) == {"d": "/", "d/new": ""}
        assert [stat.S_IMODE(each.stat().st_mode) for each in (out, out / "d")] == [0o555, 0o555]
        assert sorted(os.listdir(for_everybody)) == sorted(
            ["layout", *[f"out{n}" for n in range(len(paths) + 1)]]
        )


def test_only_what_is_asked_for(scratch: Path) -> None:
    layers = [
        layer(
            directory("etc", mode=0o750, mtime=1),
            file("etc/a", b"old"),
            file("etc/b", b"b"),
            directory("usr"),
            file("usr/f", b"usr"),
            history.link("usr/g", "etc/b"),
            symlink("lib", "usr"),
        ),
        layer(file("etc/a", b"new"), directory("usr"), file("usr/.wh.f")),
    ]
    image_layouts.put(scratch / "layout", "latest", layers=layers)
    layout = f"{scratch}/layout:latest"

    history.output_of("extract", layout, scratch / "one", "/etc/a")
    assert contents(scratch / "one") == {"etc": "/", "etc/a": "new"}
    status = (scratch / "one/etc").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o750, 1)
    history.output_of("extract", layout, scratch / "two", "usr/", "lib")
    assert contents(scratch / "two") == {"usr": "/", "usr/g": "b", "lib": "-> usr"}
    history.output_of("extract", layout, scratch / "all", ".")
    history.output_of("extract", layout, scratch / "whole")
    assert contents(scratch / "all") == contents(scratch / "whole")
    assert "lib/g leads through a symbolic link; write usr/g" in history.complaint_of(
        "extract", layout, scratch / "none", "lib/g"
    )
    for path in ("usr/f", "nothing", "../etc"):
        assert path in history.complaint_of("extract", layout, scratch / "none", "etc/a", path)
    assert not (scratch / "none").exists()


def test_an_ordinary_user_gets_what_is_possible_and_one_warning(for_everybody: Path) -> None:
    tools.need_root()
    attribute = {"SCHILY.xattr.trusted.secret": "x", "SCHILY.xattr.user.kept": "y"}
    layers = [
        layer(
            directory("d", mode=0o555),
            file("d/a", b"1", mode=0o4711, uid=0),
            file("b", uid=0, pax_headers=attribute),
            history.entry("device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        ),
        layer(file("d/new"), file("d/.wh.a")),
    ]
    image_layouts.put(for_everybody / "layout", "latest", layers=layers)

    for number, expected in ((1, {"d/a": "1"}), (2, {"d/new": ""})):
        out = for_everybody / f"out{number}"
        result = history.run("extract", f"{for_everybody}/layout:latest@{number}", out, before=become_nobody)
        assert result.status == 0, result.stderr
        assert contents(out) == {"d": "/", "b": "", **expected}
        (warning,) = result.stderr.splitlines()
        for part in ("the owner of ", "the device of device", "the attribute trusted.secret of b"):
            assert part in warning
        assert (out / "d").stat().st_mode & 0o7777 == 0o555
        assert os.listxattr(out / "b") == ["user.kept"]
    assert (for_everybody / "out1/d/a").stat().st_mode & 0o7777 == 0o711


def test_help_has_examples() -> None:
    assert "archive_overlay extract /srv/data:main@3 " in history.output_of("extract", "--help")


@pytest.mark.parametrize("arguments", [(), ("layout",), ("--wrong", "layout", "out")])
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    result = history.run("extract", *arguments)

    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: archive_overlay extract ")


def test_sigterm_leaves_nothing(scratch: Path) -> None:
    tools.need("strace")
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a"), symlink("b", "c"))])
    (scratch / "to").mkdir()
    # When the symbolic link is made, the staging directory has something in it.
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=symlinkat:signal=TERM:when=1"]
    done = subprocess.run(
        [*strace, *hooks.command(), "extract", scratch / "layout", scratch / "to/out"],
        capture_output=True,
        env={},
        check=False,
    )

    assert (done.returncode, done.stderr) == (143, b"")
    assert os.listdir(scratch / "to") == []
