"""Whether a child is as it should be: only what the operator wants counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.apply.drift import digest, needs_apply, stamped

Object = dict[str, Any]

DEPLOYMENT: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "btc-infer", "namespace": "shop", "labels": {"app.kubernetes.io/name": "sheetanchor"}},
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "automountServiceAccountToken": False,
                "nodeSelector": {"disk": "fast"},
                "tolerations": [{"key": "a", "operator": "Exists"}],
                "containers": [
                    {
                        "name": "infer",
                        "image": "sheetanchor:1",
                        "args": ["infer", "--config", "x"],
                        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
                        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                        "env": [{"name": "HOME", "value": "/tmp"}],
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    },
}
NETWORK_POLICY: Object = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "btc-infer", "namespace": "shop"},
    "spec": {
        "podSelector": {"matchLabels": {"a": "b"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"podSelector": {"matchLabels": {"c": "d"}}}],
                "ports": [{"port": 8080, "protocol": "TCP"}],
            }
        ],
    },
}
BINDING: Object = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "btc-process", "namespace": "shop"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "btc-process"},
    "subjects": [{"kind": "ServiceAccount", "name": "btc-process", "namespace": "shop"}],
}


def at(body: Any, path: str) -> Any:
    for part in path.split("."):
        body = body[int(part) if part.isdigit() else part]
    return body


def changed(body: Object, path: str, value: Any) -> Object:
    other = copy.deepcopy(body)
    where, _, last = path.rpartition(".")
    place = at(other, where) if where else other
    place[int(last) if last.isdigit() else last] = value
    return other


def without(body: Object, path: str) -> Object:
    other = copy.deepcopy(body)
    where, _, last = path.rpartition(".")
    del at(other, where)[last]
    return other


CONTAINER = "spec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.replicas", 3),
        (f"{CONTAINER}.image", "sheetanchor:2"),
        (f"{CONTAINER}.args", ["infer"]),
        (f"{CONTAINER}.args.2", "y"),
        (f"{CONTAINER}.resources.requests.cpu", "501m"),
        (f"{CONTAINER}.env.0.value", "/root"),
        (f"{CONTAINER}.ports.0.containerPort", 8081),
        ("spec.template.spec.automountServiceAccountToken", True),
        ("metadata.labels", {}),
        ("spec.template.spec.containers", []),
        ("spec.template.spec.tolerations", []),
        ("spec.template.spec.tolerations.0.key", "b"),
    ],
)
def test_a_field_of_ours_that_differs_is_drift(path: str, value: Any) -> None:
    """Whatever of the manifest is not as it says has to be written again."""
    assert needs_apply(DEPLOYMENT, changed(DEPLOYMENT, path, value))


@pytest.mark.parametrize(
    "path",
    [
        "spec.replicas",
        "spec.template.spec.nodeSelector",
        "spec.template.spec.automountServiceAccountToken",
        f"{CONTAINER}.resources",
        f"{CONTAINER}.env",
    ],
)
def test_a_field_of_ours_that_is_gone_is_drift(path: str) -> None:
    """A removed field is written again."""
    assert needs_apply(DEPLOYMENT, without(DEPLOYMENT, path))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("status", {"replicas": 2}),
        ("metadata.annotations", {"deployment.kubernetes.io/revision": "3"}),
        ("metadata.labels.team", "blue"),
        (f"{CONTAINER}.terminationMessagePath", "/dev/termination-log"),
        (f"{CONTAINER}.resources.requests.memory", "1024Mi"),
        (f"{CONTAINER}.resources.requests.cpu", "0.5"),
        ("spec.template.spec.tolerations.0.effect", "NoExecute"),
    ],
)
def test_what_others_own_is_left_alone(path: str, value: Any) -> None:
    """Defaults, statuses, others' labels and other spellings of an amount are no drift."""
    assert not needs_apply(DEPLOYMENT, changed(DEPLOYMENT, path, value))


def test_containers_of_others_are_left_alone() -> None:
    """A container that something has put beside ours is no drift, and neither is its place."""
    live = copy.deepcopy(DEPLOYMENT)
    live["spec"]["template"]["spec"]["containers"].insert(0, {"name": "proxy", "image": "proxy:1"})

    assert not needs_apply(DEPLOYMENT, live)


@pytest.mark.parametrize(
    ("body", "path", "extra"),
    [
        (NETWORK_POLICY, "spec.ingress", {}),
        (NETWORK_POLICY, "spec.ingress.0.ports", {"port": 22, "protocol": "TCP"}),
        (NETWORK_POLICY, "spec.ingress.0.from", {"podSelector": {}}),
        (BINDING, "subjects", {"kind": "ServiceAccount", "name": "default", "namespace": "shop"}),
    ],
)
def test_permissions_that_others_have_added_are_drift(body: Object, path: str, extra: Object) -> None:
    """What opens a door that the operator keeps closed is written away."""
    live = copy.deepcopy(body)
    at(live, path).append(extra)

    assert needs_apply(body, live)


def test_what_is_not_there_is_written() -> None:
    """A child that does not exist has to be written."""
    assert needs_apply(DEPLOYMENT, None)


def test_what_is_wanted_no_longer_is_drift() -> None:
    """A field that a manifest no longer has is seen although nothing of the new manifest is missing."""
    before = stamped(DEPLOYMENT)
    after = stamped(without(DEPLOYMENT, "spec.template.spec.nodeSelector"))

    assert not needs_apply(before, before)
    assert needs_apply(after, before)


def test_a_digest_distinguishes_manifests() -> None:
    """The same manifest has the same digest, in whatever order its fields are; another one has another."""
    reachability_changed = dict(reversed(list(DEPLOYMENT.items())))

    assert digest(DEPLOYMENT) == digest(reachability_changed)
    assert digest(DEPLOYMENT) != digest(changed(DEPLOYMENT, "spec.replicas", 3))


NAMES = st.text("abcdefgh", min_size=1, max_size=4)
SCALARS = st.one_of(st.booleans(), st.integers(1, 1000), st.text("xyz/", min_size=1, max_size=6))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.dictionaries(NAMES, inner, max_size=3), st.lists(inner, max_size=3)),
    max_leaves=12,
)


def defaulted(value: Any, extra: Any) -> Any:
    """Give an object as an API server might: with fields that were not in the request."""
    if isinstance(value, dict):
        return {**{"zz-default": extra}, **{key: defaulted(one, extra) for key, one in value.items()}}
    if isinstance(value, list):
        return [defaulted(one, extra) for one in value]
    return value


@given(st.dictionaries(NAMES, TREES, max_size=4), SCALARS)
def test_defaults_are_never_drift(spec: Object, extra: Any) -> None:
    """Whatever is added to an object, nothing that is wanted is missing from it."""
    desired = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "y"}, "spec": spec}

    assert not needs_apply(desired, defaulted(desired, extra))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in leaves(one, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, one in enumerate(value) for leaf in leaves(one, (*path, index))]
    return [path]


@given(st.dictionaries(NAMES, TREES, min_size=1, max_size=4), st.data())
def test_every_other_value_is_drift(spec: Object, data: st.DataObject) -> None:
    """Whichever value of an object is another one, that is seen."""
    desired = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "y"}, "spec": spec}
    places = leaves(spec)
    if not places:
        return
    place = data.draw(st.sampled_from(places))
    live = copy.deepcopy(defaulted(desired, "d"))
    holder = live["spec"]
    for part in place[:-1]:
        holder = holder[part]
    holder[place[-1]] = "something else"

    assert needs_apply(desired, live)
