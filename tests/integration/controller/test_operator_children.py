"""A running operator keeps a pipeline's children: made, kept, put right, and never touched without need."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest

from sheetanchor_operator.names import EventReason
from support.apiserver import ApiServer
from support.operator_parts import define, namespace, reanchors
from support.operator_process import (
    CHILDREN,
    OperatorProcess,
    apply_pipeline,
    children_of,
    dump,
    looks,
    operating,
    path_of,
    pipeline_of,
    settled,
    until,
    versions_of,
)

MERGE = "application/merge-patch+json"
WITHIN_S = 30

NO_AUDIT = "from sheetanchor_operator.controller import leader; leader.AUDIT_EVERY_S = 86_400.0"
"""Whatever is put right is then put right because a watch has shown it, however long that takes."""


@pytest.fixture(scope="module")
def where(apiserver: ApiServer) -> Iterator[str]:
    """A namespace of this module."""
    define(apiserver)
    with namespace(apiserver) as name:
        yield name


@pytest.fixture(scope="module")
def operator(apiserver: ApiServer, where: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """An operator that leads, and a pipeline whose children it has made."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "binance-api-key"}}
    apiserver.apply({**secret, "stringData": {"api-key": "sesame-of-a-test"}}, namespace=where)
    apply_pipeline(apiserver, where)
    folder = tmp_path_factory.mktemp("operator")
    with operating(apiserver, where, folder, "one", "--operator-resync-s", "1", code=NO_AUDIT) as running:
        until(lambda: settled(apiserver, where), within_s=WITHIN_S, what="all children", operator=running)
        settle(running)
        yield running


def settle(operator: OperatorProcess, more: int = 2) -> None:
    """Wait until a pipeline has been looked at some more times."""
    target = looks(operator) + more
    until(lambda: looks(operator) >= target, within_s=WITHIN_S, what=f"{more} more looks", operator=operator)


def child(server: ApiServer, where: str, plural: str, name: str) -> dict[str, Any] | None:
    listed = server.json(plural, "-n", where)["items"]
    return next((one for one in listed if one["metadata"]["name"] == name), None)


def deployment_path(where: str, name: str) -> str:
    return f"/apis/apps/v1/namespaces/{where}/deployments/{name}"


def test_every_child_belongs_to_the_pipeline(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """Every child has the pipeline as its controller, and nothing else has been put on it."""
    pipeline = pipeline_of(apiserver, where)
    for place, body in children_of(apiserver, where).items():
        owners = body["metadata"]["ownerReferences"]

        assert [(pipeline["metadata"]["uid"], True)] == [(one["uid"], one["controller"]) for one in owners], place
        assert "finalizers" not in body["metadata"], place
        assert "kopf" not in dump(body["metadata"]), place
    assert "finalizers" not in pipeline["metadata"]
    assert "kopf" not in dump(pipeline["metadata"])


def test_a_look_that_finds_nothing_writes_nothing(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """Over several reconciles no object of the pipeline, and not the pipeline itself, gets a new version."""
    before = versions_of(apiserver, where)

    settle(operator, 4)

    assert before == versions_of(apiserver, where)


@pytest.mark.parametrize("plural", CHILDREN)
def test_a_deleted_child_is_back_at_once(
    apiserver: ApiServer, where: str, operator: OperatorProcess, plural: str
) -> None:
    """Whatever is deleted is made again as soon as it is seen; a Secret of passwords with new ones."""
    name, uid = next(
        (one["metadata"]["name"], one["metadata"]["uid"])
        for one in apiserver.json(plural, "-n", where, "-l", "sheetanchor.dev/pipeline=btc")["items"]
    )

    apiserver.kubectl("delete", plural, name, "-n", where, "--wait=false")

    def back() -> bool:
        found = child(apiserver, where, plural, name)
        return found is not None and found["metadata"]["uid"] != uid

    until(back, within_s=WITHIN_S, what=f"{plural}/{name} is back", operator=operator)


@pytest.mark.parametrize(
    ("patch", "kept"),
    [
        ({"spec": {"replicas": 7}}, lambda body: body["spec"]["replicas"] == 3),
        (
            {"metadata": {"labels": {"app.kubernetes.io/component": "mine"}}},
            lambda body: body["metadata"]["labels"]["app.kubernetes.io/component"] == "infer",
        ),
        (
            {"spec": {"template": {"spec": {"automountServiceAccountToken": None}}}},
            lambda body: body["spec"]["template"]["spec"].get("automountServiceAccountToken") is False,
        ),
        (
            {"metadata": {"ownerReferences": None}},
            lambda body: len(body["metadata"].get("ownerReferences", ())) == 1,
        ),
    ],
)
def test_a_change_of_what_is_ours_is_put_right(
    apiserver: ApiServer, where: str, operator: OperatorProcess, patch: dict[str, Any], kept: Any
) -> None:
    """Another client's change of a field that the operator sets does not last."""
    path = deployment_path(where, "btc-infer")
    apiserver.ask(path, method="PATCH", body=patch, content_type=MERGE)

    until(lambda: kept(apiserver.ask(path)), within_s=WITHIN_S, what=dump(patch), operator=operator)


def test_what_others_add_is_left_alone(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """Another client's label and annotation stay, and cost no write."""
    path = deployment_path(where, "btc-process")
    theirs = {"metadata": {"labels": {"team": "blue"}, "annotations": {"team/note": "keep"}}}
    before = apiserver.ask(path, method="PATCH", body=theirs, content_type=MERGE)

    settle(operator, 3)

    after = apiserver.ask(path)
    assert before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    assert ("blue", "keep") == (after["metadata"]["labels"]["team"], after["metadata"]["annotations"]["team/note"])


def test_a_door_that_somebody_opens_is_closed(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """A subject that is added to the processor's binding is taken off again."""
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{where}/rolebindings/btc-process"
    subjects = apiserver.ask(path)["subjects"]
    more = [*subjects, {"kind": "ServiceAccount", "name": "default", "namespace": where}]
    apiserver.ask(path, method="PATCH", body={"subjects": more}, content_type=MERGE)

    until(lambda: apiserver.ask(path)["subjects"] == subjects, within_s=10, what="one subject", operator=operator)


def test_a_field_of_the_specification_that_goes_goes_from_the_children(
    apiserver: ApiServer, where: str, operator: OperatorProcess
) -> None:
    """A node selector appears in the pods' template, and goes with the field that it came from."""
    path = deployment_path(where, "btc-infer")

    def selector() -> Any:
        return apiserver.ask(path)["spec"]["template"]["spec"].get("nodeSelector")

    selected = {"spec": {"scheduling": {"nodeSelector": {"disk": "fast"}}}}
    apiserver.ask(path_of(where), method="PATCH", body=selected, content_type=MERGE)
    until(lambda: selector() == {"disk": "fast"}, within_s=WITHIN_S, what="a node selector", operator=operator)

    apiserver.ask(path_of(where), method="PATCH", body={"spec": {"scheduling": None}}, content_type=MERGE)

    until(lambda: not selector(), within_s=WITHIN_S, what="no node selector", operator=operator)


def test_the_passwords_are_made_once(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """The Secret of generated passwords is never written again, even after a user has changed it."""
    path = f"/api/v1/namespaces/{where}/secrets/btc-redis"
    before = apiserver.ask(path, method="PATCH", body={"stringData": {"infer": "chosen"}}, content_type=MERGE)

    apply_pipeline(apiserver, where, logLevel="debug")
    settle(operator, 3)
    apply_pipeline(apiserver, where)

    assert before["metadata"]["resourceVersion"] == apiserver.ask(path)["metadata"]["resourceVersion"]


def test_a_deleted_secret_comes_back_as_it_was(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """It has the passwords that running pods know, also those that a user has changed."""
    path = f"/api/v1/namespaces/{where}/secrets/btc-redis"
    before = apiserver.ask(path, method="PATCH", body={"stringData": {"infer": "chosen"}}, content_type=MERGE)
    settle(operator, 3)

    apiserver.ask(path, method="DELETE")

    def now() -> dict[str, Any]:
        try:
            return dict(apiserver.ask(path))
        except urllib.error.HTTPError:
            return {"metadata": {"uid": before["metadata"]["uid"]}}

    was = before["metadata"]["uid"]
    until(lambda: now()["metadata"]["uid"] != was, within_s=WITHIN_S, what="it is back", operator=operator)
    assert before["data"] == now()["data"]
    assert "Y2hvc2Vu" == now()["data"]["infer"]


def test_a_reanchor_of_no_pipeline_says_so(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """A mistyped name is in the object's message, and is not written again and again."""
    path = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/reanchors"
    body = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": "ReAnchor", "metadata": {"name": "lost"}}
    apiserver.ask(path, method="POST", body={**body, "spec": {"pipeline": "btcc", "symbol": "BTCUSDT"}})
    try:
        until(
            lambda: "no PredictionPipeline btcc" in apiserver.ask(f"{path}/lost").get("status", {}).get("message", ""),
            within_s=WITHIN_S,
            what="its message",
            operator=operator,
        )
        before = apiserver.ask(f"{path}/lost")["metadata"]["resourceVersion"]
        settle(operator, 3)
        assert before == apiserver.ask(f"{path}/lost")["metadata"]["resourceVersion"]
    finally:
        apiserver.ask(f"{path}/lost", method="DELETE")


def test_a_paused_pipeline_is_left_alone(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """While the annotation pauses the pipeline nothing is corrected, and the status shows that; then everything is."""
    path = deployment_path(where, "btc-infer")
    pause = {"metadata": {"annotations": {"sheetanchor.dev/paused": "true"}}}
    apiserver.ask(path_of(where), method="PATCH", body=pause, content_type=MERGE)

    def phase() -> str:
        return str(pipeline_of(apiserver, where)["status"]["phase"])

    until(lambda: phase() == "Paused", within_s=WITHIN_S, what="Paused", operator=operator)

    apiserver.ask(path, method="PATCH", body={"spec": {"replicas": 5}}, content_type=MERGE)
    settle(operator, 3)
    assert 5 == apiserver.ask(path)["spec"]["replicas"]

    go_on = {"metadata": {"annotations": {"sheetanchor.dev/paused": None}}}
    apiserver.ask(path_of(where), method="PATCH", body=go_on, content_type=MERGE)

    until(lambda: apiserver.ask(path)["spec"]["replicas"] == 3, within_s=WITHIN_S, what="three", operator=operator)
    # The status is written after the children.
    until(lambda: phase() != "Paused", within_s=WITHIN_S, what="no longer Paused", operator=operator)


def test_maintenance_is_announced_while_paused(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """Alerts are muted by what is announced, though a paused pipeline's workloads are left alone."""
    path = deployment_path(where, "btc-infer")
    pause = {"metadata": {"annotations": {"sheetanchor.dev/paused": "true"}}}
    apiserver.ask(path_of(where), method="PATCH", body=pause, content_type=MERGE)
    announced = f'sheetanchor_pipeline_maintenance{{name="btc",namespace="{where}"}}'

    apply_pipeline(apiserver, where, maintenance={"enabled": True, "reason": "new switches"})

    until(lambda: operator.metrics().get(announced) == 1.0, within_s=WITHIN_S, what="announced", operator=operator)
    assert "Paused" == pipeline_of(apiserver, where)["status"]["phase"]
    assert 3 == apiserver.ask(path)["spec"]["replicas"]

    apply_pipeline(apiserver, where)
    go_on = {"metadata": {"annotations": {"sheetanchor.dev/paused": None}}}
    apiserver.ask(path_of(where), method="PATCH", body=go_on, content_type=MERGE)

    until(lambda: operator.metrics().get(announced) == 0.0, within_s=WITHIN_S, what="over", operator=operator)


def test_suspension_scales_to_zero_and_back(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """A suspended pipeline has no workloads but keeps its Redis."""

    def replicas() -> dict[str, int]:
        found = apiserver.json("deployments,statefulsets", "-n", where)["items"]
        return {one["metadata"]["name"]: one["spec"]["replicas"] for one in found}

    running = replicas()
    apply_pipeline(apiserver, where, suspend=True)
    until(lambda: sum(replicas().values()) == 3, within_s=WITHIN_S, what="only Redis", operator=operator)
    assert 3 == replicas()["btc-redis"]

    apply_pipeline(apiserver, where)

    until(lambda: replicas() == running, within_s=WITHIN_S, what="all workloads again", operator=operator)


def test_an_annotation_is_a_reanchor_once(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """A value of the annotation makes one ReAnchor, however often it is looked at, and is noted as acted on."""
    before = set(reanchors(apiserver, where))
    ask = {"metadata": {"annotations": {"sheetanchor.dev/reanchor": "please-1"}}}
    apiserver.ask(path_of(where), method="PATCH", body=ask, content_type=MERGE)

    def made() -> list[str]:
        return sorted(set(reanchors(apiserver, where)) - before)

    until(lambda: len(made()) > 0, within_s=WITHIN_S, what="a ReAnchor", operator=operator)
    settle(operator, 3)

    assert 1 == len(made()), made()
    assert "please-1" == pipeline_of(apiserver, where)["status"]["lastReanchorRequest"]


def test_no_secret_is_reported(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """No password and no key is in a status, an annotation, an Event, a metric or a log line."""
    secrets = apiserver.ask(f"/api/v1/namespaces/{where}/secrets")["items"]
    values = [value for one in secrets for value in (one.get("data") or {}).values() if len(value) > 8]
    kinds = [kind for kind in CHILDREN if kind != "secrets"]
    reported = dump(apiserver.json(",".join([*kinds, "predictionpipelines", "reanchors", "events"]), "-n", where))
    reported += operator.said() + operator.get("/metrics")[1] + operator.get("/health")[1]

    assert len(values) >= 6
    assert [] == [value for value in values if value in reported]
    assert "sesame-of-a-test" not in reported


def test_events_speak_in_known_words(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """Every Event's reason is of the closed list, by the operator's own name."""
    events = apiserver.ask(f"/apis/events.k8s.io/v1/namespaces/{where}/events")["items"]
    ours = [one for one in events if one["reportingController"] == "sheetanchor.dev/operator"]

    assert ours
    assert {str(reason) for reason in EventReason} >= {one["reason"] for one in ours}
    assert {"PredictionPipeline", "ReAnchor"} >= {one["regarding"]["kind"] for one in ours}
    assert all(one["note"] and one["regarding"]["uid"] for one in ours)


def test_a_pipeline_that_is_gone_is_forgotten(apiserver: ApiServer, where: str, operator: OperatorProcess) -> None:
    """After its deletion a second pipeline's children are not made again, and its metrics are gone."""
    apply_pipeline(apiserver, where, "eth", symbols=["ETHUSDT"])
    until(lambda: settled(apiserver, where, "eth"), within_s=WITHIN_S, what="eth", operator=operator)
    until(lambda: 'name="eth"' in operator.get("/metrics")[1], within_s=WITHIN_S, what="metrics", operator=operator)

    apiserver.kubectl("delete", "predictionpipeline", "eth", "-n", where)
    # This API server has no garbage collector: what the operator would make again is deleted by hand.
    apiserver.kubectl("delete", ",".join(CHILDREN), "-n", where, "-l", "sheetanchor.dev/pipeline=eth")
    time.sleep(2)

    assert {} == children_of(apiserver, where, "eth")
    until(lambda: 'name="eth"' not in operator.get("/metrics")[1], within_s=10, what="no metrics", operator=operator)


def set_ready(server: ApiServer, where: str, plural: str, name: str) -> None:
    """Write the status that controllers and kubelets would write once all pods are ready."""
    path = f"/apis/apps/v1/namespaces/{where}/{plural}/{name}"
    body = server.ask(path)
    count = body["spec"]["replicas"]
    counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), count)
    status = {**counts, "observedGeneration": body["metadata"]["generation"]}
    if plural == "statefulsets":
        status |= {"currentRevision": "one", "updateRevision": "one"}
    server.ask(f"{path}/status", method="PATCH", body={"status": status}, content_type=MERGE)


def test_a_new_image_rolls_one_workload_after_another(
    apiserver: ApiServer, where: str, operator: OperatorProcess
) -> None:
    """Redis is written first, and each next workload only when the one before is all ready."""
    order = ["btc-redis", "btc-ingest-a", "btc-ingest-b", "btc-process", "btc-infer"]
    plurals = {name: "statefulsets" if name == "btc-redis" else "deployments" for name in order}
    for name in order:
        set_ready(apiserver, where, plurals[name], name)
    settle(operator)

    def renewed() -> list[str]:
        found = apiserver.json("deployments,statefulsets", "-n", where)["items"]
        images = {one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["image"] for one in found}
        return [name for name in order if images[name] == "localhost/sheetanchor:next"]

    apply_pipeline(apiserver, where, image="localhost/sheetanchor:next")
    for count, name in enumerate(order, 1):
        expected = set(order[:count])
        until(lambda due=expected: due <= set(renewed()), within_s=WITHIN_S, what=f"{name} written", operator=operator)
        settle(operator, 1)
        assert order[:count] == renewed()
        set_ready(apiserver, where, plurals[name], name)
