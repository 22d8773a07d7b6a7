"""What `archive_overlay check` finds: one finding, one line."""

from __future__ import annotations

from dataclasses import dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OK = "ok"
NOTE = "note"  # good to know, and nothing is wrong
WARNING = "warning"  # archives are made, but not all of them, or not as somebody may expect
PROBLEM = "problem"  # stops archives


@dataclass(frozen=True)
class Finding:
    """Something about this host.

    Attributes:
        status: one of those above.
        topic: what it is about, one word of a few.
        found: what there is.
        advice: what to do; "" where there is nothing to do.
        path: the file or directory that it is about, if it is about one.
    """

    status: str
    topic: str
    found: str
    advice: str = ""
    path: str | None = None


def listed(words: Sequence[str]) -> str:
    """Give words as a sentence has them."""
    return " and ".join(words)


def combined(found: Iterable[tuple[str, Sequence[Finding]]]) -> list[Finding]:
    """Put together what was found in several cases, of which one is true: nobody knows which.

    Args:
        found: a word or two for each case, and what is found in it.

    Returns:
        Each finding once; what is not found in all cases begins with those in which it is.
    """
    cases: dict[Finding, list[str]] = {}
    number = 0
    for case, findings in found:
        number += 1
        for finding in dict.fromkeys(findings):
            cases.setdefault(finding, []).append(case)
    return [
        finding
        if len(names) == number
        else replace(finding, found=f"with podman {', '.join(names)}: {finding.found}")
        for finding, names in cases.items()
    ]
