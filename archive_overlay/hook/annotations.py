"""What the user asks for: annotations of the container to requests."""

from __future__ import annotations

import os
import time

from archive_overlay import methods
from archive_overlay.errors import ArchiveError, brief
from archive_overlay.hook.runtime import normal_destination
from archive_overlay.keys import KEYS, PREFIX
from archive_overlay.log import Repeated
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from archive_overlay.log import Log
    from archive_overlay.methods import Method
    from archive_overlay.overlay.selection import Selection

# What means something to some methods only.
_METHOD_KEYS = (
    "tar-content-owner",
    "compression",
    "compression-level",
    "whiteouts",
    "parent",
    "max-layers",
    "if-moved",
    "base",
    "keep",
    "message",
    "load-as",
    "push-to",
)

# What leaves something out.
_SELECTION_KEYS = ("exclude", "include", "exclude-caches")

# The largest id that chown(2) takes: one more means "leave it as it is".
_LARGEST_ID = 2**32 - 2

_LONGEST_MESSAGE = 1000


class Context(Record):
    """What the placeholders in paths stand for.

    Attributes:
        id: the container's.
        timestamp: when it stopped; see `timestamp`.
    """

    id: str
    timestamp: str


class Contradiction(dict[str, object]):
    """The values of one key that both its forms have, and that are not the same, by annotation.

    It is what the notes of a rescue show as the value.
    """


class ArchiveRequest(Record):
    """One archive that the container's annotations ask for.

    Attributes:
        container: id of the container that asks.
        name: what the user calls it.
        mount_point: the mount's destination in the container, normalised.
        archive_to: absolute path of the archive in the runtime namespace.
        success: absolute path of the success marker, or None.
        method: how it is stored.
        if_exists: what to do with what is at `archive_to`: one of `methods.IF_EXISTS`; "" where that is
            no question.
        owners: by whose numbers owners are stored, where the container has others: one of `methods.OWNERS`.
        owner: user and group id of everything in a tar, or None for the true owners.
        selection: what of the change set is archived; None: everything.
        compression: of a tar, a name in `methods.COMPRESSIONS`; "" where there is no tar.
        level: of the compression; 0 where there is none.
        whiteouts: how a tar says that something was deleted: one of `methods.WHITEOUTS`.
        parent: TAG or TAG@N: the image, or the revision of it, that a new tag begins with; "" for none.
        max_layers: how many layers the image may have.
        if_moved: what to do if the container started from something else than the tag's newest revision: one of
            `methods.IF_MOVED`.
        base: "include" if a history is to begin with the container's image; "" if not.
        keep: which revisions to keep, as the annotation says it; "" for all.
        message: what the user says of the revision; "" for nothing.
        load_as: by which name the engine is to have the revision; "" for none.
        push_to: where in a registry it is to be, "docker://HOST/NAME:TAG"; "" for nowhere.
    """

    container: str
    name: str
    mount_point: str
    archive_to: str
    success: str | None
    method: Method
    if_exists: str
    owners: str = "container"
    owner: tuple[int, int] | None
    selection: Selection | None = None
    compression: str
    level: int
    whiteouts: str
    parent: str
    max_layers: int = methods.DEFAULT_LAYERS
    if_moved: str = methods.IF_MOVED[0]
    base: str = ""
    keep: str = ""
    message: str = ""
    load_as: str = ""
    push_to: str = ""


def group_by_name(annotations: Mapping[str, object], log: Log) -> Iterator[tuple[str, dict[str, object]]]:
    """Gather the annotations that are ours by archive name.

    Kubernetes allows no more than 63 characters after a slash, and counts all of them where there is none: so a
    slash may stand in place of the dot before the key. What names no archive or no key of ours, and half a
    pair, is ignored with a warning, as in 2.0.4.

    Args:
        annotations: all annotations of the container.
        log: takes the warnings.

    Yields:
        An archive's name, and its keys and values; `mount-point` and `archive-to` are there. A value may be a
        `Contradiction`.
    """
    warnings = Repeated(log)
    archives: dict[str, dict[str, object]] = {}
    for annotation, value in annotations.items():
        if not annotation.startswith(PREFIX):
            continue
        name, key = split(annotation)
        if not name or not key or "." in key:
            warnings.warning(
                "annotations ignored that are not NAME.KEY",
                f"annotation {annotation} is ignored: it must be {PREFIX}NAME.KEY or {PREFIX}NAME/KEY, with no dot"
                " in NAME",
            )
        elif key not in KEYS:
            warnings.warning(
                "annotations ignored with an unknown key",
                f"annotation {annotation} is ignored: there is no key {key}{_meant(key)}",
            )
        else:
            keys = archives.setdefault(name, {})
            keys[key] = _both(name, key, keys[key], annotation, value) if key in keys else value
    for name, keys in archives.items():
        missing = [key for key in ("mount-point", "archive-to") if keys.get(key, "") == ""]
        if missing:
            warnings.warning(
                "archives ignored that are only half asked for",
                f"archive {name} is ignored: it has no {' and no '.join(missing)} annotation",
            )
        else:
            yield name, keys
    warnings.finish()


def split(annotation: str) -> tuple[str, str]:
    """Give the name and the key of an annotation that begins with the prefix; "" for both: it has none."""
    text = annotation[len(PREFIX) :]
    name, dot, key = text.partition(".")
    if not dot:
        name, _, key = text.rpartition("/")
    return name, key


def timestamp(nanoseconds: int) -> str:
    """Give what `{timestamp}` stands for: 20261121T205533.123456Z, in UTC.

    It has a fraction because a container may stop twice in a second. A full stop is possible in all that it may be a part
    of, tags too. Texts sort as times do.

    Args:
        nanoseconds: since the epoch.
    """
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{rest // 1000:06}Z"


def parse_request(name: str, keys: Mapping[str, object], context: Context, log: Log) -> ArchiveRequest:
    """Make a request of one archive's annotations.

    Args:
        name: the archive's name.
        keys: its keys and values, as `group_by_name` gives them.
        context: what placeholders in the paths stand for.
        log: takes a warning for what is ignored.

    Raises:
        ArchiveError: a value cannot be used.
    """
    texts: dict[str, str] = {}
    for key, value in keys.items():
        if isinstance(value, Contradiction):
            said = " and ".join(f"{annotation} says {text!r}" for annotation, text in value.items())
            raise ArchiveError(f"{key} is not clear: {said}", hint="leave one of them out")
        if not isinstance(value, str):
            raise ArchiveError(f"{key} must be a string")
        if value:  # what is empty is not there: templates leave it so
            texts[key] = value
    method = _method(texts.get("method", "copy"))
    values = {"{id}": context.id, "{name}": name, "{timestamp}": context.timestamp}
    for key in _METHOD_KEYS:
        if key in texts and key not in method.keys:
            log.warning(f"archive {name}: {key} is ignored, because it means nothing to method {method.name}")
            del texts[key]
    for key in ("archive-to", "success"):
        for placeholder in _unknown_placeholders(texts.get(key, ""), values):
            log.warning(
                f"archive {name}: {key} has {placeholder}, which stands for nothing and stays as it is; the placeholders are"
                f" {', '.join(values)}"
            )
    compression = _compression(texts.get("compression", method.compression))
    return ArchiveRequest(
        container=context.id,
        name=name,
        mount_point=normal_destination(texts["mount-point"]),
        archive_to=_path(texts["archive-to"], "archive-to", values),
        success=_path(texts["success"], "success", values) if "success" in texts else None,
        method=method,
        if_exists=_if_exists(texts.get("if-exists", ""), method),
        owners=_one_of(methods.OWNERS, texts.get("owners", "container"), "owners"),
        owner=_owner(texts["tar-content-owner"], name, log) if "tar-content-owner" in texts else None,
        selection=_selection(texts, method),
        compression=compression,
        level=_level(texts.get("compression-level", ""), compression),
        whiteouts=_one_of(methods.WHITEOUTS, texts.get("whiteouts", "overlay"), "whiteouts"),
        parent=texts.get("parent", ""),
        max_layers=_max_layers(texts.get("max-layers", "")),
        if_moved=_one_of(methods.IF_MOVED, texts.get("if-moved", methods.IF_MOVED[0]), "if-moved"),
        base=_one_of(methods.BASE, texts.get("base", _default_base(texts)), "base"),
        keep=texts.get("keep", ""),
        message=_message(texts.get("message", "")),
        load_as=texts.get("load-as", ""),
        push_to=texts.get("push-to", ""),
    )


def _both(name: str, key: str, before: object, annotation: str, value: object) -> object:
    """Give what two annotations say that mean the same, the one with a dot and the one with a slash."""
    if value in (before, ""):
        return before
    if before == "":
        return value
    dotted, slashed = f"{PREFIX}{name}.{key}", f"{PREFIX}{name}/{key}"
    return Contradiction({slashed if annotation == dotted else dotted: before, annotation: value})


def _method(value: str) -> Method:
    if value not in methods.METHODS:
        raise ArchiveError(f"unknown method {value!r}", hint=f"known are {', '.join(methods.METHODS)}")
    return methods.METHODS[value]


def _if_exists(value: str, method: Method) -> str:
    if not value:
        return method.if_exists[0] if method.if_exists else ""
    if value not in methods.IF_EXISTS:
        raise ArchiveError(f"unknown if-exists {value!r}", hint=f"known are {', '.join(methods.IF_EXISTS)}")
    if value not in method.if_exists:
        raise ArchiveError(
            f"if-exists {value} is not possible with method {method.name}",
            hint=f"possible are {', '.join(method.if_exists)}" if method.if_exists else "leave it out",
        )
    return value


def _compression(value: str) -> str:
    if value and value not in methods.COMPRESSIONS:
        raise ArchiveError(
            f"unknown compression {value!r}", hint=f"known are {', '.join(methods.COMPRESSIONS)}"
        )
    return value


def _level(value: str, compression: str) -> int:
    if not compression:
        return 0
    known = methods.COMPRESSIONS[compression]
    if not value:
        return known.default_level
    if not known.levels:
        raise ArchiveError("compression-level is not possible without compression", hint="leave it out")
    if not (value.isascii() and value.isdigit() and len(value) < 3 and int(value) in known.levels):
        raise ArchiveError(
            f"compression-level {value!r} is not possible with {compression}",
            hint=f"possible are {known.levels[0]} to {known.levels[-1]}",
        )
    return int(value)


def _one_of(known: tuple[str, ...], value: str, key: str) -> str:
    if value not in known:
        raise ArchiveError(
            f"unknown {key} {brief(value)!r}", hint=f"known are {', '.join(filter(None, known))}"
        )
    return value


def _selection(texts: Mapping[str, str], method: Method) -> Selection | None:
    caches = _one_of(("true", "false"), texts.get("exclude-caches", "false"), "exclude-caches") != "true"
    asked = [key for key in _SELECTION_KEYS if key in texts and not (key == "exclude-caches" and caches)]
    if not asked:
        return None
    if method.renames:
        raise ArchiveError(
            f"{asked[0]} is not possible with method {method.name}, which keeps the upperdir as it is",
            hint="use method copy",
        )
    from archive_overlay.overlay.patterns import parse_patterns
    from archive_overlay.overlay.selection import Selection

    patterns = {key: parse_patterns(texts[key], key) for key in ("include", "exclude") if key in texts}
    for key, found in patterns.items():
        if not found:
            raise ArchiveError(f"{key} {brief(texts[key])!r} has no pattern", hint="leave it out")
    return Selection(include=patterns.get("include", ()), exclude=patterns.get("exclude", ()), caches=caches)


def _default_base(texts: Mapping[str, str]) -> str:
    """Give what `base` is if nothing is said: the next container is to find what this one had, and not its changes alone."""
    return "include" if "load-as" in texts or "push-to" in texts else ""


def _max_layers(value: str) -> int:
    if not value:
        return methods.DEFAULT_LAYERS
    if not (value.isascii() and value.isdigit() and len(value) < 4 and int(value) in methods.LAYERS):
        raise ArchiveError(
            f"max-layers {brief(value)!r} is not possible",
            hint=f"possible are {methods.LAYERS[0]} to {methods.LAYERS[-1]}",
        )
    return int(value)


def _message(value: str) -> str:
    if len(value) > _LONGEST_MESSAGE:
        raise ArchiveError(
            f"the message has {len(value)} characters", hint=f"it may have at most {_LONGEST_MESSAGE}"
        )
    if any(map(_is_control, value)):
        raise ArchiveError(
            f"the message {value!r} has control characters", hint="a message is one line of text"
        )
    return value


def _is_control(character: str) -> bool:
    """Say whether a character is none of a line of text: a control character, an end of a line, or half a character."""
    return (
        character < " "
        or "\x7f" <= character <= "\x9f"
        or "\ud800" <= character <= "\udfff"
        or character in "\u2028\u2029"
    )


def _path(text: str, key: str, values: Mapping[str, str]) -> str:
    value, used = _filled_in(text, values)
    if any("/" in word or word in ("", ".", "..") for word in used):
        raise ArchiveError(f"{key} {text!r} has a placeholder for something that cannot be a file's name")
    try:
        usable = "\0" not in value and bool(os.fsencode(value))
    except UnicodeEncodeError:
        usable = False  # a lone surrogate
    if not usable:
        raise ArchiveError(f"{key} {value!r} cannot be a path")
    if not value.startswith("/"):
        raise ArchiveError(f"{key} {value!r} is a relative path", hint=_absolute_instead(value))
    return os.path.normpath("/" + value.lstrip("/"))


def _absolute_instead(path: str) -> str:
    """Say what to write in place of a path that is not absolute: perhaps it is an image's name, as other programs have it."""
    transport, _, rest = path.partition(":")
    if transport == "oci" and rest.startswith("/"):
        return f"write {rest!r}, and method=oci"
    if transport in ("docker", "containers-storage"):
        other = "push-to" if transport == "docker" else "load-as"
        return f"give the absolute path of an image layout, as /srv/data:main, and this name in the annotation {other}"
    if path.startswith(("~", "$")):
        return "the hook expands no ~ and no variables; give an absolute path, which begins with /"
    return "give an absolute path, which begins with /"


def _meant(word: str) -> str:
    # Not at the top: hooks rarely need it.
    import difflib

    alike = difflib.get_close_matches(word.lower(), KEYS, n=1)
    return f"; did you mean {alike[0]}?" if alike else f", only {', '.join(KEYS)}"


def _unknown_placeholders(text: str, known: Collection[str]) -> Iterator[str]:
    """Give what looks like a placeholder in a path and is not one."""
    for part in text.split("{")[1:]:
        word, brace, _ = part.partition("}")
        if brace and word.replace("-", "").replace("_", "").isalpha() and f"{{{word}}}" not in known:
            yield f"{{{word}}}"


def _filled_in(text: str, values: Mapping[str, str]) -> tuple[str, list[str]]:
    """Put values in the places of placeholders, and give those that were used; other braces stay."""
    begin, *parts = text.split("{")
    filled, used = [begin], []
    for part in parts:
        placeholder, brace, rest = part.partition("}")
        word = values.get(f"{{{placeholder}{brace}")
        if word is None:
            filled += "{", part
        else:
            filled += word, rest
            used.append(word)
    return "".join(filled), used


def _owner(value: str, name: str, log: Log) -> tuple[int, int] | None:
    parts = value.split(":")
    if len(parts) <= 2 and all(part.isascii() and part.isdigit() for part in parts):
        ids = [int(part) for part in parts] if len(value) < 24 else [_LARGEST_ID + 1]
        if max(ids) <= _LARGEST_ID:
            return ids[0], ids[1] if len(ids) == 2 else 0
    log.warning(
        f"archive {name}: tar-content-owner {value!r} is ignored: it must be UID or UID:GID, integers from 0 to"
        f" {_LARGEST_ID}"
    )
    return None
