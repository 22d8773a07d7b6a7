"""The mount options of an overlay.

Source: the kernel's Documentation/filesystems/overlayfs.rst; fuse-overlayfs(1).
"""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay import dialect
from archive_overlay.overlay.mount import OverlayMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from archive_overlay.overlay.dialect import Dialect

# Options with which an upperdir does not say all by itself. (nfs_export needs index.)
_REFERRING = ("metacopy", "redirect_dir", "index")


def from_options(options: Sequence[str], kind: Dialect | None, origin: str) -> OverlayMount:
    """Read an overlay's directories from its mount options.

    Args:
        options: as a list that was split at commas, escaped ones too.
        kind: the dialect; None: native, and the options say which.
        origin: what the options belong to, for messages.

    Raises:
        ArchiveError: there is no upperdir in them.

    Source: overlayfs.rst, "Multiple lower layers": a backslash escapes colons and commas.
    """
    upper = ""
    lowers: list[str] = []
    data_lowers: list[str] = []
    userxattr = False
    permissions = ""
    references: dict[str, str] = {}
    for key, value in _options(options):
        if key == "upperdir":
            upper = _unescaped(value)
        elif key == "lowerdir":
            lowers, data_lowers = _lowerdirs(value)
        elif key == "lowerdir+":
            lowers.append(_unescaped(value))
        elif key == "datadir+":
            data_lowers.append(_unescaped(value))
        elif key in _REFERRING:
            references[key] = value
        elif key == "xattr_permissions":
            permissions = value
        elif key == "userxattr":
            userxattr = True
    if not upper:
        raise ArchiveError(
            f"{origin} is an overlay without an upperdir: it is mounted read-only",
            hint="mount it with rw=true (image mounts) or :O (volumes)",
        )
    if kind is dialect.FUSE_OVERLAYFS:
        kind = dialect.FUSE_OVERLAYFS_WITH_OWNERS.get(permissions, kind)
    native = dialect.NATIVE_USERXATTR if userxattr else dialect.NATIVE
    return OverlayMount(
        upper=upper,
        lowers=tuple(lowers),
        data_lowers=tuple(data_lowers),
        dialect=kind or native,
        may_refer_to_lowers=not userxattr and _makes_references(references),
    )


def split(text: str, separator: str) -> list[str]:
    r"""Split at a separator, but not where a backslash stands before it; the backslashes stay."""
    parts = []
    start = position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return parts


def upperdir(options: Sequence[str]) -> str:
    """Give the upperdir of mount options that were split at commas, escaped ones too; "" if there is none."""
    return next((_unescaped(value) for key, value in _options(options) if key == "upperdir"), "")


def _options(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give keys and values of mount options that were split at commas, escaped ones too."""
    for option in split(",".join(options), ","):
        key, _, value = option.partition("=")
        yield key, value


def _makes_references(options: Mapping[str, str]) -> bool:
    """Say whether an overlay leaves data or contents in the lower layers, by its options or by default."""
    for key in _REFERRING:
        value = options.get(key)
        if value is None:
            try:
                with open(f"/sys/module/overlay/parameters/{key}", encoding="utf-8") as file:
                    value = "off" if file.read().strip() == "N" else "on"
            except OSError:
                value = "on"  # nobody knows
        if value == "on":
            return True
    return False


def _lowerdirs(value: str) -> tuple[list[str], list[str]]:
    """Give the merged and the data-only layers of a lowerdir option: `::` stands before the latter."""
    parts = split(value, ":")
    merged = parts.index("") if "" in parts else len(parts)
    return [_unescaped(part) for part in parts[:merged]], [
        _unescaped(part) for part in parts[merged:] if part
    ]


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    parts = iter(text)
    return "".join(next(parts, "") if char == "\\" else char for char in parts)
