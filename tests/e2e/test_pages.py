"""Commands of the tutorial and of the how-to pages, run as they stand, each page on a host of its own.

A fenced block of `sh` is run by root, one of `sh rootless` by an ordinary user, in the order of the page; the blocks of one
user share a shell. A block of `text` after it is what it writes to stdout. Blocks of `sh not-run` and of other languages
show what a test cannot run here, or a configuration.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.support import tools
from tests.support.engines import TOP
from tests.support.pages import REMOTE, USERS, Block
from tests.support.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.pages import Host

DOCS = TOP / "docs"
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
PROGRAMS = ("rsync", "getfattr", "skopeo")

FENCED = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)

# What differs from one run to the next, or from one release of zlib or podman to the next.
VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\dZ)?"), "DATE"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"(?m)^((?:\* )? *\d+ +DATE .*) \d+(\.\d+)?[KM]?\b"), r"\1 SIZE"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"(?m) $"), ""),
    # What `log` says of how an image was made, on a line of its own.
    (re.compile(r"(?m)^ /bin/sh -c .*\n"), ""),
)


def blocks_of(text: str) -> list[Block]:
    return [
        Block(
            found[2].strip(),
            re.sub(rf"(?m)^{found[1]}", "", found[3]),
            text.count("\n", 0, found.start()) + 1,
        )
        for found in FENCED.finditer(text)
    ]


def alike(text: str) -> str:
    """Give what is the same whenever a page is read."""
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return text.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, host: Host, tmp_path: Path) -> None:
    text = page.read_text()
    tools.need(*(program for program in PROGRAMS if re.search(rf"\b{program}\b", text)))
    blocks = blocks_of(text)
    with contextlib.ExitStack() as stack:
        if REMOTE in text:
            host.registry = stack.enter_context(Registry(tmp_path / "registry")).host
        for kind in USERS:
            mine = [block for block in blocks if block.kind == kind]
            for block, written in zip(mine, host.run(kind, mine)):
                after = blocks[blocks.index(block) + 1 :][:1]
                if after and after[0].kind == "text":
                    assert alike(written) == alike(after[0].text), f"line {after[0].line}"
