"""The options, and what the log looks like wherever it goes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from archive_overlay import __version__
from tests.conftest import TOP
from tests.integration.conftest import Saver
from tests.support import hooks

LEVELS = ["trace", "debug", "info", "warning", "error", "fatal", "panic"]


def test_help_names_every_option() -> None:
    result = hooks.run_hook(b"", "--help")

    assert (result.status, result.stderr) == (0, "")
    for option in (
        "--log-level",
        "--log-file",
        "--syslog",
        "--mount-program",
        "--bundle",
        "--version",
        "--help",
    ):
        assert option in result.stdout


def test_help_that_cannot_be_written_is_an_error_of_one_line() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "archive_overlay", "help", "log"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=TOP)

    complaint = "archive_overlay: cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, complaint)


def test_the_version() -> None:
    result = hooks.run_hook(b"", "--version")

    assert (result.status, result.stdout) == (0, f"archive_overlay version {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--no-such-option",),
        ("argument",),
        ("--log-level", "loud"),
        ("--log-level",),
        ("--bundle",),
        ("--log",),
        *(
            ("--file-mode", mode)
            for mode in ("", "0", "0400", "0700", "0755", "4644", "0668", "00644", "rw", "-644")
        ),
    ],
)
def test_a_wrong_command_line_gets_the_usage_and_status_2(arguments: tuple[str, ...]) -> None:
    result = hooks.run_hook(b"", *arguments)

    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: archive_overlay ")


@pytest.mark.parametrize("level", [*LEVELS, "warn", "INFO", "Debug"])
def test_each_log_level_is_known(small: Saver, level: str) -> None:
    result = small.run("--log-level", level, tar_content_owner="none", method="tar.gz")

    assert result.status == 0, result.stderr
    canonical = level.lower().replace("warn", "warning").replace("warninging", "warning")
    shown = {line.level for line in result.lines()}
    assert shown <= set(LEVELS[LEVELS.index(canonical) :])
    assert ("info" in shown) == (LEVELS.index(canonical) <= LEVELS.index("info"))
    assert ("warning" in shown) == (LEVELS.index(canonical) <= LEVELS.index("warning"))


def test_trace_names_each_entry(small: Saver) -> None:
    result = small.run("--log-level", "trace")

    assert any("made" in message for message in result.messages("trace"))


def test_a_summary_for_each_archive(any_saver: Saver) -> None:
    saver = any_saver

    def change(root: Path) -> None:
        (root / "gone").unlink()
        (root / "directory").mkdir()
        (root / "directory" / "file").write_bytes(bytes(12345))
        os.symlink("x", root / "link")

    saver.overlay.layer(lambda root: (root / "gone").touch())
    saver.overlay.change(change)
    result = saver.run()

    (summary,) = result.messages("info")
    assert re.search(r"\b3 entries\b", summary)
    assert re.search(r"\b1 deletion", summary)
    assert re.search(r"\b12345 bytes\b", summary)
    assert re.search(r"\b\d+\.\d+ s", summary)
    assert str(saver.archive) in summary


def test_lines_are_logfmt_with_the_time_of_day(small: Saver) -> None:
    result = small.run()

    stamp = r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d" level=info msg="'
    assert re.match(stamp, result.stderr)


def test_nothing_goes_to_stdout(small: Saver) -> None:
    result = small.run("--log-level", "trace")

    assert result.stdout == ""


def test_a_terminal_gets_colours_and_no_time(small: Saver) -> None:
    bundle = hooks.Bundle(
        small.directory / "bundle",
        mounts=[small.overlay.spec_mount()],
        annotations=small.asks(tar_content_owner="none", method="tar.gz"),
    )

    answer = small.overlay.inside(lambda: hooks.run_on_terminal(bundle.state()))

    assert answer.status == 0
    assert "time=" not in answer.stderr
    assert re.search(r"^\x1b\[33mWARN\x1b\[0m ", answer.stderr, re.MULTILINE)
    assert re.search(r"^\x1b\[36mINFO\x1b\[0m ", answer.stderr, re.MULTILINE)


def test_a_log_file_gets_the_same_lines(small: Saver) -> None:
    log = small.directory / "log"

    first = small.run("--log-file", log)
    second = small.run("--log-file", log, "--log-level", "debug")

    assert hooks.parse_log(log.read_text()) == first.lines() + second.lines()


def test_a_log_file_is_not_readable_for_all(small: Saver) -> None:
    small.run("--log-file", small.directory / "log")

    assert (small.directory / "log").stat().st_mode & 0o007 == 0


def test_a_log_file_that_cannot_be_opened_is_a_warning(small: Saver) -> None:
    result = small.run("--log-file", small.directory / "no" / "log")

    assert result.status == 0
    (warning,) = result.messages("warning")
    assert str(small.directory / "no" / "log") in warning
    assert small.success.exists()


def test_a_log_file_that_is_full_does_not_stop_the_archive(small: Saver) -> None:
    result = small.run("--log-file", "/dev/full")

    assert result.status == 0, result.stderr
    assert small.success.exists()


def test_a_log_file_that_is_a_pipe_nobody_reads_does_not_stop_the_archive(small: Saver) -> None:
    os.mkfifo(small.directory / "log")

    result = small.run("--log-file", small.directory / "log")

    assert result.status == 0, result.stderr
    assert small.success.exists()


def test_stderr_that_is_full_does_not_stop_the_archive(small: Saver) -> None:
    result = small.run(before=lambda: put(os.open("/dev/full", os.O_WRONLY), 2))

    assert (result.status, result.stderr) == (0, "")
    assert small.success.exists()


def test_stderr_that_nobody_reads_any_more_does_not_stop_the_archive(small: Saver) -> None:
    def before() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        put(writer, 2)

    result = small.run("--log-level", "trace", before=before)

    assert (result.status, result.stderr) == (0, "")
    assert small.success.exists()


@pytest.mark.parametrize("closed", [(2,), (1, 2)])
def test_closed_descriptors_do_not_let_the_log_into_the_archive(
    small: Saver, closed: tuple[int, ...]
) -> None:
    def before() -> None:
        for fd in closed:
            os.close(fd)

    result = small.run("--log-level", "trace", before=before)

    assert (result.status, result.stderr) == (0, "")
    assert small.success.exists()
    assert (small.extracted / "made").read_text() == "by a container"


def put(fd: int, place: int) -> None:
    os.dup2(fd, place)
    os.close(fd)


def test_a_bundle_by_hand_needs_no_state(small: Saver) -> None:
    bundle = hooks.Bundle(
        small.directory / "bundle",
        mounts=[small.overlay.spec_mount()],
        annotations=small.asks(),
    )

    result = hooks.run_hook(b"not read", "--bundle", bundle.directory)

    assert result.status == 0, result.stderr
    assert small.success.exists()


def test_a_bundle_by_hand_may_be_relative(small: Saver) -> None:
    bundle = hooks.Bundle(
        small.directory / "bundle",
        mounts=[small.overlay.spec_mount()],
        annotations=small.asks(),
    )

    result = hooks.run_hook(b"", "--bundle", bundle.directory.name, cwd=small.directory)

    assert result.status == 0, result.stderr
    assert small.success.exists()


def test_a_bundle_by_hand_works_at_a_terminal(small: Saver) -> None:
    bundle = hooks.Bundle(
        small.directory / "bundle",
        mounts=[small.overlay.spec_mount()],
        annotations=small.asks(),
    )

    answer = hooks.run_on_terminal(b"", "--bundle", bundle.directory, stdin=True)

    assert answer.status == 0, answer.stderr
    assert small.success.exists()


@pytest.mark.parametrize("arguments", [(), ("--syslog",)])
def test_a_person_at_a_terminal_is_told_what_there_is(arguments: tuple[str, ...]) -> None:
    answer = hooks.run_on_terminal(b"", *arguments, stdin=True)

    assert answer.status == 2
    assert answer.stderr.startswith("usage: archive_overlay COMMAND ")
    assert "archive_overlay help" in answer.stderr
    assert len(answer.stderr.splitlines()) < 16


def test_hostile_names_stay_within_their_line(any_saver: Saver) -> None:
    saver = any_saver
    name = 'sock\nlevel=info msg="forged"\x1b[2J\u202e\xff\r'

    def change(root: Path) -> None:
        os.mkdir(root / name)
        subprocess.run(
            ["python3", "-c", "import socket; socket.socket(socket.AF_UNIX).bind('s\\n\\x1b')"],
            cwd=root / name,
            check=True,
        )

    saver.overlay.change(change)
    result = saver.run("--log-level", "trace", method="tar.gz")

    assert result.status == 0, result.stderr
    # `lines` checks that each line is one of ours.
    assert len(result.messages("warning")) == 1
    assert "forged" not in [line.message for line in result.lines()]
    assert not set(result.stderr.replace("\n", "")) & set("\x1b\r\u202e")


def test_a_hostile_archive_name_stays_within_its_line(small: Saver) -> None:
    also = hooks.annotations('x\n\x1b[31m"', mount_point="/data")

    result = small.run(also=also)

    assert result.status == 0
    assert len(result.lines()) == 2
    assert "\x1b" not in result.stderr


def test_a_line_that_an_annotation_makes_long_is_cut_or_whole(small: Saver) -> None:
    result = small.run(also={f"{hooks.PREFIX}.{'n' * 200_000}.archive-to": "/x"})

    assert result.status == 0
    assert len(result.lines()) == 2
