"""What one reconcile has observed, as values. `controller.observe` collects it; here is how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sheetanchor_operator.names import ZoneHealth, ZoneReason

Live = Mapping[str, Any]
"""An object as the API server gave it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal of the API server to write a child.

    Attributes:
        kind: Kind of the child.
        name: Name of the child.
        code: HTTP status; 0 where there was no answer.
        message: The server's message.
        reason: Its machine-readable reason, "" if it gave none.
    """

    kind: str
    name: str
    code: int
    message: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PodResponse:
    """The answer of a pod, or why there is none.

    Attributes:
        body: The parsed JSON; None when there was no answer.
        error: Why there was no answer, in a few words; "" when there was one.
        silent: Whether nothing answered at all; an error of the pod's own making is an answer.
    """

    body: Mapping[str, Any] | None = None
    error: str = ""
    silent: bool = False


NUMBER_END: Final = 4_000_000_000_000_000
"""µs since 1970 in the year 2096; terms and epochs stay far below."""


def whole_number(value: Any) -> int | None:
    """Read a whole number from a pod's answer: a count or a time in µs; None for anything out of range."""
    return value if isinstance(value, int) and 0 <= value < NUMBER_END else None


def symbols_in(answer: PodResponse) -> Mapping[str, Any]:
    """Give a processor's report of each symbol; empty if it cannot be read, since any program may listen there."""
    symbols = answer.body.get("symbols") if isinstance(answer.body, Mapping) else None
    return symbols if isinstance(symbols, Mapping) else {}


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known about one pipeline at one moment.

    Attributes:
        now_us: The moment, in µs since the epoch.
        children: Live objects by `(kind, name)`.
        pods: Pods that carry the pipeline's label.
        zones: Zone names that the labels of the cluster's nodes show, sorted, whether the nodes are ready or not.
        node_zones: Zone of each node by the node's name.
        reanchors: The pipeline's ReAnchor objects.
        overwritten: Values of the annotation for re-anchors that were replaced before a reconcile acted on them.
        jobs: Their Jobs.
        secrets: Keys of each Secret that the pipeline names, by its name; None for one that does not exist. A Secret
            that was not read is absent. Values of Secrets are never held.
        secret_versions: A keyed hash of what each of these Secrets holds: pods are rolled when it changes.
        config_maps: Keys and a content hash under `""` of each ConfigMap that the pipeline names; None if missing.
        volume_claims: Whether each PersistentVolumeClaim that the pipeline names exists.
        events: Recent Warning events about the pipeline's children, newest last.
        refusals: Writes that the API server refused in this reconcile.
        unwatchable: Why a kind cannot be listed or watched, by its name: what is known of it may be old.
        usable_zones: Of the zones those in which the pipeline's pods can run; None if that was not read.
        states: `GET /state` of each processor, by pod name.
        predictions: `GET /predictions/{S}` by pod name and symbol.
        health: `GET /health/detailed` of each ingestor and Redis node, by pod name.
        unanswered: Pods that have not answered for some seconds, by name: what their kubelets have said of them is old.
        zone_verdicts: What each zone counts as, and why; None where zones are not judged.
    """

    now_us: int
    children: Mapping[tuple[str, str], Live] = field(default_factory=dict)
    pods: tuple[Live, ...] = ()
    zones: tuple[str, ...] = ()
    node_zones: Mapping[str, str] = field(default_factory=dict)
    reanchors: tuple[Live, ...] = ()
    overwritten: tuple[str, ...] = ()
    jobs: tuple[Live, ...] = ()
    secrets: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    secret_versions: Mapping[str, str] = field(default_factory=dict)
    config_maps: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    volume_claims: Mapping[str, bool] = field(default_factory=dict)
    events: tuple[Live, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    unwatchable: Mapping[str, Refusal] = field(default_factory=dict)
    usable_zones: tuple[str, ...] | None = None
    states: Mapping[str, PodResponse] = field(default_factory=dict)
    predictions: Mapping[tuple[str, str], PodResponse] = field(default_factory=dict)
    health: Mapping[str, PodResponse] = field(default_factory=dict)
    unanswered: frozenset[str] = frozenset()
    zone_verdicts: Mapping[str, tuple[ZoneHealth, ZoneReason]] | None = None

    def zones_that_are(self, *health: ZoneHealth) -> frozenset[str]:
        """Name the zones that count as one of these; none where zones are not judged."""
        verdicts = self.zone_verdicts or {}
        return frozenset(zone for zone, (found, _) in verdicts.items() if found in health)

    def child(self, kind: str, name: str) -> Live | None:
        """Give a live child, None if it does not exist."""
        return self.children.get((kind, name))

    def pods_of(self, labels: Mapping[str, str]) -> tuple[Live, ...]:
        """Give the pods that carry all these labels."""
        wanted = labels.items()
        return tuple(pod for pod in self.pods if wanted <= pod["metadata"].get("labels", {}).items())
