"""Import the program's modules from one block of bytes: the part of the built file that runs first.

Finding a module in a zip and reading it takes 0.15 ms, a module that is in memory already 0.02 ms. This is compiled into
the block by tools/onefile.py, and works with the Python that the block was compiled by. docs/design.md, "Start-up",
says how the built file starts.

Source: importlib, "importlib.abc", for finders and loaders.
"""

from __future__ import annotations

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

    # Where something is in the block (below 0: from its end), how many bytes of it, and whether it is a package.
    Place = tuple[int, int, bool]

_Module = type(sys)


class Block:
    """A finder and loader of the modules in the block.

    Args:
        archive: path of the built file.
        block: has the compiled modules: all of it, or its beginning.
        file: descriptor of the built file, if the block is only the beginning.
        end: where the whole block ends in that file.
        groups: modules that are needed together, by the one that is imported first, each as name, whether it is a
            package, and code, those first that others import.
        modules: other modules by name.

    Attributes:
        archive: as above.
    """

    def __init__(
        self,
        archive: str,
        block: memoryview,
        file: int | None,
        end: int,
        groups: dict[str, Place],
        modules: dict[str, Place],
    ) -> None:
        self.archive = archive
        self._block = block
        self._file = file
        self._end = end
        self._identity = None
        if file is not None:
            self._identity = _identity(posix.fstat(file))
            posix.lseek(file, 0, 0)  # where a process is in its files is taken for its progress
        self._groups = groups
        self._modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find a module. See `importlib.abc.MetaPathFinder`."""
        if name in self._groups:
            self._run(self._load(self._groups.pop(name)))
            return sys.modules[name].__spec__
        place = self._modules.get(name)
        if place:
            return self._spec(name, is_package=place[2])
        # Python looks in the zip next. What another version has there must not run with what this one has loaded.
        if self._identity and name.startswith("archive_overlay."):
            try:
                identity = _identity(posix.stat(self.archive))
            except OSError:
                identity = None
            if identity != self._identity:
                raise ImportError(f"{self.archive} was replaced while it ran")
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Give the module, if it has run with its group. See `importlib.abc.Loader`."""
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run a module, unless it has run with its group. See `importlib.abc.Loader`."""
        place = self._modules.get(module.__name__)
        if place:
            exec(self._load(place), module.__dict__)

    def get_source(self, name: str) -> str | None:
        """Give a module's source, for tracebacks. See `importlib.abc.InspectLoader`."""
        from zipimport import zipimporter

        spec = sys.modules[name].__spec__
        if not spec or not spec.origin:
            return None
        return zipimporter(self.archive).get_data(spec.origin).decode()

    def _run(self, group: list[tuple[str, bool, CodeType]]) -> None:
        modules = sys.modules
        for name, is_package, code in group:
            if name in modules:
                continue
            module: Any = _Module(name)
            module.__spec__ = spec = self._spec(name, is_package=is_package)
            module.__loader__ = self
            module.__file__ = spec.origin
            module.__package__ = name if is_package else name.rpartition(".")[0]
            if is_package:
                module.__path__ = spec.submodule_search_locations
            modules[name] = module
            try:
                exec(code, module.__dict__)
            except BaseException:
                modules.pop(name, None)
                raise
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(modules[parent], last, module)

    def _spec(self, name: str, *, is_package: bool) -> ModuleSpec:
        path = f"{self.archive}/site-packages/{name.replace('.', '/')}"
        spec = ModuleSpec(
            name,
            self,  # type: ignore[arg-type]
            origin=f"{path}/__init__.py" if is_package else f"{path}.py",
            is_package=is_package,
        )
        spec.has_location = True
        if is_package:
            # What is not in the block is found there.
            spec.submodule_search_locations = [path]
        return spec

    def _load(self, place: Place) -> Any:
        start, length, _ = place
        if self._file is None or start >= 0:
            start %= len(self._block)
            return marshal.loads(self._block[start : start + length])
        data = posix.pread(self._file, length, self._end + start)
        # What replaces the file leaves this one as it is, but it may be written over.
        if len(data) != length or _identity(posix.fstat(self._file)) != self._identity:
            raise ImportError(f"{self.archive} is not complete, or was overwritten while it ran")
        return marshal.loads(data)


def _identity(status: posix.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def run(*arguments: Any) -> None:
    """Run the program. The arguments are those of `Block`."""
    sys.meta_path.insert(0, Block(*arguments))
    from archive_overlay.cli import run as run_program

    sys.exit(run_program())
