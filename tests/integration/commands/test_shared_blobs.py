"""Layouts that share their blobs by symbolic links are read; but links that mean harm do none."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import history, image_layouts, tools
from tests.support.history import file, layer

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable


@pytest.fixture
def layout(scratch: Path) -> Path:
    """Give a layout of an image with two layers, with all that is to be shared in it."""
    layers = [layer(file("a", b"1")), layer(file("a", b"2"), file("b"))]
    image_layouts.put(scratch / "layout", "main", layers=layers)
    return scratch / "layout"


def share_all(layout: Path, store: Path) -> None:
    shutil.move(layout / "blobs", store)
    (layout / "blobs").symlink_to(store)


def share_directory(layout: Path, store: Path) -> None:
    shutil.move(layout / "blobs/sha256", store)
    (layout / "blobs/sha256").symlink_to(f"../../{store.name}")


def share_each(layout: Path, store: Path) -> None:
    store.mkdir()
    for blob in (layout / "blobs/sha256").iterdir():
        shutil.move(blob, store)
        blob.symlink_to(f"../../../{store.name}/{blob.name}")


def share_twice(layout: Path, store: Path) -> None:
    share_each(layout, store)
    share_directory(layout, store.with_name("other"))
    # Relative to where they are now.
    for blob in store.iterdir():
        link = store.with_name("other") / blob.name
        link.unlink()
        link.symlink_to(f"../{store.name}/{blob.name}")


SHARED: dict[str, Callable[[Path, Path], None]] = {
    "blobs": share_all,
    "blobs/sha256": share_directory,
    "each-blob": share_each,
    "both": share_twice,
}


def complaints(layout: Path, out: Path, *, of_layers: bool = False) -> list[str]:
    """Give what `log`, `diff` and `extract` say of a layout that none of them takes, but that `log` ignores layers."""
    found = [
        history.complaint_of(*command)
        for command in (
            *([] if of_layers else [("log", f"{layout}:main")]),
            ("diff", f"{layout}:main"),
            ("extract", f"{layout}:main", out),
        )
    ]
    assert not out.exists()
    return found


@pytest.mark.parametrize("how", SHARED)
def test_blobs_behind_links_are_read(layout: Path, scratch: Path, how: str) -> None:
    before = history.output_of("log", "--json", f"{layout}:main")
    SHARED[how](layout, scratch / "store")

    assert history.output_of("log", "--json", f"{layout}:main") == before
    assert history.output_of("diff", f"{layout}:main@2") == "M            1 a\nA            0 b\n"
    history.output_of("extract", f"{layout}:main", scratch / "out")
    assert (scratch / "out/a").read_bytes() == b"2"


def test_a_layout_by_a_link_and_a_relative_path(layout: Path, scratch: Path) -> None:
    share_each(layout, scratch / "store")
    (scratch / "link").symlink_to("layout")

    result = history.run("diff", "link:main@2", cwd=scratch)

    assert (result.status, result.stdout) == (0, "M            1 a\nA            0 b\n")


@pytest.mark.parametrize("how", SHARED)
def test_links_of_another_user_are_not_followed_where_others_may_write(
    layout: Path, scratch: Path, how: str
) -> None:
    tools.need_root()
    SHARED[how](layout, scratch / "store")
    for directory in (layout, layout / "blobs", layout / "blobs/sha256"):
        if not directory.is_symlink():
            directory.chmod(0o1777)
            for link in directory.iterdir():
                os.chown(link, 4321, 4321, follow_symlinks=False)

    for complaint in complaints(layout, scratch / "out"):
        assert "is a symbolic link that another user may have made" in complaint


def test_a_blob_that_is_not_there_is_missing(layout: Path, scratch: Path) -> None:
    share_each(layout, scratch / "store")
    shutil.rmtree(scratch / "store")

    for complaint in complaints(layout, scratch / "out"):
        assert "is missing" in complaint


@pytest.mark.parametrize("how", ["blobs", "blobs/sha256"])
def test_a_store_that_is_not_there_is_missing(layout: Path, scratch: Path, how: str) -> None:
    SHARED[how](layout, scratch / "store")
    shutil.rmtree(scratch / "store")

    for complaint in complaints(layout, scratch / "out"):
        assert complaint.endswith("the image layout is damaged: blobs/sha256 is missing\n")


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "a-link"])
def test_a_fifo_in_place_of_a_directory(layout: Path, scratch: Path, name: str, linked: bool) -> None:
    shutil.rmtree(layout / name)
    if linked:
        (layout / name).symlink_to(scratch / "FIFO")
    os.mkfifo(scratch / "FIFO" if linked else layout / name)

    for complaint in complaints(layout, scratch / "out"):
        assert complaint.endswith("blobs/sha256: Not a directory\n")


def test_links_that_lead_to_each_other(layout: Path, scratch: Path) -> None:
    share_each(layout, scratch / "store")
    for blob in (scratch / "store").iterdir():
        blob.unlink()
        blob.symlink_to(f"../layout/blobs/sha256/{blob.name}")

    for complaint in complaints(layout, scratch / "out"):
        assert "Too many levels of symbolic links" in complaint


def test_what_a_link_leads_to_is_what_its_digest_says(layout: Path, scratch: Path) -> None:
    share_each(layout, scratch / "store")
    (tagged,) = image_layouts.read_index(layout)["manifests"]
    secret = scratch / "secret"
    secret.write_bytes(b'{"password": "swordfish"}'.ljust(tagged["size"]))
    manifest = image_layouts.blob(layout, tagged)
    manifest.unlink()
    manifest.symlink_to(secret)

    for complaint in complaints(layout, scratch / "out"):
        assert complaint.endswith(
            f"the image layout is damaged: blobs/sha256/{manifest.name} does not match its digest\n"
        )


def with_layer(layout: Path, described: dict[str, Any]) -> None:
    """Let the image have one layer, which is described so."""
    config = {"rootfs": {"type": "layers", "diff_ids": [described["digest"]]}}
    (layout / "index.json").unlink()
    image_layouts.put(layout, "main", config=config, manifest={"layers": [described]})


# Files of the kernel that wait for something to happen, or do something, when they are read.
KERNEL = ["/proc/kmsg", "/proc/self/environ", "/sys/kernel/uevent_seqnum", "/dev/null", "/dev/zero"]


@pytest.mark.parametrize("path", KERNEL)
def test_nothing_of_the_kernel_s_is_read(layout: Path, scratch: Path, path: str) -> None:
    if not os.path.exists(path):
        pytest.skip(f"there is no {path}")
    described = {"mediaType": image_layouts.LAYER_TYPE, **image_layouts.put_blob(layout, b"")}
    # It is as large as the image says, and so would be read.
    with_layer(layout, {**described, "size": os.stat(path).st_size})
    blob = image_layouts.blob(layout, described)
    blob.unlink()
    blob.symlink_to(path)

    for complaint in complaints(layout, scratch / "out", of_layers=True):
        assert f"blobs/sha256/{blob.name}" in complaint
        assert re.search("belongs to the kernel|is not |does not match", complaint)


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
@pytest.mark.parametrize("kind", ["FIFO", "directory"])
def test_what_a_link_leads_to_is_a_file(layout: Path, scratch: Path, which: str, kind: str) -> None:
    (tagged,) = image_layouts.read_index(layout)["manifests"]
    manifest = json.loads(image_layouts.blob(layout, tagged).read_bytes())
    described = {"manifest": tagged, "config": manifest["config"], "layer": manifest["layers"][-1]}[which]
    blob = image_layouts.blob(layout, described)
    blob.unlink()
    blob.symlink_to(scratch / "elsewhere")
    writer = -1
    if kind == "directory":
        (scratch / "elsewhere").mkdir()
    else:
        os.mkfifo(scratch / "elsewhere")
        # Somebody who could write to it, and never does, lets a reader wait.
        writer = os.open(scratch / "elsewhere", os.O_RDWR)
    try:
        for complaint in complaints(layout, scratch / "out", of_layers=which == "layer"):
            assert re.search(f"blobs/sha256/{blob.name} (is not |does not match )", complaint)
    finally:
        if writer >= 0:
            os.close(writer)
