"""The command lines of the commands that deal with engines and registries; see `parsers`."""

from __future__ import annotations

import argparse
import os

from archive_overlay.settings import DEFAULT_SKOPEO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    Add = Callable[[str, str, str, str], argparse.ArgumentParser]


def add_engine_commands(add: Add) -> None:
    """Add them, in the order in which help lists them.

    Args:
        add: makes the parser of a command of its name, summary, description and examples.
    """
    _add_fetch(add)


def _add_fetch(add: Add) -> None:
    command = add(
        "fetch",
        "bring what is newer in a registry into a layout",
        "Bring the revisions of an image that other hosts have pushed into a layout, which is made if there is none. Only what\n"
        "is not there is downloaded. If the registry has nothing newer, or nothing yet, the layout stays as it is. Revisions\n"
        "here that the image in the registry does not go on with are never lost: unless another tag has them, too, the exit\n"
        "status is 1, and nothing is changed.",
        "  archive_overlay fetch /srv/data:main docker://registry.example/team/data:main\n"
        "  archive_overlay fetch --load-as localhost/data:main /srv/data:main docker://registry.example/team/data:main",
    )
    command.add_argument("layout", metavar="LAYOUT[:TAG]", help="an image (default tag: latest)")
    command.add_argument("remote", metavar="docker://REGISTRY/NAME:TAG", help="the image in the registry")
    command.add_argument(
        "--load-as",
        metavar="NAME",
        help="load it into the store of the user who runs this, too, by this name, as localhost/data:main",
    )
    _add_carrying(command, timeout=600)
    command.add_argument(
        "--no-fsync", dest="fsync", action="store_false", help="do not wait until the image is on disk"
    )


def _add_carrying(command: argparse.ArgumentParser, *, timeout: int) -> None:
    """Add what all commands take that have to do with registries."""
    command.add_argument(
        "--authfile",
        metavar="PATH",
        type=_path,
        help="the passwords of registries, as skopeo login writes them (default: those of the user)",
    )
    command.add_argument(
        "--tls-verify",
        choices=("true", "false"),
        default="true",
        help="whether registries must have a valid certificate: false is for tests and the loopback interface",
    )
    command.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=timeout,
        help=f"give up after this time (default: {timeout})",
    )
    command.add_argument(
        "--skopeo",
        metavar="PATH",
        type=_path,
        default=DEFAULT_SKOPEO,
        help=f"the program that carries images (default: {DEFAULT_SKOPEO})",
    )


def _path(value: str) -> str:
    """Give a path as an absolute one: programs run in another directory."""
    return os.path.abspath(value)


def _seconds(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 6 and int(value)):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds from 1 to 99999")
    return int(value)
