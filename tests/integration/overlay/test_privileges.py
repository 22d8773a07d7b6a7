"""Marks that the kernel hides from a hook: without CAP_SYS_ADMIN on the host, `trusted.*` seems not to be there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.system.user_namespace import sees_trusted_attributes
from tests.integration.conftest import Saver
from tests.support import hooks, overlays

if TYPE_CHECKING:
    from typing import Callable

native = pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
UNSEEN = "cannot be seen without CAP_SYS_ADMIN"


def without_privilege() -> None:
    overlays.give_up_privilege(overlays.CAP_SYS_ADMIN)


def below(root: Path) -> None:
    (root / "replaced").mkdir()
    (root / "replaced/old").touch()


def replace(root: Path) -> None:
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()


@pytest.fixture
def replaced(saver: Saver) -> Saver:
    """Save an overlay in which a container replaced a directory."""
    saver.overlay.layer(below)
    saver.overlay.change(replace)
    return saver


@pytest.mark.parametrize("method", ["copy", "tar", "move"])
@native
def test_what_marks_an_opaque_directory_is_not_taken_for_missing(replaced: Saver) -> None:
    result = replaced.run(before=without_privilege)

    assert result.status == 1
    (said,) = result.messages("error")
    assert f"the attributes trusted.overlay.* in {replaced.overlay.upper} {UNSEEN}" in said
    assert not replaced.success.exists()
    assert os.listdir(replaced.out) == []


@pytest.mark.parametrize("method", ["copy"])
@native
def test_a_user_namespace_hides_them_too(replaced: Saver) -> None:
    result = replaced.run(before=overlays.leave_users)

    assert (result.status, UNSEEN in result.stderr) == (1, True), result.stderr


@pytest.mark.parametrize("method", ["copy"])
@pytest.mark.parametrize("overlay", [overlays.NATIVE_ROOTLESS, overlays.FUSE], indirect=True)
def test_marks_that_are_not_hidden_need_no_privilege(replaced: Saver) -> None:
    result = replaced.run(before=without_privilege)

    assert result.status == 0, result.stderr
    assert os.getxattr(replaced.archive / "replaced", "user.overlay.opaque") == b"y"


@pytest.mark.parametrize("method", ["copy"])
@native
def test_what_is_rescued_without_them_is_said_to_be(replaced: Saver, tmp_path: Path) -> None:
    result = replaced.run("--rescue-dir", tmp_path / "rescue", before=without_privilege)

    (said,) = [
        message for message in result.messages("warning") if "is kept without the attributes" in message
    ]
    assert str(replaced.overlay.upper) in said
    assert len(list((tmp_path / "rescue").glob("*/data/replaced"))) == 1


@native
@pytest.mark.parametrize("method", ["copy"])
def test_diff_does_not_take_them_for_missing(replaced: Saver) -> None:
    def diff(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*hooks.command(), "diff", *arguments, replaced.overlay.upper],
            preexec_fn=without_privilege,
            capture_output=True,
            text=True,
            check=False,
        )

    asked = diff("--marks", "trusted")
    assert (asked.returncode, asked.stdout, UNSEEN in asked.stderr) == (1, "", True)

    guessed = diff()
    assert (guessed.returncode, guessed.stdout) == (0, "A            - replaced/\n")
    assert "if root's containers made" in guessed.stderr


@pytest.mark.parametrize("rootless", [False, True])
def test_a_process_knows_whether_it_sees_them(
    namespace: Callable[[bool], overlays.Namespace], rootless: bool
) -> None:
    assert namespace(rootless).inside(sees_trusted_attributes) is (os.geteuid() == 0 and not rootless)
