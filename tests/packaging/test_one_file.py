"""The built file, in the surroundings that container engines and their hosts make for it."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import gzip
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from archive_overlay import __version__
from tests.packaging import pythons
from tests.packaging.conftest import PATH, TOP, Change, run
from tests.support import hooks, tools

# The options of the built file's first line.
OPTIONS = "-IBSXutf8"

# fcntl(2); the fcntl module has it since Python 3.10 only.
F_SETPIPE_SZ = 1031

# System calls that make or change something in a file system, in strace's words.
WRITING = (
    "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,truncate,chmod,fchmodat,chown,lchown,fchownat,"
    "utimensat,setxattr,lsetxattr,mount"
)


def test_it_runs_with_an_empty_environment(executable: Path, change: Change) -> None:
    change.expect_saved(run([executable], change, env={}))


def test_it_runs_without_a_home(executable: Path, change: Change, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("not even a directory")
    change.expect_saved(run([executable], change, env={"HOME": str(home), "XDG_CACHE_HOME": str(home)}))


def test_it_runs_on_a_read_only_file_system(executable: Path, change: Change, tmp_path: Path) -> None:
    tools.need_root()
    tools.need("unshare", "mount")
    # All mounts read-only but the one that archives go to.
    script = """
        mount --bind "$1" "$1"
        while read -r _ _ _ _ where _; do
            case $where in
                /proc*|/sys*|"$1") ;;
                *) mount -o remount,bind,ro "$(printf %b "$where")" 2>/dev/null || true ;;
            esac
        done </proc/self/mountinfo
        for place in / /root /tmp "${2%/*}" "${1%/*}"; do
            ! touch "$place/written" 2>/dev/null || { echo "$place is writable"; exit 99; }
        done
        cd /
        exec "$2"
    """
    command = ["unshare", "--mount", "sh", "-euc", script, "sh", str(change.out), str(executable)]
    change.expect_saved(run(command, change, env={"PATH": PATH}))


def test_it_runs_as_a_user_that_is_not_mapped(executable: Path, change: Change) -> None:
    tools.need("unshare")
    # Its own files seem to belong to nobody, and so does it.
    done = run(["unshare", "--user", executable], change, env={"PATH": PATH})
    change.expect_saved(done)


def test_it_runs_in_a_directory_that_is_gone(executable: Path, change: Change, tmp_path: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0"'
    change.expect_saved(run(["sh", "-euc", script, executable], change, cwd=tmp_path))


def test_it_runs_in_a_directory_of_hostile_modules(executable: Path, change: Change, hostile: Path) -> None:
    change.expect_saved(run([executable], change, cwd=hostile))


def test_it_runs_by_a_relative_path(executable: Path, change: Change) -> None:
    change.expect_saved(run([f"./{executable.name}"], change, cwd=executable.parent))


@pytest.mark.parametrize("name", ["archive overlay.pyz", "größe", "%s:;$HOME"])
def test_it_runs_from_a_path_with_spaces(executable: Path, change: Change, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "with spaces"
    directory.mkdir()
    change.expect_saved(run([shutil.copy(executable, directory / name)], change))


def test_it_runs_with_a_hostile_environment(executable: Path, change: Change, hostile: Path) -> None:
    hostile_environment = {
        "PYTHONPATH": str(hostile),
        "PYTHONHOME": "/nonexistent",
        "PYTHONSTARTUP": str(hostile / "json.py"),
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
        "PYTHONWARNINGS": "error",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
        "PYTHONPYCACHEPREFIX": str(hostile / "cache"),
        "PYTHONUSERBASE": str(hostile),
        "PYTHONPLATLIBDIR": str(hostile),
        "SHIV_ROOT": "/nonexistent",
        "SHIV_FORCE_EXTRACT": "1",
        "SHIV_COMPILE_PYC": "1",
        "SHIV_ENTRY_POINT": "json:loads",
        "SHIV_MODULE": "json",
        "SHIV_INTERPRETER": "1",
        "SHIV_CONSOLE_SCRIPT": "json",
        "SHIV_PREPEND_PYTHONPATH": str(hostile),
        "TMPDIR": "/nonexistent",
        "HOME": str(hostile),
        "COLUMNS": "x",
        "POSIXLY_CORRECT": "1",
    }
    done = run([executable], change, env=hostile_environment)
    change.expect_saved(done)
    assert b"import " not in done.stderr, "PYTHONVERBOSE was heard"
    assert not (hostile / "cache").exists()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Give a directory of modules that end the program when it imports one of them."""
    directory = tmp_path / "hostile"
    directory.mkdir()
    names = (
        "archive_overlay",
        "argparse",
        "codecs",
        "encodings",
        "errno",
        "fcntl",
        "io",
        "json",
        "marshal",
        "os",
        "posix",
    )
    for name in (
        *names,
        "re",
        "shiv",
        "site",
        "sitecustomize",
        "stat",
        "time",
        "usercustomize",
        "zipimport",
        "zlib",
    ):
        (directory / f"{name}.py").write_text("import sys\nsys.exit('imported from a hostile directory')\n")
    return directory


def test_names_keep_their_bytes_under_a_latin_1_locale(
    executable: Path, change: Change, tmp_path: Path
) -> None:
    tools.need("localedef")
    made = subprocess.run(
        ["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / "en_US.ISO-8859-1"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not (tmp_path / "en_US.ISO-8859-1").exists():
        tools.cannot_run(f"localedef makes no Latin-1 locale ({made.stderr.strip()})")
    environment = {"LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1"}
    encoding = "import sys; print(sys.getfilesystemencoding())"
    asked = subprocess.run(
        ["/usr/bin/python3", "-c", encoding], env=environment, capture_output=True, check=True
    )
    assert asked.stdout.strip() == b"iso8859-1", "the locale is not in force: this would test nothing"

    change.expect_saved(run([executable], change, env=environment))


@pytest.mark.parametrize("how", ["renamed over", "overwritten"])
def test_it_runs_to_its_end_when_the_file_is_replaced_meanwhile(
    executable: Path, change: Change, tmp_path: Path, how: str
) -> None:
    program = tmp_path / "program"
    shutil.copy(executable, program)
    keys: dict[str, str] = {}
    archives = []
    for number in range(60):
        method = "tar.gz" if number % 2 else "copy"
        archives.append(tmp_path / "many" / f"archive-{number:03}-{'x' * 100}")
        keys |= hooks.annotations(
            f"a{number:03}", mount_point="/data", archive_to=archives[-1], method=method
        )
    bundle = hooks.Bundle(change.bundle.directory, mounts=change.bundle.spec["mounts"][2:], annotations=keys)
    # One debug line and one info line for each archive are much more than this pipe holds: while nobody
    # reads, the hook waits, with most of its work ahead of it.
    with subprocess.Popen(
        [program, "--log-level=debug"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={}, bufsize=0
    ) as hook:
        assert hook.stdin is not None
        assert hook.stderr is not None
        fcntl.fcntl(hook.stderr, F_SETPIPE_SZ, 4096)
        hook.stdin.write(bundle.state())
        hook.stdin.close()
        said = b""
        while b"archive a" not in said:
            block = hook.stderr.read(100)
            assert block, f"the hook ended before it began: {said!r}"
            said += block
        if how == "renamed over":
            (tmp_path / "new").write_bytes(b"#!/bin/sh\n" + b"exit 1\n" * 100_000)
            os.replace(tmp_path / "new", program)
        else:
            program.write_bytes(b"#!/bin/sh\n")
        assert not archives[-1].exists(), "the hook was done before the file was replaced"
        said += hook.stderr.read()
    assert hook.returncode == 0, said.decode()
    assert [archive for archive in archives if not archive.exists()] == []


def has_open(process: int, path: Path) -> bool:
    """Say whether a process has a file open."""
    links = []
    for fd in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(fd.readlink())
    return path in links


def test_no_module_of_another_version_runs_with_those_of_this_one(
    executable: Path, change: Change, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    shutil.copy(executable, program)
    layout = tmp_path / "layout"
    keys = hooks.annotations("data", mount_point="/data", archive_to=layout, method="oci", keep="last=1")
    bundle = hooks.Bundle(change.bundle.directory, mounts=change.bundle.spec["mounts"][2:], annotations=keys)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={}) as hook:
        while not has_open(hook.pid, program):
            assert hook.poll() is None
        # From here on it waits for the state, if not before.
        with zipfile.ZipFile(executable) as this, zipfile.ZipFile(tmp_path / "new", "w") as other:
            for name in this.namelist():
                if name.endswith(".py"):
                    other.writestr(name, "raise SystemExit('another version')")
        os.replace(tmp_path / "new", program)
        said = hook.communicate(bundle.state())[1].decode()
    assert (hook.returncode, "level=warning" in said) == (0, False), said
    assert (layout / "index.json").exists()


def test_every_python_that_is_promised_is_tried() -> None:
    if pythons.MISSING:
        tools.cannot_run(f"no Python {', '.join(pythons.MISSING)} (`make roots` makes them)")


@pytest.mark.parametrize("python", pythons.SUPPORTED, ids=str)
def test_it_runs_on_every_python_from_one_build(
    executable: Path, change: Change, python: pythons.Python
) -> None:
    change.expect_saved(run([python.path, OPTIONS, executable], change))


# Runs a zip file as the interpreter does, but that no module has a __loader__: from Python 3.16 on, none will.
WITHOUT_LOADERS = """
import sys, zipimport
import _frozen_importlib as machinery

complete = machinery._init_module_attrs

def without_loader(spec, module, **options):
    complete(spec, module, **options)
    vars(module).pop("__loader__", None)
    return module

machinery._init_module_attrs = without_loader
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0])
spec = machinery.ModuleSpec("__main__", zipimport.zipimporter(sys.argv[0]), origin=sys.argv[0] + "/__main__.py")
exec(spec.loader.get_code("__main__"), {"__name__": "__main__", "__spec__": spec})
"""


@pytest.mark.parametrize("python", pythons.SUPPORTED, ids=str)
def test_it_runs_where_modules_have_no_loaders(
    executable: Path, change: Change, tmp_path: Path, python: pythons.Python
) -> None:
    without_loaders = [python.path, OPTIONS, "-c", WITHOUT_LOADERS, str(executable)]

    change.expect_saved(run(without_loaders, change))

    checked = subprocess.run(
        [*without_loaders, "check", "--json", f"--hooks-dir={tmp_path}"], capture_output=True, check=False
    )
    assert json.loads(checked.stdout)["program"] == str(executable), checked.stderr.decode()


def test_every_python_writes_the_same_tar(executable: Path, change: Change) -> None:
    seen = set()
    for python in pythons.SUPPORTED:
        run([python.path, OPTIONS, executable], change)
        # What zlib makes of it is the business of each Python's zlib.
        seen.add(gzip.decompress(change.tar.read_bytes()))
    assert len(seen) == 1


@pytest.mark.parametrize("python", pythons.SUPPORTED, ids=str)
def test_every_module_imports_without_site_packages(executable: Path, python: pythons.Python) -> None:
    with zipfile.ZipFile(executable) as built:
        paths = [name[len("site-packages/") : -3] for name in built.namelist() if name.endswith(".py")]
    names = [path.replace("/", ".") for path in paths if not path.endswith("__main__") and path]
    script = "import sys; sys.path.insert(0, sys.argv[1]); [__import__(name) for name in sys.argv[2:]]"
    subprocess.run([python.path, "-IS", "-c", script, f"{executable}/site-packages", *names], check=True)


def test_an_older_python_gets_one_line(executable: Path, change: Change) -> None:
    # Also where no older Python is at hand: the first lines of the main module are read by this one.
    pretend = (
        "import sys, runpy; sys.version = '3.6.15 (default)'; sys.version_info = (3, 6, 15);"
        f"runpy.run_path({str(executable)!r}, run_name='__main__')"
    )
    commands = [["/usr/bin/python3", "-ISc", pretend]]
    commands += [[python.path, str(executable)] for python in pythons.TOO_OLD]
    for command in commands:
        done = run(command, change)
        assert done.returncode == 1
        assert re.fullmatch(rb"archive_overlay needs Python 3\.9 or later; this is [0-9.+]+\n", done.stderr)


def test_the_main_module_is_read_by_older_pythons(executable: Path) -> None:
    with zipfile.ZipFile(executable) as built:
        ast.parse(built.read("__main__.py"), feature_version=(3, 4))


def test_it_writes_archives_and_nothing_else(executable: Path, change: Change, tmp_path: Path) -> None:
    tools.need("strace")
    trace = tmp_path / "trace"
    done = run(
        ["strace", "-f", "-y", "-o", trace, "-e", f"trace={WRITING}", executable], change, env={"PATH": PATH}
    )
    change.expect_saved(done)
    written = set()
    for line in trace.read_text(errors="surrogateescape").splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)", line)
        if not call or (call[1].startswith("open") and not re.search(r"O_(CREAT|WRONLY|RDWR)", call[2])):
            continue
        paths = re.findall(r'(?:\b(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"', call[2])
        # The first of a symlink's paths is what it says, not what is written.
        for directory, path in paths[call[1].startswith("symlink") :]:
            written.add(os.path.normpath(os.path.join(directory, path)))
    assert any(str(change.out) in path for path in written), "the trace shows nothing: this tests nothing"
    allowed = (str(change.out), "/dev/null")
    own = {path for path in written if path.startswith("/proc/self/fd/")}
    assert [path for path in sorted(written - own) if not path.startswith(allowed)] == []


def test_it_reads_no_environment_variable() -> None:
    # Names through which the standard library gives or uses the environment.
    forbidden = {"environ", "environb", "getenv", "getenvb", "expanduser", "expandvars", "gettempdir"}
    forbidden |= {"tempfile", "shutil", "getpass", "mkstemp", "which", "execvp", "popen", "system"}
    used = set()
    for path in (TOP / "archive_overlay").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(node, "attr", ""), getattr(node, "id", ""), getattr(node, "module", "") or ""]
            names += [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            used |= {(path.name, name) for name in names if name in forbidden}
    # What people want to see on their terminals; the hook loads no such module.
    assert used - {("terminal.py", "environ")} == set()
    terminal = (TOP / "archive_overlay/commands/terminal.py").read_text()
    assert set(re.findall(r'environ\.get\("(\w+)"', terminal)) == {"NO_COLOR", "TERM", "COLUMNS"}
    assert terminal.count("os.environ") == 3


def test_it_starts_from_compiled_modules(executable: Path, change: Change) -> None:
    # Compiling takes longer than all else that an empty archive costs.
    script = (
        "import sys, builtins; real = builtins.compile\n"
        "def seen(source, name, *rest, **more):\n"
        "    assert 'site-packages' not in str(name), f'compiled at run time: {name}'\n"
        "    return real(source, name, *rest, **more)\n"
        "builtins.compile = seen\n"
        f"import runpy; runpy.run_path({str(executable)!r}, run_name='__main__')"
    )
    change.expect_saved(run(["/usr/bin/python3", OPTIONS, "-c", script], change))


def test_help_and_version_answer_on_stdout(executable: Path) -> None:
    asked = subprocess.run([executable, "--version"], capture_output=True, text=True, env={}, check=True)
    assert asked.stdout == f"archive_overlay version {__version__}\n"
    asked = subprocess.run([executable, "--help"], capture_output=True, text=True, env={}, check=True)
    assert asked.stdout.startswith("usage: archive_overlay ")


def test_an_unknown_option_is_a_wrong_command_line(executable: Path) -> None:
    done = subprocess.run([executable, "--nonsense"], capture_output=True, text=True, env={}, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: archive_overlay ")
    assert "--nonsense" in done.stderr
