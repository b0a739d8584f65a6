"""The custom resource definitions, as a real API server takes them and judges by them."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from sheetanchor_operator.api.fields import RULES
from sheetanchor_operator.api.pipeline import parse
from sheetanchor_operator.names import API_VERSION, GROUP, PIPELINE_KIND, REANCHOR_KIND, Reason
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.reanchors.plan import ReanchorPlan, SymbolFacts
from support.apiserver import ApiServer
from support.pipeline_parts import judged, sound

ROOT = Path(__file__).resolve().parents[3]
NAMESPACE = "default"
PLURALS = {PIPELINE_KIND: "predictionpipelines", REANCHOR_KIND: "reanchors"}
REANCHOR = {"pipeline": "btc", "symbol": "BTCUSDT"}
EXTERNAL = {"url": "redis://redis:6379/0"}
NOW = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Case:
    """Something that a rule refuses.

    Attributes:
        message: How the rule's message begins.
        spec: Fields beside `symbols`, or of a ReAnchor.
        before: Fields that the object is made with; None refuses its creation.
        status: Status to write after `before_status` was written.
        without_status: Take the status away after `before_status` was written.
    """

    message: str
    spec: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    kind: str = PIPELINE_KIND
    name: str = "case"
    status: dict[str, Any] | None = None
    before_status: dict[str, Any] | None = None
    without_status: bool = False


def managed(**fields: Any) -> dict[str, Any]:
    return {"redis": {"managed": fields}}


def external(**fields: Any) -> dict[str, Any]:
    return {"redis": {"external": {**EXTERNAL, **fields}}}


def tolerating(**fields: Any) -> dict[str, Any]:
    return {"scheduling": {"tolerations": [fields]}}


SECRET = {"name": "redis"}
CASES = [
    Case("metadata.name must have at most 40", name="a" * 41),
    Case("metadata.name must begin with a letter", name="1st"),
    Case("image must be a reference", {"image": "sheet anchor"}),
    Case("exchange.websocketURL must be an origin", {"exchange": {"websocketURL": "https://h", "restURL": "http://h"}}),
    Case("exchange.websocketURL must not contain", {"exchange": {"websocketURL": "ws://u:p@h", "restURL": "http://h"}}),
    Case(
        "exchange.websocketURL must begin with wss:// when",
        {"exchange": {"websocketURL": "ws://h.example", "restURL": "http://h.example", "apiKeySecret": {"name": "k"}}},
    ),
    Case("exchange.restURL must be an origin", {"exchange": {"websocketURL": "ws://h", "restURL": "ftp://h"}}),
    Case("exchange.restURL must not contain", {"exchange": {"websocketURL": "ws://h", "restURL": "http://u:p@h"}}),
    Case("exchange.websocketURL must be", {"exchange": {"websocketURL": "wss://h:99999", "restURL": "https://h"}}),
    Case("exchange.websocketURL must be", {"exchange": {"websocketURL": "wss://[::1", "restURL": "https://h"}}),
    Case("exchange.restURL must be an origin", {"exchange": {"websocketURL": "ws://h", "restURL": "https://h:x"}}),
    Case("redis.external.url must be", {"redis": {"external": {"url": "redis://host:abc/0"}}}),
    Case("exchange.websocketURL and exchange.restURL must name", {"exchange": {"websocketURL": "ws://market:8090"}}),
    Case("zones must name two or three", {"zones": ["a"]}),
    Case("ingestion.streams must contain depth", {"ingestion": {"streams": ["trade"]}}),
    Case("ingestion.streams must contain trade", {"ingestion": {"streams": ["depth", "bestBidAsk"]}}),
    Case("ingestion.silenceSeconds", {"ingestion": {"silenceSeconds": 30}}),
    Case("resources.requests.memory", {"ingestion": {"resources": {"requests": {"memory": "1Gi"}}}}),
    Case("resources.requests.cpu", {"inference": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}}),
    Case("processor.gaps.waitMilliseconds", {"processor": {"gaps": {"waitMilliseconds": 5000}}}),
    Case("processor.selfReanchorAfterSeconds must be below", {"processor": {"selfReanchorAfterSeconds": 120}}),
    Case("processor.selfReanchorAfterSeconds must be 0", {"reanchor": {"enabled": False}}),
    Case(
        "inference.model must not name both",
        {"inference": {"model": {"configMap": {"name": "m"}, "persistentVolumeClaim": {"claimName": "m"}}}},
    ),
    Case(
        "inference.model.persistentVolumeClaim.path",
        {"inference": {"model": {"persistentVolumeClaim": {"claimName": "m", "path": "../etc"}}}},
    ),
    Case("redis must not name both", {"redis": {"managed": {}, "external": EXTERNAL}}),
    Case("redis cannot be switched", external(), before={}),
    Case("redis cannot be switched", managed(), before=external()),
    Case("redis.external.url must begin with", external(url="http://redis:6379")),
    Case("redis.external.url must have no query", external(url="redis://redis:6379/0?password=hunter2")),
    Case("redis.external.url must have no query", external(url="rediss://redis:6379/0?ssl_cert_reqs=none")),
    Case("redis.external.url must have no query", external(url="sentinel://redis/s#x")),
    Case("redis.external.url must not contain a password", external(url="redis://user:hunter2@redis:6379")),
    Case(
        "redis.external.url and redis.external.username",
        external(url="redis://user@redis:6379", username="user", passwordSecret=SECRET),
    ),
    Case("redis.external.username needs", external(username="user")),
    Case("redis.external.caSecret needs", external(caSecret=SECRET)),
    Case("redis.managed.maxMemory must be below", managed(maxMemory="2Gi")),
    Case("redis.managed.storage cannot be changed", managed(storage={"size": "1Gi"}), managed(storage={"size": "2Gi"})),
    Case("redis.managed.storage cannot be added or removed", managed(storage={"size": "1Gi"}), before=managed()),
    Case("redis.managed.storage cannot be added or removed", managed(), before=managed(storage={"size": "1Gi"})),
    Case("reanchor.backoffSeconds", {"reanchor": {"backoffSeconds": 60}}),
    Case("reanchor.schedule must be a cron", {"reanchor": {"schedule": "every day"}}),
    Case(
        "reanchor.schedule needs",
        {"reanchor": {"enabled": False, "schedule": "0 4 * * *"}, "processor": {"selfReanchorAfterSeconds": 0}},
    ),
    Case("maintenance.reason must say why", {"maintenance": {"enabled": True}}),
    Case("suspend and maintenance.enabled", {"suspend": True, "maintenance": {"enabled": True, "reason": "upgrade"}}),
    Case("scheduling.tolerations: an empty key", tolerating(value="x")),
    Case("scheduling.tolerations: value has no meaning", tolerating(key="a", operator="Exists", value="x")),
    Case("scheduling.tolerations: tolerationSeconds", tolerating(key="a", value="x", tolerationSeconds=5)),
    Case("podMetadata.labels: a key is", {"podMetadata": {"labels": {"a b": "c"}}}),
    Case("podMetadata.annotations: a key is", {"podMetadata": {"annotations": {"/a": "c"}}}),
    Case("podMetadata.labels must not name keys", {"podMetadata": {"labels": {"sheetanchor.dev/pipeline": "other"}}}),
    Case("podMetadata.labels must not name keys", {"podMetadata": {"labels": {"app.kubernetes.io/name": "other"}}}),
    Case(
        "podMetadata.annotations must not name keys", {"podMetadata": {"annotations": {"prometheus.io/scrape": "no"}}}
    ),
    Case("status.term must not decrease", before={}, before_status={"term": 3}, status={"term": 2}),
    Case("status must not be removed", before={}, before_status={"term": 3}, without_status=True),
    Case(
        "status must not be removed",
        before={},
        kind=REANCHOR_KIND,
        before_status={"phase": "Failed"},
        without_status=True,
    ),
    Case("spec of a ReAnchor cannot be changed", {"reason": "b"}, before={"reason": "a"}, kind=REANCHOR_KIND),
    *(
        Case(f"{name} must be one line", {name: f"a{sign}b"}, kind=REANCHOR_KIND)
        for name in ("reason", "requestedBy", "requestID")
        for sign in ("\n", "\x1b[2J", "\x07", "\x7f", "\x9b31m", "\u2028", "\u202e")
    ),
    Case("maintenance.reason must be one line", {"maintenance": {"enabled": True, "reason": "a\x1b[2Jb"}}),
    Case("atMicros must be in microseconds", {"atMicros": 1_700_000_000_000}, kind=REANCHOR_KIND),
    Case(
        "status.phase of a finished ReAnchor",
        before={},
        kind=REANCHOR_KIND,
        before_status={"phase": "Failed"},
        status={"phase": "Running"},
    ),
    Case(
        "status.attempts must not decrease",
        before={},
        kind=REANCHOR_KIND,
        before_status={"attempts": 2},
        status={"attempts": 1},
    ),
]


def definitions() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]


def rules_of(node: Any) -> list[dict[str, str]]:
    """Give all rules in a schema."""
    if isinstance(node, list):
        return [one for item in node for one in rules_of(item)]
    if not isinstance(node, dict):
        return []
    below = [one for name, item in node.items() if name != RULES for one in rules_of(item)]
    return [*node.get(RULES, []), *below]


MESSAGES = sorted({one["message"] for one in rules_of(definitions())})


class Resources:
    """Creates and changes custom resources, and takes them away again."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.made: list[str] = []

    def path(self, kind: str, name: str = "") -> str:
        base = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURALS[kind]}"
        return f"{base}/{name}" if name else base

    def create(self, kind: str, name: str, spec: dict[str, Any], query: str = "") -> Any:
        least = {"symbols": ["BTCUSDT"]} if kind == PIPELINE_KIND else REANCHOR
        body = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {**least, **spec},
        }
        made = self.server.ask(self.path(kind) + query, method="POST", body=body)
        if not query:
            self.made.append(self.path(kind, name))
        return made

    def replace(self, live: dict[str, Any], subresource: str = "") -> Any:
        path = self.path(live["kind"], live["metadata"]["name"]) + subresource
        return self.server.ask(path, method="PUT", body=live)

    def clear(self) -> None:
        for path in self.made:
            self.server.ask(path, method="DELETE")
        self.made = []


@pytest.fixture(scope="module")
def established(apiserver: ApiServer) -> ApiServer:
    """The server, once it serves both kinds."""
    apiserver.kubectl("apply", "--server-side", "--force-conflicts", "-f", ROOT / "crds")
    names = [f"crd/{plural}.{GROUP}" for plural in PLURALS.values()]
    apiserver.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    return apiserver


@pytest.fixture
def resources(established: ApiServer) -> Iterator[Resources]:
    made = Resources(established)
    try:
        yield made
    finally:
        made.clear()


def said(error: urllib.error.HTTPError) -> str:
    return str(json.loads(error.read())["message"])


def test_every_rule_has_a_case() -> None:
    """No rule is untested, and there are enough of them that mistakes are reported for the field they are in."""
    tried = {message for message in MESSAGES for case in CASES if message.startswith(case.message)}

    assert set(MESSAGES) == tried
    assert len(MESSAGES) >= 35


def violate(resources: Resources, case: Case) -> None:
    if case.before is None:
        resources.create(case.kind, case.name, case.spec)
        return
    live = resources.create(case.kind, case.name, case.before)
    if case.without_status:
        live = resources.replace({**live, "status": case.before_status}, "/status")
        resources.replace({name: value for name, value in live.items() if name != "status"}, "/status")
    elif case.status is None:
        least = {"symbols": ["BTCUSDT"]} if case.kind == PIPELINE_KIND else REANCHOR
        resources.replace({**live, "spec": {**least, **case.spec}})
    else:
        live = resources.replace({**live, "status": case.before_status}, "/status")
        resources.replace({**live, "status": case.status}, "/status")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.message)
def test_a_rule_refuses_with_its_message(case: Case, resources: Resources) -> None:
    """What a rule is against is refused, with the words that name the field and the remedy."""
    expected = next(message for message in MESSAGES if message.startswith(case.message))

    with pytest.raises(urllib.error.HTTPError) as refused:
        violate(resources, case)

    assert refused.value.code == 422
    assert expected in said(refused.value)


KEPT = (
    ({}, managed(storage={"size": "4Gi"})),
    (managed(), managed(storage={"size": "4Gi"})),
    (managed(maxMemory="512Mi"), managed(storage={"size": "4Gi"})),
    (managed(storage={"size": "4Gi"}), managed(storage={"size": "8Gi"})),
    (managed(storage={"size": "4Gi"}), managed(storage={"size": "4Gi", "storageClassName": "fast"})),
    ({}, external()),
    (managed(), external()),
    (managed(storage={"size": "4Gi"}), external()),
)
"""What a pipeline may not become, in either direction: with and without the blocks around what is fixed."""


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("pair", KEPT, ids=json.dumps)
def test_what_is_fixed_is_so_whatever_comes_and_goes(
    pair: tuple[dict[str, Any], dict[str, Any]], resources: Resources, *, backwards: bool
) -> None:
    """What cannot be changed can neither be added nor taken away, by itself or with the block that it is in."""
    before, after = reversed(pair) if backwards else pair
    live = resources.create(PIPELINE_KIND, "fixed", before)

    with pytest.raises(urllib.error.HTTPError) as refused:
        resources.replace({**live, "spec": {"symbols": ["BTCUSDT"], **after}})

    assert 422 == refused.value.code
    assert "in place" in said(refused.value)


def transitions(
    node: dict[str, Any], path: str = "", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give where rules compare with what was before, and which blocks on the way there may be absent."""
    if any("oldSelf" in one["rule"] for one in node.get(RULES, ())):
        yield path, above
    for name, item in (node.get("properties") or {}).items():
        absent = () if name in node.get("required", ()) or "default" in item else (f"{path}.{name}",)
        yield from transitions(item, f"{path}.{name}", (*above, *absent))


def test_rules_that_compare_stand_where_both_sides_exist() -> None:
    """The server asks no rule that compares where its block comes or goes: that needs a rule above it."""
    schemas = [one["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for one in definitions()]
    may_be_absent = {(path, above) for schema in schemas for path, above in transitions(schema) if above}

    # Each is guarded above: redis by a rule of its own, a status by the root's.
    assert {
        (".spec.redis.managed.storage", (".spec.redis.managed", ".spec.redis.managed.storage")),
        (".status", (".status",)),
    } == may_be_absent


SOUND = [
    {},
    {"suspend": True},
    {"zones": ["eu-west-1a", "eu-west-1b", "eu-west-1c"]},
    {"exchange": {"websocketURL": "ws://exchange:8090", "restURL": "http://exchange:8090"}},
    {"exchange": {"apiKeySecret": {"name": "key"}}},
    *(
        {"exchange": {"websocketURL": url, "restURL": "http://h", "apiKeySecret": {"name": "key"}}}
        for url in ("ws://exchange", "ws://exchange.space.svc:8090", "ws://e.s.svc.cluster.local", "ws://[::1]:9")
    ),
    {"symbols": ["\u8fd9\u662f\u6d4b\u8bd5\u5e01456", "\u65e5\u672cUSDT", "\U00020bb7\U00020bb7"]},
    {"inference": {"replicas": 3, "model": {"configMap": {"name": "model"}}}},
    {"inference": {"resources": {"requests": {"cpu": 1, "memory": "0.5Gi"}, "limits": {"memory": "1Gi"}}}},
    managed(storage={"size": "4Gi"}, minReplicasToWrite=0, passwordSecret={"name": "mine"}),
    external(url="sentinel://h1:26379,h2:26379/mymaster", cidrs=["10.1.2.0/24", "fd00::/8"]),
    external(url="rediss://user@redis:6380/2", passwordSecret=SECRET, caSecret=SECRET),
    {"reanchor": {"schedule": "*/5 0-6,22 * * 1-5"}},
    {"reanchor": {"enabled": False}, "processor": {"selfReanchorAfterSeconds": 0}},
    {"maintenance": {"enabled": True, "reason": "upgrade of the nodes: Zürich → 東京 👩‍💻"}},
    tolerating(operator="Exists"),
    {"image": "registry.example:5000/sheetanchor@sha256:" + "0" * 64, "imagePullSecrets": [{"name": "registry"}]},
]


@pytest.mark.parametrize("spec", SOUND, ids=json.dumps)
def test_a_sound_specification_is_taken_and_read_back_alike(spec: dict[str, Any], resources: Resources) -> None:
    """The server fills in what is missing exactly as the operator does, so that both mean the same."""
    made = resources.create(PIPELINE_KIND, "sound", spec, "?dryRun=All&fieldValidation=Strict")

    meant = parse({**made, "spec": {"symbols": ["BTCUSDT"], **spec}})

    assert meant.spec.model_dump(mode="json", exclude_none=True) == made["spec"]


REFUSED_BY_SCHEMA = [
    ({"symbols": []}, "spec.symbols"),
    ({"symbols": ["btcusdt"]}, "spec.symbols[0]"),
    *(({"symbols": [f"BTC{bad}USDT"]}, "spec.symbols[0]") for bad in "/{} \n\u3000\u200b"),
    ({"symbols": ["\u5e01" * 21]}, "spec.symbols[0]"),
    ({"symbols": ["BTCUSDT", "BTCUSDT"]}, "Duplicate value"),
    ({"symbols": [f"S{number}" for number in range(11)]}, "spec.symbols"),
    ({"zones": ["A", "b"]}, "spec.zones[0]"),
    ({"zones": ["a", "a"]}, "Duplicate value"),
    ({"processor": {"replicas": 4}}, "spec.processor.replicas"),
    ({"inference": {"replicas": 0}}, "spec.inference.replicas"),
    ({"processor": {"gaps": {"suppress": ["time_gaps"]}}}, "spec.processor.gaps.suppress[0]"),
    ({"logLevel": "verbose"}, "spec.logLevel"),
    ({"exchange": {"apiKeySecret": {}}}, "spec.exchange.apiKeySecret.name"),
    ({"redis": {"managed": {"storage": {"size": "4 GB"}}}}, "spec.redis.managed.storage.size"),
    ({"ingestion": {"resources": {"requests": {"memory": "lots"}}}}, "spec.ingestion.resources.requests"),
    ({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}, "Duplicate value"),
    (external(cidrs=["300.1.1.0/24"]), "spec.redis.external.cidrs[0]"),
    (external(cidrs=["10.1.2.0/24", "10.1.2.3"]), "spec.redis.external.cidrs[1]"),
]


@pytest.mark.parametrize(("spec", "expected"), REFUSED_BY_SCHEMA, ids=lambda value: json.dumps(value)[:60])
def test_the_schema_refuses_with_the_path(spec: dict[str, Any], expected: str, resources: Resources) -> None:
    """Types, ranges, patterns and duplicates are refused with the field's path."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        resources.create(PIPELINE_KIND, "refused", spec)

    assert refused.value.code == 422
    assert expected in said(refused.value)


def test_an_unknown_field_is_refused_by_a_strict_client(resources: Resources) -> None:
    """A misspelt field is reported rather than dropped: kubectl requests that by default."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        resources.create(PIPELINE_KIND, "misspelt", {"symbol": "BTCUSDT"}, "?fieldValidation=Strict")

    assert 'unknown field "spec.symbol"' in said(refused.value)


def test_a_pipeline_scales_by_its_inference(established: ApiServer, resources: Resources) -> None:
    """`kubectl scale` and autoscalers change the number of inference replicas and find their pods."""
    live = resources.create(PIPELINE_KIND, "scaled", {})
    resources.replace({**live, "status": {"inference": {"replicas": 2, "ready": 2, "selector": "a=b"}}}, "/status")

    established.kubectl("scale", "pp/scaled", "--replicas=5", "-n", NAMESPACE)

    scaled = established.ask(resources.path(PIPELINE_KIND, "scaled"))
    scale = established.ask(resources.path(PIPELINE_KIND, "scaled") + "/scale")
    assert scaled["spec"]["inference"]["replicas"] == 5
    assert scale["status"] == {"replicas": 2, "selector": "a=b"}


def test_the_words_of_conditions_are_a_closed_list(resources: Resources) -> None:
    """A reason that no document explains cannot be written."""
    live = resources.create(PIPELINE_KIND, "words", {})
    condition = {"type": "Ready", "status": "True", "reason": "BecauseISaySo", "lastTransitionTime": NOW}

    with pytest.raises(urllib.error.HTTPError) as refused:
        resources.replace({**live, "status": {"conditions": [condition]}}, "/status")
    known = {**condition, "reason": str(Reason.SECRET_MISSING)}
    taken = resources.replace({**live, "status": {"conditions": [known]}}, "/status")

    assert "Unsupported value" in said(refused.value)
    assert taken["status"]["conditions"][0]["reason"] == "SecretMissing"


def test_a_status_is_read_back_as_it_was_written(resources: Resources) -> None:
    """Nothing is dropped or filled in, or each reconcile would write the pipeline again."""
    facts = SymbolFacts(pending=("x",), throttled=Reason.COOLDOWN, message="wait", rebuilt_us=(1, 2))
    full = judged(sound(), plan=ReanchorPlan(symbols={"BTCUSDT": facts}, last_request="7"))
    for name, status in (("full", full), ("bare", judged(Observed(1)))):
        live = resources.create(PIPELINE_KIND, name, {})
        live = resources.replace({**live, "status": status}, "/status")
        assert status == live["status"]


def test_columns_show_what_people_ask_for(established: ApiServer, resources: Resources) -> None:
    """`kubectl get pp` shows phase, pods, zone, anchor and ages; wide adds epoch, term, model and message."""
    live = resources.create(PIPELINE_KIND, "shown", {})
    conditions = [
        {"type": kind, "status": "True", "reason": "AsExpected", "message": "fine", "lastTransitionTime": NOW}
        for kind in ("Ready", "Anchored")
    ]
    status = {
        "phase": "Running",
        "ready": "9/9",
        "activeZone": "zone-b",
        "epoch": 4,
        "term": 7,
        "model": "mlp@12345678",
        "lastPredictionAt": NOW,
        "lastReanchor": {"name": "x", "finishedAt": NOW},
        "conditions": conditions,
    }
    resources.replace({**live, "status": status}, "/status")

    narrow = established.kubectl("get", "pp", "shown", "-n", NAMESPACE).split("\n")
    wide = established.kubectl("get", "sheetanchor", "-o", "wide", "-n", NAMESPACE)

    assert ["NAME", "PHASE", "READY", "ZONE", "ANCHORED", "PREDICTION", "LAST-REANCHOR", "AGE"] == narrow[0].split()
    assert ["shown", "Running", "9/9", "zone-b", "True"] == narrow[1].split()[:5]
    assert all(text in wide for text in ("EPOCH", "TERM", "MODEL", "mlp@12345678", "fine"))


def test_every_field_explains_itself(established: ApiServer) -> None:
    """`kubectl explain pp.spec --recursive` has a description for every field down to the last."""

    def without(node: dict[str, Any], path: str) -> list[str]:
        found = [] if node.get("description") or path.count(".") == 1 else [path]
        for name, below in (node.get("properties") or {}).items():
            found += without(below, f"{path}.{name}")
        items = node.get("items") or {}
        return found + (without(items, f"{path}[]") if items.get("properties") else [])

    explained = established.kubectl("explain", "pp.spec.redis.managed.maxMemory")
    undescribed = [
        path
        for crd in definitions()
        for name in ("spec", "status")
        for path in without(
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][name],
            f"{crd['spec']['names']['kind']}.{name}",
        )
    ]

    assert [] == undescribed
    assert "Memory for data on each node" in explained
