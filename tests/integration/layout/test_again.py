"""An upperdir that is archived more than once: each revision has what has changed since the last one of the same upperdir."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.errors import StaleError
from tests.integration.methods.test_oci import below, change_everything, stop
from tests.support import histories, history, image_layouts

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Saver
    from tests.support import hooks

pytestmark = pytest.mark.parametrize("method", ["oci"])

UPPER = "0123456789abcdef"


def again(saver: Saver, *arguments: str, **keys: Any) -> hooks.Result:
    """Run the hook at one and the same start of the container."""
    config = saver.directory / "bundle" / "config.json"
    return stop(saver, *arguments, before=partial(os.utime, config, (1, 1)), **keys)


def names(saver: Saver) -> list[str]:
    """Give what the last layer has, but for directories."""
    members = image_layouts.read(saver.archive).layers[-1].members
    return [member.name for member in members if not member.isdir()]


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ((), {}),
        (("--no-setid",), {}),
        (("--no-setid",), {"tar_content_owner": "7:8", "compression": "zstd"}),
        (("--jobs=1",), {"compression": "none"}),
    ],
    ids=["as-it-is", "policy", "owner", "one-process"],
)
def test_nothing_is_saved_twice(any_saver: Saver, arguments: tuple[str, ...], keys: dict[str, str]) -> None:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change_everything)
    again(any_saver, *arguments, **keys)

    said = again(any_saver, *arguments, **keys)

    assert "as no layer, because nothing was changed," in said.stderr
    assert len(image_layouts.read(any_saver.archive).layers) == 1


def test_owners_of_a_user_namespace_are_compared_as_the_container_saw_them(small: Saver) -> None:
    mappings = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux = {"namespaces": [{"type": "user"}], "uidMappings": mappings, "gidMappings": mappings}
    again(small, linux=linux)

    assert "because nothing was changed" in again(small, linux=linux).stderr


def test_only_what_has_changed_is_saved(small: Saver) -> None:
    small.overlay.change(_three_files)
    again(small)
    small.overlay.change(_change_one_delete_one)

    again(small)

    assert names(small) == ["./directory/changed", "./directory/.wh.deleted"]


def _three_files(root: Path) -> None:
    (root / "directory").mkdir()
    for name in ("changed", "deleted", "kept"):
        (root / "directory" / name).write_text(name)


def _change_one_delete_one(root: Path) -> None:
    (root / "directory/deleted").unlink()
    status = (root / "directory/changed").stat()
    (root / "directory/changed").write_text("CHANGED")
    os.utime(root / "directory/changed", ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_that_is_no_link_any_more_is_another_file(small: Saver) -> None:
    small.overlay.change(_link)
    again(small)
    small.overlay.change(_copy_of_link)

    again(small)

    assert names(small) == ["./two"]


def test_a_file_with_one_more_name_is_one_file_under_all_of_them(small: Saver) -> None:
    small.overlay.change(_link)
    again(small)
    small.overlay.change(lambda root: os.link(root / "two", root / "three"))

    again(small)

    assert names(small) == ["./one", "./three", "./two"]


def test_a_name_outside_of_the_upperdir_changes_nothing(small: Saver) -> None:
    os.link(small.overlay.upper / "made", small.directory / "elsewhere")
    again(small)

    assert "because nothing was changed" in again(small).stderr


def _link(root: Path) -> None:
    (root / "one").write_text("of both")
    os.link(root / "one", root / "two")


def _copy_of_link(root: Path) -> None:
    shutil.copy2(root / "two", root / "copy")
    os.rename(root / "copy", root / "two")


def test_if_the_earlier_revision_is_damaged_all_is_saved(small: Saver) -> None:
    again(small)
    blob = (
        small.archive
        / "blobs"
        / image_layouts.read(small.archive).layers[0].descriptor["digest"].replace(":", "/")
    )
    blob.write_bytes(bytes(blob.stat().st_size))

    said = again(small)

    assert "not only what it changed since latest@1" in said.messages("warning")[0]
    assert "made" in names(small)[0]


def test_if_the_tag_moves_meanwhile_the_revision_is_a_branch(tmp_path: Path, method: str) -> None:
    layout = tmp_path / "layout"
    first = histories.judge(layout, "main", upper=UPPER)
    histories.publish(first, history.layer(history.directory("./"), history.file("./a", b"1")))
    second = histories.judge(layout, "main", upper=UPPER)
    assert second.earlier
    assert second.earlier.number == 1
    histories.append(layout, "main", history.layer(history.directory("./"), history.file("./b", b"other")))

    histories.publish(second, history.layer(history.directory("./"), history.file("./a", b"2")))

    assert second.published == f"main-{'c' * 12}"
    assert histories.numbers(layout) == histories.numbers(layout, second.published) == [1, 2]
    # The next one goes on with the branch.
    third = histories.judge(layout, "main", upper=UPPER)
    histories.publish(third, history.layer(history.directory("./"), history.file("./a", b"3")))
    assert third.published == second.published
    assert histories.numbers(layout, second.published) == [1, 2, 3]


def test_if_the_earlier_revision_vanishes_meanwhile_it_is_judged_anew(tmp_path: Path, method: str) -> None:
    layout = tmp_path / "layout"
    first = histories.judge(layout, "main", upper=UPPER)
    histories.publish(first, history.layer(history.directory("./"), history.file("./a", b"1")))
    second = histories.judge(layout, "main", upper=UPPER)
    history.output_of("untag", f"{layout}:main")

    with pytest.raises(StaleError):
        histories.publish(second, history.layer(history.directory("./"), history.file("./a", b"2")))
