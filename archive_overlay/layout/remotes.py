"""Note beside tags in index.json where their images belong, in a registry or in an engine's store.

No list of waiting images is needed: their digest differs from the one that was last there.

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
# For a branch that was made because the registry had what another tag lacked: that tag.
BRANCH_OF = f"{PREFIX}branch-of"

# The name by which an image was to be loaded into the engine's store, and could not be; empty: that is done.
LOAD_FAILED = f"{PREFIX}load-failed"


def noted(remote: str, pushed: str = "") -> dict[str, str]:
    """Return what a tag is annotated with.

    Args:
        remote: where its images belong.
        pushed: digest of the one that is there; "": nothing is said.
    """
    return {PUSH_TO: remote, **({PUSHED: pushed} if pushed else {})}


def remote_of(descriptor: Mapping[str, Any]) -> str:
    """Return where in a registry an image belongs; "" for nowhere.

    Args:
        descriptor: its entry in the index.
    """
    return _text(descriptor, PUSH_TO)


def pushed_of(descriptor: Mapping[str, Any]) -> str:
    """Return the digest of what was last pushed there; "" for nothing. See `remote_of`."""
    return _text(descriptor, PUSHED)


def branch_of(descriptor: Mapping[str, Any]) -> str:
    """Return the tag that a branch was made of because it could not be pushed; "" if it is no such branch."""
    return _text(descriptor, BRANCH_OF)


def waits(descriptor: Mapping[str, Any]) -> bool:
    """Return whether an image waits to be pushed to where it belongs; see `remote_of`."""
    return bool(remote_of(descriptor)) and pushed_of(descriptor) != descriptor.get("digest")


def noted_as_waiting(name: str) -> dict[str, str]:
    """Return what a tag is annotated with that could not be loaded by a name; "": that has been done."""
    return {LOAD_FAILED: name}


def load_failed_of(descriptor: Mapping[str, Any]) -> str:
    """Return the name by which an image could not be loaded into the engine's store; "" if there is none."""
    return _text(descriptor, LOAD_FAILED)


def _text(descriptor: Mapping[str, Any], key: str) -> str:
    annotations = descriptor.get("annotations")
    value = annotations.get(key) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else ""
