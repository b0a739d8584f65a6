"""One namespace cannot use up the operator's memory: any user may label an object of a megabyte."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.apiserver import ApiServer, own_server
from support.operator_parts import define
from support.operator_process import OperatorProcess, apply_pipeline, children_of, operating, settled, until

MEGABYTE = 2**20
MANY = 500
GROWTH_MAX = 64 * MEGABYTE
"""Names and versions of five hundred objects are far below one megabyte; the rest is the allocator's."""

pytestmark = pytest.mark.timeout(420)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ApiServer]:
    """A server of its own, which holds what is written here in memory too."""
    with own_server(tmp_path / "server") as server:
        yield server


def label(server: ApiServer, number: int, pipeline: str) -> None:
    """Make a ConfigMap of nearly a megabyte that says it is a pipeline's."""
    labels = {"sheetanchor.dev/pipeline": pipeline, "app.kubernetes.io/managed-by": "sheetanchor-operator"}
    metadata = {"name": f"{pipeline}-{number}", "labels": labels}
    body = {"metadata": metadata, "data": {"x": "x" * (MEGABYTE - 10_000)}}
    server.ask("/api/v1/namespaces/markets/configmaps", method="POST", body=body)


def peak(operator: OperatorProcess) -> int:
    """Give the most memory that the process has had, in bytes."""
    assert operator.process is not None
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_what_others_label_costs_no_memory(own: ApiServer, tmp_path: Path) -> None:
    """With 500 labelled ConfigMaps of a megabyte, of this pipeline and of none, memory stays, also at a new start."""
    define(own)
    own.kubectl("create", "namespace", "markets")
    apply_pipeline(own, "markets")
    with operating(own, "markets", tmp_path, "one", "--no-operator-nodes") as operator:
        until(lambda: settled(own, "markets"), within_s=40, what="children", operator=operator)
        before = peak(operator)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: label(own, number, ("btc", "nobody")[number % 2]), range(MANY)))
        own.kubectl("delete", "service", "btc-infer", "-n", "markets")
        until(lambda: "Service/btc-infer" in children_of(own, "markets"), within_s=40, what="acts", operator=operator)
        assert peak(operator) - before < GROWTH_MAX

        operator.end()
        operator.start()
        until(lambda: operator.leads, within_s=40, what="leads again", operator=operator)
        own.kubectl("delete", "service", "btc-infer", "-n", "markets")
        until(lambda: "Service/btc-infer" in children_of(own, "markets"), within_s=40, what="acts", operator=operator)
        assert peak(operator) - before < GROWTH_MAX
