"""Put faults into modules that promise much, one at a time, and say which ones their tests do not notice.

    tools/mutants.py [MODULE...]        all modules of the table below, or some: archive_overlay/hook/policy.py

A fault that is neither noticed nor in the list of equivalents is a failure: write the test that sees it. Faults are put into
a copy, in .cache/mutants/tree; the tools are those of mutants.txt, in .cache/mutants/venv.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
CACHE = TOP / ".cache" / "mutants"
VENV = CACHE / "venv"
TREE = CACHE / "tree"

# The tests that hold a module. They are run for each fault, so they have to be fast.
TESTS = {
    "archive_overlay/destination/apart.py": ("tests/unit/destination/test_apart.py",),
    "archive_overlay/destination/marker.py": ("tests/unit/destination/test_marker.py",),
    "archive_overlay/destination/merge.py": ("tests/unit/destination/test_merge.py",),
    "archive_overlay/destination/names.py": (
        "tests/unit/destination/test_names.py",
        "tests/unit/destination/test_staging.py",
    ),
    "archive_overlay/destination/publish.py": (
        "tests/unit/destination/test_publish.py",
        "tests/integration/destination/test_mount_points.py",
    ),
    "archive_overlay/destination/staging.py": (
        "tests/unit/destination/test_staging.py",
        "tests/unit/destination/test_publish.py",
    ),
    "archive_overlay/hook/ledger.py": ("tests/unit/hook/test_ledger.py",),
    "archive_overlay/hook/policy.py": ("tests/unit/hook/test_policy.py",),
    "archive_overlay/hook/hook.py": ("tests/unit/hook/test_archive_one.py", "tests/unit/hook/test_hook.py"),
    "archive_overlay/hook/rescue.py": ("tests/unit/hook/test_rescue.py",),
    "archive_overlay/hook/rescue_dir.py": ("tests/unit/hook/test_rescue_dir.py",),
    "archive_overlay/layout/add_layer.py": ("tests/unit/layout/test_add_layer.py",),
    "archive_overlay/layout/lock.py": ("tests/unit/layout/test_add_layer.py",),
    "archive_overlay/overlay/links.py": ("tests/unit/overlay/test_find_overlay.py",),
    "archive_overlay/overlay/locate.py": (
        "tests/unit/overlay/test_find_overlay.py",
        "tests/integration/overlay/test_store.py",
    ),
    "archive_overlay/overlay/mount_programs.py": ("tests/unit/overlay/test_find_overlay.py",),
    "archive_overlay/overlay/options.py": (
        "tests/unit/overlay/test_options.py",
        "tests/unit/overlay/test_find_overlay.py",
    ),
    "archive_overlay/system/kernel.py": ("tests/unit/system/test_kernel.py",),
}

# Operators whose mutants say no more than those of others: an operator is replaced by its opposite and by its
# neighbour, not by each of ten. `|` is nearly always a type's.
EXCLUDED = (
    r"core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_Add|BitAnd_BitOr)",
    r"core/ReplaceComparisonOperator_(?!Eq_NotEq|NotEq_Eq|Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt)|Is_|IsNot_)",
    r"core/ReplaceComparisonOperator_(Is|IsNot)_(?!Is)",
    r"core/ReplaceUnaryOperator_(?!Delete_Not)",
)

# What is read by type checkers alone.
FOR_TYPES = ("if TYPE_CHECKING: => if not TYPE_CHECKING:", "TYPE_CHECKING = False => TYPE_CHECKING = True")

# Faults that change nothing that anybody can see, as "what is written => what is put in its place", and why.
_NEVER_0 = "what the hook opens is never descriptor 0: its state comes from there"
_PRCTL = "_libc.prctl(_SET_PARENT_DEATH_SIGNAL, signals.KILL, {}):"
_INDEX = "index = read_index(layout) if layout {} and not _is_new(layout) else None"

EQUIVALENT: dict[str, dict[str, str]] = {
    "archive_overlay/destination/apart.py": {"return None => pass": "it is what a function returns"},
    "archive_overlay/destination/marker.py": {
        "return False => pass": "nothing is false, too",
        'fail(f"cannot look at success {path}", error) => pass': "keep_apart has looked at it a moment ago",
        "except OSError as error: => except CosmicRayTestingException as error:": "the same",
    },
    "archive_overlay/destination/publish.py": {
        "return None => pass": "it is what a function returns",
        "return False => pass": "nothing is false, too",
        "_ATTEMPTS = 100 => _ATTEMPTS = 99": "any such number will do",
        "_ATTEMPTS = 100 => _ATTEMPTS = 101": "any such number will do",
    },
    "archive_overlay/destination/staging.py": {
        "return None => pass": "it is what a function returns",
        "while self.directory < 0: => while self.directory < 1:": _NEVER_0,
        "while self.directory < 0: => while self.directory <= 0:": _NEVER_0,
        "if self.directory >= 0: => if self.directory >= 1:": _NEVER_0,
        "if self.directory >= 0: => if self.directory >= -1:": "where there is none, nothing is found to be removed",
        "if self.directory >= 0: => if self.directory > 0:": _NEVER_0,
        "if fd >= 0: => if fd >= 1:": _NEVER_0,
        "if fd >= 0: => if fd > 0:": _NEVER_0,
        "if fd >= 0: => if fd >= -1:": "closing it fails, which is passed over",
        "except OSError: => except CosmicRayTestingException:": "nothing was written to what is closed",
        **{
            f"self.directory = self.parent = -1 => {other}": "nobody leaves twice"
            for other in ("pass", "self.directory = self.parent = - 0", "self.directory = self.parent = - 2")
        },
        "self.parent = self.directory = -1 => self.parent = self.directory = - 2": "no descriptor is negative",
    },
    "archive_overlay/hook/hook.py": {
        f"if change.fd >= 0:  # nearly all => if change.fd {other}:  # nearly all": _NEVER_0
        for other in ("> 0", ">= 1")
    },
    "archive_overlay/layout/add_layer.py": {
        f"{_INDEX.format('>= 0')} => {_INDEX.format('>= 1')}": _NEVER_0,
        f"{_INDEX.format('>= 0')} => {_INDEX.format('> 0')}": _NEVER_0,
        "if layout >= 0: => if layout >= 1:": _NEVER_0,
        "layout = -1 => layout = - 2": "no descriptor is negative",
        "if layout >= 0: => if layout > 0:": _NEVER_0,
    },
    "archive_overlay/system/kernel.py": {
        f"if {_PRCTL.format('0, 0, 0')} => if {_PRCTL.format(other)}": "the kernel does not read these"
        for other in ("1, 0, 0", "-1, 0, 0", "0, 1, 0", "0, -1, 0", "0, 0, 1", "0, 0, -1")
    },
}

# The shortest time that a run of the tests may take, in seconds: some faults make a loop endless.
_PATIENCE = 20


def main(modules: list[str]) -> int:
    """Try the faults of some modules."""
    unknown = sorted(set(modules) - TESTS.keys())
    if unknown:
        print(f"mutants.py: no tests are known for {', '.join(unknown)}; those known are {', '.join(TESTS)}")
        return 2
    set_up()
    survivors = 0
    for module in modules or TESTS:
        copy_tree()
        survivors += try_module(module)
    return 1 if survivors else 0


def set_up() -> None:
    """Make the environment of Cosmic Ray. The stamp, a copy of the lock, is written last."""
    lock = TOP / "tools" / "mutants.txt"
    stamp = VENV / "stamp"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-I", "-m", "venv", VENV], check=True)
    # yattag has no wheel. What builds one comes first, from the other lock: pip would get the newest.
    builders = VENV / "builders"
    entries = (TOP / "tools" / "lock.sh", "--entries", "setuptools", "packaging", "tomli")
    builders.write_bytes(subprocess.run(entries, check=True, stdout=subprocess.PIPE).stdout)
    pip = (VENV / "bin" / "python", "-I", "-m", "pip", "install", "--quiet", "--require-hashes")
    for requirements in (builders, lock):
        subprocess.run([*pip, "--no-build-isolation", "-r", requirements], check=True)
    (packages,) = (VENV / "lib").glob("python3*/site-packages")
    (packages / "mutant_operators.pth").write_text(f"{TOP / 'tools'}\n")
    ours = packages / "mutant_operators-1.dist-info"
    ours.mkdir()
    (ours / "METADATA").write_text("Metadata-Version: 2.1\nName: mutant-operators\nVersion: 1\n")
    (ours / "entry_points.txt").write_text(
        "[cosmic_ray.operator_providers]\nours = mutant_operators:Provider\n"
    )
    shutil.copy(lock, stamp)


def copy_tree() -> None:
    """Copy the checkout as it is."""
    shutil.rmtree(TREE, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        check=True,
        capture_output=True,
    )
    for name in map(os.fsdecode, filter(None, listed.stdout.split(b"\0"))):
        if (TOP / name).exists():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, TREE / name)


def try_module(module: str) -> int:
    """Try the faults of one module, print what was found, and count those that nobody noticed."""
    python = TOP / ".venv" / "bin" / "python"
    # Without plugins, and without rewriting assertions, the tests start four times as fast.
    tests = [str(python), "-m", "pytest", "-q", "-x", "--assert=plain", *TESTS[module]]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    begun = time.monotonic()
    done = subprocess.run(tests, cwd=TREE, env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{module}: the tests fail without any fault\n{done.stdout}")
        return 1
    patience = max(_PATIENCE, 5 * (time.monotonic() - begun))
    config = CACHE / "config.toml"
    config.write_text(
        f"""\
[cosmic-ray]
module-path = {json.dumps(module)}
timeout = {patience:.0f}
excluded-modules = []
test-command = {json.dumps(" ".join(tests))}
distributor.name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = {json.dumps(EXCLUDED)}
"""
    )
    session = CACHE / "session.sqlite"
    session.unlink(missing_ok=True)
    for command in (
        ("cosmic-ray", "init", config, session),
        ("cr-filter-operators", session, config),
        ("cosmic-ray", "exec", config, session),
    ):
        subprocess.run(
            [VENV / "bin" / command[0], *command[1:]],
            cwd=TREE,
            env=environment,
            check=True,
            capture_output=True,
        )
    dump = subprocess.run(
        [VENV / "bin" / "cosmic-ray", "dump", session], cwd=TREE, check=True, capture_output=True, text=True
    )
    results = [json.loads(line) for line in dump.stdout.splitlines()]
    return report(module, results)


def report(module: str, results: list[list[dict[str, object]]]) -> int:
    """Print what became of the faults, and count those that nobody noticed."""
    equivalents = dict(EQUIVALENT.get(module, {}))
    tried = noticed = equivalent = 0
    survivors = []
    for _, result in results:
        if not result or result["worker_outcome"] == "skipped":
            continue
        tried += 1
        if result["test_outcome"] != "survived":
            noticed += 1
            continue
        where, what = fault(str(result["diff"]))
        if what in FOR_TYPES:
            tried -= 1
        elif what in EQUIVALENT.get(module, {}):
            equivalent += 1
            equivalents.pop(what, None)
        else:
            survivors.append(f"  line {where}: {what}")
    print(
        f"{module}: {tried} faults, {noticed} noticed, {equivalent} equivalent, {len(survivors)} not noticed"
    )
    print("".join(f"{survivor}\n" for survivor in survivors), end="")
    print(
        "".join(f"  is noticed, or not there any more: {what}\n" for what in equivalents), end="", flush=True
    )
    return len(survivors) + len(equivalents)


def fault(diff: str) -> tuple[str, str]:
    """Give the line of a fault, and what it puts in place of what."""
    lines = diff.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("@@"))
    # Three lines of context come first, where there are as many.
    context = next(number for number, line in enumerate(lines[begin + 1 :]) if line[:1] in ("-", "+"))
    where = int(lines[begin].split()[1].partition(",")[0][1:]) + context
    changed = [(line[:1], line[1:].strip()) for line in lines[begin + 1 :]]
    removed, added = (" ".join(text for sign, text in changed if sign == which and text) for which in "-+")
    return str(where), f"{removed} => {added}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
