"""What `archive_overlay check` says of a host: each host is a directory in which one thing is different."""

from __future__ import annotations

import json
import os
import socket
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archive_overlay import cli
from archive_overlay.commands.check import access, hooks_dirs, host, podman, report
from archive_overlay.commands.check.findings import Finding, combined
from archive_overlay.tar import compress
from tests.support import tools

TOP = Path(__file__).resolve().parents[3]
PREFIX = r"^com\.launchplatform\.oci-hooks\.archive-overlay\.[^.]+[./]"
ANNOTATIONS = {f"{PREFIX}mount-point$": ".*", f"{PREFIX}archive-to$": ".*"}
ONE = {r"^com\.launchplatform\.oci-hooks\.archive-overlay\.": ".*"}
# The configuration that 2.0.4 had in its documentation, which had no args.
OF_2_0_4 = {
    rf"com\.launchplatform\.oci-hooks\.archive-overlay\.([^.]+)\.{key}": "(.+)"
    for key in ("mount-point", "archive-to")
}
UNREAD = "no containers.conf"


class Site:
    """A host that is set up well, to be changed.

    Attributes:
        directory: everything is in it.
        program: the installed program.
        hooks: the directory of hook configurations.
        host: where everything is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "archive_overlay"
        self.program.write_text(f"#!{sys.executable}\n")
        self.program.chmod(0o755)
        self.hooks = directory / "hooks.d"
        self.hooks.mkdir()
        self.conf = directory / "containers.conf"
        (directory / "filesystems").write_text("nodev\tproc\nnodev\toverlay\n\text4\n")
        self.parameters = directory / "parameters"
        self.parameters.mkdir()
        for name in ("metacopy", "redirect_dir", "index", "nfs_export", "xino_auto"):
            (self.parameters / name).write_text("N\n")
        self.host = host.Host(
            program=str(self.program),
            interpreter=sys.executable,
            user=os.geteuid(),
            release="6.1.0-9-amd64",
            filesystems=str(directory / "filesystems"),
            modules=str(directory / "modules"),
            parameters=str(self.parameters),
            syslog=str(directory / "log"),
        )

    def hook(self, name: str = "archive_overlay.json", *, hooks: Path | None = None, **fields: Any) -> Path:
        """Write a hook configuration: the packaged one, with some fields or those of `hook` changed."""
        content = json.loads((TOP / "hooks.d/archive_overlay.json.in").read_text())
        content["hook"]["path"] = str(self.program)
        for key, value in fields.items():
            (content["hook"] if key in ("path", "args", "timeout") else content)[key] = value
        path = (hooks or self.hooks) / name
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return path

    def check(self, *more: Path) -> list[Finding]:
        """Check the host, with these directories of hooks after its own one."""
        read = (str(self.hooks), *map(str, more))
        findings, hooks = report.check(self.host, [hooks_dirs.Directories(read, ())], cli.parse)
        self.found_hooks = [hook.path for hook in hooks]
        return findings

    def about(self, topic: str, *more: Path) -> list[Finding]:
        """Give what a check of the host finds about one thing."""
        return [finding for finding in self.check(*more) if finding.topic == topic]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Give a host on which the packaged configuration is installed."""
    made = Site(tmp_path)
    made.hook()
    return made


def statuses(findings: list[Finding]) -> list[str]:
    return [finding.status for finding in findings]


def stops(findings: list[Finding]) -> list[str]:
    return [finding.found for finding in findings if finding.status == "problem"]


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


# Hook configurations


@pytest.mark.parametrize("packaged", ["archive_overlay.json.in", "debug/archive_overlay.json.in"])
def test_what_is_packaged_runs_this_program(site: Site, packaged: str) -> None:
    text = (TOP / "hooks.d" / packaged).read_text()
    path = site.hooks / "archive_overlay.json"
    path.write_text(text.replace("@BINDIR@/archive_overlay", str(site.program)))

    finding = only(site.about("hook"))

    assert finding.status == "ok"
    assert finding.found.endswith(
        f"runs {site.program} for containers with an annotation that begins with"
        " com.launchplatform.oci-hooks.archive-overlay."
    )
    assert site.found_hooks == [str(path)]
    assert stops(site.check()) == []


def test_without_any_configuration_nothing_is_archived(site: Site) -> None:
    (site.hooks / "archive_overlay.json").unlink()

    finding = only(site.about("hook"))

    assert finding.status == "problem"
    assert str(site.hooks) in finding.found
    assert "make install" in finding.advice


@pytest.mark.parametrize("name", ["archive_overlay.json", "of-others.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not an object"),
        ({"version": "2.0.0"}, "version is '2.0.0'"),
        ({"hook": None}, "has no hook"),
        ({"path": ""}, "no hook.path"),
        ({"path": 7}, "no hook.path"),
        ({"args": "archive_overlay"}, "hook.args are not a list"),
        ({"args": ["archive_overlay", 1]}, "hook.args are not a list"),
        ({"timeout": "10"}, "hook.timeout is not a number"),
        ({"stages": None}, "stages are not a list"),
        ({"stages": "poststop"}, "stages are not a list"),
        ({"stages": ["stopped"]}, "stopped is not a stage"),
        ({"when": ["always"]}, "when is not an object"),
        ({"when": {"always": "yes"}}, "when.always is neither"),
        ({"when": {"annotations": ["a"]}}, "when.annotations are not an object"),
        ({"when": {"annotations": {"a": 1}}}, "when.annotations are not an object"),
        ({"when": {"annotations": {"(": ""}}}, '"(" is not a regular expression'),
        ({"when": {"commands": ["["]}}, '"[" is not a regular expression'),
        ({"when": {"annotations": {"^com(?!x)": ""}}}, "to podman: it does not know (?!"),
        ({"when": {"annotations": {r"(a)\1": ""}}}, r"to podman: it does not know \1"),
    ],
)
def test_a_file_that_is_refused_stops_all_containers(
    site: Site, name: str, content: bytes | dict[str, Any], reason: str
) -> None:
    if isinstance(content, bytes):
        (site.hooks / name).write_bytes(content)
    else:
        site.hook(name, **content)

    refused = next(finding for finding in site.about("hook") if finding.status == "problem")

    assert refused.path == str(site.hooks / name)
    assert reason in refused.found
    assert "starts no container" in refused.found


def test_what_does_not_concern_this_program_is_passed_over(site: Site) -> None:
    (site.hooks / "old.json").write_text('{"hook": "/bin/true", "stages": ["prestart"], "cmds": [".*"]}')
    (site.hooks / "notes.txt").write_text("{")
    (site.hooks / "gone.json").symlink_to("nowhere")
    site.hook("other.json", path="/bin/true", args=["true"], when={"always": True}, stages=["prestart"])
    site.hook("missing.json", path="/no/such/program", when={"always": True})

    assert statuses(site.about("hook")) == ["ok"]


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ({}, "no condition"),
        (None, "no condition"),
        ({"always": False, "annotations": ANNOTATIONS}, "always: false"),
        ({"hasBindMounts": False, "annotations": ANNOTATIONS}, "hasBindMounts: false"),
    ],
)
def test_a_hook_that_runs_for_no_container(site: Site, when: object, reason: str) -> None:
    site.hook(when=when)

    (found, *_) = stops(site.about("hook"))

    assert "runs for no container" in found
    assert reason in found


@pytest.mark.parametrize(
    ("when", "whom"),
    [
        ({"always": True}, "every container"),
        ({"annotations": ONE, "commands": ["^/bin/sh$"]}, 'a command that matches "^/bin/sh$"'),
        ({"annotations": ONE, "hasBindMounts": True}, "a volume"),
        ({"annotations": {r"archive-overlay\.\w+\.\pL+": ""}}, r'matches "archive-overlay\.\w+\.\pL+"'),
    ],
)
def test_the_containers_that_a_hook_runs_for(site: Site, when: object, whom: str) -> None:
    site.hook(when=when)

    finding = only(site.about("hook"))

    assert finding.status == "ok"
    assert whom in finding.found


@pytest.mark.parametrize(
    ("annotations", "whom", "missed"),
    [
        (
            ANNOTATIONS,
            "the annotations mount-point and archive-to",
            "only half a pair or only unknown keys",
        ),
        (
            OF_2_0_4,
            "the annotations mount-point and archive-to",
            "annotations of the form NAME/KEY, only half a pair or only unknown keys",
        ),
        (
            {f"{PREFIX}archive-to$": "^/srv/"},
            'the annotation archive-to, a value that matches "^/srv/"',
            "only half a pair or only unknown keys",
        ),
        (
            {PREFIX.replace("[./]", "/"): ""},
            "an annotation that begins with com.",
            "annotations of the form NAME.KEY, only half a pair or only unknown keys",
        ),
    ],
    ids=["3.0.0", "2.0.4", "one key", "slashes"],
)
def test_conditions_that_miss_what_the_hook_could_complain_of(
    site: Site, annotations: dict[str, str], whom: str, missed: str
) -> None:
    site.hook(args=None, when={"annotations": annotations})

    note, runs = site.about("hook")

    assert (note.status, runs.status) == ("note", "ok")
    assert f"for containers with {whom}" in runs.found
    assert f"does not run for containers with {missed}: nothing is saved there" in note.found
    assert stops(site.check()) == []


def test_an_annotation_that_this_program_does_not_have(site: Site) -> None:
    site.hook(when={"annotations": {**ANNOTATIONS, f"{PREFIX}archive-too$": ".*"}})

    finding = only(site.about("hook"))

    assert finding.status == "warning"
    assert "archive-too" in finding.found


def test_stages_without_poststop(site: Site) -> None:
    site.hook(stages=["prestart"])
    (found, *_) = stops(site.about("hook"))
    assert "runs at prestart, not when a container has stopped" in found

    site.hook(stages=[])
    assert "runs at no stage" in stops(site.about("hook"))[0]


def test_a_fault_is_said_once(site: Site) -> None:
    site.hook(stages=["prestart"])
    assert statuses(site.about("hook")) == ["problem"]


def test_stages_besides_poststop(site: Site) -> None:
    site.hook(stages=["prestart", "poststop"])
    finding = only(site.about("hook"))
    assert (finding.status, "prestart too" in finding.found) == ("warning", True)


def test_an_engine_that_kills_the_hook(site: Site) -> None:
    site.hook(timeout=10)
    finding = only(site.about("hook"))
    assert (finding.status, "after 10 s" in finding.found) == ("warning", True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--no-such-option"], "there is no option --no-such-option"),
        (["--log-level=loud"], "unknown log level 'loud'"),
        (["--allow-archive-to=srv"], "'srv' is not an absolute path"),
        (["--max-bytes"], "expected one argument"),
        (["--version"], "they ask for the version or for help"),
        (["--help"], "they ask for the version or for help"),
        (["log", "/srv/data"], "log is a command for people"),
        (["--bundle=/run/x"], "--bundle is for running by hand"),
    ],
)
def test_arguments_with_which_every_hook_fails(site: Site, arguments: list[str], reason: str) -> None:
    site.hook(args=["archive_overlay", *arguments])

    (found, *_) = stops(site.about("hook"))

    assert reason in found
    assert site.found_hooks == []


@pytest.mark.parametrize("arguments", [None, [], ["archive_overlay"], ["other name", "--syslog"]])
def test_arguments_that_the_program_understands(site: Site, arguments: list[str] | None) -> None:
    site.hook(args=arguments)
    assert statuses(site.about("hook")) == ["ok"]


@pytest.mark.parametrize(
    ("arguments", "swallowed"),
    [
        (["--allow-archive-to=/srv", "--syslog"], "--allow-archive-to=/srv"),
        (["--allow-archive-to", "/srv"], "--allow-archive-to"),
        (["archive_overlay --no-setid --max-bytes=5"], "--no-setid --max-bytes=5"),
    ],
)
def test_options_where_the_program_s_name_belongs(site: Site, arguments: list[str], swallowed: str) -> None:
    site.hook(args=arguments)

    finding = only(site.about("hook"))

    assert finding.status == "problem"
    assert f"has {swallowed} in the first of its args" in finding.found
    assert 'put "archive_overlay" first' in finding.advice
    # What is in force is what the hook gets.
    assert not any("archives may be in /srv" in each.found for each in site.check())


def test_a_configuration_that_is_a_pipe(site: Site) -> None:
    os.mkfifo(site.hooks / "pipe.json")
    assert "pipe.json is refused" in stops(site.about("hook"))[0]


def test_a_program_that_is_not_there_is_passed_over(site: Site) -> None:
    site.hook(path=str(site.directory / "missing"))

    passed_over, none = site.about("hook")

    assert passed_over.status == "warning"
    assert passed_over.found.endswith("missing does not exist")
    assert (none.status, none.advice) == ("problem", "see above")


def test_a_program_that_is_not_executable(site: Site) -> None:
    copy = site.directory / "copy"
    copy.write_bytes(site.program.read_bytes())
    site.hook(path=str(copy))

    (found, *_) = stops(site.about("hook"))

    assert f"{copy}, which is not executable" in found


def test_a_copy_is_this_program(site: Site) -> None:
    copy = site.directory / "copy"
    copy.write_bytes(site.program.read_bytes())
    copy.chmod(0o755)
    site.hook(path=str(copy))

    assert statuses(site.about("hook")) == ["ok"]


def test_another_file_is_not_this_program(site: Site) -> None:
    other = site.directory / "archive_overlay-2"
    other.write_bytes(site.program.read_bytes() + b"#")
    other.chmod(0o755)
    site.hook(path=str(other))

    another, none = site.about("hook")

    assert another.status == "warning"
    assert f"{other}, which is another file than {site.program}" in another.found
    assert none.status == "problem"


def test_two_configurations_run_the_hook_twice(site: Site) -> None:
    site.hook("50-mine.json", when={"always": True})

    *_, finding = site.about("hook")

    assert finding.status == "warning"
    assert "more than once" in finding.found


def test_a_later_directory_goes_before_an_earlier_one(site: Site) -> None:
    later = site.directory / "later"
    later.mkdir()
    path = site.hook(hooks=later, args=["archive_overlay", "--max-bytes=5"])

    findings = site.check(later)

    assert site.found_hooks == [str(path)]
    assert any("at most 5 bytes an archive" in finding.found for finding in findings)
    assert any("takes the place of" in finding.found for finding in findings)


def test_a_file_that_is_passed_over_takes_no_other_one_s_place(site: Site) -> None:
    later = site.directory / "later"
    later.mkdir()
    site.hook(hooks=later, path="/no/such/archive_overlay")

    site.check(later)

    assert site.found_hooks == [str(site.hooks / "archive_overlay.json")]


def test_a_directory_that_is_not_there_is_no_fault(site: Site) -> None:
    assert statuses(site.about("hooks-dir", site.directory / "missing")) == ["note"]
    assert stops(site.check(site.directory / "missing")) == []


def test_a_configuration_that_everybody_may_change(site: Site) -> None:
    path = site.hooks / "archive_overlay.json"
    path.chmod(0o666)

    finding = only(site.about("hook"))

    assert (finding.status, finding.path, finding.advice) == ("warning", str(path), f"chmod o-w {path}")


# Where they are looked for


OLD, APPENDING, *_, LATEST = podman.RELEASES


def directories(
    site: Site, *, release: podman.Release = LATEST, rootless: bool = False, toml: bool = True
) -> hooks_dirs.Directories:
    names = [site.conf, site.directory / "50.conf", site.directory / "60.conf"]
    return hooks_dirs.find_directories(
        release,
        configurations=[str(path) for path in names],
        default="/default",
        override=str(site.directory / "override"),
        rootless=rootless,
        parse=hooks_dirs.toml_parser() if toml else None,
    )


needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python cannot read TOML")


@pytest.mark.parametrize("rootless", [False, True])
def test_what_podman_reads_by_itself(site: Site, rootless: bool) -> None:
    found = directories(site, rootless=rootless)
    assert found.read == ("/default",)
    assert (only([*found.findings]).status, UNREAD in found.findings[0].found) == ("ok", True)


def test_the_command_line_settles_it() -> None:
    assert hooks_dirs.given_directories(["/a", "b"]).read == ("/a", os.path.abspath("b"))


@needs_toml
def test_a_later_file_goes_before_an_earlier_one(site: Site) -> None:
    site.conf.write_text('[engine]\nhooks_dir = ["/a"]\n')
    (site.directory / "50.conf").write_text('[engine]\nhooks_dir = [\n  "/b",  # two\n  "/c",\n]\n')
    (site.directory / "60.conf").write_text('[containers]\nhooks_dir = ["/no"]\n')

    found = directories(site)

    assert found.read == ("/b", "/c")
    assert "/b and /c" in found.findings[0].found
    assert str(site.directory / "50.conf") in found.findings[0].found


@needs_toml
def test_keys_in_other_case_count_for_podman_too(site: Site) -> None:
    site.conf.write_text('[Engine]\nHooks_Dir = ["/a"]\n')
    assert directories(site).read == ("/a",)


@needs_toml
def test_a_relative_directory_is_not_relied_on(site: Site) -> None:
    site.conf.write_text('[engine]\nhooks_dir = ["hooks.d", "/a"]\n')

    found = directories(site)

    assert found.read == ("/a",)
    assert "hooks.d, named by hooks_dir, is a relative path" in found.findings[0].found


@needs_toml
def test_a_file_may_add_to_earlier_ones(site: Site) -> None:
    site.conf.write_text('engine.hooks_dir = ["/a", {append=true}]\n')
    for again in ('["/b"]', '["/b", {}]'):
        (site.directory / "50.conf").write_text(f"[engine]\nhooks_dir = {again}\n")
        assert directories(site).read == ("/default", "/a", "/b")

    (site.directory / "60.conf").write_text('[engine]\nhooks_dir = ["/c", {append=false}]\n')
    assert directories(site).read == ("/c",)


@needs_toml
def test_releases_before_attributes_do_not_start_with_one(site: Site) -> None:
    site.conf.write_text('engine.hooks_dir = ["/a", {append=true}]\n')
    assert statuses([*directories(site, release=APPENDING).findings]) == ["ok"]
    assert statuses([*directories(site, release=OLD).findings]) == ["problem", "ok"]


@needs_toml
@pytest.mark.parametrize(("release", "rootless"), [(OLD, False), (OLD, True), (LATEST, True)])
def test_a_list_without_directories_means_none(site: Site, release: podman.Release, rootless: bool) -> None:
    site.conf.write_text("[engine]\nhooks_dir = []\n")

    found = directories(site, release=release, rootless=rootless)

    assert found.read == ()
    findings, _ = report.check(site.host, [found], cli.parse)
    assert "no hook configuration in any directory runs this program" in stops(findings)


@needs_toml
def test_a_list_without_directories_means_two_to_root_s_newer_podman(site: Site) -> None:
    site.conf.write_text("[engine]\nhooks_dir = []\n")

    found = directories(site, release=APPENDING)

    assert found.read == ("/default", str(site.directory / "override"))
    assert statuses([*found.findings]) == ["warning"]


@needs_toml
@pytest.mark.parametrize(
    "text",
    [
        "[engine",
        "[engine]\nhooks_dir = '/a'\n",
        "[engine]\nhooks_dir = ['/a', 1]\n",
        "[engine]\nhooks_dir = ['/a', {append=1}]\n",
        "[engine]\nhooks_dir = ['/a', {prepend=true}]\n",
    ],
)
def test_a_file_with_which_podman_does_not_start(site: Site, text: str) -> None:
    site.conf.write_text(text)
    finding = directories(site).findings[0]
    assert (finding.status, finding.path) == ("problem", str(site.conf))


def test_a_python_without_toml_says_what_it_cannot_know(site: Site) -> None:
    site.conf.write_text("[engine]\n  hooks_dir = ['/a']\n")

    finding, _ = directories(site, toml=False).findings

    assert finding.status == "warning"
    assert "cannot read TOML" in finding.found
    assert "--hooks-dir" in finding.advice


def test_a_python_without_toml_sees_what_is_commented_out(site: Site) -> None:
    site.conf.write_text("[engine]\n  # hooks_dir = ['/a']\n")
    found = directories(site, toml=False)
    assert (found.read, statuses([*found.findings])) == (("/default",), ["ok"])


def test_a_policy_where_podman_does_not_look(site: Site) -> None:
    override = site.directory / "override"
    override.mkdir()
    path = site.hook(hooks=override, args=["archive_overlay", "--allow-archive-to=/srv"])

    _, finding = directories(site).findings

    assert finding.status == "warning"
    assert f"the options in {path} are not in force" in finding.found
    assert finding.advice == (
        "in /etc/containers/containers.conf.d/50-archive_overlay.conf, under [engine], put"
        f' hooks_dir = ["/default", "{override}"]'
    )


@needs_toml
def test_a_policy_where_containers_conf_has_podman_look_elsewhere(site: Site) -> None:
    override = site.directory / "override"
    override.mkdir()
    site.hook(hooks=override)
    site.conf.write_text('[engine]\nhooks_dir = ["/elsewhere"]\n')

    _, finding = directories(site).findings

    # A drop-in of our own might come before it.
    assert finding.advice.startswith(f"in {site.conf}, under [engine], put hooks_dir = [")


@needs_toml
def test_a_policy_where_podman_was_told_to_look(site: Site) -> None:
    override = site.directory / "override"
    override.mkdir()
    site.hook(hooks=override)
    site.conf.write_text(f'[engine]\nhooks_dir = ["/default", "{override}"]\n')

    assert statuses([*directories(site).findings]) == ["ok"]


# Which containers.conf files podman reads

USER = 1000
BY_SINCE = {release.since: release for release in podman.RELEASES}


class Configurations:
    """The three directories with containers.conf, to be filled."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for name in ("usr", "etc", "home"):
            (top / name).mkdir()

    def add(self, *names: str) -> None:
        for name in names:
            path = self.top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def read(self, since: tuple[int, int], *, user: int = 0) -> list[str]:
        """Give what a release reads, and what of it is there, by paths in this directory."""
        usr, etc, home = (str(self.top / name) for name in ("usr", "etc", "home"))
        found = podman.configurations(BY_SINCE[since], user=user, home=home, usr=usr, etc=etc)
        return [os.path.relpath(path, self.top) for path in found if os.path.exists(path)]


@pytest.fixture
def conf(tmp_path: Path) -> Configurations:
    """Give directories in which every file is that any release reads."""
    made = Configurations(tmp_path)
    for top in ("usr", "etc", "home"):
        made.add(f"{top}/containers.conf", f"{top}/containers.conf.d/{top}.conf")
    for top in ("usr", "etc"):
        for name in ("rootful", "rootless"):
            made.add(f"{top}/containers.{name}.conf", f"{top}/containers.{name}.conf.d/{top}-{name}.conf")
        made.add(f"{top}/containers.rootless.conf.d/{USER}/{top}-user.conf")
        made.add(f"{top}/containers.rootless.conf.d/{USER + 1}/{top}-other.conf")
    return made


USR_AND_ETC = ["usr/containers.conf", "etc/containers.conf", "etc/containers.conf.d/etc.conf"]
OF_HOME = ["home/containers.conf", "home/containers.conf.d/home.conf"]
ROOTLESS = [
    "etc/containers.rootless.conf",
    "etc/containers.rootless.conf.d/etc-rootless.conf",
    f"etc/containers.rootless.conf.d/{USER}/etc-user.conf",
]


@pytest.mark.parametrize("since", [(0, 0), (4, 8)])
def test_podman_4_reads_nothing_in_root_s_home(conf: Configurations, since: tuple[int, int]) -> None:
    assert conf.read(since) == USR_AND_ETC
    assert conf.read(since, user=USER) == [*USR_AND_ETC, *OF_HOME]


def test_podman_5_reads_root_s_home_too(conf: Configurations) -> None:
    assert conf.read((5, 0)) == [*USR_AND_ETC, *OF_HOME]
    assert conf.read((5, 0), user=USER) == [*USR_AND_ETC, *OF_HOME]


def test_podman_5_7_has_files_of_the_administrator_for_ordinary_users(conf: Configurations) -> None:
    assert conf.read((5, 7)) == [*USR_AND_ETC, *OF_HOME]
    assert conf.read((5, 7), user=USER) == [*USR_AND_ETC, *ROOTLESS, *OF_HOME]


def test_podman_6_reads_one_main_file_and_all_drop_ins_by_name(conf: Configurations) -> None:
    assert conf.read((6, 0)) == [
        "home/containers.conf",
        "etc/containers.rootful.conf.d/etc-rootful.conf",
        "etc/containers.conf.d/etc.conf",
        "home/containers.conf.d/home.conf",
        "usr/containers.rootful.conf.d/usr-rootful.conf",
        "usr/containers.conf.d/usr.conf",
    ]
    assert conf.read((6, 0), user=USER) == [
        "home/containers.conf",
        "etc/containers.rootless.conf.d/etc-rootless.conf",
        f"etc/containers.rootless.conf.d/{USER}/etc-user.conf",
        "etc/containers.conf.d/etc.conf",
        "home/containers.conf.d/home.conf",
        "usr/containers.rootless.conf.d/usr-rootless.conf",
        f"usr/containers.rootless.conf.d/{USER}/usr-user.conf",
        "usr/containers.conf.d/usr.conf",
    ]


def test_podman_6_reads_the_first_main_file_that_is_there(conf: Configurations) -> None:
    (conf.top / "home/containers.conf").unlink()
    assert conf.read((6, 0))[0] == "etc/containers.conf"

    (conf.top / "etc/containers.conf").unlink()
    assert conf.read((6, 0))[0] == "usr/containers.conf"


def test_podman_6_reads_one_drop_in_of_each_name(tmp_path: Path) -> None:
    conf = Configurations(tmp_path)
    order = [
        *("usr/containers.conf.d", "usr/containers.rootless.conf.d"),
        f"usr/containers.rootless.conf.d/{USER}",
        *("etc/containers.conf.d", "etc/containers.rootless.conf.d"),
        f"etc/containers.rootless.conf.d/{USER}",
        "home/containers.conf.d",
    ]
    for directory in order:
        conf.add(f"{directory}/50.conf")
        assert conf.read((6, 0), user=USER) == [f"{directory}/50.conf"]


@pytest.mark.parametrize("since", BY_SINCE)
def test_drop_ins_are_files_that_end_in_conf(tmp_path: Path, since: tuple[int, int]) -> None:
    conf = Configurations(tmp_path)
    conf.add(
        "etc/containers.conf.d/b.conf", "etc/containers.conf.d/notes", "etc/containers.conf.d/d.conf/c.conf"
    )
    (tmp_path / "etc/containers.conf.d/a.conf").symlink_to("b.conf")
    assert conf.read(since) == ["etc/containers.conf.d/a.conf", "etc/containers.conf.d/b.conf"]


@pytest.mark.parametrize(("since", "read"), [((0, 0), 0), ((4, 8), 0), ((5, 0), 0), ((5, 7), 1), ((6, 0), 1)])
def test_a_symlink_to_drop_ins(tmp_path: Path, since: tuple[int, int], read: int) -> None:
    conf = Configurations(tmp_path)
    conf.add("etc/real.d/a.conf")
    (tmp_path / "etc/containers.conf.d").symlink_to("real.d")
    assert len(conf.read(since)) == read


# Which release of podman is installed

NAMES = [release.mark for release in podman.RELEASES[:-1]]


def program(directory: Path, *names: bytes, path: str = "podman") -> str:
    """Make a program in which these names are."""
    (directory / path).write_bytes(b"\x7fELF" + b"\0".join((b"", *names, b"")))
    return str(directory / path)


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_a_release_is_known_by_the_names_in_its_program(tmp_path: Path, number: int) -> None:
    path = program(tmp_path, *NAMES[: number + 1])
    assert podman.installed([path]).releases == (podman.RELEASES[number],)


def test_podman_6_reads_by_another_package(tmp_path: Path) -> None:
    own = podman.RELEASES[-1].mark
    assert podman.installed([program(tmp_path, NAMES[1], own)]).releases == (LATEST,)
    # It is in Debian's 5.8 too, where it reads other files.
    assert podman.installed([program(tmp_path, *NAMES, own)]).releases == (podman.RELEASES[-2],)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\nexec /opt/podman\n", b"\x7fELF\0"])
def test_a_program_that_shows_no_release_may_be_any(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wrapper").write_bytes(content)
    known = program(tmp_path, NAMES[0])
    assert podman.installed([known, str(tmp_path / "wrapper")]).releases == podman.RELEASES


def test_without_podman_it_may_be_any(tmp_path: Path) -> None:
    assert podman.installed([str(tmp_path / "podman")]).releases == podman.RELEASES


def test_of_two_programs_each_may_run(tmp_path: Path) -> None:
    paths = [program(tmp_path, *NAMES, path="own"), program(tmp_path, NAMES[0]), str(tmp_path / "none")]
    assert podman.installed(paths).releases == (podman.RELEASES[0], podman.RELEASES[-2])


def test_a_podman_that_passes_annotations_of_images_on(tmp_path: Path) -> None:
    old = program(tmp_path, NAMES[0], path="4.5")
    new = program(tmp_path, NAMES[0], b"libpod.(*Runtime).RemoveContainerAndDependencies", path="4.6")
    for programs, passes_on in (([old], True), ([new], False), ([new, old], True)):
        assert podman.passes_on_annotations(programs) is passes_on

    (tmp_path / "wrapper").write_text("#!/bin/sh\n")
    for path in ("none", "wrapper"):
        assert podman.passes_on_annotations([str(tmp_path / path)]) is None


@pytest.mark.parametrize(
    ("programs", "status", "said"),
    [
        ({"bin": NAMES[:3]}, "ok", "bin is podman 5.0 to 5.6 (by its functions)"),
        ({"own": NAMES[:1], "bin": NAMES}, "ok", "podman up to 4.7 (by its functions) and "),
        ({"bin": [b"exec /opt/podman"]}, "note", "bin does not show it: what follows is about every release"),
        ({}, "note", "not known, for there is neither "),
    ],
    ids=["one", "two", "a script", "none"],
)
def test_which_release_is_meant_and_how_that_is_known(
    tmp_path: Path, programs: dict[str, list[bytes]], status: str, said: str
) -> None:
    for path, names in programs.items():
        program(tmp_path, *names, path=path)

    finding = hooks_dirs.judge_release(podman.installed([str(tmp_path / "own"), str(tmp_path / "bin")]))

    assert (finding.status, said in finding.found) == (status, True), finding


# What each release makes of what may lie in /usr/share/containers (usr), /etc/containers (etc) and ~/.config/containers
# (home): by path, the hooks_dir that a file has; by release, which directories root's podman reads, and which a user's.
# "D" is what podman reads by itself. Seen with 4.3 and 5.4 (tests/e2e/test_check.py); the others are by their sources.
TREES: dict[str, tuple[dict[str, str], dict[str, tuple[str, str]]]] = {
    "nothing": ({}, dict.fromkeys(("4.3", "4.9", "5.0", "5.4", "5.7", "6.0"), ("D", "D"))),
    "the administrator's drop-in": (
        {"usr/containers.conf": "A", "etc/containers.conf.d/50-archive_overlay.conf": "DB"},
        dict.fromkeys(("4.3", "4.9", "5.0", "5.4", "5.7", "6.0"), ("DB", "DB")),
    ),
    "a main file that hides the distribution's": (
        {"usr/containers.conf": "A", "etc/containers.conf": ""},
        {**dict.fromkeys(("4.3", "4.9", "5.0", "5.4", "5.7"), ("A", "A")), "6.0": ("D", "D")},
    ),
    "a user's, root's own too": (
        {"etc/containers.conf.d/50.conf": "A", "home/containers.conf": "B"},
        {
            **dict.fromkeys(("4.3", "4.9"), ("A", "B")),
            **dict.fromkeys(("5.0", "5.4", "5.7"), ("B", "B")),
            "6.0": ("A", "A"),
        },
    ),
    "drop-ins of a user and of the administrator": (
        {"etc/containers.conf.d/60.conf": "A", "home/containers.conf.d/50.conf": "B"},
        {
            **dict.fromkeys(("4.3", "4.9"), ("A", "B")),
            **dict.fromkeys(("5.0", "5.4", "5.7"), ("B", "B")),
            "6.0": ("A", "A"),
        },
    ),
    "rootful and rootless": (
        {
            "etc/containers.rootful.conf.d/50.conf": "A",
            "etc/containers.rootless.conf.d/50.conf": "B",
        },
        {
            **dict.fromkeys(("4.3", "4.9", "5.0", "5.4"), ("D", "D")),
            "5.7": ("D", "B"),
            "6.0": ("A", "B"),
        },
    ),
    "rootless main file": (
        {"etc/containers.rootless.conf": "A"},
        {
            **dict.fromkeys(("4.3", "4.9", "5.0", "5.4", "6.0"), ("D", "D")),
            "5.7": ("D", "A"),
        },
    ),
    "one user's, from the administrator": (
        {
            f"etc/containers.rootless.conf.d/{USER}/50.conf": "A",
            f"etc/containers.rootless.conf.d/{USER + 1}/60.conf": "B",
        },
        {
            **dict.fromkeys(("4.3", "4.9", "5.0", "5.4"), ("D", "D")),
            **dict.fromkeys(("5.7", "6.0"), ("D", "A")),
        },
    ),
    "the distribution's drop-ins": (
        {"usr/containers.conf.d/50.conf": "A", "usr/containers.rootful.conf.d/60.conf": "B"},
        {**dict.fromkeys(("4.3", "4.9", "5.0", "5.4", "5.7"), ("D", "D")), "6.0": ("B", "A")},
    ),
    "empty": (
        {"etc/containers.conf.d/50.conf": "-"},
        {"4.3": ("", ""), **dict.fromkeys(("4.9", "5.0", "5.4", "5.7", "6.0"), ("DE", ""))},
    ),
}
# What the program of a release has in it.
PROGRAMS = {
    "4.3": NAMES[:1],
    "4.9": NAMES[:2],
    "5.0": NAMES[:3],
    "5.4": NAMES[:3],
    "5.7": NAMES[:4],
    "6.0": [podman.RELEASES[-1].mark],
}


@needs_toml
@pytest.mark.parametrize("version", PROGRAMS)
@pytest.mark.parametrize("name", TREES)
def test_where_each_release_looks_for_hooks(tmp_path: Path, name: str, version: str) -> None:
    files, expected = TREES[name]
    for path, letters in files.items():
        conf = tmp_path / path
        conf.parent.mkdir(parents=True, exist_ok=True)
        directories = [f"/{letter}" for letter in letters if letter != "-"]
        conf.write_text(f"[engine]\nhooks_dir = {json.dumps(directories)}\n" if letters else "[engine]\n")
    (release,) = podman.installed([program(tmp_path, *PROGRAMS[version])]).releases

    usr, etc, home = (str(tmp_path / top) for top in ("usr", "etc", "home"))
    found = [
        hooks_dirs.find_directories(
            release,
            configurations=podman.configurations(release, user=user, home=home, usr=usr, etc=etc),
            default="/D",
            override="/E",
            rootless=user != 0,
            parse=hooks_dirs.toml_parser(),
        ).read
        for user in (0, USER)
    ]

    assert tuple("".join(read).replace("/", "") for read in found) == expected[version]


def test_what_is_true_for_some_releases_alone_says_for_which(site: Site) -> None:
    other = site.directory / "other"
    other.mkdir()
    site.hook(hooks=other, args=["archive_overlay", "--allow-archive-to=/"])
    plain = hooks_dirs.Directories((str(site.hooks),), (), "4")
    strict = hooks_dirs.Directories((str(site.hooks), str(other)), (), "5")

    findings, hooks = report.check(site.host, [plain, strict, replace(strict, release="6")], cli.parse)

    assert findings.count(hooks_dirs.UNKNOWN_RELEASE) == 1
    policies = [each.found for each in findings if each.topic == "policy"]
    assert any(each.startswith("with podman 4: annotations may name any path") for each in policies)
    assert "with podman 5, 6: archives may be in /, and nowhere else" in policies
    assert "archives may be in /, and nowhere else" not in policies
    assert hooks == []


def test_what_is_found_twice_for_a_release_is_said_once() -> None:
    twice = [Finding("note", "hook", "one"), Finding("note", "hook", "one")]
    assert combined([("4", twice), ("5", twice)]) == twice[:1]


def test_what_is_true_for_all_releases_is_said_once(site: Site) -> None:
    one = hooks_dirs.Directories((str(site.hooks),), (), "4")
    assert report.check(site.host, [one, replace(one, release="5")], cli.parse) == report.check(
        site.host, [one], cli.parse
    )


# The program and its Python


def test_the_program_that_checks(site: Site) -> None:
    finding = only(site.about("program"))
    assert (finding.status, finding.path) == ("ok", str(site.program))
    assert "mode 0755" in finding.found


def test_a_program_that_everybody_may_change(site: Site) -> None:
    site.program.chmod(0o777)
    finding = only(site.about("program"))
    assert (finding.status, finding.path) == ("warning", str(site.program))


@pytest.mark.parametrize(("mode", "status"), [(0o777, "warning"), (0o1777, "ok"), (0o775, "ok")])
def test_a_directory_in_which_everybody_may_replace_the_program(site: Site, mode: int, status: str) -> None:
    site.directory.chmod(mode)
    assert only(site.about("program")).status == status


def test_a_program_that_is_somebody_else_s(site: Site) -> None:
    tools.need_root()
    os.chown(site.program, 61_234, 0)
    finding = only(site.about("program"))
    assert (finding.status, finding.advice) == ("warning", f"chown root {site.program}")

    # Who checks what that user's engine runs finds nothing wrong with it.
    site.host = replace(site.host, user=61_234)
    assert only(site.about("program")).status == "ok"


def test_a_program_that_is_not_installed(site: Site) -> None:
    site.host = replace(site.host, program=None)
    assert only(site.about("program")).status == "note"
    assert statuses(site.about("hook")) == ["ok"]


def test_a_first_line_with_a_python_that_is_not_there(site: Site) -> None:
    site.program.write_text("#!/no/such/python3 -IBS\n")
    finding = only(site.about("python"))
    assert finding.status == "problem"
    assert "names /no/such/python3, which is not there: no engine can run it" in finding.found
    assert finding.advice.endswith(f"make install PYTHON={sys.executable}")


def test_a_first_line_with_a_python_that_everybody_may_change(site: Site) -> None:
    python = site.directory / "python3"
    python.write_text("")
    python.chmod(0o757)
    site.program.write_text(f"#!{python}\n")
    finding = only(site.about("python"))
    assert (finding.status, finding.path) == ("warning", str(python))


def test_a_first_line_with_another_python(site: Site) -> None:
    site.program.write_text("#!/bin/sh\n")
    finding = only(site.about("python"))
    assert (finding.status, "hooks are run by /bin/sh" in finding.found) == ("note", True)


@pytest.mark.parametrize(("own", "status"), [(True, "ok"), (False, "note")])
def test_modules_compiled_for_this_python_or_another(site: Site, own: bool, status: str) -> None:
    import importlib.util

    magic = importlib.util.MAGIC_NUMBER
    with zipfile.ZipFile(site.program, "a") as file:
        file.writestr("site-packages/archive_overlay/cli.pyc", magic if own else magic[::-1])
    assert only(site.about("python")).status == status


# The kernel


def test_a_kernel_with_overlays(site: Site) -> None:
    assert only(site.about("kernel")).found == "Linux 6.1.0-9-amd64 has overlayfs"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("modules.dep", "kernel/fs/overlayfs/overlay.ko.xz: kernel/fs/other.ko\n"),
        ("modules.builtin", "kernel/fs/overlayfs/overlay.ko\n"),
    ],
)
def test_a_kernel_that_loads_a_module_first(site: Site, name: str, line: str) -> None:
    Path(site.host.filesystems).write_text("nodev\tproc\n")
    modules = Path(site.host.modules) / site.host.release
    modules.mkdir(parents=True)
    (modules / name).write_text(f"kernel/fs/fat/fat.ko:\n{line}")

    finding = only(site.about("kernel"))

    assert (finding.status, "module" in finding.found) == ("ok", True)


@pytest.mark.parametrize(("fuse", "status"), [(True, "warning"), (False, "problem")])
def test_a_kernel_without_overlays(site: Site, fuse: bool, status: str) -> None:
    Path(site.host.filesystems).unlink()
    assert only(host.judge_kernel(site.host, fuse=fuse)).status == status


@pytest.mark.parametrize(
    ("release", "fuse", "status"),
    [
        ("5.10.0-1", True, "warning"),
        ("5.10.0-1", False, "problem"),
        ("5.11", False, "ok"),
        ("6.0", False, "ok"),
    ],
)
def test_kernels_on_which_ordinary_users_mount_overlays(
    site: Site, release: str, fuse: bool, status: str
) -> None:
    there = replace(site.host, user=1000, release=release)
    assert only(host.judge_kernel(there, fuse=fuse)).status == status


def test_defaults_that_matter_to_archives(site: Site) -> None:
    site.host = replace(site.host, user=0)
    for name in ("metacopy", "redirect_dir", "index"):
        (site.parameters / name).write_text("Y\n")

    summary, *meanings = site.about("overlay")

    assert summary.found.endswith("metacopy=on, redirect_dir=on, index=on, nfs_export=off, xino_auto=off")
    assert statuses(meanings) == ["note", "note", "warning"]
    assert all("move does the work of copy" in finding.found for finding in meanings)
    assert "an archive fails" in meanings[2].found


def test_defaults_that_do_not_reach_overlays_of_ordinary_users(site: Site) -> None:
    site.host = replace(site.host, user=1000)
    (site.parameters / "metacopy").write_text("Y\n")
    assert statuses(site.about("overlay")) == ["ok"]


def test_defaults_that_nobody_knows_yet(site: Site) -> None:
    site.host = replace(site.host, parameters=str(site.directory / "missing"))
    assert statuses(site.about("overlay")) == ["note"]


# What archives need besides


@pytest.mark.parametrize(("asked", "status"), [(False, "note"), (True, "warning")])
def test_a_mount_program_that_is_not_there(asked: bool, status: str) -> None:
    assert host.judge_mount_program("/no/such/program", asked=asked).status == status


def test_the_mount_program_that_the_arguments_name(site: Site) -> None:
    site.hook(args=["archive_overlay", f"--mount-program={site.program}"])
    finding = only(site.about("fuse-overlayfs"))
    assert (finding.status, finding.path) == ("ok", str(site.program))


def test_zstd_that_is_there_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "standard_library_zstd", lambda: None)
    monkeypatch.setattr(compress, "ZSTD_PROGRAM", "/bin/sh")
    assert host.judge_zstd().status == "ok"
    monkeypatch.setattr(compress, "ZSTD_PROGRAM", "/no/such/program")
    assert host.judge_zstd().status == "note"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_system_log_that_listens(site: Site, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.chdir(site.directory)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX, kind) as log:
        log.bind("log")
        if kind == socket.SOCK_STREAM:
            log.listen()
        there = replace(site.host, syslog="log")
        heard = host.judge_syslog(there, wanted=True)
        assert (heard.status, "journalctl -t archive_overlay" in heard.advice) == ("ok", True)
        log.setblocking(False)
        with pytest.raises(BlockingIOError):
            log.recv(1) if kind == socket.SOCK_DGRAM else log.accept()


@pytest.mark.parametrize(("wanted", "status"), [(False, "note"), (True, "warning")])
@pytest.mark.parametrize("what", ["nothing", "file", "deserted"])
def test_a_system_log_that_nobody_reads(
    site: Site, monkeypatch: pytest.MonkeyPatch, what: str, wanted: bool, status: str
) -> None:
    monkeypatch.chdir(site.directory)
    if what == "file":
        Path("log").touch()
    elif what == "deserted":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind("log")
    assert host.judge_syslog(replace(site.host, syslog="log"), wanted=wanted).status == status


def test_logs_that_nobody_keeps(site: Site) -> None:
    site.hook(args=["archive_overlay"])
    assert any("--log-level=debug" in finding.found for finding in site.about("log"))
    site.hook(args=["archive_overlay", "--syslog"])
    assert not any("--log-level=debug" in finding.found for finding in site.about("log"))


@pytest.mark.parametrize(
    ("name", "status"), [("new", "ok"), ("file", "ok"), ("", "warning"), ("missing/log", "warning")]
)
def test_a_log_file(site: Site, name: str, status: str) -> None:
    (site.directory / "file").touch()
    path = site.directory / name
    site.hook(args=["archive_overlay", f"--log-file={path}"])

    (finding,) = (finding for finding in site.about("log") if finding.path == str(path))

    assert finding.status == status
    assert stops(site.check()) == []  # archives are made without it
    assert not (site.directory / "new").exists()


@pytest.mark.parametrize(
    ("judged", "status"),
    [
        (access.judge_log_file("/dev/stdout"), "warning"),
        (access.judge_directory("/proc/self/cwd", "--allow-archive-to", made=False), "problem"),
        (access.judge_directory("/sys/x", "--rescue-dir", made=True), "problem"),
    ],
)
def test_places_of_the_kernel_s(judged: Finding, status: str) -> None:
    assert judged.status == status
    assert "which belongs to the kernel" in judged.found
    assert judged.advice


def test_a_log_file_that_is_somewhere_else_each_time(site: Site) -> None:
    assert access.judge_log_file("log").status == "warning"


# Policy and directories


def policy(site: Site, *arguments: str) -> list[Finding]:
    site.hook(args=["archive_overlay", *arguments])
    return site.about("policy")


def test_without_a_policy_annotations_are_believed(site: Site) -> None:
    believed, _, limits, carried = policy(site)
    assert (believed.status, limits.status) == ("note", "ok")
    assert "docs/security.md" in believed.advice
    assert limits.found == (
        "archives of any size, set-user-ID bits and capabilities kept, what fails is not kept"
    )
    assert carried.found == "images may be loaded into the engine's store by any name, and pushed nowhere"


@pytest.mark.parametrize(
    ("passes_on", "status", "said"),
    [
        (True, "warning", "this podman passes them on"),
        (False, "note", "this podman does not pass them on"),
        (None, "warning", "podman up to 4.5.0 passes them on"),
    ],
)
def test_what_is_done_with_annotations_of_images(
    site: Site, passes_on: bool | None, status: str, said: str
) -> None:
    site.host = replace(site.host, passes_on=passes_on)

    _, refused, *_ = policy(site)
    _, believed, *_ = policy(site, "--trust-image-annotations")

    assert (refused.status, refused.found) == ("ok", f"annotations of images are refused; {said}")
    assert (believed.status, said in believed.found) == (status, True)
    assert believed.advice == "leave --trust-image-annotations out of hook.args"


def test_the_policy_in_words(site: Site) -> None:
    allowed, _, limits, carried = policy(
        site,
        "--allow-archive-to=/srv/a",
        "--allow-archive-to=/srv/b",
        "--no-setid",
        "--max-bytes=10",
        "--max-entries=5",
        "--rescue-dir=/srv/rescue",
        "--no-fsync",
        "--allow-load-as=localhost/a",
        "--allow-push-to=docker://registry.example/b",
    )
    assert carried.found == (
        "images may be loaded into the engine's store as localhost/a, and pushed to registry.example/b"
    )
    assert carried.advice.endswith("the port is part of the host")
    assert allowed.found == "archives may be in /srv/a and /srv/b, and nowhere else"
    assert limits.found == (
        "at most 10 bytes and at most 5 entries an archive, set-user-ID bits and capabilities left out,"
        " what fails is kept in /srv/rescue, nothing is flushed to disk"
    )


def destination(site: Site, option: str, path: Path) -> Finding:
    site.hook(args=["archive_overlay", f"{option}={path}"])
    return only(site.about("destination"))


@pytest.mark.parametrize("option", ["--allow-archive-to", "--rescue-dir"])
def test_a_directory_that_can_be_written(site: Site, option: str) -> None:
    finding = destination(site, option, site.hooks)
    assert (finding.status, finding.path) == ("ok", str(site.hooks))
    assert "free" in finding.found


@pytest.mark.parametrize("option", ["--allow-archive-to", "--rescue-dir"])
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_directory_that_everybody_can_write(site: Site, option: str, mode: int) -> None:
    site.hooks.chmod(mode)
    finding = destination(site, option, site.hooks)
    assert (finding.status, f"mode {mode:04o}" in finding.found) == ("warning", True)


@pytest.mark.parametrize("option", ["--allow-archive-to", "--rescue-dir"])
def test_a_file_in_place_of_a_directory(site: Site, option: str) -> None:
    finding = destination(site, option, site.program)
    assert (finding.status, "is not a directory" in finding.found) == ("problem", True)


def test_archives_are_in_directories_that_are_there(site: Site) -> None:
    path = site.directory / "missing"
    finding = destination(site, "--allow-archive-to", path)
    assert (finding.status, finding.advice) == ("problem", f"mkdir -p {path}")


def test_a_rescue_directory_is_made_when_it_is_needed(site: Site) -> None:
    finding = destination(site, "--rescue-dir", site.directory / "new" / "rescue")
    assert (finding.status, "is made" in finding.found) == ("ok", True)
    assert not (site.directory / "new").exists()


def test_a_rescue_directory_that_cannot_be_made(site: Site) -> None:
    finding = destination(site, "--rescue-dir", site.program / "rescue")
    assert (finding.status, "cannot be made" in finding.found) == ("problem", True)
