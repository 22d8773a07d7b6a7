"""The commands that are measured: the program as it is shipped, and its peers."""

from __future__ import annotations

import shutil
import subprocess
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bench.measure import Contender, remove
from tests.support import hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

OURS = "archive_overlay"
SHIV = "plain shiv file"
TOP = Path(__file__).resolve().parent.parent

# What makes GNU tar store what ours stores.
AS_MUCH = ("--posix", "--xattrs", "--acls", "--numeric-owner")


class Contenders:
    """Makes the commands.

    Args:
        program: the built program.
        place: a directory for bundles and for what the commands make.
    """

    def __init__(self, program: Path, place: Path) -> None:
        self.program = program
        self.interpreter = program.read_bytes().split(b"\n", 1)[0][2:].split()[0].decode()
        self._place = place
        self._numbers = count()
        self._shiv_file: Path | None = None

    def ours(
        self,
        method: str,
        upper: Path,
        *,
        name: str = OURS,
        program: Path | None = None,
        by_hand: bool = True,
        bundle: Path | None = None,
        out: Path | None = None,
        undo: Callable[[], None] | None = None,
        at_most: float | None = None,
        tag: str = "",
        parent: str = "",
        keys: Mapping[str, str] = MappingProxyType({}),
        mounts: Sequence[Mapping[str, Any]] = (),
        options: Sequence[str] = (),
    ) -> Contender:
        """Give the whole hook, saving an upperdir.

        Args:
            method: how it is saved.
            upper: the upperdir.
            name: as the table has it.
            program: another file than the shipped one.
            by_hand: run with `--no-fsync --bundle`; else as an engine runs it: with the container's state on stdin.
            bundle: the container's bundle; None: a new one.
            out: the archive.
            undo, at_most: see `Contender`.
            tag, parent: of an image layout.
            keys: more annotations, as for `hooks.annotations`.
            mounts: more mounts of the container.
            options: more of them.
        """
        made = out or self._out()
        directory = bundle or self._place / f"bundle{next(self._numbers)}"
        directory.mkdir(parents=True, exist_ok=True)
        mount = hooks.overlay_mount("/data", upper=upper, lowers=[directory], work=directory / "work")
        # Whatever the kernel's defaults are: the upperdir may be moved.
        mount["options"] += ["redirect_dir=off", "metacopy=off"]
        asked_for = {**({"parent": parent} if parent else {}), **keys}
        archive_to = f"{made}:{tag}" if tag else made
        asked = hooks.annotations(
            "bench", mount_point="/data", archive_to=archive_to, method=method, **asked_for
        )
        made_bundle = hooks.Bundle(directory, mounts=[mount, *mounts], annotations=asked)
        state = directory / "state.json"
        state.write_bytes(made_bundle.state())
        by_whom = ["--no-fsync", "--bundle", str(directory)] if by_hand else []
        return Contender(
            name,
            [str(program or self.program), *by_whom, *options],
            makes=made,
            undo=undo,
            stdin=state,
            needs=("zstd",) if method == "tar.zst" else (),
            at_most=at_most,
        )

    def bare_interpreter(self, *, at_most: float) -> Contender:
        """Give the interpreter that the program runs in, doing nothing."""
        return Contender("python3 -IS -c pass", [self.interpreter, "-IS", "-c", "pass"], at_most=at_most)

    def plain_shiv_file(
        self, upper: Path, *, by_hand: bool, options: Sequence[str] = (), at_most: float | None = None
    ) -> Contender:
        """Give the same package as shiv packs it, which has extracted itself already."""
        if not self._shiv_file:
            self._shiv_file = self._make_shiv_file()
        return self.ours(
            "copy",
            upper,
            name=SHIV,
            program=self._shiv_file,
            by_hand=by_hand,
            options=options,
            at_most=at_most,
        )

    def cp(
        self,
        tree: Path,
        *,
        out: Path | None = None,
        at_most: float | None = None,
        cpu_at_most: float | None = None,
    ) -> Contender:
        """Give `cp -a`."""
        made = out or self._out()
        command: list[str | Path] = ["cp", "-a", tree, made]
        return Contender("cp -a", command, makes=made, at_most=at_most, cpu_at_most=cpu_at_most)

    def rsync(self, tree: Path) -> Contender:
        """Give `rsync -aH`."""
        made = self._out()
        return Contender("rsync -aH", ["rsync", "-aH", f"{tree}/", made], makes=made)

    def tar(
        self,
        tree: Path,
        create: str,
        *options: str,
        at_most: float | None = None,
        cpu_at_most: float | None = None,
    ) -> Contender:
        """Give GNU tar.

        Args:
            tree: the directory that is packed.
            create: "cf" or "czf".
            options: more of them.
            at_most, cpu_at_most: see `Contender`.
        """
        made = self._out()
        return Contender(
            " ".join(["tar", create, *options]),
            ["tar", f"-{create}", made, *options, "-C", tree, "."],
            makes=made,
            needs=("gzip",) if "z" in create else (),
            at_most=at_most,
            cpu_at_most=cpu_at_most,
        )

    def tar_through(
        self,
        compressor: str,
        tree: Path,
        *options: str,
        at_most: float | None = None,
        cpu_at_most: float | None = None,
    ) -> Contender:
        """Give GNU tar with a compressor behind it in a pipe. See `tar`."""
        made = self._out()
        packing = " ".join(["tar", *options])
        return Contender(
            f"{packing} | {compressor}",
            ["sh", "-c", f'{packing} -cf - -C "$0" . | {compressor} >"$1"', tree, made],
            makes=made,
            needs=("tar", compressor.split()[0]),
            at_most=at_most,
            cpu_at_most=cpu_at_most,
        )

    def _out(self) -> Path:
        return self._place / f"out{next(self._numbers)}"

    def _make_shiv_file(self) -> Path:
        """Pack the package with shiv; where there is none, give a name that no program has."""
        path = f"{TOP}/.venv/bin:{TOP}/.cache/shiv/bin"
        shiv = shutil.which("shiv", path=path) or shutil.which("shiv")
        if not shiv:
            return Path("shiv")
        stage, packed = self._place / "stage", self._place / "plain-shiv.pyz"
        shutil.copytree(TOP / "archive_overlay", stage / "archive_overlay", ignore=_no_byte_code)
        options = ["--python", self.interpreter, "--entry-point", "archive_overlay.cli:main"]
        subprocess.run(
            [shiv, "--site-packages", stage, *options, "--output-file", packed],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        remove(stage)
        return packed


_no_byte_code = shutil.ignore_patterns("__pycache__")
