"""`kubectl reanchor explain` against a real API server, whose proxy leads to servers of the test instead of pods."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import free_port_number
from sheetanchor.policy.reanchor_object import Owner, reanchor_object
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import PIPELINE_KIND, REANCHOR_KIND, Component, Condition, labels_of
from sheetanchor_operator.plugin.api import Api, Target
from sheetanchor_operator.plugin.explain.explanation import explain
from sheetanchor_operator.plugin.explain.observe import observe
from sheetanchor_operator.reanchors.requests import read_request, requests_of_annotation
from support.apiserver import ApiServer
from support.operator_parts import create, make_pipeline, namespace, set_status, token_of
from support.pipeline_parts import judged, predicts, sound, stands
from support.rendered_parts import rendered_chart

pytestmark = pytest.mark.slow

SECOND_US = 1_000_000
GAP = "Sequence gap detected: depth 124 → 131"
RBAC = "rbac.authorization.k8s.io"
LIST_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
ASK_PODS = {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]}


def now_us() -> int:
    return time.time_ns() // 1_000


def own_address() -> str:
    """Give an address of this machine that the API server's proxy leads to: it refuses loopback."""
    for interface in psutil.net_if_addrs().values():
        for one in interface:
            if one.family.name == "AF_INET" and not ipaddress.ip_address(one.address).is_loopback:
                return str(one.address)
    pytest.skip("this machine has no address but loopback, which the API server's proxy does not lead to")


class Handler(BaseHTTPRequestHandler):
    """Answers as the test has it: a body by path, else 404."""

    def do_GET(self) -> None:  # the name that http.server calls
        pods: PodServer = self.server.pods  # type: ignore[attr-defined]
        pods.asked.append((self.path, dict(self.headers)))
        status, headers, body = pods.answers.get(self.path, (404, {}, b"{}"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in body if isinstance(body, list) else [body]:
                self.wfile.write(piece)
        except OSError:
            pods.cut_off.set()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@dataclass
class PodServer:
    """What listens where a pod would."""

    address: str
    answers: dict[str, tuple[int, dict[str, str], Any]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    cut_off: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def says(self, path: str, body: Any, status: int = 200) -> None:
        self.answers[path] = (status, {"Content-Type": "application/json"}, json.dumps(body).encode())

    @contextmanager
    def listening(self) -> Iterator[PodServer]:
        server = ThreadingHTTPServer((self.address, 0), Handler)
        server.pods = self  # type: ignore[attr-defined]
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@dataclass
class Place:
    """A namespace with a pipeline `btc` and a pod of each component, all at one server of the test."""

    server: ApiServer
    name: str
    pods: PodServer
    folder: Path

    def run(self, *words: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the plugin as its user does."""
        command = [sys.executable, "-m", "sheetanchor_operator.plugin", "explain", *words, "-n", self.name]
        env = {"KUBECONFIG": str(kubeconfig or self.server.kubeconfig), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)

    def status(self, **changes: Any) -> None:
        """Write the status of a sound pipeline, as the operator makes it, but for some fields."""
        status = judged(sound())
        generation = self.server.ask(f"{self.path}/btc")["metadata"]["generation"]
        # Somewhat ahead: it would be ten seconds old, and so no sound one, before a busy machine has begun to explain.
        last_us = (now_us() // SECOND_US + 60) * SECOND_US
        status |= {"observedGeneration": generation, "lastPredictionAt": text_of(last_us)}
        set_status(self.server, self.name, PIPELINE_KIND, "btc", {**status, **changes})

    def suspect(self) -> None:
        """Write the status of a pipeline with a gap, with a run that has begun and the Event about it."""
        suspect = stands(state="suspect", reason=GAP, suspect_since_us=now_us() - 40 * SECOND_US)
        doubtful = predicts(degraded=True, reason=f"suspect: {GAP}")
        seen = sound(states={"btc-process-0": suspect}, predictions={("btc-infer-0", "BTCUSDT"): doubtful})
        status = judged(seen, status={"lastPredictionAt": text_of(now_us() // SECOND_US * SECOND_US)})
        self.status(phase="Degraded", conditions=status["conditions"], symbols=status["symbols"])
        (asked,) = requests_of_annotation(read_request("by hand", ("BTCUSDT",)), now_us())
        body = reanchor_object(Owner("btc", self.name), asked)
        body["spec"] |= {"trigger": "sequence_gap", "reason": GAP}
        body["metadata"]["name"] = "btc-btcusdt-1"
        create(self.server, self.name, body)
        running = {"phase": "Running", "attempts": 1, "startedAt": text_of(now_us() - 3 * SECOND_US)}
        set_status(self.server, self.name, REANCHOR_KIND, "btc-btcusdt-1", running)
        self.event("GapFound", f"BTCUSDT: {GAP}")

    def event(self, reason: str, note: str) -> None:
        body = {
            "metadata": {"name": f"btc.{reason.lower()}", "namespace": self.name},
            "eventTime": text_of(now_us() - 41 * SECOND_US),
            "type": "Warning",
            "reason": reason,
            "action": "Reconcile",
            "note": note,
            "reportingController": "sheetanchor.dev/operator",
            "reportingInstance": "one",
            "regarding": {"kind": PIPELINE_KIND, "name": "btc", "namespace": self.name},
        }
        self.server.ask(f"/apis/events.k8s.io/v1/namespaces/{self.name}/events", method="POST", body=body)

    @property
    def path(self) -> str:
        return f"/apis/sheetanchor.dev/v1alpha1/namespaces/{self.name}/predictionpipelines"

    def pod(self, component: Component, port: int) -> None:
        """Create a pod that runs at the test's server."""
        name = f"btc-{component}-0"
        ports = [{"name": "probes", "containerPort": 1}, {"name": "http", "containerPort": port}]
        spec = {"containers": [{"name": "c", "image": "registry.example/x:1", "ports": ports}]}
        labels = labels_of("btc", component)
        metadata = {"name": name, "namespace": self.name, "labels": labels}
        self.server.ask(
            f"/api/v1/namespaces/{self.name}/pods", method="POST", body={"metadata": metadata, "spec": spec}
        )
        self.server.ask(
            f"/api/v1/namespaces/{self.name}/pods/{name}/status",
            method="PATCH",
            body={"status": {"phase": "Running", "podIP": self.pods.address, "podIPs": [{"ip": self.pods.address}]}},
            content_type="application/merge-patch+json",
        )

    def sound_pods(self) -> None:
        """Have every pod answer as in a sound pipeline."""
        for component in (Component.INGEST, Component.PROCESS, Component.INFER):
            self.pod(component, self.pods.port)
        self.pods.says("/state", stands().body)
        self.pods.says("/predictions/BTCUSDT", predicts(ts=now_us()).body)
        self.pods.says("/health/detailed", {"checks": {"sbe_websocket": {"status": "healthy"}}})

    def account(self, *rules: dict[str, Any]) -> Path:
        """Make an account with these rights and nothing else; gives its kubeconfig."""
        kind, where = f"{RBAC}/v1", self.name
        reference = {"apiGroup": RBAC, "kind": "Role", "name": "ann"}
        subjects = [{"kind": "ServiceAccount", "name": "ann", "namespace": where}]
        self.server.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ann"}},
            {"apiVersion": kind, "kind": "Role", "metadata": {"name": "ann"}, "rules": list(rules)},
            {
                "apiVersion": kind,
                "kind": "RoleBinding",
                "metadata": {"name": "ann"},
                "roleRef": reference,
                "subjects": subjects,
            },
            namespace=where,
        )
        path = self.folder / "ann.kubeconfig"
        path.write_text(self.server.kubeconfig_text(token_of(self.server, where, "ann")))
        return path


@pytest.fixture
def place(server: ApiServer, tmp_path: Path) -> Iterator[Place]:
    with namespace(server) as name, PodServer(own_address()).listening() as pods:
        make_pipeline(server, name)
        yield Place(server, name, pods, tmp_path)


def on_call() -> list[dict[str, Any]]:
    """Give the rules of the chart's role for users on call."""
    roles = {one["metadata"]["name"]: one for one in rendered_chart({}) if one["kind"] == "ClusterRole"}
    return list(roles["sheetanchor-reanchor"]["rules"])


def test_a_sound_pipeline_is_one_line(place: Place) -> None:
    """By what its pods answer at this moment; each was asked what it can answer, and only that."""
    place.status()
    place.sound_pods()

    done = place.run("btc")

    assert (0, "", 1) == (done.returncode, done.stderr, len(done.stdout.splitlines())), done.stdout
    assert done.stdout.startswith("SOUND: btc")
    assert "by the pods' own answers" in done.stdout
    assert ["/health/detailed", "/health/detailed", "/predictions/BTCUSDT", "/state"] == sorted(
        path for path, _ in place.pods.asked
    )


def test_a_gap_is_explained(place: Place) -> None:
    """From the status, the run in progress, the Events and the pods' answers; as text and as JSON."""
    place.suspect()
    place.sound_pods()
    place.pods.says("/state", stands(state="suspect", reason=GAP, suspect_since_us=now_us() - 40 * SECOND_US).body)
    place.pods.says("/predictions/BTCUSDT", predicts(ts=now_us(), degraded=True, reason=f"suspect: {GAP}").body)

    text, parsed = place.run("btc"), place.run("pp/btc", "--symbol", "BTCUSDT", "-o", "json")

    assert (1, 1, "") == (text.returncode, parsed.returncode, text.stderr + parsed.stderr)
    assert text.stdout.startswith("DEGRADED since")
    for line in (
        rf"1\. BTCUSDT: Suspect since [\d:]+ \(\d+ s\): sequence_gap: {GAP}",
        f"BTCUSDT's newest prediction is degraded: suspect: {GAP}",
        r"BTCUSDT: btc-btcusdt-1 runs for \d+ s: run 1 for sequence_gap",
        f"kubectl -n {place.name} describe ra btc-btcusdt-1",
        f"GapFound: BTCUSDT: {GAP}",
    ):
        assert re.search(line, text.stdout), line
    told = json.loads(parsed.stdout)
    assert ("degraded", False, ["Suspect"]) == (
        told["verdict"],
        told["predictionsSound"],
        [cause["reason"] for cause in told["why"]],
    )
    assert [] == told["notKnown"]


def test_a_failing_line_is_the_evidence(place: Place) -> None:
    """An ingestor that is unhealthy answers 503 with the exchange's words, which are the cause's evidence."""
    status = judged(sound())
    for one in status["conditions"]:
        if one["type"] == Condition.INGESTION_HEALTHY:
            one |= {
                "status": "False",
                "reason": "ExchangeUnreachable",
                "message": "no line is connected; check the key",
            }
    place.status(phase="Degraded", conditions=status["conditions"])
    place.sound_pods()
    refused = {"status": "unhealthy", "message": "HTTP 401: bad key"}
    place.pods.says("/health/detailed", {"checks": {"sbe_websocket": refused}}, status=503)

    done = place.run("btc")

    assert 1 == done.returncode, done.stderr
    assert "because btc-ingest-0: its connection to the exchange: HTTP 401: bad key" in done.stdout
    assert "check the key" in done.stdout.partition("you can")[2]


def test_the_role_for_whoever_is_on_call_is_enough(place: Place) -> None:
    """Everything but the pods' own answers is explained, and those are named as not known."""
    place.suspect()
    place.sound_pods()
    done = place.run("btc", kubeconfig=place.account(*on_call()))
    place.status()
    sound_now = place.run("btc", kubeconfig=place.folder / "ann.kubeconfig")

    assert (1, "", []) == (done.returncode, done.stderr, place.pods.asked)
    assert f"sequence_gap: {GAP}" in done.stdout
    assert "GapFound" in done.stdout
    denied = f"not known\n  what the pods answer: you may not list pods in namespace {place.name}\n"
    assert denied in done.stdout
    assert (0, True) == (sound_now.returncode, "by the operator's report of the last minute" in sound_now.stdout)
    assert denied in sound_now.stdout


def test_the_proxy_is_asked_for_once_and_used_where_it_is_allowed(place: Place) -> None:
    """Without the right no second pod is tried; with it the answers count."""
    place.status(lastPredictionAt="2026-01-01T00:00:00Z")
    place.sound_pods()
    listing = place.run("btc", kubeconfig=place.account(*on_call(), LIST_PODS))
    asking = place.run("btc", kubeconfig=place.account(*on_call(), LIST_PODS, ASK_PODS))

    assert (2, f"you may not get pods/proxy in namespace {place.name}") == (
        listing.returncode,
        listing.stdout.partition("what the pods answer: ")[2].splitlines()[0],
    )
    assert (0, True) == (asking.returncode, "by the pods' own answers" in asking.stdout)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("events", "the last Events: you may not list events in namespace"),
        ("reanchors", "what is being done, and the last receipts: you may not list reanchors"),
    ],
)
def test_a_missing_right_is_a_part_that_is_not_known(place: Place, missing: str, named: str) -> None:
    """The rest is explained without it."""
    place.status(phase="Degraded", ready="9/10")
    rules = [rule for rule in on_call() if missing not in rule["resources"]]

    done = place.run("btc", kubeconfig=place.account(*rules))

    assert (1, "") == (done.returncode, done.stderr)
    assert named in done.stdout
    assert "9/10 pods are ready" in done.stdout


def test_without_the_right_to_the_pipeline_nothing_is_known(place: Place) -> None:
    """As with the other commands: the verb, and the role that gives it."""
    done = place.run("btc", kubeconfig=place.account(*on_call()[1:]))

    assert (4, "") == (done.returncode, done.stdout)
    assert "you may not get predictionpipelines" in done.stderr


def test_pods_that_do_not_answer_are_named(place: Place) -> None:
    """One that does not listen, and one that answers something else: neither has passed."""
    place.status(lastPredictionAt="2026-01-01T00:00:00Z")
    place.pod(Component.PROCESS, free_port_number())
    place.pod(Component.INFER, place.pods.port)
    place.pods.answers["/predictions/BTCUSDT"] = (200, {}, b"<html>")

    done = place.run("btc")

    assert (2, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("NOT KNOWN")
    assert "  the state by btc-process-0: HTTP 503" in done.stdout
    assert "  predictions and health by btc-infer-0: the answer is not a JSON object" in done.stdout


def test_a_pod_leads_nowhere_else(place: Place) -> None:
    """A redirect of a pod is not followed, least of all with the user's credentials."""
    place.status()
    place.pod(Component.PROCESS, place.pods.port)
    with PodServer(place.pods.address).listening() as elsewhere:
        target = f"http://{elsewhere.address}:{elsewhere.port}/state"
        place.pods.answers["/state"] = (302, {"Location": target}, b"")
        done = place.run("btc")

    assert ([], "/state") == (elsewhere.asked, place.pods.asked[0][0])
    assert "the state by btc-process-0:" in done.stdout
    assert [] == [headers for _, headers in place.pods.asked if "Authorization" in headers]


def test_an_answer_without_end_is_cut_off(place: Place) -> None:
    """A pod cannot fill the reader's memory."""
    place.status()
    place.pod(Component.PROCESS, place.pods.port)
    place.pods.answers["/state"] = (200, {}, [b" " * 65_536] * 4_000)

    done = place.run("btc")

    assert 0 == done.returncode
    assert "the state by btc-process-0: the answer has more than 262144 bytes" in done.stdout


def test_a_pipeline_without_a_status_is_not_known(place: Place) -> None:
    """No operator has seen it; a symbol that it does not have is a mistake of the caller."""
    unseen, unknown = place.run("btc"), place.run("btc", "--symbol", "DOGEUSDT")

    assert (2, True) == (unseen.returncode, "no operator has written one" in unseen.stdout)
    assert (3, True) == (unknown.returncode, "has no symbol DOGEUSDT: it has BTCUSDT" in unknown.stderr)


def test_times_are_by_the_servers_clock(place: Place) -> None:
    """A machine whose clock is wrong takes no fresh prediction for an old one."""
    place.status()
    api = Api(Target(kubeconfig=str(place.server.kubeconfig), namespace=place.name))

    facts = observe(api, "btc", "", own_now_us=0)

    assert abs(facts.now_us - now_us()) < 10 * SECOND_US
    assert "sound" == explain(facts).verdict
