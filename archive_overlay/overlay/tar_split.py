"""The tar that a layer of an engine's store was made of, put together again.

The store keeps a layer unpacked, and of its tar all but the contents of files, as lines of JSON:

    {"type":2,"payload":BASE64}           headers and padding, as they were
    {"type":1,"name":NAME,"size":NUMBER}  the contents of a file; NAME is BASE64 under "name_raw" if it is not UTF-8

The tar is right if its digest is the layer's diff ID, which is known only at its end.

Source: github.com/vbatts/tar-split, tar/storage and tar/asm; layers.go of containers/storage; the stores of podman 4.3.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import zlib

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.system.open_flags import READ
from archive_overlay.system.tree import open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

_CONTENTS, _BYTES = 1, 2
_CHUNK = 1 << 17
_SHOWN = 200
# Headers with the largest extended header that engines read take 1.4 MB.
_LONGEST_LINE = 1 << 23
_GZIP = 16 + zlib.MAX_WBITS


def reassembled(
    tar_split: int, directories: Sequence[int], diff_id: str, name: str
) -> Generator[bytes, None, None]:
    """Put a layer's tar together.

    Args:
        tar_split: file descriptor of the compressed lines.
        directories: file descriptors of what the layer was unpacked to: a file is taken from the first that has it.
        diff_id: the tar's digest, with "sha256:" before it.
        name: of the layer, for messages.

    Yields:
        The tar's bytes. They are the layer's only if nothing is raised in the end.

    Raises:
        ArchiveError: something is missing or damaged, or this is another tar.
    """
    digest = hashlib.sha256()
    try:
        for line in _lines(tar_split):
            for data in _part(line, directories):
                digest.update(data)
                yield data
    except OSError as error:
        fail(f"the tar of the layer {name} cannot be put together", error)
    except (ValueError, zlib.error) as error:
        raise ArchiveError(f"the tar of the layer {name} cannot be put together: {error}") from error
    if f"sha256:{digest.hexdigest()}" != diff_id:
        raise ArchiveError(
            f"the tar of the layer {name}, put together, is not what its diff ID {diff_id} says"
        )


def _lines(fd: int) -> Iterator[bytes]:
    """Yield the lines of a compressed file.

    Raises:
        ValueError: one is too long, or the end is missing.
        zlib.error: it is damaged.
        OSError: it cannot be read.
    """
    stream, held = zlib.decompressobj(_GZIP), b""
    while data := os.read(fd, _CHUNK):
        full = False
        while data or full:
            if stream.eof:  # a member follows
                stream = zlib.decompressobj(_GZIP)
            text = stream.decompress(data, _CHUNK)
            *lines, held = (held + text).split(b"\n")
            yield from lines
            if len(held) > _LONGEST_LINE:
                raise ValueError("its notes have a line that is too long")
            data, full = stream.unconsumed_tail or stream.unused_data, len(text) == _CHUNK and not stream.eof
    if held.strip() or not stream.eof:
        raise ValueError("its notes have no end")


def _part(line: bytes, directories: Sequence[int]) -> Iterator[bytes]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("its notes are damaged")
    payload = entry.get("payload")
    if entry.get("type") == _BYTES and isinstance(payload, str):
        yield base64.b64decode(payload, validate=True)
    elif entry.get("type") == _CONTENTS:
        size = entry.get("size", 0)
        if not isinstance(size, int) or size < 0:
            raise ValueError("its notes have a file of no size")
        if size:
            yield from _contents(_path(entry), size, directories)
    elif payload is not None:
        raise ValueError("its notes are damaged")


def _path(entry: dict[str, object]) -> str:
    """Return the path of a file below the directory that the layer was unpacked to."""
    name, raw = entry.get("name"), entry.get("name_raw")
    if isinstance(raw, str) and raw:
        name = os.fsdecode(base64.b64decode(raw, validate=True))
    if not isinstance(name, str):
        raise ValueError("its notes have a file without a name")
    # As it was unpacked: `..` takes back what stands before it, and nothing leads out.
    path = os.path.normpath(f"/{name}").lstrip("/")
    if not path or "\0" in path:
        raise ValueError("its notes have contents of a directory")
    return path


def _contents(path: str, size: int, directories: Sequence[int]) -> Iterator[bytes]:
    fd = _open(path, directories)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise ValueError(f"{path[:_SHOWN]!r} is not the file that it was")
        while size:
            data = os.read(fd, min(size, _CHUNK))
            if not data:
                raise ValueError(f"{path[:_SHOWN]!r} is shorter than it was")
            size -= len(data)
            yield data
    finally:
        os.close(fd)


def _open(path: str, directories: Sequence[int]) -> int:
    missing: OSError | None = None
    for top in directories:
        try:
            directory, name = open_beneath(path, top)
        except OSError as error:
            missing = missing or error
            continue
        try:
            return os.open(name, READ, dir_fd=directory)
        except OSError as error:
            missing = missing or error
        finally:
            os.close(directory)
    raise missing or ValueError("there is no directory to take it from")
