"""Where in a registry the images of a layout belong: noted beside their tags, in index.json.

What has not got there yet is known without a list: its digest is not the one that was last there.

Source: OCI image specification, annotations.md, image-index.md.
"""

from __future__ import annotations

from archive_overlay.keys import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PUSH_TO = f"{PREFIX}push-to"
PUSHED = f"{PREFIX}pushed"


def noted(remote: str, pushed: str = "") -> dict[str, str]:
    """Give what a tag is annotated with.

    Args:
        remote: where its images belong.
        pushed: digest of the one that is there; "": nothing is said.
    """
    return {PUSH_TO: remote, **({PUSHED: pushed} if pushed else {})}


def remote_of(descriptor: Mapping[str, Any]) -> str:
    """Give where in a registry an image belongs; "" for nowhere.

    Args:
        descriptor: its entry in the index.
    """
    return _text(descriptor, PUSH_TO)


def waits(descriptor: Mapping[str, Any]) -> bool:
    """Say whether an image has not got to where it belongs; see `remote_of`."""
    return bool(remote_of(descriptor)) and _text(descriptor, PUSHED) != descriptor.get("digest")


def _text(descriptor: Mapping[str, Any], key: str) -> str:
    annotations = descriptor.get("annotations")
    value = annotations.get(key) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else ""
