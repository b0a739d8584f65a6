"""`kubectl reanchor switchover`, `evacuate` and `return` against a real API server; the operator is played by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sheetanchor_operator.names import API_VERSION, EVACUATE_ANNOTATION, PIPELINE_KIND, SWITCHOVER_ANNOTATION
from support.apiserver import ApiServer
from support.operator_parts import make_pipeline, namespace, set_status
from support.patience import PATIENCE_S
from support.zone_pods import MERGE

pytestmark = pytest.mark.slow

ROWS = [{"name": zone, "ready": True, "pods": 4, "health": "healthy"} for zone in ("a", "b", "c")]
STANDS = {"phase": "Running", "activeZone": "a", "term": 4, "zones": ROWS}


@dataclass
class Place:
    """A namespace with a pipeline `btc` that is written from zone a."""

    server: ApiServer
    name: str

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the plugin without a terminal."""
        command = [sys.executable, "-m", "sheetanchor_operator.plugin", *words, "-n", self.name]
        env = {"KUBECONFIG": str(self.server.kubeconfig), "PATH": "/usr/bin:/bin"}
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(command, check=False, env=env, **options)

    @property
    def path(self) -> str:
        """Path of the pipeline."""
        return f"/apis/{API_VERSION}/namespaces/{self.name}/predictionpipelines/btc"

    def notes(self) -> dict[str, str]:
        """Its annotations."""
        return dict(self.server.ask(self.path)["metadata"].get("annotations") or {})

    def say(self, **status: Any) -> None:
        """Write what an operator says."""
        set_status(self.server, self.name, PIPELINE_KIND, "btc", {**STANDS, **status})

    def answer(self, name: str, **failover: Any) -> threading.Thread:
        """Answer the next request by an annotation as an operator does."""

        def work() -> None:
            deadline = time.monotonic() + PATIENCE_S
            while name not in self.notes() and time.monotonic() < deadline:
                time.sleep(0.1)
            row = {"request": self.notes()[name], "kind": "Switchover", "step": "Verify", **failover}
            self.say(failover=row)

        thread = threading.Thread(target=work)
        thread.start()
        return thread


@pytest.fixture
def place(server: ApiServer) -> Iterator[Place]:
    with namespace(server) as name:
        make_pipeline(server, name)
        made = Place(server, name)
        made.say()
        yield made


def test_a_switchover_is_asked_for_by_an_annotation(place: Place) -> None:
    """JSON names the request; each one has an id of its own, so that the same zone can be asked for again."""
    done = place.run("switchover", "btc", "--to", "b", "--yes", "-o", "json")
    told = json.loads(done.stdout)
    assert (0, "switchover", place.name, None) == (
        done.returncode,
        told["command"],
        told["namespace"],
        told["failover"],
    )
    assert told["request"].startswith("b/kubectl-")
    assert {SWITCHOVER_ANNOTATION: told["request"]} == place.notes()
    assert 0 == place.run("switchover", "btc", "--yes", "--request-id", "7").returncode
    assert {SWITCHOVER_ANNOTATION: "any/7"} == place.notes()


@pytest.mark.parametrize(
    ("phase", "message", "code"),
    [("Done", "written from zone b", 0), ("Aborted", "aborted at step Fence", 1), ("Refused", "no standby", 6)],
)
def test_it_waits_for_the_end(place: Place, phase: str, message: str, code: int) -> None:
    """And says how it has ended, by its exit code too."""
    thread = place.answer(SWITCHOVER_ANNOTATION, phase=phase, message=message)
    done = place.run("switchover", "btc", "-y", "--wait", "--timeout", "40")
    thread.join()
    assert (code, f"switchover {phase}: {message}\n") == (done.returncode, done.stdout)


def test_it_gives_up_waiting(place: Place) -> None:
    """What was asked for stays, and it says what it was waiting for."""
    done = place.run("evacuate", "btc", "a", "-y", "--wait", "--timeout", "0.6")
    assert 5 == done.returncode
    assert "not seen by the operator yet" in done.stderr
    assert place.notes()[EVACUATE_ANNOTATION].startswith("a/")


def test_a_zone_is_evacuated_and_given_back(place: Place) -> None:
    """The annotation stands until then; the second is done when the status no longer names the zone."""
    assert 0 == place.run("evacuate", "btc", "a", "--yes").returncode
    other = place.run("evacuate", "btc", "b", "--yes")
    assert (6, True) == (other.returncode, "zone a is evacuated already" in other.stderr)
    assert 6 == place.run("return", "btc", "b", "--yes").returncode
    assert 0 == place.run("return", "btc", "a", "--yes", "--wait").returncode
    assert {} == place.notes()
    assert 6 == place.run("return", "btc", "a", "--yes").returncode


def test_nothing_is_changed_by_a_dry_run_or_without_a_yes(place: Place) -> None:
    """It reports what it would do; without a terminal it needs the flag."""
    tried = place.run("evacuate", "btc", "a", "--dry-run")
    assert (0, True) == (tried.returncode, tried.stdout.startswith("would be requested: writer, Redis master"))
    unasked = place.run("switchover", "btc")
    assert (2, True) == (unasked.returncode, "use --yes without a terminal" in unasked.stderr)
    assert {} == place.notes()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("switchover", "btc", "--to", "x"), 3, "has no zone 'x': it has a, b, c"),
        (("switchover", "btc", "--to", "a"), 6, "is written from zone a already"),
        (("switchover", "btc", "--to", "c"), 6, "zone c is failed: name another"),
        (("evacuate", "btc", "a"), 6, "zone c is lost: leaving zone a as well would take two zones away"),
        (("evacuate", "btc"), 2, "evacuate needs the names of a pipeline and of a zone"),
        (("status", "btc", "--to", "a"), 2, "--to belongs to switchover"),
        (("switchover", "eth"), 3, "no pipeline 'eth'"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(place: Place, words: tuple[str, ...], code: int, expected: str) -> None:
    """With one message, and nothing is asked for."""
    place.say(zones=[*ROWS[:2], {**ROWS[2], "health": "failed"}])
    done = place.run(*words, "--yes")
    assert (code, True) == (done.returncode, expected in done.stderr), done.stderr
    assert {} == place.notes()


def test_a_zone_that_is_evacuated_is_not_asked_for_again(place: Place) -> None:
    """The operator would have nothing to do, and the wait for it no end."""
    place.say(evacuatedZone="b")
    done = place.run("evacuate", "btc", "b", "--yes", "--wait")
    assert (6, "kubectl reanchor: zone b of pipeline btc is evacuated already\n") == (done.returncode, done.stderr)


def test_a_paused_pipeline_is_left_alone(place: Place) -> None:
    """It says so."""
    change = {"metadata": {"annotations": {"sheetanchor.dev/paused": "true"}}}
    place.server.ask(place.path, method="PATCH", body=change, content_type=MERGE)
    done = place.run("switchover", "btc", "--yes")
    assert (6, True) == (done.returncode, "is paused" in done.stderr)
