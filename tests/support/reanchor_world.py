"""A cluster as far as re-anchors go, in memory: ReAnchors, Jobs and pods are kept by its rules, time is set by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sheetanchor.contract import Receipt
from sheetanchor_operator.api.pipeline import parse
from sheetanchor_operator.api.reanchor_spec import TERMINAL_PHASES, ReanchorSpec, ReanchorStatus
from sheetanchor_operator.api.timestamps import micros_of, text_of
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.names import ZoneHealth, ZoneReason
from sheetanchor_operator.observation import Observed, PodResponse
from sheetanchor_operator.reanchors.decide import plan
from sheetanchor_operator.reanchors.plan import ReanchorPlan, defer

SECOND = 1_000_000
BEGIN_US = 1_800_000_000 * SECOND
SYMBOL = "BTCUSDT"


@dataclass
class World:
    """What the API server of a pipeline `btc` holds, and what its processor says."""

    spec: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    overwritten: tuple[str, ...] = ()
    now_us: int = BEGIN_US
    reanchors: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: list[tuple[int, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    answering: bool = True
    redis_ahead_us: int = 0
    zones: dict[str, ZoneHealth] = field(default_factory=dict)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for symbol in self.symbols:
            self.anchored(symbol, 1)

    @property
    def symbols(self) -> list[str]:
        return list(self.spec.get("symbols", [SYMBOL]))

    def says(self, symbol: str = SYMBOL, **told: Any) -> None:
        """Have the processor say something else of a symbol."""
        self.states[symbol] = {**self.states.get(symbol, {}), **told}

    def anchored(self, symbol: str = SYMBOL, epoch: int = 1) -> None:
        self.says(symbol, active=True, state="anchored", epoch=epoch, term=1, event_age_ms=10, suspect_since_us=0)

    def suspect(self, symbol: str = SYMBOL, since_us: int = 0) -> None:
        self.says(symbol, state="suspect", suspect_since_us=since_us or self.now_us)

    def add(self, name: str, symbol: str = SYMBOL, **spec: Any) -> None:
        """Create a ReAnchor, as a processor or a person does."""
        full = {"pipeline": "btc", "symbol": symbol, "reason": "because", "trigger": "sequence_gap", **spec}
        full.setdefault("atMicros", self.now_us)
        ReanchorSpec.model_validate(full)
        self._create(self.reanchors, "ReAnchor", name, {"spec": full})

    def _create(self, kept: dict[str, Any], kind: str, name: str, body: Mapping[str, Any]) -> bool:
        if name in kept:
            return False
        metadata = {**body.get("metadata", {}), "name": name, "uid": f"uid-{name}", "generation": 1}
        metadata["creationTimestamp"] = text_of(self.now_us // SECOND * SECOND)
        kept[name] = {**copy.deepcopy(dict(body)), "kind": kind, "metadata": metadata}
        return True

    def look(self) -> ReanchorPlan:
        """Plan, from nothing but what is kept."""
        told = {symbol: {**state, "now_us": self.now_us + self.redis_ahead_us} for symbol, state in self.states.items()}
        body = {
            "metadata": {
                "name": "btc",
                "namespace": "default",
                "uid": "uid-of-btc",
                "generation": 1,
                "creationTimestamp": text_of(BEGIN_US - 3600 * SECOND),
                "annotations": self.annotations,
            },
            "spec": {"symbols": [SYMBOL], **self.spec},
            "status": self.status,
        }
        observed = Observed(
            now_us=self.now_us,
            reanchors=tuple(self.reanchors.values()),
            overwritten=self.overwritten,
            jobs=tuple(self.jobs.values()),
            pods=tuple(self.pods.values()),
            node_zones={f"node-{zone}": zone for zone in "abc"},
            zone_verdicts={zone: (health, ZoneReason.UNREACHABLE) for zone, health in self.zones.items()},
            states={"btc-process-0": PodResponse({"symbols": told})} if self.answering else {},
        )
        return plan(parse(body), observed, Defaults(image="example/sheetanchor:1"))

    def step(self, actions: int = 1_000_000, has_time: Callable[[], bool] = lambda: True) -> ReanchorPlan:
        """Plan and act; a crash after so many actions is a lower number of them.

        Args:
            actions: How many.
            has_time: Whether one more status that can wait is written.
        """
        made = self.look()
        made = defer(made, {one.name for one in made.patch if one.can_wait and not has_time()}, self.now_us)
        acts: list[Any] = [("create", one) for one in made.create]
        acts += [("start", one) for one in made.start]
        acts += [("patch", one) for one in made.patch]
        acts += [("delete", one) for one in made.delete]
        for kind, what in acts[:actions]:
            getattr(self, f"_{kind}")(what) if kind != "create" else self._ask(what)
        if actions >= len(acts):
            self.reasons += [str(event.reason) for event in made.events if event.kind == "ReAnchor"]
            self.status["lastReanchorRequest"] = made.last_request
            if made.last_reanchor:
                self.status["lastReanchor"] = dict(made.last_reanchor)
            self.status["symbols"] = [
                {"name": s, "rebuiltMicros": list(f.rebuilt_us), "comparedMicros": list(f.compared_us)}
                for s, f in made.symbols.items()
            ]
            self.status["reanchorRequests"] = [one.entry() for one in made.requests or ()]
            self.status["reanchorRuns"] = dict(
                zip(("succeededMicros", "failedMicros"), map(list, made.outcomes or ((), ())), strict=True)
            )
        return made

    def _ask(self, manifest: dict[str, Any]) -> None:
        ReanchorSpec.model_validate(manifest["spec"])
        self._create(self.reanchors, "ReAnchor", manifest["metadata"]["name"], manifest)

    def _start(self, start: Any) -> None:
        name = start.manifest["metadata"]["name"]
        assert len(name) <= 63
        if self._create(self.jobs, "Job", name, start.manifest):
            self.started.append((self.now_us, name))
            labels = {"batch.kubernetes.io/job-name": name}
            self.pods[name] = {"metadata": {"name": f"{name}-pod", "labels": labels}, "status": {"phase": "Pending"}}

    def _patch(self, patch: Any) -> None:
        body = self.reanchors[patch.name]
        before = body.get("status", {})
        was = copy.deepcopy(body)
        after = {key: value for key, value in {**before, **patch.status}.items() if value is not None}
        ReanchorStatus.model_validate(after)
        assert before.get("phase") not in TERMINAL_PHASES or after["phase"] == before["phase"]
        assert after.get("attempts", 0) >= before.get("attempts", 0)
        body["status"] = after
        self.changes.append((was, copy.deepcopy({**body, "metadata": {"namespace": "default", **body["metadata"]}})))

    def _delete(self, name: str) -> None:
        del self.reanchors[name]
        for job in [job for job in self.jobs if job.rpartition("-")[0] == name]:
            self.jobs.pop(job)
            self.pods.pop(job, None)

    def at_work(self) -> list[str]:
        """Jobs whose pod has not ended."""
        return [name for name in self.jobs if self.pods[name]["status"]["phase"] in ("Pending", "Running")]

    def ends(
        self, job: str, *, result: str = "swapped", seconds: float = 2.0, message: str = "", **fields: Any
    ) -> None:
        """Have a run end with a receipt, some seconds after it began."""
        begun_us = micros_of(self.jobs[job]["metadata"]["creationTimestamp"])
        self.now_us = max(self.now_us, begun_us + round(seconds * SECOND))
        spec = self.reanchors[job.rpartition("-")[0]]["spec"]
        epoch = self.states[spec["symbol"]].get("epoch", 0)
        good = result in ("swapped", "validated", "dry_run", "repeated")
        code = 0 if good else {"lock_held": 6, "superseded": 7}.get(result, 3)
        after = epoch + (result == "swapped")
        receipt = Receipt(
            id="reanchor",
            symbol=spec["symbol"],
            reason="because",
            trigger="sequence_gap",
            result=result,
            started_at_us=self.now_us + self.redis_ahead_us - round(seconds * SECOND) + 1,
            finished_at_us=self.now_us + self.redis_ahead_us,
            epoch_before=epoch,
            epoch_after=after,
            snapshot_id=7,
            update_id=9,
            exit_code=code,
            message=message or f"it is {result}",
            phases={"lock": 0.001, "swap": 0.002},
            checks=("book",),
            **fields,
        )
        self.dies(job, code, receipt.to_json())
        if result == "swapped":
            self.anchored(spec["symbol"], after)

    def dies(self, job: str, code: int, message: str = "", reason: str = "") -> None:
        """Have a run's process end."""
        at = text_of(self.now_us)
        ended = {"exitCode": code, "message": message, "reason": reason, "startedAt": at, "finishedAt": at}
        phase = "Failed" if code else "Succeeded"
        own = {"name": "reanchor", "state": {"terminated": ended}}
        self.pods[job]["status"] = {"phase": phase, "containerStatuses": [own]}

    def bound(self, job: str, zone: str) -> None:
        """Have the pod of a run begin on the node of a zone."""
        self.pods[job]["spec"] = {"nodeName": f"node-{zone}"}
        self.pods[job]["status"] = {
            "phase": "Running",
            "containerStatuses": [{"name": "reanchor", "state": {"running": {}}}],
        }

    def fails(self, job: str, reason: str, message: str = "") -> None:
        """Have a Job fail whose pod is gone."""
        self.pods.pop(job, None)
        at = text_of(self.now_us)
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
        self.jobs[job]["status"] = {"conditions": [{**condition, "lastTransitionTime": at}]}

    def passes(self, seconds: float) -> None:
        self.now_us += round(seconds * SECOND)

    def of(self, name: str) -> dict[str, Any]:
        """The status of a ReAnchor."""
        return dict(self.reanchors[name].get("status", {}))

    def settle(self) -> ReanchorPlan:
        """Step until nothing more is to be done at this moment."""
        for _ in range(20):
            made = self.step()
            if not (made.create or made.start or made.patch or made.delete):
                return made
        raise AssertionError("it never settles: each plan asks for more")


def args_of(world: World, job: str) -> list[str]:
    """The arguments of a Job's container."""
    container = world.jobs[job]["spec"]["template"]["spec"]["containers"][0]
    return list(container["args"])
