"""Change sets to save: many small files, one large file, deletions."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sysconfig
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the files of a data layer have, and how often.
_OWNERS = ((0, 0), (1000, 1000), (33, 33), (999, 999)), (6, 2, 1, 1)
_MODES = (0o644, 0o600, 0o755, 0o664), (7, 1, 1, 1)
_TIMES = 1_400_000_000_000_000_000, 1_700_000_000_000_000_000
# One of so many is a symlink, a hard link, a file with an attribute.
_SYMLINKS, _HARD_LINKS, _ATTRIBUTES = 33, 50, 20
_LARGEST = 64 * 1024

_PIECE = 1024 * 1024
# How much of a large file changes.
CHANGED = 1024 * 1024


def small_files(top: Path, *, files: int, directories: int) -> Path:
    """Make small files of program text, as data layers have them; the same ones each time.

    Args:
        top: the directory to make.
        files: how many, symlinks and hard links included.
        directories: how many, on two levels, `top` not included.
    """
    chance = random.Random(files)
    text = _program_text()
    places = [str(top), *_make_directories(str(top), directories)]
    target = ""
    for number in range(files):
        path = f"{places[number % directories + 1]}/{number:06}.txt"
        if number % _SYMLINKS == _SYMLINKS - 1:
            os.symlink(f"../{number:06}", path)
        elif number % _HARD_LINKS == _HARD_LINKS - 1:
            os.link(target, path)
            continue
        else:
            # Most have some hundred bytes, a few many thousand: about one KiB on average.
            size = min(int(chance.lognormvariate(6.2, 1.3)), _LARGEST)
            start = chance.randrange(len(text) - size)
            with open(path, "xb") as file:
                file.write(text[start : start + size])
            if number % _ATTRIBUTES == 0:
                _set_attribute(path)
            target = path
        _give_metadata(path, chance)
    for path in places:
        _give_metadata(path, chance)
    return top


def deletions(top: Path, count: int) -> Path:
    """Make a change set of nothing but deletions, 50 to a directory."""
    for number in range(count):
        directory = top / f"d{number // 50:03}"
        directory.mkdir(parents=True, exist_ok=True)
        os.mknod(directory / f"{number:06}", stat.S_IFCHR, 0)
    return top


def large_file(top: Path, size: int) -> Path:
    """Make a change set of one file, which has this machine's programs and libraries in it."""
    top.mkdir()
    with open(top / "large", "xb") as file:
        for binary in cycle(_binaries()):
            with open(binary, "rb") as source:
                while piece := source.read(min(_PIECE, size - file.tell())):
                    file.write(piece)
            if file.tell() == size:
                break
    return top


def changed_a_little(lower: Path, name: str, *, by: Path) -> Path:
    """Change 1 MiB in the middle of a file of a lower layer, as a container does, and give the upperdir.

    Args:
        lower: the layer.
        name: the file's name there; it has at least 2 MiB.
        by: where directories are made for the overlay, on the layer's file system.
    """
    upper, work, merged = (by / each for each in ("upper", "work", "merged"))
    for each in (upper, work, merged):
        each.mkdir()
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", merged], check=True)
    try:
        with open(merged / name, "r+b") as file:
            file.seek(os.path.getsize(file.fileno()) // 2 // CHANGED * CHANGED)
            file.write(os.urandom(CHANGED))
    finally:
        subprocess.run(["umount", merged], check=True)
    subprocess.run(["sync", "-f", upper], check=True)  # else who copies it first has to wait for that
    return upper


def _make_directories(top: str, count: int) -> list[str]:
    first = [f"{top}/d{number:03}" for number in range(max(1, count // 26))]
    second = [f"{first[number % len(first)]}/d{number:04}" for number in range(count - len(first))]
    for path in (top, *first, *second):
        os.mkdir(path)
    return first + second


def _give_metadata(path: str, chance: random.Random) -> None:
    if os.geteuid() == 0:
        owner, group = chance.choices(*_OWNERS)[0]
        os.chown(path, owner, group, follow_symlinks=False)
    if os.path.isdir(path):
        os.chmod(path, 0o755)
    elif not os.path.islink(path):
        os.chmod(path, chance.choices(*_MODES)[0])
    time = chance.randrange(*_TIMES)
    os.utime(path, ns=(time, time), follow_symlinks=False)


def _set_attribute(path: str) -> None:
    try:
        os.setxattr(path, "user.origin", b"made for measuring")
    except OSError:
        pass  # tmpfs has user attributes since Linux 6.6


def _program_text() -> bytes:
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return b"".join(source.read_bytes() for source in sources)


def _binaries() -> Iterator[str]:
    for top in ("/usr/bin", "/usr/lib"):
        for directory, subdirectories, names in os.walk(top):
            subdirectories.sort()
            for name in sorted(names):
                path = f"{directory}/{name}"
                if not os.path.islink(path) and os.path.isfile(path) and _is_elf(path):
                    yield path


def _is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"
