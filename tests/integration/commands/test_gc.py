"""What nothing in a layout refers to is removed, and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.methods.test_oci import change, stop
from tests.support import history, hooks, image_layouts, tools

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Saver

pytestmark = pytest.mark.parametrize("method", ["oci"])


def many(saver: Saver, stops: int = 8, tag: str = "main") -> Path:
    """Let the hook make an image with packs; give the layout."""
    for number in range(stops):
        change(saver, "file", f"{tag} {number}")
        stop(saver, archive_to=f"{saver.archive}:{tag}", max_layers="3")
    return saver.archive


def blobs(layout: Path) -> set[str]:
    return set(os.listdir(layout / "blobs/sha256"))


def forget(layout: Path, tag: str) -> None:
    """Take a tag away, as programs do that know nothing of histories."""
    index = image_layouts.read_index(layout)
    index["manifests"] = [each for each in index["manifests"] if image_layouts.tag_of(each) != tag]
    (layout / "index.json").write_text(json.dumps(index))


def expect_whole(layout: Path, *, unneeded: int = 0) -> None:
    found = json.loads(history.output_of("verify", "--read-data", "--json", layout))
    assert (found["whole"], found["unneeded"]["blobs"]) == (True, unneeded)


def test_what_a_tag_needed_goes_and_what_others_need_stays(small: Saver) -> None:
    layout = many(small)
    history.output_of("gc", "--older=0", layout)
    before = blobs(layout)
    expect_whole(layout)
    many(small, 5, "try")
    forget(layout, "try")

    listed = history.output_of("gc", "--older=0", "--dry-run", layout).splitlines()
    assert blobs(layout) > before
    done = history.output_of("gc", "--older=0", layout)

    assert blobs(layout) == before
    assert {line.split(" ")[0] for line in listed[:-1]}.isdisjoint(f"sha256:{name}" for name in before)
    assert f": {len(listed) - 1} blobs of " in done
    expect_whole(layout)
    assert sorted(os.listdir(layout)) == ["blobs", "index.json", "oci-layout"]
    assert len(json.loads(history.output_of("log", "--json", f"{layout}:main"))) == 8


def test_what_is_young_stays(small: Saver) -> None:
    layout = many(small, 1)
    image_layouts.put_blob(layout, b"of a program that is about to refer to it")
    blob = (
        layout / "blobs/sha256" / image_layouts.put_blob(layout, b"another one")["digest"].partition(":")[2]
    )
    os.utime(blob, (time.time() - 7200,) * 2)  # but somebody has just renamed it

    found = json.loads(history.output_of("gc", "--json", layout))

    assert (found["removed"], found["younger"]) == ([], 2)
    assert len(json.loads(history.output_of("gc", "--json", "--older=0", layout))["removed"]) == 2


@pytest.mark.parametrize("what", ["missing", "damaged", "unknown", "other digest", "history"])
def test_nothing_is_removed_if_something_is_not_known(small: Saver, what: str) -> None:
    layout = many(small)
    image_layouts.put_blob(layout, b"garbage")
    entry = image_layouts.put(layout, "other", layers=[b"no tar"])
    index = image_layouts.read_index(layout)
    if what == "missing":
        image_layouts.blob(layout, entry).unlink()
    elif what == "damaged":
        image_layouts.blob(layout, entry).write_bytes(b"{}")
    elif what == "unknown":
        index["manifests"][-1]["mediaType"] = "application/vnd.example.list"
    elif what == "other digest":
        index["manifests"][-1]["digest"] = f"sha512:{'0' * 128}"
    else:
        named = image_layouts.read(layout, "main").manifest["annotations"][f"{hooks.PREFIX}.history"]
        (unnamed,) = [each for each in index["manifests"] if each["digest"] in named]
        index["manifests"].remove(unnamed)
        image_layouts.blob(layout, unnamed).write_bytes(b"{}")
    (layout / "index.json").write_text(json.dumps(index))
    before = blobs(layout)

    complaint = history.complaint_of("gc", "--older=0", layout)

    assert "nothing is removed from" in complaint
    assert blobs(layout) == before


def test_what_an_image_of_another_kind_refers_to_stays(small: Saver) -> None:
    layout = many(small, 1)
    part = image_layouts.put(layout, "", layers=[b"one"])
    docker = image_layouts.put(
        layout,
        "",
        layers=[b"two"],
        manifest={"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "subject": part},
    )
    index = image_layouts.read_index(layout)
    listed = {"schemaVersion": 2, "manifests": [{k: v for k, v in docker.items() if k != "annotations"}]}
    index["manifests"] = [
        *[each for each in index["manifests"] if image_layouts.tag_of(each)],
        {
            "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
            **image_layouts.put_blob(layout, image_layouts.as_json(listed)),
        },
    ]
    (layout / "index.json").write_text(json.dumps(index))
    before = blobs(layout)

    assert "0 blobs" in history.output_of("gc", "--older=0", layout)
    assert blobs(layout) == before


def test_a_link_to_a_shared_store_stays(small: Saver) -> None:
    layout = many(small, 1)
    shared = small.directory / "shared"
    shared.write_text("in a store that others use")
    link = layout / "blobs/sha256" / ("a" * 64)
    link.symlink_to(shared)

    history.output_of("gc", "--older=0", layout)

    assert link.read_text() == shared.read_text()


def test_it_waits_for_the_lock(small: Saver) -> None:
    layout = many(small, 1)
    image_layouts.put_blob(layout, b"garbage")
    lock = os.open(layout, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = [*hooks.command(), "gc", "--older=0", str(layout)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={}) as process:
        assert process.stderr is not None
        assert b"waiting for" in process.stderr.readline()
        assert len(blobs(layout)) == 4
        os.close(lock)
    assert (process.returncode, len(blobs(layout))) == (0, 3)


def test_other_programs_read_and_collect_what_has_packs(small: Saver) -> None:
    tools.need("umoci", "skopeo")
    layout = many(small)
    before = history.output_of("log", "--json", f"{layout}:main")

    for command in (
        ("flock", str(layout), "umoci", "gc", "--layout", str(layout)),
        ("umoci", "stat", "--image", f"{layout}:main"),
        ("skopeo", "inspect", f"oci:{layout}:main"),
        ("skopeo", "copy", "--quiet", f"oci:{layout}:main", f"oci:{layout}:copied"),
        ("skopeo", "copy", "--quiet", f"oci:{layout}:main", f"oci:{small.directory / 'elsewhere'}:main"),
    ):
        subprocess.run(command, check=True, capture_output=True)

    assert history.output_of("log", "--json", f"{layout}:main") == before
    assert json.loads(history.output_of("verify", "--read-data", "--json", layout))["whole"]
    # The change sets of single revisions stayed where they were: there, fewer revisions can be had.
    elsewhere = history.run("verify", small.directory / "elsewhere")
    assert "lost" in elsewhere.stdout
    history.output_of("extract", small.directory / "elsewhere:main", small.directory / "extracted")
    change(small, "file", "one more")
    stop(small, archive_to=f"{layout}:main", max_layers="3")
    assert len(json.loads(history.output_of("log", "--json", f"{layout}:main"))) == 9
