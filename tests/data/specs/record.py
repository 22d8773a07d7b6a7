"""Record what podman gives to a poststop hook: python -m tests.data.specs.record (as root)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import hooks
from tests.support.engines import IMAGE, TOP, Engine, machine

HERE = Path(__file__).resolve().parent

# Keeps all that a hook can find out at the time when it runs, in the directory that it is called with.
RECORDER = """\
#!/bin/sh
cat > "$1/state.json"
bundle=$(sed 's/.*"bundle":"\\([^"]*\\)".*/\\1/' "$1/state.json")
cp "$bundle/config.json" "$1/config.json"
cat /proc/self/mountinfo > "$1/mountinfo"
for process in /proc/[0-9]*; do
    case $(readlink "$process/exe") in
        */fuse-overlayfs) tr '\\0' '\\n' < "$process/cmdline"; echo ;;
    esac
done > "$1/fuse-overlayfs"
"""


def main() -> None:
    """Run a container of each kind, and keep what is of use for tests."""
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "archive_overlay.pyz"
        subprocess.run([TOP / "build.sh", built], check=True)
        with machine(built) as made:
            for rootless in (False, True):
                for store in ("native", "fuse"):
                    record(Engine(made, rootless, store, "crun"))


def record(engine: Engine) -> None:
    """Run one container with an image mount and a volume, both with overlays."""
    records = engine.new_directory("records")
    configuration = engine.new_directory("recorder")
    volume = engine.new_directory("volume")
    outside = engine.machine.outside(configuration)
    (outside / "recorder").write_text(RECORDER)
    (outside / "recorder").chmod(0o755)
    hook = {
        "version": "1.0.0",
        "hook": {"path": f"{configuration}/recorder", "args": ["recorder", records]},
        "when": {"always": True},
        "stages": ["poststop"],
    }
    (outside / "hook.json").write_text(json.dumps(hook))
    engine.run(
        "recorded",
        *("--volume", f"{volume}:/volume:O"),
        *("--mount", f"type=image,source={IMAGE},destination=/data,rw=true"),
        podman_options=("--hooks-dir", configuration),
        command="true",
        annotations=hooks.annotations("data", mount_point="/data", archive_to="/archive"),
    )
    recorded = engine.machine.outside(records)
    spec = json.loads((recorded / "config.json").read_text())
    kept = {
        "config": {key: spec[key] for key in ("ociVersion", "root", "mounts", "annotations")},
        "state": json.loads((recorded / "state.json").read_text()),
        "mountinfo": [
            line for line in (recorded / "mountinfo").read_text().splitlines() if f" {engine.home}/" in line
        ],
        "fuse-overlayfs": [
            process.splitlines()
            for process in (recorded / "fuse-overlayfs").read_text().split("\n\n")
            if process
        ],
    }
    name = f"podman-{Path(engine.home).name}.json"
    (HERE / name).write_text(json.dumps(kept, indent=2) + "\n")
    print(name, file=sys.stderr)


if __name__ == "__main__":
    main()
