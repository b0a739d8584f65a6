"""The children of pipelines, as a real API server admits them."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from sheetanchor_operator.children.accounts import accounts
from sheetanchor_operator.children.pod_template import WorkloadRole, pod_template
from sheetanchor_operator.names import Component
from sheetanchor_operator.observation import Observed
from support.apiserver import ApiServer
from support.pipeline_parts import DEFAULTS, OWN_EXCHANGE, pipeline, rendered, templates
from support.pod_security import violations

NAMESPACE = "market"
EXTERNAL = {"external": {"url": "rediss://cache:6380", "passwordSecret": {"name": "c"}, "caSecret": {"name": "c"}}}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"redis": EXTERNAL, "exchange": OWN_EXCHANGE},
    {"inference": {"model": {"configMap": {"name": "m"}}}, "suspend": True},
    {
        "inference": {"model": {"persistentVolumeClaim": {"claimName": "m", "path": "x"}}},
        "redis": {"managed": {"storage": {"size": "2Gi"}}},
        "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "value": "b", "effect": "NoSchedule"}]},
        "podMetadata": {"labels": {"example.com/team": "markets"}, "annotations": {"example.com/logs": "{}"}},
    },
]
variants = pytest.mark.parametrize("spec", VARIANTS, ids=lambda spec: "+".join(spec) or "defaults")


@pytest.fixture(scope="module")
def restricted(apiserver: ApiServer) -> Iterator[ApiServer]:
    """The server with a namespace that enforces Pod Security "restricted"."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    apiserver.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    yield apiserver
    apiserver.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@variants
def test_every_child_is_admitted_without_a_warning(spec: dict[str, Any], restricted: ApiServer) -> None:
    """Strict validation finds no unknown field, and nothing is deprecated or outside the profile."""
    text = yaml.safe_dump_all(rendered(spec))

    done = restricted.try_kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", text_in=text
    )

    assert ("", 0) == (done.stderr, done.returncode)
    assert len(rendered(spec)) == len(done.stdout.splitlines())


def may(server: ApiServer, account: str, verb: str, resource: str, namespace: str = NAMESPACE) -> bool:
    plural, _, below = resource.partition("/")
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{NAMESPACE}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}"],
            "resourceAttributes": {
                "namespace": namespace,
                "verb": verb,
                "group": "sheetanchor.dev" if plural in ("reanchors", "predictionpipelines") else "",
                "resource": plural,
                "subresource": below,
            },
        },
    }
    answer = server.ask("/apis/authorization.k8s.io/v1/subjectaccessreviews", method="POST", body=review)
    return bool(answer["status"]["allowed"])


def test_the_processor_may_create_reanchors_and_nothing_else(restricted: ApiServer) -> None:
    """Nor may any other account of a pipeline do anything; asked of the API server's own authorisation."""
    restricted.apply(*accounts(pipeline()))
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
    resources = ("reanchors", "reanchors/status", "predictionpipelines", "secrets", "pods", "configmaps", "events")

    allowed = {
        (component, verb, resource)
        for component in ("ingest", "process", "infer", "redis", "reanchor")
        for verb in verbs
        for resource in resources
        if may(restricted, f"btc-{component}", verb, resource)
    }

    assert {("process", "create", "reanchors")} == allowed
    assert not may(restricted, "btc-process", "create", "reanchors", "default")


def create_pod(server: ApiServer, spec: dict[str, Any]) -> None:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "try", "namespace": NAMESPACE}, "spec": spec}
    server.ask(f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All", method="POST", body=body)


@variants
def test_every_pod_may_run_where_the_profile_is_enforced(spec: dict[str, Any], restricted: ApiServer) -> None:
    """Kubernetes' own admission takes a pod of each template, and of a re-anchor's Job."""
    role = WorkloadRole(Component.REANCHOR, pipeline(spec).spec.reanchor.resources, served=False)
    job = pod_template(pipeline(spec), Observed(1), DEFAULTS, role)

    for template in (job, *templates(rendered(spec)).values()):
        spec_of_pod = template["spec"]
        mounted = {mount["name"] for one in spec_of_pod["containers"] for mount in one["volumeMounts"]}
        claimed = mounted - {
            volume["name"] for volume in spec_of_pod["volumes"]
        }  # a StatefulSet's controller adds them
        claims = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claimed]
        create_pod(restricted, {**spec_of_pod, "volumes": [*spec_of_pod["volumes"], *claims]})


@pytest.mark.parametrize(
    "broken",
    [
        {"hostNetwork": True},
        {"securityContext": {"runAsUser": 0}},
        {"securityContext": {}},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        {"container": {"allowPrivilegeEscalation": True}},
        {"container": {"capabilities": {"drop": []}}},
        {"container": {"capabilities": {"drop": ["ALL"], "add": ["SYS_TIME"]}}},
    ],
    ids=json.dumps,
)
def test_the_evaluation_agrees_with_kubernetes(broken: dict[str, Any], restricted: ApiServer) -> None:
    """What our own evaluation of the profile refuses, admission refuses too."""
    spec = dict(templates(rendered({"redis": EXTERNAL}))["btc-process"]["spec"])
    security = {**spec["containers"][0]["securityContext"], **broken.get("container", {})}
    container = {**spec["containers"][0], "volumeMounts": [], "securityContext": security}
    of_pod = {name: value for name, value in broken.items() if name != "container"}
    spec = {**spec, "volumes": [], **of_pod, "containers": [container]}

    with pytest.raises(urllib.error.HTTPError) as refused:
        create_pod(restricted, spec)

    assert refused.value.code == 403
    assert "violates PodSecurity" in refused.value.read().decode()
    assert violations(spec)
