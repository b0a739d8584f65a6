"""An ONNX model that is ready to run, and the thread that runs it.

Models run in a thread of their own, so that one that hangs or is slow costs a slot its model and never its prediction.
A run that is out of time is told to end; its thread is left behind and replaced, at most `THREADS_LEFT_MAX` times.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sheetanchor.contract import RETURN_MAX, is_usable
from sheetanchor.errors import BadModel, message_of
from sheetanchor.ml.onnx_file import check_self_contained
from sheetanchor.ml.registry import ModelRecord

T = TypeVar("T")

RUN_TIMEOUT_S: Final = 0.3
"""The models this is for take microseconds, 20 ms is the limit for promotion. On a machine with three times as much to
do as it has processors, 100 ms of just not being run have been seen; a sound model must not be given up for that."""

LOAD_TIMEOUT_S: Final = 5.0
THREADS_LEFT_MAX: Final = 4

_EXTREMES: Final = (0.0, 1.0, -1.0, 1e6, -1e6)
"""Inputs that any model has to survive: nothing traded, and values far beyond any market."""


class OnnxModel:
    """A loaded model whose inputs and outputs are as the contract wants them.

    The input is one float32 tensor of shape [batch, features], the first output one tensor of one number a row: the
    relative change of the price over the horizon.

    Args:
        record: The model's files.

    Raises:
        BadModel: Names the file, what was expected and what was found.
    """

    def __init__(self, record: ModelRecord) -> None:
        self.manifest = record.manifest
        self.version = record.version
        self._path = record.path / "model.onnx"
        self._session = _session(record, self._path)
        self._input = self._check_input()
        self._check_output()

    def _check_input(self) -> str:
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise BadModel(f"{self._path}: inputs: expected 1, found {len(inputs)}")
        found, wanted = inputs[0], len(self.manifest.features)
        shape = found.shape
        fits = len(shape) == 2 and not _fixed_other(shape[0], 1) and shape[1] == wanted
        if found.type != "tensor(float)" or not fits:
            raise BadModel(
                f"{self._path}: input {found.name}: expected tensor(float) of shape [batch, {wanted}] "
                f"(one per feature of the manifest), found {found.type} of shape {shape}"
            )
        return str(found.name)

    def _check_output(self) -> None:
        output = self._session.get_outputs()[0]
        shape = output.shape
        fits = 1 <= len(shape) <= 2 and all(not _fixed_other(size, 1) for size in shape)
        if output.type not in ("tensor(float)", "tensor(double)") or not fits:
            raise BadModel(
                f"{self._path}: output {output.name}: expected tensor(float) of shape [batch, 1], "
                f"found {output.type} of shape {shape}"
            )

    def run(self, vector: NDArray[np.float32], options: Any = None) -> float:
        """Predict the relative change of the price over the horizon; several threads may do so at once.

        Args:
            vector: float32 of shape (features,).
            options: onnxruntime's options of this run, by which it can be told to end.

        Raises:
            BadModel: The model failed, or said what cannot be a return.
        """
        value = self._output(vector, options)
        if not is_usable(value):
            raise BadModel(f"{self._path}: expected a return of at most ±{RETURN_MAX}, found {value}")
        return value

    def test(self, options: Any = None) -> None:
        """Run the model on inputs that it has to survive with a finite output.

        Args:
            options: As for `run`.

        Raises:
            BadModel: It did not.
        """
        for value in _EXTREMES:
            output = self._output(np.full(len(self.manifest.features), value, dtype=np.float32), options)
            if not math.isfinite(output):
                raise BadModel(f"{self._path}: expected a finite output for inputs of {value:g}, found {output}")

    def _output(self, vector: NDArray[np.float32], options: Any) -> float:
        try:
            output = self._session.run(None, {self._input: vector.reshape(1, -1)}, options)[0]
        except Exception as error:
            raise BadModel(f"{self._path}: failed: {message_of(error)}") from error
        return float(np.asarray(output).reshape(-1)[0]) if np.size(output) else math.nan


def _session(record: ModelRecord, path: Path) -> Any:
    check_self_contained(path, record.onnx)
    options = onnxruntime.SessionOptions()
    # More threads make models of this size slower, and two replicas share two cores with everything else.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(record.onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadModel(f"{path}: cannot be loaded: {message_of(error)}") from error


def _fixed_other(size: object, wanted: int) -> bool:
    """Say whether a dimension is fixed to something else; names and None stand for any size."""
    return isinstance(size, int) and size != wanted


class ModelThread:
    """Runs functions one after another in a thread, each within a time."""

    def __init__(self) -> None:
        self._left: list[threading.Thread] = []
        self._start()

    def _start(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon, so that a model that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name="model", daemon=True)
        self._thread.start()

    def _leave(self) -> None:
        self._jobs.put(None)
        self._left.append(self._thread)
        self._start()

    async def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Run a function in the thread.

        Args:
            function: What to run.
            timeout_s: Seconds after which it is given up.

        Raises:
            BadModel: It is out of time, or raised this itself.
        """
        self._left = [thread for thread in self._left if thread.is_alive()]
        if len(self._left) >= THREADS_LEFT_MAX:
            raise BadModel(f"{len(self._left)} runs of models have not ended: no other is begun before they do")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                _deliver(loop, future.set_exception, future, error)
            else:
                _deliver(loop, future.set_result, future, result)

        self._jobs.put(job)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self._leave()
            raise BadModel(f"the model did not answer within {timeout_s * 1000:.0f} ms") from None

    def close(self) -> None:
        """Let the thread end."""
        self._jobs.put(None)


def _deliver(
    loop: asyncio.AbstractEventLoop, deliver: Callable[[Any], None], future: asyncio.Future[Any], what: Any
) -> None:
    def unless_given_up() -> None:
        if not future.done():
            deliver(what)

    try:
        loop.call_soon_threadsafe(unless_given_up)
    except RuntimeError:
        return  # the loop has ended: nobody waits any more


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


async def load(record: ModelRecord, thread: ModelThread) -> OnnxModel:
    """Load a model and run it on what it has to survive.

    Args:
        record: Its files.
        thread: Another one than that of the runs, which must not wait for a large model.

    Raises:
        BadModel: If it cannot be used.
    """
    model = await thread.call(lambda: OnnxModel(record), LOAD_TIMEOUT_S)
    await _within(model.test, RUN_TIMEOUT_S * len(_EXTREMES), thread)
    return model


async def run(model: OnnxModel, vector: NDArray[np.float32], thread: ModelThread) -> float:
    """Run a model within its time; a run that is out of time is told to end, other runs of the model are not.

    Raises:
        BadModel: It failed or did not answer in time.
    """
    return await _within(lambda options: model.run(vector, options), RUN_TIMEOUT_S, thread)


async def _within(function: Callable[[Any], T], timeout_s: float, thread: ModelThread) -> T:
    options = onnxruntime.RunOptions()
    try:
        return await thread.call(lambda: function(options), timeout_s)
    finally:
        options.terminate = True
