"""What a person names in place of an image layout, and what to do instead.

Other programs say first what kind of place a name is of: `oci:PATH:TAG`, `docker://HOST/NAME:TAG`.

Source: containers-transports(5); OCI image specification, image-layout.md.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.errors import ArchiveError
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.read import INDEX_FILE, VERSION_FILE, has_manifest, lost_index
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

_LAYOUT_TRANSPORT = "oci"
_REGISTRY = "docker"
_STORE = "containers-storage"
_OTHERS = ("dir", "docker-archive", "docker-daemon", "oci-archive", "ostree", "sif", "tarball")
# Of layouts below a directory, in a message.
_MOST_NAMED = 3
_MOST_LOOKED_AT = 1000


def without_transport(text: str) -> str:
    """Take `oci:` from the beginning of a text: what follows is LAYOUT:TAG as this program writes it.

    A path that is there and begins so is left alone.

    Raises:
        ArchiveError: the text names an image that is in no layout.
    """
    transport, _, rest = text.partition(":")
    if not rest or transport not in (_LAYOUT_TRANSPORT, _REGISTRY, _STORE, *_OTHERS):
        return text
    if os.path.lexists(transport) or os.path.lexists(text):
        return text
    if transport == _LAYOUT_TRANSPORT:
        return rest
    if transport == _REGISTRY:
        raise ArchiveError(
            f"{text} is an image in a registry, not in an image layout",
            hint=f"bring it into a layout: archive_overlay fetch LAYOUT:TAG {quoted(text)}",
        )
    where = (
        "an image in an engine's store" if transport == _STORE else f"an image of another kind ({transport}:)"
    )
    raise ArchiveError(
        f"{text} is {where}, not in an image layout",
        hint=f"copy it into a layout: skopeo copy {quoted(text)} oci:LAYOUT:TAG",
    )


def why_no_layout(path: str) -> ArchiveError | None:
    """Say what something is that was named as an image layout.

    Args:
        path: it.

    Returns:
        What is there instead, and what to do; None: a layout may be there, or nobody can say.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return _of_directory(path)
        if stat.S_ISREG(status.st_mode):
            return _of_file(path)
    except (OSError, ValueError):
        return None  # opening it says why
    return ArchiveError(f"{path} is not an image layout: it is neither a directory nor a file")


def _has_manifest(path: str) -> bool:
    fd = os.open(path, READ_TOP_DIRECTORY)
    try:
        return has_manifest(fd)
    finally:
        os.close(fd)


def _of_directory(path: str) -> ArchiveError | None:
    names = _names_in(path)
    if not names:
        return ArchiveError(
            f"{path} is an empty directory, not an image layout", hint="nothing has been archived there yet"
        )
    if INDEX_FILE in names and (VERSION_FILE in names or "blobs" in names):
        return None
    if _has_manifest(path):
        return lost_index(path)
    layouts = [
        f"{path.rstrip('/')}/{name}"
        for name in sorted(names)[:_MOST_LOOKED_AT]
        if os.path.isfile(os.path.join(path, name, INDEX_FILE))
    ]
    if layouts:
        more = ", ..." if len(layouts) > _MOST_NAMED else ""
        return ArchiveError(
            f"{path} is a directory, not an image layout",
            hint=f"there are layouts in it: {', '.join(layouts[:_MOST_NAMED])}{more}",
        )
    return ArchiveError(
        f"{path} is a directory, not an image layout: it has no {INDEX_FILE}",
        hint="for an archive of method copy or move, use archive_overlay diff or archive_overlay apply",
    )


def _of_file(path: str) -> ArchiveError:
    return ArchiveError(
        f"{path} is a file, not an image layout",
        hint="for an archive of method tar, use archive_overlay diff or archive_overlay apply",
    )


def _names_in(path: str) -> set[str]:
    fd = os.open(path, READ_TOP_DIRECTORY)
    try:
        return set(os.listdir(fd))
    finally:
        os.close(fd)
