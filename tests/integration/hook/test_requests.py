"""Several requests of one container: each is done, or fails, as if it were alone."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.integration.conftest import Saver
from tests.support import hooks, overlays


@pytest.fixture
def saver(any_overlay: overlays.Overlay, scratch: Path) -> Saver:
    any_overlay.change(lambda root: (root / "made").write_text("by a container"))
    return Saver(any_overlay, "copy", scratch)


def also(saver: Saver, name: str, **keys: object) -> dict[str, str]:
    return hooks.annotations(name, **{"mount_point": "/data", "archive_to": saver.out / name, **keys})


def test_what_moves_the_upperdir_leaves_it_to_the_others_first(saver: Saver) -> None:
    result = saver.run(method="move", also=also(saver, "copied"))

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == os.listdir(saver.out / "copied") == ["made"]


def test_an_upperdir_is_moved_once(saver: Saver) -> None:
    result = saver.run(method="move", also=also(saver, "second", method="move"))

    assert result.status == 1
    assert result.only_error().endswith(
        f"has been moved to {saver.archive}; its changes are in {saver.archive}"
    )
    assert os.listdir(saver.archive) == ["made"]
    assert not (saver.out / "second").exists()


def test_what_is_kept_of_a_failure_is_still_there_for_the_others(saver: Saver, scratch: Path) -> None:
    rescued = scratch / "rescued"
    result = saver.run("--rescue-dir", rescued, method="zip", also=also(saver, "second"))

    assert result.status == 1
    assert os.listdir(saver.out / "second") == ["made"]
    assert os.listdir(rescued / "c1" / "data") == ["made"]
    assert json.loads((rescued / "c1" / "data.json").read_text())["annotations"]["method"] == "zip"


def test_two_failures_of_one_mount_are_kept_once(saver: Saver, scratch: Path) -> None:
    rescued = scratch / "rescued"
    result = saver.run("--rescue-dir", rescued, method="zip", also=also(saver, "second", method="rar"))

    assert result.status == 1
    assert sorted(os.listdir(rescued / "c1")) == ["data", "data.json"]
    kept = str(rescued / "c1" / "data")
    assert [message.endswith(kept) for message in result.messages("error")] == [True, True]


def test_an_archive_is_not_replaced_by_another_one_of_the_same_stop(saver: Saver) -> None:
    result = saver.run(method="tar", also=also(saver, "second", method="tar.gz", archive_to=saver.archive))

    assert result.status == 1
    assert "of the same stop" in result.only_error()
    assert saver.archive.read_bytes()[257:262] == b"ustar"


def with_a_slash(annotations: dict[str, str]) -> dict[str, str]:
    """Write annotations as Kubernetes wants them: NAME/KEY."""
    return {"/".join(annotation.rsplit(".", 1)): value for annotation, value in annotations.items()}


def test_annotations_with_a_slash_ask_for_an_archive(saver: Saver) -> None:
    asked = with_a_slash(also(saver, "pod", method="tar.gz", compression_level=1, tar_content_owner="7:8"))

    result = saver.run(also=asked)

    assert result.status == 0, result.stderr
    with tarfile.open(saver.out / "pod") as tar:
        assert {(member.name, member.uid, member.gid) for member in tar} == {(".", 7, 8), ("./made", 7, 8)}


def test_annotations_that_contradict_each_other_ask_for_nothing(saver: Saver, scratch: Path) -> None:
    rescued = scratch / "rescued"
    asked = also(saver, "unclear") | with_a_slash(also(saver, "unclear", archive_to=saver.out / "elsewhere"))

    result = saver.run("--rescue-dir", rescued, also=asked)

    assert result.status == 1
    assert "archive unclear: archive-to is not clear" in result.only_error()
    assert os.listdir(saver.out) == ["archive"]
    assert os.listdir(rescued / "c1" / "unclear") == ["made"]
    note = json.loads((rescued / "c1" / "unclear.json").read_text())
    assert note["annotations"] == {
        "mount-point": "/data",
        "archive-to": {
            f"{hooks.PREFIX}.unclear.archive-to": str(saver.out / "unclear"),
            f"{hooks.PREFIX}.unclear/archive-to": str(saver.out / "elsewhere"),
        },
    }
