"""How much memory a command takes at most."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import hooks

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 2**20

# The kernel's own count of the process that runs the program: that of wait4(2) begins with its parent's.
_MEASURED = f"""
import sys
sys.path.insert(0, {str(hooks.TOP)!r})
peak = sys.argv.pop(1)
from archive_overlay.cli import main
try:
    sys.exit(main())
finally:
    with open("/proc/self/status") as status, open(peak, "w") as file:
        file.write(status.read())
"""


def of_command(scratch: Path, *arguments: str | Path) -> tuple[hooks.Result, int]:
    """Run a command to its end.

    Args:
        scratch: where a file may be made.
        arguments: the command line.

    Returns:
        What became of it, and how many bytes it had in memory at most.
    """
    flags = ("-ISXutf8", "-X", f"pycache_prefix={hooks.TOP / '.cache' / 'bytecode'}")
    note = scratch / "peak"
    command: Sequence[str] = [sys.executable, *flags, "-c", _MEASURED, str(note), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env={}, cwd="/", check=False)
    found = re.search(r"^VmHWM:\s*(\d+) kB$", note.read_text(), re.MULTILINE)
    assert found
    note.unlink()
    said = [text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr)]
    return hooks.Result(done.returncode, said[0], said[1]), int(found[1]) * 1024
