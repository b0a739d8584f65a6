"""What the operator plans for re-anchors, as a real API server takes it: objects, Jobs, pods and statuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from sheetanchor.contract import Receipt
from sheetanchor.reanchor.receipts import short_json
from sheetanchor_operator.api.pipeline import parse
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.names import REANCHOR_KIND
from sheetanchor_operator.observation import Observed, PodResponse
from sheetanchor_operator.reanchors.decide import plan
from sheetanchor_operator.reanchors.plan import ReanchorPlan
from support.apiserver import ApiServer
from support.operator_parts import create, make_pipeline, namespace, reanchors, set_status

pytestmark = pytest.mark.slow

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
SUSPECT = {"active": True, "state": "suspect", "epoch": 0, "term": 1, "suspect_since_us": 0, "connected": True}


@pytest.fixture
def place(server: ApiServer) -> Iterator[str]:
    """A namespace with a pipeline `btc`, where pods have to be restricted."""
    with namespace(server) as name:
        server.kubectl("label", "namespace", name, RESTRICTED)
        make_pipeline(server, name)
        yield name


def look(server: ApiServer, place: str, state: dict[str, Any] | None = None) -> ReanchorPlan:
    """Plan from what the server holds."""
    found = {kind: tuple(server.json(kind, "-n", place)["items"]) for kind in ("reanchors", "jobs", "pods")}
    reported = {"symbols": {"BTCUSDT": {**(state or SUSPECT), "now_us": time.time_ns() // 1_000}}}
    observed = Observed(now_us=time.time_ns() // 1_000, states={"btc-process-0": PodResponse(reported)}, **found)
    return plan(parse(server.json("pp/btc", "-n", place)), observed, Defaults(image="example/sheetanchor:1"))


def carry_out(server: ApiServer, place: str, made: ReanchorPlan) -> None:
    """Do what a plan says, strictly."""
    for manifest in (*made.create, *(start.manifest for start in made.start)):
        create(server, place, manifest)
    for patch in made.patch:
        set_status(server, place, REANCHOR_KIND, patch.name, dict(patch.status))
    for name in made.delete:
        server.kubectl("delete", "reanchor", name, "-n", place)


def pod_of(job: dict[str, Any], uid: str) -> dict[str, Any]:
    """The pod that the Job controller would make."""
    template, name = job["spec"]["template"], job["metadata"]["name"]
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
    metadata = {**template["metadata"], "name": f"{name}-x", "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def end(server: ApiServer, place: str, pod: str, receipt: Receipt) -> None:
    """Have a pod end with a receipt, as the kubelet would write it."""
    at = "2026-11-21T08:00:02Z"
    terminated = {"exitCode": receipt.exit_code, "message": short_json(receipt), "startedAt": at, "finishedAt": at}
    state = {"name": "reanchor", "image": "x", "imageID": "x", "ready": False, "restartCount": 0}
    status = {"phase": "Failed" if receipt.exit_code else "Succeeded"}
    status["containerStatuses"] = [{**state, "state": {"terminated": terminated}}]  # type: ignore[assignment]  # JSON
    path = f"/api/v1/namespaces/{place}/pods/{pod}/status"
    server.ask(path, method="PATCH", body={"status": status}, content_type="application/merge-patch+json")


def receipt(result: str, exit_code: int) -> Receipt:
    now_us = time.time_ns() // 1_000
    return Receipt(
        id="reanchor_BTCUSDT_1_ab",
        symbol="BTCUSDT",
        reason="there is no state yet",
        trigger="start",
        result=result,
        started_at_us=now_us - 2_500_000,
        finished_at_us=now_us,
        epoch_before=0,
        epoch_after=int(result == "swapped"),
        snapshot_id=7,
        update_id=9,
        exit_code=exit_code,
        message=f"it is {result}",
        phases={"lock": 0.01, "fetch": 1.25},
        checks=("book", "windows"),
    )


def run_of(server: ApiServer, place: str, attempt: int) -> str:
    """Carry out plans until a Job has been created, and make its pod; gives the pod's name."""
    for _ in range(40):
        made = look(server, place)
        carry_out(server, place, made)
        if made.start:
            break
        time.sleep(0.1)
    job = server.json("jobs", "-n", place)["items"][-1]
    assert job["metadata"]["name"].endswith(f"-{attempt}")
    pod = pod_of(made.start[0].manifest, job["metadata"]["uid"])
    create(server, place, pod)
    return str(pod["metadata"]["name"])


def test_the_first_anchor_from_wish_to_receipt(server: ApiServer, place: str) -> None:
    """Everything that is planned is accepted, strictly: request, Job, restricted pod, and each status."""
    pod = run_of(server, place, 1)
    (name,) = reanchors(server, place)
    running = reanchors(server, place)[name]

    end(server, place, pod, receipt("swapped", 0))
    made = look(server, place, {**SUSPECT, "state": "anchored", "epoch": 1})
    carry_out(server, place, made)
    after = look(server, place, {**SUSPECT, "state": "anchored", "epoch": 1})

    status = reanchors(server, place)[name]["status"]
    assert "Running" == running["status"]["phase"]
    assert ("Succeeded", "swapped", 0, 1, 2.5) == tuple(
        status[field] for field in ("phase", "result", "epochBefore", "epochAfter", "durationSeconds")
    )
    assert [{"name": "lock", "seconds": 0.01}, {"name": "fetch", "seconds": 1.25}] == status["phases"]
    assert ((), (), (), ()) == (after.create, after.start, after.patch, after.delete)
    server.kubectl("wait", "--for=condition=Complete", "--timeout=5s", f"ra/{name}", "-n", place)
    assert name in server.kubectl("get", "ra", "-n", place)


def test_a_failed_run_is_followed_by_another(server: ApiServer, place: str) -> None:
    """A failure is written down with its time of retry, and the second run's begin clears it."""
    pod = run_of(server, place, 1)
    end(server, place, pod, receipt("failed", 3))
    carry_out(server, place, look(server, place))
    (name,) = reanchors(server, place)
    failed = reanchors(server, place)[name]["status"]

    second = run_of(server, place, 2)
    running = reanchors(server, place)[name]["status"]
    end(server, place, second, receipt("swapped", 0))
    carry_out(server, place, look(server, place, {**SUSPECT, "state": "anchored", "epoch": 1}))

    done = reanchors(server, place)[name]["status"]
    assert ("Pending", "failed", 3, 1) == tuple(failed[field] for field in ("phase", "result", "exitCode", "attempts"))
    assert "it is failed" in failed["message"]
    assert "nextAttemptAt" in failed
    assert ("Running", 2) == (running["phase"], running["attempts"])
    assert not {"result", "exitCode", "nextAttemptAt", "message", "finishedAt"} & set(running)
    assert ("Succeeded", "swapped", 2) == (done["phase"], done["result"], done["attempts"])


def test_an_object_by_hand_is_taken_up(server: ApiServer, place: str) -> None:
    """A ReAnchor without labels or owner, with nothing but pipeline and symbol, is run and adopted."""
    body = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": REANCHOR_KIND, "metadata": {"name": "by-hand"}}
    create(server, place, {**body, "spec": {"pipeline": "btc", "symbol": "BTCUSDT"}})

    made = look(server, place, {**SUSPECT, "state": "anchored", "epoch": 1})

    assert (["by-hand"], ("by-hand",)) == ([start.reanchor for start in made.start], made.adopt)
