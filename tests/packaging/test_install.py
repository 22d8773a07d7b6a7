"""make install and make uninstall, and what they put where."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.conftest import DOCUMENTS, PATH, TOP, Change, broken_links, built_checkout, checkout, run
from tests.support import tools

KEY = "com.launchplatform.oci-hooks.archive-overlay"

INSTALLED = {
    "usr/bin/archive_overlay": 0o755,
    "usr/lib/systemd/system/archive_overlay-recover.service": 0o644,
    "usr/lib/systemd/user/archive_overlay-recover.service": 0o644,
    "usr/share/bash-completion/completions/archive_overlay": 0o644,
    "usr/share/containers/oci/hooks.d/archive_overlay.json": 0o644,
    "usr/share/doc/archive_overlay/debug/archive_overlay.json": 0o644,
    "usr/share/zsh/site-functions/_archive_overlay": 0o644,
    **{f"usr/share/doc/archive_overlay/{name}": 0o644 for name in DOCUMENTS},
    **{f"usr/share/man/man1/{page.name}": 0o644 for page in (TOP / "man").glob("*.1")},
    **{
        f"usr/share/fish/vendor_completions.d/{path.name}": 0o644
        for path in (TOP / "completions").glob("*.fish")
    },
}


def make(source: Path, *arguments: str, umask: int = 0o022) -> str:
    """Run make in a checkout, without the variables that a make around the tests may have set."""
    tools.need("make")
    done = subprocess.run(
        ["make", "--silent", *arguments],
        cwd=source,
        env={"PATH": PATH},
        umask=umask,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def files(top: Path) -> dict[str, tuple[int, bytes]]:
    """Give mode and contents of all files below a directory, by their paths relative to it."""
    return {
        str(path.relative_to(top)): (path.stat().st_mode & 0o7777, path.read_bytes())
        for path in top.rglob("*")
        if not path.is_dir()
    }


@pytest.fixture
def source(tmp_path: Path, executable: Path) -> Path:
    """Give a checkout in which the program is built."""
    return built_checkout(tmp_path / "source", executable)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, executable: Path) -> Path:
    """Give a directory into which the program was installed, for tests that change nothing in it."""
    directory: Path = tmp_path_factory.mktemp("installed") / "stage dir"
    source = built_checkout(tmp_path_factory.mktemp("installed-from") / "source", executable)
    make(source, "install", f"DESTDIR={directory}")
    return directory


@pytest.fixture
def stage(source: Path, tmp_path: Path) -> Path:
    """Give a directory into which the program was installed, for one test."""
    directory = tmp_path / "stage dir"
    make(source, "install", f"DESTDIR={directory}")
    return directory


def test_install_puts_each_file_where_a_distribution_wants_them(installed: Path) -> None:
    assert {path: mode for path, (mode, _) in files(installed).items()} == INSTALLED


def test_the_installed_program_runs(installed: Path, change: Change) -> None:
    change.expect_saved(run([installed / "usr/bin/archive_overlay"], change))


def test_the_file_that_make_is_told_of_is_installed(source: Path, tmp_path: Path) -> None:
    (source / "dist/archive_overlay.pyz").rename(source / "other.pyz")
    make(source, "install", "PROGRAM=other.pyz", f"DESTDIR={tmp_path / 'stage'}")
    assert (tmp_path / "stage/usr/bin/archive_overlay").read_bytes() == (source / "other.pyz").read_bytes()


def test_installing_again_changes_nothing(source: Path, stage: Path) -> None:
    first = files(stage)
    make(source, "install", f"DESTDIR={stage}")
    assert files(stage) == first


def test_modes_do_not_depend_on_the_umask(source: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    make(source, "install", f"DESTDIR={stage}", umask=0o077)
    assert {path: mode for path, (mode, _) in files(stage).items()} == INSTALLED
    directories = {path for path in stage.rglob("*") if path.is_dir()}
    assert {path.stat().st_mode & 0o7777 for path in directories} == {0o755}


# What was there before: directories that are empty, or hold what belongs to others.
THERE_BEFORE = ("usr/share/zsh/site-functions", "usr/local/bin", "opt/shared/man/man1", "etc/containers/oci")
OTHERS = ("usr/share/containers/oci/hooks.d/other.json", "opt/shared/README", "opt/shared/man/man1/other.1")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"PREFIX": "/usr/local"},
        {"DOCDIR": "/opt/shared", "MANDIR": "/opt/shared/man", "HOOKSDIR": "/etc/containers/oci/hooks.d"},
        {"PREFIX": "/opt/a b", "BINDIR": "/", "DOCDIR": "/opt/a b", "SYSTEMDDIR": "/opt/a b"},
    ],
    ids=str,
)
def test_uninstall_leaves_what_was_there_before_and_nothing_else(
    source: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    stage = tmp_path / "a stage"
    for name in (*THERE_BEFORE, *(str(Path(other).parent) for other in OTHERS)):
        (stage / name).mkdir(parents=True, exist_ok=True)
    for other in OTHERS:
        (stage / other).touch()
    before = sorted(stage.rglob("*"))
    arguments = [f"DESTDIR={stage}", *(f"{name}={value}" for name, value in variables.items())]
    make(source, "install", *arguments)
    assert len(files(stage)) == len(INSTALLED) + len(OTHERS)
    make(source, "install", *arguments)
    make(source, "uninstall", *arguments)
    assert sorted(stage.rglob("*")) == before


def test_uninstall_removes_what_an_earlier_version_installed(source: Path, tmp_path: Path) -> None:
    (source / "docs/old").mkdir()
    (source / "docs/old/page.md").touch()
    arguments = (f"PREFIX={tmp_path}/there", f"DOCDIR={tmp_path}/there/doc")
    make(source, "install", *arguments)
    (source / "docs/old/page.md").unlink()
    (source / "docs/old").rmdir()
    make(source, "uninstall", *arguments)
    assert not (tmp_path / "there").exists()


def test_another_checkout_uninstalls_all_files_and_the_documentation(source: Path, stage: Path) -> None:
    (source / ".cache/installed").rename(source / ".cache/away")
    make(source, "uninstall", f"DESTDIR={stage}")
    assert files(stage) == {}
    assert not (stage / "usr/share/doc/archive_overlay").exists()
    assert (stage / "usr/bin").exists()


def test_uninstalling_what_is_not_there_is_not_an_error(source: Path, tmp_path: Path) -> None:
    make(source, "uninstall", f"DESTDIR={tmp_path / 'nothing'}")


def test_where_podman_does_not_look_it_says_what_to_do(source: Path, tmp_path: Path) -> None:
    assert make(source, "install", f"DESTDIR={tmp_path}/1") == ""
    said = make(source, "install", f"DESTDIR={tmp_path}/2", "PREFIX=/usr/local")
    assert "/etc/containers/containers.conf.d/50-archive_overlay.conf" in said
    (hooks_dir,) = re.findall(r"^    hooks_dir = (\[.*\])$", said, re.MULTILINE)
    ours = "/usr/local/share/containers/oci/hooks.d"
    assert json.loads(hooks_dir) == ["/usr/share/containers/oci/hooks.d", ours]
    hook = json.loads((tmp_path / f"2{ours}/archive_overlay.json").read_text())
    assert hook["hook"]["path"] == "/usr/local/bin/archive_overlay"


def test_links_between_the_installed_documents_work(installed: Path) -> None:
    assert broken_links(installed / "usr/share/doc/archive_overlay") == []


@pytest.mark.parametrize("where", ["usr/share/containers/oci/hooks.d", "usr/share/doc/archive_overlay/debug"])
def test_the_hook_has_the_path_that_the_program_will_have(installed: Path, where: str) -> None:
    hook = json.loads((installed / where / "archive_overlay.json").read_text())
    assert hook["hook"]["path"] == "/usr/bin/archive_overlay"


def test_every_directory_can_be_chosen(source: Path, tmp_path: Path) -> None:
    make(
        source,
        "install",
        f"DESTDIR={tmp_path / 'stage'}",
        "PREFIX=/opt/a&b",
        "BINDIR=/opt/lib exec",
        "MANDIR=/opt/man",
        "HOOKSDIR=/etc/containers/oci/hooks.d",
        "BASHCOMPDIR=/opt/bash",
        "ZSHCOMPDIR=/opt/zsh",
        "FISHCOMPDIR=/opt/fish",
        "SYSTEMDDIR=/etc/systemd",
    )
    assert {name for name in files(tmp_path / "stage") if "/share/doc/" not in name} == {
        "opt/lib exec/archive_overlay",
        *(f"opt/man/man1/{page.name}" for page in (TOP / "man").glob("*.1")),
        "opt/bash/archive_overlay",
        "opt/zsh/_archive_overlay",
        *(f"opt/fish/{path.name}" for path in (TOP / "completions").glob("*.fish")),
        "etc/systemd/system/archive_overlay-recover.service",
        "etc/systemd/user/archive_overlay-recover.service",
        "etc/containers/oci/hooks.d/archive_overlay.json",
    }
    assert (tmp_path / "stage/opt/a&b/share/doc/archive_overlay/debug/archive_overlay.json").exists()
    hook = json.loads((tmp_path / "stage/etc/containers/oci/hooks.d/archive_overlay.json").read_text())
    assert hook["hook"]["path"] == "/opt/lib exec/archive_overlay"


def test_systemd_understands_the_units_and_runs_recover_before_all_services(
    source: Path, tmp_path: Path
) -> None:
    tools.need("systemd-analyze")
    make(source, "install", f"PREFIX={tmp_path}/a b", f"DOCDIR={tmp_path}/doc")
    unit = "archive_overlay-recover.service"
    for whose in ("system", "user"):
        path = tmp_path / f"a b/lib/systemd/{whose}/{unit}"
        done = subprocess.run(
            ["systemd-analyze", "verify", f"--{whose}", "--man=no", "--recursive-errors=one", path],
            env={"PATH": PATH, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, [line for line in done.stderr.splitlines() if unit in line]) == (0, [])
        text = path.read_text()
        assert f'ExecStart="{tmp_path}/a b/bin/archive_overlay" recover\n' in text
        assert re.search("^DefaultDependencies=no$", text, re.MULTILINE)
        before = {name for line in re.findall("^Before=(.*)$", text, re.MULTILINE) for name in line.split()}
        assert before >= {"basic.target", "podman-restart.service", "podman.socket"}


def test_the_prefix_may_hold_what_sed_would_take_for_a_command(source: Path, tmp_path: Path) -> None:
    make(source, "install", f"DESTDIR={tmp_path / 'stage'}", "PREFIX=/opt/a&b|c")
    hook = tmp_path / "stage/opt/a&b|c/share/containers/oci/hooks.d/archive_overlay.json"
    assert json.loads(hook.read_text())["hook"]["path"] == "/opt/a&b|c/bin/archive_overlay"


def test_make_builds_anew_when_a_module_is_gone(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    extra = source / "archive_overlay/extra.py"
    extra.write_text("")
    make(source)
    built = source / "dist/archive_overlay.pyz"
    assert b"extra.py" in built.read_bytes()
    extra.unlink()
    make(source)
    assert b"extra.py" not in built.read_bytes()


def test_make_builds_anew_for_another_interpreter(source: Path) -> None:
    make(source, "PYTHON=/opt/not/here/python3")
    first_line = (source / "dist/archive_overlay.pyz").read_bytes().split(b"\n")[0]
    assert first_line.startswith(b"#!/opt/not/here/python3 ")


@pytest.fixture
def active(installed: Path) -> dict[str, Any]:
    """Give the hook configuration that engines read."""
    configuration: dict[str, Any] = json.loads(
        (installed / "usr/share/containers/oci/hooks.d/archive_overlay.json").read_text()
    )
    return configuration


def test_the_hook_is_a_poststop_hook_of_version_1(active: dict[str, Any]) -> None:
    assert active["version"] == "1.0.0"
    assert active["stages"] == ["poststop"]
    assert set(active) == {"version", "hook", "when", "stages"}


@pytest.mark.parametrize(
    ("keys", "matches"),
    [
        ((f"{KEY}.data.mount-point", f"{KEY}.data.archive-to"), True),
        ((f"{KEY}.data.mount-point", f"{KEY}.data.archive-to", "other"), True),
        ((f"{KEY}.data.mount-point",), True),
        ((f"{KEY}.data.archive-to",), True),
        ((f"{KEY}.data.mount-points", f"{KEY}.data.archive-tot"), True),
        (("other",), False),
        ((f"x{KEY}.data.mount-point", f"x{KEY}.data.archive-to"), False),
        ((KEY.replace(".", "-") + ".data.mount-point", KEY.replace(".", "-") + ".data.archive-to"), False),
        (("com_launchplatform.oci-hooks.archive-overlay.d.mount-point", "archive-to"), False),
    ],
)
def test_the_hook_is_for_containers_with_any_annotation_of_ours(
    active: dict[str, Any], keys: tuple[str, ...], matches: bool
) -> None:
    # oci-hooks(5): each pattern of a key has to match some annotation whose value matches, too. These
    # patterns mean the same to Python as to Go.
    patterns = active["when"]["annotations"]
    assert set(active["when"]) == {"annotations"}
    fires = all(
        any(re.search(key, name) and re.search(value, "/data") for name in keys)
        for key, value in patterns.items()
    )
    assert fires == matches


def test_the_debug_variant_differs_in_what_it_logs_alone(installed: Path, active: dict[str, Any]) -> None:
    debug = json.loads((installed / "usr/share/doc/archive_overlay/debug/archive_overlay.json").read_text())
    assert debug["hook"].pop("args") == ["archive_overlay", "--log-level=trace", "--syslog"]
    assert active["hook"].pop("args") == ["archive_overlay", "--syslog"]
    assert debug == active
