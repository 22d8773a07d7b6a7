"""What a stop archives is pushed: as far as the administrator allows it, and without making the archive less safe."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver
from tests.integration.hook.test_reports import Programs
from tests.support import histories, hooks, image_layouts
from tests.support.hosts import PUSH_TO, Host
from tests.support.registry import Registry, Way

if TYPE_CHECKING:
    from pathlib import Path


class Stops:
    """A container that stops again and again, and whose data go to a registry.

    Attributes:
        host: its layout.
    """

    def __init__(self, saver: Saver, registry: Registry, name: str) -> None:
        self._saver = saver
        self.host = Host(saver.archive, registry.reference(name))
        self.allowed = f"--allow-push-to={registry.host}/team"

    def forget(self) -> None:
        """Let the container have changed nothing."""
        (self._saver.overlay.upper / "file").unlink()

    def stop(self, *arguments: str, change: str = "", **keys: Any) -> hooks.Result:
        """Change something, and stop."""
        if change:
            self._saver.overlay.change(lambda root: (root / "file").write_text(change))
        policy = arguments or (self.allowed,)
        wanted = {
            "archive_to": f"{self._saver.archive}:main",
            "push_to": self.host.remote,
            "base": "",
            **keys,
        }
        result = self._saver.run("--tls-verify=false", *policy, **wanted)
        assert self._saver.success.exists()
        return result


def warnings(result: hooks.Result) -> list[str]:
    """Give what a stop warned of; that these containers come from no engine's store is no matter here."""
    return [message for message in result.messages("warning") if "begins without the image" not in message]


@pytest.fixture
def stops(any_overlay: Any, scratch: Path, shared: Registry, name: str) -> Stops:
    """Give such a container."""
    return Stops(Saver(any_overlay, "oci", scratch), shared, name)


def test_each_stop_pushes_its_revision(stops: Stops, shared: Registry, name: str) -> None:
    for number in range(3):
        result = stops.stop(change=f"{number}")

        assert (result.status, warnings(result)) == (0, [])
        assert any("main is pushed to" in message for message in result.messages("info"))
        assert shared.digest(name) == stops.host.digest()
        assert not stops.host.waits
    assert len(shared.manifest(name)["layers"]) == 3


def test_nothing_is_pushed_that_nobody_has_allowed(stops: Stops, shared: Registry, name: str) -> None:
    for allowed in ("--allow-push-to=registry.example", f"--allow-push-to={shared.host}/tea", "--jobs=1"):
        result = stops.stop(allowed, change=allowed)

        assert result.status == 1
        assert "is not allowed; the administrator allows it by --allow-push-to" in result.only_error()
        assert shared.tags(name) == []
        assert PUSH_TO not in stops.host.entry()["annotations"]


def test_a_report_says_where_a_revision_was_pushed_and_why_not(stops: Stops, scratch: Path) -> None:
    programs = Programs(scratch)

    stops.stop(stops.allowed, *programs.options, change="pushed")
    stops.stop(*programs.options, change="not allowed")

    (pushed,), (failed,) = programs.success.told, programs.failure.told
    assert (pushed["revision"], pushed["pushed"]) == (1, stops.host.remote)
    assert (failed["saved"], failed["revision"], failed["pushed"]) == (True, 2, None)
    assert "is not allowed" in failed["error"]


@pytest.mark.parametrize(
    "to",
    [
        "docker://HOST/team/../other:main",
        "docker://HOST/team/data@sha256:" + "0" * 64,
        "docker://somebody:secret@HOST/team/data:main",
        "docker://HOST/Team/data:main",
        "docker://HOST:80/team/data:main",
        "docker://team/data:main",
        "oci:/etc/team:main",
        "dir:/tmp/team",
        "docker-archive:/tmp/x",
        "--authfile=/x docker://HOST/team/data",
        "docker://HOST/team/data:main docker://HOST/team",
        "docker://HOST/team\n/data:main",
    ],
)
def test_no_name_leads_around_what_is_allowed(stops: Stops, shared: Registry, to: str) -> None:
    before = len(shared.requests())

    result = stops.stop(change="1", push_to=to.replace("HOST", shared.host))

    assert result.status == 1
    assert "the revision will not be pushed: " in result.only_error()
    assert len(shared.requests()) == before


def test_a_registry_that_is_silent_takes_no_longer_than_allowed(
    stops: Stops, shared: Registry, name: str
) -> None:
    with Way(shared, silent=True) as way:
        allowed = (f"--allow-push-to={way.host}", "--push-timeout=1")

        result = stops.stop(*allowed, change="1", push_to=way.reference(name))

        assert way.connections == 1
    assert result.status == 1
    error = result.only_error()
    assert " is safe, but pushing it failed" in error
    assert f"archive_overlay push {stops.host.layout}:main sends it, and so does the next stop" in error
    assert stops.host.waits


def test_what_one_stop_could_not_push_the_next_one_does(stops: Stops, shared: Registry, name: str) -> None:
    for tag, place in (("other", name), ("forbidden", "not/allowed")):
        failed = stops.stop(
            f"--allow-push-to={shared.host}",
            "--skopeo=/usr/bin/false",
            change=tag,
            archive_to=f"{stops.host.layout}:{tag}",
            push_to=shared.reference(place, tag),
        )
        assert failed.status == 1

    result = stops.stop(change="3")

    assert result.status == 0
    assert shared.tags(name) == ["main", "other"]
    (warning,) = warnings(result)
    assert "forbidden still waits" in warning
    assert "is not allowed" in warning
    assert shared.tags("not/allowed") == []


def test_that_skopeo_is_missing_is_said_before_anything_is_written(stops: Stops) -> None:
    result = stops.stop(stops.allowed, "--skopeo=/usr/bin/not-there", change="1")

    assert result.status == 1
    lines = result.lines()
    missing = "there is no program /usr/bin/not-there"
    said = [missing in line.message for line in lines].index(True)
    saved = [": saved " in line.message for line in lines].index(True)
    assert said < saved
    assert missing in result.only_error()
    assert stops.host.waits


def test_a_stop_without_changes_pushes_what_is_not_there(stops: Stops, shared: Registry, name: str) -> None:
    assert stops.stop(change="1").status == 0
    shared.ask("DELETE", f"{name}/manifests/{stops.host.digest()}")
    (stops.host.layout / "index.json").write_text(
        (stops.host.layout / "index.json").read_text().replace("pushed", "nothing")
    )
    stops.forget()

    assert stops.stop().status == 0

    assert shared.digest(name) == stops.host.digest()


def test_another_host_s_revisions_stay(stops: Stops, shared: Registry, name: str, scratch: Path) -> None:
    assert stops.stop(change="1").status == 0
    other = stops.host.twin(scratch / "two")
    other.stop("of the other")
    assert other.push().status == 0

    result = stops.stop(change="2")

    assert result.status == 0
    (warning,) = warnings(result)
    fetch = f"archive_overlay fetch {stops.host.layout}:main {stops.host.remote}"
    assert f"{stops.host.remote} has revisions that {stops.host.layout} lacks" in warning
    assert f"{fetch} gets what is at" in warning
    assert shared.digest(name) == other.digest()
    assert shared.digest(name, "main-c1") == stops.host.digest()

    refused = stops.stop(change="3", if_moved="fail")

    assert refused.status == 1
    assert f"; {fetch} gets them" in refused.only_error()
    assert shared.tags(name) == ["main", "main-c1"]


def test_no_branch_goes_where_only_the_tag_is_allowed(
    stops: Stops, shared: Registry, name: str, scratch: Path
) -> None:
    assert stops.stop(change="1").status == 0
    other = stops.host.twin(scratch / "two")
    other.stop("of the other")
    assert other.push().status == 0

    result = stops.stop(f"--allow-push-to={stops.host.remote}", change="2")

    assert result.status == 1
    assert f"{shared.reference(name, 'main-c1')} is not allowed" in result.only_error()
    assert shared.tags(name) == stops.host.tags == ["main"]


def test_hosts_in_turn(stops: Stops, shared: Registry, name: str, scratch: Path) -> None:
    assert stops.stop(change="0").status == 0
    other = Host(scratch / "two", stops.host.remote)
    for number in range(1, 3):
        pull(stops.host.remote, other)
        other.stop(f"{number}")
        assert other.push(f"--to={other.remote}", f"{other.layout}:main").status == 0
        pull(stops.host.remote, stops.host)
        assert stops.stop(change=f"{number}").status == 0
    assert histories.numbers(stops.host.layout) == list(range(1, 6))
    assert shared.tags(name) == ["main"]
    assert shared.digest(name) == stops.host.digest()


def pull(remote: str, host: Host) -> None:
    """Get what is in the registry, as somebody does who has no command for it."""
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"),
            *(remote, f"oci:{host.layout}:main"),
        ],
        check=True,
    )
    assert image_layouts.read(host.layout, "main")
