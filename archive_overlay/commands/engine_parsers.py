"""The command lines of the commands that deal with engines and registries; see `parsers`."""

from __future__ import annotations

import argparse

from archive_overlay.layout.lineage import BRANCH, FAIL
from archive_overlay.settings import DEFAULT_SKOPEO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable, Union

    from archive_overlay.settings import Settings

    Add = Callable[[str, str, str, str], argparse.ArgumentParser]
    Parse = Callable[[Sequence[str]], Union[Settings, argparse.Namespace]]

_LONGEST_TIMEOUT = 7 * 86400
_TIMEOUT = 600


def add_engine_commands(add: Add, parse: Parse) -> None:
    """Add them, in the order in which help lists them.

    Args:
        add: makes the parser of a command of its name, summary, description and examples.
        parse: by which the hook reads its arguments.
    """
    _add_push(add)
    _add_fetch(add)
    _add_recover(add, parse)
    _add_snapshot(add, parse)


def _add_push(add: Add) -> None:
    command = add(
        "push",
        "push images of a layout to a registry",
        "Push what waits: images that an archive's push-to sends to a registry, and that are not there yet. A tag in a registry\n"
        "only moves forward. If another host has pushed what the image lacks, the image is pushed by the name of a branch, and\n"
        "still waits. The exit status is 1 if something does.",
        "  archive_overlay push /srv/data\n"
        "  archive_overlay push /srv/data:main\n"
        "  archive_overlay push --to docker://registry.example/team/data:main /srv/data:main\n"
        "  archive_overlay push --watch /srv/data",
    )
    command.add_argument(
        "layout",
        metavar="LAYOUT[:TAG]",
        help="an image, whether it waits or not; or all that wait in a layout",
    )
    command.add_argument(
        "--to",
        metavar="docker://HOST/NAME:TAG",
        help="where the image is to go from now on (default: where it went before, or the archive's push-to)",
    )
    command.add_argument(
        "--all", action="store_true", help="look at all images that go somewhere, whether they wait or not"
    )
    command.add_argument(
        "--watch",
        action="store_true",
        help="go on until a signal comes: push what comes to wait, try again what failed",
    )
    command.add_argument(
        "--if-moved",
        choices=(BRANCH, FAIL),
        default=BRANCH,
        help=(
            "what to do if the registry has what the image lacks: push it by the name of a branch, which becomes a tag of the"
            f" layout, too, or leave it (default: {BRANCH})"
        ),
    )
    _add_registry(command)
    command.add_argument(
        "--no-fsync",
        dest="fsync",
        action="store_false",
        help="do not wait until the notes in the layout are on disk",
    )


def _add_fetch(add: Add) -> None:
    command = add(
        "fetch",
        "bring what is newer in a registry into a layout",
        "Bring the revisions of an image that other hosts have pushed into a layout, which is made if there is none. Only what\n"
        "is not there is downloaded. If the registry has nothing newer, or nothing yet, the layout stays as it is. Revisions\n"
        "that the image in the registry does not go on with are never lost: unless another tag has them, too, nothing is\n"
        "fetched, and the exit status is 1.",
        "  archive_overlay fetch /srv/data:main docker://registry.example/team/data:main\n"
        "  archive_overlay fetch --load-as localhost/data:main /srv/data:main docker://registry.example/team/data:main",
    )
    command.add_argument("layout", metavar="LAYOUT[:TAG]", help="an image (default tag: latest)")
    command.add_argument("remote", metavar="docker://HOST/NAME:TAG", help="the image in the registry")
    command.add_argument(
        "--load-as",
        metavar="NAME",
        help="load it into the store of the user who runs this, too, by this name, as localhost/data:main",
    )
    _add_registry(command)
    command.add_argument(
        "--no-fsync", dest="fsync", action="store_false", help="do not wait until the image is on disk"
    )


def _add_registry(command: argparse.ArgumentParser) -> None:
    """Add what all commands take that deal with a registry."""
    command.add_argument(
        "--authfile",
        metavar="PATH",
        help="the passwords of registries, as skopeo login writes them (default: your own)",
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
        default=_TIMEOUT,
        help=f"give an image up after this time (default: {_TIMEOUT})",
    )
    command.add_argument(
        "--skopeo",
        metavar="PATH",
        default=DEFAULT_SKOPEO,
        help=f"the program that carries images (default: {DEFAULT_SKOPEO})",
    )


def _seconds(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 9 and 0 < int(value) <= _LONGEST_TIMEOUT):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds from 1 to {_LONGEST_TIMEOUT}")
    return int(value)


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
        "--runroot",
        metavar="DIR",
        help="what the store has in DIR until a reboot, as podman's own --runroot names it (default: as storage.conf says)",
    )
    command.add_argument(
        "--hooks-dir",
        metavar="DIR",
        action="append",
        default=[],
        help="the directory of the hook configurations; may be repeated (default: where podman looks for them)",
    )
    command.set_defaults(parse=parse)
