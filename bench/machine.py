"""The machine that is measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

_PROGRAMS = ("cp", "tar", "gzip", "pigz", "zstd", "rsync", "umoci", "restic")
_QUIET = 0.5
_MEBIBYTE = bytes(1024 * 1024)
_MEMORY = 4096  # MiB, as the README says


def description(interpreter: str) -> str:
    """Say what machine this is, and which versions the tools have.

    Args:
        interpreter: the Python that runs the program.
    """
    processor = _first(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    tools = [f"Python {_version(interpreter)}"]
    tools += [f"{program} {_version(program)}" for program in _PROGRAMS if shutil.which(program)]
    return (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {len(os.sched_getaffinity(0))} processors"
        f" ({processor or platform.machine()}), {memory:.0f} GiB, Linux {platform.release()};"
        f" {', '.join(tools)}."
    )


def warning() -> str:
    """Say that the machine has other things to do; nothing if it has not."""
    load = os.getloadavg()[0]
    if load <= _QUIET:
        return ""
    return f"The machine was busy at the start (load average {load:.1f}): do not trust these figures."


def _version(program: str) -> str:
    asked = "version" if program == "restic" else "--version"
    shown = subprocess.run([program, asked], capture_output=True, text=True, check=False)
    return _first(r"(\d+(?:\.\d+)+)", shown.stdout + shown.stderr) or "?"


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def find_memory(place: Path, scale: float) -> None:
    """Write to as much memory as the works take, and give it back.

    A virtual machine's memory takes five times as long to write to when its host must find it first. It
    would be found by whatever is measured first.
    """
    file = place / "memory"
    with open(file, "xb") as memory:
        for _ in range(int(_MEMORY * scale)):
            memory.write(_MEBIBYTE)
    file.unlink()
