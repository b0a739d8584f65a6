"""The chain of models with real ONNX files: who answers when the one in use cannot."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from sheetanchor.infer.model_fallback import FallbackChains, ModelCache, ModelFallbackChain
from sheetanchor.infer.prediction import SlotState
from sheetanchor.ml.onnx_model import RUN_TIMEOUT_S
from sheetanchor.ml.registry import ModelRegistry
from sheetanchor.runtime import metrics
from support.onnx_models import endless_model, model, promote, put

TREND = 0.0002
RECOVER_S = 20.0
"""The time for another model: a failing one must not use up all of it."""

TRAP = 0.5
"""The sum of the features of `STATE`."""


def state(ret_1s: str = "0.25", ret_5s: str = "0.25", incomplete: str = "") -> SlotState:
    feat = {} if incomplete else {"ret_1s": ret_1s, "ret_5s": ret_5s}
    ob = {"best_bid": "99", "best_ask": "101"}
    now_us = 1_700_000_000_000_000
    return SlotState(now_us, 1, True, "", incomplete, now_us, {"ob": ob, "tr_1s": {}, "tr_5s": {}, "feat": feat})


STATE = state()


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[ModelFallbackChain]:
    """A symbol's chain over an empty registry, not started."""
    registry = ModelRegistry(tmp_path)
    made = ModelFallbackChain(registry, "BTCUSDT", ModelCache(registry))
    yield made
    await made.close()


async def test_the_model_in_use_answers(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """Mode, name, return and confidence are the model's, and the prediction is not degraded."""
    promote(tmp_path, model(0.0005), residual_std=0.0005)
    await chain.start()

    answer = await chain.answer(STATE, TREND, RECOVER_S)

    assert ("model", ()) == (answer.mode, answer.doubts)
    assert (pytest.approx(0.0005), pytest.approx(0.6827, abs=1e-4)) == (answer.predicted_return, answer.confidence)
    assert [answer.model] == chain.loaded


async def test_another_symbols_model_answers_but_is_doubted(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """A model that was trained on other symbols degrades its predictions and says on which."""
    promote(tmp_path, model(), symbols=["ETHUSDT"])
    await chain.start()

    answer = await chain.answer(STATE, TREND, RECOVER_S)

    assert ("model", ["symbols: the model was trained on ETHUSDT"]) == (answer.mode, [str(d) for d in answer.doubts])


async def test_without_any_model_the_trend_answers(chain: ModelFallbackChain) -> None:
    """With an empty registry the trend predicts; without a trend either, the answer is 0 with confidence 0."""
    await chain.start()

    line = await chain.answer(STATE, TREND, RECOVER_S)
    nothing = await chain.answer(STATE, None, RECOVER_S)

    assert ("linear_trend", TREND, 0.1) == (line.mode, line.predicted_return, line.confidence)
    assert ("none", 0.0, 0.0) == (nothing.mode, nothing.predicted_return, nothing.confidence)
    assert "no model is in use" in str(line.doubts[0])
    assert ([], "linear_trend") == (chain.loaded, chain.mode)


async def test_the_first_sound_earlier_model_is_taken(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """Current: unreadable; before it: fails its test; before that: sound. The third answers and is named."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, model(2e-5, infinite_at=0.0))
    bad = promote(tmp_path, model(1e-5)).current
    assert bad is not None
    (tmp_path / bad[0] / bad[1] / "model.onnx").write_bytes(b"")

    await chain.start()
    answer = await chain.answer(STATE, TREND, RECOVER_S)

    assert ("fallback", pytest.approx(3e-5)) == (answer.mode, answer.predicted_return)
    assert answer.own_degraded
    assert "sha256" in str(answer.doubts[0])


async def test_an_impossible_answer_moves_the_slot_to_the_model_before(
    chain: ModelFallbackChain, tmp_path: Path
) -> None:
    """Infinity on real data: loaded again once, then passed over, all within the slot that met it."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, model(infinite_at=TRAP))
    await chain.start()
    assert "model" == chain.mode

    answer = await chain.answer(STATE, TREND, RECOVER_S)

    assert ("fallback", pytest.approx(3e-5)) == (answer.mode, answer.predicted_return)
    assert "expected a return of at most" in chain.problem


async def test_an_impossible_answer_with_nothing_before_it_leaves_the_trend(
    chain: ModelFallbackChain, tmp_path: Path
) -> None:
    """The only model fails twice: the line answers, in the same slot."""
    promote(tmp_path, model(infinite_at=TRAP))
    await chain.start()

    answer = await chain.answer(STATE, TREND, RECOVER_S)
    again = await chain.answer(STATE, TREND, RECOVER_S)

    assert ["linear_trend"] * 2 == [answer.mode, again.mode]
    assert [] == chain.loaded


async def test_a_model_that_hangs_costs_its_time_and_no_more(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """A run that never ends is aborted after its budget, and the model before it answers."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, endless_model(at=TRAP))
    await chain.start()
    assert "model" == (await chain.answer(state("0.1", "0.2"), TREND, RECOVER_S)).mode

    began = time.monotonic()
    answer = await chain.answer(STATE, TREND, RECOVER_S)

    assert RUN_TIMEOUT_S <= time.monotonic() - began < RECOVER_S  # endless without the budget of a run
    assert ("fallback", pytest.approx(3e-5)) == (answer.mode, answer.predicted_return)


async def test_hanging_models_do_not_stop_the_event_loop(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """While a run hangs the loop turns, and other symbols get their answers."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, endless_model(at=TRAP))
    await chain.start()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.005)
            turns += 1

    turning = asyncio.create_task(turn())
    answers = await asyncio.gather(*(chain.answer(STATE, TREND, RECOVER_S) for _ in range(3)))
    turning.cancel()

    assert turns >= 5
    assert {answer.mode for answer in answers} <= {"fallback", "linear_trend"}


async def test_a_missing_feature_is_reported_and_the_model_stays(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """The state's fault is not the model's: the trend answers for this slot, the model for the next."""
    promote(tmp_path, model(3e-5))
    await chain.start()

    without = await chain.answer(state(ret_1s="nan"), TREND, RECOVER_S)
    incomplete = await chain.answer(state(incomplete="feat missing"), TREND, RECOVER_S)
    after = await chain.answer(STATE, TREND, RECOVER_S)

    assert "features: feature feat.ret_1s: expected a finite number, found 'nan'" == str(without.doubts[0])
    assert ["linear_trend", "linear_trend", "model"] == [without.mode, incomplete.mode, after.mode]
    assert not incomplete.own_degraded  # no other replica could make more of such a state


async def test_a_promotion_is_taken_up(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """The next poll of the registry loads the current model; a poll without change loads nothing."""
    promote(tmp_path, model(1e-5))
    await chain.start()
    before = chain.loaded

    await chain.refresh()
    assert before == chain.loaded
    promote(tmp_path, model(2e-5))
    await chain.refresh()

    assert before != chain.loaded
    assert 2e-5 == pytest.approx((await chain.answer(STATE, TREND, RECOVER_S)).predicted_return)


async def test_a_promotion_that_cannot_be_used_changes_nothing_but_is_reported(
    chain: ModelFallbackChain, tmp_path: Path
) -> None:
    """The last known good model continues, not degraded; health shows the problem until it is fixed."""
    promote(tmp_path, model(1e-5))
    await chain.start()
    before = chain.loaded
    promote(tmp_path, model(2e-5, infinite_at=0.0))

    await chain.refresh()
    during = await chain.answer(STATE, TREND, RECOVER_S)
    problem = chain.problem
    promote(tmp_path, model(3e-5))
    await chain.refresh()

    assert (before, "model", ()) == ([during.model], during.mode, during.doubts)
    assert "expected a finite output" in problem
    assert ("", pytest.approx(3e-5)) == (
        chain.problem,
        (await chain.answer(STATE, TREND, RECOVER_S)).predicted_return,
    )


async def test_a_model_that_appears_ends_the_trend(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """A registry that was empty at the start is looked at again."""
    await chain.start()
    assert "linear_trend" == chain.mode

    promote(tmp_path, model(1e-5))
    await chain.refresh()

    assert ("model", "") == (chain.mode, chain.problem)


async def test_dry_runs_hurt_nobody(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """Without a model, before the first read, and on a state without features: no error, the same answer after."""
    await chain.warm(3, None)
    promote(tmp_path, model(1e-5))
    await chain.start()

    await chain.warm(3, None)
    await chain.warm(3, state(incomplete="feat missing"))

    assert "model" == (await chain.answer(STATE, TREND, RECOVER_S)).mode


async def test_a_registry_of_unpromoted_models_is_no_model_in_use(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """A stored model that was not promoted does not serve."""
    put(tmp_path, model(1e-5))

    await chain.start()

    assert "linear_trend" == chain.mode


async def test_a_reader_gets_model_and_mode_that_belong_together(chain: ModelFallbackChain, tmp_path: Path) -> None:
    """A load that ends while the old model runs does not put its name on the old one's answer, nor the other way."""
    promote(tmp_path, model(1e-5))
    await chain.start()
    [old] = chain.loaded
    promote(tmp_path, model(2e-5))
    bad = ModelRegistry(tmp_path).in_use()
    (tmp_path / bad[0] / bad[1] / "model.onnx").write_bytes(b"")
    chain._serving = None  # as after a failure: the walk that follows finds the earlier model only
    await chain.refresh()
    assert ("fallback", [old]) == (chain.mode, chain.loaded)
    promote(tmp_path, model(3e-5))

    asked = [asyncio.create_task(chain.answer(STATE, TREND, RECOVER_S)) for _ in range(20)]
    await chain.refresh()
    answers = [await task for task in asked] + [await chain.answer(STATE, TREND, RECOVER_S)]

    modes = {(answer.mode, answer.model == old, bool(answer.doubts)) for answer in answers}
    assert modes <= {("fallback", True, True), ("model", False, False)}
    assert "model" == answers[-1].mode


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[FallbackChains]:
    """The chains of two symbols over an empty registry, not started."""
    made = FallbackChains(ModelRegistry(tmp_path), ["BTCUSDT", "ETHUSDT"])
    yield made
    await made.close()


POISON = {
    "infinity": lambda: model(infinite_at=TRAP),
    "no answer": lambda: endless_model(at=TRAP),
}


@pytest.mark.parametrize("kind", POISON)
async def test_what_a_model_does_to_one_symbol_is_nothing_to_another(
    two: FallbackChains, tmp_path: Path, kind: str
) -> None:
    """One symbol's state makes the model fail for good, the other's does not: its answers go on, undoubted."""
    promote(tmp_path, model(3e-5), symbols=["BTCUSDT", "ETHUSDT"])
    promote(tmp_path, POISON[kind](), symbols=["BTCUSDT", "ETHUSDT"])
    await two.start()
    hit, other = two.chains.values()
    [current] = other.loaded
    answers = []

    falling = asyncio.create_task(hit.answer(STATE, TREND, RECOVER_S))
    while not falling.done() or len(answers) < 5:
        answers.append(await other.answer(state("0.1", "0.2"), TREND, RECOVER_S))
        await asyncio.sleep(0.01)

    assert "fallback" == (await falling).mode
    assert {("model", current, ())} == {(answer.mode, answer.model, answer.doubts) for answer in answers}
    assert ("", "model") == (other.problem, other.mode)


async def test_symbols_share_a_loaded_model_until_it_fails(two: FallbackChains, tmp_path: Path) -> None:
    """It is in memory once; one symbol's reload gives that one another, and an edited manifest counts."""
    promote(tmp_path, model(1e-5), symbols=["BTCUSDT"])
    await two.start()
    first, second = (chain._serving.model for chain in two.chains.values() if chain._serving)
    assert first is second

    path = first._path.parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "residual_std": 0.25}))
    again = two.chains["ETHUSDT"]
    again.problem, again._tried_at = "somebody has edited a manifest", 0.0
    await again.refresh()

    assert again._serving is not None
    assert (0.25, "") == (again._serving.model.manifest.residual_std, again.problem)
    assert first is two.chains["BTCUSDT"]._serving.model  # type: ignore[union-attr]  # looked at above


async def test_failures_are_counted_by_symbol(two: FallbackChains, tmp_path: Path) -> None:
    """Metrics show whose model failed at which step, which model serves in which mode, and the time of each stage."""
    before = {
        step: _sample("sheetanchor_model_failures_total", symbol="BTCUSDT", step=step)
        for step in ("inference", "reload")
    }
    alerts = _sample("sheetanchor_alerts_total", code="MODEL_FAILURE")
    others = _failures("ETHUSDT", "inference")
    runs = _sample("sheetanchor_inference_stage_seconds_count", stage="model")
    promote(tmp_path, model(3e-5))
    promote(tmp_path, model(infinite_at=TRAP))
    await two.start()
    hit, other = two.chains.values()

    await hit.answer(STATE, TREND, RECOVER_S)
    await other.answer(state("0.1", "0.2"), TREND, RECOVER_S)

    after = {step: _failures("BTCUSDT", step) for step in before}
    assert {"inference": 2, "reload": 1} == {step: after[step] - before[step] for step in before}
    assert 3 == _sample("sheetanchor_alerts_total", code="MODEL_FAILURE") - alerts
    assert 2 == _sample("sheetanchor_inference_stage_seconds_count", stage="model") - runs
    assert 0 == _failures("ETHUSDT", "inference") - others
    shown = {(chain.symbol, chain.loaded[0], chain.mode) for chain in two.chains.values()}
    assert shown == {
        (one.labels["symbol"], one.labels["model"], one.labels["mode"])
        for family in metrics.MODEL_INFO.collect()
        for one in family.samples
        if one.labels["symbol"] in two.chains
    }
    assert {"fallback", "model"} == {mode for _, _, mode in shown}


def _failures(symbol: str, step: str) -> float:
    return _sample("sheetanchor_model_failures_total", symbol=symbol, step=step)


def _sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0
