"""Models and Redis answer tests within their time on a busy machine too."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from sheetanchor.infer import slot_loop
from sheetanchor.ml import onnx_model
from support.patience import PATIENCE_S, awake_timeout


@pytest.fixture(autouse=True)
def _longer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run take longer than a replica does, not counting where all stands still: only one without an end fails."""
    monkeypatch.setattr(onnx_model, "RUN_TIMEOUT_S", 2.0)
    monkeypatch.setattr(onnx_model, "asyncio", SimpleNamespace(**{**vars(asyncio), "timeout": awake_timeout}))


@pytest.fixture(autouse=True)
def _longer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Redis take longer: no test of a loop in this process is about a server that does not answer."""
    monkeypatch.setattr(slot_loop, "CALL_TIMEOUT_S", PATIENCE_S)
