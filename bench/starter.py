"""Start commands one after another, and say what each took.

A small process of its own: the peak memory that Linux counts for a process includes what its starter
had when the process became another program, so that a large starter would be measured instead.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys
import time


def main() -> None:
    """Read commands from stdin until it ends; answer each with seconds, CPU seconds, peak KiB, status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, and for who waits for it
    while True:
        try:
            arguments, environment, stdin, stderr = marshal.load(sys.stdin.buffer)
        except EOFError:
            return
        files = (
            (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        )
        begun = time.perf_counter()
        process = os.posix_spawn(
            arguments[0], arguments, environment, file_actions=files, setsigdef=[signal.SIGINT]
        )
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - begun
        cpu = usage.ru_utime + usage.ru_stime  # with those of all processes that it has waited for
        print(seconds, cpu, usage.ru_maxrss, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
