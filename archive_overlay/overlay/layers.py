"""The layers in an engine's store: what each holds, and which lies below it.

    STORE/DRIVER-layers/layers.json           id, parent and diff ID of each layer
    STORE/DRIVER-layers/volatile-layers.json  the same for layers of containers run with --rm
    STORE/DRIVER-layers/ID.tar-split.gz       the layer's tar without the contents of files; see `overlay/tar_split`

A layer that was pulled, committed or built is called after what it and the layers below it hold (`canonical`). Others
have random ids: those of containers, and copies with other owners, of which the diff ID is still the original's.

Source: layers.go of containers/storage; storage_dest.go of containers/image; the stores of podman 4.3.
"""

from __future__ import annotations

import os

from archive_overlay.overlay import store
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_RECORDS = ("layers.json", "volatile-layers.json")
_ALGORITHM = "sha256:"
_DIGITS = "0123456789abcdef"


class Driver(Record):
    """A directory of layers, STORE/DRIVER.

    Attributes:
        path: of the directory.
        owners: whose it may be, besides this user's.
    """

    path: str
    owners: tuple[int, ...] = ()


class Layer(Record):
    """A layer of an image.

    Attributes:
        id: the store's name for it.
        driver: the directory of layers that it is in.
        diff_id: the digest of its tar; "" if the store does not say.
        has_other_owners: whether its files have been given to other users than its tar says.
    """

    id: str
    driver: str
    diff_id: str
    has_other_owners: bool

    @property
    def directory(self) -> str:
        """What the driver has of it."""
        return f"{self.driver}/{self.id}"

    @property
    def tar_split(self) -> str:
        """Path of its tar without the contents of files, if the store has that."""
        return f"{self.driver}-layers/{self.id}.tar-split.gz"


def chain(identifier: str, drivers: Sequence[Driver]) -> list[Layer]:
    """Return a layer and all below it, lowest first.

    Args:
        identifier: of the layer.
        drivers: where to look for it, and for those below it: the first that knows a layer has it.

    Raises:
        UnknownError: one is not to be found, or a list cannot be read.
    """
    known: dict[str, tuple[Driver, dict[str, object]]] = {}
    for driver in drivers:
        for record in _records(driver):
            known.setdefault(str(record.get("id")), (driver, record))
    found: list[Layer] = []
    while identifier:
        # No list says that a layer lies below itself, unless it is damaged.
        if identifier not in known or not store.is_identifier(identifier) or len(found) == len(known):
            listed = " and ".join(f"{driver.path}-layers" for driver in drivers)
            raise store.UnknownError(f"{listed} do not list the layer {identifier[:80]}")
        driver, record = known[identifier]
        found.append(
            Layer(
                id=identifier,
                driver=driver.path,
                diff_id=_diff_id(record),
                has_other_owners=bool(record.get("uidmap") or record.get("gidmap")),
            )
        )
        identifier = str(record.get("parent") or "")
    return found[::-1]


def parent(identifier: str, driver: str) -> str:
    """Return the id of the layer below another one; "" if there is none, or the store does not know it.

    Raises:
        UnknownError: a list cannot be read.
    """
    for record in _records(Driver(path=driver)):
        if record.get("id") == identifier:
            return str(record.get("parent") or "")
    return ""


def canonical(diff_ids: Sequence[str]) -> str:
    """Return the id that engines give to a layer that they pull, by the diff IDs up to it, lowest first.

    It is the first diff ID, and then the SHA-256 of "ID+DIFFID", both in hexadecimal digits. (The chain ID of the OCI
    image specification has a space and prefixes.)
    """
    from hashlib import sha256

    identifier = ""
    for diff_id in diff_ids:
        digits = diff_id[len(_ALGORITHM) :]
        identifier = sha256(f"{identifier}+{digits}".encode()).hexdigest() if identifier else digits
    return identifier


def _diff_id(record: dict[str, object]) -> str:
    """Return the diff ID in a layer's record; "" where the store does not know it.

    What was pulled by a table of contents (zstd:chunked) has none: nobody has seen its tar.
    """
    diff_id = record.get("diff-digest")
    if not isinstance(diff_id, str) or not is_sha256(diff_id):
        return ""
    # Of a compressed layer whose tar was not seen, some releases note the digest of what was compressed.
    if record.get("compression") and diff_id == record.get("compressed-diff-digest"):
        return ""
    return diff_id


def is_sha256(digest: str) -> bool:
    """Return whether something is a digest that this program can compare."""
    digits = digest[len(_ALGORITHM) :]
    return digest.startswith(_ALGORITHM) and len(digits) == 64 and not digits.strip(_DIGITS)


def _records(driver: Driver) -> Iterator[dict[str, object]]:
    directory = f"{driver.path}-layers"
    owners: Collection[int] = driver.owners
    store.check_private(directory, owners=owners)
    for path in (f"{directory}/{name}" for name in _RECORDS):
        if os.path.lexists(path):
            yield from store.elements(path, owners=owners)
