"""The command lines of the commands that deal with engines and registries; see `parsers`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Callable, Union

    from archive_overlay.settings import Settings

    Add = Callable[[str, str, str, str], argparse.ArgumentParser]
    Parse = Callable[[Sequence[str]], Union[Settings, argparse.Namespace]]


def add_engine_commands(add: Add, parse: Parse) -> None:
    """Add them, in the order in which help lists them.

    Args:
        add: makes the parser of a command of its name, summary, description and examples.
        parse: by which the hook reads its arguments.
    """
    _add_recover(add, parse)
    _add_snapshot(add, parse)


def _add_recover(add: Add, parse: Parse) -> None:
    command = add(
        "recover",
        "save what containers had changed when the host or their monitor went down",
        "Save what containers changed whose hook the engine never ran, because the host lost power or conmon was killed: all\n"
        "containers of the store that have annotations, no process, and an upperdir whose archive was not made since their\n"
        "last start. Archives are made by the installed hook configuration. Run it before the engine starts or removes these\n"
        "containers; archive_overlay-recover.service does so when the host starts. Root's store is looked at, or that of the\n"
        "user who runs it.",
        "  archive_overlay recover --dry-run\n"
        "  archive_overlay recover\n"
        "  archive_overlay recover --root /srv/containers/storage\n"
        "  podman unshare archive_overlay recover",
    )
    command.add_argument("--dry-run", action="store_true", help="only list the archives that would be made")
    _add_places(command, parse)


def _add_snapshot(add: Add, parse: Parse) -> None:
    command = add(
        "snapshot",
        "save what a container has changed while it runs",
        "Make the archives that a running container's annotations ask for, now, by the installed hook configuration. Its\n"
        "processes are paused while its files are read. The hook runs at its stop all the same: with method oci, each revision\n"
        "has only what has changed since the one before it. Archives with method move are refused: a running container needs\n"
        "its upperdir.",
        "  archive_overlay snapshot web\n"
        "  archive_overlay snapshot web data\n"
        "  archive_overlay snapshot --no-pause 3f9a\n"
        "  podman unshare archive_overlay snapshot web",
    )
    command.add_argument(
        "container", metavar="CONTAINER", help="its name, its id, or the beginning of its id"
    )
    command.add_argument(
        "archives",
        metavar="ARCHIVE-NAME",
        nargs="*",
        help="the archives to make, by the names that its annotations give them (default: all)",
    )
    command.add_argument(
        "--no-pause",
        dest="pause",
        action="store_false",
        help="do not pause the container: what it writes meanwhile may be saved in part, or make an archive fail",
    )
    _add_places(command, parse)


def _add_places(command: argparse.ArgumentParser, parse: Parse) -> None:
    """Add where the engine's store and the hook configurations are."""
    command.add_argument(
        "--root",
        metavar="DIR",
        help="the engine's store (default: the graphroot of storage.conf)",
    )
    command.add_argument(
        "--hooks-dir",
        metavar="DIR",
        action="append",
        default=[],
        help="the directory of the hook configurations; may be repeated (default: where podman looks for them)",
    )
    command.set_defaults(parse=parse)
