"""An existing cluster on which something of ours is running is left alone by the cluster tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.bed import product
from support.apiserver import ApiServer, own_server
from support.operator_parts import define
from support.operator_process import apply_pipeline

# The shared server is used for being skipped where no server can be built.
pytestmark = pytest.mark.usefixtures("apiserver")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster that the tests have not created."""
    with own_server(tmp_path / "server") as server:
        monkeypatch.setenv("SHEETANCHOR_TEST_CLUSTER", str(server.kubeconfig))
        yield server


def test_a_cluster_with_a_pipeline_is_left_alone(given: ApiServer) -> None:
    """The tests' operator would take hold of it."""
    assert ("", False) == (product.reason_to_spare(), product.defined())
    define(given)
    assert ("", True) == (product.reason_to_spare(), product.defined())

    apply_pipeline(given, "default")
    assert "there are PredictionPipelines (predictionpipeline.sheetanchor.dev/btc), and" in product.reason_to_spare()


def test_a_cluster_with_our_release_is_left_alone(given: ApiServer) -> None:
    """The tests would bring their own image there, and remove it all in the end."""
    space = ["--namespace", product.NAMESPACE]
    product.helm("install", product.RELEASE, product.CHART, *space, "--create-namespace")
    told = product.reason_to_spare()
    product.helm("uninstall", product.RELEASE, *space)

    assert told.startswith("the release sheetanchor is installed in sheetanchor-system there")
    assert "" == product.reason_to_spare()
