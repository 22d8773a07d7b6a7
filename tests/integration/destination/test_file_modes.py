"""Who may read what the hook writes: its owner, and whom the administrator lets."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import tools

if TYPE_CHECKING:
    from tests.integration.conftest import Saver


def permissions(saver: Saver) -> dict[str, str]:
    """Give the permissions of files, by name; blobs are one."""
    paths = [saver.archive] if saver.archive.is_file() else saver.archive.rglob("*")
    return {
        "blob" if len(path.name) == 64 else path.name: oct(stat.S_IMODE(path.stat().st_mode))
        for path in paths
        if path.is_file()
    }


FILES = {"tar.gz": ["archive"], "tar": ["archive"], "oci": ["blob", "index.json", "oci-layout"]}


@pytest.mark.parametrize("method", FILES)
@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize(
    ("arguments", "mode"),
    [((), "0o600"), (("--file-mode=0640",), "0o640"), (("--file-mode", "644"), "0o644")],
)
def test_nobody_else_reads_what_was_private_in_a_container(
    small: Saver, method: str, umask: int, arguments: tuple[str, ...], mode: str
) -> None:
    small.overlay.change(lambda root: (root / "made").chmod(0o600))

    result = small.run(*arguments, before=lambda: (os.umask(umask), None)[1])

    assert result.status == 0, result.stderr
    assert permissions(small) == dict.fromkeys(FILES[method], mode)
    assert stat.S_IMODE(small.success.stat().st_mode) == 0o644, "it is empty, and others wait for it"


@pytest.mark.parametrize("method", FILES)
def test_a_default_acl_says_who_reads_archives(small: Saver, method: str) -> None:
    tools.need("setfacl", "getfacl")
    acl = "default:user::rw-,default:user:7:r--,default:group::---,default:mask::r--,default:other::---"
    subprocess.run(["setfacl", "--modify", acl, small.out], check=True)

    result = small.run()

    assert result.status == 0, result.stderr
    files = (
        [small.archive] if small.archive.is_file() else [p for p in small.archive.rglob("*") if p.is_file()]
    )
    for path in files:
        shown = subprocess.run(
            ["getfacl", "--omit-header", "--numeric", "--absolute-names", path],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout.decode()
        assert shown.split() == ["user::rw-", "user:7:r--", "group::---", "mask::r--", "other::---"]


def test_an_archive_that_takes_the_place_of_another_has_a_mode_of_its_own(small: Saver) -> None:
    assert small.run("--file-mode=0644", method="tar").status == 0

    assert small.run(method="tar").status == 0

    assert permissions(small) == {"archive": "0o600"}
