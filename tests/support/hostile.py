"""Trees that a container makes to have the hook take memory. Their paths are longer than any system call takes."""

# Without `from __future__ import annotations`: bench/ imports it, too.
import os
import string
from pathlib import Path

LONGEST_NAME = 255
LARGEST_ATTRIBUTE = 64 * 1024
MOST_ATTRIBUTES = 5_900  # of that name space, on one file

_LETTERS = string.ascii_letters + string.digits + "!#$%&()*+,-/:;<>?@[]^_{|}~"


def dig(top: Path, levels: int, *, files: int = 0, deepest: str = "", attribute: int = 0) -> None:
    """Make directories with long names, one in the other.

    Args:
        top: what the first one is made in; made if need be.
        levels: how many.
        files: how many files the last one holds, each with a second name there.
        deepest: name of an ordinary file in the last one; "" for none.
        attribute: bytes of an attribute of each directory; 0 for none.
    """
    top.mkdir(exist_ok=True)
    fd = os.open(top, os.O_RDONLY)
    for level in range(levels):
        name = f"{level:04}".ljust(LONGEST_NAME, "d")
        try:
            os.mkdir(name, dir_fd=fd)
        except FileExistsError:
            pass  # in a layer below
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
        if attribute:
            os.setxattr(fd, "trusted.big", bytes(attribute))
    for number in range(files):
        os.close(os.open(f"{number:05}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.link(f"{number:05}", f"{number:05} again", src_dir_fd=fd, dst_dir_fd=fd)
    if deepest:
        os.close(os.open(deepest, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def decorate(path: Path, count: int, size: int = LARGEST_ATTRIBUTE) -> None:
    """Give a file or a directory attributes. Those of `trusted.` need root; tmpfs takes any number of them.

    Args:
        path: the file.
        count: how many.
        size: bytes of each value.
    """
    for number in range(count):
        high, low = divmod(number, len(_LETTERS))
        name = f"trusted.{_LETTERS[high]}{_LETTERS[low]}"  # all names together have 64 KiB at most
        os.setxattr(path, name, (b"%05d" % number).ljust(size, b"."), follow_symlinks=False)


def spread(top: Path, names: int) -> None:
    """Make so many files with long names in one directory."""
    top.mkdir(exist_ok=True)
    fd = os.open(top, os.O_RDONLY)
    for number in range(names):
        os.close(os.open(f"{number:06}".ljust(LONGEST_NAME, "n"), os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def nest(top: Path, levels: int, names: int) -> None:
    """Make directories, one in the other, each with so many files with long names that come after the next directory."""
    top.mkdir(exist_ok=True)
    for _ in range(levels):
        spread(top, names)
        top = top / "!"
        top.mkdir()
