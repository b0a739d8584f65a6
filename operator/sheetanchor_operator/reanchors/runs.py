"""ReAnchor objects, their Jobs and pods, as they are read: the requests, and the state of each run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from sheetanchor.contract import (
    EXIT_BAD_SETTINGS,
    EXIT_EXCHANGE,
    EXIT_FAILED,
    EXIT_LOCK_HELD,
    EXIT_REDIS,
    EXIT_STOPPED,
    EXIT_SUPERSEDED,
    EXIT_VALIDATION,
    Receipt,
)
from sheetanchor.errors import shortened
from sheetanchor.policy.reanchor_scheduler import EMERGENCY, IMMEDIATE, SCHEDULED, VALIDATION, Request
from sheetanchor_operator.api.reanchor_spec import TERMINAL_PHASES
from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.names import Component
from sheetanchor_operator.observation import Live
from sheetanchor_operator.reanchors.run_receipt import receipt_in

REANCHOR_LABEL: Final = "sheetanchor.dev/reanchor"
TRIGGER_LABEL: Final = "sheetanchor.dev/trigger"
ATTEMPT_ANNOTATION: Final = "sheetanchor.dev/attempt"
ANSWERS_ANNOTATION: Final = "sheetanchor.dev/answers"
"""On a Job: names of the ReAnchors that its run answers beside its own, so that they survive a crash."""

ACTIONS: Final = frozenset({EMERGENCY, IMMEDIATE, SCHEDULED, VALIDATION})
SECOND_US: Final = 1_000_000
POD_MISSING_GRACE_US: Final = 10 * SECOND_US
"""A Job may be seen complete before its pod's end, which holds the receipt: that is waited for this long."""

CONTAINER: Final = str(Component.REANCHOR)
"""The container whose end is a run's end. Service meshes add others beside it, and the kubelet sorts them by name."""

STARTING_WORDS: Final = frozenset({"ContainerCreating", "PodInitializing"})
"""Reasons of a waiting container whose pod starts normally."""

EXIT_MESSAGES: Final = {
    EXIT_FAILED: "the run failed unexpectedly",
    EXIT_BAD_SETTINGS: "the run's settings are wrong",
    EXIT_EXCHANGE: "a request to the exchange failed",
    EXIT_VALIDATION: "the rebuilt state failed validation",
    EXIT_REDIS: "a command to Redis failed",
    EXIT_LOCK_HELD: "another run holds the lock",
    EXIT_SUPERSEDED: "another run has rebuilt the state in the meantime",
    137: "the run was killed",
    EXIT_STOPPED: "the run was stopped",
}


@dataclass(frozen=True, slots=True)
class ReAnchor:
    """A ReAnchor object.

    Attributes:
        at_us: When the gap or doubt that it is about arose.
        finished_us: End of the run that gave its result, or of the last failed one; 0 before.
        duration_us: Duration of that run.
        next_us: When the next run begins at the earliest; 0 for at once.
        held: Runs that found another run in progress: they are not failures.
        raw: The status as it was read.
    """

    name: str
    uid: str
    symbol: str
    reason: str
    trigger: str
    action: str
    request_id: str
    dry_run: bool
    force: bool
    epoch: int
    at_us: int
    created_us: int
    generation: int
    owned: bool
    phase: str
    result: str
    attempts: int
    started_us: int
    finished_us: int
    duration_us: int
    next_us: int
    answered_by: str
    epoch_after: int
    held: int
    raw: Mapping[str, Any] = field(hash=False)

    @property
    def final(self) -> bool:
        """Whether its phase is final."""
        return self.phase in TERMINAL_PHASES

    @property
    def validates(self) -> bool:
        """Whether its run compares first, and rebuilds only on a difference."""
        return self.action == VALIDATION and not self.force

    @property
    def request(self) -> Request:
        """The scheduler's request for it; its id is the object's name."""
        return Request(
            action=self.action,
            reason=self.reason or self.trigger,
            trigger=self.trigger,
            at_us=self.at_us,
            epoch=self.epoch,
            id=self.name,
            force=self.force,
            first_us=self.at_us,
            tries=self.attempts,
        )

    def run_id(self, attempt: int) -> str:
        """Give the request id of one of its runs, with which the id of the lock's owner ends."""
        return f"{self.uid or self.name}-{attempt}"


def read_reanchor(body: Live) -> ReAnchor:
    """Read a ReAnchor; the API server has checked it against its schema."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    status = body.get("status") or {}
    created_us = micros_of(metadata.get("creationTimestamp"))
    action = spec.get("action", IMMEDIATE)
    return ReAnchor(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        symbol=spec.get("symbol", ""),
        reason=spec.get("reason", ""),
        trigger=spec.get("trigger", "manual"),
        action=action if action in ACTIONS else IMMEDIATE,
        request_id=spec.get("requestID", ""),
        dry_run=bool(spec.get("dryRun")),
        force=bool(spec.get("force")),
        epoch=int(spec.get("epoch", 0)),
        # Kubernetes truncates times to seconds: a request must not seem older than a run that began in the same second.
        at_us=int(spec.get("atMicros", 0)) or created_us + SECOND_US - 1,
        created_us=created_us,
        generation=int(metadata.get("generation", 1)),
        owned=any(owner.get("kind") == "PredictionPipeline" for owner in metadata.get("ownerReferences") or ()),
        **_status_fields(status),
    )


def with_status(one: ReAnchor, status: Mapping[str, Any]) -> ReAnchor:
    """Give a ReAnchor with another status."""
    return replace(one, **_status_fields(status))


def _status_fields(status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "phase": status.get("phase") or "Pending",
        "result": status.get("result") or "",
        "attempts": int(status.get("attempts") or 0),
        "started_us": micros_of(status.get("startedAt")),
        "finished_us": micros_of(status.get("finishedAt")),
        "duration_us": round(float(status.get("durationSeconds") or 0) * 1e6),
        "next_us": micros_of(status.get("nextAttemptAt")),
        "answered_by": status.get("answeredBy") or "",
        "epoch_after": int(status.get("epochAfter") or 0),
        "held": int(status.get("attemptsHeld") or 0),
        "raw": status,
    }


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        exit_code: 0 is success; -1 if no process has exited.
        receipt: The run's own, None if it wrote none.
        zone_lost: Whether it was lost with its zone: the next one, which runs elsewhere, need not wait.
    """

    exit_code: int
    result: str
    message: str
    started_us: int
    finished_us: int
    receipt: Receipt | None = None
    zone_lost: bool = False


@dataclass(frozen=True, slots=True)
class JobRun:
    """A Job of a ReAnchor.

    Attributes:
        ended: How it ended; None while it has not.
        message: What it waits for, "" if that is not known.
        answers: Other ReAnchors that it answers.
    """

    name: str
    attempt: int
    created_us: int
    ended: Ended | None
    message: str = ""
    answers: tuple[str, ...] = ()


def runs_of(
    reanchor: ReAnchor,
    jobs: Iterable[Live],
    pods: Iterable[Live],
    now_us: int,
    lost_nodes: Mapping[str, str] = MappingProxyType({}),
) -> list[JobRun]:
    """Read the runs of a ReAnchor, in their order.

    Args:
        reanchor: The ReAnchor.
        jobs: Jobs, its own among them.
        pods: Pods, theirs among them.
        now_us: The time.
        lost_nodes: Zone of each node whose zone has failed, by the node's name.
    """
    pods = tuple(pods)
    own = [job for job in jobs if _belongs(job, reanchor)]
    return sorted((_read_run(reanchor, job, pods, now_us, lost_nodes) for job in own), key=lambda run: run.attempt)


def _belongs(job: Live, reanchor: ReAnchor) -> bool:
    owners = job["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == "ReAnchor" and owner.get("uid") == reanchor.uid for owner in owners)


def _read_run(
    reanchor: ReAnchor, job: Live, pods: tuple[Live, ...], now_us: int, lost_nodes: Mapping[str, str]
) -> JobRun:
    metadata = job["metadata"]
    notes = metadata.get("annotations") or {}
    own, created = _pods_of(job, pods), metadata.get("creationTimestamp")
    return JobRun(
        name=metadata["name"],
        attempt=_attempt_of(metadata["name"], notes),
        created_us=micros_of(created),
        ended=_ended(reanchor, job, own, now_us) or _lost(own, lost_nodes, micros_of(created), now_us),
        message=_waits_for(own),
        answers=tuple(filter(None, notes.get(ANSWERS_ANNOTATION, "").split(","))),
    )


def _attempt_of(name: str, notes: Mapping[str, str]) -> int:
    """Give the number of a run. Annotations can be changed by hand: then the end of the Job's name counts."""
    for text in (notes.get(ATTEMPT_ANNOTATION, ""), name.rpartition("-")[2]):
        if re.fullmatch(r"[1-9][0-9]{0,8}", text):
            return int(text)
    return 1


def _pods_of(job: Live, pods: tuple[Live, ...]) -> list[Live]:
    """Give the pods of a Job, the newest first, without those of an earlier Job of the same name."""
    own = [pod for pod in pods if _job_of(pod) == job["metadata"]["name"] and _may_own(job, pod)]
    return sorted(own, key=lambda pod: micros_of(pod["metadata"].get("creationTimestamp")), reverse=True)


def _job_of(pod: Live) -> str:
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get("batch.kubernetes.io/job-name") or labels.get("job-name") or "")


def _may_own(job: Live, pod: Live) -> bool:
    owners = [owner for owner in pod["metadata"].get("ownerReferences") or () if owner.get("kind") == "Job"]
    return not owners or any(owner.get("uid") == job["metadata"].get("uid") for owner in owners)


def _container(pod: Live) -> Mapping[str, Any]:
    """Give the status of the run's container; {} while the kubelet reports none."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((one for one in statuses if one.get("name", CONTAINER) == CONTAINER), {})


def _ended(reanchor: ReAnchor, job: Live, pods: list[Live], now_us: int) -> Ended | None:
    created_us = micros_of(job["metadata"].get("creationTimestamp"))
    for pod in pods:
        terminated = (_container(pod).get("state") or {}).get("terminated")
        if terminated:
            return _ended_container(terminated, created_us)
    conditions = {
        condition["type"]: condition
        for condition in (job.get("status") or {}).get("conditions") or ()
        if condition.get("status") == "True"
    }
    failed, complete = conditions.get("Failed"), conditions.get("Complete")
    if failed is not None:
        at_us = micros_of(failed.get("lastTransitionTime")) or created_us
        return Ended(-1, "failed", _without_exit(failed, pods, reanchor), created_us, at_us)
    if complete is not None:
        at_us = micros_of((job.get("status") or {}).get("completionTime")) or created_us
        if now_us - at_us < POD_MISSING_GRACE_US:
            return None
        result = "dry_run" if reanchor.dry_run else "validated" if reanchor.validates else "swapped"
        return Ended(0, result, "the run succeeded; its receipt was lost with its pod", created_us, at_us)
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("phase") == "Failed":
            return Ended(-1, "failed", _pod_message(status), created_us, now_us)
    return None


def _lost(pods: list[Live], lost_nodes: Mapping[str, str], created_us: int, now_us: int) -> Ended | None:
    """Give the end of a run whose zone has failed: its kubelet cannot report one, and its lock would hold up the next.

    If it goes on there nevertheless, it cannot swap: the next run takes the lock from it.
    """
    node = (pods[0].get("spec") or {}).get("nodeName", "") if pods else ""
    if node not in lost_nodes:
        return None
    message = f"zone {lost_nodes[node]} has failed, and with it node {node}, on which the run was"
    return Ended(-1, "failed", message, created_us, now_us, zone_lost=True)


def _ended_container(terminated: Mapping[str, Any], created_us: int) -> Ended:
    code = int(terminated.get("exitCode", 1))
    started_us = micros_of(terminated.get("startedAt")) or created_us
    finished_us = micros_of(terminated.get("finishedAt")) or started_us
    text = str(terminated.get("message") or "")
    receipt = receipt_in(text)
    if receipt is not None:
        times = receipt.started_at_us, receipt.finished_at_us
        return Ended(receipt.exit_code, receipt.result, receipt.message, *times, receipt)
    words = EXIT_MESSAGES.get(code, f"the run ended with exit code {code}")
    if terminated.get("reason") == "OOMKilled":
        words = "the run ran out of memory and was killed: raise spec.reanchor.resources.limits.memory of the pipeline"
    last = text.strip().splitlines()[-1] if text.strip() else ""
    result = {0: "swapped", 6: "lock_held", 7: "superseded"}.get(code, "failed")
    return Ended(code, result, f"{words}: {last}" if last else f"{words}; it wrote no receipt", started_us, finished_us)


def _without_exit(condition: Mapping[str, Any], pods: list[Live], reanchor: ReAnchor) -> str:
    """Say why a Job failed whose process was not seen to exit."""
    known = _waits_for(pods) or str(reanchor.raw.get("message") or "")
    if condition.get("reason") == "DeadlineExceeded":
        text = "the Job exceeded its deadline"
        return f"{text}; last seen: {known}" if known else f"{text}, and its pod was terminated"
    for pod in pods:
        if (pod.get("status") or {}).get("phase") == "Failed":
            return _pod_message(pod["status"])
    text = f"the Job failed: {condition.get('reason', 'Unknown')}: {condition.get('message', '')}".rstrip(": ")
    return f"{text}; its pod was deleted, or its node was lost"


def _pod_message(status: Mapping[str, Any]) -> str:
    reason, message = status.get("reason") or "Failed", status.get("message") or ""
    return f"the pod was terminated: {reason}{': ' + message if message else ''}"


def _waits_for(pods: list[Live]) -> str:
    """Say why a pod does not run yet, "" if it runs or starts normally."""
    for pod in pods:
        words = _waits_for_container(pod) or _waits_for_place(pod)
        if words:
            return shortened(words, 1000)
    return ""


def _waits_for_container(pod: Live) -> str:
    """Say which container delays the run: its own, an init container, or a sidecar."""
    status = pod.get("status") or {}
    own = _container(pod)
    if (own.get("state") or {}).get("running"):
        return ""  # the run does not wait for the other containers
    before, beside = status.get("initContainerStatuses") or (), status.get("containerStatuses") or ()
    for container in (own, *before, *beside):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in STARTING_WORDS:
            name = container.get("name", CONTAINER)
            whose = "" if name == CONTAINER else f"container {name}: "
            message = " ".join(str(waiting.get("message") or "").split())
            return f"the pod cannot start: {whose}{reason}{': ' + message if message else ''}"
    return ""


def _waits_for_place(pod: Live) -> str:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"the pod cannot be scheduled: {' '.join(str(condition.get('message', '')).split())}"
    return ""
