"""The programs that a hook runs besides itself: skopeo, and those that are told of each archive."""

from __future__ import annotations

import os
import stat

from archive_overlay.commands.check.access import judge_writers, may, why_not_run
from archive_overlay.commands.check.findings import NOTE, OK, WARNING, Finding, listed
from archive_overlay.transfer.names import SCHEME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from archive_overlay.settings import Settings, TransferSettings


def judge_skopeo(path: str, asked: Iterable[TransferSettings]) -> Finding:
    """Judge the program that takes images from layouts to the engine's store and to registries.

    Args:
        path: of it.
        asked: how hooks use it.
    """
    if not (fault := why_not_run(path)):
        return Finding(OK, "skopeo", f"{path} is there, for load-as and push-to", "", path)
    needed = any(each.push_prefixes or each.load_prefixes for each in asked)
    return Finding(
        WARNING if needed else NOTE,
        "skopeo",
        f"{path} {fault[0]}: revisions are neither loaded nor pushed, and an archive that asks for it is an error",
        "install skopeo, or name it by --skopeo in hook.args"
        if needed
        else "install skopeo if they are wanted",
        path,
    )


def judge_transfer(settings: TransferSettings, *, path: str | None) -> list[Finding]:
    """Say where annotations may have images loaded and pushed to.

    Args:
        settings: the hook's.
        path: of its configuration.
    """
    if settings.load_prefixes is None:
        load = "by any name"
    elif settings.load_prefixes:
        load = f"as {listed(settings.load_prefixes)}"
    else:
        load = "by no name"
    push = (
        f"pushed to {listed([each.removeprefix(SCHEME) for each in settings.push_prefixes])}"
        if settings.push_prefixes
        else "pushed nowhere"
    )
    found = f"images may be loaded into the engine's store {load}, and {push}"
    advice = (
        "to allow another port of a registry, add another --allow-push-to: the port is part of the host"
        if settings.push_prefixes
        else ""
    )
    findings = [Finding(OK, "policy", found, advice, path)]
    if settings.push_prefixes and not settings.tls_verify:
        findings.append(
            Finding(
                WARNING,
                "policy",
                "certificates of registries are not verified: whoever is on the way reads passwords and data",
                "leave --tls-verify=false out of hook.args, except for tests",
                path,
            )
        )
    if settings.authfile:
        findings.append(_judge_authfile(settings.authfile))
    return findings


def judge_reports(settings: Settings, *, user: int) -> list[Finding]:
    """Judge the programs that are told what became of each archive.

    Args:
        settings: the hook's.
        user: who may change them, besides root.
    """
    findings = []
    for option, program, when in (
        ("--on-success", settings.on_success, "is saved"),
        ("--on-failure", settings.on_failure, "fails"),
    ):
        if not program:
            continue
        if fault := why_not_run(program):
            found = f"{option} {program} {fault[0]}: nothing is run when an archive {when}"
            findings.append(Finding(WARNING, "reports", found, fault[1], program))
        elif writers := judge_writers("reports", program, user=user):
            findings.append(writers)
        else:
            findings.append(Finding(OK, "reports", f"{program} is run when an archive {when}", "", program))
    return findings


def _judge_authfile(path: str) -> Finding:
    if not may(path, os.R_OK):
        found = f"--authfile {path} cannot be read: registries that want a password refuse what is pushed"
        return Finding(WARNING, "policy", found, f"skopeo login --authfile {path} REGISTRY", path)
    if stat.S_IMODE(os.stat(path).st_mode) & (stat.S_IRGRP | stat.S_IROTH):
        found = f"--authfile {path}, with passwords of registries, can be read by others"
        return Finding(WARNING, "policy", found, f"chmod 0600 {path}", path)
    return Finding(OK, "policy", f"passwords of registries are in {path}", "", path)
