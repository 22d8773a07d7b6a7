"""What happens when a container stops, in the order in which it happens."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.cli import Settings
    from archive_overlay.log import Log


def run(settings: Settings, log: Log) -> int:
    """Save what the container asks for."""
    log.debug("the hook is being written")
    return 1
