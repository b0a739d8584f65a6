"""An ONNX model that is ready to run, and the thread that runs it.

Models run in a thread of their own, so that a model that hangs or is slow is replaced in its slot and the slot still
has a prediction. A run that times out is cancelled; its thread is abandoned and replaced, at most `THREADS_LEFT_MAX`
times.
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
"""Models take microseconds here, 20 ms is the limit for promotion. On a machine with three runnable threads per CPU a
thread was seen to wait 100 ms for a CPU; a good model must not be replaced for that."""

LOAD_TIMEOUT_S: Final = 5.0
THREADS_LEFT_MAX: Final = 4

_EXTREMES: Final = (0.0, 1.0, -1.0, 1e6, -1e6)
"""Inputs for which any model must give a finite output: no trades, and values far beyond any market."""


class OnnxModel:
    """A loaded model with inputs and outputs as expected.

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
        """Predict the relative change of the price over the horizon; may be called from several threads at once.

        Args:
            vector: float32 of shape (features,).
            options: onnxruntime's options of this run, with which it can be cancelled.

        Raises:
            BadModel: The model failed, or its output cannot be a return.
        """
        value = self._output(vector, options)
        if not is_usable(value):
            raise BadModel(f"{self._path}: expected a return of at most ±{RETURN_MAX}, found {value}")
        return value

    def test(self, options: Any = None) -> None:
        """Run the model on extreme inputs, for which its output has to be finite.

        Args:
            options: As for `run`.

        Raises:
            BadModel: It failed, or an output is not finite.
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
    # More threads make models of this size slower, and two replicas share two cores with all other processes.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(record.onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadModel(f"{path}: cannot be loaded: {message_of(error)}") from error


def _fixed_other(size: object, wanted: int) -> bool:
    """Say whether a dimension is fixed to another size; names and None allow any."""
    return isinstance(size, int) and size != wanted


class ModelThread:
    """Runs functions one after another in a thread, each with a time-out."""

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
            function: The function.
            timeout_s: Seconds after which it is abandoned.

        Raises:
            BadModel: It timed out, or raised this itself.
        """
        self._left = [thread for thread in self._left if thread.is_alive()]
        if len(self._left) >= THREADS_LEFT_MAX:
            raise BadModel(f"{len(self._left)} runs of models hang, and no other is started: restart the process")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - raised in the waiting call
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
        """End the thread."""
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
        return  # the event loop is closed: no call waits for the result


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


async def load(record: ModelRecord, thread: ModelThread) -> OnnxModel:
    """Load a model and run it on extreme inputs.

    Args:
        record: Its files.
        thread: Not the thread of the runs, which must not wait for a large model.

    Raises:
        BadModel: If it cannot be used.
    """
    model = await thread.call(lambda: OnnxModel(record), LOAD_TIMEOUT_S)
    await _within(model.test, RUN_TIMEOUT_S * len(_EXTREMES), thread)
    return model


async def run(model: OnnxModel, vector: NDArray[np.float32], thread: ModelThread) -> float:
    """Run a model with a time-out; a run that times out is cancelled, other runs of the same model are not.

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
