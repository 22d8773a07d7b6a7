"""The works that carry images: a stop that loads its revision into the engine's store, and one that pushes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from bench import history
from bench.measure import remove
from bench.rig import UnableError, compared
from bench.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from bench.rig import Bench

_CHANGED = 10
_MANY, _FEW = 500, 10
# How much longer a stop may take with many revisions than with few.
_LONGER = 1.3
# A container's id, as engines draw them: by its bundle, the hook finds the store.
_CONTAINER = "c0de" * 16

_REGISTRY = "docker-registry"
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


def load_as(bench: Bench) -> Iterator[Row]:
    """Stop with `load-as`, after many revisions and after few."""
    if why := _unable("skopeo", "umoci", "unshare", "bash", root=True):
        raise UnableError(why)
    with tempfile.TemporaryDirectory(prefix="bench-") as run:
        # The store's directory of layers becomes a mount, as with all programs that use it.
        alone = ("unshare", "--mount", "--propagation=private")

        def stops(name: str, layout: Path) -> _Stops:
            place = bench.place / f"{name}.store"
            bundle = place / "overlay-containers" / _CONTAINER / "userdata"
            of_run = f"{run}/{name}/overlay-containers/{_CONTAINER}/userdata"
            os.makedirs(of_run)
            for kind in ("overlay", "overlay-images", "overlay-layers"):
                (place / kind).mkdir(mode=0o700, parents=True)
            told = {"destination": "/run/.containerenv", "source": f"{of_run}/.containerenv", "type": "bind"}
            stops = _Stops(
                bench,
                layout,
                name,
                keys={"load_as": f"localhost/{name}:main"},
                bundle=bundle,
                mounts=[told],
                alone=alone,
            )
            stops.uses.append(place)
            return stops

        yield from _compare(bench, f"a stop with {_CHANGED} changed files, with load-as", stops)


def push_to(bench: Bench) -> Iterator[Row]:
    """Stop with `push-to`, after many revisions and after few."""
    if why := _unable("skopeo", "umoci", "bash", _REGISTRY):
        raise UnableError(why)
    with _registry(bench.place / "registry") as host:
        allowed = ("--tls-verify=false", f"--allow-push-to={host}")

        def stops(name: str, layout: Path) -> _Stops:
            keys = {"push_to": f"docker://{host}/{name}:main"}
            return _Stops(bench, layout, name, keys=keys, options=allowed)

        yield from _compare(bench, f"a stop with {_CHANGED} changed files, with push-to", stops)


class _Stops:
    """Stops of containers that change 10 files each, saved as revisions of a layout's tag `main`.

    Args:
        bench: runs them.
        layout: has the history.
        name: of it.
        keys: annotations that say where the image is to be carried; see `hooks.annotations`.
        bundle, mounts: of the container, by which the hook finds the store.
        options: of the hook.
        alone: the beginning of a command that runs the hook in namespaces of its own.

    Attributes:
        contender: a stop.
        uses: what else is to be removed.
    """

    def __init__(
        self,
        bench: Bench,
        layout: Path,
        name: str,
        *,
        keys: Mapping[str, str] = MappingProxyType({}),
        bundle: Path | None = None,
        mounts: Sequence[Mapping[str, Any]] = (),
        options: Sequence[str] = (),
        alone: Sequence[str] = (),
    ) -> None:
        self._upper = bench.place / f"{name}.upper"
        self._number = 0
        self._taken_of_each: list[tuple[float, float]] = []
        self._taken = bench.place / f"{name}.taken"
        self._timing = bench.place / f"{name}.skopeo"
        self.uses = [layout, self._upper, self._taken, self._timing]
        self._change()
        # A shell takes the time of what the hook runs; that costs 2 ms for each.
        self._timing.write_text(
            "#!/bin/bash\n"
            "TIMEFORMAT='%R %U %S'\n"
            f'{{ time {shutil.which("skopeo")} "$@" 2>&3; }} 3>&2 2>>{self._taken}\n'
        )
        self._timing.chmod(0o755)
        ours = bench.make.ours(
            "oci",
            self._upper,
            name=name,
            out=layout,
            tag="main",
            parent="base",
            keys=keys,
            bundle=bundle,
            mounts=mounts,
            options=[f"--skopeo={self._timing}", *options],
            # It makes a part of what is there; instead of removing that, the next container changes something.
            undo=self._go_on,
            at_most=_LONGER,
        )
        self.contender = replace(ours, command=[*alone, *ours.command])

    def skopeo_took(self) -> tuple[float, float]:
        """Give the medians of what skopeo took, since this was asked last: seconds, and seconds on processors."""
        taken, self._taken_of_each = self._taken_of_each, []
        seconds, cpu = (statistics.median(each) for each in zip(*taken))
        return seconds, cpu

    def _go_on(self) -> None:
        """Add up what skopeo took of a stop, and change something."""
        said = self._taken.read_text() if self._taken.exists() else ""
        remove(self._taken)
        runs = [[float(word) for word in line.split()] for line in said.splitlines()]
        self._taken_of_each.append((sum(run[0] for run in runs), sum(run[1] + run[2] for run in runs)))
        self._change()

    def _change(self) -> None:
        """Change 10 files, as the next container would: in a directory of its own."""
        remove(self._upper)
        for number in range(_CHANGED):
            file = self._upper / "d000" / f"{number:06}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"changed by container {self._number}\n")
        self._number += 1


def _compare(bench: Bench, work: str, make: Callable[[str, Path], _Stops]) -> Iterator[Row]:
    """Compare stops after many revisions with stops after few, and say what of them is skopeo's."""
    all_stops = []
    for name, revisions in (("many", _times(bench, _MANY)), ("few", _times(bench, _FEW))):
        layout = bench.place / f"{name}.layout"
        subprocess.run(["cp", "-a", _grown(bench, revisions), layout], check=True)
        stops = make(name, layout)
        stops.contender = replace(stops.contender, name=f"after {revisions:,} revisions")
        # The base is carried by the first; from the second on, an image loses its name each time.
        bench.race(stops.contender, rounds=2)
        all_stops.append(stops)
    for stops in all_stops:
        stops.skopeo_took()
    contenders = [stops.contender for stops in all_stops]
    results = bench.race(*contenders, rounds=3 * bench.rounds)  # few of many stops compose layers
    yield from compared(work, results, *contenders)
    for stops in all_stops:
        seconds, cpu = stops.skopeo_took()
        whole = results[stops.contender.name]
        yield Row(
            work,
            f"{stops.contender.name}: of which skopeo",
            f"{seconds:.3f}",
            ratio=f"{seconds / whole.seconds:.0%}",
            cpu=f"{cpu:.3f}",
            cpu_ratio=f"{cpu / whole.cpu_seconds:.0%}",
        )
        for path in stops.uses:
            remove(path)


def _grown(bench: Bench, revisions: int) -> Path:
    """Give a layout with an image of 30,000 files, and so many revisions of it. It stays for the next work."""
    layout = bench.place / f"grown-{revisions}"
    if layout.exists():
        return layout
    base, bundle = history.layout_with_base(bench)
    remove(bundle)
    base.rename(layout)
    stops = _Stops(bench, layout, f"growing-{revisions}")
    bench.race(stops.contender, rounds=revisions)
    for path in stops.uses[1:]:
        remove(path)
    return layout


def _times(bench: Bench, revisions: int) -> int:
    return max(revisions // 5 if revisions == _FEW else 5, int(revisions * bench.scale))


def _unable(*programs: str, root: bool = False) -> str:
    """Say why this machine cannot do it; "" if it can."""
    if root and os.geteuid() != 0:
        return "only root has a store anywhere"
    missing = [program for program in programs if not shutil.which(program)]
    return f"no {', '.join(missing)}" if missing else ""


@contextmanager
def _registry(place: Path) -> Iterator[str]:
    """Run a registry on loopback, and give its host and port.

    Args:
        place: is made, and removed.
    """
    place.mkdir()
    configuration = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(place / "storage")}},
        "http": {"addr": "127.0.0.1:0", "relativeurls": True},
    }
    (place / "config.json").write_text(json.dumps(configuration))
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(
            [_REGISTRY, "serve", place / "config.json"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        while not (listening := _LISTENING.search((place / "log").read_text())):
            if process.poll() is not None:
                raise UnableError(f"{_REGISTRY} ends at once: {(place / 'log').read_text()}")
            time.sleep(0.01)
        yield listening[1]
    finally:
        process.kill()
        process.wait()
        remove(place)
