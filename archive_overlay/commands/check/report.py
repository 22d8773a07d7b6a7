"""`archive_overlay check`: whether this host is set up, on one screen."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from archive_overlay import __version__
from archive_overlay.commands import Output
from archive_overlay.commands.check import access, hook_files, hooks_dirs, host, podman, programs
from archive_overlay.commands.check.findings import NOTE, OK, PROBLEM, WARNING, Finding, combined
from archive_overlay.commands.terminal import CYAN, GREEN, RED, YELLOW, coloured, find_screen, wrapped
from archive_overlay.log import escape
from archive_overlay.settings import DEFAULT_MOUNT_PROGRAM, DEFAULT_SKOPEO, Settings, swallowed_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any, Callable

    from archive_overlay.commands.check.hook_files import HookFile
    from archive_overlay.commands.check.hooks_dirs import Directories
    from archive_overlay.commands.check.host import Host
    from archive_overlay.commands.terminal import Screen
    from archive_overlay.log import Log

    Parser = Callable[[Sequence[str]], object]  # Settings, if it runs as a hook with these arguments

_COLOURS = {OK: GREEN, NOTE: CYAN, WARNING: YELLOW, PROBLEM: RED}
_STATUS_WIDTH = max(map(len, _COLOURS))
_TOPIC_WIDTH = len("fuse-overlayfs")


def run(options: argparse.Namespace, log: Log) -> int:
    """Write what was found to standard output.

    Args:
        options: `hooks_dir`, directories to look in; `json`; `parse`, by which the hook reads its arguments.
        log: takes nothing.

    Returns:
        0: nothing stops archives; 1: something does.
    """
    here = host.this_host()
    directories = (
        [hooks_dirs.given_directories(options.hooks_dir)]
        if options.hooks_dir
        else directories_of_podman(here)
    )
    findings, hooks = check(here, directories, options.parse)
    problems = sum(finding.status == PROBLEM for finding in findings)
    output = Output()
    if options.json:
        output.line(json.dumps(_object(here, directories, hooks, findings), indent=2))
    else:
        screen = find_screen(options)
        for finding in findings:
            output.line(_line(finding, screen))
        output.line(_summary(problems))
    output.flush()
    return 1 if problems else 0


@dataclass(frozen=True)
class _Hooks:
    """What is in some directories of hook configurations.

    Attributes:
        findings: what was found.
        ours: the configurations that make the engine run this program.
        asked: what the arguments of each ask for that is meant to.
    """

    findings: list[Finding]
    ours: list[HookFile]
    asked: list[Settings]


def check(
    here: Host, directories: Sequence[Directories], parse: Parser
) -> tuple[list[Finding], list[HookFile]]:
    """Look at a host.

    Args:
        here: it.
        directories: where its engine looks for hook configurations; of several, one is true.
        parse: by which the hook reads its arguments.

    Returns:
        What was found, and the configurations that make the engine run this program whichever it is.
    """
    hooks = {each.read: _judge_hooks(each, here, parse) for each in directories}
    about_hooks = [hooks_dirs.judge_release(here.podman)] if directories[0].release else []
    about_hooks += combined(
        (each.release, [*each.findings, *hooks[each.read].findings]) for each in directories
    )
    findings = [*host.judge_program(here), *host.judge_python(here)]
    if len({(each.findings, each.read) for each in directories}) > 1:
        findings.append(hooks_dirs.UNKNOWN_RELEASE)
    findings += about_hooks
    asked = [settings for each in hooks.values() for settings in each.asked]
    served = [
        host.judge_mount_program(path, asked=path != DEFAULT_MOUNT_PROGRAM)
        for path in sorted({each.mount_program for each in asked} or {DEFAULT_MOUNT_PROGRAM})
    ]
    findings += host.judge_kernel(here, fuse=any(finding.status == OK for finding in served))
    findings += host.judge_overlay_defaults(here)
    findings += served
    findings.append(host.judge_zstd())
    transfers = [each.transfer for each in asked]
    for path in sorted({each.skopeo for each in transfers} or {DEFAULT_SKOPEO}):
        findings.append(programs.judge_skopeo(path, [each for each in transfers if each.skopeo == path]))
    first, *others = hooks.values()
    return findings, [hook for hook in first.ours if all(hook in other.ours for other in others)]


def understood(arguments: Sequence[str], parse: Parser) -> Settings:
    """Read the arguments of a hook as the hook itself does.

    Raises:
        ValueError: it does not run as a hook with them; says why.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            settings = parse(arguments)
    except SystemExit as end:
        if not end.code:
            raise ValueError("they ask for the version or for help") from end
        (_, _, error) = said.getvalue().partition("error: ")
        raise ValueError(error.splitlines()[0]) from end
    if not isinstance(settings, Settings):
        raise ValueError(f"{arguments[0]} is a command for people")
    if settings.bundle:
        raise ValueError("--bundle is for running by hand: it would always be the same container")
    return settings


def directories_of_podman(here: Host) -> list[Directories]:
    """Give the directories in which podman looks for hook configurations: of each release that there may be."""
    parse = hooks_dirs.toml_parser()
    return [
        hooks_dirs.find_directories(
            release,
            configurations=podman.configurations(release, user=here.user, home=here.home),
            rootless=here.rootless,
            parse=parse,
        )
        for release in here.podman.releases
    ]


def _judge_hooks(directories: Directories, here: Host, parse: Parser) -> _Hooks:
    """Judge what is in the directories that the engine reads."""
    files = hook_files.read_hook_files(directories.read)
    findings = [*files.findings]
    ours: list[HookFile] = []
    failing = False
    asked: list[tuple[HookFile, Settings]] = []
    for hook in files.in_force:
        if not (hook.is_meant_for_us or (here.program and is_this(hook, here))):
            continue
        found, settings = _judge_hook(hook, here, parse)
        findings += found
        if any(finding.status == PROBLEM for finding in found):
            failing = True
        elif is_this(hook, here):
            ours.append(hook)
        if settings:
            asked.append((hook, settings))
    if ours or not failing:
        findings += _judge_number(ours, directories, any(finding.topic == "hook" for finding in findings))
    for hook, settings in asked:
        findings += _judge_policy(hook, settings, here)
    findings += _judge_logs([settings for _, settings in asked], here)
    return _Hooks(findings, ours, [settings for _, settings in asked])


def _judge_hook(hook: HookFile, here: Host, parse: Parser) -> tuple[list[Finding], Settings | None]:
    """Judge a configuration that is meant for this program.

    Returns:
        What was found, and what its arguments ask for; None: they are not understood.
    """
    whom, findings = hook_files.judge_when(hook)
    settings: Settings | None = None

    def found(status: str, what: str, advice: str) -> None:
        findings.append(Finding(status, "hook", f"{hook.path} {what}", advice, hook.path))

    if not os.path.isabs(hook.program):
        found(PROBLEM, f"names {hook.program}, which is not an absolute path", "name the program by one")
    elif fault := access.why_not_run(hook.program):
        found(PROBLEM, f"runs {hook.program}, which {fault[0]}", fault[1])
    elif not is_this(hook, here):
        advice = "install this one in its place, or correct hook.path"
        if os.path.basename(hook.program).startswith("archive_overlay"):
            advice += f"; or ask that one: {hook.program} check"
        found(WARNING, f"runs {hook.program}, which is another file than {here.program}", advice)
    swallowed = swallowed_options(hook.name) if hook.name != hook.program else []
    if swallowed:
        found(
            PROBLEM,
            f"has {' '.join(swallowed)} in the first of its args, where the program's name belongs: it has no effect",
            'put "archive_overlay" first in hook.args, and each option as an item of its own',
        )
    try:
        settings = understood(hook.arguments, parse)
    except ValueError as error:
        if not swallowed:
            found(PROBLEM, f"has args with which the hook fails: {error}", "correct hook.args")
    if stages := hook_files.judge_stages(hook):
        findings.append(stages)
    if hook.timeout is not None:
        found(
            WARNING,
            f"has the engine kill the hook after {hook.timeout} s, whatever is not saved by then",
            "leave hook.timeout out",
        )
    if writers := access.judge_writers("hook", hook.path, user=here.user):
        findings.append(writers)
    if all(finding.status in (OK, NOTE) for finding in findings):
        found(OK, f"runs {hook.program} for {whom}", "")
    return findings, settings


def is_this(hook: HookFile, here: Host) -> bool:
    """Say whether a configuration runs this very program."""
    return here.program is None or access.is_same_file(hook.program, here.program)


def _judge_number(hooks: list[HookFile], directories: Directories, said_why: bool) -> list[Finding]:
    if len(hooks) > 1:
        paths = " and ".join(hook.path for hook in hooks)
        found = f"{paths} both run it: it runs more than once for a container that both match"
        return [Finding(WARNING, "hook", found, "remove all but one")]
    if hooks:
        return []
    where = " and ".join(directories.read) or "any directory"
    advice = "see above" if said_why else "make install puts archive_overlay.json there; or give --hooks-dir"
    return [Finding(PROBLEM, "hook", f"no hook configuration in {where} runs this program", advice)]


def _judge_policy(hook: HookFile, settings: Settings, here: Host) -> list[Finding]:
    """Say what annotations may ask for, and judge the directories that this is about."""
    allowed = settings.allowed
    findings = []
    if allowed:
        found = f"archives may be in {' and '.join(allowed)}, and nowhere else"
        findings.append(Finding(OK, "policy", found, "", hook.path))
    else:
        findings.append(
            Finding(
                NOTE,
                "policy",
                "annotations may name any path: whoever sets a container's annotations can have archives written wherever"
                f" {'you' if here.rootless else 'root'} may write",
                "if others set them, add --allow-archive-to=DIR to hook.args; see docs/security.md",
                hook.path,
            )
        )
    findings.append(_judge_images(hook, settings, here))
    findings.append(Finding(OK, "policy", _limits(settings), "", hook.path))
    findings += programs.judge_transfer(settings.transfer, path=hook.path)
    findings += [access.judge_directory(path, "--allow-archive-to", made=False) for path in allowed]
    if settings.rescue_dir:
        findings.append(access.judge_directory(settings.rescue_dir, "--rescue-dir", made=True))
    findings += programs.judge_reports(settings, user=here.user)
    return findings


def _judge_images(hook: HookFile, settings: Settings, here: Host) -> Finding:
    """Say whether images may ask for archives, and whether they can."""
    podman = {
        True: "this podman passes them on",
        False: "this podman does not pass them on",
        None: "podman up to 4.5.0 passes them on",
    }[here.passes_on]
    if not settings.trust_image_annotations:
        return Finding(OK, "policy", f"annotations of images are refused; {podman}", "", hook.path)
    return Finding(
        NOTE if here.passes_on is False else WARNING,
        "policy",
        f"annotations of images are obeyed, so the author of an image may ask for archives; {podman}",
        "leave --trust-image-annotations out of hook.args",
        hook.path,
    )


def _limits(settings: Settings) -> str:
    limits = [
        f"at most {limit} {what}"
        for limit, what in ((settings.max_bytes, "bytes"), (settings.max_entries, "entries"))
        if limit is not None
    ]
    words = [" and ".join(limits) + " an archive" if limits else "archives of any size"]
    words.append(f"set-user-ID bits and capabilities {'kept' if settings.setid else 'left out'}")
    words.append(f"what fails is {f'kept in {settings.rescue_dir}' if settings.rescue_dir else 'not kept'}")
    if not settings.fsync:
        words.append("nothing is flushed to disk")
    return ", ".join(words)


def _judge_logs(asked: list[Settings], here: Host) -> list[Finding]:
    syslog = any(settings.syslog for settings in asked)
    files = sorted({settings.log_file for settings in asked if settings.log_file})
    findings = [access.judge_log_file(path) for path in files]
    findings.append(host.judge_syslog(here, wanted=syslog))
    if asked and not syslog and not files:
        findings.append(
            Finding(
                NOTE,
                "log",
                "nobody sees what the hook says: podman logs and podman events do not show it, and podman itself does"
                " only at --log-level=debug",
                "to keep it, add --syslog or --log-file=PATH to hook.args",
            )
        )
    return findings


def _line(finding: Finding, screen: Screen) -> str:
    status = coloured(finding.status.ljust(_STATUS_WIDTH), _COLOURS[finding.status], screen)
    advice = f"; {finding.advice}" if finding.advice else ""
    text = escape(finding.found + advice)
    margin = " " * (_STATUS_WIDTH + _TOPIC_WIDTH + 4)
    if screen.fixed:
        # Paths stay whole, to be copied.
        text = "\n".join(wrapped(text, screen.width, margin=margin, cuts_words=False)).lstrip()
    return f"{status}  {finding.topic.ljust(_TOPIC_WIDTH)}  {text}"


def _summary(problems: int) -> str:
    if not problems:
        return "Nothing here stops archives."
    return f"{'1 problem stops' if problems == 1 else f'{problems} problems stop'} archives."


def _object(
    here: Host, directories: Sequence[Directories], hooks: list[HookFile], findings: list[Finding]
) -> dict[str, Any]:
    return {
        "version": __version__,
        "program": here.program,
        "rootless": here.rootless,
        "ready": all(finding.status != PROBLEM for finding in findings),
        "hooks_dirs": [
            path for path in directories[0].read if all(path in each.read for each in directories)
        ],
        "hooks": [hook.path for hook in hooks],
        "findings": [
            {
                "status": finding.status,
                "topic": finding.topic,
                "path": finding.path,
                "found": finding.found,
                "advice": finding.advice or None,
            }
            for finding in findings
        ],
    }
