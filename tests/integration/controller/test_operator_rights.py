"""Each right that the chart grants, taken away separately: the rest is done, and the missing right is reported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sheetanchor_operator import metrics
from sheetanchor_operator.kube.api_client import Cluster
from support.apiserver import ApiServer
from support.operator_looks import Looker, connected, pipeline_in
from support.operator_parts import token_of
from support.operator_process import apply_pipeline, children_of, condition_of, pipeline_of
from support.rights import give_rights, rules

SEEN_BY_WATCHES = {"list", "watch"}
"""These are tried in test_operator_places.py."""

VERBS = {
    resource: tuple(verb for rule in rules() if resource in rule["resources"] for verb in rule["verbs"])
    for resource in sorted({resource for rule in rules() for resource in rule["resources"]})
}
UNTOLD = {"predictionpipelines/status", "events"}
"""Without the right to write a status or an Event, only the log and metrics can report that it is missing."""


@pytest.fixture
async def looker(apiserver: ApiServer, where: str, tmp_path: Path) -> AsyncIterator[Looker]:
    """An operator with the account that a test gives rights to."""
    give_rights(apiserver, where, account_of=where)
    path = tmp_path / "restricted"
    path.write_text(apiserver.kubeconfig_text(token_of(apiserver, where, "operator")))
    async with connected(path, Cluster) as cluster:
        yield Looker(apiserver, cluster, where)


def forbidden() -> float:
    return float(metrics.API_ERRORS.labels("403")._value.get())


@pytest.mark.parametrize("resource", VERBS)
async def test_a_right_that_is_missing_costs_what_it_is_for(
    apiserver: ApiServer, where: str, looker: Looker, resource: str
) -> None:
    """A pipeline is made, changed and reduced: what is refused is in its status, and the rest is done."""
    missing = tuple(verb for verb in VERBS[resource] if verb not in SEEN_BY_WATCHES)
    give_rights(apiserver, where, account_of=where, without={resource: missing})
    pipeline_in(apiserver, where)
    looker.reconciler.installation = f"{where}/one"
    before = forbidden()
    await looker.look(2)
    reported = [condition_of(apiserver, where, "Ready")]
    apply_pipeline(apiserver, where, logLevel="debug", networkPolicy={"enabled": False})
    wish = {"metadata": {"annotations": {"sheetanchor.dev/reanchor": "once"}}}
    path = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/predictionpipelines/btc"
    apiserver.ask(path, method="PATCH", body=wish, content_type="application/merge-patch+json")
    await looker.look(2)

    kinds = {name.partition("/")[0] for name in children_of(apiserver, where)}
    assert "PodDisruptionBudget" in kinds or resource == "poddisruptionbudgets"
    if forbidden() > before and resource not in UNTOLD:
        reported.append(condition_of(apiserver, where, "Ready"))
        words = [one["message"] for one in reported if one.get("reason") == "ApplyForbidden"]
        assert words, reported
        assert all("give the operator this permission" in one for one in words)

    give_rights(apiserver, where, account_of=where)
    looker.try_again()
    await looker.look(2)
    assert len(children_of(apiserver, where)) >= 20
    assert "ApplyForbidden" != condition_of(apiserver, where, "Ready")["reason"]
    assert f"{where}/one" == pipeline_of(apiserver, where)["status"]["operator"]["name"]
