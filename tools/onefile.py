"""Write the program as one executable zip file that starts without extracting itself.

A plain shiv file extracts itself into the home directory before it starts. A hook of a rootless
container has none that it may write to, and pays for it at every container stop. Python imports from
inside a zip just as well, so only the package is kept of what shiv packed. What the hook imports is in
one block besides, compiled, which takes a third of the time. docs/design.md, "Start-up", has the whole story.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import importlib.util
import marshal
import os
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType
    from typing import Any

# Isolated from the environment and the user's own modules (-I), never writing .pyc files (-B),
# without the site module (-S), and with UTF-8 names whatever the locale is (-X utf8).
INTERPRETER_OPTIONS = "-IBSXutf8"

# The first line. The kernel gives all that follows the interpreter as one argument (execve(2), "Interpreter scripts"),
# then the path of the file. Python's own way of running a zip takes half as long as starting Python; this reads the first
# bytes of the file, and runs them.
FIRST_LINE = '#!{interpreter} -IBScimport sys;f=open(sys.argv[1],"rb");exec(f.read({size}))\n'
# Kernels before 5.1 know no more of a first line.
LONGEST_FIRST_LINE = 127

# What those bytes are, besides the first line. -X utf8 had no room there, so it makes sure that names are UTF-8 (Python does it
# by itself in the C locale, which is that of an empty environment). Another version of Python cannot read the block.
# What is not as it should be is for Python's own way.
HEAD = """\
import _frozen_importlib_external as machinery, fcntl, marshal
with f: f.seek({offset}); block = memoryview(f.read({begin})); file = fcntl.fcntl(f, fcntl.F_DUPFD_CLOEXEC, 3)
del sys.argv[0]
if block[:4] == machinery.MAGIC_NUMBER and sys.getfilesystemencoding() == "utf-8":
    code, *found = marshal.loads(block[{index}:])
    exec(code)
    run(sys.argv[0], block, file, {end}, *found)
import posix
posix.execv(sys.executable, [sys.executable, "{options}"] + sys.argv)
"""

# Run by Python's own way of running a zip. Read by every Python since 2.7, which is why it is written like this.
MAIN = """\
import sys
if sys.version_info < (3, 9):
    sys.exit("archive_overlay needs Python 3.9 or later; this is %s" % sys.version.split()[0])
import _frozen_importlib_external as machinery, marshal
loader = __spec__.loader
block = memoryview(loader.get_data(loader.archive + "/BLOCK"))
if block[:4] == machinery.MAGIC_NUMBER:
    found = marshal.loads(block[{index}:])
    exec(found[0])
    run(loader.archive, block, None, 0, *found[1:])
sys.path.insert(0, loader.archive + "/site-packages")
from archive_overlay.cli import run
sys.exit(run())
"""

PACKAGE = "archive_overlay"
# The first entry of the zip.
BLOCK = "BLOCK"
# Not in the block: what people run. Python finds it in the zip. Histories are in the block, because a stop needs them last,
# when another version may have taken the place of the file.
NOT_IN_BLOCK = ("commands",)
# What is imported together, by what is imported first, and what the program then imports at once.
GROUPS = {
    PACKAGE: (f"{PACKAGE}.cli",),
    f"{PACKAGE}.hook": (f"{PACKAGE}.hook.hook", f"{PACKAGE}.system.kernel"),
    f"{PACKAGE}.hook.image_annotations": (f"{PACKAGE}.overlay.images",),
    f"{PACKAGE}.methods.copy": (),
    f"{PACKAGE}.methods.move": (),
    f"{PACKAGE}.methods.tar": (),
    f"{PACKAGE}.methods.oci": (),
}
# What each of the other groups finds imported.
ALWAYS = (PACKAGE, f"{PACKAGE}.hook")

# The dates that a zip entry can hold, in seconds since 1970.
ZIP_EPOCH = 315532800
ZIP_END = 4354819198


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write the program as one executable file.")
    parser.add_argument("--interpreter", required=True, help="absolute path, for the first line")
    parser.add_argument("--date", type=int, required=True, help="of all entries, in seconds since 1970")
    parser.add_argument("stage", type=Path, help="the directory that holds the package")
    parser.add_argument("output", type=Path, help="where the program goes")
    options = parser.parse_args()

    entries = {
        f"site-packages/{path.relative_to(options.stage).as_posix()}": path.read_bytes()
        for path in options.stage.glob(f"{PACKAGE}/**/*.py*")
    }
    start = Path(__file__).with_name("start.py").read_bytes()
    block, index, begin = make_block(entries, start)
    entries[BLOCK] = block
    entries["start.py"] = start
    entries["__main__.py"] = MAIN.format(index=index).encode()
    write(options.output, entries, head(options.interpreter, len(block), index, begin), date=options.date)


def make_block(entries: dict[str, bytes], start: bytes) -> tuple[bytes, int, int]:
    """Compile what the hook imports into one block.

    Args:
        entries: all sources, by their names in the zip.
        start: the source of tools/start.py.

    Returns:
        The block, where in it the code of tools/start.py and its arguments are, and how much of it every start reads.
    """
    modules = {
        module.name: module
        for module in (
            _Module(path, source) for path, source in sorted(entries.items()) if path.endswith(".py")
        )
        if module.room not in NOT_IN_BLOCK
    }
    begin, rest = bytearray(importlib.util.MAGIC_NUMBER), bytearray()

    def add(part: bytearray, value: Any) -> tuple[int, int]:
        # marshal notes which texts are referred to from elsewhere, and interned ones may be: by the names of the directories
        # here, for example. So all of them are.
        references = [*_texts(value)]
        data = marshal.dumps(value)
        del references
        part.extend(data)
        return len(part) - len(data), len(data)

    places: dict[str, tuple[int, int]] = {}
    always: list[str] = []
    grouped: set[str] = set()
    for first, more in GROUPS.items():
        names = list(always)
        for name in (first, *more):
            _visit(name, modules, names)
        names = names[len(always) :]
        if first in ALWAYS:
            always += names
        grouped.update(names)
        group = [(name, modules[name].is_package, modules[name].compiled()) for name in names]
        places[first] = add(begin if first in ALWAYS else rest, group)
    for name, module in modules.items():
        if name not in grouped:
            places[name] = add(rest, module.compiled())

    def found(name: str) -> tuple[int, int, bool]:
        start, length = places[name]
        return start if name in ALWAYS else start - len(rest), length, modules[name].is_package

    groups = {name: found(name) for name in GROUPS}
    others = {name: found(name) for name in places if name not in GROUPS}
    index, _ = add(begin, (_compiled(start, "archive_overlay.pyz/start.py"), groups, others))
    return bytes(begin + rest), index, len(begin)


class _Module:
    """A module of the package.

    Args:
        path: of its source in the zip.
        source: that.

    Attributes:
        name: as it is imported by.
        room: the folder of the package that it is in; "" for none.
        is_package: whether it is one.
    """

    def __init__(self, path: str, source: bytes) -> None:
        *parents, last = Path(path).with_suffix("").parts[1:]
        self.is_package = last == "__init__"
        self.name = ".".join(parents if self.is_package else [*parents, last])
        self.room = ".".join(parents + [""] * 2).split(".")[1]
        self._path = path
        self._source = source

    def imports(self) -> Iterator[str]:
        """Give the names of what it imports when it runs, and of what may be modules among them."""
        for node in ast.parse(self._source).body:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def compiled(self) -> CodeType:
        """Give its code."""
        return _compiled(self._source, f"{PACKAGE}.pyz/{self._path}")


def _visit(name: str, modules: dict[str, _Module], done: list[str]) -> None:
    """Add a module to those that are done, after its parents and what it imports."""
    module = modules.get(name)
    if not module or name in done:
        return
    _visit(name.rpartition(".")[0], modules, done)
    for imported in module.imports():
        if not name.startswith(f"{imported}."):
            _visit(imported, modules, done)
    done.append(name)


def _compiled(source: bytes, path: str) -> CodeType:
    """Compile a module without what takes time to load, and is not used when it runs."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not _is_unused(part)] or [
                ast.copy_location(ast.Pass(), node.body[0]) if node.body else ast.Pass(lineno=1, col_offset=0)
            ]
    # What remains of annotations are those of fields. They stay text, as the sources ask for.
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(tree, path, "exec", flags=flags, dont_inherit=True, optimize=0)
    return code


def _texts(value: Any) -> Iterator[str]:
    """Give all texts in something that has code in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list, frozenset)):
        for item in value:
            yield from _texts(item)
    elif hasattr(value, "co_code"):
        names = value.co_names + value.co_varnames + value.co_freevars + value.co_cellvars
        yield from (value.co_filename, value.co_name, getattr(value, "co_qualname", ""), *names)
        yield from _texts(value.co_consts)


def _is_unused(part: ast.stmt) -> bool:
    """Say whether a statement is a docstring, or asks for text as annotations."""
    if isinstance(part, ast.Expr):
        return isinstance(part.value, ast.Constant)
    return isinstance(part, ast.ImportFrom) and part.module == "__future__"


def head(interpreter: str, size: int, index: int, begin: int) -> bytes:
    """Give what the file begins with, before the zip.

    Args:
        interpreter: absolute path of the Python that runs it.
        size: of the block.
        index: see `make_block`.
        begin: how much of the block every start reads.
    """
    length = 0
    while True:
        # The block is the first entry: what comes before its data is 30 bytes and its name.
        offset = length + 30 + len(BLOCK)
        rest = HEAD.format(
            offset=offset, begin=begin, end=offset + size, index=index, options=INTERPRETER_OPTIONS
        )
        first = FIRST_LINE.format(interpreter=interpreter, size=length)
        if len(first) > LONGEST_FIRST_LINE:
            return f"#!{interpreter} {INTERPRETER_OPTIONS}\n".encode()
        whole = (first + rest).encode()
        if len(whole) == length:
            return whole
        length = len(whole)


def write(output: Path, entries: dict[str, bytes], head: bytes, *, date: int) -> None:
    """Write an executable zip file whose bytes depend on the arguments alone.

    Args:
        output: replaced in one rename, so that hooks that start meanwhile find the old or the new one.
        entries: name in the zip to contents.
        head: what comes before the zip.
        date: of all entries, in seconds since 1970; moved into what a zip can hold.
    """
    date_time = time.gmtime(min(max(date, ZIP_EPOCH), ZIP_END))[:6]
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            # Written first, so that the offsets in the zip's directory count it.
            file.write(head)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, data in sorted(entries.items()):
                    info = zipfile.ZipInfo(name, date_time)
                    info.create_system = 3  # Unix: the mode below means something
                    info.external_attr = 0o100644 << 16
                    archive.writestr(info, data)
        unfinished.chmod(0o755)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
