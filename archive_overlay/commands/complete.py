"""`archive_overlay __complete`: the tags and revisions that a word of a command line can go on with, for shells.

No help mentions it. completions/ has what runs it, and a shell that runs it must not wait.
"""

from __future__ import annotations

import os

from archive_overlay.commands import Output
from archive_overlay.errors import ArchiveError
from archive_overlay.history.references import looks_like_layout
from archive_overlay.history.revisions import open_image
from archive_overlay.layout import read
from archive_overlay.system.open_flags import READ_TOP_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from archive_overlay.log import Log

_TAGS_ALONE = ("log", "prune", "untag", "push", "fetch", "load")
_RANGES = ("squash",)
# More than that nobody reads.
_MOST_REVISIONS = 100
# Where shells cut words.
_BREAKS = ":@"


def run(options: argparse.Namespace, log: Log) -> int:
    """Write what can come after the last colon or at sign of a word, one a line.

    Args:
        options: `words`: the command that the word is for, and the word.
        log: takes nothing.

    Returns:
        1 if there is nothing.
    """
    if len(options.words) != 2:
        return 1
    command, word = options.words
    start = max(word.rfind(character) for character in _BREAKS) + 1
    output = Output()
    found = False
    try:
        for text in _texts(command, word):
            if text.isprintable() and " " not in text:  # what needs quotes is left to the person
                output.line(text[start:])
                found = True
    except (ArchiveError, OSError):
        pass
    output.flush()
    return 0 if found else 1


def _texts(command: str, word: str) -> Iterator[str]:
    """Give the words that a word can become."""
    for position, character in enumerate(word):
        path = word[:position]
        if character == ":" and path and looks_like_layout(path):
            rest = word[position + 1 :]
            tags = {tag for each in _index(path)["manifests"] if (tag := read.tag_of(each))}
            yield from (f"{path}:{tag}" for tag in sorted(tags) if tag.startswith(rest))
            tag, at, number = rest.rpartition("@")
            if at and tag in tags and command not in _TAGS_ALONE:
                first, dots, number = number.rpartition("..") if command in _RANGES else ("", "", number)
                after = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0
                for each in _revisions(f"{path}/:{tag}", number, after):
                    yield f"{path}:{tag}@{first}{dots}{each}"


def _revisions(image: str, beginning: str, after: int) -> list[str]:
    """Give the numbers of an image after one that begin with some digits, the newest first."""
    with open_image(image) as opened:
        numbers = [revision.number for revision in reversed(opened.revisions) if revision.number > after]
    return [text for text in map(str, numbers) if text.startswith(beginning)][:_MOST_REVISIONS]


def _index(path: str) -> dict[str, list[dict[str, str]]]:
    layout = os.open(path, READ_TOP_DIRECTORY)
    try:
        return read.read_index(layout)
    finally:
        os.close(layout)
