"""Problems that a user has to fix: reported once, with the remedy, in a text that is stable while nothing changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import Component, Condition
from sheetanchor_operator.observation import Observed, Refusal
from support.pipeline_parts import (
    NOW_US,
    OWN_EXCHANGE,
    ZONES,
    crashed,
    judged,
    message,
    one_of,
    pod,
    rendered,
    sound,
    told,
    waiting,
    with_pods,
)

WAS_SOUND = {"lastPredictionAt": text_of(NOW_US - 60_000_000)}

IMAGE = [
    ("ErrImagePull", "rpc error: code = NotFound: failed to resolve reference: not found", "does not exist"),
    ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: not found', "does not exist"),
    ("ErrImagePull", "pull access denied, authorization failed", "imagePullSecrets"),
    ("ErrImagePull", "dial tcp: lookup registry.example: no such host", "cannot reach the registry"),
    ("ImagePullBackOff", "Back-off", "cannot be pulled"),
    ("ErrImageNeverPull", "", "imagePullPolicy IfNotPresent"),
    ("InvalidImageName", "", "correct spec.image"),
]


@pytest.mark.parametrize(("word", "said", "expected"), IMAGE)
def test_an_image_that_cannot_be_pulled_is_named(word: str, said: str, expected: str) -> None:
    """With the cause and the field to correct; the whole pipeline has failed, since nothing serves."""
    seen = with_pods(pod(Component.INFER, ready=False, **waiting(word, said)), without=Component.INFER)

    status = judged(seen)

    assert ("False", "ImageUnavailable") == told(status, Condition.READY)
    assert ("False", "ImageUnavailable") == told(status, Condition.INFERENCE_READY)
    assert "infer: image registry.example/x:1" in message(status)
    assert expected in message(status)
    assert "Failed" == status["phase"]


def test_a_missing_secret_comes_with_the_command_that_makes_it() -> None:
    """The name, the entry and the namespace are filled in."""
    status = judged(
        replace(with_pods(without=Component.INGEST), secrets={"binance-api-key": None}),
    )

    assert ("False", "SecretMissing") == told(status, Condition.READY)
    command = "kubectl -n market create secret generic binance-api-key --from-file=api-key=FILE"
    assert command in message(status)


def test_a_missing_secret_is_the_trouble_of_whoever_reads_it() -> None:
    """The exchange's key concerns the ingestors only, a Redis password every workload."""
    empty = Observed(NOW_US, zones=ZONES, secrets={"binance-api-key": None, "cache": None})
    external = {"redis": {"external": {"url": "redis://c:6379", "passwordSecret": {"name": "cache"}}}}

    key, password = judged(empty), judged(empty, {**external, "exchange": OWN_EXCHANGE})

    assert "SecretMissing" == told(key, Condition.INGESTION_HEALTHY)[1]
    assert "Starting" == told(key, Condition.INFERENCE_READY)[1]
    assert {"SecretMissing"} == {
        told(password, kind)[1] for kind in (Condition.INGESTION_HEALTHY, Condition.INFERENCE_READY, Condition.READY)
    }


def test_a_secret_without_the_entry_is_missing_too() -> None:
    """It says which entry is lacking."""
    status = judged(replace(with_pods(without=Component.INGEST), secrets={"binance-api-key": frozenset({"key"})}))

    assert ("False", "SecretMissing") == told(status, Condition.READY)
    patch = """kubectl -n market patch secret binance-api-key -p '{"stringData":{"api-key":"VALUE"}}'"""
    assert f"Secret binance-api-key lacks api-key: {patch}" in message(status)


def test_missing_models_are_named() -> None:
    """A ConfigMap or claim that does not exist holds up inference."""
    by_map = {"inference": {"model": {"configMap": {"name": "m"}}}}
    by_claim = {"inference": {"model": {"persistentVolumeClaim": {"claimName": "m"}}}}

    no_map = judged(replace(with_pods(without=Component.INFER), config_maps={"m": None}), by_map)
    half = judged(replace(with_pods(without=Component.INFER), config_maps={"m": {"model.onnx": "", "": "1"}}), by_map)
    no_claim = judged(replace(with_pods(without=Component.INFER), volume_claims={"m": False}), by_claim)

    assert ("False", "ConfigMapMissing") == told(no_map, Condition.INFERENCE_READY)
    create = "kubectl -n market create configmap m --from-file=model.onnx --from-file=manifest.json"
    assert message(no_map).endswith(create)
    assert message(half).endswith(f"{create} --dry-run=client -o yaml | kubectl -n market replace -f -")
    assert ("False", "VolumeClaimMissing") == told(no_claim, Condition.INFERENCE_READY)


REFUSED = (
    'pods "btc-infer-7d9-x2k4q" is forbidden: exceeded quota: small, requested: cpu=50m, used: cpu=1, limited: cpu=1'
)


def test_a_quota_that_is_exceeded_is_reported() -> None:
    """By a Deployment that can make no pod, by a StatefulSet's event, or by the API server's refusal of a child."""
    deployment = one_of(rendered(), "Deployment", "btc-infer")
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": REFUSED}
    live = {**deployment, "status": {"conditions": [failure]}}
    by_deployment = replace(with_pods(without=Component.INFER), children={("Deployment", "btc-infer"): live})
    live_set = one_of(rendered(), "StatefulSet", "btc-redis")
    event = {
        "involvedObject": {"kind": "StatefulSet", "name": "btc-redis"},
        "reason": "FailedCreate",
        "message": f"create Pod btc-redis-0 in StatefulSet btc-redis failed error: {REFUSED}",
    }
    by_event = replace(
        with_pods(without=Component.REDIS), children={("StatefulSet", "btc-redis"): live_set}, events=(event,)
    )
    refusal = Refusal("Service", "btc-infer", 403, 'services "btc-infer" is forbidden: exceeded quota: small')
    by_refusal = replace(with_pods(without=Component.INFER), refusals=(refusal,))

    for seen in (by_deployment, by_event, by_refusal):
        status = judged(seen)
        assert ("False", "QuotaExceeded") == told(status, Condition.READY)
        assert "exceeded quota: small" in message(status)
        assert "raise the namespace's ResourceQuota" in message(status)


def test_the_newest_event_about_a_set_counts() -> None:
    """An earlier Event may be about a problem that is fixed, or about an earlier StatefulSet of the same name."""
    live = {**one_of(rendered(), "StatefulSet", "btc-redis")}
    live["metadata"] = {**live["metadata"], "uid": "now"}

    def event(said: str, uid: str = "now") -> dict[str, Any]:
        about = {"kind": "StatefulSet", "name": "btc-redis", "uid": uid}
        text = f'create Pod btc-redis-0 in StatefulSet btc-redis failed error: pods "btc-redis-0" is forbidden: {said}'
        return {"involvedObject": about, "reason": "FailedCreate", "message": text}

    def seen(*events: dict[str, Any]) -> dict[str, Any]:
        base = with_pods(without=Component.REDIS)
        return judged(replace(base, children={("StatefulSet", "btc-redis"): live}, events=events))

    newest = seen(event("exceeded quota: aaa"), event("violates PodSecurity"))
    of_another = seen(event("violates PodSecurity", uid="before"))

    assert ("False", "PodRefused") == told(newest, Condition.READY)
    assert "aaa" not in message(newest)
    assert "PodRefused" != told(of_another, Condition.READY)[1]


def test_the_message_stays_when_only_a_pods_name_changes() -> None:
    """Each try to make a pod has another name: that is not news."""
    messages = set()
    for name in ("btc-infer-7d9-x2k4q", "btc-infer-7d9-aaaaa"):
        text = REFUSED.replace("btc-infer-7d9-x2k4q", name)
        failure = {"type": "ReplicaFailure", "status": "True", "message": text}
        live = {**one_of(rendered(), "Deployment", "btc-infer"), "status": {"conditions": [failure]}}
        seen = replace(with_pods(without=Component.INFER), children={("Deployment", "btc-infer"): live})
        messages.add(message(judged(seen)))

    assert 1 == len(messages)


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Refusal("Deployment", "btc-infer", 403, "is forbidden: User x cannot patch"), "ApplyForbidden"),
        (Refusal("StatefulSet", "btc-redis", 422, "spec: Forbidden: updates to fields"), "ApplyRefused"),
    ],
)
def test_a_refused_child_is_reported_with_the_servers_words(refusal: Refusal, expected: str) -> None:
    """While predictions flow the pipeline is degraded, not failed."""
    status = judged(sound(refusals=(refusal,)), status=WAS_SOUND)

    assert ("True", expected) == told(status, Condition.READY)
    assert f"{refusal.kind} {refusal.name}" in message(status)
    assert "Degraded" == status["phase"]


def test_a_pod_that_no_node_takes_is_reported() -> None:
    """With the scheduler's words."""
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/4 nodes are available: 4 Insufficient memory.",
    }
    seen = with_pods(
        pod(Component.INFER, ready=False, phase="Pending", conditions=[condition]), without=Component.INFER
    )

    status = judged(seen)

    assert ("False", "Unschedulable") == told(status, Condition.READY)
    assert "4 Insufficient memory; add nodes" in message(status)


CRASHES = [
    (crashed(2, '{"time": "x", "message": "redis_url: expected a URL"}\n', name="infer"), "redis_url: expected a URL"),
    (crashed(2, "redis_url: expected a URL", name="infer"), "correct the setting that it names"),
    (
        crashed(1, "a\nTraceback\nboom: x\n\n", name="infer"),
        "exit code 1 repeatedly: boom: x; kubectl -n market logs -l ",
    ),
    (crashed(1, "[" * 100_000, name="infer"), "exit code 1 repeatedly: [[[["),
    (crashed(1, '{"message": ' + "[" * 900 + "]" * 900 + "}", name="infer"), "exit code 1 repeatedly: "),
    (crashed(1, '{"message": "half \\ud800"}', name="infer"), "exit code 1 repeatedly: half ?;"),
    (crashed(137, reason="OOMKilled", name="infer"), "raise resources.limits.memory"),
]


@pytest.mark.parametrize(("ended", "expected"), CRASHES)
def test_a_crash_is_reported_with_its_code_and_last_line(ended: dict[str, Any], expected: str) -> None:
    """The last line, without its time, and what to do."""
    status = judged(with_pods(pod(Component.INFER, ready=False, **ended), without=Component.INFER))

    assert ("False", "CrashLooping") == told(status, Condition.INFERENCE_READY)
    assert expected in message(status)


def test_the_command_for_a_log_finds_the_container() -> None:
    """By the labels that its pods have, in their namespace; of two containers, the one that ends."""
    ended = crashed(1, name="sentinel")
    status = judged(with_pods(pod(Component.REDIS, ready=False, **ended), without=Component.REDIS))

    labels = "sheetanchor.dev/pipeline=btc,app.kubernetes.io/component=redis"
    assert f"kubectl -n market logs -l {labels} -c sentinel --previous" in message(status)


def test_crashes_of_long_ago_are_no_trouble_of_now() -> None:
    """A pod that is unready for a moment does not end again and again because it did in January."""
    (container,) = crashed(1)["containerStatuses"]
    told_of = []
    for minutes in (11, 9):
        ended = {**container["lastState"]["terminated"], "finishedAt": text_of(NOW_US - minutes * 60_000_000)}
        running = {**container, "state": {"running": {}}, "lastState": {"terminated": ended}}
        seen = with_pods(pod(Component.INFER, ready=False, containerStatuses=[running]), without=Component.INFER)
        told_of.append(told(judged(seen, status=WAS_SOUND), Condition.INFERENCE_READY)[1])

    assert ["PodsNotReady", "CrashLooping"] == told_of


def test_one_restart_is_no_pattern() -> None:
    """A pod that has ended once is only not ready."""
    seen = with_pods(pod(Component.INFER, ready=False, **crashed(1, restarts=1)), without=Component.INFER)

    assert ("False", "Starting") == told(judged(seen), Condition.INFERENCE_READY)


def test_what_causes_the_rest_is_reported_first() -> None:
    """A missing Secret keeps pods from starting; the Secret is reported, and not the pods' error."""
    complaint = waiting("CreateContainerConfigError", "secret not found")
    seen = with_pods(pod(Component.INGEST, ready=False, zone="zone-a", **complaint), without=Component.INGEST)

    status = judged(replace(seen, secrets={"binance-api-key": None}))

    assert ("False", "SecretMissing") == told(status, Condition.READY)
