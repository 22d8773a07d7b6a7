"""The command lines of the commands that deal with engines and registries; see `parsers`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Callable

    Add = Callable[[str, str, str, str], argparse.ArgumentParser]


def add_engine_commands(add: Add) -> None:
    """Add them, in the order in which help lists them.

    Args:
        add: makes the parser of a command of its name, summary, description and examples.
    """
