"""The chart's admission policies, in force on a real API server: what rights alone cannot say."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import yaml

from support.apiserver import ApiServer
from support.operator_parts import set_status
from support.operator_process import apply_pipeline
from support.rendered_parts import Manifest, rendered_chart


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Give the manifests of a kind by name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


@pytest.fixture
def policies(apiserver: ApiServer) -> Iterator[None]:
    """The chart's policies, in force."""
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    made = [one for kind in kinds for one in named(rendered_chart({}), kind).values()]
    apiserver.apply(*made)
    try:
        yield
    finally:
        apiserver.kubectl("delete", "-f", "-", text_in=yaml.safe_dump_all(made))


def asking(server: ApiServer, where: str, user: str, **spec: Any) -> str:
    """Create a ReAnchor as a user; gives the server's reason for refusing it."""
    body = {
        "apiVersion": "sheetanchor.dev/v1alpha1",
        "kind": "ReAnchor",
        "metadata": {"generateName": "x-", "namespace": where},
        "spec": {"pipeline": "btc", "symbol": "BTCUSDT", **spec},
    }
    return server.try_kubectl("create", "-f", "-", f"--as={user}", text_in=json.dumps(body)).stderr


def let(server: ApiServer, where: str, user: str, verbs: str, resources: str) -> None:
    """Grant a user rights in a namespace."""
    name = f"may-{uuid.uuid4().hex[:8]}"
    server.kubectl("create", "role", name, f"--verb={verbs}", f"--resource={resources}", "-n", where)
    server.kubectl("create", "rolebinding", name, f"--role={name}", f"--user={user}", "-n", where)


@pytest.mark.usefixtures("policies")
def test_a_processor_asks_for_its_own_and_forces_nothing(apiserver: ApiServer, where: str) -> None:
    """The API server looks into what a processor's account creates, which rights alone cannot do."""
    process, other = (f"system:serviceaccount:{where}:{name}" for name in ("btc-process", "automation"))
    for user in (process, other):
        let(apiserver, where, user, "create", "reanchors.sheetanchor.dev")

    def refusal(user: str, **spec: Any) -> str:
        return asking(apiserver, where, user, **spec)

    forced = "spec.force must not be set by a processor's account"
    # The server takes a policy up some time after it has taken it in.
    apiserver.wait(lambda: forced in refusal(process, force=True), within_s=60, what="it is in force")

    assert "spec.dryRun must not be set by a processor's account" in refusal(process, dryRun=True)
    assert "spec.pipeline must be the processor's own" in refusal(process, pipeline="eth")
    assert "" == refusal(process, requestedBy="btc-process-0:1")
    assert "" == refusal(other, force=True, dryRun=True)


@pytest.mark.usefixtures("policies")
def test_nobody_asks_in_anothers_name(apiserver: ApiServer, where: str) -> None:
    """What a receipt says of who asked is who the API server knows; the operator, which writes receipts, passes on."""
    operator = f"system:serviceaccount:{where}:some-operator"
    for user in ("ann", operator):
        let(apiserver, where, user, "create", "reanchors.sheetanchor.dev")
    let(apiserver, where, operator, "patch", "reanchors.sheetanchor.dev/status")

    def refusal(user: str, by: str) -> str:
        return asking(apiserver, where, user, requestedBy=by)

    reported = "spec.requestedBy must be who asks: leave it out, or write ann"
    apiserver.wait(lambda: reported in refusal("ann", "bob"), within_s=60, what="it is in force")

    assert ["", "", ""] == [refusal("ann", "ann"), refusal("ann", ""), refusal(operator, "bob (as claimed)")]


CHANGES: list[dict[str, Any]] = [
    {"spec": {"image": "registry.example/evil:1"}},
    {"spec": {"exchange": {"apiKeySecret": {"name": "payment-db"}}}},
    {"metadata": {"annotations": {"sheetanchor.dev/paused": "true"}}},
    {"metadata": {"annotations": {"sheetanchor.dev/reanchor": "x", "other": "1"}}},
    {"metadata": {"annotations": {"kept": None}}},
    {"metadata": {"labels": {"team": "evil"}}},
    {"metadata": {"finalizers": ["example.com/never"]}},
    {"spec": {"suspend": True}, "metadata": {"annotations": {"sheetanchor.dev/reanchor": "x"}}},
]


@pytest.mark.usefixtures("policies")
def test_whoever_may_only_patch_changes_nothing_but_the_annotation(apiserver: ApiServer, where: str) -> None:
    """Rights know no fields: without the policy `patch` on a pipeline reads Secrets and runs images."""
    apply_pipeline(apiserver, where)
    apiserver.kubectl("annotate", "pp/btc", "kept=1", "-n", where)
    resource = "predictionpipelines.sheetanchor.dev"
    let(apiserver, where, "bot", "get,patch", resource)
    let(apiserver, where, "editor", "get,patch,update", resource)
    let(apiserver, where, "mover", "get,patch,move", resource)

    def refusal(user: str, change: dict[str, Any]) -> str:
        patch = ["patch", "pp/btc", "-n", where, "--type=merge", "-p", json.dumps(change), f"--as={user}"]
        return apiserver.try_kubectl(*patch).stderr

    reported = "may change the annotation sheetanchor.dev/reanchor only"
    # Each time another change: one that was let through before the policy is in force would be none the next time.
    changes = ({"spec": {"image": f"registry.example/probe:{number}"}} for number in count())
    apiserver.wait(lambda: reported in refusal("bot", next(changes)), within_s=60, what="it is in force")

    assert [True] * len(CHANGES) == [reported in refusal("bot", change) for change in CHANGES]
    for value in ("now", "again", None):
        assert reported not in refusal("bot", {"metadata": {"annotations": {"sheetanchor.dev/reanchor": value}}})
    for name in ("switchover", "evacuate-zone"):
        for value in ("b/1", None):
            move = {"metadata": {"annotations": {f"sheetanchor.dev/{name}": value}}}
            assert "" == refusal("mover", move)
            other = {"metadata": {"annotations": {f"sheetanchor.dev/{name}": "a/of a bot"}}}
            assert reported in refusal("bot", other)
    assert [True] * len(CHANGES) == [reported in refusal("mover", change) for change in CHANGES]
    assert "" == refusal("editor", CHANGES[-1])


@pytest.mark.usefixtures("policies")
def test_an_annotation_that_nobody_has_taken_is_not_overwritten_without_a_word(
    apiserver: ApiServer, where: str
) -> None:
    """It holds one request: a user who writes a second one before the first was read is warned."""
    apply_pipeline(apiserver, where)

    def write(value: str) -> str:
        arguments = ["annotate", "--overwrite", "pp/btc", "-n", where, f"sheetanchor.dev/reanchor={value}"]
        return apiserver.try_kubectl(*arguments).stderr

    def take(key: str) -> None:
        set_status(apiserver, where, "PredictionPipeline", "btc", {"lastReanchorRequest": key})

    warning = "the operator has not seen the value of the annotation"
    numbers = itertools.count()
    apiserver.wait(lambda: warning in write(str(next(numbers))), within_s=60, what="it is in force")

    for value, key in (
        ("plain words", "plain words"),
        ('{"id": "deploy-7"}', "deploy-7"),
        ('{"id":"deploy-8","symbol":"BTCUSDT"}', "deploy-8 BTCUSDT"),
    ):
        write(value)
        take(key)
        assert warning not in write("the next one"), value
        assert warning in write("and another before it was seen"), value
