"""Hook configurations that nobody should have put there."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from archive_overlay.commands.check.hook_files import read_hook_files

if TYPE_CHECKING:
    from pathlib import Path

NESTED = "(" * 5000 + ")" * 5000


def only_finding(directory: Path) -> str:
    found = read_hook_files([str(directory)])
    assert found.in_force == ()
    (finding,) = found.findings
    return finding.found


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hook.json")
    writer = os.open(tmp_path / "hook.json", os.O_RDWR)  # who never writes
    try:
        assert "it is not a regular file" in only_finding(tmp_path)
    finally:
        os.close(writer)


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "hook.json").symlink_to("/dev/zero")
    assert "it is not a regular file" in only_finding(tmp_path)

    (tmp_path / "hook.json").unlink()
    (tmp_path / "hook.json").touch()
    os.truncate(tmp_path / "hook.json", 1 << 40)
    assert "it is larger than 1048576 bytes" in only_finding(tmp_path)


@pytest.mark.parametrize("pattern", ["a{99999999999}", NESTED], ids=["count", "nested"])
def test_a_pattern_that_cannot_be_compiled(tmp_path: Path, pattern: str) -> None:
    hook = {
        "version": "1.0.0",
        "hook": {"path": "/bin/sh"},
        "when": {"commands": [pattern]},
        "stages": ["poststop"],
    }
    (tmp_path / "hook.json").write_text(json.dumps(hook))

    assert "is not a regular expression: it is too large" in only_finding(tmp_path)
