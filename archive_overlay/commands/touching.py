"""Which change sets touch a path."""

from __future__ import annotations

from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.tar import headers
from archive_overlay.tar.changes import split_path, whiteout_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.tar.reader import TarReader


def touches(layer: TarReader, paths: Sequence[str]) -> bool:
    """Say whether a layer changes or deletes a path, or something below it.

    A path goes with the directory that it is in: one that is deleted, is opaque or becomes something else touches all that was
    in it. A directory that is in a layer only because of what is in it does not.

    Args:
        layer: at its start. It is not read to its end if that is not needed.
        paths: relative to the image's root directory; the root itself is "".

    Raises:
        ArchiveError: it is not a tar, or is damaged.
        OSError: it cannot be read.
    """
    for entry in layer.entries():
        parts = split_path(entry.name)
        takes_all = entry.type != headers.DIRECTORY
        if parts and parts[-1].startswith(WHITEOUT_PREFIX):
            mark = parts.pop()
            takes_all = True
            if mark != OPAQUE_MARKER:
                parts.append(whiteout_of(mark, entry.name))
        changed = "/".join(parts)
        for path in paths:
            if changed == path or _is_below(changed, path) or (takes_all and _is_below(path, changed)):
                return True
    return False


def _is_below(path: str, directory: str) -> bool:
    return not directory or path.startswith(f"{directory}/")
