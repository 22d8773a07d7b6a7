"""How the program ends as a process of its own."""

from __future__ import annotations

import gc
import os
from typing import NoReturn

import pytest

from archive_overlay import cli
from archive_overlay.errors import Interrupted
from archive_overlay.system import signals


def test_a_signal_at_the_very_end_gives_the_status_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> NoReturn:
        raise Interrupted(15)  # when it has returned already

    def end(status: int) -> NoReturn:
        raise SystemExit(status)

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(signals, "ignore_end", lambda: None)
    monkeypatch.setattr(gc, "disable", lambda: None)
    monkeypatch.setattr(os, "_exit", end)

    with pytest.raises(SystemExit) as ended:
        cli.run()

    assert ended.value.code == 128 + 15


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("5000", 5000),
        ("10K", 10 * 2**10),
        ("10k", 10 * 2**10),
        ("512M", 512 * 2**20),
        ("10G", 10 * 2**30),
        ("10GiB", 10 * 2**30),
        ("8388607T", 8388607 * 2**40),
    ],
)
def test_a_limit_can_have_a_unit(text: str, number: int) -> None:
    for option in ("bytes", "entries"):
        settings = cli.parse([f"--max-{option}={text}"])
        assert getattr(settings, f"max_{option}") == number
