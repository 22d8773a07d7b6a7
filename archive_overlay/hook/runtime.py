"""What the OCI runtime hands over: the container's state and its spec.

Source: OCI runtime specification, runtime.md ("State") and config.md ("Mounts", "Root", "Annotations").
"""

from __future__ import annotations

import os
import posixpath

from archive_overlay.errors import HookError, brief
from archive_overlay.overlay.mount import Mount
from archive_overlay.overlay.store import CONTAINER_NAMES, JSON_SPACE, AsLoads, container_in_store, is_drawn
from archive_overlay.settings import swallowed_options
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import TypeGuard

_SHORT_ID = 12
_LONGEST_NAME = 64
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_BY_HAND = "to try it by hand: archive_overlay --bundle DIR, with DIR holding a config.json"


class State(Record):
    """The part of a container's state that the hook needs.

    Attributes:
        id: the container's name for the runtime.
        bundle: absolute path of the bundle.
    """

    id: str
    bundle: str

    @property
    def short_id(self) -> str:
        """What log lines call the container: the beginning of an id that an engine has drawn, as engines show it."""
        return self.id[:_SHORT_ID] if is_drawn(self.id) else brief(self.id)


class Spec(Record):
    """The part of a container's spec that the hook needs.

    Attributes:
        annotations: as the spec has them; values that are no strings are kept for a later complaint.
        mounts: in the order in which they are mounted.
        root: absolute path of the container's root file system; empty where the spec has none.
        faults: what is wrong with single mounts, one sentence each.
        user_namespace: what the spec says of the container's user namespace, as the spec has it: `uidMappings`,
            `gidMappings`, and `path` if it is one that there was. Empty: it has none of its own.
        started: when config.json was written; see `store.Place`.
        swallowed: options of this hook that stand where its name belongs, if the spec has the hook. Engines that run hooks
            themselves, as podman does, leave them out of the spec.
    """

    annotations: dict[str, object]
    mounts: tuple[Mount, ...]
    root: str
    faults: tuple[str, ...]
    user_namespace: Mapping[str, object] = {}
    started: int = 0
    swallowed: Sequence[str] = ()

    @property
    def container_name(self) -> str:
        """What Kubernetes' engines say the container is called; "" if they do not say it."""
        names = (self.annotations.get(annotation) for annotation in CONTAINER_NAMES)
        return next((name for name in names if isinstance(name, str)), "")


def called(container: str, name: str) -> str:
    """Give what log lines call a container.

    Args:
        container: its short id.
        name: what people call it, as far as that is known. Whoever started it, or made its image, may have chosen it: what no
            engine takes for a name is left out, so that nobody puts words into the log.
    """
    name = name[:_LONGEST_NAME]
    usual = bool(name) and _NAME_CHARACTERS.issuperset(name)
    return f"{container} ({name})" if usual and name != container else container


def read_state(fd: int) -> State:
    """Read the container's state, as a runtime writes it to a hook's standard input.

    Args:
        fd: the file descriptor to read to its end.

    Raises:
        HookError: a person is at the other end, or what comes is no state with a bundle.
    """
    if os.isatty(fd):
        raise HookError(
            "standard input is a terminal, but an OCI runtime calls this program when a container has"
            " stopped, and writes the container's state to it",
            hint=_BY_HAND,
        )
    try:
        with open(fd, "rb", closefd=False) as stream:
            text = stream.read()
    except OSError as error:
        raise HookError(f"cannot read the container state on standard input: {error.strerror}") from error
    if not text.strip():
        raise HookError("no container state on standard input: it is empty", hint=_BY_HAND)
    state = _object(_parse(text, "the container state on standard input"), "the container state")
    bundle = state.get("bundle")
    if not _is_path(bundle) or not bundle.startswith("/"):
        raise HookError(
            "the container state does not name a bundle",
            hint='it must have "bundle", the absolute path of the directory of config.json',
        )
    identifier = state.get("id")
    return State(id=identifier if isinstance(identifier, str) else "", bundle=bundle)


def state_of_bundle(bundle: str) -> State:
    """Give the state that a runtime would, for a bundle that a person names.

    Args:
        bundle: path, relative to the working directory or absolute.
    """
    path = os.path.abspath(bundle)
    _, container = container_in_store(path)
    return State(id=container or os.path.basename(path), bundle=path)


def read_spec(bundle: str) -> Spec:
    """Read the spec, `config.json` in the bundle.

    A single mount that is malformed does not make the rest unusable: it is left out and named in
    `Spec.faults`.

    Args:
        bundle: path of the bundle.

    Raises:
        HookError: there is no such file, or it is no spec.
    """
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            started = os.fstat(file.fileno()).st_mtime_ns
            text = file.read()
    except OSError as error:
        raise HookError(
            f"cannot read the spec {path}: {error.strerror}",
            hint="the bundle must be a directory with the container's config.json",
        ) from error
    spec = _object(_parse(text, path), path)
    annotations = _object(_or(spec.get("annotations"), {}), f"annotations in {path}")
    listed = _or(spec.get("mounts"), [])
    if not isinstance(listed, list):
        raise HookError(f"mounts in {path} must be a list, not {_kind(listed)}")
    mounts = []
    faults = []
    for number, entry in enumerate(listed):
        mount = _mount(entry)
        if mount is None:
            faults.append(
                f"mounts[{number}] in {path} is malformed: it must be an object with strings for destination,"
                " type and source and a list of strings for options; ignored"
            )
        else:
            mounts.append(mount)
    return Spec(
        annotations=annotations,
        mounts=tuple(mounts),
        root=_root(spec.get("root"), bundle),
        faults=tuple(faults),
        user_namespace=_user_namespace(spec.get("linux")),
        started=started,
        swallowed=_swallowed(spec.get("hooks")),
    )


def normal_destination(path: str) -> str:
    """Give a mount's destination its one form: absolute, no doubled, trailing or dot components."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _mount(entry: object) -> Mount | None:
    if not isinstance(entry, dict):
        return None
    destination = entry.get("destination")
    kind = _or(entry.get("type"), "")
    source = _or(entry.get("source"), "")
    options = _or(entry.get("options"), [])
    if not (_is_path(destination) and _is_path(kind) and _is_path(source) and isinstance(options, list)):
        return None
    if not all(_is_path(option) for option in options):
        return None
    return Mount(
        destination=normal_destination(destination),
        type=kind,
        source=source,
        options=tuple(options),
        mappings=_mappings(entry),
    )


def _user_namespace(linux: object) -> Mapping[str, object]:
    if not isinstance(linux, dict):
        return {}
    said = _mappings(linux)
    namespaces = linux.get("namespaces")
    for namespace in namespaces if isinstance(namespaces, list) else ():
        if isinstance(namespace, dict) and namespace.get("type") == "user":
            return {**said, "path": namespace.get("path")}
    return said


def _swallowed(hooks: object) -> Sequence[str]:
    listed = hooks.get("poststop") if isinstance(hooks, dict) else None
    for hook in listed if isinstance(listed, list) else ():
        if not isinstance(hook, dict):
            continue
        path, arguments = hook.get("path"), hook.get("args")
        if not (_is_path(path) and os.path.basename(path).startswith("archive_overlay")):
            continue
        if (
            isinstance(arguments, list)
            and arguments
            and isinstance(arguments[0], str)
            and arguments[0] != path
        ):
            return swallowed_options(arguments[0])
    return ()


def _mappings(entry: Mapping[str, object]) -> Mapping[str, object]:
    return {key: entry[key] for key in ("uidMappings", "gidMappings") if entry.get(key)}


def _or(value: object, default: object) -> object:
    # null is what Go's JSON makes of a list or map that is not there.
    return default if value is None else value


def _root(root: object, bundle: str) -> str:
    path = root.get("path") if isinstance(root, dict) else None
    if not _is_path(path) or not path:
        return ""
    return posixpath.normpath(os.path.join(os.path.abspath(bundle), path))


def _parse(text: bytes, origin: str) -> object:
    # Start-up imports only the scanner that `json` itself calls: the full module, with `re`, takes 7 ms to import, 30
    # times as long. It is loaded for unusual input.
    try:
        from _json import make_scanner

        usual = text.decode().strip(JSON_SPACE)
        value, end = make_scanner(AsLoads)(usual, 0)  # type: ignore[arg-type]
        if end == len(usual):
            return value
    except Exception:
        pass
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise HookError(f"{origin} is not valid JSON: {reason}") from error


def _object(value: object, origin: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise HookError(f"{origin} must be a JSON object, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    names: Sequence[tuple[type, str]] = (
        (bool, "a boolean"),
        (dict, "an object"),
        (list, "a list"),
        (str, "a string"),
        (int, "a number"),
        (float, "a number"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def _is_path(value: object) -> TypeGuard[str]:
    if not isinstance(value, str):
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False  # a lone surrogate
    return "\0" not in value
