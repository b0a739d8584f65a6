"""The causes of refusals, recognised by the messages of a real API server, and the remedy for each."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable
from ssl import create_default_context
from typing import Any
from urllib.request import Request, urlopen

import pytest

from sheetanchor_operator.children.pod_template import WorkloadRole, pod_template
from sheetanchor_operator.names import Component, Reason
from sheetanchor_operator.observation import Observed, Refusal
from sheetanchor_operator.status.problems import problems_of
from sheetanchor_operator.status.refusal_causes import REASONS, REMEDIES, Cause, cause_of
from support.apiserver import ADMIN_TOKEN, ApiServer
from support.operator_parts import token_of
from support.pipeline_parts import DEFAULTS, pipeline, rendered, templates

Manifest = dict[str, Any]
ADMISSION = "admissionregistration.k8s.io/v1"


class Asker:
    """Asks one API server in one namespace, and gives what it says when it refuses."""

    def __init__(self, server: ApiServer, where: str) -> None:
        self.server, self.where = server, where

    def make(self, path: str, body: Manifest, token: str = "", method: str = "POST") -> tuple[int, str, str]:
        """Write something that must be refused."""
        request = Request(self.server.url + path.format(where=self.where), json.dumps(body).encode(), method=method)
        request.add_header("Authorization", f"Bearer {token or ADMIN_TOKEN}")
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request.add_header("Content-Type", kind)
        context = create_default_context(cafile=str(self.server.folder / "certs" / "apiserver.crt"))
        try:
            with urlopen(request, timeout=30, context=context):
                raise AssertionError(f"granted: {method} {path}")
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            status = json.loads(said) if said.startswith("{") else {"message": said}
            return error.code, str(status.get("reason", "")), str(status["message"])


def service(name: str = "one") -> Manifest:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}


def pod(**resources: Any) -> Manifest:
    return {"metadata": {"name": "one"}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}}


def quota(asker: Asker, **hard: str) -> None:
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"}}
    asker.server.apply({**body, "spec": {"hard": hard}}, namespace=asker.where)
    counted = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
    path = f"/api/v1/namespaces/{asker.where}/resourcequotas/tight/status"
    asker.server.ask(path, method="PATCH", body=counted, content_type="application/merge-patch+json")


def limits(asker: Asker, **limit: Any) -> None:
    body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "range"}}
    asker.server.apply({**body, "spec": {"limits": [{"type": "Container", **limit}]}}, namespace=asker.where)


def exceeded(asker: Asker) -> tuple[int, str, str]:
    quota(asker, **{"count/services": "0"})
    return asker.make("/api/v1/namespaces/{where}/services", service())


def quota_field(asker: Asker) -> tuple[int, str, str]:
    quota(asker, **{"limits.cpu": "10"})
    return asker.make("/api/v1/namespaces/{where}/pods", pod(limits={"memory": "1Gi"}))


def too_little(asker: Asker) -> tuple[int, str, str]:
    limits(asker, min={"cpu": "100m"})
    return asker.make("/api/v1/namespaces/{where}/pods", pod(requests={"cpu": "20m"}))


def too_much(asker: Asker) -> tuple[int, str, str]:
    limits(asker, max={"memory": "128Mi"})
    return asker.make("/api/v1/namespaces/{where}/pods", pod(limits={"memory": "1Gi"}))


def ratio(asker: Asker) -> tuple[int, str, str]:
    limits(asker, maxLimitRequestRatio={"memory": "2"})
    given = {"requests": {"memory": "64Mi"}, "limits": {"memory": "192Mi"}}
    return asker.make("/api/v1/namespaces/{where}/pods", pod(**given))


def pod_security(asker: Asker) -> tuple[int, str, str]:
    asker.server.kubectl("label", "namespace", asker.where, "pod-security.kubernetes.io/enforce=restricted")
    return asker.make("/api/v1/namespaces/{where}/pods", pod())


def priority(asker: Asker) -> tuple[int, str, str]:
    body = pod()
    body["spec"]["priorityClassName"] = "none-of-this-name"
    return asker.make("/api/v1/namespaces/{where}/pods", body)


def policy(asker: Asker, reason: str = "") -> tuple[int, str, str]:
    asker.server.kubectl("label", "namespace", asker.where, f"test={asker.where}")
    name = {"name": asker.where}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"], "operations": ["CREATE"]}
    validation = {"expression": "false", "message": "not on a Friday", **({"reason": reason} if reason else {})}
    spec = {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]}
    here = {"namespaceSelector": {"matchLabels": {"test": asker.where}}}
    binding = {"policyName": asker.where, "validationActions": ["Deny"], "matchResources": here}
    kind = "ValidatingAdmissionPolicy"
    asker.server.apply(
        {"apiVersion": ADMISSION, "kind": kind, "metadata": name, "spec": spec},
        {"apiVersion": ADMISSION, "kind": f"{kind}Binding", "metadata": name, "spec": binding},
    )
    path = f"/api/v1/namespaces/{asker.where}/services"

    def in_force() -> bool:
        try:
            asker.server.ask(f"{path}?dryRun=All", method="POST", body=service("probe"))
        except urllib.error.HTTPError:
            return True
        return False

    asker.server.wait(in_force, within_s=20, what="the policy is in force")
    return asker.make("/api/v1/namespaces/{where}/services", service())


def policy_that_forbids(asker: Asker) -> tuple[int, str, str]:
    return policy(asker, "Forbidden")


def account(asker: Asker, *rules: Manifest) -> str:
    group = "rbac.authorization.k8s.io"
    name = {"name": "weak"}
    asker.server.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": name, "rules": list(rules)},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": name,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "weak"},
            "subjects": [{"kind": "ServiceAccount", "name": "weak", "namespace": asker.where}],
        },
        namespace=asker.where,
    )
    return token_of(asker.server, asker.where, "weak")


def rights(asker: Asker) -> tuple[int, str, str]:
    return asker.make("/api/v1/namespaces/{where}/services", service(), account(asker))


def grant(asker: Asker) -> tuple[int, str, str]:
    group = "rbac.authorization.k8s.io"
    token = account(asker, {"apiGroups": [group], "resources": ["roles"], "verbs": ["create"]})
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    path = f"/apis/{group}/v1/namespaces/{{where}}/roles"
    return asker.make(path, {"metadata": {"name": "more"}, "rules": [rule]}, token)


def credentials(asker: Asker) -> tuple[int, str, str]:
    return asker.make("/api/v1/namespaces/{where}/services", service(), "not-a-token")


def terminating(asker: Asker) -> tuple[int, str, str]:
    # No controller finalizes a namespace here: it stays Terminating, like one with many objects.
    asker.server.kubectl("delete", "namespace", asker.where, "--wait=false")
    return asker.make("/api/v1/namespaces/{where}/services", service())


def no_namespace(asker: Asker) -> tuple[int, str, str]:
    return asker.make("/api/v1/namespaces/none-of-this-name/services", service())


def no_kind(asker: Asker) -> tuple[int, str, str]:
    return asker.make("/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/anchors", {"metadata": {"name": "one"}})


def immutable(asker: Asker) -> tuple[int, str, str]:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixed"}, "data": {"a": "1"}}
    asker.server.apply({**body, "immutable": True}, namespace=asker.where)
    return asker.make("/api/v1/namespaces/{where}/configmaps/fixed", {"data": {"a": "2"}}, method="PATCH")


def role_ref(asker: Asker) -> tuple[int, str, str]:
    account(asker)
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/{where}/rolebindings/weak"
    return asker.make(path, {"roleRef": {"name": "other"}}, method="PATCH")


def volumes(asker: Asker) -> tuple[int, str, str]:
    (one,) = [one for one in rendered() if one["kind"] == "StatefulSet"]
    one["metadata"] = {"name": "btc-redis"}
    path = f"/apis/apps/v1/namespaces/{asker.where}/statefulsets"
    asker.server.ask(path, method="POST", body=one)
    return asker.make(f"{path}/btc-redis", {"spec": {"podManagementPolicy": "OrderedReady"}}, method="PATCH")


def invalid(asker: Asker) -> tuple[int, str, str]:
    return asker.make("/api/v1/namespaces/{where}/services", service("1st"))


CASES: tuple[tuple[Callable[[Asker], tuple[int, str, str]], Cause, Reason], ...] = (
    (exceeded, Cause.QUOTA, Reason.QUOTA_EXCEEDED),
    (quota_field, Cause.QUOTA_FIELD, Reason.LIMITS_REFUSED),
    (too_little, Cause.LIMIT_RANGE, Reason.LIMITS_REFUSED),
    (too_much, Cause.LIMIT_RANGE, Reason.LIMITS_REFUSED),
    (ratio, Cause.LIMIT_RANGE, Reason.LIMITS_REFUSED),
    (pod_security, Cause.POD_SECURITY, Reason.POLICY_REFUSED),
    (priority, Cause.NO_PRIORITY_CLASS, Reason.APPLY_REFUSED),
    (policy, Cause.POLICY, Reason.POLICY_REFUSED),
    (policy_that_forbids, Cause.POLICY, Reason.POLICY_REFUSED),
    (rights, Cause.RIGHTS, Reason.APPLY_FORBIDDEN),
    (grant, Cause.GRANT, Reason.APPLY_FORBIDDEN),
    (credentials, Cause.CREDENTIALS, Reason.APPLY_FORBIDDEN),
    (terminating, Cause.TERMINATING, Reason.NAMESPACE_TERMINATING),
    (no_namespace, Cause.NO_NAMESPACE, Reason.NAMESPACE_TERMINATING),
    (no_kind, Cause.NO_KIND, Reason.APPLY_REFUSED),
    (immutable, Cause.FIXED, Reason.APPLY_REFUSED),
    (role_ref, Cause.FIXED, Reason.APPLY_REFUSED),
    (volumes, Cause.FIXED, Reason.APPLY_REFUSED),
    (invalid, Cause.OTHER, Reason.APPLY_REFUSED),
)


@pytest.mark.parametrize(("refuse", "cause", "reason"), CASES, ids=[one[0].__name__ for one in CASES])
def test_a_refusal_is_reported_with_its_remedy(
    apiserver: ApiServer,
    where: str,
    refuse: Callable[[Asker], tuple[int, str, str]],
    cause: Cause,
    reason: Reason,
) -> None:
    """The same status code has many causes: the message distinguishes them, and the condition has the remedy."""
    code, word, message = refuse(Asker(apiserver, where))

    assert (cause, reason) == (cause_of(code, word, message), REASONS.get(cause, Reason.APPLY_REFUSED)), message
    refusal = Refusal("Service", "one", code, message, word)
    (reported,) = [one for one in problems_of(pipeline(), Observed(0, refusals=(refusal,))) if "one" in one.message]
    assert reason is reported.reason
    assert reported.message.endswith(REMEDIES[cause])


SIZED = {"requests": {"cpu": "100m", "memory": "768Mi"}, "limits": {"cpu": "200m", "memory": "1536Mi"}}
EVERY_SIZE = {
    "ingestion": {"resources": SIZED},
    "processor": {"resources": SIZED},
    "inference": {"resources": SIZED},
    "reanchor": {"resources": SIZED},
    "redis": {"managed": {"resources": SIZED, "sentinelResources": SIZED}},
}


def admitted(server: ApiServer, where: str, spec: dict[str, Any]) -> dict[str, str]:
    """Try a pod of each component, as its controller would; give what was refused."""
    one = pipeline(spec, namespace=where)
    role = WorkloadRole(Component.REANCHOR, one.spec.reanchor.resources, served=False)
    found = templates(rendered(spec))
    found["btc-reanchor"] = pod_template(one, Observed(0), DEFAULTS, role)
    refused = {}
    for name, template in found.items():
        body = {"metadata": {"name": name, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
        try:
            server.ask(f"/api/v1/namespaces/{where}/pods?dryRun=All", method="POST", body=body)
        except urllib.error.HTTPError as error:
            refused[name] = json.loads(error.read())["message"]
    return refused


def test_every_container_can_be_sized(apiserver: ApiServer, where: str) -> None:
    """With a quota on CPU limits, a least CPU and a highest ratio, all pods get in once every field is set."""
    asker = Asker(apiserver, where)
    quota(asker, **{"limits.cpu": "100"})
    limits(asker, min={"cpu": "100m"}, maxLimitRequestRatio={"cpu": "2", "memory": "2"})

    refused = admitted(apiserver, where, {})
    assert {"btc-redis", "btc-ingest-zone-a", "btc-process", "btc-infer", "btc-reanchor"} <= set(refused)
    assert {} == admitted(apiserver, where, EVERY_SIZE)
