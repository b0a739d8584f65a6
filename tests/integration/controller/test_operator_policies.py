"""Policies of the cluster that refuse or change what the operator writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sheetanchor_operator.kube.api_client import Cluster
from support.apiserver import ApiServer
from support.operator_looks import Looker, connected, pipeline_in, there
from support.operator_parts import define, namespace
from support.operator_process import apply_pipeline, children_of, condition_of

ADMISSION = "admissionregistration.k8s.io"
MERGE = "application/merge-patch+json"
WORKLOADS = ("btc-ingest-a", "btc-ingest-b", "btc-process", "btc-infer")


@pytest.fixture(scope="module")
def policed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server on which policies may change what is written."""
    server = ApiServer(
        tmp_path_factory.mktemp("policed"),
        "--feature-gates=MutatingAdmissionPolicy=true",
        f"--runtime-config={ADMISSION}/v1beta1=true",
    )
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def where(policed: ApiServer) -> Iterator[str]:
    define(policed)
    with namespace(policed) as name:
        policed.kubectl("label", "namespace", name, f"test={name}")
        # Without it ingestors keep the settings that they have.
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "binance-api-key"}}
        policed.apply({**secret, "stringData": {"api-key": "k"}}, namespace=name)
        yield name


@pytest.fixture
async def looker(policed: ApiServer, where: str) -> AsyncIterator[Looker]:
    async with connected(policed.kubeconfig, Cluster) as cluster:
        yield Looker(policed, cluster, where)


def in_force(server: ApiServer, where: str, kind: str, spec: dict[str, Any], version: str = "v1") -> None:
    """Put a policy in force for one namespace, and wait until it is."""
    metadata = {"name": f"{where}-{kind.lower()}"}
    here = {"namespaceSelector": {"matchLabels": {"test": where}}}
    binding: dict[str, Any] = {"policyName": metadata["name"], "matchResources": here}
    if kind == "ValidatingAdmissionPolicy":
        binding["validationActions"] = ["Deny"]
    server.apply(
        {"apiVersion": f"{ADMISSION}/{version}", "kind": kind, "metadata": metadata, "spec": spec},
        {"apiVersion": f"{ADMISSION}/{version}", "kind": f"{kind}Binding", "metadata": metadata, "spec": binding},
    )


def no_more(server: ApiServer, where: str, kind: str) -> None:
    server.kubectl("delete", f"{kind}Binding", f"{where}-{kind.lower()}")
    server.kubectl("delete", kind, f"{where}-{kind.lower()}")


def change_workloads(
    server: ApiServer, where: str, expression: str, is_changed: Callable[[dict[str, Any]], bool]
) -> None:
    """Have a policy change each workload that is written, and wait until it does."""
    strategy = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}
    spec = {
        "matchConstraints": rules_for("apps", "deployments", "statefulsets"),
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [strategy],
    }
    in_force(server, where, "MutatingAdmissionPolicy", spec, "v1beta1")
    path = f"/apis/apps/v1/namespaces/{where}/deployments?dryRun=All"
    server.wait(
        lambda: is_changed(server.ask(path, method="POST", body=ANY_DEPLOYMENT)),
        within_s=20,
        what="the policy is in force",
    )


def make_immutable(server: ApiServer, where: str) -> None:
    path = f"/api/v1/namespaces/{where}/configmaps/btc-settings"
    server.ask(path, method="PATCH", body={"immutable": True}, content_type=MERGE)


def rules_for(group: str, *resources: str, operations: tuple[str, ...] = ("CREATE", "UPDATE")) -> dict[str, Any]:
    rule = {"apiGroups": [group], "apiVersions": ["v1"], "resources": list(resources), "operations": list(operations)}
    return {"resourceRules": [rule]}


def is_denied(server: ApiServer, where: str) -> bool:
    change = '{"metadata":{"labels":{"probe":"x"}}}'
    done = server.try_kubectl("patch", "configmap", "btc-settings", "-n", where, "--dry-run=server", "-p", change)
    return "frozen" in done.stderr


def hashes(server: ApiServer, where: str) -> dict[str, str]:
    """Give the hash of settings that each workload's pods were started with."""
    found = children_of(server, where)
    return {
        name: found[f"Deployment/{name}"]["spec"]["template"]["metadata"]["annotations"][
            "sheetanchor.dev/settings-hash"
        ]
        for name in WORKLOADS
    }


def log_level(server: ApiServer, where: str) -> str:
    text = there(server, where, "ConfigMap", "btc-settings")["data"]["infer.yaml"]
    (line,) = [one for one in text.splitlines() if one.startswith("log_level")]
    return str(line.partition(": ")[2].strip('"'))


@pytest.mark.parametrize("how", ["policy", "immutable"])
async def test_pods_wait_for_the_map_that_they_read(policed: ApiServer, where: str, looker: Looker, how: str) -> None:
    """While the ConfigMap may not be changed no pod is rolled; once it may be, it is changed and all are."""
    pipeline_in(policed, where)
    await looker.look(2)
    before = hashes(policed, where)
    if how == "policy":
        frozen = {"expression": "false", "message": "frozen until Monday"}
        spec = {"matchConstraints": rules_for("", "configmaps"), "validations": [frozen]}
        in_force(policed, where, "ValidatingAdmissionPolicy", spec)
        policed.wait(lambda: is_denied(policed, where), within_s=20, what="the policy is in force")
    else:
        make_immutable(policed, where)

    apply_pipeline(policed, where, logLevel="debug")
    await looker.look(3)

    assert "info" == log_level(policed, where)
    assert before == hashes(policed, where)
    reason, remedy = {
        "policy": ("PolicyRefused", "an admission policy of the cluster refuses it"),
        "immutable": ("ApplyRefused", "delete that object if it is to change"),
    }[how]
    condition = condition_of(policed, where, "Ready")
    assert reason == condition["reason"]
    assert "ConfigMap btc-settings" in condition["message"]
    assert remedy in condition["message"]

    if how == "policy":
        no_more(policed, where, "ValidatingAdmissionPolicy")
        policed.wait(lambda: not is_denied(policed, where), within_s=20, what="it is no more")
    else:
        policed.kubectl("delete", "configmap", "btc-settings", "-n", where)
    looker.try_again()
    await looker.look(2)

    assert "debug" == log_level(policed, where)
    after = hashes(policed, where)
    assert not {name for name in WORKLOADS if after[name] == before[name]}


async def test_what_waits_may_still_come_to_rest(policed: ApiServer, where: str, looker: Looker) -> None:
    """A pipeline whose map may not be changed can be suspended all the same."""
    pipeline_in(policed, where)
    await looker.look(2)
    make_immutable(policed, where)

    apply_pipeline(policed, where, logLevel="debug", suspend=True)
    await looker.look()

    assert [0] * 4 == [there(policed, where, "Deployment", name)["spec"]["replicas"] for name in WORKLOADS]


CHANGES = """
Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{
  terminationGracePeriodSeconds: 77,
  securityContext: Object.spec.template.spec.securityContext{runAsUser: 1234},
  containers: object.spec.template.spec.containers.map(one, Object.spec.template.spec.containers{
    name: one.name,
    image: "mirror.example/" + one.image,
    imagePullPolicy: "Always",
    resources: Object.spec.template.spec.containers.resources{limits: {"memory": "3Gi"}}
  })
}}}}
"""


ANY_DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "probe", "labels": {"a": "b"}},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    },
}


def serve(server: ApiServer, where: str) -> None:
    """Say what controllers would, once all pods are as they should be."""
    for name in WORKLOADS:
        body = there(server, where, "Deployment", name)
        count = body["spec"]["replicas"]
        counts = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), count)
        status = {"status": {**counts, "observedGeneration": body["metadata"]["generation"]}}
        path = f"/apis/apps/v1/namespaces/{where}/deployments/{name}/status"
        server.ask(path, method="PATCH", body=status, content_type=MERGE)
    body = there(server, where, "StatefulSet", "btc-redis")
    counts = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), 3)
    revision = {"currentRevision": "x", "updateRevision": "x", "observedGeneration": body["metadata"]["generation"]}
    path = f"/apis/apps/v1/namespaces/{where}/statefulsets/btc-redis/status"
    server.ask(path, method="PATCH", body={"status": {**counts, **revision}}, content_type=MERGE)


def generations(server: ApiServer, where: str) -> dict[str, int]:
    found = children_of(server, where)
    return {
        name: one["metadata"]["generation"]
        for name, one in found.items()
        if name.startswith(("Deployment", "StatefulSet"))
    }


async def test_what_a_policy_makes_of_a_workload_is_no_change(policed: ApiServer, where: str, looker: Looker) -> None:
    """Workloads that a policy changes at each write are written once, and rolled one after another."""
    change_workloads(
        policed, where, CHANGES, lambda made: made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 77
    )
    pipeline_in(policed, where)
    await looker.look(2)
    serve(policed, where)
    await looker.look(2)
    assert (
        "mirror.example/"
        in there(policed, where, "Deployment", "btc-infer")["spec"]["template"]["spec"]["containers"][0]["image"]
    )

    settled = generations(policed, where)
    await looker.look(5)
    assert settled == generations(policed, where)
    assert not looker.reconciler._applier.is_holding((where, "btc"))

    apply_pipeline(policed, where, image="registry.example/x:2")
    order = []
    for _ in range(5):
        before = generations(policed, where)
        await looker.look(3)
        after = generations(policed, where)
        order.append([name for name in after if after[name] != before[name]])
        serve(policed, where)
    assert [
        ["StatefulSet/btc-redis"],
        ["Deployment/btc-ingest-a"],
        ["Deployment/btc-ingest-b"],
        ["Deployment/btc-process"],
        ["Deployment/btc-infer"],
    ] == order


async def test_an_operator_that_begins_anew_learns_what_a_policy_does(
    policed: ApiServer, where: str, looker: Looker
) -> None:
    """After a new start what a policy keeps otherwise is written once more at the most, and nothing is held up."""
    change = 'Object{metadata: Object.metadata{labels: {"app.kubernetes.io/part-of": "platform"}}}'
    change_workloads(
        policed, where, change, lambda made: made["metadata"]["labels"].get("app.kubernetes.io/part-of") == "platform"
    )
    pipeline_in(policed, where)
    await looker.look(2)
    apply_pipeline(policed, where, image="registry.example/x:2")
    await looker.look(2)
    before = generations(policed, where)

    fresh = Looker(policed, looker.cluster, where)
    await fresh.look(3)

    assert before == generations(policed, where)
    assert not fresh.reconciler._applier.is_holding((where, "btc"))
