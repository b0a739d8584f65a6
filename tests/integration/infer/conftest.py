"""Models of tests run within their time on a busy machine too."""

from __future__ import annotations

import pytest

from sheetanchor.ml import onnx_model


@pytest.fixture(autouse=True)
def _longer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run take longer than a replica does, so that only a model without an end has none."""
    monkeypatch.setattr(onnx_model, "RUN_TIMEOUT_S", 2.0)
