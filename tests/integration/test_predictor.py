"""The chain of models, run by the real runtime on tiny models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference_parts import RETURN, constant_model, hanging_model, hashes, infinite_model, promoted
from sheetanchor.prediction import Answer, State
from sheetanchor.predictor import Predictor
from sheetanchor.registry import ModelRegistry

SOUND = State(10_000_000, 1, True, "", "", 9_900_000, hashes())
TREND = 0.0002


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(tmp_path / "models")


@pytest.fixture
async def predictor(registry: ModelRegistry) -> AsyncIterator[Predictor]:
    made = Predictor(registry)
    yield made
    await made.close()


async def _answer(predictor: Predictor, state: State = SOUND, symbol: str = "BTCUSDT") -> Answer:
    return await predictor.answer(symbol, state, TREND, 5.0)


async def test_the_model_in_use_answers(registry: ModelRegistry, predictor: Predictor) -> None:
    """A sound model's output is the predicted return, without any doubt."""
    made = promoted(registry, constant_model())
    await predictor.start()

    answer = await _answer(predictor)

    assert ("model", f"test@{made.sha256[:8]}", ()) == (answer.mode, answer.model, answer.doubts)
    assert pytest.approx(RETURN) == answer.predicted_return
    assert 0 < answer.confidence < 1


async def test_without_any_model_the_trend_answers(predictor: Predictor) -> None:
    """An empty registry gives the linear trend with a confidence of 0.1, and says that it is degraded."""
    await predictor.start()

    answer = await _answer(predictor)

    assert ("linear_trend", TREND, 0.1) == (answer.mode, answer.predicted_return, answer.confidence)
    assert ["model"] == [doubt.kind for doubt in answer.doubts]
    assert [] == predictor.loaded


async def test_without_model_and_trend_the_confidence_is_zero(predictor: Predictor) -> None:
    """The end of the chain is a flat prediction that claims nothing."""
    await predictor.start()

    answer = await predictor.answer("BTCUSDT", SOUND, None, 1.0)

    assert ("none", 0.0, 0.0) == (answer.mode, answer.predicted_return, answer.confidence)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        pytest.param(infinite_model(), "at most", id="infinite output"),
        pytest.param(hanging_model(), "did not answer within", id="hangs"),
        pytest.param(constant_model(0.5), "at most", id="a return of a half"),
    ],
)
async def test_a_model_that_fails_in_a_slot_is_replaced_within_it(
    registry: ModelRegistry, predictor: Predictor, broken: bytes, told: str
) -> None:
    """The model before it answers the same slot; the reason names what the failed one did."""
    earlier = promoted(registry, constant_model())
    promoted(registry, broken, "broken")
    await predictor.start()
    assert ["broken"] == [version.partition("@")[0] for version in predictor.loaded]

    answer = await _answer(predictor)

    assert ("fallback", f"test@{earlier.sha256[:8]}") == (answer.mode, answer.model)
    assert told in str(answer.doubts[0])


async def test_a_hanging_model_does_not_hold_up_a_slot(registry: ModelRegistry, predictor: Predictor) -> None:
    """With nothing to fall back on, the trend answers well before the slot's end, again and again."""
    promoted(registry, hanging_model())
    await predictor.start()

    started = time.monotonic()
    modes = [(await predictor.answer("BTCUSDT", SOUND, TREND, 0.3)).mode for _ in range(6)]

    assert ["linear_trend"] * 6 == modes
    assert time.monotonic() - started < 6 * 2.0


@pytest.mark.parametrize(
    ("onnx", "told"),
    [
        pytest.param(constant_model(width=3), "shape [batch, 2]", id="input of another width"),
        pytest.param(constant_model(outputs=2), "shape [batch, 1]", id="two outputs"),
        pytest.param(b"no model at all", "cannot be loaded", id="no ONNX"),
    ],
)
async def test_a_model_that_cannot_be_used_never_replaces_one_that_works(
    registry: ModelRegistry, predictor: Predictor, onnx: bytes, told: str
) -> None:
    """A promotion of a wrong file is seen, named and not taken over."""
    promoted(registry, constant_model())
    await predictor.start()
    before = predictor.loaded

    promoted(registry, onnx, "wrong")
    await predictor.refresh()

    assert before == predictor.loaded
    assert told in predictor.trouble
    assert "model" == (await _answer(predictor)).mode


async def test_a_damaged_file_is_refused_at_the_start(registry: ModelRegistry, predictor: Predictor) -> None:
    """A model whose bytes are not those of its name is passed over for the one before it."""
    earlier = promoted(registry, constant_model())
    later = promoted(registry, constant_model(0.001), "later")
    path = registry.root / "later" / later.sha256 / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")

    await predictor.start()

    assert [f"test@{earlier.sha256[:8]}"] == predictor.loaded
    assert "sha256" in predictor.trouble
    assert "fallback" == (await _answer(predictor)).mode


async def test_a_promotion_is_taken_over_between_slots(registry: ModelRegistry, predictor: Predictor) -> None:
    """A change of the pointer is found by the next look at the registry."""
    promoted(registry, constant_model())
    await predictor.start()

    later = promoted(registry, constant_model(-0.001), "later")
    await predictor.refresh()
    answer = await _answer(predictor)

    assert ("model", f"later@{later.sha256[:8]}") == (answer.mode, answer.model)
    assert pytest.approx(-0.001) == answer.predicted_return


async def test_a_model_of_another_symbol_answers_with_a_doubt(registry: ModelRegistry, predictor: Predictor) -> None:
    """Trained on BTCUSDT, asked about ETHUSDT: an answer, but a degraded one."""
    promoted(registry, constant_model())
    await predictor.start()

    answer = await _answer(predictor, symbol="ETHUSDT")

    assert ("model", ["symbols"]) == (answer.mode, [doubt.kind for doubt in answer.doubts])


async def test_a_missing_feature_is_a_doubt_only_in_a_complete_state(
    registry: ModelRegistry, predictor: Predictor
) -> None:
    """What an incomplete state lacks is no fault of the replica, which then need not wait for others."""
    promoted(registry, constant_model())
    await predictor.start()
    lacking = {**hashes(), "feat": {}}

    complete = await _answer(predictor, State(10_000_000, 1, True, "", "", 9_900_000, lacking))
    incomplete = await _answer(predictor, State(10_000_000, 1, True, "", "feat", 9_900_000, lacking))

    assert ("linear_trend", "linear_trend") == (complete.mode, incomplete.mode)
    assert ["features"] == [doubt.kind for doubt in complete.doubts]
    assert () == incomplete.doubts
