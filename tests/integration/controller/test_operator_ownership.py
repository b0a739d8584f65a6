"""A name does not prove ownership: objects of others are neither changed nor taken over, and are reported by name."""

from __future__ import annotations

from copy import deepcopy

import pytest

from sheetanchor_operator.apply.ownership import depends_on
from sheetanchor_operator.kube.api_client import Cluster
from sheetanchor_operator.names import API_VERSION
from support.apiserver import ApiServer
from support.operator_looks import Looker, Manifest, create, pipeline_in, rendered, there
from support.operator_parts import make_pipeline, reanchors
from support.operator_process import children_of, condition_of

MINE = {"app": "mine"}


async def look(cluster: Cluster, server: ApiServer, where: str, times: int = 1) -> None:
    """Reconcile the pipeline with a new leader, whose cache is empty."""
    await Looker(server, cluster, where).look(times)


def somebody_elses(manifest: Manifest) -> Manifest:
    """Give an object of the same kind and name that has nothing to do with us."""
    other = deepcopy(manifest)
    other["metadata"] = {"name": manifest["metadata"]["name"], "labels": MINE}
    spec = other.get("spec", {})
    if "data" in other:
        other["data"] = {"mine": "bWluZQ=="}
    if other["kind"] == "Role":
        other["rules"] = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    if other["kind"] == "RoleBinding":
        other["roleRef"]["name"], other["subjects"][0]["name"] = "mine", "mine"
    if other["kind"] == "Service":
        spec["selector"] = MINE
    if other["kind"] == "PodDisruptionBudget":
        spec["selector"]["matchLabels"] = MINE
    if other["kind"] == "NetworkPolicy":
        spec["podSelector"]["matchLabels"] = MINE
    if other["kind"] in ("Deployment", "StatefulSet"):
        spec["selector"]["matchLabels"] = MINE
        spec["template"]["metadata"] = {"labels": MINE}
    return other


def ready_message(server: ApiServer, where: str) -> str:
    return str(condition_of(server, where, "Ready")["message"])


async def test_nothing_of_another_users_is_changed(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """If other users' objects have all names of the children, they stay as they were, without an owner."""
    pipeline = pipeline_in(apiserver, where)
    before = {
        place: create(apiserver, where, somebody_elses(manifest)) for place, manifest in rendered(pipeline).items()
    }

    await look(cluster, apiserver, where, times=2)

    after = {place: there(apiserver, where, *place) for place in before}
    assert {place: one["metadata"]["resourceVersion"] for place, one in before.items()} == {
        place: one["metadata"]["resourceVersion"] for place, one in after.items()
    }
    assert not any(one["metadata"].get("ownerReferences") for one in after.values())
    assert "NameTaken" == condition_of(apiserver, where, "Ready")["reason"]


@pytest.mark.parametrize(
    "place",
    [
        ("ServiceAccount", "btc-ingest"),
        ("Role", "btc-process"),
        ("RoleBinding", "btc-process"),
        ("ConfigMap", "btc-settings"),
        ("Secret", "btc-redis"),
        ("Service", "btc-infer"),
        ("Service", "btc-redis"),
        ("NetworkPolicy", "btc-infer"),
        ("PodDisruptionBudget", "btc-process"),
        ("Deployment", "btc-infer"),
        ("StatefulSet", "btc-redis"),
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
async def test_a_name_that_is_taken_is_reported_and_what_needs_it_waits(
    apiserver: ApiServer, where: str, cluster: Cluster, place: tuple[str, str], *, labelled: bool
) -> None:
    """The status names the object; what refers to it is not made, the rest is; once it is gone all is made.

    Any user can set a label: an object with another owner is not the operator's, whatever its labels are.
    """
    pipeline = pipeline_in(apiserver, where)
    wanted = rendered(pipeline)
    other = somebody_elses(wanted[place])
    if labelled:
        other["metadata"]["labels"] = wanted[place]["metadata"]["labels"]
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "mine", "uid": "1234", "controller": True}
        other["metadata"]["ownerReferences"] = [owner]
    before = create(apiserver, where, other)

    await look(cluster, apiserver, where, times=2)

    after = there(apiserver, where, *place)
    assert before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    assert "NameTaken" == condition_of(apiserver, where, "Ready")["reason"]
    assert (
        f"{place[0]} {place[1]}: an object of this name exists that does not belong to the operator"
        in ready_message(apiserver, where)
    )
    waiting = {f"{one[0]}/{one[1]}" for one, manifest in wanted.items() if place in depends_on(manifest)}
    made = {name for name in children_of(apiserver, where) if name != f"{place[0]}/{place[1]}"}
    assert {f"{one[0]}/{one[1]}" for one in wanted if one != place} - waiting == made

    apiserver.kubectl("delete", place[0], place[1], "-n", where)
    await look(cluster, apiserver, where)
    assert {f"{one[0]}/{one[1]}" for one in wanted} == set(children_of(apiserver, where))


@pytest.mark.parametrize("how", ["owner is gone", "nobody's", "without our labels", "changed"])
async def test_what_is_ours_is_taken_over(apiserver: ApiServer, where: str, cluster: Cluster, how: str) -> None:
    """Orphans of a pipeline of the same name are put right and owned, and so is what lost its labels or was changed."""
    pipeline = pipeline_in(apiserver, where)
    for place, manifest in rendered(pipeline).items():
        one = deepcopy(manifest)
        metadata = one["metadata"]
        if how == "owner is gone":
            metadata["ownerReferences"][0]["uid"] = "gone"
        if how == "nobody's":
            del metadata["ownerReferences"]
        if how == "without our labels":
            metadata["labels"] = MINE
        if place[0] in ("Service", "PodDisruptionBudget") and "selector" in one["spec"]:
            one["spec"]["selector"] = MINE if place[0] == "Service" else {"matchLabels": MINE}
        create(apiserver, where, one)

    await look(cluster, apiserver, where, times=2)

    found = children_of(apiserver, where)
    assert {f"{kind}/{name}" for kind, name in rendered(pipeline)} == set(found)
    assert {(pipeline.uid,)} == {
        tuple(owner["uid"] for owner in one["metadata"]["ownerReferences"]) for one in found.values()
    }
    assert "infer" == found["Service/btc-infer"]["spec"]["selector"]["app.kubernetes.io/component"]
    assert "NameTaken" != condition_of(apiserver, where, "Ready")["reason"]


async def test_a_run_of_another_users_is_not_taken_for_ours(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """A Job that has the name of a run is no run: the re-anchor says so and does not count as begun."""
    pipeline = make_pipeline(apiserver, where)
    spec = {"pipeline": pipeline.name, "symbol": "BTCUSDT"}
    create(apiserver, where, {"apiVersion": API_VERSION, "kind": "ReAnchor", "metadata": {"name": "one"}, "spec": spec})
    container = {"name": "mine", "image": "mine"}
    template = {"metadata": {"labels": MINE}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one-1"}, "spec": {"template": template}}
    create(apiserver, where, job)

    await look(cluster, apiserver, where, times=2)

    status = reanchors(apiserver, where)["one"]["status"]
    assert status.get("phase", "Pending") == "Pending"
    assert "an object of this name exists that does not belong to the operator" in status["message"]
    assert "NameTaken" == condition_of(apiserver, where, "Ready")["reason"]
