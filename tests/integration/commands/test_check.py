"""`archive_overlay check` as an administrator, an ordinary user and a script run it, on this very host."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay import __version__
from tests.support import history, tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOP = Path(__file__).resolve().parents[3]
NOBODY = 65_534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
TOPICS = {
    *("program", "python", "hooks-dir", "hook", "policy", "destination", "log", "kernel", "overlay"),
    *("fuse-overlayfs", "zstd", "skopeo", "reports"),
}


class Installed:
    """The program and its hook configuration in a directory of their own.

    Attributes:
        top: everybody may look into it.
        program: the built file.
        hooks: the directory of hook configurations.
    """

    def __init__(self, top: Path, executable: Path) -> None:
        self.top = top
        self.program = Path(shutil.copy(executable, top / "archive_overlay"))
        self.hooks = top / "hooks.d"
        self.hooks.mkdir()
        self.configuration = self.hooks / "archive_overlay.json"
        self.configure()

    def configure(self, *arguments: str) -> None:
        """Install the packaged configuration with these arguments of the hook."""
        text = (TOP / "hooks.d/archive_overlay.json.in").read_text().replace("@BINDIR@", str(self.top))
        content = json.loads(text)
        content["hook"]["args"] += arguments
        self.configuration.write_text(json.dumps(content))

    def check(
        self,
        *options: str | Path,
        before: tuple[str | Path, ...] = (),
        environment: Mapping[str, str] = {},
    ) -> subprocess.CompletedProcess[str]:
        """Run the check to its end.

        Args:
            options: its own; by default the directory of hooks.
            before: a command that runs it.
            environment: its variables.
        """
        done = subprocess.run(
            [*before, self.program, "check", *(options or ("--hooks-dir", self.hooks))],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment} if before else dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        assert done.stderr == ""
        return done

    def json(self, *options: str | Path, before: tuple[str | Path, ...] = ()) -> dict[str, Any]:
        """Run the check for a program that reads what it writes."""
        done = self.check("--json", *(options or ("--hooks-dir", self.hooks)), before=before)
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["ready"] == (done.returncode == 0)
        return found

    def in_namespace(self, script: str, *options: str | Path) -> dict[str, Any]:
        """Run the check where a shell script, with this directory as $0, has mounted something."""
        tools.need_root()
        tools.need("unshare", "mount", "setpriv")
        script = f'{script}\nexec "$@"'
        return self.json(*options, before=("unshare", "--mount", "sh", "-euc", script, self.top))


@pytest.fixture
def installed(executable: Path) -> Iterator[Installed]:
    """Install the program where ordinary users reach it."""
    with tempfile.TemporaryDirectory(prefix="archive_overlay-test-") as name:
        os.chmod(name, 0o755)
        umask = os.umask(0o022)
        try:
            yield Installed(Path(name), executable)
        finally:
            os.umask(umask)


def about(found: dict[str, Any], topic: str) -> list[dict[str, Any]]:
    return [finding for finding in found["findings"] if finding["topic"] == topic]


def problems(found: dict[str, Any]) -> list[str]:
    return [finding["found"] for finding in found["findings"] if finding["status"] == "problem"]


def test_a_host_that_is_set_up(installed: Installed) -> None:
    done = installed.check()

    assert done.returncode == 0, done.stdout
    *lines, summary = done.stdout.splitlines()
    assert summary == "Nothing here stops archives."
    for line in lines:
        found = re.fullmatch(r"(ok|note|warning) {2,}([a-z-]+)  +\S.*", line)
        assert found, line
        assert found[2] in TOPICS
    assert len(lines) < 24, "more than a screen"


def test_a_host_that_is_not(installed: Installed) -> None:
    installed.configuration.unlink()

    done = installed.check()

    assert done.returncode == 1
    *lines, summary = done.stdout.splitlines()
    (problem,) = (line for line in lines if line.startswith("problem"))
    assert f"no hook configuration in {installed.hooks} runs this program" in problem
    assert summary == "1 problem stops archives."


def test_a_host_with_a_broken_configuration(installed: Installed) -> None:
    installed.configuration.write_text("{")

    done = installed.check()

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 problems stop archives."
    assert f"{installed.configuration} is refused: it is not valid JSON" in done.stdout


def test_json_has_the_fields_that_the_manual_page_names(installed: Installed) -> None:
    found = installed.json()

    assert {key: value for key, value in found.items() if key != "findings"} == {
        "version": __version__,
        "program": str(installed.program),
        "rootless": os.geteuid() != 0,
        "ready": True,
        "hooks_dirs": [str(installed.hooks)],
        "hooks": [str(installed.configuration)],
    }
    for finding in found["findings"]:
        assert list(finding) == ["status", "topic", "path", "found", "advice"]
        assert finding["topic"] in TOPICS
    page = (TOP / "man/commands/check.in").read_text().replace("\\-", "-")
    named = re.search(r"one of (program, .*)\.|one of (program, [^;]*);", page)
    assert named
    assert set(re.findall(r"[a-z-]+", (named[1] or named[2]).replace(" and ", " "))) == TOPICS


def test_json_and_text_say_the_same(installed: Installed) -> None:
    lines = installed.check().stdout.splitlines()[:-1]
    findings = installed.json()["findings"]

    # How much is free may change in between, but nothing here says so.
    assert [re.split("  +", line, maxsplit=2) for line in lines] == [
        [each["status"], each["topic"], each["found"] + (f"; {each['advice']}" if each["advice"] else "")]
        for each in findings
    ]


def test_arguments_of_the_hook_that_need_something(installed: Installed) -> None:
    archives = installed.top / "archives"
    installed.configure(f"--allow-archive-to={archives}", f"--log-file={installed.top}/log")
    (missing,) = problems(installed.json())
    assert str(archives) in missing

    archives.mkdir()
    found = installed.json()
    assert problems(found) == []
    assert [(each["status"], each["path"]) for each in about(found, "destination")] == [("ok", str(archives))]
    assert sorted(os.listdir(installed.top)) == ["archive_overlay", "archives", "hooks.d"], (
        "it wrote something"
    )


def test_programs_that_the_hook_runs(installed: Installed) -> None:
    tools.need_root()
    for name in ("told", "open", "plain"):
        (installed.top / name).write_text("#!/bin/sh\n")
        (installed.top / name).chmod({"told": 0o755, "open": 0o777, "plain": 0o644}[name])
    (installed.top / "auth").write_text("{}")

    for success, failure, ends in (
        (
            "told",
            "open",
            [("ok", "told is run when an archive is saved"), ("warning", "everybody may write to")],
        ),
        ("plain", "told", [("warning", "plain is not executable"), ("ok", "when an archive fails")]),
    ):
        installed.configure(
            f"--on-success={installed.top}/{success}",
            f"--on-failure={installed.top}/{failure}",
            f"--skopeo={installed.top}/skopeo",
            "--allow-push-to=docker://localhost:5000/team",
            "--tls-verify=false",
            f"--authfile={installed.top}/auth",
        )
        found = installed.json()
        assert found["ready"] is True
        for report, (status, words) in zip(about(found, "reports"), ends):
            assert report["status"] == status
            assert words in report["found"]

    (skopeo,) = about(found, "skopeo")
    assert (skopeo["status"], skopeo["path"]) == ("warning", f"{installed.top}/skopeo")
    policy = [each["found"] for each in about(found, "policy")]
    assert (
        "images may be loaded into the engine's store by any name, and pushed to localhost:5000/team"
        in policy
    )
    assert [each for each in policy if "certificates of registries are not verified" in each]
    assert [each for each in policy if "auth, with passwords of registries, can be read by others" in each]


def test_places_that_another_user_may_have_made(installed: Installed) -> None:
    tools.need_root()
    shared = installed.top / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "archives").symlink_to(installed.top)
    os.lchown(shared / "archives", 12345, 12345)
    installed.configure(
        *(f"--allow-archive-to={shared}/archives", f"--rescue-dir={shared}/archives/rescue"),
        f"--log-file={shared}/archives/log",
    )

    found = installed.json()

    said = [each["found"] for each in [*about(found, "destination"), *about(found, "log")]]
    assert (
        sum(f"{shared}/archives is a symbolic link that another user may have made" in each for each in said)
        == 3
    )
    assert len(problems(found)) == 2, "without a log file archives are made"


def test_nothing_is_opened_for_writing(installed: Installed) -> None:
    tools.need("strace")
    (installed.top / "archives").mkdir()
    installed.configure(
        *(f"--allow-archive-to={installed.top}/archives", f"--rescue-dir={installed.top}/rescue"),
        *(f"--log-file={installed.top}/log", "--syslog"),
    )
    trace = installed.top / "trace"
    changing = "%file,sendto,sendmsg,write"
    installed.check(before=("strace", "-f", "-y", "-o", trace, "-e", f"trace={changing}"))

    calls = [line for line in trace.read_text().splitlines() if re.match(r"\d+ +\w+\(", line)]
    harmless = (
        r"\d+ +(execve|access|faccessat2?|stat|lstat|newfstatat|statx|statfs|readlink|readlinkat|getcwd)\("
    )
    others = [line for line in calls if not re.match(harmless, line)]
    assert any(f"{installed.configuration}" in line for line in others), "the trace shows nothing"
    reading = [line for line in others if re.match(r"\d+ +open(at)?\(", line) and "O_RDONLY" in line]
    rest = [line for line in others if line not in reading]
    assert [line for line in rest if not re.search(r'"/dev/null", O_RDWR|write\(1<', line)] == []


def test_no_environment_variable_changes_anything(installed: Installed) -> None:
    (installed.top / "containers.conf").write_text('[engine]\nhooks_dir = ["/elsewhere"]\n')
    variables = {
        "CONTAINERS_CONF": str(installed.top / "containers.conf"),
        "CONTAINERS_CONF_OVERRIDE": str(installed.top / "containers.conf"),
        "XDG_CONFIG_HOME": str(installed.top),
        "HOME": str(installed.top),
        "PATH": "/nowhere",
        "LANG": "xx",
    }
    assert installed.check("--json", environment=variables).stdout == installed.check("--json").stdout


def test_what_an_ordinary_user_may_write(installed: Installed) -> None:
    tools.need_root()
    tools.need("setpriv")
    for name in ("root's", "nobody's"):
        (installed.top / name).mkdir()
    os.chown(installed.top / "nobody's", NOBODY, NOBODY)
    installed.configure(*(f"--allow-archive-to={installed.top}/{name}" for name in ("root's", "nobody's")))

    found = installed.json(before=AS_NOBODY)

    assert found["rootless"] is True
    assert [each["status"] for each in about(found, "destination")] == ["problem", "ok"]
    assert problems(found) == [f"--allow-archive-to: {installed.top}/root's cannot be written by nobody"]


def test_a_configuration_that_an_ordinary_user_may_not_read(installed: Installed) -> None:
    tools.need_root()
    tools.need("setpriv")
    installed.configuration.chmod(0o600)

    refused, *_ = problems(installed.json(before=AS_NOBODY))

    assert f"{installed.configuration} is refused: Permission denied" in refused


def test_root_in_a_user_namespace_is_an_ordinary_user(installed: Installed) -> None:
    tools.need_root()
    tools.need("setpriv", "unshare")

    found = installed.json(before=(*AS_NOBODY, "unshare", "--user", "--map-root-user"))

    assert found["rootless"] is True


def test_a_directory_on_a_read_only_file_system(installed: Installed) -> None:
    archives = installed.top / "archives"
    archives.mkdir()
    installed.configure(f"--allow-archive-to={archives}")

    found = installed.in_namespace(
        'mount --bind "$0/archives" "$0/archives"; mount -o remount,bind,ro "$0/archives"'
    )

    (problem,) = problems(found)
    assert problem.endswith(f"{archives} is on a file system that is mounted read-only")


def test_programs_on_a_file_system_without_execution(installed: Installed) -> None:
    (installed.top / "noexec").mkdir()
    shutil.copy(installed.program, installed.top / "noexec/archive_overlay")
    shutil.copy("/bin/true", installed.top / "noexec/told")
    installed.configure(f"--on-success={installed.top}/noexec/told")
    configuration = json.loads(installed.configuration.read_text())
    configuration["hook"]["path"] = f"{installed.top}/noexec/archive_overlay"
    installed.configuration.write_text(json.dumps(configuration))

    found = installed.in_namespace(
        'mount --bind "$0/noexec" "$0/noexec"; mount -o remount,bind,noexec "$0/noexec"'
    )

    (problem,) = problems(found)
    assert problem.endswith("noexec/archive_overlay, which is on a file system that is mounted noexec")
    (told,) = about(found, "reports")
    assert (told["status"], "told is on a file system that is mounted noexec" in told["found"]) == (
        "warning",
        True,
    )


def test_the_directories_that_this_host_s_podman_reads(installed: Installed) -> None:
    if not os.path.isdir("/etc/containers"):
        tools.cannot_run("no directory /etc/containers")
    etc = installed.top / "etc"
    (etc / "containers.conf.d").mkdir(parents=True)
    (etc / "containers.conf").write_text('[engine]\nhooks_dir = ["/elsewhere"]\n')
    (etc / "containers.conf.d/50-hooks.conf").write_text(f'[engine]\nhooks_dir = ["{installed.hooks}"]\n')

    found = installed.in_namespace('mount --bind "$0/etc" /etc/containers', "--json")

    assert found["hooks_dirs"] == [str(installed.hooks)]
    assert found["hooks"] == [str(installed.configuration)]


def test_the_directories_that_a_user_s_podman_reads(installed: Installed) -> None:
    home = installed.top / "home"
    (home / ".config/containers").mkdir(parents=True)
    (home / ".config/containers/containers.conf").write_text(f'[engine]\nhooks_dir = ["{installed.hooks}"]\n')
    (installed.top / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nuser:x:61234:61234::{home}:/bin/sh\n")

    found = installed.in_namespace(
        'mount --bind "$0/passwd" /etc/passwd; set -- setpriv --reuid=61234 --clear-groups -- "$@"', "--json"
    )

    assert (found["rootless"], found["hooks_dirs"]) == (True, [str(installed.hooks)])
    assert about(found, "hooks-dir")[1]["path"] == f"{home}/.config/containers/containers.conf"


def with_podman(installed: Installed, *names: bytes) -> dict[str, Any]:
    """Check root's host whose podman has these names in it, with a policy that root's own containers.conf names."""
    if not os.path.exists("/usr/bin/podman") or os.path.exists("/usr/local/bin/podman"):
        tools.cannot_run("no /usr/bin/podman, or another one too")
    strict = installed.top / "strict"
    strict.mkdir()
    installed.configure("--allow-archive-to=/srv")
    installed.configuration.rename(strict / "archive_overlay.json")
    (installed.top / "podman").write_bytes(b"\x7fELF\0" + b"\0".join(names))
    conf = installed.top / "home/.config/containers/containers.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f'[engine]\nhooks_dir = ["{strict}"]\n')
    (installed.top / "passwd").write_text(f"root:x:0:0::{installed.top}/home:/bin/sh\n")
    return installed.in_namespace(
        """
        mount --bind "$0/passwd" /etc/passwd
        mount --bind "$0/podman" /usr/bin/podman
        for each in /etc/containers /usr/share/containers; do mount -t tmpfs tmpfs "$each"; done
        """,
        "--json",
    )


def test_a_policy_that_podman_5_reads_in_root_s_home(installed: Installed) -> None:
    found = with_podman(installed, b"pkg/config.systemConfigs", b"pkg/config.userConfigPath")

    assert about(found, "policy")[0]["found"] == "archives may be in /srv, and nowhere else"
    assert len(found["hooks"]) == 1
    assert found["hooks_dirs"] == [str(installed.top / "strict")]


def test_a_policy_that_podman_4_does_not_read_in_root_s_home(installed: Installed) -> None:
    found = with_podman(installed, b"pkg/config.systemConfigs")

    assert about(found, "policy") == []
    assert found["hooks_dirs"] == ["/usr/share/containers/oci/hooks.d"]


def test_a_policy_that_nobody_knows_whether_podman_reads(installed: Installed) -> None:
    found = with_podman(installed, b"of no podman")

    assert any("the release of podman is not known" in each["found"] for each in found["findings"])
    policies = [each["found"] for each in about(found, "policy")]
    assert (
        "with podman 5.0 to 5.6, 5.7 and 5.8, 6.0 and later: archives may be in /srv, and nowhere else"
        in policies
    )
    assert "archives may be in /srv, and nowhere else" not in policies
    assert (found["ready"], found["hooks_dirs"], found["hooks"]) == (False, [], [])


def test_names_do_no_harm_on_a_terminal(installed: Installed) -> None:
    (installed.hooks / "\x1b[2J\n.json").touch()
    output = installed.check().stdout
    assert "\\x1b[2J\\n.json is refused" in output
    assert "\x1b" not in output


def test_a_terminal_gets_colours(installed: Installed) -> None:
    shown = history.shown_on_terminal("check", "--hooks-dir", installed.hooks)
    assert "\x1b[32mok     \x1b[0m  hook  " in shown


def test_lines_break_between_words_at_the_terminal_s_width(installed: Installed) -> None:
    arguments = ("check", "--hooks-dir", installed.hooks)
    shown = history.shown_on_terminal(*arguments, COLUMNS="80", NO_COLOR="1").splitlines()

    margin = " " * 25
    for line in shown:
        assert len(line) <= 80 or " " not in line[25:], line
    assert any(line.startswith(margin) for line in shown)
    whole = "\n".join(shown).replace(f"\n{margin}", " ")
    assert whole == history.output_of(*arguments).rstrip("\n")


def test_help_has_examples() -> None:
    assert "archive_overlay check --json\n" in history.output_of("check", "--help")


@pytest.mark.parametrize("arguments", [("here",), ("--hooks-dir",), ("--wrong",)])
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    result = history.run("check", *arguments)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: archive_overlay check ")
