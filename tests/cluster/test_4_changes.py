"""Changes of a running pipeline's spec roll out without a missed slot."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

import sheetanchor
from support.cluster_parts import Running, reading, ready

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]


def images(btc: Running, component: str) -> set[str]:
    return {
        pod["spec"]["containers"][0]["image"]
        for pod in btc.pods(component)
        if "deletionTimestamp" not in pod["metadata"]
    }


def memory(btc: Running) -> set[str]:
    return {
        pod["spec"]["containers"][0]["resources"]["requests"]["memory"]
        for pod in btc.pods("infer")
        if "deletionTimestamp" not in pod["metadata"]
    }


def components(btc: Running) -> set[str]:
    """The components that pods run for; those of re-anchors come and go."""
    found = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in btc.pods()}
    return found - {"reanchor"}


def model_of(btc: Running) -> str:
    """The model that the newest prediction was made with."""
    name = next(pod["metadata"]["name"] for pod in btc.pods("infer") if ready(pod))
    return str(btc.api.pod(btc.namespace, name, "/predictions/BTCUSDT")["model"])


def test_replicas_follow_the_scale_subresource(btc: Running) -> None:
    """`kubectl scale` works on the resource, up and down, and no slot is missed."""
    btc.until_sound()
    with reading(btc.api, btc.namespace, btc.name):
        btc.kubectl("scale", "pp", btc.name, "--replicas=4")
        btc.wait(lambda: 4 == sum(map(ready, btc.pods("infer"))), 60, "four replicas are ready")
        btc.wait(lambda: 4 == btc.status["inference"]["replicas"], 15, "the status says four")
        btc.kubectl("scale", "pp", btc.name, "--replicas=3")
        btc.wait(lambda: 3 == len(btc.pods("infer")), 60, "three replicas are left")
    btc.until_sound()


def test_resources_roll(btc: Running) -> None:
    """New resource requests reach the pods one after the other."""
    before = memory(btc)
    with reading(btc.api, btc.namespace, btc.name):
        btc.patch({"inference": {"resources": {"requests": {"memory": "130Mi"}}}})
        btc.wait(lambda: {"130Mi"} == memory(btc) != before, 90, "the replicas have the new requests")
        btc.until_sound(120)


def test_another_model_is_rolled_out(btc: Running) -> None:
    """A model out of a ConfigMap replaces the one in the image; new content of the ConfigMap is rolled out too."""
    shipped = Path(sheetanchor.__file__).parent / "models"
    current = json.loads((shipped / "current.json").read_text())
    folder = next(path.parent for path in shipped.rglob("model.onnx"))
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    assert current
    manifest["name"] = "quant"
    core = client.CoreV1Api(btc.api._client)
    body = client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name="my-model"),
        data={"manifest.json": json.dumps(manifest)},
        binary_data={"model.onnx": base64.b64encode((folder / "model.onnx").read_bytes()).decode()},
    )
    core.create_namespaced_config_map(btc.namespace, body)
    with reading(btc.api, btc.namespace, btc.name):
        btc.patch({"inference": {"model": {"configMap": {"name": "my-model"}}}})
        btc.wait(lambda: model_of(btc).startswith("quant@"), 90, "predictions come from the new model")
        btc.until_sound(120)
        btc.wait(lambda: btc.status["model"].startswith("quant@"), 30, "the status names the new model")

        manifest["name"] = "quant2"
        patch = {"data": {"manifest.json": json.dumps(manifest)}}
        core.patch_namespaced_config_map("my-model", btc.namespace, patch)
        btc.wait(lambda: model_of(btc).startswith("quant2@"), 90, "predictions come from the changed ConfigMap")
        btc.until_sound(120)

    btc.patch({"inference": {"model": None}})
    btc.wait(lambda: not model_of(btc).startswith("quant"), 90, "the model of the image is back")
    btc.until_sound(120)


def test_another_image_is_rolled_out(btc: Running, second_image: str) -> None:
    """Every workload moves to another image, one step at a time, without a missed slot."""
    with reading(btc.api, btc.namespace, btc.name) as reader:
        started_s = time.monotonic()
        btc.patch({"image": second_image})
        btc.wait(
            lambda: all({second_image} == images(btc, c) for c in ("ingest", "process", "infer", "redis")),
            240,
            "every pod has the new image",
        )
        btc.until_sound(120)
        print(f"new image everywhere after {time.monotonic() - started_s:.0f} s")
    degraded = [slot for slot, record in reader.seen.items() if record["degraded"] and slot >= reader.first]
    print(f"{len(degraded)} degraded slots while rolling")


def test_a_suspended_pipeline_rests(btc: Running) -> None:
    """`suspend: true` takes the workloads away and keeps Redis; the conditions say so; false brings all back."""
    btc.patch({"suspend": True})
    try:
        btc.wait(lambda: {"redis"} == components(btc), 90, "only Redis runs")
        btc.wait(lambda: "Suspended" == btc.status["phase"], 15, "the phase says so")
        assert "False" == btc.condition("Ready")["status"]
    finally:
        btc.patch({"suspend": False})

    btc.until_sound(120)
    assert {"ingest", "process", "infer", "redis"} == components(btc)


def test_a_paused_pipeline_is_left_alone(btc: Running) -> None:
    """With the annotation nothing is put right, and the condition says why; without it everything is."""
    service = ("get", "service", f"{btc.name}-infer", "--ignore-not-found")
    btc.kubectl("annotate", "pp", btc.name, "sheetanchor.dev/paused=true")
    try:
        btc.wait(lambda: "True" == btc.condition("Paused").get("status"), 15, "it says that it is paused")
        btc.kubectl("delete", "service", f"{btc.name}-infer")
        time.sleep(8)
        assert "" == btc.kubectl(*service).strip()
    finally:
        btc.kubectl("annotate", "pp", btc.name, "sheetanchor.dev/paused-")

    btc.wait(lambda: bool(btc.kubectl(*service).strip()), 15, "it is back")
    btc.until_sound()


def test_a_second_reconcile_writes_nothing(btc: Running) -> None:
    """While nothing changes no child is written: all resource versions but those of running things stay."""
    kinds = "service,poddisruptionbudget,networkpolicy,serviceaccount,role,rolebinding,configmap,secret"
    selector = f"sheetanchor.dev/pipeline={btc.name}"

    def versions() -> dict[str, str]:
        items = json.loads(btc.kubectl("get", kinds, "-l", selector, "-o", "json"))["items"]
        items += json.loads(btc.kubectl("get", "deployment,statefulset", "-l", selector, "-o", "json"))["items"]
        return {
            f"{item['kind']}/{item['metadata']['name']}": str(
                item["metadata"]["generation"]
                if item["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget")
                else item["metadata"]["resourceVersion"]
            )
            for item in items
        }

    before = versions()
    time.sleep(35)

    assert before == versions()
