"""Problems of a pipeline's components and their remedies, from what Kubernetes reports of them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor.contract import EXIT_BAD_SETTINGS
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.children.prerequisites import (
    claims_needed,
    component_requiring,
    config_maps_needed,
    secrets_needed,
)
from sheetanchor_operator.names import COMPONENT_LABEL, PIPELINE_LABEL, Component, Reason
from sheetanchor_operator.observation import Live, Observed, Refusal
from sheetanchor_operator.status.refusal_causes import REASONS, REMEDIES, Cause, cause_of

IMAGE_WORDS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
CONTAINER_WORDS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
CRASHES_MIN: Final = 2
"""One restart may have a passing cause; a second one is reported."""

CRASH_RECENT_US: Final = 10 * 60 * 1_000_000
"""The kubelet backs off for five minutes at most: a container that ended longer ago has another problem."""

CODE_FORBIDDEN: Final = 403
RESOURCE_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    Component.INGEST: ("ingestion.resources",),
    Component.PROCESS: ("processor.resources",),
    Component.INFER: ("inference.resources",),
    Component.REDIS: ("redis.managed.resources", "redis.managed.sentinelResources"),
    Component.REANCHOR: ("reanchor.resources",),
}
POD_REMEDIES: Final = {
    Cause.QUOTA: "raise the namespace's ResourceQuota or lower {fields}",
    Cause.QUOTA_FIELD: "set the requests and limits that the ResourceQuota requires in {fields}",
    Cause.LIMIT_RANGE: "set {fields} within the namespace's LimitRange",
    Cause.RIGHTS: "the cluster's own controllers are not allowed to create pods here: check RBAC",
    Cause.NO_KIND: "admission refuses it",
    Cause.OTHER: "admission refuses it",
}
"""Remedies where pods, not objects of the operator, are refused; other causes have the same one."""

LINE_LENGTH_MAX: Final = 200

ORDER: Final = (
    Reason.SPEC_REFUSED,
    Reason.NAMESPACE_TERMINATING,
    Reason.WATCH_REFUSED,
    Reason.APPLY_FORBIDDEN,
    Reason.NAME_TAKEN,
    Reason.QUOTA_EXCEEDED,
    Reason.LIMITS_REFUSED,
    Reason.POLICY_REFUSED,
    Reason.APPLY_REFUSED,
    Reason.SECRET_MISSING,
    Reason.CONFIG_MAP_MISSING,
    Reason.VOLUME_CLAIM_MISSING,
    Reason.IMAGE_UNAVAILABLE,
    Reason.POD_REFUSED,
    Reason.CONTAINER_REFUSED,
    Reason.CRASH_LOOPING,
    Reason.UNSCHEDULABLE,
    Reason.PODS_NOT_READY,
)
"""The first of them is reported: what comes first in this list is likely to cause what comes after."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person has to fix.

    Attributes:
        component: The component whose pods are affected; "" for all.
        message: What is the case and what to do. It must stay the same while nothing changes.
    """

    component: str
    reason: Reason
    message: str


def problems_of(pipeline: Pipeline, observed: Observed) -> tuple[Problem, ...]:
    """Find what a person has to fix, most likely cause first."""
    found = {
        *map(_of_refusal, observed.refusals),
        *map(_of_unwatchable, observed.unwatchable.values()),
        *_of_prerequisites(pipeline, observed),
        *_of_workloads(pipeline, observed),
        *(problem for pod in observed.pods if is_current(pod) for problem in _of_pod(pipeline, pod, observed.now_us)),
    }
    return tuple(sorted(found, key=lambda one: (ORDER.index(one.reason), one.component, one.message)))


def is_finished(pod: Live) -> bool:
    """Say whether none of a pod's containers runs any more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_current(pod: Live) -> bool:
    """Say whether a pod counts: not terminating, and no finished run of a Job."""
    return "deletionTimestamp" not in pod["metadata"] and not is_finished(pod)


def is_ready(pod: Live) -> bool:
    """Say whether a pod is ready."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return is_current(pod) and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def component_of(child: Live) -> str:
    """Give the component that an object belongs to, "" if it does not say."""
    return str((child["metadata"].get("labels") or {}).get(COMPONENT_LABEL, ""))


def _of_refusal(refusal: Refusal) -> Problem:
    cause = cause_of(refusal.code, refusal.reason, refusal.message)
    reason = REASONS.get(cause, Reason.APPLY_REFUSED)
    return Problem("", reason, f"{refusal.kind} {refusal.name}: {_one_line(refusal.message)}; {REMEDIES[cause]}")


def _of_unwatchable(refusal: Refusal) -> Problem:
    cause = cause_of(refusal.code, refusal.reason, refusal.message)
    reason = REASONS[cause] if cause is Cause.TERMINATING else Reason.WATCH_REFUSED
    return Problem(
        "",
        reason,
        f"objects of the kind {refusal.kind} cannot be watched, and those of this pipeline are left as they are: "
        f"{_one_line(refusal.message)}; {REMEDIES[cause]}",
    )


def _of_prerequisites(pipeline: Pipeline, observed: Observed) -> Iterator[Problem]:
    namespace = pipeline.namespace
    for name, keys in sorted(secrets_needed(pipeline).items()):
        if name in observed.secrets:
            missing = sorted(keys - (observed.secrets[name] or frozenset()))
            if missing:
                yield Problem(
                    component_requiring(pipeline, name),
                    Reason.SECRET_MISSING,
                    f"Secret {name} lacks {', '.join(missing)}: "
                    f"{_secret_remedy(namespace, name, missing, there=observed.secrets[name] is not None)}",
                )
    for name, keys in sorted(config_maps_needed(pipeline).items()):
        if name in observed.config_maps:
            missing = sorted(keys - set(observed.config_maps[name] or ()))
            if missing:
                yield Problem(
                    Component.INFER,
                    Reason.CONFIG_MAP_MISSING,
                    f"ConfigMap {name} lacks {', '.join(missing)}: "
                    f"{_config_map_remedy(namespace, name, keys, there=observed.config_maps[name] is not None)}",
                )
    for name in sorted(claims_needed(pipeline)):
        if not observed.volume_claims.get(name, True):
            yield Problem(
                Component.INFER,
                Reason.VOLUME_CLAIM_MISSING,
                f"PersistentVolumeClaim {name} does not exist in {namespace}: create it, or correct "
                "inference.model.persistentVolumeClaim.claimName",
            )


def _secret_remedy(namespace: str, name: str, missing: list[str], *, there: bool) -> str:
    """Give the command that adds entries; existing ones stay, which `apply` might remove."""
    if not there:
        files = " ".join(f"--from-file={key}=FILE" for key in missing)
        return f"kubectl -n {namespace} create secret generic {name} {files}"
    entries = json.dumps({"stringData": dict.fromkeys(missing, "VALUE")}, separators=(",", ":"))
    return f"kubectl -n {namespace} patch secret {name} -p '{entries}'"


def _config_map_remedy(namespace: str, name: str, keys: Iterable[str], *, there: bool) -> str:
    """Give the command that writes all entries: a model and its manifest belong together."""
    files = " ".join(f"--from-file={key}" for key in sorted(keys, reverse=True))
    create = f"kubectl -n {namespace} create configmap {name} {files}"
    # `apply` would put a copy into an annotation, which is too small for a model.
    return f"{create} --dry-run=client -o yaml | kubectl -n {namespace} replace -f -" if there else create


def _of_workloads(pipeline: Pipeline, observed: Observed) -> Iterator[Problem]:
    """Find pods that could not be created."""
    for (kind, _), live in observed.children.items():
        if kind == "Deployment":
            for condition in live.get("status", {}).get("conditions") or ():
                if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                    yield _refused_pod(component_of(live), condition.get("message", ""))
                if condition["type"] == "Progressing" and condition["status"] == "False":
                    yield _stuck(pipeline, component_of(live), live["metadata"]["name"])
    yield from _of_events(observed)


def _of_events(observed: Observed) -> Iterator[Problem]:
    """Find problems in the newest Event about each StatefulSet: an earlier one may be about something that is fixed."""
    newest = {}
    for event in observed.events:
        about = event.get("involvedObject") or event.get("regarding") or {}
        if about.get("kind") == "StatefulSet" and event.get("reason") == "FailedCreate":
            newest[about.get("name", "")] = event, about
    for name, (event, about) in newest.items():
        live = observed.child("StatefulSet", name)
        if live is None or about.get("uid", "") not in ("", live["metadata"].get("uid")):
            continue
        if live.get("status", {}).get("replicas", 0) < live["spec"].get("replicas", 1):
            yield _refused_pod(component_of(live), event.get("message") or event.get("note") or "")


def _stuck(pipeline: Pipeline, component: str, name: str) -> Problem:
    return Problem(
        component,
        Reason.PODS_NOT_READY,
        f"{component}: the roll-out of {name} does not progress, old pods keep serving; see "
        f"kubectl -n {pipeline.namespace} rollout status deploy/{name} and the newest pod",
    )


def _refused_pod(component: str, message: str) -> Problem:
    # The name of the pod that could not be created differs each time.
    message = re.sub(r"^.*?is forbidden: ", "", _one_line(re.sub(r'[Pp]ods? "[^"]*"', "pods", message)))
    cause = cause_of(CODE_FORBIDDEN, "", message)
    remedy = POD_REMEDIES.get(cause, REMEDIES[cause]).format(fields=_fields_of_resources(component, message))
    reason = Reason.QUOTA_EXCEEDED if cause is Cause.QUOTA else Reason.POD_REFUSED
    return Problem(component, reason, f"{component}: no pod can be created: {message}; {remedy}")


def _fields_of_resources(component: str, message: str) -> str:
    """Name the fields of the pipeline that size a component's containers, one if the server's message names it."""
    fields = RESOURCE_FIELDS.get(component, ("its resources",))
    named = [one for one in fields if "sentinel" in one] if re.search(r"\bsentinel\b", message) else []
    return " and ".join(named or fields)


def _of_pod(pipeline: Pipeline, pod: Live, now_us: int) -> Iterator[Problem]:
    status, component = pod.get("status", {}), component_of(pod)
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            yield Problem(
                component,
                Reason.UNSCHEDULABLE,
                f"{component}: {_one_line(condition.get('message', 'no node fits'))}; add nodes, lower "
                "resources.requests, or check zones and scheduling",
            )
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        yield from _of_container(pipeline, component, container, now_us)


def _of_container(pipeline: Pipeline, component: str, container: Any, now_us: int) -> Iterator[Problem]:
    waiting = container.get("state", {}).get("waiting") or {}
    word, message = waiting.get("reason", ""), waiting.get("message", "")
    if word in IMAGE_WORDS:
        yield Problem(
            component,
            Reason.IMAGE_UNAVAILABLE,
            f"{component}: image {container['image']} {_image_cause(word, message)}",
        )
    elif word in CONTAINER_WORDS:
        yield Problem(
            component, Reason.CONTAINER_REFUSED, f"{component}: {word}: {_one_line(message)}; check what the pod mounts"
        )
    elif container.get("restartCount", 0) >= CRASHES_MIN and not container.get("ready"):
        ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated") or {}
        if word == "CrashLoopBackOff" or now_us - micros_of(ended.get("finishedAt")) <= CRASH_RECENT_US:
            logs = _logs(pipeline, component, container["name"])
            yield Problem(component, Reason.CRASH_LOOPING, f"{component}: {_crash(ended, container['name'], logs)}")


def _image_cause(word: str, message: str) -> str:
    """Name the cause; the kubelet reports the same failure with another text at each try."""
    if word == "InvalidImageName":
        return "is not a valid reference: correct spec.image"
    if word == "ErrImageNeverPull":
        return "is not on the node and may not be pulled: load it there, or set imagePullPolicy IfNotPresent"
    if re.search(r"unauthorized|denied|forbidden|authentication", message, re.I):
        return "may not be pulled: name a Secret with the registry's credentials in spec.imagePullSecrets"
    if re.search(r"not found|manifest unknown|does not exist", message, re.I):
        return "does not exist: correct spec.image, or the operator's default image if that is empty"
    if re.search(r"no such host|timeout|timed out|refused|unreachable|lookup", message, re.I):
        return "cannot be pulled: the node cannot reach the registry; check the registry's name and the network"
    return "cannot be pulled: correct spec.image or spec.imagePullSecrets; see the pod's Events"


def _logs(pipeline: Pipeline, component: str, container: str) -> str:
    labels = f"{PIPELINE_LABEL}={pipeline.name},{COMPONENT_LABEL}={component}"
    return f"kubectl -n {pipeline.namespace} logs -l {labels} -c {container} --previous"


def _crash(ended: Any, container: str, logs: str) -> str:
    code, last = ended.get("exitCode", -1), last_line(ended.get("message") or "")
    if ended.get("reason") == "OOMKilled":
        return f"{container} was killed because it ran out of memory: raise resources.limits.memory"
    report = f": {last}" if last else ""
    advice = "correct the setting that it names" if code == EXIT_BAD_SETTINGS else logs
    return f"{container} ends with exit code {code} repeatedly{report}; {advice}"


def last_line(log: str) -> str:
    """Give the text of a log's last line, which may be JSON, without its time."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not lines:
        return ""
    try:
        line = json.loads(lines[-1])
        text = str(line.get("message", "")) if isinstance(line, dict) else lines[-1]
    except (ValueError, RecursionError):  # any container may write anything: `[[[[…` exceeds the recursion limit
        text = lines[-1]
    return _one_line(text)


def _one_line(text: str) -> str:
    # The API server replaces half a surrogate pair by another character: the status would be written again and again.
    line = " ".join(text.encode(errors="replace").decode().split()).rstrip(".")
    return line if len(line) <= LINE_LENGTH_MAX else line[: LINE_LENGTH_MAX - 1] + "…"


def worst_of(problems: Iterable[Problem], *components: str) -> Problem | None:
    """Give the first problem that some components, or all, have: the most likely cause."""
    return next((one for one in problems if one.component in ("", *components)), None)
