"""What `make bench-check` measures is what has a budget; how fast it is here does not matter."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from types import ModuleType

import pytest

from support.budgets import outcomes, read_budgets
from support.repository import ROOT

FOLDER = ROOT / "tests" / "performance"


@pytest.fixture
def bench_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("bench_check", FOLDER / "bench_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_check", module)
    spec.loader.exec_module(module)
    return module


def test_every_budget_is_measured(bench_check: ModuleType) -> None:
    """With a real server and the recording, though with a few calls only."""
    ratios = {
        **bench_check.decoder_ratios(runs=1),
        **bench_check.with_server(partial(bench_check.redis_ratios, calls=20)),
    }

    assert all(one.ratio > 0 for one in outcomes(read_budgets(FOLDER / "budgets.toml"), [ratios]))
