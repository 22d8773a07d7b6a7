"""How the program ends as a process of its own."""

from __future__ import annotations

import argparse
import gc
import os
import re
from typing import TYPE_CHECKING, NoReturn

import pytest

from archive_overlay import cli
from archive_overlay.commands.parsers import commands_of
from archive_overlay.errors import Interrupted
from archive_overlay.system import signals

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def test_arguments_may_stand_on_both_sides_of_an_option() -> None:
    for line in (
        ["log", "--json", "L", "a", "b"],
        ["log", "L", "--json", "a", "b"],
        ["log", "L", "a", "--json", "b"],
    ):
        options = cli.parse(line)
        assert isinstance(options, argparse.Namespace)
        assert (options.command, options.layout, options.paths, options.json) == (
            "log",
            "L",
            ["a", "b"],
            True,
        )


def test_what_follows_two_hyphens_is_no_option() -> None:
    assert vars(cli.parse(["log", "--", "L", "-a"]))["paths"] == ["-a"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30s", 30), ("90min", 5400), ("1h", 3600), ("2d", 172800), ("2w", 1209600)],
)
def test_ages(text: str, seconds: int) -> None:
    assert vars(cli.parse(["gc", "--older", text, "L"]))["older"] == seconds


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["gc", "--older=90m", "L"], "write 0, 30s, 90min"),  # months, for prune
        (["gc", "--older=", "L"], "not an age"),
        (["gc", "--older=-1h", "L"], "not an age"),
        (["gc", "--older=1h30min", "L"], "not an age"),
        (["prune", "--keep-last=0", "L"], "from 1 to"),
        (["prune", "--keep-daily=many", "L"], "how many"),
        (["prune", "--keep-within=30", "L"], "30d, 1y6m"),
        (["tag", "--max-layers=1", "L:a", "b"], "from 2 to 500"),
        (["revert", "--message=two\nlines", "L:a@1"], "not one line"),
        (["revert", f"--message={'long' * 300}", "L:a@1"], "1200 characters"),
        (["revert"], "required: LAYOUT:TAG@N\n"),
        (["snapshot", "--no-pause"], "required: CONTAINER\n"),
        (["lgo"], "'lgo' is not a command; did you mean log?"),
        (["help", "lgo"], "did you mean log?"),
        (["log", "L", "--grap"], "there is no option --grap; did you mean --graph?"),
        (["diff", "--as=dir", "L"], "'dir' is not one of layout, directory, tar; did you mean directory?"),
        (["push", "--skopeo=skopeo", "L"], "such as /usr/bin/skopeo\n"),
        (["--jobs=2", "log", "L"], "--jobs is an option of the hook"),
        (["log", "--jobs=2", "L"], "--jobs is an option of the hook"),
        (["--json", "log", "L"], "write archive_overlay log --json\n"),
        (["--json"], "is an option of commands (log, diff, "),
        (["--syslog", "lgo"], "'lgo' is not a command; did you mean log?"),
        (["--log-levl=info"], "there is no option --log-levl; did you mean --log-level?"),
        (["--log-level=inf"], "did you mean info?"),
        (["--tls-verify=f"], "did you mean false?"),
        (["--skopeo=skopeo"], "such as /usr/bin/skopeo\n"),
    ],
)
def test_wrong_command_lines(capsys: pytest.CaptureFixture[str], line: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(line)

    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert (
        len(complaint.splitlines()) < 10
    )  # the hook has thirty options: what was meant is not one of them, or it is named
    name = "archive_overlay" if line[0] == "lgo" or line[0].startswith("-") else f"archive_overlay {line[0]}"
    assert complaint.startswith(("usage: archive_overlay ", f"usage: {name} "))
    assert re.search(r"\nSee 'archive_overlay help(?: [a-z]+)?'\.\n$", complaint)


@pytest.mark.parametrize("width", [66, 80, 100, 200])
def test_help_is_as_wide_as_the_terminal_up_to_100_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    longest = 0
    for name in ["", *commands_of(cli.build_parser())]:
        with pytest.raises(SystemExit):
            cli.parse([name, "-h"] if name else ["-h"])
        text = capsys.readouterr().out.partition("\nexamples:\n")
        longest = max(longest, *map(len, text[0].splitlines()))
        assert all(len(line) <= 80 for line in text[2].splitlines())
    assert min(width, 100) - 8 < longest <= min(width, 100)


@pytest.mark.parametrize("name", ["log", "snapshot", "help"])
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], name: str) -> None:
    shown = []
    for line in ([name, "-h"], [name, "--help"], ["help", name]):
        with pytest.raises(SystemExit) as ended:
            cli.parse(line)
        assert not ended.value.code
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith(f"usage: archive_overlay {name} ")
    assert set(shown) == {shown[0]}


VALUES = {
    "--log-level": ["warn", "DEBUG", "loud"],
    "--tls-verify": ["true", "false", "maybe"],
    "--jobs": ["1", "1024", "0", "1025", "x"],
    "--push-timeout": ["60", "0", "1e3"],
    "--max-bytes": ["10K", "10iB", "99999999999999999999"],
    "--max-entries": ["5"],
    "--file-mode": ["0640", "0777", "8"],
    "--allow-load-as": ["localhost/data", "UPPER case"],
    "--allow-push-to": ["docker://registry.example/team", "nowhere"],
}


def spellings() -> Iterator[list[str]]:
    """Give command lines of the hook, right and wrong: each option in many ways."""
    for name, keywords in cli._options().items():
        if keywords.get("action") in ("store_true", "store_false"):
            yield from (
                [name],
                [name, name],
                [f"{name}="],
                [f"{name}=yes"],
                [name, "word"],
                [name[:-1]],
                [name, "--"],
            )
            continue
        for value in [
            *VALUES.get(name, ["/usr//lib/../bin", "relative", "größe", "a b"]),
            "",
            "-",
            "-x",
            "-1",
            "--",
            "--syslog",
        ]:
            yield from (
                [name, value],
                [f"{name}={value}"],
                [name, value, "--syslog"],
                ["--no-fsync", f"{name}={value}"],
            )
            yield from (
                [name, value, name, "/b"],
                [name[:-1], value],
                [name.upper(), value],
                [name[1:], value],
            )
            yield from ([name, value, "word"], ["--", name, value], [name, value, "--"])
        yield from ([name], ["--syslog", name], [f"{name} /x"])
    yield from (
        [],
        ["--nonsense"],
        ["--no-fsync", "word"],
        ["-v"],
        ["--version=1"],
        ["-"],
        ["--"],
        ["-vx"],
        ["--=x"],
    )


def read(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, object]:
    """Read a command line, and give the result, or the status, and what was printed."""
    result: object
    try:
        result = cli.parse(arguments)
    except SystemExit as end:
        result = end.code
    return result, capsys.readouterr()


def test_plain_options_mean_what_the_parser_makes_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*spellings()]
    plain = [line for line in lines if cli._read_plain(line) is not None]
    quick = [read(line, capsys) for line in plain]
    monkeypatch.setattr(cli, "_read_plain", lambda arguments: None)

    # An empty command line has nothing that the parser could be asked for.
    assert [read(line, capsys) for line in plain if line] == [
        each for line, each in zip(plain, quick) if line
    ]
    assert cli._settings(vars(cli._build_hook_parser().parse_args([]))) == quick[plain.index([])][0]
    # Each option can be said plainly, in either form.
    said = {(line[0].partition("=")[0], "=" in line[0]) for line in plain if line}
    values = {
        name
        for name, keywords in cli._options().items()
        if "action" not in keywords or keywords["action"] == "append"
    }
    assert said >= {(name, equals) for name in values for equals in (True, False)}
    assert said >= {(name, False) for name in cli._options()}
