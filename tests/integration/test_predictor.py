"""The chain of models with real ONNX files: who answers when the one in use cannot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from onnx_models import endless_model, model, promote, put
from sheetanchor.onnx_model import RUN_TIMEOUT_S
from sheetanchor.prediction import State
from sheetanchor.predictor import Predictor
from sheetanchor.registry import ModelRegistry

TREND = 0.0002
RECOVER_S = 0.6
TRAP = 0.5
"""The sum of the features of `STATE`."""


def state(ret_1s: str = "0.25", ret_5s: str = "0.25", incomplete: str = "") -> State:
    feat = {} if incomplete else {"ret_1s": ret_1s, "ret_5s": ret_5s}
    ob = {"best_bid": "99", "best_ask": "101"}
    now_us = 1_700_000_000_000_000
    return State(now_us, 1, True, "", incomplete, now_us, {"ob": ob, "tr_1s": {}, "tr_5s": {}, "feat": feat})


STATE = state()


@pytest.fixture
async def predictor(tmp_path: Path) -> AsyncIterator[Predictor]:
    """A predictor over an empty registry, not started."""
    made = Predictor(ModelRegistry(tmp_path))
    yield made
    await made.close()


async def test_the_model_in_use_answers(predictor: Predictor, tmp_path: Path) -> None:
    """Mode, name, return and confidence are the model's, and nothing is doubted."""
    promote(tmp_path, model(0.0005), residual_std=0.0005)
    await predictor.start()

    answer = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)

    assert ("model", ()) == (answer.mode, answer.doubts)
    assert (pytest.approx(0.0005), pytest.approx(0.6827, abs=1e-4)) == (answer.predicted_return, answer.confidence)
    assert [answer.model] == predictor.loaded


async def test_another_symbols_model_answers_but_is_doubted(predictor: Predictor, tmp_path: Path) -> None:
    """A model that was trained on other symbols degrades its predictions and says on which."""
    promote(tmp_path, model(), symbols=["ETHUSDT"])
    await predictor.start()

    answer = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)

    assert ("model", ["symbols: the model was trained on ETHUSDT"]) == (answer.mode, [str(d) for d in answer.doubts])


async def test_without_any_model_the_trend_answers(predictor: Predictor) -> None:
    """An empty registry is no reason to say nothing; without a trend either, nothing is said with confidence 0."""
    await predictor.start()

    line = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)
    nothing = await predictor.answer("BTCUSDT", STATE, None, RECOVER_S)

    assert ("linear_trend", TREND, 0.1) == (line.mode, line.predicted_return, line.confidence)
    assert ("none", 0.0, 0.0) == (nothing.mode, nothing.predicted_return, nothing.confidence)
    assert "there is no model in use" in str(line.doubts[0])
    assert ([], "linear_trend") == (predictor.loaded, predictor.mode)


async def test_the_first_sound_earlier_model_is_taken(predictor: Predictor, tmp_path: Path) -> None:
    """Current: unreadable; before it: fails its test; before that: sound. The third answers and is named."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, model(2e-5, infinite_at=0.0))
    bad = promote(tmp_path, model(1e-5)).current
    assert bad is not None
    (tmp_path / bad[0] / bad[1] / "model.onnx").write_bytes(b"")

    await predictor.start()
    answer = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)

    assert ("fallback", pytest.approx(3e-5)) == (answer.mode, answer.predicted_return)
    assert answer.own_degraded
    assert "sha256" in str(answer.doubts[0])


async def test_an_impossible_answer_moves_the_slot_to_the_model_before(predictor: Predictor, tmp_path: Path) -> None:
    """Infinity on real data: loaded again once, then passed over, all within the slot that met it."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, model(infinite_at=TRAP))
    await predictor.start()
    assert "model" == predictor.mode

    began = time.monotonic()
    answer = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)

    assert time.monotonic() - began < 1
    assert ("fallback", pytest.approx(3e-5)) == (answer.mode, answer.predicted_return)
    assert "expected a return of at most" in predictor.trouble


async def test_an_impossible_answer_with_nothing_before_it_leaves_the_trend(
    predictor: Predictor, tmp_path: Path
) -> None:
    """The only model fails twice: the line answers, in the same slot."""
    promote(tmp_path, model(infinite_at=TRAP))
    await predictor.start()

    answer = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)
    again = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)

    assert ["linear_trend"] * 2 == [answer.mode, again.mode]
    assert [] == predictor.loaded


async def test_a_model_that_hangs_costs_its_time_and_no_more(predictor: Predictor, tmp_path: Path) -> None:
    """A run that never ends is given up after its budget, told to end, and the model before it answers."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, endless_model(at=TRAP))
    await predictor.start()
    assert "model" == (await predictor.answer("BTCUSDT", state("0.1", "0.2"), TREND, RECOVER_S)).mode

    time_s = RECOVER_S + 2 * RUN_TIMEOUT_S  # it is loaded again once, and hangs again
    began = time.monotonic()
    answer = await predictor.answer("BTCUSDT", STATE, TREND, time_s)

    assert RUN_TIMEOUT_S <= time.monotonic() - began < time_s
    assert ("fallback", pytest.approx(3e-5)) == (answer.mode, answer.predicted_return)


async def test_hanging_models_do_not_stop_the_event_loop(predictor: Predictor, tmp_path: Path) -> None:
    """While a run hangs the loop turns, and other symbols get their answers."""
    promote(tmp_path, model(3e-5))
    promote(tmp_path, endless_model(at=TRAP))
    await predictor.start()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.005)
            turns += 1

    turning = asyncio.create_task(turn())
    answers = await asyncio.gather(*(predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S) for _ in range(3)))
    turning.cancel()

    assert turns >= 5
    assert {answer.mode for answer in answers} <= {"fallback", "linear_trend"}


async def test_a_missing_feature_is_told_and_the_model_stays(predictor: Predictor, tmp_path: Path) -> None:
    """The state's fault is not the model's: the trend answers for this slot, the model for the next."""
    promote(tmp_path, model(3e-5))
    await predictor.start()

    without = await predictor.answer("BTCUSDT", state(ret_1s="nan"), TREND, RECOVER_S)
    incomplete = await predictor.answer("BTCUSDT", state(incomplete="feat missing"), TREND, RECOVER_S)
    after = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)

    assert "features: feature feat.ret_1s: expected a finite number, found 'nan'" == str(without.doubts[0])
    assert ["linear_trend", "linear_trend", "model"] == [without.mode, incomplete.mode, after.mode]
    assert not incomplete.own_degraded  # no other replica could make more of such a state


async def test_a_promotion_is_taken_up(predictor: Predictor, tmp_path: Path) -> None:
    """The next look at the registry loads what is current now; a look without change loads nothing."""
    promote(tmp_path, model(1e-5))
    await predictor.start()
    before = predictor.loaded

    await predictor.refresh()
    assert before == predictor.loaded
    promote(tmp_path, model(2e-5))
    await predictor.refresh()

    assert before != predictor.loaded
    assert 2e-5 == pytest.approx((await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)).predicted_return)


async def test_a_promotion_that_cannot_be_used_changes_nothing_but_is_told(
    predictor: Predictor, tmp_path: Path
) -> None:
    """The last known good model goes on, undoubted; the trouble is there for health to show until it is mended."""
    promote(tmp_path, model(1e-5))
    await predictor.start()
    before = predictor.loaded
    promote(tmp_path, model(2e-5, infinite_at=0.0))

    await predictor.refresh()
    during = await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)
    trouble = predictor.trouble
    promote(tmp_path, model(3e-5))
    await predictor.refresh()

    assert (before, "model", ()) == ([during.model], during.mode, during.doubts)
    assert "expected a finite output" in trouble
    assert ("", pytest.approx(3e-5)) == (
        predictor.trouble,
        (await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)).predicted_return,
    )


async def test_a_model_that_appears_ends_the_trend(predictor: Predictor, tmp_path: Path) -> None:
    """A registry that was empty at the start is looked at again."""
    await predictor.start()
    assert "linear_trend" == predictor.mode

    promote(tmp_path, model(1e-5))
    await predictor.refresh()

    assert ("model", "") == (predictor.mode, predictor.trouble)


async def test_dry_runs_hurt_nobody(predictor: Predictor, tmp_path: Path) -> None:
    """Without a model, before the first read, and on a state without features: no error, the same answer after."""
    await predictor.warm(3, None)
    promote(tmp_path, model(1e-5))
    await predictor.start()

    await predictor.warm(3, None)
    await predictor.warm(3, state(incomplete="feat missing"))

    assert "model" == (await predictor.answer("BTCUSDT", STATE, TREND, RECOVER_S)).mode


async def test_a_registry_of_unpromoted_models_is_no_model_in_use(predictor: Predictor, tmp_path: Path) -> None:
    """A stored model that nobody promoted does not serve."""
    put(tmp_path, model(1e-5))

    await predictor.start()

    assert "linear_trend" == predictor.mode
