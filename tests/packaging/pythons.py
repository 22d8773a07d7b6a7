"""The Python interpreters on this machine."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]

# Those of Debian 11, 12 and 13, and the newest one. With 3.14 zstd came into the standard library.
PROMISED = ((3, 9), (3, 11), (3, 13), (3, 14))


@dataclass(frozen=True)
class Python:
    """An interpreter.

    Attributes:
        path: absolute, symlinks resolved. It may be a script that runs the interpreter.
        version: major and minor.
    """

    path: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def find() -> list[Python]:
    """Find one interpreter of each version: on PATH, of those that pyenv has installed, and of those of `make roots`."""
    candidates = [
        os.path.join(directory, name)
        for directory in ("/usr/bin", *os.environ["PATH"].split(":"))
        if os.path.isdir(directory)
        for name in sorted(os.listdir(directory))
        if re.fullmatch(r"python[23](\.\d+)?", name)
    ]
    candidates += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python")))
    of_roots = sorted(map(str, TOP.glob(".cache/roots/*.python"))) if os.geteuid() == 0 else []
    candidates += of_roots
    found: dict[tuple[int, int], Python] = {}
    for path in dict.fromkeys(map(os.path.realpath, candidates)):
        # In words that Python 2 knows too. What is on PATH may be a script that starts an interpreter.
        asked = subprocess.run(
            [path, "-SEc", "import sys; print('%d %d %s' % (sys.version_info[:2] + (sys.executable,)))"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0:
            major, minor, executable = asked.stdout.strip().split(" ", 2)
            version = int(major), int(minor)
            # Those of the roots are what their scripts run, and nothing that could be run without them.
            known = path if path in of_roots else os.path.realpath(executable)
            found.setdefault(version, Python(known, version))
    return sorted(found.values(), key=lambda python: python.version)


ALL = find()
SUPPORTED = [python for python in ALL if python.version >= (3, 9)]
TOO_OLD = [python for python in ALL if python.version < (3, 9)]
MISSING = [
    ".".join(map(str, version)) for version in PROMISED if version not in {each.version for each in ALL}
]
