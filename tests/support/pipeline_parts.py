"""Pipelines and what is observed of them, for tests of the operator's decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sheetanchor_operator.api.pipeline import Pipeline, parse
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.children.manifests import children
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.names import Component, Condition, labels_of
from sheetanchor_operator.observation import Observed, PodResponse
from sheetanchor_operator.reanchors.plan import ReanchorPlan
from sheetanchor_operator.status.summary import condition_of, status_of

NOW_US = 1_790_000_000_000_000
DEFAULTS = Defaults(image="registry.example/sheetanchor:1")
OWN_EXCHANGE = {"websocketURL": "ws://exchange:8090", "restURL": "http://exchange:8090"}
ZONES = ("zone-a", "zone-b", "zone-c")

Manifest = dict[str, Any]


def pipeline(spec: Mapping[str, Any] | None = None, **others: Any) -> Pipeline:
    """Read a pipeline `btc` of BTCUSDT.

    Args:
        spec: Fields beside `symbols`.
        others: `status`, or `annotations`, or other metadata.
    """
    status = others.pop("status", {})
    metadata = {
        "name": "btc",
        "namespace": "market",
        "uid": "0b1c",
        "generation": 3,
        "creationTimestamp": text_of(NOW_US - 3_600_000_000),
        **others,
    }
    return parse({"metadata": metadata, "spec": {"symbols": ["BTCUSDT"], **(spec or {})}, "status": status})


def rendered(spec: Mapping[str, Any] | None = None, observed: Observed | None = None) -> tuple[Manifest, ...]:
    """Render the children of a pipeline."""
    return children(pipeline(spec), observed or Observed(NOW_US, zones=ZONES), DEFAULTS, password)


def password(user: str) -> str:
    """Make the same password each time."""
    return f"password of {user}"


def one_of(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """Give the manifest of a kind and name."""
    return next(one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name))


def templates(manifests: Iterable[Manifest]) -> dict[str, Manifest]:
    """Give the pod templates of workloads, by the workload's name."""
    return {one["metadata"]["name"]: one["spec"]["template"] for one in manifests if "template" in one.get("spec", {})}


def pod(component: Component, number: int = 0, *, zone: str = "", ready: bool = True, **status: Any) -> Manifest:
    """Make a pod as the API server shows it.

    Args:
        component: What it belongs to.
        number: Distinguishes it from others.
        zone: Its line.
        ready: Whether it is ready.
        status: Further status fields.
    """
    name = "-".join(filter(None, ("btc", str(component), zone, str(number))))
    return {
        "metadata": {"name": name, "labels": labels_of("btc", component, zone)},
        "spec": {"nodeName": f"node-{zone or number}"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            **status,
        },
    }


def waiting(word: str, message: str = "", image: str = "registry.example/x:1") -> dict[str, Any]:
    """Give the status of a pod whose container waits."""
    state = {"waiting": {"reason": word, "message": message}}
    return {"containerStatuses": [{"name": "c", "image": image, "ready": False, "restartCount": 0, "state": state}]}


def crashed(
    code: int, message: str = "", *, restarts: int = 4, reason: str = "Error", name: str = "c"
) -> dict[str, Any]:
    """Give the status of a pod whose container ends again and again."""
    container = {
        "name": name,
        "image": "registry.example/x:1",
        "ready": False,
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}},
        "lastState": {"terminated": {"exitCode": code, "reason": reason, "message": message}},
    }
    return {"containerStatuses": [container]}


def stands(**fields: Any) -> PodResponse:
    """Give an answer of a processor about BTCUSDT."""
    symbol = {
        "active": True,
        "state": "anchored",
        "reason": "",
        "epoch": 3,
        "term": 2,
        "writer": "w",
        "suspect_since_us": 0,
        "event_age_ms": 12,
        "beat_age_ms": 50,
        "lock_held": False,
        "connected": True,
        "now_us": NOW_US,
        **fields,
    }
    return PodResponse({"replica": "p", "symbols": {"BTCUSDT": symbol}})


def predicts(**fields: Any) -> PodResponse:
    """Give an answer of an inference replica about BTCUSDT."""
    told = {"slot": 1, "ts": NOW_US - 1_000_000, "degraded": False, "reason": "", "model": "mlp@12345678", **fields}
    return PodResponse({"symbol": "BTCUSDT", **told})


def sound(**changes: Any) -> Observed:
    """Observe a pipeline that is as it should be, but for some fields."""
    pods = (
        *(pod(Component.INGEST, zone=zone) for zone in ZONES),
        *(pod(Component.PROCESS, number) for number in range(2)),
        *(pod(Component.INFER, number) for number in range(3)),
        *(pod(Component.REDIS, number) for number in range(3)),
    )
    fields: dict[str, Any] = {
        "zones": ZONES,
        "node_zones": {**{f"node-{zone}": zone for zone in ZONES}, "node-0": "zone-a", "node-1": "zone-b"},
        "pods": pods,
        "secrets": {"binance-api-key": frozenset({"api-key"})},
        "states": {"btc-process-0": stands(), "btc-process-1": stands(active=False)},
        "predictions": {("btc-infer-0", "BTCUSDT"): predicts()},
        **changes,
    }
    return Observed(fields.pop("now_us", NOW_US), **fields)


def judged(observed: Observed, spec: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """Give the status of a pipeline that is seen so; `plan`, `status` and metadata as further arguments."""
    plan = others.pop("plan", ReanchorPlan())
    return status_of(pipeline(spec, **others), observed, plan)


def told(status: dict[str, Any], kind: Condition) -> tuple[str, str]:
    """Give a condition's status and reason."""
    condition = condition_of(status, kind)
    assert condition is not None
    return condition["status"], condition["reason"]


def message(status: dict[str, Any], kind: Condition = Condition.READY) -> str:
    """Give a condition's message."""
    return str((condition_of(status, kind) or {})["message"])


def with_pods(*pods: dict[str, Any], without: Component) -> Observed:
    """Observe a sound pipeline but for the pods of one component."""
    seen = sound()
    kept = [one for one in seen.pods if one["metadata"]["labels"]["app.kubernetes.io/component"] != without]
    return replace(seen, pods=(*kept, *pods))
