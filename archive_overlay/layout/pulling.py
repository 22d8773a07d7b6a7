"""How to get an image of a layout into podman's store if `podman pull oci:LAYOUT:TAG` refuses it.

podman names the image in its store after the layout's path up to 4.6, and after the tag from 4.7 on. It refuses what
such a name cannot hold, above all capitals. skopeo is given the name, and accepts all paths and tags.

Source: distribution's reference grammar, "name"; containers/common pull request 1630; tried with podman 4.3 and 5.4.
"""

from __future__ import annotations

import re

_COMPONENT = "[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*"
_PATH = re.compile(f"(?:/{_COMPONENT})+")
_TAG = re.compile(_COMPONENT)
_LONGEST_NAME = 255
# A name of so many hexadecimal digits would be an image's id.
_ID = re.compile("[0-9a-f]{64}")

_NO_NAME = re.compile("[^a-z0-9]+")
_NO_TAG = re.compile("[^A-Za-z0-9_.-]")
_LONGEST_TAG = 128
_HARMLESS = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def advice_on_pulling(path: str, tag: str) -> str:
    """Return what `podman pull` refuses and what works instead; "" if it accepts the image.

    Args:
        path: of the layout, absolute.
        tag: of the image.
    """
    refusals = []
    if not takes_path(path):
        refusals.append("podman up to 4.6 does not accept this path")
    if not takes_tag(tag):
        refusals.append("podman from 4.7 on does not accept this tag")
    if not refusals:
        return ""
    image = f"oci:{path}:{tag}"
    return (
        f"podman pull may refuse {image}: {', and '.join(refusals)}. This always works:"
        f" skopeo copy {quoted(image)} containers-storage:{_name(path, tag)}"
    )


def takes_path(path: str) -> bool:
    """Return whether podman up to 4.6 pulls from a layout with this path."""
    return bool(_PATH.fullmatch(path)) and len(f"localhost{path}") <= _LONGEST_NAME


def takes_tag(tag: str) -> bool:
    """Return whether podman from 4.7 on pulls an image with this tag."""
    whole = f"docker.io/library/{tag}"
    return bool(_TAG.fullmatch(tag)) and not _ID.fullmatch(tag) and len(whole) <= _LONGEST_NAME


def quoted(text: str) -> str:
    """Quote a word for a shell's command line."""
    if _HARMLESS.fullmatch(text):
        return text
    return "'" + text.replace("'", "'\\''") + "'"


def _name(path: str, tag: str) -> str:
    """Return a valid name for an image in the store, similar to its name here."""
    name = _NO_NAME.sub("-", path.rpartition("/")[2].lower()).strip("-") or "data"
    return f"localhost/{name}:{_NO_TAG.sub('-', tag)[:_LONGEST_TAG]}"
