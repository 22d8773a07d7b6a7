"""Run the hook as ``python -m archive_overlay``."""

import sys

from archive_overlay.cli import run

sys.exit(run())
