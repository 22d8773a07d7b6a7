"""Write the program as one executable zip file that starts without extracting itself.

A plain shiv file extracts itself into the home directory before it starts. A hook of a rootless
container has none that it may write to, and pays for it at every container stop. Python imports from
inside a zip just as well, so only the package is kept of what shiv packed, behind a main module of a few
lines.
"""

from __future__ import annotations

import argparse
import os
import time
import zipfile
from pathlib import Path

# Isolated from the environment and the user's own modules (-I), never writing .pyc files (-B),
# without the site module (-S), and with UTF-8 names whatever the locale is (-X utf8).
INTERPRETER_OPTIONS = "-IBSXutf8"

# Read by every Python since 2.7, which is why it is written like this.
MAIN = """\
import sys
if sys.version_info < (3, 9):
    sys.exit("archive_overlay needs Python 3.9 or later; this is %s" % sys.version.split()[0])
sys.path.insert(0, __spec__.loader.archive + "/site-packages")
from archive_overlay.cli import run
sys.exit(run())
"""

# The dates that a zip entry can hold, in seconds since 1970.
ZIP_EPOCH = 315532800
ZIP_END = 4354819198


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write the program as one executable file.")
    parser.add_argument("--interpreter", required=True, help="absolute path, for the first line")
    parser.add_argument("--date", type=int, required=True, help="of all entries, in seconds since 1970")
    parser.add_argument("stage", type=Path, help="the directory that holds the package")
    parser.add_argument("output", type=Path, help="where the program goes")
    options = parser.parse_args()

    entries = {
        f"site-packages/{path.relative_to(options.stage).as_posix()}": path.read_bytes()
        for path in options.stage.glob("archive_overlay/**/*.py*")
    }
    entries["__main__.py"] = MAIN.encode()
    write(options.output, entries, interpreter=options.interpreter, date=options.date)


def write(output: Path, entries: dict[str, bytes], *, interpreter: str, date: int) -> None:
    """Write an executable zip file whose bytes depend on the arguments alone.

    Args:
        output: replaced in one rename, so that hooks that start meanwhile find the old or the new one.
        entries: name in the zip to contents.
        interpreter: absolute path of the Python that runs it.
        date: of all entries, in seconds since 1970; moved into what a zip can hold.
    """
    date_time = time.gmtime(min(max(date, ZIP_EPOCH), ZIP_END))[:6]
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            # Written first, so that the offsets in the zip's directory count it.
            file.write(f"#!{interpreter} {INTERPRETER_OPTIONS}\n".encode())
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, data in sorted(entries.items()):
                    info = zipfile.ZipInfo(name, date_time)
                    info.create_system = 3  # Unix: the mode below means something
                    info.external_attr = 0o100644 << 16
                    archive.writestr(info, data)
        unfinished.chmod(0o755)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
