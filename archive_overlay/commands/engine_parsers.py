"""The command lines of the commands that deal with engines and registries; see `parsers`."""

from __future__ import annotations

import argparse
import os

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
    _add_load(add)
    _add_recover(add, parse)
    _add_snapshot(add, parse)


def _add_push(add: Add) -> None:
    command = add(
        "push",
        "push images of a layout to a registry",
        "Push images that wait: those that push-to sends to a registry and that are not there yet. A tag in a registry only"
        " moves forward. If another host has pushed revisions that the image lacks, the image is pushed as a branch, and still"
        " waits. The exit status is 1 if an image still waits.",
        "  archive_overlay push /srv/data\n"
        "  archive_overlay push /srv/data:main\n"
        "  archive_overlay push --to docker://registry.example/data:main \\\n      /srv/data:main\n"
        "  archive_overlay push --watch /srv/data",
    )
    command.add_argument(
        "layout",
        metavar="LAYOUT[:TAG]",
        help="one image, whether it waits or not; or all that wait in a layout",
    )
    command.add_argument(
        "--to",
        metavar="docker://HOST/NAME:TAG",
        help="push the image here from now on (default: where it went before, or the archive's push-to)",
    )
    command.add_argument(
        "--all",
        action="store_true",
        help="check all images that have a place in a registry, not only those that wait",
    )
    command.add_argument(
        "--watch",
        action="store_true",
        help="keep running: push images as soon as they wait, and retry what failed",
    )
    command.add_argument(
        "--if-moved",
        choices=(BRANCH, FAIL),
        default=BRANCH,
        help=(
            "what to do if the registry has revisions that the image lacks: push it as a branch, which also becomes a tag of"
            f" the layout, or do not push it (default: {BRANCH})"
        ),
    )
    _add_registry(command)
    command.add_argument(
        "--no-fsync",
        dest="fsync",
        action="store_false",
        help="do not wait until changes to the layout are on disk",
    )


def _add_fetch(add: Add) -> None:
    command = add(
        "fetch",
        "fetch newer revisions from a registry into a layout",
        "Fetch the revisions of an image that other hosts have pushed into a layout, which is created if it does not exist."
        " Only missing data are downloaded. If the registry has nothing newer, the layout stays as it is. No revision is lost:"
        " if the tag has revisions that neither the registry nor another tag has, nothing is fetched, and the exit status is"
        " 1.",
        "  archive_overlay fetch /srv/data:main docker://registry.example/data:main\n"
        "  archive_overlay fetch --load-as localhost/data:main \\\n      /srv/data:main docker://registry.example/data:main",
    )
    command.add_argument("layout", metavar="LAYOUT[:TAG]", help="an image (default tag: latest)")
    command.add_argument("remote", metavar="docker://HOST/NAME:TAG", help="the image in the registry")
    command.add_argument(
        "--load-as",
        metavar="NAME",
        help="also load it into your podman's store under this name, for example localhost/data:main",
    )
    command.add_argument(
        "--missing-ok",
        action="store_true",
        help="succeed if the registry has no such image yet, as before the first push",
    )
    _add_registry(command)
    command.add_argument(
        "--no-fsync", dest="fsync", action="store_false", help="do not wait until the image is on disk"
    )


def _add_load(add: Add) -> None:
    command = add(
        "load",
        "load the newest revision of an image into podman's store",
        "Load the newest revision of an image into your podman's store, under a name that"
        " containers can mount. With load-as, the hook does this at each stop. Do it"
        " yourself after revert, to continue from another tag, or if the name was moved. If"
        " the name stands for something that is not in the layout, nothing is loaded, and"
        " the exit status is 1.",
        "  archive_overlay load /srv/data:main localhost/data:main\n"
        "  archive_overlay tag /srv/data:main@3 try && \\\n      archive_overlay load /srv/data:try localhost/data:try",
    )
    command.add_argument("layout", metavar="LAYOUT[:TAG]", help="an image (default tag: latest)")
    command.add_argument("name", metavar="NAME", help="for example localhost/data:main")
    _add_skopeo(command)


def _add_registry(command: argparse.ArgumentParser) -> None:
    """Add the options of all commands that use a registry."""
    command.add_argument(
        "--authfile",
        metavar="PATH",
        help="passwords of registries, as written by skopeo login (default: your own)",
    )
    command.add_argument(
        "--tls-verify",
        choices=("true", "false"),
        default="true",
        help="require a valid certificate of the registry; false only for loopback and tests (default: true)",
    )
    _add_skopeo(command)


def _add_skopeo(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=_TIMEOUT,
        help=f"give up on an image after this time (default: {_TIMEOUT})",
    )
    command.add_argument(
        "--skopeo",
        metavar="PATH",
        type=_absolute_path,
        default=DEFAULT_SKOPEO,
        help=f"absolute path of skopeo (default: {DEFAULT_SKOPEO})",
    )


def _absolute_path(value: str) -> str:
    if not value.startswith("/"):
        raise argparse.ArgumentTypeError(
            f"{value!r} is not an absolute path, such as /usr/bin/{os.path.basename(value)}"
        )
    return value


def _seconds(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 9 and 0 < int(value) <= _LONGEST_TIMEOUT):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds from 1 to {_LONGEST_TIMEOUT}")
    return int(value)


def _add_recover(add: Add, parse: Parse) -> None:
    command = add(
        "recover",
        "save what containers had changed before a crash",
        "Save what containers had changed if the engine never ran their hook, because the host lost power or conmon was"
        " killed. These are the containers in your store that have annotations, no process, and an upperdir that was not"
        " archived since their last start. The archives are made as the installed hook configuration says. Run this before the"
        " engine starts or removes the containers; archive_overlay-recover.service does so at boot.",
        "  archive_overlay recover --dry-run\n"
        "  archive_overlay recover\n"
        "  archive_overlay recover --root /srv/containers/storage\n"
        "  podman unshare archive_overlay recover",
    )
    command.add_argument("--dry-run", action="store_true", help="list the archives; make none")
    _add_places(command, parse)


def _add_snapshot(add: Add, parse: Parse) -> None:
    command = add(
        "snapshot",
        "save what a container has changed while it runs",
        "Make the archives that a running container's annotations ask for, now, as the installed hook configuration says. The"
        " container is paused while its files are read. The hook still runs when it stops. With method oci, each revision"
        " holds only what changed since the one before it. Method move is refused: a running container needs its upperdir.",
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
        default=[],
        help="names of the archives to make, from its annotations (default: all)",
    )
    command.add_argument(
        "--no-pause",
        dest="pause",
        action="store_false",
        help="do not pause the container: files that it writes meanwhile may be saved in part, or make an archive fail",
    )
    _add_places(command, parse)


def _add_places(command: argparse.ArgumentParser, parse: Parse) -> None:
    """Add where the engine's store and the hook configurations are."""
    command.add_argument(
        "--root",
        metavar="DIR",
        help="the engine's store (default: graphroot in storage.conf)",
    )
    command.add_argument(
        "--runroot",
        metavar="DIR",
        help="where the engine keeps what lasts until a reboot, as podman's --runroot (default: runroot in storage.conf)",
    )
    command.add_argument(
        "--hooks-dir",
        metavar="DIR",
        action="append",
        default=[],
        help="directory with hook configurations; may be repeated (default: where podman looks for them)",
    )
    command.set_defaults(parse=parse)
