"""The Job of one re-anchor run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sheetanchor.policy.reanchor_object import bounded_name
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults, Manifest
from sheetanchor_operator.children.pod_template import WorkloadRole, pod_metadata, pod_spec
from sheetanchor_operator.names import (
    API_VERSION,
    LABEL_LENGTH_MAX,
    REANCHOR_KIND,
    TOPOLOGY_ZONE,
    Component,
    labels_of,
)
from sheetanchor_operator.reanchors.runs import ANSWERS_ANNOTATION, ATTEMPT_ANNOTATION, REANCHOR_LABEL, TRIGGER_LABEL

DEADLINE_S: Final = 150
"""A run ends by itself within 140 s; with the pod's start this is enough for any, and half the lifetime of its lock."""

KEEP_S: Final = 600
"""A finished Job, and with it the run's log, stays this long."""

GRACE_S: Final = 15
"""A run that receives SIGTERM releases its lock and removes its staging keys within five seconds."""

RECEIPT_FILE: Final = "/dev/termination-log"
ANSWERS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class RunParameters:
    """The parameters of a run.

    Attributes:
        name: Name of its ReAnchor.
        uid: Uid of its ReAnchor.
        attempt: Its number among the runs of that ReAnchor, from 1.
        run_id: Its request id.
        unlock_for: Request id of a run that is known to have ended and may not have released its lock; "" for none.
        answers: Other ReAnchors that it answers.
        lost_zones: Zones whose nodes it must not run on: the scheduler learns of their loss only after a while.
    """

    name: str
    uid: str
    symbol: str
    reason: str
    trigger: str
    attempt: int
    run_id: str
    unlock_for: str = ""
    validate_only: bool = False
    dry_run: bool = False
    answers: tuple[str, ...] = ()
    lost_zones: tuple[str, ...] = ()


def job_name(reanchor: str, attempt: int) -> str:
    """Name a run's Job; its pods carry the name as a label."""
    tail = f"-{attempt}"
    return bounded_name(reanchor, LABEL_LENGTH_MAX - len(tail)) + tail


def _args(order: RunParameters) -> tuple[str, ...]:
    # Joined by "=": a reason that begins with a dash must not be parsed as a flag.
    args = [
        f"--symbol={order.symbol}",
        f"--reason={order.reason}",
        f"--trigger={order.trigger}",
        f"--request-id={order.run_id}",
        f"--receipt-file={RECEIPT_FILE}",
    ]
    if order.unlock_for:
        args.append(f"--unlock-for={order.unlock_for}")
    if order.validate_only:
        args.append("--validate-only")
    if order.dry_run:
        args.append("--dry-run")
    # Kubernetes replaces $(NAME) by a variable's value; a doubled dollar sign is kept as one.
    return tuple(arg.replace("$", "$$") for arg in args)


def _elsewhere(zones: tuple[str, ...]) -> Manifest:
    """Render the rule that keeps a pod off the nodes of these zones."""
    if not zones:
        return {}
    expression = {"key": TOPOLOGY_ZONE, "operator": "NotIn", "values": list(zones)}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


def job(pipeline: Pipeline, defaults: Defaults, order: RunParameters) -> Manifest:
    """Render the Job of a run.

    Args:
        pipeline: The pipeline whose hot state is rebuilt.
        defaults: Values from the operator's own settings.
        order: The parameters of the run.
    """
    labels = labels_of(pipeline.name, Component.REANCHOR, symbol=order.symbol)
    labels[REANCHOR_LABEL] = bounded_name(order.name, LABEL_LENGTH_MAX)
    labels[TRIGGER_LABEL] = order.trigger[:LABEL_LENGTH_MAX].rstrip("_")
    annotations = {ATTEMPT_ANNOTATION: str(order.attempt)}
    if order.answers:
        annotations[ANSWERS_ANNOTATION] = ",".join(order.answers[:ANSWERS_MAX])
    role = WorkloadRole(
        Component.REANCHOR,
        pipeline.spec.reanchor.resources,
        args=_args(order),
        grace_s=GRACE_S,
        served=False,
    )
    owner = {
        "apiVersion": API_VERSION,
        "kind": REANCHOR_KIND,
        "name": order.name,
        "uid": order.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(order.name, order.attempt),
            "namespace": pipeline.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": KEEP_S,
            "template": {
                "metadata": pod_metadata(pipeline, labels, {}),
                "spec": {
                    **pod_spec(pipeline, defaults, role),
                    **_elsewhere(order.lost_zones),
                    "restartPolicy": "Never",
                },
            },
        },
    }
