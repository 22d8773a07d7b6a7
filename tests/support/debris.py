"""What a killed run leaves: a staging directory with its mark."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from archive_overlay.destination import names

if TYPE_CHECKING:
    from pathlib import Path


def put(directory: Path, name: str) -> Path:
    """Put the staging directory of a killed run somewhere.

    Args:
        directory: where it is.
        name: of the destination; "" if staging is inside it.
    """
    made = directory / names.new_staging_name(name)
    made.mkdir(0o700, parents=True)
    fd = os.open(made, os.O_RDONLY)
    assert names.set_mark(fd), f"{directory} is on a file system without attributes"
    os.close(fd)
    return made
