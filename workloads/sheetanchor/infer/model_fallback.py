"""The fallback chain of models: the current one, its predecessors, a linear trend, no prediction.

A model that fails in a slot is replaced within the same slot where there is time: the registry's current model is
loaded again, else its predecessors in their order. There is always an answer. The registry's pointer is polled between
the slots; a new model that cannot be used never replaces one that works.

Each symbol has a chain of its own: its model, its count of failures and its thread. A model that fails or hangs on the
state of one symbol does not affect another. Only the loaded model itself is shared, which no run can change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import numpy as np

from sheetanchor.errors import BadModel
from sheetanchor.infer.prediction import Doubt, Mode, ModelAnswer, SlotState, confidence_of, without_model
from sheetanchor.ml import onnx_model
from sheetanchor.ml.feature_vector import FeatureMissing, Fields, extract
from sheetanchor.ml.onnx_model import ModelThread, OnnxModel
from sheetanchor.ml.registry import ModelRegistry, version_of
from sheetanchor.runtime import metrics

log = logging.getLogger(__name__)

RETRY_CURRENT_S: Final = 30.0
"""How often a current model that could not be used is tried again while a fallback serves."""

FAILURES_MAX: Final = 2
"""A model that fails is loaded again once; after the next failure it is skipped until the next retry."""

TRIES_MAX: Final = 6
"""Models tried in one slot; time usually ends the search earlier."""

_FEATURES_DURATION: Final = metrics.STAGE_DURATION.labels("features")
_MODEL_DURATION: Final = metrics.STAGE_DURATION.labels("model")

ModelKey = tuple[str, str]
"""Name and SHA-256 of a model."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A loaded model and the mode that it serves in; the two change together."""

    model: OnnxModel
    mode: Mode


class ModelCache:
    """Loads models; callers that ask for the same one share it while they hold it."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._loaded: WeakValueDictionary[ModelKey, OnnxModel] = WeakValueDictionary()
        self._loading: dict[ModelKey, asyncio.Task[OnnxModel]] = {}

    async def load(self, entry: ModelKey, thread: ModelThread) -> OnnxModel:
        """Give a model that has passed its test.

        Args:
            entry: The model.
            thread: Thread to load it in, unless it is being loaded already.

        Raises:
            BadModel: If it cannot be used.
        """
        task = self._loading.get(entry)
        if task is None:
            task = self._loading[entry] = asyncio.create_task(self._load(entry, thread))
            task.add_done_callback(lambda _: self._loading.pop(entry, None))
        # A caller that stops waiting must not cancel the load for the others.
        return await asyncio.shield(task)

    async def _load(self, entry: ModelKey, thread: ModelThread) -> OnnxModel:
        record = await asyncio.to_thread(self._registry.record, *entry)
        known = self._loaded.get(entry)
        # The hash covers the model, not its manifest.
        if known is not None and known.manifest == record.manifest:
            return known
        model = await onnx_model.load(record, thread)
        self._loaded[entry] = model
        return model

    def forget(self, model: OnnxModel) -> None:
        """Drop a model, so that it is loaded again the next time."""
        entry = (model.manifest.name, model.manifest.sha256)
        if self._loaded.get(entry) is model:
            del self._loaded[entry]


class ModelFallbackChain:
    """One symbol's model, and its fallbacks when it fails.

    Args:
        registry: Registry of the models.
        symbol: Trading pair.
        cache: Loads the models.
    """

    def __init__(self, registry: ModelRegistry, symbol: str, cache: ModelCache) -> None:
        self.symbol = symbol
        self.problem = "no model has been loaded yet"
        self._registry = registry
        self._cache = cache
        self._thread = ModelThread()
        self._loading = ModelThread()
        self._serving: Serving | None = None
        self._seen = b""
        self._tried_at = 0.0
        self._failures: dict[ModelKey, list[str]] = {}
        self._search: asyncio.Task[None] | None = None
        self._shown: tuple[str, str, str] | None = None

    @property
    def mode(self) -> Mode:
        """`model`, `fallback`, or `linear_trend` when there is no model."""
        return "linear_trend" if self._serving is None else self._serving.mode

    @property
    def loaded(self) -> list[str]:
        """Names of the loaded models."""
        return [] if self._serving is None else [self._serving.model.version]

    @property
    def baseline_accuracy(self) -> float | None:
        """Directional accuracy that the loaded model reached in training."""
        return None if self._serving is None else self._serving.model.manifest.baseline_accuracy

    async def start(self) -> None:
        """Load the current model, or one of its fallbacks."""
        for step in ("inference", "reload", "fallback"):
            metrics.MODEL_FAILURES.labels(self.symbol, step)  # from 0: the first one is an increase
        await asyncio.shield(self._searching())

    async def close(self) -> None:
        """Cancel background tasks."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        if self._shown is not None:
            metrics.MODEL_INFO.remove(*self._shown)
        self._thread.close()
        self._loading.close()

    async def refresh(self) -> None:
        """Load the registry's current model if it has changed; to be called between slots."""
        seen = await asyncio.to_thread(self._registry.fingerprint)
        if self._search is not None and not self._search.done():
            return
        due = self.problem != "" and time.monotonic() - self._tried_at >= RETRY_CURRENT_S
        if seen != self._seen or due:
            self._failures.clear()
            await asyncio.shield(self._searching())

    async def warm(self, count: int, state: SlotState | None) -> ModelAnswer | None:
        """Run the model for nothing, so that the next run finds its code and data in the caches; nothing is counted.

        Args:
            count: How often.
            state: What was read last; without it, or what the model needs of it, the input is zeros.

        Returns:
            What the model said of the state; None if there is no model, or nothing that it could say.
        """
        answer = None
        for _ in range(count):
            serving = self._serving
            if serving is None:
                return None
            try:
                answer = await self._run(serving, {} if state is None else state.hashes)
            except FeatureMissing:
                zeros = np.zeros(len(serving.model.manifest.features), dtype=np.float32)
                with suppress(BadModel):  # the slot itself will find out and act
                    await onnx_model.run(serving.model, zeros, self._thread)
            except BadModel:
                return None  # the slot fails too, and handles it
        return answer

    async def answer(self, state: SlotState, trend: float | None, recover_s: float) -> ModelAnswer:
        """Predict from a state.

        Args:
            state: State of the slot.
            trend: Return by the linear trend; None if there is none.
            recover_s: Seconds that may be spent on loading another model when the present one fails.
        """
        deadline = time.monotonic() + recover_s
        for _ in range(TRIES_MAX):
            serving = self._serving
            if serving is None:
                break
            answer = await self._try(serving, state)
            if isinstance(answer, ModelAnswer):
                return answer
            if answer is not None:
                # An incomplete state is the same for every replica: waiting for another one would not help.
                doubts = [] if state.incomplete else [answer, *self._doubts_about(serving)]
                return without_model(trend, doubts)
            if self._serving is None:
                await self._searched_within(deadline - time.monotonic())
        return without_model(trend, [Doubt("model", self.problem)])

    async def _try(self, serving: Serving, state: SlotState) -> ModelAnswer | Doubt | None:
        """Run the model; gives its answer, a doubt if the state lacks a feature, or None when the model failed."""
        try:
            answer = await self._run(serving, state.hashes)
        except FeatureMissing as error:
            return Doubt("features", str(error))
        except BadModel as error:
            self._on_failure(serving, error)
            return None
        _FEATURES_DURATION.observe(answer.features_s)
        _MODEL_DURATION.observe(answer.model_s)
        return answer

    async def _run(self, serving: Serving, hashes: Mapping[str, Fields]) -> ModelAnswer:
        """Run the model and do nothing else: a dry run takes the same way as a slot's.

        Raises:
            FeatureMissing: The state lacks what the model needs.
            BadModel: The model failed or did not answer in time.
        """
        model = serving.model
        started = time.perf_counter()
        vector = extract(model.manifest.features, hashes)
        features_done = time.perf_counter()
        value = await onnx_model.run(model, vector, self._thread)
        durations_s = features_done - started, time.perf_counter() - features_done
        confidence = confidence_of(value, model.manifest.residual_std)
        doubts = tuple(self._doubts_about(serving))
        return ModelAnswer(serving.mode, value, confidence, model.version, doubts, *durations_s)

    def _doubts_about(self, serving: Serving) -> Sequence[Doubt]:
        doubts = []
        symbols = serving.model.manifest.symbols
        if self.symbol not in symbols:
            doubts.append(Doubt("symbols", f"the model was trained on {', '.join(symbols)}"))
        if serving.mode == "fallback":
            doubts.append(Doubt("model", f"an earlier model serves: {self.problem}"))
        return doubts

    def _on_failure(self, serving: Serving, error: BadModel) -> None:
        if self._serving is not serving:
            return  # another model has replaced it meanwhile
        self._serving = None
        manifest = serving.model.manifest
        self._failures.setdefault((manifest.name, manifest.sha256), []).append(str(error))
        self._cache.forget(serving.model)
        self.problem = str(error)
        self._alert("inference", error)

    def _alert(self, step: str, error: BadModel) -> None:
        metrics.MODEL_FAILURES.labels(self.symbol, step).inc()
        metrics.ALERTS.labels("MODEL_FAILURE").inc()
        log.error("%s: MODEL_FAILURE at %s: %s", self.symbol, step, error)

    def _searching(self) -> asyncio.Task[None]:
        """Start a search for a model, or give the running one: two at once would undo each other's results."""
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._walk())
        return self._search

    async def _searched_within(self, timeout_s: float) -> None:
        """Wait for a search, which continues in the background if it takes longer than the slot allows."""
        search = self._searching()
        await asyncio.wait([search], timeout=max(0.0, timeout_s))
        if search.done():
            search.result()

    async def _walk(self) -> None:
        """Search the chain; a model that works stays until a better one is loaded."""
        await self._load_current()
        if self._serving is None:
            await self._load_fallback()

    async def _load_current(self) -> None:
        self._tried_at = time.monotonic()
        self._seen = await asyncio.to_thread(self._registry.fingerprint)
        try:
            model = await self._load(await asyncio.to_thread(self._registry.in_use))
        except BadModel as error:
            self.problem = str(error)
            self._alert("reload", error)
            return
        self._use(Serving(model, "model"))
        self.problem = ""

    async def _load(self, entry: ModelKey) -> OnnxModel:
        """Load a model unless it has failed too often.

        Raises:
            BadModel: If it cannot be used.
        """
        failures = self._failures.get(entry, [])
        if len(failures) >= FAILURES_MAX:
            raise BadModel(f"{version_of(*entry)} has failed {len(failures)} times: {failures[-1]}")
        return await self._cache.load(entry, self._loading)

    async def _load_fallback(self) -> None:
        for entry in await asyncio.to_thread(self._registry.earlier):
            try:
                model = await self._load(entry)
            except BadModel as error:
                self._alert("fallback", error)
                continue
            self._use(Serving(model, "fallback"))
            return
        log.error(
            "%s: degraded service: no model can be used, the linear trend serves; check the registry", self.symbol
        )
        self._show("linear_trend", "")

    def _use(self, serving: Serving) -> None:
        version, mode = serving.model.version, serving.mode
        log.info("%s: model %s in use (%s)", self.symbol, version, mode, extra={"model": version, "mode": mode})
        self._serving = serving
        self._show(mode, version)

    def _show(self, mode: str, version: str) -> None:
        if self._shown is not None:
            metrics.MODEL_INFO.remove(*self._shown)
        self._shown = (self.symbol, version, mode)
        metrics.MODEL_INFO.labels(*self._shown).set(1)


class FallbackChains:
    """The chains of all symbols of a process.

    Args:
        registry: Where models come from.
        symbols: Trading pairs.
    """

    def __init__(self, registry: ModelRegistry, symbols: Sequence[str]) -> None:
        cache = ModelCache(registry)
        self.chains: Mapping[str, ModelFallbackChain] = {
            symbol: ModelFallbackChain(registry, symbol, cache) for symbol in symbols
        }

    @property
    def loaded(self) -> list[str]:
        """Names of the loaded models."""
        return sorted({version for chain in self.chains.values() for version in chain.loaded})

    async def start(self) -> None:
        """Load every symbol's current model, or a fallback."""
        metrics.ALERTS.labels("MODEL_FAILURE")  # starts at zero, so that the first one counts as an increase
        await asyncio.gather(*(chain.start() for chain in self.chains.values()))

    async def close(self) -> None:
        """Cancel background tasks."""
        await asyncio.gather(*(chain.close() for chain in self.chains.values()))
