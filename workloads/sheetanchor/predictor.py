"""The chain of models: the one in use, the ones before it, a straight line, nothing.

A model that fails in a slot is replaced within the same slot where there is time: the registry's current model is
loaded again, else the models before it in their order. Whatever happens, there is an answer. The pointer is looked at
between the slots; a new model that cannot be used never replaces one that works.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from sheetanchor import metrics, onnx_model
from sheetanchor.errors import BadModel
from sheetanchor.onnx_model import ModelThread, OnnxModel
from sheetanchor.prediction import Answer, Doubt, Mode, State, confidence_of, without_model
from sheetanchor.registry import ModelRegistry
from sheetanchor.vector import FeatureMissing, extract

log = logging.getLogger(__name__)

RETRY_CURRENT_S: Final = 30.0
"""How often a current model that could not be used is tried again while something lesser serves."""

FAILURES_MAX: Final = 2
"""A model that fails is loaded again once; when it fails again it is passed over until the next retry."""

TRIES_MAX: Final = 6
"""Models tried in one slot; time usually ends the search earlier."""


class Predictor:
    """Holds the loaded model and answers with the best that there is.

    Args:
        registry: Where models come from.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._thread = ModelThread()
        self._loading = ModelThread()
        self._model: OnnxModel | None = None
        self._mode: Mode = "none"
        self._seen = b""
        self._tried_at = 0.0
        self._recovery: asyncio.Task[None] | None = None
        self._failures: dict[str, int] = {}
        self.trouble = "no model has been loaded yet"

    @property
    def mode(self) -> Mode:
        """`model`, `fallback`, or `linear_trend` when there is no model."""
        return "linear_trend" if self._model is None else self._mode

    @property
    def loaded(self) -> list[str]:
        """Names of the loaded models."""
        return [] if self._model is None else [self._model.version]

    @property
    def baseline_accuracy(self) -> float | None:
        """Directional accuracy that the loaded model reached in training."""
        return None if self._model is None else self._model.manifest.baseline_accuracy

    async def start(self) -> None:
        """Load the model in use, or walk the chain."""
        metrics.ALERTS.labels("MODEL_FAILURE")  # from zero: the first one is an increase
        await self._recover()

    async def close(self) -> None:
        """End what runs in the background."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        self._thread.close()
        self._loading.close()

    async def refresh(self) -> None:
        """Look whether the model in use has changed, and load it; to be called between slots."""
        if self._recovery is not None and not self._recovery.done():
            return
        seen = await asyncio.to_thread(self._registry.fingerprint)
        due = self.trouble != "" and time.monotonic() - self._tried_at >= RETRY_CURRENT_S
        if seen != self._seen or due:
            self._failures.clear()
            await self._recover()

    async def warm(self, count: int, state: State | None) -> None:
        """Run the model for nothing, so that the next run finds its code and data in the caches.

        Args:
            count: How often.
            state: What was read last; without it the input is zeros.
        """
        model = self._model
        for _ in range(count if model is not None else 0):
            assert model is not None
            try:
                vector = extract(model.manifest.features, {} if state is None else state.hashes)
            except FeatureMissing:
                vector = np.zeros(len(model.manifest.features), dtype=np.float32)
            try:
                await onnx_model.run(model, vector, self._thread)
            except BadModel:
                return  # the slot itself will find out and act

    async def answer(self, symbol: str, state: State, trend: float | None, recover_s: float) -> Answer:
        """Predict from a state.

        Args:
            symbol: Trading pair of the state.
            state: What was read.
            trend: Return by the linear trend; None if there is none.
            recover_s: Seconds that may go into finding another model when the present one fails.
        """
        deadline = time.monotonic() + recover_s
        for _ in range(TRIES_MAX):
            if self._model is None:
                break
            answer = await self._try(self._model, symbol, state)
            if isinstance(answer, Answer):
                return answer
            if answer is not None:
                # Of an incomplete state no replica can make more: no reason to let another one go first.
                return without_model(trend, [] if state.incomplete else [answer])
            await self._recover_within(deadline - time.monotonic())
        return without_model(trend, [Doubt("model", self.trouble)])

    async def _try(self, model: OnnxModel, symbol: str, state: State) -> Answer | Doubt | None:
        """Run the model: its answer, what the state lacks for one, or None when it failed."""
        started = time.perf_counter()
        try:
            vector = extract(model.manifest.features, state.hashes)
        except FeatureMissing as error:
            return Doubt("features", str(error))
        features_done = time.perf_counter()
        try:
            value = await onnx_model.run(model, vector, self._thread)
        except BadModel as error:
            self._give_up(model, error)
            return None
        metrics.STAGE_DURATION.labels("features").observe(features_done - started)
        metrics.STAGE_DURATION.labels("model").observe(time.perf_counter() - features_done)
        confidence = confidence_of(value, model.manifest.residual_std)
        return Answer(self._mode, value, confidence, model.version, tuple(self._own_doubts(model, symbol)))

    def _own_doubts(self, model: OnnxModel, symbol: str) -> Sequence[Doubt]:
        doubts = []
        if symbol not in model.manifest.symbols:
            doubts.append(Doubt("symbols", f"the model was trained on {', '.join(model.manifest.symbols)}"))
        if self._mode == "fallback":
            doubts.append(Doubt("model", f"an earlier model serves: {self.trouble}"))
        return doubts

    def _give_up(self, model: OnnxModel, error: BadModel) -> None:
        if self._model is model:
            self._model = None
            self._failures[model.version] = self._failures.get(model.version, 0) + 1
            self.trouble = str(error)
            self._alert("inference", error)

    def _alert(self, step: str, error: BadModel) -> None:
        metrics.MODEL_FAILURES.labels(step).inc()
        metrics.ALERTS.labels("MODEL_FAILURE").inc()
        log.error("MODEL_FAILURE at %s: %s", step, error)

    async def _recover_within(self, timeout_s: float) -> None:
        """Let the recovery go on in the background if it takes longer than a slot can wait."""
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._recover())
        await asyncio.wait([self._recovery], timeout=max(0.0, timeout_s))

    async def _recover(self) -> None:
        """Walk the chain; a model that works stays until a better one has been loaded."""
        await self._load_current()
        if self._model is None:
            await self._load_fallback()

    async def _load_current(self) -> None:
        self._tried_at = time.monotonic()
        self._seen = await asyncio.to_thread(self._registry.fingerprint)
        try:
            record = await self._registry.get_current_model()
            self._check_failures(record.version)
            model = await onnx_model.load(record, self._loading)
        except BadModel as error:
            self.trouble = str(error)
            self._alert("reload", error)
            return
        self._use(model, "model")
        self.trouble = ""

    def _check_failures(self, version: str) -> None:
        if self._failures.get(version, 0) >= FAILURES_MAX:
            raise BadModel(f"{version} has failed {self._failures[version]} times: {self.trouble}"[:300])

    async def _load_fallback(self) -> None:
        for record in await self._registry.get_fallback_models():
            try:
                self._check_failures(record.version)
                model = await onnx_model.load(record, self._loading)
            except BadModel as error:
                self._alert("fallback", error)
                continue
            self._use(model, "fallback")
            return
        log.error("degraded service: no model can be used, predictions follow the linear trend")
        self._show("linear_trend", "")

    def _use(self, model: OnnxModel, mode: Mode) -> None:
        log.info("model %s in use (%s)", model.version, mode, extra={"model": model.version, "mode": mode})
        self._model, self._mode = model, mode
        self._show(mode, model.version)

    def _show(self, mode: str, version: str) -> None:
        metrics.MODEL_INFO.clear()
        metrics.MODEL_INFO.labels(version, mode).set(1)
