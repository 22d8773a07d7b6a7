"""What Cosmic Ray has no operator for: a statement that is missing.

Flushing, closing, checking and refusing are statements of their own, and a promise is broken by leaving one out. This module
is found by the entry point that mutants.py puts into Cosmic Ray's environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class DropStatement:
    """An operator that puts `pass` in place of a call, of `raise`, `return`, `del`, and of what changes an object."""

    @classmethod
    def arguments(cls) -> tuple[()]:
        """There is nothing to choose."""
        return ()

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Give where a node of parso's tree can be changed, as Cosmic Ray wants it."""
        if node.type == "simple_stmt" and _counts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Change a node."""
        leaf = node.children[0].get_first_leaf()
        leaf.value = "pass"
        node.children[0] = leaf
        return node


class Provider:
    """The operators of this module, as Cosmic Ray wants them."""

    def __iter__(self) -> Iterator[str]:
        return iter(("DropStatement",))

    def __getitem__(self, name: str) -> type[DropStatement]:
        return {"DropStatement": DropStatement}[name]


def _counts(statement: Any) -> bool:
    kind: str = statement.type
    if kind == "keyword":
        return bool(statement.value == "raise")
    if kind != "expr_stmt":
        return kind in ("atom_expr", "raise_stmt", "return_stmt", "del_stmt")
    # A name that is given no value is missed by whoever reads it: what counts is what is kept elsewhere, or added to.
    target, operator = statement.children[:2]
    return bool(target.type == "atom_expr" or (operator.type == "operator" and operator.value != "="))
