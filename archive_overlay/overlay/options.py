r"""Read the mount options of an overlay from each of their sources, which all escape names differently.

A backslash, where it escapes anything, stands for the byte after it. In an overlay's options it does so in some values
and not in others. Tried with Linux 6.18 and fuse-overlayfs 1.10 and 1.13-dev, name by name:

source                        options are separated by   upperdir   lowerdir             lowerdir+, datadir+
----------------------------  -------------------------  ---------  -------------------  -------------------
the spec: what mount(2) gets  commas without escape      escapes    `:`, `::`, escapes   as it is
mount table: mount(2), and    commas; the table's own    escapes    `:`, `::`, escapes   as it is
  fsconfig(2) with a string   octal escapes are undone
  fsconfig(2) with an fd      the same                   as it is   (is lowerdir+)       as it is
fuse-overlayfs' arguments     commas without escape      undone     `:`, undone before   (none)

- The spec's list was split at all commas, and the runtime joins it by commas again for mount(2).
- A lowerdir+ of mount(2) may have a backslash before a comma. Both are in the name then.
- The mount table does not say by which call a mount was made, so an upperdir with a backslash has two readings.
- libfuse undoes escapes when it separates options, and takes `\` and three octal digits, up to 377, for a byte. No escape
  is left for the colons of fuse-overlayfs: neither an upperdir nor a lowerdir can have one.

Source: the kernel's Documentation/filesystems/overlayfs.rst and fs/overlayfs/params.c; libfuse's lib/fuse_opt.c;
fuse-overlayfs(1).
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.overlay import dialect
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.owners import OwnerMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from archive_overlay.overlay.dialect import Dialect

# Options with which an upperdir may refer to lower layers. (nfs_export needs index.)
_REFERRING = ("metacopy", "redirect_dir", "index")

_BACKSLASH, _COMMA = b"\\,"
# Options by which fuse-overlayfs shows other owners than those on disk.
_MAPPINGS = ("uidmapping", "gidmapping")
_EVERYBODY = ((0, 0, 2**32 - 1),)
_MOST_DIGITS = 10  # of 32 bits


def from_spec(options: Sequence[str], origin: str) -> OverlayMount:
    """Read an overlay's directories from the options of a mount in the spec.

    Args:
        options: as the spec has them.
        origin: what they belong to, for messages.

    Raises:
        ArchiveError: there is no upperdir in them.
    """
    return _overlay(_options_of_mount(options), None, origin)


def from_mount_table(options: Sequence[str], origin: str, *, upper: str) -> OverlayMount:
    """Read an overlay's directories from the mount table.

    Args:
        options: one by one, without the table's own escapes.
        origin: what they belong to, for messages.
        upper: which of the `upperdirs` it is; "" where there are none.

    Raises:
        ArchiveError: there is no upperdir in them.
    """
    return _overlay(_keys_and_values(options), None, origin, upper=upper)


def from_command_line(options: Sequence[str], origin: str) -> OverlayMount:
    """Read the directories of an overlay that is served in user space.

    Args:
        options: the value of each argument -o.
        origin: what they belong to, for messages.

    Raises:
        ArchiveError: there is no upperdir in them.
    """
    return _overlay(_keys_and_values(_separated(options)), dialect.FUSE_OVERLAYFS, origin)


def upperdirs(options: Sequence[str]) -> list[str]:
    """Return the directories that an upperdir of the mount table may be, one or two; an empty list if there is none.

    Args:
        options: see `from_mount_table`.
    """
    shown = next((value for key, value in _keys_and_values(options) if key == "upperdir"), "")
    escaped = _unescaped(shown)
    readings = [escaped] if escaped == shown else [escaped, shown]
    return [reading for reading in readings if reading]


def layers_of_mount_table(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield all directories that an overlay in the mount table may have, in each reading.

    Args:
        options: see `from_mount_table`.

    Yields:
        What each is, "lowerdir", "upperdir" or "workdir", and its path.
    """
    for key, value in _keys_and_values(options):
        if key in ("upperdir", "workdir"):
            yield from ((key, path) for path in sorted({value, _unescaped(value)}))
        elif key == "lowerdir":
            for group in _lowerdirs(value):
                yield from (("lowerdir", path) for path in group)
        elif key in ("lowerdir+", "datadir+"):
            yield "lowerdir", value


def layers_of_command_line(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield all directories of an overlay that is served in user space, as `layers_of_mount_table` does.

    Args:
        options: see `from_command_line`.
    """
    for key, value in _keys_and_values(_separated(options)):
        if key in ("upperdir", "workdir"):
            yield key, value
        elif key == "lowerdir":
            yield from (("lowerdir", path) for path in value.split(":"))


def _separated(groups: Sequence[str]) -> list[str]:
    return [option for group in groups for option in _separated_by_libfuse(group)]


def _overlay(
    options: Iterable[tuple[str, str]], kind: Dialect | None, origin: str, *, upper: str | None = None
) -> OverlayMount:
    """Read an overlay's directories.

    Args:
        options: by key and value.
        kind: the dialect; None: native, and the options say which.
        origin: what the options belong to, for messages.
        upper: the upperdir, where the options do not say it; None: they do.
    """
    found = ""
    lowers: list[str] = []
    data_lowers: list[str] = []
    userxattr = False
    permissions = ""
    mappings: dict[str, str] = {}
    references: dict[str, str] = {}
    for key, value in options:
        if key == "upperdir":
            found = value if kind else _unescaped(value)
        elif key == "lowerdir":
            lowers, data_lowers = (value.split(":"), []) if kind else _lowerdirs(value)
        elif key == "lowerdir+":
            lowers.append(value)
        elif key == "datadir+":
            data_lowers.append(value)
        elif key in _REFERRING:
            references[key] = value
        elif key == "xattr_permissions":
            permissions = value
        elif key == "userxattr":
            userxattr = True
        elif key in _MAPPINGS:
            mappings[key] = value
    upper = found if upper is None else upper
    if not upper:
        raise ArchiveError(
            f"{origin} is an overlay without an upperdir: it is mounted read-only",
            hint="mount it with rw=true (image mounts) or :O (volumes)",
        )
    program_owners = None
    if kind is dialect.FUSE_OVERLAYFS:
        kind = dialect.FUSE_OVERLAYFS_WITH_OWNERS.get(permissions, kind)
        if mappings:
            program_owners = _program_owners(mappings, origin)
    native = dialect.NATIVE_USERXATTR if userxattr else dialect.NATIVE
    return OverlayMount(
        upper=upper,
        lowers=tuple(lowers),
        data_lowers=tuple(data_lowers),
        dialect=kind or native,
        may_refer_to_lowers=not userxattr and _makes_references(references),
        program_owners=program_owners,
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


def _options_of_mount(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return keys and values of options that were split at commas, escaped ones too."""
    return _keys_and_values(split(",".join(options), ","))


def _keys_and_values(options: Iterable[str]) -> Iterator[tuple[str, str]]:
    for option in options:
        key, _, value = option.partition("=")
        yield key, value


def _separated_by_libfuse(options: str) -> list[str]:
    """Separate the options of one argument -o, and undo their escapes."""
    text = os.fsencode(options)
    separated = [bytearray()]
    position = 0
    while position < len(text):
        byte = text[position]
        position += 1
        if byte == _COMMA:
            separated.append(bytearray())
            continue
        if byte == _BACKSLASH and position < len(text):
            digits = text[position : position + 3]
            is_octal = len(digits) == 3 and digits[0] in b"0123" and not digits.strip(b"01234567")
            byte = int(digits, 8) if is_octal else text[position]
            position += 3 if is_octal else 1
        separated[-1].append(byte)
    return [os.fsdecode(bytes(option)) for option in separated]


def _program_owners(mappings: Mapping[str, str], origin: str) -> OwnerMap:
    """Read what fuse-overlayfs is told of owners: [:]DISK:SHOWN:COUNT[:DISK:SHOWN:COUNT...].

    podman puts a colon first, which is skipped.
    """
    ranges = {}
    for key, text in mappings.items():
        numbers = text.removeprefix(":").split(":")
        if len(numbers) % 3 or not all(
            number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS for number in numbers
        ):
            raise ArchiveError(
                f"{origin} has the option {key}={brief(text)}, which this program does not understand"
            )
        ids = iter(map(int, numbers))
        ranges[key] = list(zip(ids, ids, ids))
    return OwnerMap(users=ranges.get("uidmapping", _EVERYBODY), groups=ranges.get("gidmapping", _EVERYBODY))


def _makes_references(options: Mapping[str, str]) -> bool:
    """Return whether an overlay leaves data or contents in the lower layers, by its options or by default."""
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
    """Return the merged and the data-only layers of a lowerdir option: `::` stands before the latter."""
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
