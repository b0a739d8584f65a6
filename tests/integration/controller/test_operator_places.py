"""A problem with one watched kind or namespace affects only that, and is reported: lost rights, kinds, namespaces."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer, own_server
from support.operator_parts import define, namespace, token_of
from support.operator_process import (
    OperatorProcess,
    apply_pipeline,
    children_of,
    condition_of,
    pipeline_of,
    settled,
    until,
)
from support.rights import give_rights, take_rights

WITHIN_S = 40
AUDITED_S = 75
"""A right that goes is seen by the next check, at the latest, and a place that is refused is tried every 15 s."""

KINDS = {
    "predictionpipelines": "PredictionPipeline",
    "reanchors": "ReAnchor",
    "serviceaccounts": "ServiceAccount",
    "roles": "Role",
    "rolebindings": "RoleBinding",
    "configmaps": "ConfigMap",
    "secrets": "Secret",
    "services": "Service",
    "networkpolicies": "NetworkPolicy",
    "poddisruptionbudgets": "PodDisruptionBudget",
    "deployments": "Deployment",
    "statefulsets": "StatefulSet",
    "jobs": "Job",
    "pods": "Pod",
}


@dataclass
class Two:
    """An operator that manages two namespaces, each with a pipeline."""

    server: ApiServer
    one: str
    other: str
    operator: OperatorProcess

    def refused(self, kind: str, where: str) -> bool:
        name = f'sheetanchor_operator_watch_refused{{kind="{kind}",watched_namespace="{where}"}}'
        return self.operator.metrics().get(name) == 1.0

    def watches(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.operator.get("/health/detailed")[1])["checks"]["watches"]
        return found

    def wait(self, condition: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
        until(condition, within_s=within_s, what=what, operator=self.operator)

    def is_served(self, where: str, name: str = "infer") -> None:
        """Fail unless what is deleted in a namespace comes back, and a change of a pipeline is followed."""
        self.server.kubectl("delete", "service", f"btc-{name}", "-n", where)
        back = f"Service/btc-{name}"
        self.wait(lambda: back in children_of(self.server, where), f"{back} is back in {where}")

    def follows(self, where: str, image: str) -> None:
        apply_pipeline(self.server, where, image=image)
        path = f"/apis/apps/v1/namespaces/{where}/deployments/btc-infer"

        def image_of() -> str:
            return str(self.server.ask(path)["spec"]["template"]["spec"]["containers"][0]["image"])

        self.wait(lambda: image_of() == image, f"{where} runs {image}")


@contextmanager
def looking_after_two(server: ApiServer, folder: Path) -> Iterator[Two]:
    define(server)
    with namespace(server) as one, namespace(server) as other:
        for where in (one, other):
            give_rights(server, where, account_of=one)
            apply_pipeline(server, where)
        operator = OperatorProcess(server, one, folder, "two", "--no-operator-nodes", "--operator-resync-s", "1")
        operator.flags = (*operator.flags, "--operator-namespaces", other)
        operator.kubeconfig = folder / "restricted"
        operator.kubeconfig.write_text(server.kubeconfig_text(token_of(server, one, "operator")))
        operator.start()
        two = Two(server, one, other, operator)
        try:
            for where in (one, other):
                two.wait(lambda where=where: settled(server, where), f"children in {where}")  # type: ignore[misc]
            yield two
        finally:
            if operator.process is not None and operator.process.poll() is None:
                operator.end(signal.SIGKILL)


def goes_on(two: Two) -> None:
    """Fail unless the operator is the process that it was, alive, ready and leading."""
    assert two.operator.process is not None
    assert two.operator.process.poll() is None
    assert [200, 200, 200] == [two.operator.get(path)[0] for path in ("/health/live", "/health/ready", "/health")]
    assert two.operator.leads


def test_a_namespace_that_goes_takes_no_other_with_it(apiserver: ApiServer, tmp_path: Path) -> None:
    """With all rights in one namespace gone, as by its deletion, the other is served, also after a new start."""
    with looking_after_two(apiserver, tmp_path) as two:
        take_rights(apiserver, two.other)
        two.wait(lambda: all(two.refused(kind, two.other) for kind in KINDS.values()), "all told", AUDITED_S)

        goes_on(two)
        two.is_served(two.one)
        two.follows(two.one, "registry.example/x:2")
        assert {f"{kind} in {two.other}" for kind in KINDS} == set(two.watches()["refused"])
        assert not any(two.refused(kind, two.one) for kind in KINDS.values())

        two.operator.end(signal.SIGTERM)
        two.operator.start()
        two.wait(lambda: two.operator.leads, "it leads again")
        two.is_served(two.one, "process")
        two.wait(lambda: two.operator.get("/health/ready")[0] == 200, "ready")
        goes_on(two)
        assert two.refused("Pod", two.other)

        give_rights(apiserver, two.other, account_of=two.one)
        two.wait(lambda: not two.watches()["refused"], "all can be heard again")
        two.is_served(two.other)


def test_a_right_that_was_gone_for_a_while_is_taken_up_again(apiserver: ApiServer, tmp_path: Path) -> None:
    """After 30 s without any right in one namespace both are served by the process that it was."""
    with looking_after_two(apiserver, tmp_path) as two:
        assert two.operator.process is not None
        began = two.operator.process.pid
        take_rights(apiserver, two.other)
        ends_s = time.monotonic() + 30
        while time.monotonic() < ends_s:
            two.is_served(two.one)
        apply_pipeline(apiserver, two.other, image="registry.example/x:3")
        give_rights(apiserver, two.other, account_of=two.one)

        two.follows(two.other, "registry.example/x:3")
        two.wait(lambda: not two.watches()["refused"], "nothing is refused any more", AUDITED_S)
        assert began == two.operator.process.pid
        goes_on(two)


@pytest.mark.parametrize("kinds", [("configmaps",), ("deployments", "pods"), ("reanchors",), ("predictionpipelines",)])
def test_a_kind_that_may_not_be_watched_costs_that_kind_only(
    apiserver: ApiServer, tmp_path: Path, kinds: Sequence[str]
) -> None:
    """Where some kinds may be listed and watched no more the status says so, and nothing else stops."""
    with looking_after_two(apiserver, tmp_path) as two:
        give_rights(apiserver, two.other, account_of=two.one, without=dict.fromkeys(kinds, ("list", "watch")))
        two.wait(lambda: all(two.refused(KINDS[kind], two.other) for kind in kinds), "reported", AUDITED_S)

        def reported() -> str:
            return str(condition_of(apiserver, two.other, "Ready").get("message"))

        two.wait(lambda: condition_of(apiserver, two.other, "Ready").get("reason") == "WatchRefused", "in the status")
        two.wait(lambda: "cannot list resource" in reported(), "with the server's words")
        assert "give the operator this permission" in reported()
        events = apiserver.ask(f"/apis/events.k8s.io/v1/namespaces/{two.other}/events")["items"]
        goes_on(two)
        two.is_served(two.one)
        if "predictionpipelines" not in kinds:
            two.is_served(two.other)
            assert events

        give_rights(apiserver, two.other, account_of=two.one)
        two.wait(lambda: condition_of(apiserver, two.other, "Ready").get("reason") != "WatchRefused", "taken back")
        two.follows(two.other, "registry.example/x:4")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_kind_that_is_refused_from_the_start_ends_the_operator(
    apiserver: ApiServer, tmp_path: Path, kind: str
) -> None:
    """If a kind may not be listed in the only namespace, the operator keeps running, reports it, and is not ready."""
    define(apiserver)
    with namespace(apiserver) as where:
        give_rights(apiserver, where, account_of=where, without={kind: ("list", "watch")})
        apply_pipeline(apiserver, where)
        operator = OperatorProcess(apiserver, where, tmp_path, "one", "--no-operator-nodes")
        operator.kubeconfig = tmp_path / "restricted"
        operator.kubeconfig.write_text(apiserver.kubeconfig_text(token_of(apiserver, where, "operator")))
        operator.start()
        two = Two(apiserver, where, where, operator)
        try:
            two.wait(lambda: two.refused(KINDS[kind], where), "reported")
            two.wait(lambda: operator.get("/health/ready")[0] == 503, "not ready")
            assert 200 == operator.get("/health/live")[0]
            if kind != "predictionpipelines":
                two.wait(lambda: condition_of(apiserver, where, "Ready").get("reason") == "WatchRefused", "status")
                made = {place.partition("/")[0] for place in children_of(apiserver, where)}
                assert KINDS[kind] not in made
                assert {"ServiceAccount", "NetworkPolicy"} - {KINDS[kind]} <= made

            give_rights(apiserver, where, account_of=where)
            two.wait(lambda: settled(apiserver, where), "children")
            two.wait(lambda: operator.get("/health/ready")[0] == 200, "ready")
        finally:
            operator.end(signal.SIGKILL)


def test_nodes_that_may_not_be_seen_cost_the_lines_of_new_pipelines_only(apiserver: ApiServer, tmp_path: Path) -> None:
    """Without the right to list nodes all but ingestors is made, the reason is reported, and the operator is ready."""
    define(apiserver)
    with namespace(apiserver) as where:
        give_rights(apiserver, where, account_of=where)
        apply_pipeline(apiserver, where)
        operator = OperatorProcess(apiserver, where, tmp_path, "one", "--operator-resync-s", "1")
        operator.kubeconfig = tmp_path / "restricted"
        operator.kubeconfig.write_text(apiserver.kubeconfig_text(token_of(apiserver, where, "operator")))
        operator.start()
        two = Two(apiserver, where, where, operator)
        try:
            two.wait(lambda: condition_of(apiserver, where, "Ready").get("reason") == "WatchRefused", "reported")
            two.wait(lambda: operator.get("/health/ready")[0] == 200, "ready")
            made = children_of(apiserver, where)
            assert {"Deployment/btc-process", "Deployment/btc-infer", "StatefulSet/btc-redis"} <= set(made)
            assert not [name for name in made if name.startswith("Deployment/btc-ingest")]
            assert two.refused("Node", "")
        finally:
            operator.end(signal.SIGKILL)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ApiServer]:
    """A server whose definitions a test may take away."""
    with own_server(tmp_path / "server") as server:
        yield server


def test_a_definition_that_goes_and_comes_is_followed(own: ApiServer, tmp_path: Path) -> None:
    """Without the definition of re-anchors pipelines are kept and say so; with it again everything is as before."""
    with looking_after_two(own, tmp_path) as two:
        crd = "reanchors.sheetanchor.dev"
        own.kubectl("delete", "customresourcedefinition", crd)
        two.wait(lambda: two.refused("ReAnchor", two.one), "reported", AUDITED_S)
        two.wait(lambda: condition_of(own, two.one, "Ready").get("reason") == "WatchRefused", "in the status")
        assert "install the chart's definitions" in condition_of(own, two.one, "Ready")["message"]
        two.is_served(two.one)
        two.is_served(two.other)
        assert 200 == two.operator.get("/health/live")[0]

        define(own)
        two.wait(lambda: condition_of(own, two.one, "Ready").get("reason") != "WatchRefused", "taken back")
        goes_on(two)


def test_pipelines_whose_definition_goes_are_not_made_again(own: ApiServer, tmp_path: Path) -> None:
    """With their definition all pipelines go: nothing is made for them any more, and new ones are looked after."""
    with looking_after_two(own, tmp_path) as two:
        own.kubectl("delete", "customresourcedefinition", "predictionpipelines.sheetanchor.dev")
        two.wait(lambda: two.refused("PredictionPipeline", two.one), "reported", AUDITED_S)
        own.kubectl("delete", "service", "btc-infer", "-n", two.one)
        time.sleep(5)
        assert "Service/btc-infer" not in children_of(own, two.one)
        assert 503 == two.operator.get("/health/ready")[0]

        define(own)
        apply_pipeline(own, two.one)
        two.wait(lambda: "Service/btc-infer" in children_of(own, two.one), "looked after again")
        assert "phase" in pipeline_of(own, two.one)["status"]
        goes_on(two)
