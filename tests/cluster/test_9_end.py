"""The end: an upgraded chart changes no pipeline, a deleted pipeline and an uninstalled chart leave nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from support.cluster_parts import Running, reading, ready

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

EVERYTHING = (
    "deployment,statefulset,daemonset,replicaset,pod,job,cronjob,service,endpointslice,configmap,secret,serviceaccount,role,rolebinding,"
    "poddisruptionbudget,networkpolicy,persistentvolumeclaim,reanchors.sheetanchor.dev,predictionpipelines.sheetanchor.dev"
)


def left(btc: Running) -> set[str]:
    """What the namespace holds that is neither the cluster's own nor the recorded market's."""
    names = btc.kubectl("get", EVERYTHING, "-o", "name").split()
    return {
        name
        for name in names
        if not name.endswith(("kube-root-ca.crt", "/default", "/my-model")) and "exchange" not in name
    }


def test_the_chart_tests_itself(installed: Any, btc: Running) -> None:
    """`helm test` passes."""
    assert "Succeeded" in btc.cluster.helm("test", "sheetanchor", "-n", "sheetanchor-system", "--timeout", "120s")


def test_an_upgrade_costs_no_slot(installed: Any, btc: Running) -> None:
    """`helm upgrade` with other values rolls the operator; the pipeline does not notice."""
    with reading(btc.api, btc.namespace, btc.name):
        installed.upgrade("--set", "logLevel=debug")
        btc.wait(
            lambda: sum(map(ready, btc.api.pods("sheetanchor-system", "app.kubernetes.io/name=sheetanchor"))) >= 2,
            90,
            "operators are ready",
        )
        btc.until_sound(60)


def test_a_deleted_pipeline_leaves_nothing(btc: Running) -> None:
    """`kubectl delete pp` while a re-anchor runs: every child goes, the Job too."""
    fault = btc.fault(kind="slow_rest", n=100, seconds=5)
    try:
        btc.kubectl("annotate", "pp", btc.name, "sheetanchor.dev/reanchor=last", "--overwrite")
        btc.wait(lambda: bool(json.loads(btc.kubectl("get", "job", "-o", "json"))["items"]), 30, "a Job runs")
        started_s = time.monotonic()

        btc.kubectl("delete", "pp", btc.name, "--wait=true", "--timeout=60s")
        deadline_s = time.monotonic() + 90
        while left(btc):
            assert time.monotonic() < deadline_s, left(btc)
            time.sleep(0.5)
    finally:
        btc.clear(fault)

    print(f"nothing left after {time.monotonic() - started_s:.0f} s")


def test_an_uninstalled_chart_leaves_nothing(installed: Any, btc: Running) -> None:
    """`helm uninstall` removes operator and rules of access; what it keeps it says."""
    told = btc.cluster.helm("uninstall", "sheetanchor", "-n", "sheetanchor-system", "--wait", "--timeout", "90s")

    found = btc.cluster.kubectl(
        "-n",
        "sheetanchor-system",
        "get",
        "deployment,service,configmap,serviceaccount,poddisruptionbudget,role,rolebinding",
        "-o",
        "name",
    ).split()
    assert [] == [name for name in found if not name.endswith(("kube-root-ca.crt", "/default"))], told
    cluster_wide = btc.cluster.kubectl("get", "clusterrole,clusterrolebinding", "-o", "name").split()
    assert [] == [name for name in cluster_wide if "sheetanchor" in name]
