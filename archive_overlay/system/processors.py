"""How many processors this process may use.

Source: sched_getaffinity(2); the kernel's Documentation/admin-guide/cgroup-v2.rst, cpu.max, and
Documentation/scheduler/sched-bwc.rst for version 1.
"""

from __future__ import annotations

import os


def processors() -> int:
    """Return the number of processors, at least 1: those it may run on, but no more than its quota pays for."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except OSError:  # a filter of system calls
        allowed = os.cpu_count() or 1
    quotas = [quota for quota in _quotas() if quota > 0]
    return max(1, min([allowed, *(round(quota) for quota in quotas)]))


def _quotas() -> list[float]:
    """Return the processors that each control group above this process has, where it has a limit."""
    found = []
    for version, mounted, path in _groups():
        while True:
            found += _quota(version, mounted + path)
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return found


def _groups() -> list[tuple[int, str, str]]:
    groups = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            groups.append((2, "/sys/fs/cgroup", path))
        elif "cpu" in controllers.split(","):
            groups.append((1, "/sys/fs/cgroup/cpu", path))
    return groups


def _quota(version: int, directory: str) -> list[float]:
    if version == 2:
        words = _read(f"{directory}/cpu.max").split()
    else:
        words = [_read(f"{directory}/cpu.cfs_{what}_us").strip() for what in ("quota", "period")]
    try:
        return [int(words[0]) / int(words[1])]
    except (IndexError, ValueError, ZeroDivisionError):
        return []  # "max", or no such file


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
