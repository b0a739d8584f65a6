"""What an operator does when the API server refuses, is away, or lets it see too little."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer, own_server
from support.operator_parts import define, token_of
from support.operator_process import (
    OperatorProcess,
    apply_pipeline,
    children_of,
    condition_of,
    looks,
    operating,
    path_of,
    pipeline_of,
    settled,
    until,
    versions_of,
)

WITHIN_S = 30
MERGE = "application/merge-patch+json"
EVERYTHING = ["get", "list", "watch", "create", "update", "patch", "delete"]


@pytest.fixture
def where(apiserver: ApiServer, where: str) -> str:
    """A namespace with a pipeline whose key is there."""
    give_key(apiserver, where)
    apply_pipeline(apiserver, where)
    return where


def give_key(server: ApiServer, where: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "binance-api-key"}}
    server.apply({**secret, "stringData": {"api-key": "k"}}, namespace=where)


def rules(*, without: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Give all permissions that an operator of one namespace needs, some verbs on some kinds left out."""
    groups = {
        "": ["serviceaccounts", "configmaps", "secrets", "services", "pods", "events", "persistentvolumeclaims"],
        "apps": ["deployments", "statefulsets"],
        "batch": ["jobs"],
        "policy": ["poddisruptionbudgets"],
        "networking.k8s.io": ["networkpolicies"],
        "rbac.authorization.k8s.io": ["roles", "rolebindings"],
        "coordination.k8s.io": ["leases"],
        "events.k8s.io": ["events"],
        "sheetanchor.dev": [
            "predictionpipelines",
            "predictionpipelines/status",
            "predictionpipelines/finalizers",
            "reanchors",
            "reanchors/status",
            "reanchors/finalizers",
        ],
    }
    return [
        {"apiGroups": [group], "resources": [one], "verbs": [v for v in EVERYTHING if v not in without.get(one, [])]}
        for group, resources in groups.items()
        for one in resources
    ]


def restricted(server: ApiServer, where: str, folder: Path, *, without: dict[str, list[str]]) -> Path:
    """Make an account with too few permissions and give its kubeconfig."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}}
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "operator"}}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": where}],
    }
    server.apply(account, {**role, "rules": rules(without=without)}, binding, namespace=where)
    path = folder / "restricted"
    path.write_text(server.kubeconfig_text(token_of(server, where, "operator")))
    return path


def errors(operator: OperatorProcess, code: int) -> float:
    return operator.metrics().get(f'sheetanchor_operator_api_errors_total{{code="{code}"}}', 0.0)


def until_reason(server: ApiServer, where: str, reason: str, operator: OperatorProcess) -> dict[str, Any]:
    until(
        lambda: condition_of(server, where, "Ready").get("reason") == reason,
        within_s=WITHIN_S,
        what=f"Ready says {reason}, not {condition_of(server, where, 'Ready')}",
        operator=operator,
    )
    return condition_of(server, where, "Ready")


def until_mended(server: ApiServer, where: str, reason: str, operator: OperatorProcess) -> None:
    """Wait until a problem is no longer the reason."""
    until(
        lambda: condition_of(server, where, "Ready")["reason"] != reason,
        within_s=WITHIN_S,
        what=f"{reason} is mended",
        operator=operator,
    )


def test_an_exceeded_quota_is_reported_and_recovered_from(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """The condition names the quota and the remedy, few requests are made, and a larger quota resolves it."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    apiserver.apply({**quota, "spec": {"hard": {"count/services": "1"}}}, namespace=where)
    path = f"/api/v1/namespaces/{where}/resourcequotas/small"

    def room(hard: int) -> None:
        # No quota controller runs here: what it would write is written by hand.
        limits = {"hard": {"count/services": str(hard)}}
        apiserver.ask(path, method="PATCH", body={"spec": limits}, content_type=MERGE)
        counted = {"status": {**limits, "used": {"count/services": "1"}}}
        apiserver.ask(f"{path}/status", method="PATCH", body=counted, content_type=MERGE)

    room(1)
    with operating(apiserver, where, tmp_path, "one", "--operator-resync-s", "1") as operator:
        condition = until_reason(apiserver, where, "QuotaExceeded", operator)
        before, seen = errors(operator, 403), looks(operator)
        until(lambda: looks(operator) >= seen + 3, within_s=WITHIN_S, what="more looks", operator=operator)

        assert "raise the namespace's ResourceQuota" in condition["message"]
        assert before == errors(operator, 403)

        room(9)
        apply_pipeline(apiserver, where, logLevel="debug")
        until(
            lambda: len([place for place in children_of(apiserver, where) if place.startswith("Service/")]) == 3,
            within_s=60,
            what="all services",
            operator=operator,
        )


def limit(server: ApiServer, where: str, count: str, hard: int) -> None:
    """Let a namespace hold so many objects of a kind; what a controller would count is written by hand."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"}}
    server.apply({**quota, "spec": {"hard": {count: str(hard)}}}, namespace=where)
    counted = {"status": {"hard": {count: str(hard)}, "used": {count: "0"}}}
    path = f"/api/v1/namespaces/{where}/resourcequotas/tight/status"
    server.ask(path, method="PATCH", body=counted, content_type=MERGE)


def test_a_reanchor_that_cannot_be_made_is_reported(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """A ReAnchor that a quota refuses is in the condition, is not retried at each reconcile, and is not forgotten."""
    limit(apiserver, where, "count/reanchors.sheetanchor.dev", 0)
    found = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/reanchors"
    with operating(apiserver, where, tmp_path, "one", "--operator-resync-s", "1") as operator:
        until(lambda: settled(apiserver, where), within_s=WITHIN_S, what="children", operator=operator)
        wish = {"metadata": {"annotations": {"sheetanchor.dev/reanchor": "once"}}}
        apiserver.ask(path_of(where), method="PATCH", body=wish, content_type=MERGE)
        condition = until_reason(apiserver, where, "QuotaExceeded", operator)
        before, seen = errors(operator, 403), looks(operator)
        until(lambda: looks(operator) >= seen + 3, within_s=WITHIN_S, what="more looks", operator=operator)

        assert "ReAnchor" in condition["message"]
        assert before == errors(operator, 403)
        assert "lastReanchorRequest" not in pipeline_of(apiserver, where)["status"]

        limit(apiserver, where, "count/reanchors.sheetanchor.dev", 9)
        until(lambda: bool(apiserver.ask(found)["items"]), within_s=60, what="the ReAnchor", operator=operator)
        until_mended(apiserver, where, "QuotaExceeded", operator)


def test_a_run_that_cannot_begin_is_not_recorded_as_running(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """While a quota refuses its Job a ReAnchor waits and says so; it is never reported as running."""
    limit(apiserver, where, "count/jobs.batch", 0)
    found = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/reanchors"
    body = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": "ReAnchor", "metadata": {"name": "one"}}
    apiserver.ask(found, method="POST", body={**body, "spec": {"pipeline": "btc", "symbol": "BTCUSDT"}})

    def one() -> dict[str, Any]:
        return dict(apiserver.ask(f"{found}/one").get("status") or {})

    def events() -> set[str]:
        return {one["reason"] for one in apiserver.ask(f"/apis/events.k8s.io/v1/namespaces/{where}/events")["items"]}

    with operating(apiserver, where, tmp_path, "one", "--operator-resync-s", "1") as operator:
        condition = until_reason(apiserver, where, "QuotaExceeded", operator)
        before, seen = errors(operator, 403), looks(operator)
        written = pipeline_of(apiserver, where)["metadata"]["resourceVersion"]
        until(lambda: looks(operator) >= seen + 3, within_s=WITHIN_S, what="more looks", operator=operator)

        assert "Job" in condition["message"]
        assert "the API server refused the Job of its run" in one()["message"]
        assert one().get("phase", "Pending") == "Pending"
        assert "ReanchorStarted" not in events()
        assert "lastReanchor" not in pipeline_of(apiserver, where)["status"]
        assert "False" == condition_of(apiserver, where, "ReanchorInProgress")["status"]
        assert errors(operator, 403) - before < looks(operator) - seen
        assert written == pipeline_of(apiserver, where)["metadata"]["resourceVersion"]

        limit(apiserver, where, "count/jobs.batch", 9)
        until(lambda: one().get("phase") == "Running", within_s=60, what="it runs", operator=operator)
        assert 1 == one()["attempts"]
        until(lambda: "ReanchorStarted" in events(), within_s=WITHIN_S, what="it is told", operator=operator)


def test_a_missing_permission_is_reported(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """With a permission too few the rest is done, the condition names what is missing, and there is no hot loop."""
    kubeconfig = restricted(apiserver, where, tmp_path, without={"networkpolicies": ["create", "patch"]})
    define(apiserver)
    operator = OperatorProcess(apiserver, where, tmp_path, "one", "--no-operator-nodes", "--operator-resync-s", "1")
    operator.kubeconfig = kubeconfig
    operator.start()
    try:
        condition = until_reason(apiserver, where, "ApplyForbidden", operator)
        before, seen = errors(operator, 403), looks(operator)
        until(lambda: looks(operator) >= seen + 3, within_s=WITHIN_S, what="more looks", operator=operator)

        assert "networkpolicies" in condition["message"]
        assert "Deployment/btc-infer" in children_of(apiserver, where)
        # Three writes are refused in a try: a loop without pauses would try at each reconcile.
        assert errors(operator, 403) - before < 3 * (looks(operator) - seen)
    finally:
        operator.end(signal.SIGKILL)


@pytest.mark.parametrize(("kind", "verbs"), [("pods", ["watch"]), ("jobs", ["list", "watch"])])
def test_a_kind_that_may_not_be_seen_is_reported(
    apiserver: ApiServer, where: str, tmp_path: Path, kind: str, verbs: list[str]
) -> None:
    """An operator that cannot see everything does not guess what it does not see: it says so, and is not ready."""
    operator = OperatorProcess(apiserver, where, tmp_path, "one", "--no-operator-nodes")
    operator.kubeconfig = restricted(apiserver, where, tmp_path, without={kind: verbs})
    operator.start()
    try:
        condition = until_reason(apiserver, where, "WatchRefused", operator)

        assert kind in condition["message"]
        assert kind in operator.said()
        assert [200, 503] == [operator.get(path)[0] for path in ("/health/live", "/health/ready")]
        assert operator.process is not None
        assert operator.process.poll() is None
    finally:
        operator.end(signal.SIGKILL)


def test_a_missing_secret_is_reported_and_found(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """The condition says how to make the Secret; once it is there the condition changes without any other change."""
    apiserver.kubectl("delete", "secret", "binance-api-key", "-n", where)
    with operating(apiserver, where, tmp_path) as operator:
        condition = until_reason(apiserver, where, "SecretMissing", operator)
        assert f"kubectl -n {where} create secret generic binance-api-key" in condition["message"]

        give_key(apiserver, where)

        until_mended(apiserver, where, "SecretMissing", operator)


def test_a_specification_of_another_version_is_reported(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """A specification that this version does not know is refused in the status, and its children are left alone."""
    with operating(apiserver, where, tmp_path, "one", "--operator-resync-s", "1") as operator:
        until(lambda: settled(apiserver, where), within_s=WITHIN_S, what="children", operator=operator)
        crd = "predictionpipelines.sheetanchor.dev"
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}"
        schema = apiserver.ask(path)
        fields = schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        fields["logLevel"]["enum"].append("trace")
        try:
            body = {"spec": {"versions": schema["spec"]["versions"]}}
            apiserver.ask(path, method="PATCH", body=body, content_type=MERGE)
            patch = {"spec": {"logLevel": "trace"}}

            def known() -> bool:
                try:
                    apiserver.ask(path_of(where), method="PATCH", body=patch, content_type=MERGE)
                except urllib.error.HTTPError:
                    return False
                return True

            until(known, within_s=WITHIN_S, what="the new value is served")
            condition = until_reason(apiserver, where, "SpecRefused", operator)
            before = children_of(apiserver, where)
            seen = looks(operator)
            until(lambda: looks(operator) >= seen + 2, within_s=WITHIN_S, what="more looks", operator=operator)

            assert "spec.logLevel = 'trace'" in condition["message"]
            events = apiserver.ask(f"/apis/events.k8s.io/v1/namespaces/{where}/events")["items"]
            assert [condition["message"]] == [one["note"] for one in events if one["reason"] == "SpecRefused"]
            failed = f'sheetanchor_pipeline_phase{{name="btc",namespace="{where}",phase="Failed"}}'
            assert 1.0 == operator.metrics()[failed]
            assert before == children_of(apiserver, where)
        finally:
            apiserver.kubectl("delete", "predictionpipeline", "btc", "-n", where)
            define(apiserver)


@pytest.fixture
def stoppable(tmp_path: Path) -> Iterator[ApiServer]:
    """A server that a test may stop."""
    with own_server(tmp_path / "server") as server:
        yield server


def test_an_api_server_that_was_away_is_taken_up_again(stoppable: ApiServer, tmp_path: Path) -> None:
    """After an outage the operator continues, or exits with 1 and continues after a restart; nothing else changes."""
    define(stoppable)
    stoppable.kubectl("create", "namespace", "away")
    give_key(stoppable, "away")
    apply_pipeline(stoppable, "away")
    with operating(stoppable, "away", tmp_path, "one") as one:
        until(lambda: settled(stoppable, "away"), within_s=WITHIN_S, what="children", operator=one)
        until(
            lambda: "phase" in (pipeline_of(stoppable, "away").get("status") or {}),
            within_s=WITHIN_S,
            what="a status",
            operator=one,
        )
        before = versions_of(stoppable, "away")

        restart(stoppable, away_s=1)
        assert one.process is not None
        if one.process.poll() is not None:
            # Longer than the Lease may go without renewal; a kubelet restarts it.
            assert 1 == one.process.returncode
            one.start()
        stoppable.kubectl("delete", "service", "btc-infer", "-n", "away")
        until(
            lambda: "Service/btc-infer" in children_of(stoppable, "away"),
            within_s=40,
            what="the operator acts again",
            operator=one,
        )

        after = versions_of(stoppable, "away")
        assert {"Service/btc-infer"} == {place for place, version in before.items() if after[place] != version}


def restart(server: ApiServer, *, away_s: float) -> None:
    """Stop the API server, not its store, and start it again a little later."""
    old = server.processes[1]
    old.kill()
    old.wait()
    time.sleep(away_s)
    with (server.folder / "kube-apiserver.log").open("ab") as log:
        again = subprocess.Popen(old.args, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    server.processes[1] = again
    server.wait(lambda: b"ok" == ready(server), within_s=60, what="the API server is back")


def ready(server: ApiServer) -> bytes:
    done = server.try_kubectl("get", "--raw", "/readyz")
    return done.stdout.strip().encode()
