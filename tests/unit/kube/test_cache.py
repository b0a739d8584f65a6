"""What the operator remembers of the cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.kube.cache import PER_PIPELINE_MAX, TEXT_MAX, Cache, secret_hash, slim

KEY = ("shop", "btc")


def body(kind: str = "Deployment", name: str = "btc-infer", version: int = 1, **more: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "shop",
        "uid": more.pop("uid", f"uid-of-{name}"),
        "resourceVersion": str(version),
        "labels": {"sheetanchor.dev/pipeline": more.pop("pipeline", "btc")},
        "managedFields": [{"manager": "x"}],
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


def node(name: str, zone: str) -> dict[str, Any]:
    labels = {"topology.kubernetes.io/zone": zone} if zone else {}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"big": True}}


def test_objects_are_found_by_their_pipeline() -> None:
    """A pipeline's objects are what carries its label, ReAnchors what names it."""
    cache = Cache()
    cache.put(body())
    cache.put(body("Service", "btc-redis"))
    cache.put(body("Pod", "other-1", pipeline="other"))
    wish = body("ReAnchor", "wish", spec={"pipeline": "btc"})
    del wish["metadata"]["labels"]

    cache.put(wish)

    assert {("Deployment", "btc-infer"), ("Service", "btc-redis"), ("ReAnchor", "wish")} == set(cache.of(KEY))


def test_an_older_version_changes_nothing() -> None:
    """An event that comes after the answer to a later write is not believed."""
    cache = Cache()
    cache.put(body(version=9, spec={"replicas": 2}))

    cache.put(body(version=8, spec={"replicas": 1}))

    found = cache.get("Deployment", "shop", "btc-infer")
    assert found is not None
    assert 2 == found["spec"]["replicas"]


def test_another_object_of_the_same_name_is_believed() -> None:
    """What was deleted and made again has a uid of its own, whatever its version."""
    cache = Cache()
    cache.put(body(version=9, uid="first"))

    cache.put(body(version=3, uid="second"))

    entry = cache.entry("Deployment", "shop", "btc-infer")
    assert entry is not None
    assert "second" == entry.uid


def test_an_object_that_changes_its_pipeline_moves() -> None:
    """With its label an object leaves one pipeline and joins another."""
    cache = Cache()
    cache.put(body(version=1))

    cache.put(body(version=2, pipeline="eth"))

    assert ({}, {("Deployment", "btc-infer")}) == (cache.of(KEY), set(cache.of(("shop", "eth"))))


def test_what_is_dropped_is_gone() -> None:
    """After the last of its objects nothing of a pipeline is kept."""
    cache = Cache()
    cache.put(body())

    key = cache.drop("Deployment", "shop", "btc-infer")

    assert (KEY, {}, None) == (key, cache.of(KEY), cache.get("Deployment", "shop", "btc-infer"))
    assert None is cache.drop("Deployment", "shop", "btc-infer")


def test_no_value_of_a_secret_is_kept() -> None:
    """Of a Secret only the names of its entries are known, and of no object who manages its fields."""
    kept = slim(body("Secret", "btc-redis", data={"infer": "c2VzYW1l"}, stringData={"x": "sesame"}))

    assert {"infer": ""} == kept["data"]
    assert "sesame" not in str(kept)
    assert "managedFields" not in kept["metadata"]


def test_zones_follow_the_nodes() -> None:
    """A node that goes or loses its label takes its zone with it; of its status nothing is kept."""
    cache = Cache()
    for name, zone in (("n1", "a"), ("n2", "b"), ("n3", "")):
        cache.put(node(name, zone))
    assert {"n1": "a", "n2": "b"} == cache.node_zones()

    cache.put(node("n1", ""))
    cache.drop("Node", "", "n2")

    assert {} == cache.node_zones()
    assert "status" not in (cache.get("Node", "", "n3") or {})


def test_a_secrets_hash_is_of_what_it_holds() -> None:
    """Labels do not change it, values do; and without the uid a value cannot be guessed by trying."""
    secret = body("Secret", "key", data={"api-key": "a2V5"})
    labelled = body("Secret", "key", version=2, data={"api-key": "a2V5"})
    labelled["metadata"]["labels"]["team"] = "quants"

    assert secret_hash(secret) == secret_hash(labelled)
    assert secret_hash(secret) != secret_hash(body("Secret", "key", data={"api-key": "b3RoZXI="}))
    assert secret_hash(secret) != secret_hash(body("Secret", "key", uid="another", data={"api-key": "a2V5"}))


def of_watch(kind: str, name: str, owner: tuple[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """An object as a watch shows it, with an owner's kind and name."""
    one = body(kind, name, **more)
    if owner is not None:
        one["metadata"]["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "uid": "u", "controller": True}]
    return one


def with_pipeline() -> Cache:
    cache = Cache()
    pipeline = body("PredictionPipeline", "btc")
    cache.take(pipeline)
    return cache


PIPELINE_OWNER = ("PredictionPipeline", "btc")


@pytest.mark.parametrize(
    ("one", "kept"),
    [
        (of_watch("ConfigMap", "btc-settings"), True),
        (of_watch("ConfigMap", "btc-infer", PIPELINE_OWNER), True),
        (of_watch("ConfigMap", "mine"), False),
        (of_watch("ConfigMap", "mine", PIPELINE_OWNER), False),
        (of_watch("ConfigMap", "eth-settings", pipeline="eth"), False),
        (of_watch("Deployment", "btc-ingest-a", PIPELINE_OWNER), True),
        (of_watch("Deployment", "btc-ingest-a"), False),
        (of_watch("Deployment", "btc-ingest-a", ("PredictionPipeline", "eth")), False),
        (of_watch("NetworkPolicy", "btc-default-deny"), True),
        (of_watch("Pod", "btc-infer-1", ("ReplicaSet", "btc-infer-5c")), True),
        (of_watch("Pod", "btc-infer-1"), False),
        (of_watch("Job", "wish-1", ("ReAnchor", "wish")), True),
        (of_watch("Job", "wish-1"), False),
    ],
)
def test_a_label_alone_keeps_nothing(one: dict[str, Any], *, kept: bool) -> None:
    """What no pipeline of ours can have is known by name only, so that it is not missed, and costs nothing."""
    cache = with_pipeline()

    cache.take(one)

    name = one["metadata"]["name"]
    assert kept is (cache.get(one["kind"], "shop", name) is not None)
    entry = cache.entry(one["kind"], "shop", name)
    assert entry is not None
    assert kept or b"" == entry.text


def test_what_came_before_its_pipeline_is_asked_for_again() -> None:
    """Of a pipeline that comes later the kinds are named once of which something was known by name only."""
    cache = Cache()
    cache.take(of_watch("Pod", "btc-infer-1", ("ReplicaSet", "btc-infer-5c")))
    cache.take(of_watch("Service", "btc-infer"))

    assert {"Pod", "Service"} == cache.unowned_kinds(KEY)
    assert frozenset() == cache.unowned_kinds(KEY)


def test_the_number_of_a_pipelines_objects_is_bounded() -> None:
    """A user who may label pods may label any number of them."""
    cache = with_pipeline()
    for number in range(3 * PER_PIPELINE_MAX):
        cache.take(of_watch("Pod", f"btc-infer-{number}", ("ReplicaSet", "btc-infer-5c")))

    assert PER_PIPELINE_MAX + 1 == len(cache.of(KEY))


@pytest.mark.parametrize(
    "kind", ["ConfigMap", "Secret", "Service", "Role", "Deployment", "Pod", "Job", "ReAnchor", "PredictionPipeline"]
)
def test_copies_in_annotations_are_not_kept(kind: str) -> None:
    """`kubectl apply` writes the whole of an object into an annotation, a Secret's content too; ours are needed."""
    one = body(kind, "btc-redis", data={"infer": "c2VzYW1l"})
    one["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": '{"data":{"infer":"c2VzYW1l"}}',
        "sheetanchor.dev/create-only": "true",
    }
    one["metadata"]["labels"]["big"] = "sesame"

    kept = slim(one)

    assert {"sheetanchor.dev/create-only": "true"} == kept["metadata"]["annotations"]
    assert "last-applied" not in str(kept)
    assert "sesame" not in str(kept["metadata"])
    assert kind not in ("Secret", "ConfigMap") or "c2VzYW1l" not in str(kept)


@given(st.integers(0, 2_000_000))
def test_what_is_larger_than_any_of_ours_is_known_by_name_only(size: int) -> None:
    """The memory for one object is bounded, whatever it contains."""
    cache = with_pipeline()
    one = body("Deployment", "btc-infer", spec={"template": "x" * size})

    cache.take(one)

    entry = cache.entry("Deployment", "shop", "btc-infer")
    assert entry is not None
    assert len(entry.text) <= TEXT_MAX
    assert (size < TEXT_MAX - 1000) <= bool(entry.text)
