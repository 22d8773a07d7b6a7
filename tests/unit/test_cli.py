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
