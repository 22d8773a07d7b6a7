"""An image layout on disk: made if need be, shared by many hooks, and never written to if it is damaged."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.integration.methods.test_oci import contents, stop
from tests.support import debris, hooks, image_layouts, overlays, trees

if TYPE_CHECKING:
    from typing import Callable

pytestmark = pytest.mark.parametrize("method", ["oci"])

HOOKS = 8


# Making one


def test_a_layout_is_made_with_its_parents(small: Saver) -> None:
    stop(small, archive_to=small.out / "a" / "b" / "layout")

    image_layouts.expect_sound(small.out / "a" / "b" / "layout")


def test_an_empty_directory_becomes_a_layout(small: Saver) -> None:
    small.archive.mkdir()

    stop(small)

    image_layouts.expect_sound(small.archive)


@pytest.mark.parametrize("version_file", [False, True], ids=["", "with-version"])
def test_what_a_killed_run_left_is_no_obstacle(small: Saver, version_file: bool) -> None:
    (small.archive / "blobs/sha256").mkdir(parents=True)
    orphan = image_layouts.put_blob(small.archive, b"of a run that was killed")
    (debris.put(small.archive, "") / "archive").write_text("half a layer")
    if version_file:
        (small.archive / "oci-layout").write_text("")

    stop(small)

    assert image_layouts.expect_whole(small.archive) == {orphan["digest"]}
    assert sorted(os.listdir(small.archive)) == ["blobs", "index.json", "oci-layout"]


def test_what_a_killed_run_left_in_a_layout_is_removed(small: Saver) -> None:
    stop(small)
    (debris.put(small.archive, "") / "archive").write_text("half a layer")

    stop(small)

    assert len(image_layouts.read(small.archive).layers) == 2
    assert sorted(os.listdir(small.archive)) == ["blobs", "index.json", "oci-layout"]


def test_a_directory_with_other_things_is_refused(small: Saver) -> None:
    small.archive.mkdir()
    (small.archive / "something").write_text("else")
    before = trees.view(small.archive)

    result = small.run()

    assert (result.status, "not an image layout" in result.only_error()) == (1, True)
    expect_equal(before, trees.view(small.archive))


@pytest.mark.parametrize("place", ["archive", "archive/layout"], ids=["it", "above-it"])
def test_a_file_is_refused(small: Saver, place: str) -> None:
    small.archive.write_text("a file")

    result = small.run(archive_to=small.out / place)

    assert (result.status, str(small.archive) in result.only_error()) == (1, True)
    assert small.archive.read_text() == "a file"


def test_a_layout_behind_a_symlink_is_found(small: Saver) -> None:
    os.symlink("true place", small.archive)
    (small.out / "true place").mkdir()

    stop(small)
    stop(small)

    assert small.archive.is_symlink()
    assert len(image_layouts.read(small.archive).layers) == 2


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_symlinks_in_a_layout_lead_nowhere(small: Saver, name: str) -> None:
    stop(small)
    elsewhere = small.directory / "elsewhere"
    (small.archive / name).rename(elsewhere)
    (small.archive / name).symlink_to(elsewhere)
    before = trees.view(elsewhere)
    index = (small.archive / "index.json").read_bytes()

    result = small.run()

    assert (result.status, str(small.archive) in result.only_error()) == (1, True)
    expect_equal(before, trees.view(elsewhere))
    assert (small.archive / "index.json").read_bytes() == index


def test_all_users_can_list_a_layout_and_only_its_owner_reads_it(small: Saver) -> None:
    stop(small)

    modes = {oct(path.stat().st_mode & 0o777) for path in small.archive.rglob("*") if path.is_file()}
    assert modes == {"0o600"}
    assert {oct(path.stat().st_mode & 0o777) for path in small.archive.rglob("*") if path.is_dir()} == {
        "0o755"
    }


# What others have in it


def test_other_tags_and_unknown_keys_of_the_index_stay(small: Saver) -> None:
    others = [
        image_layouts.put(small.archive, "other", annotations={"com.example.entry": "kept"}),
        image_layouts.put(small.archive, "", layers=[b"no tar"]),
        {
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": f"sha512:{'0' * 128}",
            "size": 7,
            "com.example.unknown": None,
            "annotations": {image_layouts.REF_NAME: "elsewhere"},
        },
    ]
    index_file = small.archive / "index.json"
    index = {"schemaVersion": 2, "manifests": others, "com.example.unknown": {"a": [1, None]}}
    index_file.write_text(json.dumps(index))

    stop(small)
    stop(small)

    found = json.loads(index_file.read_text())
    assert found["com.example.unknown"] == {"a": [1, None]}
    assert found["manifests"][:-1] == others
    assert image_layouts.tag_of(found["manifests"][-1]) == "latest"


@pytest.mark.parametrize("key", ["manifests", "layers", "diff_ids", "history", "annotations"])
def test_null_is_an_empty_list_as_programs_in_go_have_it(small: Saver, key: str) -> None:
    if key == "manifests":
        image_layouts.put(small.archive, "latest")
        (small.archive / "index.json").write_text('{"schemaVersion": 2, "manifests": null}')
    elif key == "diff_ids":
        image_layouts.put(small.archive, "latest", config={"rootfs": {"type": "layers", "diff_ids": None}})
    elif key == "history":
        image_layouts.put(small.archive, "latest", config={"history": None})
    else:
        image_layouts.put(small.archive, "latest", manifest={key: None})

    stop(small)

    assert len(image_layouts.read(small.archive).layers) == 1


# Damage


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a file of JSON."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def index_of(layout: Path) -> Path:
    return layout / "index.json"


def manifest_of(layout: Path) -> Path:
    return image_layouts.blob(layout, image_layouts.read_index(layout)["manifests"][0])


def config_of(layout: Path) -> Path:
    return image_layouts.blob(layout, json.loads(manifest_of(layout).read_bytes())["config"])


def layer_of(layout: Path) -> Path:
    return image_layouts.blob(layout, json.loads(manifest_of(layout).read_bytes())["layers"][0])


def replaced(find: Callable[[Path], Path], make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Give what puts something else in a file's place."""

    def replace(layout: Path) -> None:
        path = find(layout)
        path.unlink()
        make(path)

    return replace


def other_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"somebody", b"everyone"))
    assert path.read_bytes() != data


def replaced_image(**keys: Any) -> Callable[[Path], None]:
    """Give what replaces the image by another one, of which something is wrong that its digests say."""

    def replace(layout: Path) -> None:
        shutil.rmtree(layout)
        image_layouts.put(layout, "latest", layers=[b"no tar"], **keys)

    return replace


def in_index(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda layout: edit(layout / "index.json", change)


def entry(**keys: Any) -> Callable[[Path], None]:
    """Give what changes the entry of the image in the index."""
    return in_index(lambda index: index["manifests"][0].update(keys))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no-version-file": lambda layout: (layout / "oci-layout").unlink(),
    "empty-version-file": lambda layout: (layout / "oci-layout").write_text(""),
    "other-version": lambda layout: (layout / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}'),
    "version-file-is-a-directory": replaced(lambda layout: layout / "oci-layout", Path.mkdir),
    "empty-index": lambda layout: (layout / "index.json").write_text(""),
    "cut-index": lambda layout: os.truncate(layout / "index.json", 100),
    "index-is-a-list": lambda layout: (layout / "index.json").write_text("[]"),
    "index-is-no-text": lambda layout: (layout / "index.json").write_bytes(b'{"\xff": 1}'),
    "index-is-a-pit": lambda layout: (layout / "index.json").write_text("[" * 1_000_000),
    "index-is-a-symlink": replaced(index_of, lambda path: path.symlink_to("oci-layout")),
    "index-is-a-fifo": replaced(index_of, os.mkfifo),
    "no-manifests": in_index(lambda index: index.update(manifests={})),
    "entry-is-a-string": in_index(lambda index: index["manifests"].append("latest")),
    "no-digest": in_index(lambda index: index["manifests"][0].pop("digest")),
    "digest-is-a-number": entry(digest=7),
    "digest-is-a-path": entry(digest="sha256:../../index.json"),
    "digest-of-another-kind": entry(digest="md5:d41d8cd98f00b204e9800998ecf8427e"),
    "other-size-of-manifest": entry(size=7),
    "no-size-of-manifest": in_index(lambda index: index["manifests"][0].pop("size")),
    "no-manifest": lambda layout: manifest_of(layout).unlink(),
    "manifest-is-a-directory": replaced(manifest_of, Path.mkdir),
    "other-manifest": lambda layout: other_byte(manifest_of(layout)),
    "manifest-is-an-index": replaced_image(
        manifest={"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    ),
    "manifest-is-an-index-by-its-entry": entry(mediaType="application/vnd.oci.image.index.v1+json"),
    "manifest-of-docker": replaced_image(
        manifest={"mediaType": "application/vnd.docker.distribution.manifest.v2+json"}
    ),
    "no-config": lambda layout: config_of(layout).unlink(),
    "other-config": lambda layout: other_byte(config_of(layout)),
    "cut-config": lambda layout: os.truncate(config_of(layout), 30),
    "config-is-no-descriptor": replaced_image(manifest={"config": "sha256:0"}),
    "layers-are-none": replaced_image(manifest={"layers": "none"}),
    "layer-is-none": replaced_image(manifest={"layers": [None]}),
    "annotations-are-none": replaced_image(manifest={"annotations": ["a"]}),
    "history-is-none": replaced_image(config={"history": "long"}),
    "history-has-none": replaced_image(config={"history": ["long"]}),
    "rootfs-is-none": replaced_image(config={"rootfs": []}),
    "too-many-diff-ids": replaced_image(config={"rootfs": {"type": "layers", "diff_ids": ["a", "b"]}}),
    "no-layer": lambda layout: layer_of(layout).unlink(),
    "cut-layer": lambda layout: os.truncate(layer_of(layout), 3),
    "layer-is-a-directory": replaced(layer_of, Path.mkdir),
    "two-images-of-one-tag": lambda layout: image_layouts.put(layout, "latest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_layout_is_never_written_to(small: Saver, damage: str) -> None:
    image_layouts.put(
        small.archive,
        "latest",
        layers=[b"a layer"],
        config={"author": "somebody"},
        manifest={"author": "somebody"},
    )
    DAMAGES[damage](small.archive)
    small.success.write_text("of an earlier run")
    before = trees.view(small.archive)

    result = small.run()

    assert result.status == 1
    error = result.only_error()
    assert "internal error" not in error
    assert "layout" in error
    expect_equal(before, trees.view(small.archive))
    assert small.success.read_text() == "of an earlier run"


def test_a_damaged_parent_is_not_built_upon(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")
    os.truncate(config_of(small.archive), 30)
    before = trees.view(small.archive)

    result = small.run(archive_to=f"{small.archive}:branch", parent="main")

    assert (result.status, "damaged" in result.only_error()) == (1, True)
    expect_equal(before, trees.view(small.archive))


def test_damage_says_which_file_it_is(small: Saver) -> None:
    stop(small)
    missing = layer_of(small.archive)
    missing.unlink()

    result = small.run()

    assert f"blobs/sha256/{missing.name}" in result.only_error()


def test_the_damage_of_another_tag_is_another_matter(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:other")
    layer_of(small.archive).unlink()
    small.overlay.change(lambda root: (root / "more").touch())

    stop(small)

    assert len(image_layouts.read(small.archive).layers) == 1


# Many hooks at once


def start(saver: Saver, name: str, **keys: Any) -> subprocess.Popen[str]:
    """Start a hook that is not waited for.

    Args:
        saver: whose overlay is saved.
        name: of the bundle; no two hooks share one.
        keys: see `Saver.asks`.
    """
    bundle = hooks.Bundle(
        saver.directory / name,
        mounts=[saver.overlay.spec_mount()],
        annotations=saver.asks(success=None, **keys),
    )
    return subprocess.Popen(
        [*hooks.command(), "--bundle", bundle.directory],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={},
    )


def expect_success(running: list[subprocess.Popen[str]]) -> None:
    """Wait for hooks, which all have to succeed."""
    said = [hook.communicate()[1] for hook in running]
    assert not [lines for hook, lines in zip(running, said) if hook.returncode != 0]


def start_behind_another(saver: Saver, meanwhile: Callable[[], object], **keys: Any) -> tuple[int, str]:
    """Run a hook while somebody else has the layout's lock.

    Args:
        saver: whose overlay is saved.
        meanwhile: called when the hook has asked for the lock in vain.
        keys: see `Saver.asks`.

    Returns:
        The hook's exit status, and what it said after it had said that it waits.
    """
    lock = os.open(saver.archive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with start(saver, "waiting", **keys) as hook:
        assert hook.stderr
        (waits,) = hooks.parse_log(hook.stderr.readline())
        assert waits.level == "info"
        assert f"waiting for another program (pid {os.getpid()}, " in waits.message
        assert str(saver.archive) in waits.message
        meanwhile()
        os.close(lock)
        said = hook.communicate()[1]
        return hook.returncode, said


@pytest.mark.parametrize("there_is_one", [True, False], ids=["layout", "no-layout"])
def test_hooks_that_run_at_once_each_make_a_revision(small: Saver, there_is_one: bool) -> None:
    if there_is_one:
        stop(small)

    expect_success([start(small, f"bundle{number}") for number in range(HOOKS)])

    image = image_layouts.read(small.archive)
    assert len(image.layers) == HOOKS + there_is_one
    assert len(image.config["history"]) == len(image.layers)
    assert sorted(os.listdir(small.archive)) == ["blobs", "index.json", "oci-layout"]
    # Manifests and configs of earlier revisions are left; nobody is there to say that they are not wanted.
    image_layouts.expect_whole(small.archive)


def test_hooks_that_run_at_once_lose_no_tag(small: Saver) -> None:
    names = [f"tag{number}" for number in range(HOOKS)]

    expect_success([start(small, name, archive_to=f"{small.archive}:{name}") for name in names])

    assert sorted(image_layouts.tags(small.archive)) == names
    image_layouts.expect_sound(small.archive)


def test_a_hook_waits_for_whoever_has_the_lock_and_looks_again(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")

    status, said = start_behind_another(
        small, lambda: image_layouts.put(small.archive, "other"), archive_to=f"{small.archive}:main"
    )

    (saved,) = hooks.parse_log(said)
    assert (status, "saved" in saved.message) == (0, True)
    assert len(image_layouts.read(small.archive, "main").layers) == 2
    assert image_layouts.read(small.archive, "other").layers == []


def test_a_parent_that_went_away_in_the_meantime_is_missed(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")

    status, said = start_behind_another(
        small,
        lambda: edit(index_of(small.archive), lambda index: index["manifests"].clear()),
        archive_to=f"{small.archive}:branch",
        parent="main",
    )

    assert (status, "main" in said) == (1, True)
    assert image_layouts.tags(small.archive) == []


def test_damage_done_in_the_meantime_is_seen(small: Saver) -> None:
    stop(small)
    before = image_layouts.read_index(small.archive)

    status, said = start_behind_another(small, lambda: os.truncate(config_of(small.archive), 30))

    assert (status, "damaged" in said) == (1, True)
    assert image_layouts.read_index(small.archive) == before
    assert len(list((small.archive / "blobs/sha256").iterdir())) == 3


# Disks


def test_a_layout_that_takes_no_writes(small: Saver) -> None:
    disk = small.directory / "disk"
    disk.mkdir()

    def run() -> tuple[hooks.Result, trees.View, trees.View]:
        overlays.mount_tmpfs(disk, "size=1m")
        try:
            assert small.run_here(archive_to=disk).status == 0
            before = trees.view(disk)
            overlays.make_read_only(disk)
            return small.run_here(archive_to=disk), before, trees.view(disk)
        finally:
            overlays.unmount(disk)

    result, before, after = small.overlay.inside(run)

    assert result.status == 1
    assert "Read-only file system" in result.only_error()
    assert str(disk) in result.only_error()
    expect_equal(before, after)


def test_a_disk_that_is_full(any_saver: Saver) -> None:
    """However few KiB are free: the new revision is there, or all is as it was."""
    any_saver.overlay.change(lambda root: (root / "large").write_bytes(os.urandom(30_000)))
    disk = any_saver.directory / "disk"
    disk.mkdir()

    def run(free: int) -> tuple[hooks.Result, trees.View, trees.View, int]:
        overlays.mount_tmpfs(disk, "size=1m")
        try:
            layout = disk / "layout"
            image_layouts.put(layout, "latest", layers=[b"a layer"])
            before = contents(layout)
            status = os.statvfs(disk)
            (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_bsize - free * 1024))
            result = any_saver.run_here(archive_to=layout)
            (disk / "filler").unlink()
            return (
                result,
                before,
                contents(layout),
                len(json.loads(manifest_of(layout).read_bytes())["layers"]),
            )
        finally:
            overlays.unmount(disk)

    ends = set()
    for free in range(0, 64, 4):
        result, before, after, layers = any_saver.overlay.inside(partial(run, free))
        ends.add(result.status)
        assert any_saver.success.exists() == (result.status == 0)
        any_saver.success.unlink(missing_ok=True)
        if result.status == 0:
            assert layers == 2
        else:
            assert "No space left on device" in result.only_error()
            expect_equal(before, after, f"{free} KiB free")
    assert ends == {0, 1}


# Rescue


def test_what_does_not_become_a_layer_is_kept(small: Saver) -> None:
    image_layouts.put(small.archive, "latest", layers=[b"a layer"])
    layer_of(small.archive).unlink()
    rescue = small.directory / "rescue"

    result = small.run("--rescue-dir", rescue)

    assert result.status == 1
    assert str(rescue / "c1" / "data") in result.only_error()
    assert (rescue / "c1" / "data" / "made").read_text() == "by a container"
    said = json.loads((rescue / "c1" / "data.json").read_text())
    assert said["annotations"]["method"] == "oci"
    assert "damaged" in said["reason"]


def test_what_no_layer_can_say_is_kept(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: (root / ".wh.made").touch())
    rescue = any_saver.directory / "rescue"

    result = any_saver.run("--rescue-dir", rescue)

    assert result.status == 1
    assert os.listdir(rescue / "c1" / "data") == [".wh.made"]
