"""Names of images: in an engine's store, and in registries.

Both are HOST/PATH:TAG. No short form that a search list would complete is taken: whoever reads a name here knows where it
leads.

Source: the grammar of distribution/reference; containers-transports(5).
"""

from __future__ import annotations

import re

from archive_overlay.errors import ArchiveError, brief
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

SCHEME = "docker://"
DEFAULT_TAG = "latest"
LOCALHOST = "localhost"

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_NAME = re.compile(rf"({_HOST})/({_PATH})(?::({_TAG}))?")
_PREFIX = re.compile(rf"({_HOST})(?:/({_PATH})(?::({_TAG}))?)?/?")
# Of the path and the host together; the registries' limit.
_LONGEST = 255


class Name(Record):
    """The name of an image.

    Attributes:
        host: in small letters, with a port if there is one.
        path: in the registry.
        tag: "" in a prefix that has none.
    """

    host: str
    path: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.path}:{self.tag}"

    @property
    def reference(self) -> str:
        """The name as annotations and skopeo have it, of an image in a registry."""
        return f"{SCHEME}{self}"

    def with_tag(self, tag: str) -> Name:
        """Return the same with another tag.

        Raises:
            ArchiveError: registries do not take it.
        """
        if not re.fullmatch(_TAG, tag):
            raise ArchiveError(f"registries do not accept the tag {brief(tag)!r}")
        return self.replace(tag=tag)

    def with_suffix(self, suffix: str) -> Name:
        """Give the same with something after the tag; what registries do not take in tags becomes a dash. Raises as `with_tag`."""
        return self.with_tag(f"{self.tag}{re.sub('[^A-Za-z0-9_.-]', '-', suffix)}")


def parse_store_name(text: str) -> Name:
    """Read the name of an image in an engine's store.

    Args:
        text: HOST/PATH:TAG. Without a host it is localhost, as for podman tag; without a tag it is latest.

    Raises:
        ArchiveError: it is no such name.
    """
    host, slash, _ = text.partition("/")
    whole = text if slash and _is_host(host) else f"{LOCALHOST}/{text}"
    match = _NAME.fullmatch(whole)
    if not match or len(whole) > _LONGEST + 129:
        raise ArchiveError(
            f"load-as {brief(text)!r} is not the name of an image",
            hint="write HOST/NAME:TAG in small letters, as localhost/data:main",
        )
    return _name(match)


def parse_remote(text: str) -> Name:
    """Read the name of an image in a registry.

    Args:
        text: docker://HOST/PATH:TAG. Without a tag it is latest.

    Raises:
        ArchiveError: it is no such name.
    """
    match = _NAME.fullmatch(text[len(SCHEME) :]) if text.startswith(SCHEME) else None
    if not match or not _is_host(match[1]) or len(text) > _LONGEST + 129:
        raise ArchiveError(
            f"{brief(text)!r} is not an image in a registry",
            hint="write docker://HOST/NAME:TAG, as docker://registry.example/team/data:main",
        )
    return _name(match)


def parse_prefix(text: str) -> Name:
    """Read what names may begin with: HOST, HOST/PATH or HOST/PATH:TAG, with docker:// or without.

    Raises:
        ArchiveError: it is nothing of the kind.
    """
    match = _PREFIX.fullmatch(text[len(SCHEME) :] if text.startswith(SCHEME) else text)
    if not match or not _is_host(match[1]):
        raise ArchiveError(
            f"{brief(text)!r} is not the beginning of an image's name",
            hint="write HOST, HOST/NAME or HOST/NAME:TAG, as registry.example/team",
        )
    return Name(host=match[1].lower(), path=match[2] or "", tag=match[3] or "")


def is_allowed(name: Name, prefixes: Collection[str]) -> bool:
    """Return whether a name begins with one of some prefixes: whole words, and the port is a part of the host.

    Args:
        name: it.
        prefixes: as `parse_prefix` reads them.
    """
    return any(_begins_with(name, parse_prefix(prefix)) for prefix in prefixes)


def _begins_with(name: Name, prefix: Name) -> bool:
    if name.host != prefix.host:
        return False
    if prefix.tag:
        return (name.path, name.tag) == (prefix.path, prefix.tag)
    return not prefix.path or f"{name.path}/".startswith(f"{prefix.path}/")


def _is_host(text: str) -> bool:
    """Return whether the first word of a name is a host: else a search list would complete it."""
    return text.lower() == LOCALHOST or any(each in text for each in ".:")


def _name(match: re.Match[str]) -> Name:
    return Name(host=match[1].lower(), path=match[2], tag=match[3] or DEFAULT_TAG)
