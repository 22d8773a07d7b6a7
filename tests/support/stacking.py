"""What layers show when they are stacked, said without a mount: docs/design.md, "Composition", and overlayfs.rst.

tests/property/test_composition.py compares it with the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import trees

if TYPE_CHECKING:
    from collections.abc import Sequence

OPAQUE_ATTRIBUTES = ("trusted.overlay.opaque", "user.overlay.opaque")


def shown(layers: Sequence[trees.View]) -> set[bytes]:
    """Give the paths that layers show.

    Args:
        layers: each as an ordinary directory, the topmost first. That the top itself is opaque says nothing to the kernel.
    """
    found = {trees.TOP}
    pending = [(b"", [(layer, _children(layer)) for layer in layers])]
    while pending:
        prefix, merged = pending.pop()
        names = {name for _, children in merged for name in children.get(prefix, ())}
        for name in names:
            path = prefix + name
            below: list[tuple[trees.View, dict[bytes, list[bytes]]]] = []
            for layer, children in merged:
                entry = layer.entries.get(path)
                if entry is None:
                    continue
                if entry.kind != "directory":
                    if not below and entry.kind != trees.WHITEOUT:
                        found.add(path)
                    break
                below.append((layer, children))
                if is_opaque(entry):
                    break
            if below:
                found.add(path)
                pending.append((path + b"/", below))
    return found


def is_opaque(entry: trees.Entry) -> bool:
    """Say whether a directory hides what lies below."""
    return any(name in OPAQUE_ATTRIBUTES and value == b"y" for name, value in entry.attributes)


def _children(layer: trees.View) -> dict[bytes, list[bytes]]:
    """Give the names in each directory by what their paths begin with."""
    children: dict[bytes, list[bytes]] = {}
    for path in layer.entries:
        if path != trees.TOP:
            prefix, slash, name = path.rpartition(b"/")
            children.setdefault(prefix + slash, []).append(name)
    return children
