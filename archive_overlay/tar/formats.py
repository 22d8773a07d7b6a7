"""What a file is that is not a tar, and how its contents get into one: for messages.

A tar begins with the name of its first entry, which may look like any of these. So they count only where there is no tar.

Source: magic(5) of file 5.44; the formats' own specifications.
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError

_TAR_ITSELF = "give the tar itself on standard input: {program} FILE | archive_overlay COMMAND - ..."
_REPACK = "extract it with {program}, and pack what it holds as a tar"
# What a file begins with: what that is called, the program that reads it, and whether a tar is likely in it.
_FORMATS = (
    (b"\xfd7zXZ\0", "xz", "xz -dc", True),
    (b"BZh", "bzip2", "bzip2 -dc", True),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc", True),
    (b"LZIP", "lzip", "lzip -dc", True),
    (b"\x5d\0\0", "lzma", "xz -dc", True),
    (b"\x89LZO", "lzop", "lzop -dc", True),
    (b"\x1f\x9d", "compress (.Z)", "gzip -dc", True),
    (b"PK", "a zip file", "unzip", False),
    (b"hsqs", "a squashfs image", "unsquashfs", False),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", "7z x", False),
    (b"070701", "a cpio archive", "cpio -i", False),
    (b"070707", "a cpio archive", "cpio -i", False),
    (b"!<arch>\n", "an ar archive", "ar x", False),
    (b"\xed\xab\xee\xdb", "an rpm package", "rpm2cpio", False),
)


def not_a_tar(beginning: bytes) -> ArchiveError:
    """Give the error of what was to be a tar, and is something else.

    Args:
        beginning: its first bytes, decompressed if it was gzip or zstd.
    """
    for magic, name, program, has_tar in _FORMATS:
        if beginning.startswith(magic):
            said = f"it is compressed by {name}" if has_tar else f"it is {name}"
            hint = (_TAR_ITSELF if has_tar else _REPACK).format(program=program)
            return ArchiveError(f"{said}; only plain tars and those of gzip and zstd are read", hint=hint)
    return ArchiveError("it is not a tar")
