"""The hook configurations of a host, and what is in them.

Source: oci-hooks(5). What podman refuses and passes over was seen with podman 4.3.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from dataclasses import dataclass, field

from archive_overlay.commands.check.findings import NOTE, PROBLEM, WARNING, Finding, listed
from archive_overlay.errors import brief
from archive_overlay.keys import KEYS, PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

# Of a configuration; real ones have less than a thousand bytes.
_LARGEST = 1024 * 1024
_VERSION = "1.0.0"
_OLD_VERSIONS = ("", "0.1.0")
_STAGE = "poststop"
_STAGES = {
    *("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"),
    "precreate",
}
_NAME = "archive_overlay"
_ANY_VALUE = ("", ".*", "^.*$", ".+", "(.+)", "(.*)")  # no key of ours means anything without a value
_SAMPLE = "data"  # an archive's name
# What Go's expressions lack (re2/wiki/Syntax), after what only stands for characters has been taken out.
_PYTHON_ALONE = re.compile(r"\\[1-9Z]|\(\?(?:[=!#>(]|<[=!]|P=)")
_LITERAL = re.compile(r"\\[^1-9Z]|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
# What patterns for annotations may miss: containers with these, and what each such container could have.
_MISSED = {
    "annotations of the form NAME/KEY": (("/mount-point", "/archive-to"),),
    "annotations of the form NAME.KEY": ((".mount-point", ".archive-to"),),
    "only half a pair": ((".mount-point",), (".archive-to",)),
    "only unknown keys": ((".mountpoint", ".archive_to"),),
}


class UnreadableError(Exception):
    """A file cannot be read, or does not mean anything."""


@dataclass(frozen=True)
class HookFile:
    """A hook configuration.

    Attributes:
        path: of the configuration.
        program: what it runs.
        name: the first of its args, where the program's name belongs; "" without args.
        arguments: the others.
        stages: when it runs.
        when: for which containers; see oci-hooks(5).
        timeout: after how many seconds the engine kills it; None: never.
    """

    path: str
    program: str
    name: str = ""
    arguments: tuple[str, ...] = ()
    stages: tuple[str, ...] = (_STAGE,)
    when: Mapping[str, Any] = field(default_factory=dict)
    timeout: int | None = None

    @property
    def is_meant_for_us(self) -> bool:
        """Whether a person who wrote it had this program in mind."""
        patterns = " ".join(self.when.get("annotations") or {}).replace("\\", "")
        return os.path.basename(self.program).startswith(_NAME) or PREFIX.strip(".") in patterns


@dataclass(frozen=True)
class HookFiles:
    """The hook configurations in some directories.

    Attributes:
        in_force: those that take effect, whatever program they run.
        findings: what is wrong with them as files.
    """

    in_force: tuple[HookFile, ...]
    findings: tuple[Finding, ...]


def read_hook_files(directories: Iterable[str]) -> HookFiles:
    """Read the hook configurations of some directories.

    Args:
        directories: the last one first in rank: its files take the place of files with the same name.
    """
    findings: list[Finding] = []
    by_name: dict[str, HookFile] = {}
    for directory in directories:
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
        except FileNotFoundError:
            findings.append(Finding(NOTE, "hooks-dir", f"{directory} does not exist", "", directory))
            continue
        except OSError as error:
            reason = f"cannot read {directory}: {error.strerror}"
            findings.append(Finding(PROBLEM, "hooks-dir", reason, "make it readable", directory))
            continue
        for name in names:
            path = os.path.join(directory, name)
            try:
                hook = _read(path)
            except FileNotFoundError:
                continue  # a symbolic link that leads nowhere; podman passes over it
            except UnreadableError as error:
                findings.append(
                    Finding(
                        PROBLEM,
                        "hook",
                        f"{path} is refused: {error}; podman starts no container while it is there",
                        "correct it or remove it",
                        path,
                    )
                )
                continue
            if hook is None:
                continue
            if not os.path.exists(hook.program):
                if hook.is_meant_for_us:
                    found = f"{path} is passed over: {hook.program} does not exist"
                    advice = "install the program there, or correct hook.path"
                    findings.append(Finding(WARNING, "hook", found, advice, path))
                continue  # so it takes no other file's place either
            if (hidden := by_name.get(name)) and (hidden.is_meant_for_us or hook.is_meant_for_us):
                findings.append(Finding(NOTE, "hook", f"{path} takes the place of {hidden.path}", "", path))
            by_name[name] = hook
    return HookFiles(tuple(by_name.values()), tuple(findings))


def of_ours_in(directory: str) -> list[str]:
    """Give the paths of the configurations in a directory that are meant for this program."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    paths = [os.path.join(directory, name) for name in names if name.endswith(".json")]
    return [path for path in paths if (hook := _read_or_none(path)) and hook.is_meant_for_us]


def judge_stages(hook: HookFile) -> Finding | None:
    """Say what is wrong with the times at which a hook runs."""
    if _STAGE not in hook.stages:
        return Finding(
            PROBLEM,
            "hook",
            f"{hook.path} runs at {listed(hook.stages) or 'no stage'}, not when a container has stopped",
            'put "stages": ["poststop"]',
            hook.path,
        )
    if others := [stage for stage in hook.stages if stage != _STAGE]:
        return Finding(
            WARNING,
            "hook",
            f"{hook.path} runs at {listed(others)} too, when there is nothing to archive",
            'put "stages": ["poststop"]',
            hook.path,
        )
    return None


def judge_when(hook: HookFile) -> tuple[str, list[Finding]]:
    """Say for which containers a hook runs.

    Returns:
        The containers, in words, and what may be wrong with that.
    """
    when = hook.when
    conditions: list[str] = []
    findings: list[Finding] = []

    def never(reason: str) -> None:
        advice = "take over the conditions of the packaged configuration"
        findings.append(
            Finding(PROBLEM, "hook", f"{hook.path} runs for no container: {reason}", advice, hook.path)
        )

    keys: list[str] = []
    patterns: Mapping[str, str] = when.get("annotations") or {}
    for pattern, value in patterns.items():
        compiled = _compiled(pattern)
        matching = [
            key
            for key in KEYS
            if compiled is None
            or any(compiled.search(f"{PREFIX}{_SAMPLE}{separator}{key}") for separator in "./")
        ]
        if not matching:
            findings.append(
                Finding(
                    WARNING,
                    "hook",
                    f'{hook.path} runs only for containers with an annotation that matches "{pattern}", and none'
                    f" of an archive called {_SAMPLE} does",
                    "see that this is what is wanted",
                    hook.path,
                )
            )
        elif compiled is None:
            conditions.append(f'an annotation that matches "{pattern}"')
        elif len(matching) == 1:
            keys.append(matching[0])
        elif len(matching) == len(KEYS):
            conditions.append(f"an annotation that begins with {PREFIX}")
        if value not in _ANY_VALUE:
            conditions.append(f'a value that matches "{value}"')
    if keys:
        conditions.insert(
            0, f"the annotations {' and '.join(keys)}" if len(keys) > 1 else f"the annotation {keys[0]}"
        )
    if not findings and (missed := _missed(patterns)):
        findings.append(
            Finding(
                NOTE,
                "hook",
                f"{hook.path} does not run for containers with {', '.join(missed[:-1])}{' or ' * bool(missed[1:])}"
                f"{missed[-1]}: nothing is saved there, and nobody is told",
                "take over the conditions of the packaged configuration, one pattern for all annotations",
                hook.path,
            )
        )
    if commands := when.get("commands"):
        conditions.append("a command that matches " + " or ".join(f'"{command}"' for command in commands))
    if when.get("hasBindMounts"):
        conditions.append("a volume")
    if when.get("always") is False:
        never("its when has always: false")
    elif when.get("hasBindMounts") is False:
        never("its when has hasBindMounts: false, a condition that podman never takes for met")
    elif not (when.get("always") or when.get("annotations") or commands or when.get("hasBindMounts")):
        never("its when has no condition")
    whom = f"containers with {', '.join(conditions)}" if conditions else "every container"
    return whom, findings


def _missed(patterns: Iterable[str]) -> list[str]:
    """Say for containers with which annotations a hook does not run, though it would save something or complain."""
    compiled = [found for pattern in patterns if (found := _compiled(pattern))]

    def runs(ends: Iterable[str]) -> bool:
        return all(any(each.search(f"{PREFIX}{_SAMPLE}{end}") for end in ends) for each in compiled)

    return [words for words, containers in _MISSED.items() if not all(map(runs, containers))]


def _read_or_none(path: str) -> HookFile | None:
    try:
        return _read(path)
    except (UnreadableError, FileNotFoundError):
        return None


def _read(path: str) -> HookFile | None:
    """Read a configuration; None: it has the old form, which no configuration of this program ever had.

    Raises:
        FileNotFoundError: there is none.
        UnreadableError: engines refuse it.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            # Of a FIFO or a device there may be nothing to read, or no end of it.
            _expect(stat.S_ISREG(os.fstat(file.fileno()).st_mode), "it is not a regular file")
            text = file.read(_LARGEST + 1)
        _expect(len(text) <= _LARGEST, f"it is larger than {_LARGEST} bytes")
        content = json.loads(text)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"it is not valid JSON ({error})") from error
    _expect(isinstance(content, dict), "it is not an object")
    version = content.get("version", "")
    if version in _OLD_VERSIONS:
        return None
    _expect(version == _VERSION, f"its version is {version!r}, not {_VERSION}")
    hook, when, stages = content.get("hook"), content.get("when") or {}, content.get("stages")
    _expect(isinstance(hook, dict), "it has no hook")
    program, arguments, timeout = hook.get("path"), hook.get("args") or [], hook.get("timeout")
    _expect(isinstance(program, str) and program != "", "it has no hook.path")
    _expect(_are_strings(arguments), "its hook.args are not a list of strings")
    _expect(timeout is None or isinstance(timeout, int), "its hook.timeout is not a number")
    _expect(_are_strings(stages), "its stages are not a list of strings")
    unknown = [stage for stage in stages if stage not in _STAGES]
    _expect(not unknown, f"{listed(unknown)} is not a stage")
    _expect(isinstance(when, dict), "its when is not an object")
    annotations, commands = when.get("annotations") or {}, when.get("commands") or []
    _expect(
        isinstance(annotations, dict) and _are_strings(list(annotations.values())),
        "its when.annotations are not an object of patterns",
    )
    _expect(_are_strings(commands), "its when.commands are not a list of strings")
    for key in ("always", "hasBindMounts"):
        _expect(
            when.get(key) is None or isinstance(when[key], bool), f"its when.{key} is neither true nor false"
        )
    for pattern in (*annotations, *annotations.values(), *commands):
        _compiled(pattern)
    return HookFile(
        path=path,
        program=program,
        name="".join(arguments[:1]),
        arguments=tuple(arguments[1:]),
        stages=tuple(stages),
        when=when,
        timeout=timeout,
    )


def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Compile a pattern; None: it means something to Go alone.

    Raises:
        UnreadableError: it is not a regular expression.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(pattern)
    except (OverflowError, RecursionError):
        raise UnreadableError(f'"{brief(pattern)}" is not a regular expression: it is too large') from None
    except re.error as error:
        if error.msg.startswith(("bad escape", "global flags")):
            return None
        raise UnreadableError(f'"{brief(pattern)}" is not a regular expression: {error.msg}') from error
    if found := _PYTHON_ALONE.search(_LITERAL.sub("", pattern)):
        raise UnreadableError(
            f'"{brief(pattern)}" is not a regular expression to podman: it does not know {found[0]}'
        )
    return compiled


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UnreadableError(otherwise)


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
