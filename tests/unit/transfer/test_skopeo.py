"""What skopeo says, and what it means."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import pytest

from archive_overlay.transfer.skopeo import Skopeo, TransferError

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN = "reading manifest 1 in host/x: manifest unknown"
REFUSED = "pinging container registry host: dial tcp 192.0.2.1:443: connect: connection refused"


def manifest(tmp_path: Path, said: str) -> bytes | None:
    """Look for an image by a program that fails with what skopeo 1.9 says."""
    program = tmp_path / "skopeo"
    fatal = f'level=fatal msg="Error parsing image name \\"docker://host/x:1\\": {said}"'
    program.write_text(f"#!/bin/sh\necho {shlex.quote(fatal)} >&2\nexit 1\n")
    program.chmod(0o755)
    skopeo = Skopeo(str(program), environment=dict(os.environ), timeout=20, say=lambda said: None)
    return skopeo.manifest("docker://host/x:1")


@pytest.mark.parametrize(
    "said", [UNKNOWN, f"(Mirrors also failed: [mirror/x:1: {REFUSED}]): host/x:1: {UNKNOWN}"]
)
def test_an_image_is_not_there_if_its_registry_says_so(tmp_path: Path, said: str) -> None:
    assert manifest(tmp_path, said) is None


def test_what_a_mirror_lacks_may_be_in_a_registry_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="connection refused"):
        manifest(tmp_path, f"(Mirrors also failed: [mirror/x:1: {UNKNOWN}]): host/x:1: {REFUSED}")
